"""An event loop in a thread of its own, for backends that live on one loop while their callers come from several."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from prism.errors import EngineError

_T = TypeVar("_T")
_END = object()


class LoopThread:
    """Runs coroutines on its own loop. Cancelling the awaiting task cancels the work there and lets it clean up.

    `prism.Reranker` calls its engine from the loop it owns, the HTTP endpoint from its own: a connection pool or a
    vLLM client made on one of them would fail on the other.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        self.closed = False

    async def run(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What `work` returns, computed on the thread's loop."""
        return await _result(self._submit(work()))

    def run_blocking(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """`run` for callers without a loop."""
        future = self._submit(work())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def stream(self, source: Callable[[], AsyncIterator[_T]]) -> AsyncIterator[_T]:
        """The items of `source`, which runs on the thread's loop."""
        caller = asyncio.get_running_loop()
        items: asyncio.Queue[Any] = asyncio.Queue()

        def put(item: object) -> None:
            with suppress(RuntimeError):  # the caller's loop was closed meanwhile
                caller.call_soon_threadsafe(items.put_nowait, item)

        async def pump() -> None:
            async with aclosing(source()) as produced:  # type: ignore[type-var]  # async generators can be closed
                async for item in produced:
                    put(item)

        future = self._submit(pump())
        future.add_done_callback(lambda _: put(_END))
        try:
            while (item := await items.get()) is not _END:
                yield item
            await _result(future)
        finally:
            future.cancel()

    def _submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        if self.closed:
            work.close()
            raise EngineError("the engine is closed; make a new one")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel what runs, stop the loop, join the thread. Calling twice is harmless."""
        if self.closed:
            return
        finish = asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop)
        self.closed = True
        finish.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _result(future: Future[_T]) -> _T:
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        caller = asyncio.current_task()
        if caller is not None and caller.cancelling():
            raise
        raise EngineError("the engine was closed before this was finished") from None


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
