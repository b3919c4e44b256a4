"""A labelling run: pairs stream past the panel, votes go to the store, and what the store holds becomes labels.

    read_pairs -> (what the store already has is not asked again) -> jurors -> Committer -> votes.sqlite
               -> labels.jsonl, report.json

The store is the only state. Killing the program at any moment loses no vote, and the same command goes on. Requests
under way at that moment (at most `concurrency` per provider) are asked again and may have been paid twice: they count
as spent with the most they can have cost, and the report says how many they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal

from prism.errors import DataError, InputError, PrismError
from prism.labeling.failures import Stop, Undelivered
from prism.labeling.jurors import Juror, open_jurors
from prism.labeling.labels import write_labels
from prism.labeling.pairs import BadLine, LabelPair, Repeated, read_pairs
from prism.labeling.panel import ApiJuror, LocalJuror, Panel
from prism.labeling.reports import Report, make_report, write_report
from prism.labeling.store import Committer, Store
from prism.types import Vote

OnBadLine = Literal["skip", "stop"]
_SHOWN_BAD_LINES = 20

Known = Mapping[str, tuple[int | None, str | None]]
"""Juror -> (label, failure)."""


@dataclass
class Standing:
    """How one juror is doing in this run."""

    name: str
    asked: int = 0
    """Answers that came, failures included."""
    failures: int = 0
    missed: Counter[str] = field(default_factory=Counter)
    """Questions without an answer, by reason; the next run asks them again."""
    stopped: str | None = None
    """Why it is not asked any more."""
    spent_usd: Decimal = Decimal(0)
    """In all runs into the directory, with what is uncertain of earlier ones."""


@dataclass
class Counts:
    """What the pairs file held."""

    pairs: int = 0
    """Different pairs seen so far."""
    finished: int = 0
    """Lines dealt with so far."""
    repeated: int = 0
    bad_lines: int = 0
    first_bad_lines: list[str] = field(default_factory=list)
    not_asked: int = 0
    """Votes that the stop rule made unnecessary."""


@dataclass
class State:
    """Where a run stands: read it while the run goes on."""

    counts: Counts
    standings: dict[str, Standing]
    store: Store


Progress = Callable[[State], None]


async def label(
    panel: Panel,
    pairs: Path,
    out: Path,
    *,
    on_bad_line: OnBadLine = "stop",
    retry_failures: bool = False,
    limit: int | None = None,
    progress: Progress = lambda _: None,
    jurors: Callable[[Store, Committer], list[Juror]] | None = None,
) -> Report:
    """Label the pairs of a file with a panel, into a directory; goes on where an earlier run stopped.

    `on_bad_line`: `stop` reads the whole file before the first question and refuses it; `skip` counts and goes on.
    `retry_failures` asks once more where a juror failed. `limit`: no more than so many different pairs. `jurors` opens
    others than the panel's own. Ctrl-C once finishes what is under way; twice ends at once.
    Raises PanelError, DataError, or PrismError of a juror that cannot be opened.
    """
    from filelock import FileLock, Timeout

    if on_bad_line == "stop":
        _refuse_bad_lines(pairs)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0), contextlib.closing(Store(out / "votes.sqlite")) as store:
            store.register(panel.rubric, {juror.name: juror.identity() for juror in panel.jurors})
            run = _Run(panel, store, retry_failures=retry_failures, progress=progress)
            await run.run(_first(read_pairs(pairs), limit), jurors)
            labels = write_labels(out / "labels.jsonl", _first(read_pairs(pairs), limit), panel, store)
            report = make_report(panel, run.state, labels, interrupted=run.interrupted)
            write_report(out / "report.json", report)
            return report
    except Timeout as error:
        raise InputError(f"another run is writing to {out}: wait for it, or choose another OUT") from error


def _refuse_bad_lines(pairs: Path) -> None:
    for item in read_pairs(pairs):
        if isinstance(item, BadLine):
            raise DataError(f"{pairs}:{item.line}: {item.problem}: fix the line, or pass --on-bad-line skip")


def _first(
    items: Iterator[LabelPair | BadLine | Repeated], limit: int | None
) -> Iterator[LabelPair | BadLine | Repeated]:
    """As far as the first `limit` pairs."""
    left = limit
    for item in items:
        if isinstance(item, LabelPair) and left is not None:
            if left == 0:
                return
            left -= 1
        yield item


class _Run:
    """The part that asks."""

    def __init__(self, panel: Panel, store: Store, *, retry_failures: bool, progress: Progress) -> None:
        self._panel = panel
        self._retry_failures = retry_failures
        self._progress = progress
        self._rule = panel.stop_rule()
        self._committer = Committer(store)
        self._jurors: list[Juror] = []
        self.interrupted = False
        standings = {
            juror.name: Standing(juror.name, spent_usd=store.spent(juror=juror.name).total_usd)
            for juror in panel.jurors
        }
        self.state = State(Counts(), standings, store)

    async def run(
        self,
        items: Iterator[LabelPair | BadLine | Repeated],
        open_: Callable[[Store, Committer], list[Juror]] | None = None,
    ) -> None:
        store = self.state.store
        self._jurors = open_(store, self._committer) if open_ else open_jurors(self._panel, store, self._committer)
        try:
            for juror in self._jurors:
                await juror.open()
            with self._interruptible():
                await self._work_through(items)
        finally:
            for juror in self._jurors:
                await juror.aclose()
            await self._committer.aclose()

    async def _work_through(self, items: Iterator[LabelPair | BadLine | Repeated]) -> None:
        """A fixed number of workers take pairs from one iterator: memory does not grow with the file."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_pairs_at_once(self._panel)):
                    group.create_task(self._work(items))
        except* PrismError as errors:
            raise _first_error(errors) from None

    async def _work(self, items: Iterator[LabelPair | BadLine | Repeated]) -> None:
        for item in items:
            if self.interrupted:
                return
            self._note(item)
            if isinstance(item, LabelPair):
                await self._label(item)
            self.state.counts.finished += 1
            self._progress(self.state)
            await asyncio.sleep(0)  # let Ctrl-C through where nothing is asked

    def _note(self, item: LabelPair | BadLine | Repeated) -> None:
        counts = self.state.counts
        if isinstance(item, LabelPair):
            counts.pairs += 1
        elif isinstance(item, Repeated):
            counts.repeated += 1
        else:
            counts.bad_lines += 1
            if len(counts.first_bad_lines) < _SHOWN_BAD_LINES:
                counts.first_bad_lines.append(f"line {item.line}: {item.problem}")

    async def _label(self, pair: LabelPair) -> None:
        known: Known = self.state.store.votes_on(pair.id, self._panel.rubric.key)
        if self._retry_failures:
            known = {name: vote for name, vote in known.items() if vote[1] is None}
        if self._panel.sequential:
            await self._one_by_one(pair, known)
        else:
            async with asyncio.TaskGroup() as group:
                for juror in self._jurors:
                    if juror.name not in known:
                        group.create_task(self._ask(juror, pair))

    async def _one_by_one(self, pair: LabelPair, known: Known) -> None:
        """In the panel's order, until the verdict stands."""
        labels: list[int | None] = []
        for place, juror in enumerate(self._jurors):
            labels.append(known[juror.name][0] if juror.name in known else await self._ask(juror, pair))
            later = self._jurors[place + 1 :]
            if self._rule(labels, sum(self._can_vote(other, known) for other in later)) is not None:
                saved = (other for other in later if other.name not in known)
                self.state.counts.not_asked += sum(self._can_vote(other, known) for other in saved)
                return

    def _can_vote(self, juror: Juror, known: Known) -> bool:
        return juror.name in known or not self.state.standings[juror.name].stopped

    async def _ask(self, juror: Juror, pair: LabelPair) -> int | None:
        """The label, on disk; None when there is none."""
        standing = self.state.standings[juror.name]
        if standing.stopped or self.interrupted:
            return None
        try:
            answer = await juror.ask(pair)
        except Stop as error:
            if not standing.stopped:
                standing.stopped = str(error)
            return None
        except Undelivered as error:
            standing.missed[error.kind] += 1
            key, kind, message = self._panel.rubric.key, error.kind, str(error)
            await self._committer.write(lambda store: store.add_missed(pair.id, juror.name, key, kind, message))
            return None
        await self._committer.write(
            lambda store: store.add_vote(answer.vote, answer.call), paid=answer.call is not None
        )
        self._count(standing, answer.vote)
        return answer.vote.label

    def _count(self, standing: Standing, vote: Vote) -> None:
        standing.asked += 1
        standing.failures += vote.failure is not None
        standing.spent_usd += vote.cost_usd
        self._progress(self.state)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C asks nothing new; the second is Python's own."""
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            self.interrupted = True
            loop.remove_signal_handler(signal.SIGINT)

        try:
            loop.add_signal_handler(signal.SIGINT, interrupt)
        except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not in the main thread
            yield
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)


def _pairs_at_once(panel: Panel) -> int:
    """Enough pairs under way to keep the busiest juror busy while others answer slowly."""
    wanted = [8]
    for juror in panel.jurors:
        if isinstance(juror, ApiJuror):
            wanted.append(2 * panel.providers[juror.provider].concurrency)
        elif isinstance(juror, LocalJuror):
            wanted.append(2 * juror.batch_size)
        else:
            wanted.append(64)
    return max(wanted)


def _first_error(group: BaseExceptionGroup[PrismError]) -> PrismError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, PrismError) else PrismError(str(error))
