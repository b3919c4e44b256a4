"""One rerank request, from its bytes to its answer.

admission, key -> read_body -> recognise the dialect -> read_request -> Reranker.astream, until the client hangs up
or time is up -> dialects.answer, or server-sent events. A stream begins with the ranking: what fails before it is there
is answered with a status of its own.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Any, NamedTuple

from anyio import CancelScope, fail_after, to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prism.context import CountTokens, PromptContext, named_tokenizer
from prism.errors import EngineError, InputError
from prism.inputs import read_count
from prism.options import Options
from prism.reranker import Reranker
from prism.result import Event, Ranked, RerankResult
from prism.serving.body import parse_json, peek, read_body, read_request
from prism.serving.decide import Decided, decide, read_all
from prism.serving.decisions import decisions_answer, read_decisions
from prism.serving.dialects import Dialect, answer, headers, preflight_answer, recognise
from prism.serving.http_errors import INVALID, HttpFailure, Refused, failure
from prism.serving.limits import Admission, Keys, Limits, Slot
from prism.serving.observability import NAME, Metrics, Phase, Served, Trace, tokens_saved
from prism.serving.questions import Questions
from prism.serving.schema import RerankRequest
from prism.serving.score import ScoreRequest, read_score_request, score_answer
from prism.serving.stream import Emit, EventStream, encode, told, until_disconnect
from prism.serving.systemone import read_system_one, system_one_answer
from prism.types import EvidenceChoice, Judgment, Usage

COHERE = "/v2/rerank"
"""Where only clients of Cohere send to: `top_n: 0` is refused there, which elsewhere (vLLM, Infinity) means all."""
_REQUEST_IDS = ("x-request-id", "x-typesafe-request-id")
"""Where the clients of OpenAI and TypeSafe look for a request's id."""
_logger = logging.getLogger(NAME)


class Ticket:
    """What is known about one request while it is served: what the log line, the metrics and the traces say."""

    def __init__(self, metrics: Metrics, headers: Mapping[str, str], trace: Trace | None = None) -> None:
        self.id = f"rerank-{uuid.uuid4().hex}"
        self.dialect = Dialect.COMMON
        self.names: Mapping[str, str] = {}
        """What the request called our options."""
        self.fields: dict[str, Any] = {}
        self._metrics, self._headers, self._trace = metrics, headers, trace
        self._phases: list[Phase] = []
        self._began_ns = time.time_ns()
        self._began = self._phase_began = time.monotonic()

    def phase(self, name: str) -> None:
        """The phase `name` ends now."""
        now = time.monotonic()
        self._record(name, now - self._phase_began)
        self._phases.append(self._timed(name, self._phase_began, now))
        self._phase_began = now

    def close(self, status: int) -> None:
        now = time.monotonic()
        self._record("total", now - self._began)
        self._metrics.requests.labels(str(status), self.dialect.value).inc()
        fields = {"id": self.id, "status": status, "dialect": self.dialect.value, **self.fields}
        _logger.info("rerank", extra={"fields": fields})
        if self._trace:
            self._trace(Served(self._timed("rerank", self._began, now), self._phases, status, fields, self._headers))

    def age_s(self) -> float:
        return time.monotonic() - self._began

    def _timed(self, name: str, began: float, ended: float) -> Phase:
        """On the clock on the wall, which may be set while the request is served; the durations stay right."""
        return Phase(name, *(self._began_ns + round((at - self._began) * 1e9) for at in (began, ended)))

    def _record(self, name: str, seconds: float) -> None:
        self._metrics.phase_s.labels(name).observe(seconds)
        self.fields[f"{name}_ms"] = round(seconds * 1000, 1)


ContextOf = Callable[[RerankResult], PromptContext | None]
Answer = Callable[[Request, "Ticket", Slot], Awaitable[Response]]


class Wire(NamedTuple):
    """How one vendor's typed questions are read and answered."""

    read: Callable[[object], Questions]
    answer: Callable[[str, str, Questions, Decided], dict[str, Any]]


_SYSTEM_ONE, _DECISIONS = Wire(read_system_one, system_one_answer), Wire(read_decisions, decisions_answer)


class Endpoint:
    """`POST /v1/rerank`, `/v1/score`, `/v1/systemone` and `/v1/decisions`."""

    def __init__(
        self,
        reranker: Reranker,
        limits: Limits,
        keys: Keys,
        admission: Admission,
        metrics: Metrics,
        trace: Trace | None = None,
    ) -> None:
        self._reranker, self._limits, self._keys = reranker, limits, keys
        self._admission, self._metrics, self._trace = admission, metrics, trace
        self._counts = {name: named_tokenizer(name) for name in limits.tokenizers}
        self.broken = False
        """Whether the engine failed when it was last used: `/ready` tries it again."""

    async def rerank(self, request: Request) -> Response:
        return await self._serve(request, self._rerank)

    async def score(self, request: Request) -> Response:
        return await self._serve(request, self._score)

    async def system_one(self, request: Request) -> Response:
        return await self._serve(request, partial(self._decide, _SYSTEM_ONE))

    async def decisions(self, request: Request) -> Response:
        return await self._serve(request, partial(self._decide, _DECISIONS))

    async def _serve(self, request: Request, answer: Answer) -> Response:
        ticket = Ticket(self._metrics, request.headers, self._trace)
        with ExitStack() as leaving:
            try:
                place = await self._let_in(request, ticket)
                leaving.callback(place.leave)
                with CancelScope() as scope, fail_after(self._limits.request_timeout_s):
                    place.cancel = scope.cancel
                    response = await answer(request, ticket, place)
                if scope.cancelled_caught:
                    raise self._admission.given_up()
                if isinstance(response, EventStream):
                    leaving.pop_all()  # its end leaves
            except Exception as error:  # noqa: BLE001  # outermost boundary: whatever it is, the client gets our body
                response = self._failed(ticket, error).response(ticket.id, ticket.dialect)
        if not isinstance(response, EventStream):  # which is over when its work is
            ticket.close(response.status_code)
        return response

    async def _let_in(self, request: Request, ticket: Ticket) -> Slot:
        try:
            self._keys.require(request.headers)
            return self._admission.enter()
        except Refused:
            ticket.dialect = await peek(request)
            raise

    async def _read(self, request: Request, ticket: Ticket) -> object:
        raw = await read_body(request, self._limits.max_body_bytes)
        body = await to_thread.run_sync(parse_json, raw)
        ticket.dialect = recognise(body)
        ticket.fields["bytes"] = len(raw)
        return body

    # -- ranking

    async def _rerank(self, request: Request, ticket: Ticket, place: Slot) -> Response:
        body = await self._read(request, ticket)
        read = partial(read_request, zero_is_all=not request.scope["path"].endswith(COHERE))
        asked, ticket.names = await to_thread.run_sync(read, body, self._limits.max_documents)
        ticket.fields |= {"documents": len(asked.documents), "stream": bool(asked.stream)}
        self._admit(place, asked.instruction, asked.priority)
        context_of = self._contexts(ticket, asked)
        ticket.phase("read")
        if asked.dry_run:
            return JSONResponse(await until_disconnect(request, self._preflight(ticket, asked)))
        events = self._events(ticket, asked)
        if asked.stream:
            first = await until_disconnect(request, anext(events))
            place.keep()
            work = partial(self._tell_all, ticket, asked, context_of, first, events)
            return EventStream(request, work, place.leave)
        result = await until_disconnect(request, _last(events))
        return await to_thread.run_sync(_response, ticket, asked, context_of, result)

    def _admit(self, place: Slot, instruction: str | None, priority: int | None = None) -> None:
        """A request that was read. Raises Refused: 422 for an instruction where the model takes none, 429."""
        template = self._reranker.template
        if instruction is not None and not template.takes_instruction:
            name = template.spec.name
            message = f"instruction: the template {name!r} of this model takes none, leave it out"
            raise Refused(422, message, INVALID)
        place.claim(priority or 0)

    async def _preflight(self, ticket: Ticket, asked: RerankRequest) -> dict[str, Any]:
        if ticket.dialect is Dialect.TEI:
            raise InputError("an answer to `texts` is an array, with no place for a dry_run: ask as vLLM's clients do")
        options = asked.options(evidence=self._evidence(ticket), max_total_tokens=self._limits.max_tokens)
        found = await self._reranker.apreflight(asked.query, asked.texts(), **options)
        ticket.phase("rank")
        return preflight_answer(ticket.id, asked, found)

    def _evidence(self, ticket: Ticket) -> EvidenceChoice | bool:
        """What a request gets that does not say."""
        return self._limits.evidence if ticket.dialect.writes else False

    def _contexts(self, ticket: Ticket, asked: RerankRequest) -> ContextOf:
        """What makes the context that a request asks for. Raises InputError before anything is scored."""
        if not asked.wants_context:
            return lambda _: None
        if ticket.dialect is Dialect.TEI:
            raise InputError("an answer to `texts` is an array, with no place for a context: ask as vLLM's clients do")
        if asked.context_tokens is not None:
            read_count("context_tokens", asked.context_tokens)
        name = asked.context_tokenizer
        if name is not None and name not in self._counts:
            known = ", ".join(map(repr, self._counts)) or "none: prism serve --context-tokenizer NAME adds one"
            raise InputError(f"no context_tokenizer {name[:60]!r} here: expected {known}")
        count: CountTokens = self._reranker.count_tokens if name is None else self._counts[name]
        return lambda result: result.fit_context(
            asked.context_format or "text", max_tokens=asked.context_tokens, count=count
        )

    async def _events(self, ticket: Ticket, asked: RerankRequest) -> AsyncGenerator[Event, None]:
        """The reranker's events, measured."""
        options = asked.options(evidence=self._evidence(ticket), max_total_tokens=self._limits.max_tokens)
        async with aclosing(self._reranker.astream(asked.query, asked.texts(), **options)) as events:
            async for event in events:
                if isinstance(event, Ranked):
                    self.broken = False
                    ticket.phase("rank")
                elif isinstance(event, RerankResult):
                    ticket.phase("write")
                    ticket.fields |= event.usage.model_dump()
                    self._metrics.count(event, await to_thread.run_sync(self._saved, asked, event))
                yield event

    def _saved(self, asked: RerankRequest, result: RerankResult) -> int:
        count = self._reranker.count_tokens
        written = (judgment for judgment in result if judgment.evidence)
        return sum(tokens_saved(judgment, asked.sent_text(judgment.index) or "", count) for judgment in written)

    async def _tell_all(
        self,
        ticket: Ticket,
        asked: RerankRequest,
        context_of: ContextOf,
        first: Event,
        events: AsyncGenerator[Event, None],
        emit: Emit,
    ) -> None:
        """`asked`, told as events. A failure is the last of them: the status was sent long ago."""
        status = 499
        try:
            with fail_after(self._limits.request_timeout_s - ticket.age_s()):
                async with aclosing(events):
                    event: Event | None = first
                    while event is not None:
                        for chunk in await to_thread.run_sync(told, event, ticket.id, asked, context_of):
                            emit(chunk)
                        event = await anext(events, None)
            status = 200
        except Exception as error:  # noqa: BLE001  # outermost boundary, as above
            failed = self._failed(ticket, error)
            status = failed.status
            emit(encode("error", failed.body(ticket.id, Dialect.COMMON)))
        finally:
            ticket.close(status)

    # -- scoring

    async def _score(self, request: Request, ticket: Ticket, place: Slot) -> Response:
        body = await self._read(request, ticket)
        asked = await to_thread.run_sync(read_score_request, body, self._limits.max_documents)
        ticket.names = asked.names
        ticket.fields |= {"documents": len(asked.queries), "stream": False}
        self._admit(place, asked.request.instruction, asked.request.priority)
        ticket.phase("read")
        judged, used = await until_disconnect(request, self._judge_all(asked))
        ticket.phase("rank")
        ticket.fields |= used.model_dump()
        model, version = self._reranker.name, self._reranker.score_version
        return JSONResponse(score_answer(ticket.id, asked, judged, used, model=model, score_version=version))

    async def _judge_all(self, asked: ScoreRequest) -> tuple[dict[int, Judgment], Usage]:
        """Judgments by place. Pairs that share a query are judged together."""
        texts, judged, used = asked.request.texts(), dict[int, Judgment](), Usage()
        for query, places in asked.groups().items():
            left = self._limits.max_tokens - used.prompt_tokens
            options = asked.request.options(evidence=False, max_total_tokens=max(1, left))
            result = await self._judge(query, [texts[place] for place in places], options)
            judged |= {places[judgment.index]: judgment for judgment in result}
            used += result.usage
        return judged, used

    async def _judge(self, query: str, documents: list[Any], options: Options) -> RerankResult:
        result = await self._reranker.arerank(query, documents, **options)
        self.broken = False
        self._metrics.count(result, 0)
        return result

    # -- typed questions

    async def _decide(self, wire: Wire, request: Request, ticket: Ticket, place: Slot) -> Response:
        body = await self._read(request, ticket)
        asked = await to_thread.run_sync(wire.read, body)
        readings = await to_thread.run_sync(read_all, asked, self._limits.max_documents)
        ticket.fields |= {"documents": sum(len(reading.pairs) for reading in readings.values()), "stream": False}
        self._admit(place, asked.instruction)
        ticket.phase("read")

        async def judge(query: str, documents: list[Any], max_tokens: int) -> RerankResult:
            limit = max(1, max_tokens)
            options = Options(instruction=asked.instruction, evidence=False, max_total_tokens=limit)
            return await self._judge(query, documents, options)

        decided = await until_disconnect(request, decide(asked, readings, judge, self._limits.max_tokens))
        ticket.phase("rank")
        ticket.fields |= decided.used.model_dump()
        found = await to_thread.run_sync(wire.answer, ticket.id, self._reranker.name, asked, decided)
        return JSONResponse(found, headers=dict.fromkeys(_REQUEST_IDS, ticket.id))

    # -- when it goes wrong

    def _failed(self, ticket: Ticket, error: Exception) -> HttpFailure:
        if isinstance(error, EngineError):
            self.broken = True
            self._metrics.engine_errors.inc()
        return failure(ticket.id, error).spelled(ticket.names)

    async def ready(self) -> bool:
        """Whether a request sent now would be served. After a failure of the engine, tries it."""
        if self._admission.draining:
            return False
        if self.broken:
            try:
                await self._reranker.arerank("is the model there?", ["The model is there."], evidence=False)
                self.broken = False
            except EngineError:
                return False
        return True


async def _last(events: AsyncGenerator[Event, None]) -> RerankResult:
    async with aclosing(events):
        async for event in events:
            last = event
    assert isinstance(last, RerankResult)  # what the events end with
    return last


def _response(ticket: Ticket, asked: RerankRequest, context_of: ContextOf, result: RerankResult) -> JSONResponse:
    body = answer(ticket.id, ticket.dialect, asked, result, context_of(result))
    return JSONResponse(body, headers=headers(ticket.dialect, asked, result))
