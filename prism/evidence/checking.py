"""The whole check of what was written about one document."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from prism.evidence import negation
from prism.evidence.facts import facts
from prism.evidence.fidelity import Haystack, verify
from prism.evidence.soundness import broken, says_the_query_again
from prism.evidence.spans import Aligner
from prism.evidence.words import share_known
from prism.text import normalised
from prism.types import (
    ContributionCheck,
    EvidenceCheck,
    EvidenceSentence,
    Fidelity,
    Outcome,
    Span,
    Unsupported,
)


def _merged(aligned: Iterable[EvidenceSentence]) -> tuple[Span, ...]:
    """All spans in reading order, overlapping ones made one with the higher support."""
    found: list[Span] = []
    for span in sorted((s for sentence in aligned for s in sentence.spans), key=lambda s: (s.start, s.end)):
        if found and span.start < found[-1].end:
            before = found.pop()
            span = Span(start=before.start, end=max(before.end, span.end), support=max(before.support, span.support))
        found.append(span)
    return tuple(found)


class _Source:
    """A document and its title, prepared once for all that was written about them."""

    def __init__(self, document: str, title: str | None, language: str | None) -> None:
        self.document, self.title, self.language = document, title, language
        self.texts = [document, *([title] if title is not None else [])]
        self.aligner = Aligner(document, language)
        self.haystacks = tuple(Haystack(text, language) for text in self.texts)

    @cached_property
    def plain(self) -> list[str]:
        return [normalised(text).text for text in self.texts]

    @cached_property
    def denials(self) -> negation.NegationIndex:
        return negation.NegationIndex(*self.plain)

    def broken(self, text: str, query: str | None) -> tuple[str, ...]:
        return broken(text, [*self.plain, normalised(query or "").text])

    def fidelity(self, text: str, aligned: Iterable[EvidenceSentence], *more: Haystack) -> Fidelity:
        """Of one text: facts must occur in document, title or `more`; negations in document or title."""
        looked_up = verify([(facts(text, self.language), (*self.haystacks, *more))])
        checked, wrong = 0, []
        for sentence in aligned:
            if sentence.support == 1.0 and sentence.spans:
                continue  # word for word
            written = normalised(sentence.text).text
            backed = [normalised(self.document[s.start : s.end]).text for s in sentence.spans]
            checked += sum(1 for _ in negation.denials(written))
            wrong += negation.unsupported(written, self.denials, backed)
            lost = negation.lost(written, self.denials, backed)
            checked, wrong = checked + len(lost), wrong + lost
        absent = [Unsupported(kind="negation", text=each) for each in dict.fromkeys(wrong)]
        return Fidelity(checked=looked_up.checked + checked, unsupported=(*looked_up.unsupported, *absent))

    def contribution(self, text: str, query: str | None) -> ContributionCheck:
        aligned = self.aligner.align(text)
        asked = (Haystack(query, self.language),) if query is not None else ()
        return ContributionCheck(
            sentences=aligned,
            spans=_merged(aligned),
            support=share_known(normalised(text).text, self.plain),
            fidelity=self.fidelity(text, aligned, *asked),
            broken=self.broken(text, query),
            uninformative=query is not None and says_the_query_again(text, query),
        )


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
    What either text denies must be denied in the document or its title; the query excuses no negation.
    Compression is len(evidence) / len(document) in code points; an empty document counts as one.
    """
    source = _Source(document, title, language)
    aligned = source.aligner.align(evidence)
    length = sum(sentence.end - sentence.start for sentence in aligned)
    support = sum(sentence.support * (sentence.end - sentence.start) for sentence in aligned) / max(length, 1)
    return EvidenceCheck(
        sentences=aligned,
        spans=_merged(aligned),
        support=min(1.0, support),
        fidelity=source.fidelity(evidence, aligned),
        broken=source.broken(evidence, query),
        compression=len(evidence) / max(len(document), 1),
        contribution=None if contribution is None else source.contribution(contribution, query),
    )


def outcome_of(
    outcome: Outcome,
    contribution: str | None,
    evidence: str | None,
    *,
    query: str,
    document: str,
    title: str | None = None,
) -> Outcome:
    """What became of texts that were written in the agreed form, once they are read: needs no alignment."""
    if outcome is not Outcome.COMPLETE or contribution is None or evidence is None:
        return outcome
    sources = [normalised(source).text for source in (document, title or "", query)]
    if broken(contribution, sources) or broken(evidence, sources):
        return Outcome.MALFORMED
    return Outcome.UNINFORMATIVE if says_the_query_again(contribution, query) else outcome
