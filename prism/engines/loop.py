"""An event loop in a thread of its own, for backends that live on one loop while their callers come from several.

What stands here knows how to end: with the object that owns it, with the interpreter, and in a process that was forked
off, where its thread does not exist.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from prism.errors import EngineError

_T = TypeVar("_T")
_END = object()
_LAST_MOMENTS_S = 2.0
"""How long the end of the interpreter waits for what still runs on a loop."""


class Home:
    """The process that something with threads was made in. A fork copies the object and its locks, not its threads."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def left(self) -> bool:
        """Whether this is a process that was forked off."""
        return os.getpid() != self._pid

    def require(self) -> None:
        """Raises EngineError in a process that was forked off: waiting for the threads left behind would never end."""
        if self.left:
            raise EngineError(
                f"this model was loaded in process {self._pid}, from which process {os.getpid()} was forked: load it in"
                " each process (gunicorn without --preload, multiprocessing with the start method 'spawn')"
            )


class LoopThread:
    """Runs coroutines on its own loop. Cancelling the awaiting task cancels the work there and lets it clean up.

    `prism.Reranker` calls its engine from the loop it owns, the HTTP endpoint from its own: a connection pool or a
    vLLM client made on one of them would fail on the other. One that is not closed ends with whoever holds it, or with
    the interpreter. Raises EngineError in a forked process.
    """

    def __init__(self, name: str) -> None:
        self._home = Home()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name=name, daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, _end, self._home, self._loop, self._thread, _LAST_MOMENTS_S)
        self._lock = threading.Lock()  # nothing is submitted behind the end
        self.closed = False

    async def run(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What `work` returns, computed on the thread's loop."""
        return await _result(self._submit(work))

    def run_blocking(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """`run` for callers without a loop."""
        future = self._submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stream(self, job: Callable[[Callable[[_T], None]], Coroutine[Any, Any, None]]) -> AsyncGenerator[_T, None]:
        """What `job`, which runs on the thread's loop, hands over."""
        return pumped(lambda put: asyncio.ensure_future(_result(self._submit(lambda: job(put)))))

    def _submit(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> Future[_T]:
        self._home.require()
        with self._lock:
            if self.closed or self._loop.is_closed():
                raise EngineError("the engine is closed; make a new one")
            return asyncio.run_coroutine_threadsafe(work(), self._loop)

    def close(self) -> None:
        """Cancel what runs, stop the loop, join the thread. Calling twice is harmless, and in a forked process."""
        if self._home.left:
            return
        with self._lock:
            self.closed = True
            self._end.detach()
            _stop(self._loop)
        self._thread.join()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """The thread: once the loop is stopped, what is left on it is cancelled and may clean up."""
    try:
        loop.run_forever()
        loop.run_until_complete(_cancel_all())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def _end(home: Home, loop: asyncio.AbstractEventLoop, thread: threading.Thread, within_s: float) -> None:
    if home.left:
        return  # the thread is not here, and the loop's file descriptors are shared with where it is
    _stop(loop)
    if thread is not threading.current_thread():
        thread.join(within_s)


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    with suppress(RuntimeError):  # closed already
        loop.call_soon_threadsafe(loop.stop)


async def pumped(start: Callable[[Callable[[_T], None]], asyncio.Future[None]]) -> AsyncGenerator[_T, None]:
    """The items that a job hands over while it runs, on this loop, another one or in a thread.

    `start` begins it, given what takes an item. Leaving early cancels the job.
    """
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[Any] = asyncio.Queue()

    def put(item: object) -> None:
        with suppress(RuntimeError):  # this loop was closed meanwhile
            loop.call_soon_threadsafe(items.put_nowait, item)

    job = start(put)
    job.add_done_callback(lambda _: put(_END))
    try:
        while (item := await items.get()) is not _END:
            yield item
        await job
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


async def gathered(jobs: Iterable[Callable[[], Coroutine[Any, Any, _T]]], at_once: int) -> list[_T]:
    """What the jobs return, in their order. When one fails or the caller leaves, the others stop."""
    room = asyncio.Semaphore(at_once)

    async def one(job: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        async with room:
            return await job()

    tasks = [asyncio.create_task(one(job)) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
