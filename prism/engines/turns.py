"""Fairness in front of an engine that does one thing at a time.

Work is cut into chunks, and the calls under way take turns chunk by chunk: a request of ten documents waits for a chunk
of a request of ten thousand, not for all of it. Engines that batch across calls themselves (vllm, openai) need none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from heapq import heappop, heappush

from prism.engines.base import Engine, LabelLogits, ScoreOutput, WritePiece, WriteRequest
from prism.errors import DocumentError

CHUNK_TOKENS = 16_384
"""Prompt tokens scored in one turn: a batch of the engine, or at least one prompt."""
CHUNK_TEXTS = 8
"""Texts written in one turn."""

on_scored: ContextVar[Callable[[int, int], Awaitable[None]] | None] = ContextVar("on_scored", default=None)
"""Awaited after each chunk that is not the last, by the call in whose context it is set: prompts scored, and all."""


urgency: ContextVar[int] = ContextVar("urgency", default=0)
"""Whose turn is next: of those that wait, a call in whose context this is lower; of equals, who came first."""


class Turn:
    """A lock that is handed on by urgency."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0

    async def __aenter__(self) -> None:
        if not self._taken:
            self._taken = True
            return
        self._count += 1
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (urgency.get(), self._count, ready))
        try:
            await ready
        except asyncio.CancelledError:
            if ready.done() and not ready.cancelled():  # it was handed over just now
                self._hand_on()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._hand_on()

    def _hand_on(self) -> None:
        while self._waiting:
            *_, ready = heappop(self._waiting)
            if not ready.done():
                ready.set_result(None)
                return
        self._taken = False


def in_turns(engine: Engine, chunk_tokens: int = CHUNK_TOKENS) -> Engine:
    """`engine` behind turns if it says `one_at_a_time`; as it is where it batches itself or turns are taken already."""
    return TakingTurns(engine, chunk_tokens=chunk_tokens) if getattr(engine, "one_at_a_time", False) else engine


class TakingTurns:
    """An engine that gives each call a turn after the other; waiting for it can be cancelled."""

    def __init__(self, engine: Engine, *, chunk_tokens: int = CHUNK_TOKENS, chunk_texts: int = CHUNK_TEXTS) -> None:
        self._engine, self._chunk_tokens, self._chunk_texts = engine, chunk_tokens, chunk_texts
        self._turn = Turn()

    async def score(self, prompts: Sequence[Sequence[int]]) -> ScoreOutput:
        """See `Engine.score`. Longest prompts first, so that the rows of a chunk need little padding."""
        labels: dict[int, LabelLogits | DocumentError] = {}
        cached = 0
        for chunk in self._chunks(prompts):
            async with self._turn:
                output = await self._engine.score([prompts[index] for index in chunk])
            labels.update(zip(chunk, output.labels, strict=True))
            cached += output.cached_tokens
            if len(labels) < len(prompts) and (tell := on_scored.get()):
                await tell(len(labels), len(prompts))
        return ScoreOutput([labels[index] for index in range(len(prompts))], cached)

    def _chunks(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        if sum(map(len, prompts)) <= self._chunk_tokens:
            yield list(range(len(prompts)))
            return
        chunk: list[int] = []
        tokens = 0
        for index in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
            if chunk and tokens + len(prompts[index]) > self._chunk_tokens:
                yield chunk
                chunk, tokens = [], 0
            chunk.append(index)
            tokens += len(prompts[index])
        yield chunk

    async def write(self, requests: Sequence[WriteRequest]) -> AsyncGenerator[WritePiece, None]:
        """See `Engine.write`."""
        for start in range(0, len(requests), self._chunk_texts):
            part = requests[start : start + self._chunk_texts]
            async with self._turn, aclosing(self._engine.write(part)) as pieces:  # type: ignore[type-var]  # closable
                async for piece in pieces:
                    yield piece._replace(index=start + piece.index)

    async def aclose(self) -> None:
        """Close the engine behind it."""
        await self._engine.aclose()
