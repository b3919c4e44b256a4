"""What a check is given, what it answers, and how scores are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import cached_property
from typing import Final, NamedTuple

from prism import symptoms
from prism.doctor.golden import GOLDEN
from prism.doctor.targets import Target, TargetReply
from prism.errors import ChatError
from prism.llm.failures import Rejected
from prism.symptoms import Failure

SAME: Final = 0.02
"""Scores this close (of the scale) are one score: 16-bit arithmetic moves them by up to so much with the batch."""
EXACT: Final = 1e-3
"""From here on a difference is mentioned."""
_PART: Final = 25
"""Documents in a request to servers that refuse large ones; Text Embeddings Inference takes 32 by default."""


class Status(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class CheckResult(NamedTuple):
    """What a check found."""

    status: Status
    sent: str
    got: str
    failure: Failure | None = None


class Check(NamedTuple):
    """One question about a target."""

    name: str
    title: str
    run: Callable[[ProbedTarget], CheckResult]
    silent_after: frozenset[Failure] = frozenset()
    """Failures under which its answer would mean nothing."""


class Unscored(ChatError):
    """An answer came, without a score for a plain document."""


class ProbedTarget:
    """A target on the table, and what was learnt about it on the way."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.golden = GOLDEN["en"]
        self.query = self.golden[0].query
        self.documents = [pair.document for pair in self.golden]

    def ask(self, query: str, documents: Sequence[str], **options: object) -> TargetReply:
        """One request."""
        return self.target.ask(query, documents, **options)  # type: ignore[arg-type]  # names of Target.ask

    def scores(self, query: str, documents: Sequence[str], **options: object) -> list[float]:
        """Of each document, in the order sent. Raises Unscored where one is missing."""
        return scores_in(self.ask(query, documents, **options), len(documents))

    def scores_in_parts(self, query: str, documents: Sequence[str]) -> list[float]:
        """`scores`, in several requests where one is refused."""
        try:
            return self.scores(query, documents)
        except Rejected:
            parts = [documents[start : start + _PART] for start in range(0, len(documents), _PART)]
            if len(parts) == 1:
                raise
            return [score for part in parts for score in self.scores(query, part)]

    @cached_property
    def matrix(self) -> list[list[float]]:
        """English: each query with the documents of all; document i answers query i."""
        return [self.scores(pair.query, self.documents) for pair in self.golden]

    @cached_property
    def scale(self) -> float:
        """What differences are measured by: 1 for probabilities."""
        return symptoms.scale(self.matrix)

    @property
    def row(self) -> list[float]:
        """Scores of `documents` for `query`; the first document is relevant."""
        return self.matrix[0]

    @property
    def weak(self) -> bool:
        """Whether obvious English pairs are not told apart."""
        leads = [lead for i, row in enumerate(self.matrix) for lead in symptoms.leads_of(row, i)]
        return min(leads) < symptoms.MARGIN * self.scale

    def compared(self, sent: str, found: Sequence[float], expected: Sequence[float], failure: Failure) -> CheckResult:
        """Passed where two lists of scores of the same pairs agree."""
        worst = max(range(len(found)), key=lambda place: abs(found[place] - expected[place]))
        difference = abs(found[worst] - expected[worst])
        if difference > SAME * self.scale:
            return failed(sent, f"{short_score(found[worst])} instead of {short_score(expected[worst])}", failure)
        close = difference <= EXACT * self.scale
        return passed(sent, "the same scores" if close else f"scores within {difference:.3f} (16-bit rounding?)")


def scores_in(reply: TargetReply, count: int) -> list[float]:
    """Scores of `count` documents. Raises Unscored where one is missing."""
    found = reply.scores
    missing = [index for index in range(count) if index not in found]
    if missing:
        errors = [item.error for item in reply.items if item.error]
        because = next(iter([*reply.faults, *errors]), f"{len(reply.items)} of {count} documents in the answer")
        raise Unscored(f"no score for document {missing[0]} of {count}: {because}")
    return [found[index] for index in range(count)]


def passed(sent: str, got: str) -> CheckResult:
    return CheckResult(Status.PASSED, sent, got)


def failed(sent: str, got: str, failure: Failure) -> CheckResult:
    return CheckResult(Status.FAILED, sent, got, failure)


def skipped(sent: str, why: str) -> CheckResult:
    return CheckResult(Status.SKIPPED, sent, why)


def short_score(score: float) -> str:
    """A score in few digits, without losing how small it is."""
    return f"{score:.3f}" if score == 0 or abs(score) >= 0.001 else f"{score:.0e}"


def range_of(scores: Sequence[float]) -> str:
    """From the lowest to the highest."""
    return f"{short_score(min(scores))} to {short_score(max(scores))}"
