"""The frozen records every module shares. Offsets are Unicode code points, half-open; sizes are in tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from prism.errors import InputError
from prism.records import Record as Record  # the base of all of these, which others import from here
from prism.text import as_id

Verdict = Literal["yes", "no"]
Id = Annotated[str, BeforeValidator(as_id)]
"""Names a query or a document."""
EvidenceSource = Literal["written", "quoted"]
"""`written`: in the model's own words, with a contribution; `quoted`: sentences of the document, word for word."""
EvidenceChoice = Literal["written", "quoted", "auto"]
"""What a caller asks for; `auto`: as the checkpoint prefers."""
Run = Mapping[str, Sequence[str]]
"""Query id -> document ids, best first."""
Qrels = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> label; relevant from 1 on."""
Support = Annotated[float, Field(ge=0.0, le=1.0)]


class Document(Record):
    """One candidate text."""

    text: str
    id: Id | None = None
    """The caller's name for the document; shown in results and in the rendered context."""
    title: str | None = None
    """Shown to the model above the text. Spans never point into it."""


class Span(Record):
    """`[start, end)` in the document text as the caller sent it."""

    start: int = Field(ge=0)
    end: int = Field(ge=0)
    support: Support
    """How well this stretch of the document backs its evidence sentence."""

    @model_validator(mode="after")
    def _ordered(self) -> Span:
        if self.end <= self.start:
            raise ValueError(f"a span needs start < end, got [{self.start}, {self.end})")
        return self


class EvidenceSentence(Record):
    """One sentence of the evidence and where the document says it."""

    text: str
    start: int
    """Offset of the sentence in the evidence text."""
    end: int
    spans: tuple[Span, ...]
    """Where the document backs it, in reading order; empty when nothing does."""
    support: Support


class Unsupported(Record):
    """Something the evidence states that the document does not contain."""

    kind: Literal["number", "date", "url", "code", "name", "negation"]
    text: str
    """As written. Of a negation: the negating word with what it denies ("without locking"); where the document denies
    what the text states, the document's own words."""


class Fidelity(Record):
    """Whether the checkable facts of a written text occur in the document."""

    checked: int = Field(ge=0)
    """How many numbers, dates, URLs, code fragments and proper names were looked up."""
    unsupported: tuple[Unsupported, ...]

    @property
    def score(self) -> float:
        """Share of checked items found in the document; 1.0 when there was nothing to check."""
        return 1.0 if self.checked == 0 else 1.0 - len(self.unsupported) / self.checked


class TextCheck(Record):
    """What was verified about one written text against the document."""

    sentences: tuple[EvidenceSentence, ...]
    spans: tuple[Span, ...]
    """The sentences' spans, merged where they overlap, in reading order."""
    support: Support
    """Of evidence: mean support of the sentences, weighted by their length in characters. Of a contribution: share, by
    weight, of its content words that the document or its title has."""
    fidelity: Fidelity
    broken: tuple[str, ...] = ()
    """Stretches that no writer meant: leaked template, a phrase again and again, letters that make no word."""


class ContributionCheck(TextCheck):
    """What was verified about a contribution."""

    uninformative: bool = False
    """Whether it says nothing that the query does not say."""


class EvidenceCheck(TextCheck):
    """Everything that was verified about what was written for one pair."""

    compression: float = Field(ge=0.0)
    """Length of the evidence over length of the document, in characters."""
    contribution: ContributionCheck | None = None
    """The same for the contribution; None where there is none."""

    @property
    def written(self) -> Fidelity:
        """Fidelity of both texts together; what both lack counts once."""
        both = [self.fidelity, *([self.contribution.fidelity] if self.contribution else [])]
        absent = tuple(dict.fromkeys(item for found in both for item in found.unsupported))
        return Fidelity(checked=sum(found.checked for found in both), unsupported=absent)


class Outcome(StrEnum):
    """What became of the written part of a judgment."""

    COMPLETE = "complete"
    CUT_OFF = "cut_off"
    """The model ran into its token limit: what was written up to there is kept. Quoting: no sentence fits."""
    MALFORMED = "malformed"
    """The model stopped without the agreed tags, or a text has broken stretches (`check` names them)."""
    UNINFORMATIVE = "uninformative"
    """Both texts are there, but the contribution only says the query again."""
    NOT_WRITTEN = "not_written"
    """Nothing was asked of the model: verdict no, evidence off, past `top_n`, the budget or `max_total_tokens`."""

    @property
    def parsed(self) -> bool:
        """Whether both texts were there, in their tags; what they say is another matter."""
        return self in (Outcome.COMPLETE, Outcome.UNINFORMATIVE)


class Unanswered(StrEnum):
    """Why the documents of a call are not to be taken for an answer."""

    NONE_RELEVANT = "none_relevant"
    """No document got a yes, and that one answers is improbable."""
    RELATED_ONLY = "related_only"
    """Some got a yes, but that any of them answers is improbable: they are about it."""
    CONFLICTING = "conflicting"
    """They answer and contradict each other, or what the caller holds already (`conflicts`)."""
    CUT_OFF = "cut_off"
    """That any answers is improbable as far as was read, and a yes (or the best document) was not read to its end."""


Side = Literal["left", "right"]
"""Of a text: where it is cut."""


class Truncation(Record):
    """How much of a document the model did not read."""

    read_chars: int
    """The model read `text[start : start + read_chars]`."""
    total_chars: int
    start: int = 0
    """More than 0 where the beginning was cut off (`truncation_side="left"`)."""


QueryField = Literal["question", "reason", "conversation"]


class QueryCut(Record):
    """What of a query the model did not read, because a budget of the caller said so."""

    field: QueryField
    """A query that is one text is its question."""
    read_chars: int
    """Characters of the field, as it stands in one line, that were read: of a conversation the last, else the first."""
    total_chars: int


class WindowScore(Record):
    """How one window `[start, end)` of a long document scored."""

    start: int
    end: int
    score: float


class Usage(Record):
    """Tokens paid for."""

    prompt_tokens: int = 0
    """Tokens of all prompts as rendered, those of quoted evidence included; a shared prefix counts in each."""
    cached_tokens: int = 0
    """Of those, tokens that were not computed again because a prefix was shared."""
    written_tokens: int = 0
    """Tokens that the model generated: none where evidence is quoted."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            written_tokens=self.written_tokens + other.written_tokens,
        )


class Place(Record):
    """A sentence in a document, or in a text of `against`."""

    index: int
    """Position in the caller's documents, or in `against`."""
    id: str | None = None
    against: bool = False
    start: int
    """`[start, end)`: the sentence, in the text as the caller sent it."""
    end: int
    value: str
    """What the other side says otherwise, as written; empty where the other side alone denies."""


class Conflict(Record):
    """Two sentences that agree in nearly all their words and give different values for the same thing."""

    kind: Literal["number", "date", "negation", "answer"]
    """`answer`: one says yes, the other no."""
    left: Place
    """In the better document."""
    right: Place


class SameEvidence(Record):
    """Documents whose evidence says the same: one slot of the context stands for all."""

    indices: tuple[int, ...]
    """The one whose evidence is shown first, the others by rank."""
    ids: tuple[str | None, ...]


class Judgment(Record):
    """What Prism says about one pair."""

    index: int
    """Position of the document in the caller's list."""
    id: str | None = None
    title: str | None = None
    score: float | None
    """sigmoid(l_yes - l_no); None only when `error` is set."""
    logit: float | None = None
    """l_yes - l_no, of which the score is made."""
    verdict: Verdict | None
    outcome: Outcome = Outcome.NOT_WRITTEN
    contribution: str | None = None
    evidence: str | None = None
    evidence_source: EvidenceSource | None = None
    """Where evidence was sought, found or not; None when none was asked for."""
    check: EvidenceCheck | None = None
    truncation: Truncation | None = None
    """None when the model read the whole document."""
    windows: tuple[WindowScore, ...] = ()
    """What a document that was read in several windows scored in each; `score` is the best."""
    also: tuple[str, ...] = ()
    """Further documents whose evidence says no more than this one's: their ids, `document=N` where they have none."""
    same_as: int | None = None
    """Index of the better document whose evidence says all that this one's does."""
    held: int | None = None
    """Position in `against` of the text that already says all that this document, or its evidence, does."""
    error: str | None = None
    """Why this document could not be judged; the other documents are unaffected."""
    usage: Usage = Usage()

    @property
    def spans(self) -> tuple[Span, ...]:
        """Document spans that back the evidence; empty when there is none."""
        return self.check.spans if self.check else ()

    @property
    def support(self) -> float | None:
        return self.check.support if self.check and self.evidence else None

    @property
    def unsupported(self) -> tuple[Unsupported, ...]:
        """Of contribution and evidence."""
        return self.check.written.unsupported if self.check else ()

    @property
    def contribution_check(self) -> ContributionCheck | None:
        return self.check.contribution if self.check else None


class Vote(Record):
    """One answer of one juror on one pair."""

    pair_id: str
    juror: str
    label: int | None
    """None when the juror refused or could not be parsed; then `failure` says why."""
    failure: str | None = None
    rubric: str | None = None
    """Name and hash of the question asked, `name@hash`; None where it is not known (labels from elsewhere)."""
    score: float | None = None
    """A local model's score, from which its label was read."""
    answer: str | None = None
    """What the juror wrote."""
    usage: Usage = Usage()
    cost_usd: Decimal = Decimal(0)
    created_at: datetime | None = None


class Example(Record):
    """One training record: a line of a data file (DESIGN: data records)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    query: str
    document: str
    doc_id: Id | None = None
    query_id: Id | None = None
    title: str | None = None
    source: str | None = None
    language: str | None = None
    teacher_score: float | None = Field(default=None, ge=0.0, le=1.0)
    verdict: Verdict
    contribution: str | None = None
    evidence: str | None = None
    votes: dict[str, int | None] | None = None
    """Juror -> label; None where that juror failed."""
    vote_share: float | None = Field(default=None, ge=0.0, le=1.0)
    """Share of the votes cast that are yes."""
    losses: tuple[Literal["distill", "sft"], ...] = ("distill", "sft")
    """Which losses this record feeds; `distill` needs `teacher_score`."""


def descending(query: str, ranked: Sequence[str]) -> list[tuple[str, float]]:
    """Documents with scores that fall by 1 from rank to rank. Raises InputError when one stands twice."""
    if len(set(ranked)) != len(ranked):
        twice = next(document for document in ranked if ranked.count(document) > 1)
        raise InputError(f"query {query!r} ranks document {twice!r} more than once: rank each document once")
    return [(document, float(len(ranked) - rank)) for rank, document in enumerate(ranked)]
