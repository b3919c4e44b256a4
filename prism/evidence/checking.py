"""The whole check of what was written about one document."""

from __future__ import annotations

from collections.abc import Iterable

from prism.evidence.facts import facts
from prism.evidence.fidelity import Haystack, verify
from prism.evidence.spans import align
from prism.types import EvidenceCheck, EvidenceSentence, Span


def _merged(aligned: Iterable[EvidenceSentence]) -> tuple[Span, ...]:
    """All spans in reading order, overlapping ones made one with the higher support."""
    merged: list[Span] = []
    for span in sorted((s for sentence in aligned for s in sentence.spans), key=lambda s: (s.start, s.end)):
        if merged and span.start < merged[-1].end:
            before = merged.pop()
            span = Span(start=before.start, end=max(before.end, span.end), support=max(before.support, span.support))
        merged.append(span)
    return tuple(merged)


def check(
    evidence: str,
    document: str,
    *,
    contribution: str | None = None,
    query: str | None = None,
    title: str | None = None,
    language: str | None = None,
) -> EvidenceCheck:
    """Verify one evidence text, and the contribution if given, against its document.

    Facts of the evidence must occur in the document or its title; those of the contribution, there or in the query.
    Compression is len(evidence) / len(document) in code points; an empty document counts as one.
    """
    aligned = align(evidence, document, language=language)
    length = sum(sentence.end - sentence.start for sentence in aligned)
    support = sum(sentence.support * (sentence.end - sentence.start) for sentence in aligned) / max(length, 1)
    read = tuple(Haystack(text, language) for text in (document, title) if text is not None)
    looked_up = [(facts(evidence, language), read)]
    if contribution is not None:
        asked = (Haystack(query, language),) if query is not None else ()
        looked_up.append((facts(contribution, language), (*read, *asked)))
    return EvidenceCheck(
        sentences=aligned,
        spans=_merged(aligned),
        support=min(1.0, support),
        fidelity=verify(looked_up),
        compression=len(evidence) / max(len(document), 1),
    )
