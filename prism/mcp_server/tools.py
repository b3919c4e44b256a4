"""What the tools answer, as records: their JSON schemas are what an MCP client is told."""

from __future__ import annotations

from collections.abc import Iterable

from prism.context import LeftOut, PromptContext
from prism.mcp_server.folder import Skipped
from prism.result import RerankResult, source_name
from prism.text import printable
from prism.types import EvidenceSource, Judgment, Record, Span, Unanswered, Unsupported, Verdict

_NAMED = 10


class ToolDocument(Record):
    """One document of the ranking."""

    rank: int
    index: int
    """Position in the call: `documents` first, then the files."""
    id: str | None
    """As sent; of a file its path from the root."""
    title: str | None
    score: float | None
    verdict: Verdict | None
    error: str | None
    """Why it could not be judged; score and verdict are null then."""


class ToolRanking(Record):
    """What `rerank` answers."""

    model: str
    answerable: float | None
    """Calibrated probability that at least one document answers; null for a model without calibration."""
    reason: Unanswered | None
    """Why the documents are not to be taken for an answer; null when they are."""
    threshold: float | None
    """The score from which a verdict is yes."""
    documents: tuple[ToolDocument, ...]
    """Best first; those with an error last."""
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]


class ToolEvidence(Record):
    """What one document has for the query, checked against it."""

    source: int
    """`[n]` in the text."""
    index: int
    id: str | None
    title: str | None
    score: float | None
    contribution: str | None
    evidence: str
    evidence_source: EvidenceSource | None
    spans: tuple[Span, ...]
    """Where the document says so: half-open offsets in code points."""
    support: float | None
    unsupported: tuple[Unsupported, ...]
    """Facts in contribution or evidence that the document does not state."""


class ToolReading(Record):
    """What `read_evidence` answers."""

    model: str
    answerable: float | None
    reason: Unanswered | None
    """Why the documents are not to be taken for an answer; null when they are."""
    sufficient: bool | None
    """Whether the text holds enough to answer: false where `max_tokens` left out what does, or with a `reason`."""
    tokens: int
    """Of the text, at most `max_tokens`."""
    sources: tuple[ToolEvidence, ...]
    left_out: tuple[LeftOut, ...]
    """Documents that say something and are not in the text."""
    irrelevant: int
    """How many documents the model said no to."""
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]


def ranking(result: RerankResult, skipped: Iterable[Skipped]) -> ToolRanking:
    return ToolRanking(
        model=result.model,
        answerable=result.answerable,
        reason=result.reason,
        threshold=result.threshold,
        documents=tuple(
            ToolDocument(
                rank=rank,
                index=judgment.index,
                id=judgment.id,
                title=judgment.title,
                score=judgment.score,
                verdict=judgment.verdict,
                error=judgment.error,
            )
            for rank, judgment in enumerate(result, start=1)
        ),
        skipped=tuple(skipped),
        warnings=result.warnings,
    )


def reading(result: RerankResult, context: PromptContext, skipped: Iterable[Skipped]) -> ToolReading:
    inside = set(context.documents)
    return ToolReading(
        model=result.model,
        answerable=result.answerable,
        reason=result.reason,
        sufficient=context.sufficient,
        tokens=context.tokens or 0,
        sources=tuple(_evidence(n, judgment) for n, judgment in enumerate(result, start=1) if judgment.index in inside),
        left_out=context.left_out,
        irrelevant=sum(judgment.verdict == "no" for judgment in result),
        skipped=tuple(skipped),
        warnings=(*result.warnings, *(f"{source_name(one)}: {one.error}" for one in result if one.error)),
    )


def _evidence(rank: int, judgment: Judgment) -> ToolEvidence:
    return ToolEvidence(
        source=rank,
        index=judgment.index,
        id=judgment.id,
        title=judgment.title,
        score=judgment.score,
        contribution=judgment.contribution,
        evidence=judgment.evidence or "",
        evidence_source=judgment.evidence_source,
        spans=judgment.spans,
        support=judgment.support,
        unsupported=judgment.unsupported,
    )


def ranking_text(made: ToolRanking) -> str:
    """The ranking for clients that read no structured answers: a document a line."""
    lines = [
        f"[{one.rank}] {f'{one.score:.3f} {one.verdict}' if one.score is not None else 'error'} {_name(one)}"
        for one in made.documents
    ]
    return "\n".join([*lines, *_notes(made.skipped, made.warnings)])


def reading_notes(made: ToolReading) -> str:
    """What a reader of the text should know before trusting it; empty where there is nothing."""
    lines = [
        f"[{one.source}] not in the document: {_listed(item.text for item in one.unsupported)}"
        for one in made.sources
        if one.unsupported
    ]
    if made.left_out:
        lines.append(f"left out: {_listed(map(_told, made.left_out))}")
    return "\n".join([*lines, *_notes(made.skipped, made.warnings)])


def _notes(skipped: Iterable[Skipped], warnings: Iterable[str]) -> list[str]:
    files = list(skipped)
    told = [f"skipped: {_listed(f'{file.path} ({file.reason})' for file in files)}"] if files else []
    return [*told, *(f"warning: {_line(warning)}" for warning in warnings)]


def _told(left: LeftOut) -> str:
    tokens = "" if left.tokens is None else f", {left.tokens} tokens"
    return f"{left.id or f'document {left.index}'} ({left.reason}{tokens})"


def _name(document: ToolDocument) -> str:
    return _line(" · ".join(filter(None, (document.title, document.id))) or f"document {document.index}")


def _listed(texts: Iterable[str]) -> str:
    """The first of them, each on one line, and how many more there are."""
    lines = [_line(text) for text in texts]
    more = f", and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
    return ", ".join(lines[:_NAMED]) + more


def _line(text: str) -> str:
    return " ".join(printable(text).split())
