"""One rerank request, from its bytes to its answer.

admission, key -> read_body -> recognise the dialect -> read_request -> Reranker.astream, until the client hangs up
or time is up -> dialects.answer, or server-sent events
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Any

from anyio import fail_after, to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prism.errors import EngineError, InputError
from prism.reranker import Reranker
from prism.result import Event, Ranked, RerankResult
from prism.serving.admission import Admission
from prism.serving.body import parse_json, peek, read_body, read_request
from prism.serving.dialects import Dialect, answer, recognise
from prism.serving.disconnect import until_disconnect
from prism.serving.failures import Failure, failure
from prism.serving.keys import Keys
from prism.serving.limits import Limits
from prism.serving.logs import NAME
from prism.serving.metrics import Metrics, tokens_saved
from prism.serving.refusal import Refused
from prism.serving.schema import RerankRequest, sent_text
from prism.serving.stream import Emit, EventStream, encode, told
from prism.serving.tracing import Phase, Served, Trace

_logger = logging.getLogger(NAME)


class Ticket:
    """What is known about one request while it is served: what the log line, the metrics and the traces say."""

    def __init__(self, metrics: Metrics, headers: Mapping[str, str], trace: Trace | None = None) -> None:
        self.id = f"rerank-{uuid.uuid4().hex}"
        self.dialect = Dialect.COMMON
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

    def _timed(self, name: str, began: float, ended: float) -> Phase:
        """On the clock on the wall, which may be set while the request is served; the durations stay right."""
        return Phase(name, *(self._began_ns + round((at - self._began) * 1e9) for at in (began, ended)))

    def _record(self, name: str, seconds: float) -> None:
        self._metrics.phase_s.labels(name).observe(seconds)
        self.fields[f"{name}_ms"] = round(seconds * 1000, 1)


class Endpoint:
    """`POST /v1/rerank`."""

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
        self.broken = False
        """Whether the engine failed when it was last used: `/ready` tries it again."""

    async def __call__(self, request: Request) -> Response:
        ticket = Ticket(self._metrics, request.headers, self._trace)
        with ExitStack() as place:
            try:
                await self._let_in(request, ticket, place)
                with fail_after(self._limits.request_timeout_s):
                    asked = await self._read(request, ticket)
                    if asked.stream:
                        return EventStream(request, partial(self._tell_all, ticket, asked), place.pop_all().close)
                    result = await until_disconnect(request, self._result(ticket, asked))
                    response = await to_thread.run_sync(_response, ticket, asked, result)
            except Exception as error:  # noqa: BLE001  # outermost boundary: whatever it is, the client gets our body
                response = self._failed(ticket, error).response(ticket.id, ticket.dialect)
        ticket.close(response.status_code)
        return response

    async def _let_in(self, request: Request, ticket: Ticket, place: ExitStack) -> None:
        try:
            self._keys.require(request.headers)
            place.callback(self._admission.enter())
        except Refused:
            ticket.dialect = await peek(request)
            raise

    async def _read(self, request: Request, ticket: Ticket) -> RerankRequest:
        raw = await read_body(request, self._limits.max_body_bytes)
        body = await to_thread.run_sync(parse_json, raw)
        ticket.dialect = recognise(body)
        asked = await to_thread.run_sync(read_request, body, self._limits.max_documents)
        ticket.fields |= {"bytes": len(raw), "documents": len(asked.documents), "stream": bool(asked.stream)}
        ticket.phase("read")
        return asked

    async def _result(self, ticket: Ticket, asked: RerankRequest) -> RerankResult:
        async with aclosing(self._events(ticket, asked)) as events:
            async for event in events:
                last = event
        assert isinstance(last, RerankResult)  # what the events end with
        return last

    def _refuse_cuts(self, asked: RerankRequest, result: RerankResult) -> None:
        """Voyage's `truncation: false`."""
        cut = sorted(judgment.index for judgment in result if judgment.truncation)
        if asked.truncation is False and cut:
            raise InputError(f"documents[{cut[0]}] is longer than the model reads: shorten it, or allow truncation")

    async def _events(self, ticket: Ticket, asked: RerankRequest) -> AsyncGenerator[Event, None]:
        """The reranker's events, measured."""
        default = self._limits.evidence and ticket.dialect.writes
        options = asked.options(evidence=default, max_total_tokens=self._limits.max_tokens)
        async with aclosing(self._reranker.astream(asked.query, asked.texts(), **options)) as events:
            async for event in events:
                if isinstance(event, Ranked):
                    self.broken = False
                    self._refuse_cuts(asked, event.result)
                    ticket.phase("rank")
                elif isinstance(event, RerankResult):
                    ticket.phase("write")
                    ticket.fields |= event.usage.model_dump()
                    self._metrics.count(event, await to_thread.run_sync(self._saved, asked, event))
                yield event

    def _saved(self, asked: RerankRequest, result: RerankResult) -> int:
        count = self._reranker.count_tokens
        written = (judgment for judgment in result if judgment.evidence)
        return sum(tokens_saved(judgment, sent_text(asked, judgment.index), count) for judgment in written)

    async def _tell_all(self, ticket: Ticket, asked: RerankRequest, emit: Emit) -> None:
        """`asked`, told as events. A failure is the last of them: the status was sent long ago."""
        status = 499
        try:
            with fail_after(self._limits.request_timeout_s):
                async with aclosing(self._events(ticket, asked)) as events:
                    async for event in events:
                        for chunk in await to_thread.run_sync(told, event, ticket.id, asked):
                            emit(chunk)
            status = 200
        except Exception as error:  # noqa: BLE001  # outermost boundary, as above
            failed = self._failed(ticket, error)
            status = failed.status
            emit(encode("error", failed.body(ticket.id, Dialect.COMMON)))
        finally:
            ticket.close(status)

    def _failed(self, ticket: Ticket, error: Exception) -> Failure:
        if isinstance(error, EngineError):
            self.broken = True
            self._metrics.engine_errors.inc()
        return failure(ticket.id, error)

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


def _response(ticket: Ticket, asked: RerankRequest, result: RerankResult) -> JSONResponse:
    return JSONResponse(answer(ticket.id, ticket.dialect, asked, result))
