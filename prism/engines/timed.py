"""How fast an engine is, as far as it has been seen: what an estimate of a call's time is made of."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from prism.engines.base import Engine, ScoreOutput, WritePiece, WriteRequest

_MEMORY = 0.8
"""How much an earlier call still counts when another has been seen."""


class Pace:
    """Seconds a token, over recent calls, each weighted by its tokens."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    def seen(self, tokens: int, seconds: float) -> None:
        self._tokens = _MEMORY * self._tokens + tokens
        self._seconds = _MEMORY * self._seconds + seconds

    def seconds(self, tokens: int) -> float | None:
        """For so many tokens; None when nothing has been seen yet."""
        if not tokens:
            return 0.0
        return tokens * self._seconds / self._tokens if self._tokens else None


class Timed:
    """An engine whose calls are timed. What they wait for others in front of it is not counted."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._clock = engine, clock
        self.one_at_a_time = getattr(engine, "one_at_a_time", False)
        self.reading, self.writing = Pace(), Pace()

    async def score(self, prompts: Sequence[Sequence[int]]) -> ScoreOutput:
        """See `Engine.score`."""
        began = self._clock()
        output = await self._engine.score(prompts)
        self.reading.seen(sum(map(len, prompts)), self._clock() - began)
        return output

    async def write(self, requests: Sequence[WriteRequest]) -> AsyncGenerator[WritePiece, None]:
        """See `Engine.write`."""
        began, tokens = self._clock(), 0
        async with aclosing(self._engine.write(requests)) as pieces:  # type: ignore[type-var]  # it can be closed
            async for piece in pieces:
                tokens += piece.tokens
                yield piece
        self.writing.seen(tokens, self._clock() - began)

    async def aclose(self) -> None:
        """Close the engine behind it."""
        await self._engine.aclose()
