"""Quoted evidence: sentences of the document, word for word, chosen by the model's own yes or no to each.

For models too small to copy a passage without slips. Each sentence is judged as if it were the document (sentence-level
relevance, as in Wadden et al. 2020, "Fact or Fiction", section 5.1, with the reranker's own score in place of a
trained selector). The model still writes the contribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prism.sentences import UNSPACED_CHAR, sentences
from prism.text import clean

MOST_QUOTES = 3
"""Sentences from one window: what a reader takes in at a glance."""

YES = 0.5
"""Score of a sentence where yes becomes likelier than no; the caller's threshold is for whole documents."""


class Quote(NamedTuple):
    """A sentence of a text."""

    start: int
    """Where it begins; orders quotes as they stand in the text."""
    text: str


def quotable(text: str, closing_tag: str) -> list[Quote]:
    """The sentences of a text, in reading order, equal ones once; not those that would end the evidence early."""
    found = dict[str, Quote]()
    for start, end in sentences(text):
        sentence = clean(text[start:end])
        if sentence and closing_tag not in sentence:
            found.setdefault(sentence, Quote(start, sentence))
    return list(found.values())


def choose(quotes: Sequence[Quote], scores: Sequence[float | None]) -> list[Quote]:
    """The best sentence and up to two more that the model says yes to, best first.

    `scores`: in [0, 1], None where the sentence could not be judged. The best one is taken whatever it scores: the
    document as a whole has been judged relevant.
    """
    judged = [(score, quote) for score, quote in zip(scores, quotes, strict=True) if score is not None]
    judged.sort(key=lambda pair: (-pair[0], pair[1].start))
    return [quote for rank, (score, quote) in enumerate(judged[:MOST_QUOTES]) if rank == 0 or score >= YES]


def passage(quotes: Sequence[Quote]) -> str:
    """Quotes in reading order, with a space between where their script has one."""
    text = ""
    for quote in sorted(quotes):
        gap = "" if not text or _ends_unspaced(text) else " "
        text += gap + quote.text
    return text


def _ends_unspaced(text: str) -> bool:
    return bool(UNSPACED_CHAR.search(text[-2:]))
