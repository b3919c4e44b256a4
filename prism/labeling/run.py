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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from prism.errors import DataError, InputError
from prism.labeling.jurors import make_jurors
from prism.labeling.label_pairs import BadLine, Item, LabelPair, read_label_pairs
from prism.labeling.labels import write_labels
from prism.labeling.local import served_clients, turns
from prism.labeling.panel import Panel
from prism.labeling.reports import LabelingReport, make_report
from prism.labeling.store import Committer, Store
from prism.labeling.voting import Known, PairCounts, RunState, Standing, Voting, work_through
from prism.llm.allowance import Account, Allowance
from prism.llm.chat import ChatClient
from prism.outputs import require_folder, write_text

OnBadLine = Literal["skip", "stop"]
Progress = Callable[[RunState], None]


async def label(
    panel: Panel,
    pairs: Path,
    out: Path,
    *,
    on_bad_line: OnBadLine = "stop",
    retry_failures: bool = False,
    limit: int | None = None,
    start_local: bool = False,
    progress: Progress = lambda _: None,
) -> LabelingReport:
    """Label the pairs of a file with a panel, into a directory; goes on where an earlier run stopped.

    `on_bad_line`: `stop` reads the whole file before the first question and refuses it; `skip` counts and goes on.
    `retry_failures` asks once more where a juror failed. `limit`: no more than so many different pairs. Ctrl-C once
    finishes what is under way; twice ends at once. `start_local` starts the servers of the panel's own models, one
    after the other, with logs in `out`. Raises PanelError, DataError, or PrismError of a juror that cannot be opened.
    """
    if on_bad_line == "stop":
        refuse_bad_lines(pairs)
    served = served_clients(panel, out / "servers") if start_local else {}
    with open_store(panel, out, served=start_local) as store:
        run = _Run(panel, store, served, retry_failures=retry_failures, progress=progress)
        await run.run(lambda: first(read_label_pairs(pairs), limit))
        return conclude(panel, pairs, out, run.state, limit=limit, interrupted=run.interrupted)


@contextlib.contextmanager
def open_store(panel: Panel, out: Path, *, served: bool = False) -> Iterator[Store]:
    """The votes in `out`, with the panel's jurors on record; nobody else may label into `out` meanwhile.

    `served`: models of this machine answer. Raises InputError when somebody does or such a model is not here,
    PanelError when a juror's name means another one there.
    """
    from filelock import FileLock, Timeout

    require_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0), contextlib.closing(Store(out / "votes.sqlite")) as store:
            store.register(panel.rubric, panel.identities(served=served))
            yield store
    except Timeout as error:
        raise InputError(f"another run is writing to {out}: wait for it, or choose another OUT") from error


def conclude(
    panel: Panel, pairs: Path, out: Path, state: RunState, *, limit: int | None, interrupted: bool
) -> LabelingReport:
    """From the votes in the store to labels.jsonl and report.json."""
    labels, same_labels = write_labels(out / "labels.jsonl", first(read_label_pairs(pairs), limit), panel, state.store)
    report = make_report(panel, state, labels, interrupted=interrupted)
    same_report = write_text(out / "report.json", report.model_dump_json(indent=2) + "\n")
    return report.model_copy(update={"unchanged": same_labels and same_report})


def refuse_bad_lines(pairs: Path) -> None:
    """Read the whole file; raises DataError naming the first line that is no pair."""
    for item in read_label_pairs(pairs):
        if isinstance(item, BadLine):
            raise DataError(f"{pairs}:{item.line}: {item.problem}: fix the line, or pass --on-bad-line skip")


def first(items: Iterator[Item], limit: int | None) -> Iterator[Item]:
    """As far as the first `limit` pairs."""
    left = limit
    for item in items:
        if isinstance(item, LabelPair) and left is not None:
            if left == 0:
                return
            left -= 1
        yield item


def standings(panel: Panel, store: Store) -> dict[str, Standing]:
    """The panel's jurors before a run."""
    return {
        juror.name: Standing(juror.name, spent_usd=store.spent(juror=juror.name).total_usd) for juror in panel.jurors
    }


class _Run:
    """The part that asks."""

    def __init__(
        self,
        panel: Panel,
        store: Store,
        served: Mapping[str, ChatClient],
        *,
        retry_failures: bool,
        progress: Progress,
    ) -> None:
        self._panel, self._served = panel, served
        self._retry_failures = retry_failures
        self._progress = progress
        self.state = RunState(PairCounts(), standings(panel, store), store)
        self._committer = Committer.for_store(store)
        self._jurors = make_jurors(panel, accounts(panel, store), self._committer, served)
        self._voting = Voting(panel, self._jurors, self._committer, self.state.standings, lambda: progress(self.state))

    @property
    def interrupted(self) -> bool:
        return self._voting.closed

    async def run(self, read: Callable[[], Iterator[Item]]) -> None:
        """Ask about all items; `read` is called once for each turn of the jurors."""
        waiting = turns(self._panel, self._served)
        try:
            for juror in self._jurors:
                await juror.open()
            with self._interruptible():
                while waiting and not self.interrupted:
                    asking = waiting.pop(0)
                    self._voting.turn(asking, frozenset().union(*waiting))
                    self.state.asking = ", ".join(sorted(asking)) if self._served else ""
                    await self._turn(asking, read())
        finally:
            for juror in self._jurors:
                await juror.aclose()
            await self._committer.drain()

    async def _turn(self, asking: frozenset[str], items: Iterator[Item]) -> None:
        self.state.counts = PairCounts()
        try:
            await work_through(self._panel, lambda: self._work(items))
        finally:
            for name in asking & self._served.keys():
                await self._served[name].aclose()

    async def _work(self, items: Iterator[Item]) -> None:
        counts = self.state.counts
        for item in items:
            if self.interrupted:
                return
            counts.note(item)
            if isinstance(item, LabelPair):
                await self._voting.label(item, self._known(item))
            counts.finished += 1
            counts.not_asked = self._voting.not_asked
            self._progress(self.state)
            await asyncio.sleep(0)  # let Ctrl-C through where nothing is asked

    def _known(self, pair: LabelPair) -> Known:
        return still_valid(self.state.store.votes_on(pair.id, self._panel.rubric.key), self._retry_failures)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C asks nothing new; the second is Python's own."""
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            self._voting.closed = True
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


def accounts(panel: Panel, store: Store) -> dict[str, Allowance]:
    """What each provider still allows, after what the store says was spent."""
    return {name: Account(provider, store.spent(provider=name).total_usd) for name, provider in panel.providers.items()}


def still_valid(known: Known, retry_failures: bool) -> Known:
    """The votes that are not to be asked for again."""
    return {name: vote for name, vote in known.items() if vote[1] is None} if retry_failures else known
