"""Where sentences begin and end, in the languages Prism serves. Nothing here raises for any `str`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

import sentencex

from prism.evidence.facts import MONTH
from prism.evidence.numbers import SIGN
from prism.text import MARKS, UNSPACED, clean, language_of, normalised

MAX_SENTENCE_CHARS = 2_000
"""A longer sentence is cut, at whitespace if there is any: nobody wrote it as one."""

UNSPACED_CHAR = re.compile(f"[{UNSPACED}]")
UNIT = re.compile(
    rf"[{UNSPACED}]"
    rf"|{SIGN}?\d[\d.,]{{0,40}}(?<=\d)"
    rf"|(?:[^\W{UNSPACED}]|[{MARKS}]){{1,64}}"
    r"|[<>=≤≥±%‰$€£¥°+]"
)
"""A word, a number with its sign, a character of a script without spaces, or a sign that carries meaning."""

_BLOCK_CHARS = 10_000  # what is given to the splitter at once: unbalanced quotes cost it quadratic time
_FENCE = re.compile(r"\s*(?:```|~~~)")
_MARKER = re.compile(
    rf"\s*(?:[-*+•·–—▪◦‣]\s|\(?\d{{1,3}}[.)]\s(?!{MONTH})|\d{{1,3}}、|\(?[a-z]\)\s|#{{1,6}}\s|[>|]|```|~~~)"
)
_NUMBERED = re.compile(rf"^\s*\d{{1,3}}\.\s(?!{MONTH})")
_TERMINATED = re.compile(r"[.!?:;。！？：；…]['\"”’»)\]）」』]{0,3}$")
_MISSED_STOP = re.compile(r"[。！？](?=[0-9A-Za-z])")  # the splitter misses these


def sentences(text: str, language: str | None = None) -> list[tuple[int, int]]:
    """Half-open code-point offsets of the sentences, trimmed, in order; together they cover all that can be seen.

    List items, headings, table rows and lines of code are sentences of their own; prose wrapped at a column is not
    broken at its line ends. Pieces without a letter or digit ("---") stay with the sentence before them. `language` is
    an ISO 639-1 code; by default it is detected.
    """
    plain = normalised(text)
    found: list[tuple[int, int]] = []
    last = 0
    for start, end in (plain.sent(*border) for border in plain_sentences(plain.text, language)):
        if end > max(start, last):  # two sentences may share one character: ㏂
            found.append((max(start, last), end))
            last = end
    return found


def plain_sentences(text: str, language: str | None = None) -> list[tuple[int, int]]:
    """The same for a text that is `normalised` already."""
    language = clean(language) if language else language_of(text)
    found: list[tuple[int, int]] = []
    for start, end in _blocks(text):
        flat = text[start:end].replace("\n", " ").replace("\r", " ")
        flat = _NUMBERED.sub(lambda match: match[0].replace(".", ","), flat, count=1)  # "1." ends no sentence
        for lo, hi in _split(flat, language):
            found.extend(_pieces(text, start + lo, start + hi))
    return _merge_wordless(text, found)


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Stretches in which a line end is only a line end, each short enough for the splitter."""
    start = 0
    for end in _hard_ends(text):
        while end - start > _BLOCK_CHARS:
            cut = _cut(text, start, start + _BLOCK_CHARS)
            yield start, cut
            start = cut
        yield start, end
        start = end


def _cut(text: str, start: int, limit: int) -> int:
    """Where to cut a stretch that is too long: after a sentence, else at whitespace, else anywhere."""
    for mark in (". ", "。", "\n", " "):
        at = text.rfind(mark, start + (limit - start) // 2, limit)
        if at >= 0:
            return at + len(mark)
    return limit


def _hard_ends(text: str) -> Iterator[int]:
    """Offsets after which a new sentence starts because of a line end, and the end of the text."""
    lines = text.splitlines(keepends=True)
    offset, fenced = 0, False
    for line, following, width in zip(lines, [*lines[1:], ""], _paragraph_widths(lines), strict=False):
        offset += len(line)
        fence = bool(_FENCE.match(line))
        fenced ^= fence
        if fence or fenced or not _continues(line, following, width):
            yield offset


def _paragraph_widths(lines: Sequence[str]) -> list[int]:
    """For each line, the length of the longest line in its run of non-blank lines."""
    widths: list[int] = []
    for _, group in groupby(lines, key=lambda line: bool(line.strip())):
        lengths = [len(line.rstrip()) for line in group]
        widths += [max(lengths)] * len(lengths)
    return widths


def _continues(line: str, following: str, width: int) -> bool:
    """Whether a sentence may run on over the end of `line`, in a paragraph whose longest line has `width` characters.

    It may if the next word would not have fitted (wrapped at a column), or if it is in lower case and nothing ended.
    """
    line, following = line.rstrip(), following.strip()
    if not line or not following or _MARKER.match(following) or line.lstrip()[0] in "#|>":
        return False
    dense = bool(UNSPACED_CHAR.match(following))
    next_word = 1 if dense else len(following.split(None, 1)[0])
    if (20 if dense else 40) <= width <= 200 and len(line) + 1 + next_word > width:
        return True
    return width >= 20 and following[0].islower() and not _TERMINATED.search(line[-8:])


def _split(flat: str, language: str) -> Iterator[tuple[int, int]]:
    at = 0
    ends = [int(boundary["end_index"]) for boundary in sentencex.get_sentence_boundaries(language, flat)]
    for end in (*ends, len(flat)):
        stops = [match.end() for match in _MISSED_STOP.finditer(flat, at, end)]
        for stop in (*stops, end):
            if stop > at:
                yield at, stop
                at = stop


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The sentence, trimmed, in pieces of at most `MAX_SENTENCE_CHARS`."""
    while start < end:
        piece = text[start : min(end, start + MAX_SENTENCE_CHARS)]
        cut = start + len(piece)
        if cut < end:
            space = max(piece.rfind(" "), piece.rfind("\n"), piece.rfind("，"))
            cut = start + space + 1 if space > MAX_SENTENCE_CHARS // 2 else cut
            piece = text[start:cut]
        if piece.strip():
            yield start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
        start = cut


def _merge_wordless(text: str, found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    wordless = False  # whether the last one kept has no unit yet
    for start, end in found:
        has_units = UNIT.search(text, start, end) is not None
        if merged and (wordless or not has_units) and end - merged[-1][0] <= MAX_SENTENCE_CHARS:
            start, has_units = merged.pop()[0], has_units or not wordless
        merged.append((start, end))
        wordless = not has_units
    return merged
