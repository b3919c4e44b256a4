"""One pair before a panel: who is asked, in which order, and what becomes of the answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from prism.errors import PrismError
from prism.labeling.jurors import Juror
from prism.labeling.label_pairs import Item, LabelPair, Repeated
from prism.labeling.panel import ApiJuror, EndpointJuror, LocalJuror, Panel
from prism.labeling.store import Committer, Store
from prism.llm.failures import Stop, Undelivered
from prism.types import Vote

_SHOWN_BAD_LINES = 20
Known = Mapping[str, tuple[int | None, str | None]]
"""Juror -> (label, failure): its vote on a pair."""


@dataclass
class Standing:
    """How one juror is doing in this run."""

    name: str
    asked: int = 0
    """Answers that came, failures included."""
    failures: int = 0
    missed: Counter[str] = field(default_factory=Counter)
    """Questions without an answer, by reason; the next run asks them again."""
    last_missed: str | None = None
    """What was said about the last of them."""
    stopped: str | None = None
    """Why it is not asked any more."""
    spent_usd: Decimal = Decimal(0)
    """In all runs into the directory, with what is uncertain of earlier ones."""


@dataclass
class PairCounts:
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

    def note(self, item: Item) -> None:
        """Count what a line is."""
        if isinstance(item, LabelPair):
            self.pairs += 1
        elif isinstance(item, Repeated):
            self.repeated += 1
        else:
            self.bad_lines += 1
            if len(self.first_bad_lines) < _SHOWN_BAD_LINES:
                self.first_bad_lines.append(f"line {item.line}: {item.problem}")


@dataclass
class RunState:
    """Where a run stands: read it while the run goes on."""

    counts: PairCounts
    standings: dict[str, Standing]
    store: Store
    asking: str = ""
    """Whose turn it is, where the pairs are gone through more than once."""


class Voting:
    """Puts pairs to a panel's jurors, and their votes on disk."""

    def __init__(
        self,
        panel: Panel,
        jurors: Sequence[Juror],
        committer: Committer,
        standings: Mapping[str, Standing],
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        """`standings` is kept up to date; `heard` is called after each answer."""
        self.closed = False
        """Set it, and nothing new is asked."""
        self.not_asked = 0
        """Votes of deciding jurors that the stop rule made unnecessary."""
        self._asking = self._later = frozenset[str]()
        self._deciding = panel.deciding
        self._panel = panel
        self._jurors = jurors
        self._committer = committer
        self._standings = standings
        self._heard = heard
        self._rule = panel.stop_rule()
        self.turn(frozenset(juror.name for juror in jurors))

    def turn(self, asking: frozenset[str], later: frozenset[str] = frozenset()) -> None:
        """From now on ask only some jurors. Pairs come again when it is the turn of those in `later`."""
        self._asking, self._later, self.not_asked = asking, later, 0

    async def label(self, pair: LabelPair, known: Known) -> None:
        """Ask those who have no vote in `known`, or as many of them as the verdict takes. Raises DataError.

        Observers are asked about every pair: those that others leave open are the hard ones alone.
        """
        in_order = self._deciding if self._panel.sequential else frozenset()
        async with asyncio.TaskGroup() as group:
            for juror in self._jurors:
                if juror.name in self._asking - known.keys() - in_order:
                    group.create_task(self._ask(juror, pair))
            if in_order:
                group.create_task(self._one_by_one(pair, known))

    async def _one_by_one(self, pair: LabelPair, known: Known) -> None:
        """In the panel's order, until the verdict stands."""
        labels: list[int | None] = []
        for place, juror in enumerate(self._jurors):
            if juror.name not in self._deciding:
                labels.append(None)
                continue
            if juror.name in self._later - known.keys():
                return
            label = known[juror.name][0] if juror.name in known else await self._ask(juror, pair)
            labels.append(label)
            later = [other for other in self._jurors[place + 1 :] if other.name in self._deciding]
            if self._rule(labels, sum(other.name in known or self._can_vote(other) for other in later)) is not None:
                saved = (other for other in later if other.name not in known)
                self.not_asked += sum(self._can_vote(other) for other in saved)
                return

    def _can_vote(self, juror: Juror) -> bool:
        return not self._standings[juror.name].stopped

    async def _ask(self, juror: Juror, pair: LabelPair) -> int | None:
        """The label, on disk; None when there is none, or when it is not this juror's turn any more."""
        standing = self._standings[juror.name]
        if standing.stopped or self.closed or juror.name not in self._asking:
            return None
        try:
            answer = await juror.ask(pair)
        except Stop as error:
            if not standing.stopped:
                standing.stopped = str(error)
            return None
        except Undelivered as error:
            standing.missed[error.kind] += 1
            standing.last_missed = str(error)
            key = (pair.id, juror.name, self._panel.rubric.key)
            await self._committer.write(Store.add_missed, *key, error.kind, str(error))
            return None
        await self._committer.write(Store.add_vote, answer.vote, answer.call, paid=answer.call is not None)
        self._count(standing, answer.vote)
        return answer.vote.label

    def _count(self, standing: Standing, vote: Vote) -> None:
        standing.asked += 1
        standing.failures += vote.failure is not None
        standing.spent_usd += vote.cost_usd
        self._heard()


async def work_through(panel: Panel, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `work()` so many times side by side that the busiest juror stays busy. Raises the first PrismError of any.

    With all of them taking pairs from one iterator, memory does not grow with the file.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_pairs_at_once(panel)):
                group.create_task(work())
    except* PrismError as errors:
        raise _first_error(errors) from None


def _pairs_at_once(panel: Panel) -> int:
    """Enough pairs under way to keep the busiest juror busy while others answer slowly."""
    wanted = [8]
    for juror in panel.jurors:
        if isinstance(juror, ApiJuror):
            wanted.append(2 * panel.providers[juror.provider].concurrency)
        elif isinstance(juror, LocalJuror | EndpointJuror):
            wanted.append(2 * juror.batch_size)
        else:
            wanted.append(64)
    return max(wanted)


def _first_error(group: BaseExceptionGroup[PrismError]) -> PrismError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, PrismError) else PrismError(str(error))
