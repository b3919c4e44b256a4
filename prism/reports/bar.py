"""How far a long command is, on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_S = 30.0


@contextmanager
def progress(what: str, total: int | None, every_s: float = LINE_EVERY_S) -> Iterator[Callable[[int], None]]:
    """Call what it yields with how many more are done. `total`: how many there are, where that is known."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressLines(total, what, every_s).advance
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)


class ProgressLines:
    """A line now and then, for logs and pipes: how much is done, and about how long the rest takes."""

    def __init__(
        self,
        total: int | None,
        what: str = "",
        every_s: float = LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`what` is counted; it may change, and the count begins anew then."""
        self._total, self._what, self._every_s, self._clock = total, what, every_s, clock
        self._done = self._told = 0
        self._paced = False
        self._last = clock()

    def advance(self, count: int) -> None:
        """So many more are done."""
        self.reached(self._done + count, self._what)

    def reached(self, done: int, what: str, more: str = "") -> None:
        """So many are done. `more`: goes behind the line.

        The pace is that since the line before: what an earlier run left passes at once, and would promise the same for
        the rest. So the first line tells none.
        """
        now = self._clock()
        if what != self._what:
            self._last, self._told, self._paced, self._what = now, done, False, what
        self._done = done
        if done <= self._told or now - self._last < self._every_s:
            return
        line = f"{what}: {done:,}" if what else f"{done:,}"
        if self._total is not None and done <= self._total:
            line += f" of {self._total:,}"
            if self._paced:
                left_min = (now - self._last) / (done - self._told) * (self._total - done) / 60
                line += f", about {left_min:,.0f} min left"
        print(line + more, file=sys.stderr, flush=True)
        self._last, self._told, self._paced = now, done, True
