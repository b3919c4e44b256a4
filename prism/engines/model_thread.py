"""The thread that an engine in this process computes on.

One call after the other; one whose task is cancelled, or whose engine is closed, ends at its next `check`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TypeVar

from prism.engines.base import Emit, WritePiece
from prism.engines.loop import Home, pumped
from prism.errors import EngineError

Check = Callable[[], None]
"""Raises when the caller no longer wants the work; called between forward passes."""

_T = TypeVar("_T")


class ModelThread:
    """A thread for one model. Raises EngineError when it is closed, and in a process that was forked off."""

    def __init__(self, name: str) -> None:
        self._home = Home()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._stops: set[threading.Event] = set()
        self.closed = False

    async def run(self, job: Callable[[Check], _T]) -> _T:
        """What `job` returns, computed on the thread."""
        stop = self._begin()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, job, _checker(stop))
        finally:
            self._end(stop)

    async def stream(self, job: Callable[[Check, Emit], None]) -> AsyncGenerator[WritePiece, None]:
        """The pieces that `job` emits."""
        stop = self._begin()
        loop = asyncio.get_running_loop()

        def start(emit: Emit) -> asyncio.Future[None]:
            return loop.run_in_executor(self._thread, job, _checker(stop), emit)

        try:
            async with aclosing(pumped(start)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._end(stop)

    async def aclose(self) -> None:
        """Stop the work under way and wait for the thread to leave. Calling twice is harmless."""
        self.closed = True
        for stop in self._stops:
            stop.set()
        if not self._home.left:  # the thread is not here to be waited for
            await asyncio.to_thread(self._thread.shutdown)

    def _begin(self) -> threading.Event:
        self._home.require()
        if self.closed:
            raise EngineError("the engine is closed; make a new one")
        stop = threading.Event()
        self._stops.add(stop)
        return stop

    def _end(self, stop: threading.Event) -> None:
        stop.set()
        self._stops.discard(stop)


def _checker(stop: threading.Event) -> Check:
    def check() -> None:
        if stop.is_set():
            raise EngineError("the work was stopped before it was finished")

    return check
