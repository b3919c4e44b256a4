"""One function over many items in all processes this machine has room for, results in the order of the items."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

from prism.devices import usable_cpus
from prism.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4
"""So many chunks for each process are read ahead, no more: memory does not grow with the number of items."""
_state: Any = None


def ordered(
    function: Callable[[Any, list[Item]], Result],
    state: Any,
    items: Iterable[Item],
    *,
    chunk: int,
    workers: int | None = None,
) -> Iterator[Result]:
    """`function(state, chunk)` for every `chunk` items, in order.

    Processes are forked, so `state` costs nothing to hand over; with one worker, no more than one chunk, or where there
    is no fork to trust (macOS, Windows), everything happens here. Default for `workers`: the cores this process may
    use. An error in a worker is raised here, at its place in the order; DataError when one was killed.
    """
    chunks = _chunks(items, chunk)
    first = list(islice(chunks, 2))
    count = usable_cpus() if workers is None else workers
    if count == 1 or len(first) < 2 or sys.platform != "linux":
        yield from (function(state, some) for some in chain(first, chunks))
        return
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), _start, (function, state))
    try:
        waiting: deque[Future[Result]] = deque()
        for some in chain(first, chunks):
            with warnings.catch_warnings():
                # Python 3.12 warns of any fork beside threads; these children only compute, as a DataLoader's do.
                warnings.simplefilter("ignore", DeprecationWarning)
                waiting.append(pool.submit(_run, some))
            if len(waiting) > _AHEAD * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            f"one of {count} worker processes was ended from outside, for want of memory perhaps: use fewer of them"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """A process that multiprocessing started calls this once, and does not outlive whoever started it.

    Workers of a pool hold both ends of their own queue, so a parent that was killed looks to them like one that has
    nothing to do. Nothing in a process without a parent.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), name="prism-guard", daemon=True).start()


def _follow(parent: Any) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


def _start(function: Callable[..., Any], state: Any) -> None:
    global _state
    end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _state = function, state


def _run(some: list[Any]) -> Any:
    function, state = _state
    return function(state, some)
