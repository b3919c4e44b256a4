"""Asking a panel one juror at a time, and stopping when more answers cannot, or need not, change the verdict.

Two rules. `decided` is exact: it stops when the jurors still to ask cannot turn the majority, so verdicts are those of
the whole panel. `PosteriorBound` is a trade: it stops when the verdict is probable enough given the answers so far, and
saves more calls. Everything here is a pure function of votes; who asks whom, and at what cost, is the caller's
business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from pydantic import Field

from prism.errors import InputError
from prism.types import Record, Verdict

StopRule = Callable[[Sequence[int | None], int], Verdict | None]
"""(labels so far in the order asked, jurors still to ask) -> the verdict if it stands, else None.

A label is None when the juror was asked and gave none: that vote counts for neither side."""


def decided(yes: int, no: int, remaining: int) -> Verdict | None:
    """The majority's verdict if `remaining` further votes cannot change it, whatever they are (failures included).

    A tie is a `no`: a wrong `yes` costs a reader more than a wrong `no`.
    With nobody left to ask it is always decided; with no vote cast at all it is never: no vote is made up.
    """
    if min(yes, no, remaining) < 0:
        raise InputError(f"counts of votes cannot be negative, got yes {yes}, no {no}, remaining {remaining}")
    if yes > no + remaining:
        return "yes"
    if no >= yes + remaining and no > 0:
        return "no"
    return None


def when_decided(cut: int) -> StopRule:
    """Stop rule: the majority of `label >= cut` is decided."""

    def rule(labels: Sequence[int | None], remaining: int) -> Verdict | None:
        yes = sum(label >= cut for label in labels if label is not None)
        no = sum(label < cut for label in labels if label is not None)
        return decided(yes, no, remaining)

    return rule


class PosteriorBound(Record):
    """Stops when the probability of the verdict, given the labels so far, passes a bound.

    Jurors are taken as independent given the truth (naive Bayes; Dawid and Skene 1979, equation 2.5, with the error
    rates counted on pairs whose truth is known): log odds = prior + sum of log P(label | yes) / P(label | no). Jurors
    are alike, so the probabilities are too sure of themselves; choose the bound by what it does to agreement on other
    queries (`studies.panel_study`), not by its face value.
    """

    bound: float = Field(gt=0.5, lt=1.0)
    """Stop at P(yes) >= bound or P(yes) <= 1 - bound."""
    prior_log_odds: float
    log_ratios: tuple[dict[int, float], ...]
    """For each juror in the order asked: label -> log P(label | yes) / P(label | no)."""

    @classmethod
    def fit(
        cls, rows: Iterable[Sequence[int | None]], truth: Sequence[bool], bound: float, smoothing: float = 1.0
    ) -> PosteriorBound:
        """Count how each juror labels true and false pairs.

        `rows`: labels of the whole panel in the order asked, one row a pair; `truth`: of the same length, from people
        or, where there are none, the whole panel's verdict. `smoothing` is added to every count (Laplace). Raises
        InputError unless both a true and a false pair are there.
        """
        table = [tuple(row) for row in rows]
        if len(table) != len(truth) or len({len(row) for row in table}) > 1:
            raise InputError(f"{len(table)} rows of votes for {len(truth)} truths: expected one full row for each")
        positives = sum(truth)
        if not 0 < positives < len(truth):
            raise InputError(f"{positives} of {len(truth)} pairs are true: both kinds are needed to learn from")
        seen = sorted({label for row in table for label in row if label is not None})
        return cls(
            bound=bound,
            prior_log_odds=math.log(positives / (len(truth) - positives)),
            log_ratios=tuple(_log_ratios(column, truth, seen, smoothing) for column in zip(*table, strict=True)),
        )

    def probability(self, labels: Sequence[int | None]) -> float:
        """P(yes) given the labels so far; a label never seen in fitting says nothing, like a failure."""
        log_odds = self.prior_log_odds + sum(
            self.log_ratios[juror].get(label, 0.0) for juror, label in enumerate(labels) if label is not None
        )
        return 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0

    def __call__(self, labels: Sequence[int | None], remaining: int) -> Verdict | None:
        """A `StopRule`. When everybody was asked, the more probable verdict; None if nobody answered."""
        if all(label is None for label in labels):
            return None
        probability = self.probability(labels)
        if remaining and 1 - self.bound < probability < self.bound:
            return None
        return "yes" if probability > 0.5 else "no"


def _log_ratios(
    column: Sequence[int | None], truth: Sequence[bool], seen: Sequence[int], smoothing: float
) -> dict[int, float]:
    counts = {label: [smoothing, smoothing] for label in seen}
    for label, true in zip(column, truth, strict=True):
        if label is not None:
            counts[label][true] += 1
    no, yes = (sum(pair[side] for pair in counts.values()) for side in (0, 1))
    return {label: math.log(pair[1] / yes) - math.log(pair[0] / no) for label, pair in counts.items()}


class Replay(Record):
    """What a stop rule would have done to recorded votes."""

    calls: tuple[int, ...]
    """Jurors asked, for each pair."""
    verdicts: tuple[Verdict | None, ...]
    """None where nobody asked gave a label."""
    panel_size: int

    @property
    def saved(self) -> float:
        """Share of the calls of asking everybody that were not made."""
        return 1 - sum(self.calls) / (self.panel_size * len(self.calls))


def ask_in_order(labels: Sequence[int | None], stop: StopRule) -> tuple[int, Verdict | None]:
    """(jurors asked, verdict) for one pair whose labels are known, in the order of `labels`."""
    for asked in range(1, len(labels) + 1):
        verdict = stop(labels[:asked], len(labels) - asked)
        if verdict is not None:
            return asked, verdict
    return len(labels), None


def replay(rows: Iterable[Sequence[int | None]], stop: StopRule) -> Replay:
    """Apply a stop rule to recorded votes: one row a pair, labels in the order of asking."""
    table = [tuple(row) for row in rows]
    if not table or len({len(row) for row in table}) > 1 or not table[0]:
        raise InputError("nothing to replay: expected rows of votes, all of the panel's size")
    known = {row: ask_in_order(row, stop) for row in set(table)}  # many rows are alike
    asked = [known[row] for row in table]
    return Replay(
        calls=tuple(calls for calls, _ in asked),
        verdicts=tuple(verdict for _, verdict in asked),
        panel_size=len(table[0]),
    )
