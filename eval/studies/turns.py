"""Ways of doing the same work, measured in turns, each in a process of its own.

In one process two computing threads slow each other down, and what one way leaves in caches and allocators meets the
next. Turns spread a slow moment of the machine over all ways. A way that fails is a row with its error, and what the
others have measured stays: times are added round by round.

    with Turns({"one by one": partial(prepare, "float32"), "batched": partial(prepare, "int8")}) as turns:
        turns.rounds(5)
    for way in turns.ways: ...
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, Self

from prism.parallel import end_with_parent

Prepare = Callable[[], Callable[[], Any]]
"""Called once in the way's own process, so it can be pickled; what it returns is the work that is timed."""


@dataclass
class Way:
    """One way and what is known of it."""

    name: str
    ready_s: float | None = None
    """What `prepare` took: imports and loading included."""
    times_s: list[float] = field(default_factory=list)
    result: Any = None
    """What the work returned last."""
    error: str | None = None

    @property
    def median_s(self) -> float | None:
        return statistics.median(self.times_s) if self.times_s else None

    @property
    def worst_s(self) -> float | None:
        return max(self.times_s, default=None)


class Turns:
    """The processes of all ways; they end with the context."""

    def __init__(self, ways: Mapping[str, Prepare], environment: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """`environment`: by name, what a way's process has beside our own environment."""
        self.ways = [Way(name) for name in ways]
        self._prepare = dict(ways)
        self._environment = environment or {}
        self._processes: dict[str, ProcessPoolExecutor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.shutdown()

    def rounds(self, count: int, each: Callable[[], object] = lambda: None) -> None:
        """Every way that works takes a turn, `count` times; `each` is called after every round.

        The first turn of all prepares the way, runs it once and is not counted.
        """
        for way in self.ways:
            if way.name not in self._processes:
                self._start(way)
        for _ in range(count):
            for way in self.ways:
                if way.error is None:
                    self._turn(way)
            each()

    def _start(self, way: Way) -> None:
        process = self._processes[way.name] = ProcessPoolExecutor(1, get_context("spawn"), end_with_parent)
        with _variables(self._environment.get(way.name, {})):  # a spawned process starts with the first task
            ready = process.submit(_ready, self._prepare[way.name])
        way.error = one_line(ready.exception())
        if way.error is None:
            way.ready_s = ready.result()
            self._turn(way)
            way.times_s.clear()

    def _turn(self, way: Way) -> None:
        timed = self._processes[way.name].submit(_timed)
        way.error = one_line(timed.exception())
        if way.error is None:
            seconds, way.result = timed.result()
            way.times_s.append(seconds)


def ratio(value: float | None, reference: float | None) -> float | None:
    """`value / reference`, None where either was not measured or there is nothing to divide by."""
    return value / reference if value is not None and reference else None


def rate(count: float, seconds: float | None) -> float | None:
    """So many a second, None where it was not measured."""
    return count / seconds if seconds else None


_work: list[Callable[[], Any]] = []
"""In a measuring process: its way's work."""


def _ready(prepare: Prepare) -> float:
    start = time.perf_counter()
    _work[:] = [prepare()]
    return time.perf_counter() - start


def _timed() -> tuple[float, Any]:
    start = time.perf_counter()
    result = _work[0]()
    return time.perf_counter() - start, result


def one_line(error: BaseException | None) -> str | None:
    return None if error is None else " ".join(f"{type(error).__name__}: {error}".split())[:300]


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for as long as the context lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
