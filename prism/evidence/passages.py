"""Cut texts into passages on sentence borders: the one way documents of positives and negatives alike are made.

A window cut around the evidence for positives but at random for negatives gives the label away without any reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from prism.evidence.sentences import sentences
from prism.files.corpus import Text
from prism.text import stable_id

_WORD = re.compile(r"[^\W_]+(?:[-_.][^\W_]+)*")


class Passage(NamedTuple):
    """A window of a text, with the sentences in it."""

    id: str
    text_id: str
    group: str
    title: str
    heading: str
    text: str
    source: str
    offset: int
    """Where the window starts in its text; code points."""
    sentences: tuple[tuple[int, int], ...]
    """Offsets within the window."""
    first: bool
    """Whether it opens its text, and so stands directly under the heading."""
    language: str = "en"


def evidence_text(passage: Passage, indices: Sequence[int]) -> str:
    """Some sentences of a passage, word for word: neighbours with what stands between them."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    parts = [passage.text[passage.sentences[run[0]][0] : passage.sentences[run[-1]][1]] for run in runs]
    return ("" if passage.language in ("zh", "ja") else " ").join(parts)


def words(text: str) -> list[str]:
    """Lower-case words, a plural s taken off: good enough to compare short English texts."""
    return [_singular(word) for word in _WORD.findall(text)]


def _singular(word: str) -> str:
    lowered = word.lower()
    return lowered[:-1] if len(lowered) > 3 and lowered.endswith("s") and not lowered.endswith("ss") else lowered


def cut(texts: Iterable[Text], max_chars: int, min_chars: int = 80) -> list[Passage]:
    """Windows of whole sentences, at most `max_chars` each where sentences allow; exact repeats are dropped.

    A window shorter than `min_chars` is dropped, as is a single sentence of more than twice `max_chars`
    (tables and listings, which hold no sentence to learn from).
    """
    return without_repeats(passage for text in texts for passage in windows_of(text, max_chars, min_chars))


def without_repeats(passages: Iterable[Passage]) -> list[Passage]:
    """The first passage of each wording."""
    seen: set[str] = set()
    kept: list[Passage] = []
    for passage in passages:
        fingerprint = stable_id(" ".join(words(passage.text)) or passage.text)
        if fingerprint not in seen:
            seen.add(fingerprint)
            kept.append(passage)
    return kept


def windows_of(text: Text, max_chars: int, min_chars: int) -> list[Passage]:
    """The windows of one text, as `cut` makes them."""
    passages: list[Passage] = []
    for number, spans in enumerate(_windows(sentences(text.text), max_chars)):
        start, end = spans[0][0], spans[-1][1]
        if not min_chars <= end - start <= 2 * max_chars:
            continue
        passages.append(
            Passage(
                id=f"{text.id}@{start}",
                text_id=text.id,
                group=text.group,
                title=text.title,
                heading=text.heading,
                text=text.text[start:end],
                source=text.source,
                offset=start,
                sentences=tuple((low - start, high - start) for low, high in spans),
                first=number == 0,
                language=text.language,
            )
        )
    return passages


def _windows(spans: list[tuple[int, int]], max_chars: int) -> list[list[tuple[int, int]]]:
    windows: list[list[tuple[int, int]]] = []
    for span in spans:
        if windows and span[1] - windows[-1][0][0] <= max_chars:
            windows[-1].append(span)
        else:
            windows.append([span])
    return windows
