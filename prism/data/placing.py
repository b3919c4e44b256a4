"""Where in its text a question is answered: the window that holds the answer, and the sentences that are the evidence.

Windows are cut without a look at any question. A question then falls on the window that holds what people marked, else
one of its short answers, else by far the most of its telling words; else nothing is known about the evidence.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from prism.data.contributions import topic_terms
from prism.data.unspaced import is_unspaced
from prism.evidence.passages import Passage, windows_of
from prism.evidence.sentences import UNSPACED_CHAR
from prism.files.corpus import Text
from prism.files.qa_sets import QaQuestion
from prism.files.qa_settings import Windows
from prism.text import UNSPACED, stable_id

MOST_SENTENCES = 4
MOST_EVIDENCE = 900
"""Characters; what is longer is no evidence but the document again."""
OVERLAP = 0.6
"""Share of a question's weight that one sentence must hold to count as evidence nobody marked."""
_ASKS = re.compile(
    r"[?？]\W*$|^(?:To|In order to) (?:determine|investigate|evaluate|assess|examine|compare|explore|find|test|study)\b"
    r"|^(?:The|Our) (?:aim|purpose|objective|goal)|\b(?:aimed to|was to|sought to|hypothesi[sz]e)\b",
    re.IGNORECASE,
)
"""Sentences that repeat a question instead of answering it: they overlap most, and are no evidence."""
_SPACED = rf"[^\W{UNSPACED}]"
"""A letter or digit of a script that puts spaces between words."""
_WINDOWS_KEPT = 4096
_UNSPACED_SHARE = 3
"""A character of a script without spaces says about as much as so many letters."""


class AnswerPlace(NamedTuple):
    """Where a question is answered."""

    window: int
    """Index into the windows."""
    sentences: tuple[int, ...]
    """Evidence, in reading order; empty where it is not known."""
    how: Literal["marked", "answer", "overlap", "unknown"]


def cut_texts(settings: Windows, texts: list[Text]) -> list[Passage]:
    """The windows of some texts. Their size is drawn for each text by a hash, evenly on a logarithmic scale."""
    found: list[Passage] = []
    for text in texts:
        drawn = int(stable_id("window", text.id), 16) / 2**64
        size = settings.smallest * (settings.largest / settings.smallest) ** drawn
        scale = _UNSPACED_SHARE if is_unspaced(text.text) else 1
        found += windows_of(text, round(size / scale), settings.shortest // scale)
    return found


class Overlap:
    """How much of a question a window or one of its sentences says, by the rarity of the words."""

    def __init__(self, windows: Sequence[Passage]) -> None:
        self._windows = windows
        self._counts: Counter[str] = Counter()
        for window in windows:
            self._counts.update(topic_terms(window.text, window.language))
        self._total = max(1, len(windows))
        self._kept: dict[int, list[frozenset[str]]] = {}

    def sentences(self, window: int) -> list[frozenset[str]]:
        """The telling words of each sentence; those of the latest windows are kept."""
        if window not in self._kept:
            if len(self._kept) >= _WINDOWS_KEPT:
                self._kept.clear()
            passage = self._windows[window]
            self._kept[window] = [
                topic_terms(passage.text[low:high], passage.language) for low, high in passage.sentences
            ]
        return self._kept[window]

    def weight(self, terms: Iterable[str]) -> float:
        """Sum of log(N / df), smoothed."""
        return sum(math.log((self._total + 1) / (self._counts[term] + 0.5)) for term in terms)

    def of_sentences(self, asked: frozenset[str], window: int) -> list[float]:
        """For each sentence the share of the question's weight that it holds, 0 to 1."""
        whole = self.weight(asked)
        return [self.weight(asked & said) / whole if whole > 0 else 0.0 for said in self.sentences(window)]

    def of_window(self, asked: frozenset[str], window: int) -> float:
        """The same for the whole window."""
        whole = self.weight(asked)
        said = frozenset().union(*self.sentences(window))
        return self.weight(asked & said) / whole if whole > 0 else 0.0


def place_answer(
    asked: QaQuestion, windows: Sequence[Passage], own: Sequence[int], overlap: Overlap
) -> AnswerPlace | None:
    """The place of a question among the windows `own` of its text; None when no window is known to answer it."""
    terms = topic_terms(asked.query, asked.language)
    shares = {window: overlap.of_sentences(terms, window) for window in own}
    marked = [(len(hits), -window, hits) for window in own if (hits := _marked(windows[window], asked.evidence))]
    if marked:
        _, window, hits = max(marked, key=lambda found: found[:2])
        return AnswerPlace(-window, tuple(sorted(set(hits))), "marked")
    answering = [
        (share, -window, index)
        for window in own
        for index, share in enumerate(shares[window])
        if holds_answer(_sentence(windows[window], index), asked.answers)
    ]
    if answering:
        _, window, index = max(answering)
        return AnswerPlace(-window, (index,), "answer")
    best = max(
        (
            (share, -window, index)
            for window in own
            for index, share in enumerate(shares[window])
            if not _ASKS.search(_sentence(windows[window], index))
        ),
        default=None,
    )
    if best is not None and best[0] >= OVERLAP:
        return AnswerPlace(-best[1], (best[2],), "overlap")
    return AnswerPlace(own[0], (), "unknown") if len(own) == 1 else None


def nearest(asked: QaQuestion, own: Sequence[int], overlap: Overlap) -> int:
    """The window that says most of a question that none of them answers; the first of equals."""
    terms = topic_terms(asked.query, asked.language)
    return max(own, key=lambda window: (overlap.of_window(terms, window), -window))


def is_evidence(passage: Passage, sentences: Sequence[int]) -> bool:
    """Whether some sentences are few and short enough to be written."""
    length = sum(high - low for low, high in (passage.sentences[index] for index in sentences))
    return 1 <= len(sentences) <= MOST_SENTENCES and length <= MOST_EVIDENCE


def holds_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether one of the answers stands in a text, not inside longer words or numbers."""
    return any(_answer_pattern(answer).search(text) is not None for answer in answers)


@lru_cache(maxsize=4096)
def _answer_pattern(answer: str) -> re.Pattern[str]:
    before = "" if UNSPACED_CHAR.match(answer[0]) else f"(?<!{_SPACED})"
    after = "" if UNSPACED_CHAR.match(answer[-1]) else f"(?!{_SPACED})"
    return re.compile(before + r"\s+".join(map(re.escape, answer.split())) + after, re.IGNORECASE)


def _sentence(passage: Passage, index: int) -> str:
    low, high = passage.sentences[index]
    return passage.text[low:high]


def _marked(passage: Passage, marks: Sequence[str]) -> list[int]:
    """The sentences that hold what people marked; white space may differ."""
    found: list[int] = []
    for mark in marks:
        match = re.search(r"\s*".join(map(re.escape, mark.split())), passage.text)
        if match:
            low, high = match.span()
            found += [i for i, (start, end) in enumerate(passage.sentences) if start < high and low < end]
    return found
