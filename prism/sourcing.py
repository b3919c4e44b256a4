"""Where evidence comes from: the protocol of its makers, `writing.Writer` and `quoting.Quoter`, and what they share.

Both are made of a template, an engine and what the call wants. Both work in rank order, in waves that the budget surely
covers, and leave every judgment either as it was or with its evidence in it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple, Protocol

from prism.judging import Pair
from prism.result import Contributed, Judged
from prism.template import Written
from prism.text import clean
from prism.types import EvidenceCheck, Judgment, Outcome, Usage
from prism.windows import Window

MIN_EVIDENCE_TOKENS = 32
"""What is left of an evidence budget below this buys no passage worth reading."""
EVIDENCE_WINDOWS = 3
"""At most so many windows of one document give evidence."""


class EvidenceRequest(NamedTuple):
    """What a call wants evidence for, and what that may cost."""

    query: str
    """As the model reads it."""
    question: str
    """The question in it, which no contribution needs to say again."""
    instruction: str | None
    ranked: Sequence[Pair]
    """Judged pairs, best first."""
    threshold: float
    """Documents and windows below it give no evidence."""
    top_n: int | None
    """At most so many documents do."""
    budget: int | None
    """Tokens of all contributions and evidence together."""
    check: bool
    max_prompt_tokens: int | None = None
    """Of one prompt; None: the template's limit."""
    max_total_tokens: int | None = None
    """Prompt tokens of the whole call."""
    spent_tokens: int = 0
    """Of those, what judging the documents took."""

    def ranks(self) -> list[int]:
        """Positions in `ranked` of the documents that are to have evidence."""
        judgments = enumerate(pair.judgment for pair in self.ranked)
        return [i for i, j in judgments if j.verdict == "yes" and (j.score or 0.0) >= self.threshold][: self.top_n]

    def windows(self, rank: int) -> list[Window]:
        """The document's windows that matter, best first; equal ones in reading order."""
        best = sorted(self.ranked[rank].windows, key=lambda window: (-window.score, window.start))
        return [window for window in best if window.score >= self.threshold][:EVIDENCE_WINDOWS]

    def checked(self, rank: int, evidence: str | None, contribution: str | None = None) -> EvidenceCheck | None:
        """Checks against all that the model read, so that spans are offsets in the document as sent."""
        from prism import evidence as checks

        if not (evidence or contribution) or not self.check:
            return None
        read, title = self._read(rank)
        return checks.check(evidence or "", read, contribution=contribution, query=self.question, title=title)

    def outcome(self, rank: int, written: Written) -> Outcome:
        """What became of a written text, once what it says is read too."""
        from prism import evidence as checks

        read, title = self._read(rank)
        outcome, contribution, evidence = written
        return checks.outcome_of(outcome, contribution, evidence, query=self.question, document=read, title=title)

    def _read(self, rank: int) -> tuple[str, str | None]:
        """Text and title of a document as the model read them; a beginning that was not read is blank."""
        pair = self.ranked[rank]
        start, end = pair.read
        return clean(" " * start + pair.document.text[start:end]), pair.document.title and clean(pair.document.title)

    def missing_by_budget(self, count: int) -> list[str]:
        """A warning that the budget left so many documents without evidence, if there are any."""
        under = 0 < (self.budget or 0) < MIN_EVIDENCE_TOKENS
        why = f"is under one sentence, at least {MIN_EVIDENCE_TOKENS} are needed" if under else "was spent"
        return self.missing(count, f"evidence_tokens={self.budget} {why}")

    def unfinished_by_budget(self, count: int) -> list[str]:
        """A warning that the budget ended so many texts before their end, if there are any."""
        some = f"{count} of {len(self.ranks())} documents with verdict yes have evidence that is cut off"
        return [f"evidence_tokens={self.budget} was spent: {some}"] if count else []

    def missing(self, count: int, reason: str) -> list[str]:
        """A warning that so many documents have no evidence, if there are any."""
        some = f"{count} of {len(self.ranks())} documents with verdict yes have no evidence"
        return [f"{reason}: {some}"] if count else []


class EvidenceMaker(Protocol):
    """Makes evidence for the documents of a call that are worth it."""

    judgments: list[Judgment]
    """Of all ranked documents, as they stand."""
    usage: Usage
    """What making evidence has taken so far, beyond judging the documents."""

    def events(self) -> AsyncGenerator[Contributed | Judged, None]:
        """Do the work, telling each document's contribution, if there is one, and its judgment when it is final."""
        ...

    def warnings(self) -> list[str]:
        """How many documents were left without evidence, and why."""
        ...
