"""The thread that an engine in this process computes on, and what its calls have in common.

One call after the other; one whose task is cancelled, or whose engine is closed, ends at its next `check`.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from prism.engines.base import LabelLogits, WritePiece, WriteRequest
from prism.engines.loop import Home
from prism.errors import DocumentError, EngineError, InputError

Check = Callable[[], None]
"""Raises when the caller no longer wants the work; called between forward passes."""
Emit = Callable[[WritePiece], None]

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
        pieces: asyncio.Queue[WritePiece | None] = asyncio.Queue()

        def emit(piece: WritePiece) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        done = loop.run_in_executor(self._thread, job, _checker(stop), emit)
        done.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await done
        finally:
            self._end(stop)
            done.cancel()

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


def require_prompts(requests: Sequence[WriteRequest]) -> None:
    """Raises InputError for a text to write after nothing."""
    for index, request in enumerate(requests):
        if not request.ids:
            raise InputError(f"write request {index} has an empty prompt; render it with the template first")


def unscorable(ids: Sequence[int], context: int) -> DocumentError | None:
    """Why a prompt cannot be scored by a model that reads `context` tokens, if it cannot."""
    if not ids:
        return DocumentError("the prompt is empty, expected at least one token; render it with the template first")
    if len(ids) > context:
        return DocumentError(
            f"the prompt has {len(ids)} tokens, the model reads at most {context}; shorten the document"
        )
    return None


def refuse_nan(labels: Sequence[LabelLogits | DocumentError], computed_in: str) -> None:
    """Raises EngineError for label logits that are no numbers; `computed_in`: what overflows, and what to try."""
    for index, label in enumerate(labels):
        if isinstance(label, LabelLogits) and not (math.isfinite(label.yes) and math.isfinite(label.no)):
            raise EngineError(
                f"prompt {index} has label logits yes={label.yes}, no={label.no}, expected finite numbers; "
                f"the weights are broken or {computed_in}"
            )
