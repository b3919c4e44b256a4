"""The remote engine: any server with `/v1/completions` over token ids. Prism grows past one machine here.

Prompts are rendered and tokenized here and travel as ids, so the template of the local checkpoint directory applies
whatever the server would do with text. What is asked beyond the OpenAI API, and what a server must have of it:

- vLLM: everything (`logprob_token_ids`, `return_token_ids`, `include_stop_str_in_output`).
- SGLang: the most likely `TOP` tokens instead of two chosen ones, so a label below rank 20 raises LabelMissing.
- llama.cpp: likewise; and no cut at stop strings that keeps them, so texts are cut here, a token or two later.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import httpx
from pydantic import Field

from prism.engines.base import (
    Emit,
    LabelLogits,
    ScoreOutput,
    WritePiece,
    WriteRequest,
    require_prompts,
    unscorable,
)
from prism.engines.loop import LoopThread, gathered
from prism.engines.replicas import PROBE_S, Replica, Replicas
from prism.engines.rounding import looks_rounded
from prism.engines.settings import EngineOptions
from prism.errors import DocumentError, EngineError, LabelMissing

_logger = logging.getLogger(__name__)
TOP = 20
"""How many of the most likely tokens are asked for where labels cannot be named; vLLM's own limit."""
_PROMPTS_A_REQUEST = 16
_REQUESTS_AT_ONCE = 8
"""Scoring requests of one call that are under way per server: a call of thousands does not bury a small one."""
_WRITES_AT_ONCE = 64
_KEEPS_STOP_STRINGS = {"vllm": "include_stop_str_in_output", "sglang": "no_stop_trim"}
"""The field that makes a server leave the stop string in the text, by who made the server."""


class OpenAIOptions(EngineOptions):
    timeout_s: float = Field(default=120.0, gt=0)
    """Longest silence of a server before another is asked."""
    probe_s: float = Field(default=PROBE_S, gt=0)
    """How often a dead server is asked whether it lives again."""
    transport: httpx.AsyncBaseTransport | None = None
    """How requests travel; None: over the network."""


class OpenAIEngine:
    """Scores and writes through one or several servers of the same model."""

    def __init__(
        self,
        base_urls: Sequence[str],
        *,
        label_ids: tuple[int, int],
        label_texts: tuple[str, str],
        stop_ids: Collection[int],
        stop_strings: Collection[str],
        model: str | None = None,
        api_key: str | None = None,
        context: int | None = None,
        options: OpenAIOptions = OpenAIOptions(),  # noqa: B008  # frozen
    ) -> None:
        """Asks every server for its model; at least one must answer.

        `base_urls`: up to and including `/v1`. `label_ids`, `label_texts`: (yes, no) as tokens and as the server spells
        them. `model`: the served name; None: the first each server lists. `context`: tokens the model reads, if known;
        what a server says is shorter wins.
        Raises EngineError when no server answers or one serves another model, InputError for a malformed address.
        """
        self._label_ids = label_ids
        self._label_texts = label_texts
        self._stop_ids = frozenset(stop_ids)
        self._stop_strings = tuple(stop_strings)
        self._context = context or math.inf
        self._told_rounding = False
        self._loop = LoopThread("prism-openai")
        self._replicas = Replicas(base_urls, model=model, api_key=api_key, **dict(options))
        try:
            self._loop.run_blocking(self._replicas.start)
        except BaseException:
            self._loop.run_blocking(self._replicas.aclose)
            self._loop.close()
            raise

    # -- the protocol

    async def score(self, prompts: Sequence[Sequence[int]]) -> ScoreOutput:
        """See `Engine.score`. Prompts go out in small requests, each to the server with the least to do."""
        return await self._loop.run(partial(self._score, [list(ids) for ids in prompts]))

    def write(self, requests: Sequence[WriteRequest]) -> AsyncGenerator[WritePiece, None]:
        """See `Engine.write`. A server that dies in the middle of a text is replaced by another, which goes on."""
        require_prompts(requests)
        return self._loop.stream(partial(self._write, list(requests)))

    async def aclose(self) -> None:
        """Close the connections. Calling twice is harmless."""
        with suppress(EngineError):  # it is closed already, or in another process
            await self._loop.run(self._replicas.aclose)
        await asyncio.to_thread(self._loop.close)

    # -- scoring, on the engine's own loop

    async def _score(self, prompts: list[list[int]]) -> ScoreOutput:
        most = self._most_tokens() - 1  # servers want room for the token they sample
        answers: list[LabelLogits | DocumentError | None] = [unscorable(ids, most, "the server") for ids in prompts]
        fitting = [index for index, problem in enumerate(answers) if problem is None]
        batches = [fitting[at : at + _PROMPTS_A_REQUEST] for at in range(0, len(fitting), _PROMPTS_A_REQUEST)]
        jobs = [partial(self._score_batch, [prompts[index] for index in batch]) for batch in batches]
        scored = await gathered(jobs, _REQUESTS_AT_ONCE * len(self._replicas))
        for batch, (labels, _) in zip(batches, scored, strict=True):
            for index, answer in zip(batch, labels, strict=True):
                answers[index] = answer
        found = [answer for answer in answers if answer is not None]
        if not self._told_rounding and looks_rounded(found):
            self._told_rounding = True
            _logger.warning(
                "the server rounds its logits to bfloat16, so that different documents get equal scores: serve with"
                " vLLM's"
                ' --hf-overrides \'{"head_dtype": "float32"}\', or in float32'
            )
        return ScoreOutput(found, sum(cached for _, cached in scored))

    async def _score_batch(self, prompts: list[list[int]]) -> tuple[list[LabelLogits], int]:
        body = {
            "prompt": prompts,
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": TOP,
            "logprob_token_ids": list(self._label_ids),
            "return_tokens_as_token_ids": True,
        }
        answer = await self._replicas.post(body, weight=len(prompts))
        choices = {choice.get("index"): choice for choice in _list_of_objects(answer, "choices")}
        if set(choices) != set(range(len(prompts))):
            raise EngineError(f"the server answered choices {sorted(map(str, choices))} for {len(prompts)} prompts")
        return [self._read_labels(choices[index]) for index in range(len(prompts))], _cached_tokens(answer)

    def _read_labels(self, choice: Mapping[str, Any]) -> LabelLogits:
        returned = dict(_first_logprobs(choice.get("logprobs")))
        values = []
        for id_, text in zip(self._label_ids, self._label_texts, strict=True):
            # by id where the server says ids; by text only where it says none
            found = returned.get(f"token_id:{id_}", returned.get(id_, returned.get(text)))
            if not isinstance(found, int | float):
                raise LabelMissing(
                    f"the server returned no log-probability of label {text!r} (token {id_}), only of"
                    f" {len(returned)} other tokens: serve the checkpoint with vLLM, which returns chosen tokens"
                )
            if not math.isfinite(found):
                raise EngineError(f"the server computed the log-probability {found} for label {text!r}; try float32")
            values.append(float(found))
        return LabelLogits(*values)

    def _most_tokens(self) -> float:
        """What every server reads and writes together."""
        return min(self._context, self._replicas.context)

    # -- writing, on the engine's own loop

    async def _write(self, requests: list[WriteRequest], emit: Emit) -> None:
        jobs = [partial(self._write_one, index, request, emit) for index, request in enumerate(requests)]
        await gathered(jobs, _WRITES_AT_ONCE)

    async def _write_one(self, index: int, request: WriteRequest, emit: Emit) -> None:
        text = _Writing(list(request.ids), request.max_tokens)
        failed: set[Replica] = set()
        while True:
            limit = min(text.left, self._most_tokens() - len(text.ids))
            if limit <= 0:
                emit(WritePiece(index, "", 0, "length"))
                return
            replica = self._replicas.choose(failed)
            try:
                async with aclosing(self._stream(replica, index, text, int(limit))) as written:
                    async for piece in written:
                        emit(piece)
                return
            except ConnectionError as error:
                failed.add(replica)
                if text.shown and not text.resumable:
                    raise EngineError(f"{error}; the text it had begun cannot be continued elsewhere") from error

    async def _stream(self, replica: Replica, index: int, text: _Writing, limit: int) -> AsyncGenerator[WritePiece]:
        """Pieces of one text from one server, up to the one that carries `finish`.

        Raises ConnectionError when the server breaks off.
        """
        keeps = replica.owner in _KEEPS_STOP_STRINGS
        body = {
            "prompt": text.ids,
            "max_tokens": limit,
            "temperature": 0.0,
            "stop_token_ids": sorted(self._stop_ids),
            "skip_special_tokens": True,
            "return_token_ids": True,
        }
        if keeps:
            body |= {"stop": list(self._stop_strings), _KEEPS_STOP_STRINGS[replica.owner]: True}
        async with aclosing(self._replicas.stream(replica, body)) as events:
            async for event in events:
                for choice in _list_of_objects(event, "choices", least=0):
                    piece = text.read(index, choice, self._stop_ids, () if keeps else self._stop_strings)
                    if piece.text or piece.tokens or piece.finish:
                        yield piece
                    if piece.finish:
                        return
        raise ConnectionError(f"{replica.url} ended a text without saying why")


class _Writing:
    """One text on its way: what was written so far, as ids where the server tells them."""

    def __init__(self, ids: list[int], max_tokens: int) -> None:
        self.ids = ids
        self.left = max_tokens
        self.resumable = True
        self.shown = ""

    def read(
        self, index: int, choice: Mapping[str, Any], stop_ids: Collection[int], stop_strings: Sequence[str]
    ) -> WritePiece:
        """The piece in one streamed choice; `stop_strings` are looked for here."""
        text = choice.get("text") or ""
        token_ids = choice.get("token_ids")
        finish = choice.get("finish_reason")
        if not isinstance(text, str) or finish not in (None, "stop", "length"):
            raise EngineError(f"the server ended a text with {str(finish)[:40]!r}, expected stop or length: try again")
        if isinstance(token_ids, list):
            written = [id_ for id_ in token_ids if id_ not in stop_ids]
            tokens = len(written)
            self.ids = self.ids + written
        else:
            tokens = 1 if text else 0  # servers that tell no ids send a token at a time
            self.resumable = self.resumable and not text
        self.left -= tokens
        before = len(self.shown)
        self.shown += text
        for stop in stop_strings:
            at = self.shown.find(stop, max(0, before - len(stop) + 1))
            if at >= 0:
                return WritePiece(index, self.shown[before : at + len(stop)], tokens, "stop")
        return WritePiece(index, text, tokens, finish)


def _first_logprobs(logprobs: Any) -> Iterator[tuple[str | int, Any]]:
    """(token, log-probability) at the first written position, in the shapes servers use.

    OpenAI, vLLM, SGLang: `top_logprobs` is a list of {text or `token_id:7`: value}; llama.cpp: `content` is a list of
    {id, logprob, top_logprobs: [{id, logprob}]}.
    """
    if not isinstance(logprobs, Mapping):
        return
    top = logprobs.get("top_logprobs")
    if isinstance(top, list) and top and isinstance(top[0], Mapping):
        yield from top[0].items()
    content = logprobs.get("content")
    if isinstance(content, list) and content and isinstance(content[0], Mapping):
        for entry in (content[0], *(content[0].get("top_logprobs") or [])):
            yield entry.get("id", entry.get("token")), entry.get("logprob")


def _list_of_objects(answer: Mapping[str, Any], name: str, least: int = 1) -> list[Mapping[str, Any]]:
    found = answer.get(name)
    if not isinstance(found, list) or len(found) < least or not all(isinstance(entry, Mapping) for entry in found):
        raise EngineError(f"the server's answer has no {name}: is this an OpenAI-compatible /v1/completions?")
    return found


def _cached_tokens(answer: Mapping[str, Any]) -> int:
    """What the server says it did not compute again; vLLM says so with `--enable-prompt-tokens-details`."""
    usage = answer.get("usage")
    details = usage.get("prompt_tokens_details") if isinstance(usage, Mapping) else None
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return cached if isinstance(cached, int) else 0
