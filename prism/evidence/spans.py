"""Evidence: find where the document says what an evidence text says, and measure how well.

Offsets are code points of the texts as the caller sent them. Nothing here raises for any `str`.

A text is compared as a sequence of *units*: a word (a run of letters, digits and marks), a number with its sign and
separators, one character of a script without spaces, or one of the signs < > = % $ and the like; case, spelling (see
`normalised`), whitespace and punctuation are ignored. A unit *weighs* its length in letters, at most 8; a character of
a script without spaces weighs 2, a number at least 4. So "the" counts for less than "haemoglobin" in any language.

**Support** of a span for the part of an evidence sentence that it backs:

    matched / (weight of the part + skipped / 4)

matched   weights of the part's units found in the span: in full if the same unit, times the similarity of the two
          forms (at least 0.65) if only the ending differs, times 0.8 if found out of order. A run of matches counts
          only if one weighs 4 or two are single characters, or within two units of such a run: the rest is chance.
skipped   weight of the span's units between the first and the last match that match nothing: evidence that leaves
          out a "not" is not verbatim.

A sentence with several spans is divided among them: a matched unit belongs to the span that has it, any other to the
span of the nearest matched unit. The sentence's own support is the same ratio over all its units and spans. Support is
1.0 for a verbatim sentence (or one put together from verbatim pieces) and 0.0 without a span; a span below
`SUPPORT_FLOOR`, and every span of a sentence below it, is not reported at all.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import itemgetter

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

from prism.evidence.numbers import SIGN
from prism.evidence.sentences import UNSPACED_CHAR, plain_sentences
from prism.evidence.units import Units, flattened, units_of
from prism.text import MARKS, UNSPACED, Normalised, normalised
from prism.types import EvidenceSentence, Span

SUPPORT_FLOOR = 0.45
"""Less counts as not backed. On real text nearly no sentence of another document reaches it, about nine in ten do
that keep three quarters of their words."""

_MAX_SPANS = 3
_MAX_TRIES = 20  # places looked at before a short text that occurs inside words only is given up
_CANDIDATES = 8
_MAX_POSTINGS = 20_000
_GAP_WEIGHT = 0.25
_MIN_BLOCK_WEIGHT = 4.0
_MIN_SPAN_SHARE = 0.15
_OUT_OF_ORDER = 0.8
_MIN_SIMILARITY = 65
# Keys of units that are taken; rapidfuzz holds "" and NUL for equal, so both are plain, and no unit has a space.
_EXPLAINED, _USED = "our word", "their word"
_SNAP_SHARE = 0.6  # a span that matches this much of its sentence is the whole sentence
# All the searching one call may do, in code points scanned; a sentence costs as much as scanning 100,000, comparing
# it approximately as much as two million. Past it, sentences count as not backed: 1 MB against 1 MB ends in seconds.
_WORK = 4_000_000_000
_WORK_PER_SENTENCE = 100_000
_WORK_PER_COMPARISON = 2_000_000

_Fits = Callable[[int], bool]

_WORD_CHAR = re.compile(rf"[^\W{UNSPACED}]|[{MARKS}]")
_SIGN = re.compile(SIGN)


@dataclass
class _Document:
    """A document prepared for alignment, and the searching still allowed in it."""

    text: str
    borders: list[tuple[int, int]]
    work: int = _WORK

    @cached_property
    def flat(self) -> tuple[str, list[int], list[int]]:
        return flattened(self.text)

    @cached_property
    def cuts(self) -> set[int]:
        return {offset for border in self.borders for offset in border}

    @cached_property
    def units(self) -> Units:
        return units_of(self.text)

    @cached_property
    def joined(self) -> tuple[str, list[int]]:
        """All unit forms between separators, and where each starts: verbatim search that ignores punctuation."""
        starts, length = [], 0
        for form in self.units.forms:
            starts.append(length)
            length += len(form) + 1
        return "\x1f" + "\x1f".join(self.units.forms) + "\x1f", starts

    @cached_property
    def ranges(self) -> list[tuple[int, int]]:
        """Unit indices of each sentence."""
        starts = self.units.starts
        return [(bisect_left(starts, lo), bisect_left(starts, hi)) for lo, hi in self.borders]

    @cached_property
    def postings(self) -> dict[str, list[int]]:
        """The sentences each key occurs in, in order."""
        postings: dict[str, list[int]] = defaultdict(list)
        for number, (lo, hi) in enumerate(self.ranges):
            for key in dict.fromkeys(self.units.keys[lo:hi]):
                postings[key].append(number)
        return postings

    def nearest(self, needle: str, hay: str, near: int, fits: _Fits) -> int:
        """The place of `needle` in `hay` nearest to `near` that `fits`; -1 if there is none."""
        ahead = self._scan(needle, hay, near, len(hay), fits)
        reach = min(near, ahead - near) if ahead >= 0 else near
        behind = self._scan(needle, hay, near - reach, near + len(needle) - 1, fits, backwards=True)
        return min((at for at in (ahead, behind) if at >= 0), key=lambda at: abs(at - near), default=-1)

    def _scan(self, needle: str, hay: str, start: int, end: int, fits: _Fits, *, backwards: bool = False) -> int:
        for _ in range(_MAX_TRIES):
            if self.work <= 0 or start >= end:
                return -1
            at = hay.rfind(needle, start, end) if backwards else hay.find(needle, start, end)
            self.work -= end - start if at < 0 else end - at if backwards else at - start
            if at < 0 or fits(at):
                return at
            start, end = (start, at + len(needle) - 1) if backwards else (at + 1, end)
        return -1


# --- verbatim --------------------------------------------------------------------------------------------------------


def _glued(text: str, at: int) -> bool:
    """Whether a cut at `at` goes through a word or a number, its sign included."""
    if 0 < at < len(text) and _WORD_CHAR.match(text[at - 1]) and _WORD_CHAR.match(text[at]):
        return True
    if at and text[at : at + 1].isdigit() and _SIGN.fullmatch(text, at - 1, at):
        return True
    return bool(re.search(r"\d[.,]?$", text[max(0, at - 2) : at]) and re.match(r"[.,]?\d", text[at : at + 2]))


def _verbatim(sentence: str, document: _Document, near: int) -> tuple[int, int] | None:
    """Where the document has the sentence but for whitespace and case; failing that, but for punctuation too."""
    document.work -= _WORK_PER_SENTENCE
    if document.work <= 0:
        return None
    needle = flattened(sentence)[0]
    flat, here, there = document.flat

    def original(at: int) -> tuple[int, int]:
        first, last = (_place(here, there, i) for i in (at, at + len(needle) - 1))
        return first, last + 1

    def fits(at: int) -> bool:
        return all(i in document.cuts or not _glued(document.text, i) for i in original(at))

    at = document.nearest(needle, flat, _place(there, here, near), fits) if needle else -1
    if at >= 0:
        return original(at)
    return _same_words(units_of(sentence).forms, document, near)


def _place(froms: list[int], tos: list[int], at: int) -> int:
    """Carry an offset from one text to the other, given where each word starts in either."""
    word = max(0, bisect_right(froms, at) - 1)
    return max(0, tos[word] + at - froms[word]) if froms else 0


def _same_words(forms: list[str], document: _Document, near: int) -> tuple[int, int] | None:
    joined, starts = document.joined
    first_near = bisect_left(document.units.starts, near)
    joined_near = starts[first_near] if first_near < len(starts) else 0
    needle = "\x1f" + "\x1f".join(forms) + "\x1f"
    at = document.nearest(needle, joined, joined_near, lambda _: True) if forms else -1
    if at < 0:
        return None
    first = bisect_left(starts, at)
    return _snapped(document, first, first + len(forms) - 1)


def _snapped(document: _Document, first: int, last: int, *, whole: bool = False) -> tuple[int, int]:
    """Offsets of the units `first` to `last`, out to the borders of a sentence they begin or end (or if `whole`)."""
    units, ranges, borders = document.units, document.ranges, document.borders
    start, end = units.starts[first], units.ends[last]
    head, tail = (max(0, bisect_right(ranges, unit, key=itemgetter(0)) - 1) for unit in (first, last))
    if whole or ranges[head][0] == first:
        start = min(start, borders[head][0])
    if whole or ranges[tail][1] == last + 1:
        end = max(end, borders[tail][1])
    return start, end


# --- approximate -----------------------------------------------------------------------------------------------------

_Block = tuple[int, int, int]  # evidence index, document index, length


@dataclass(frozen=True)
class _Match:
    """A stretch of the document that says part of an evidence sentence."""

    start: int
    end: int
    credits: dict[int, float]
    """Matched evidence units, each with its share of a full match."""
    skipped: float
    """Weight of the document units in between that match nothing."""
    gain: float


def _compare(sentence: Units, free: list[str], document: _Document, number: int) -> _Match | None:
    """Match one document sentence with the keys still free; the explained ones equal no key."""
    lo, hi = document.ranges[number]
    units = document.units
    ours, theirs = list(free), units.keys[lo:hi]
    credits: dict[int, float] = {}
    matched: set[int] = set()
    for factor in (1.0, _OUT_OF_ORDER, _OUT_OF_ORDER):  # later passes find what was moved
        blocks = _common_runs(ours, theirs, sentence, units.weights[lo:hi])
        if not blocks:
            break
        for e, d, size in blocks:
            for k in range(size):
                a, b = sentence.forms[e + k], units.forms[lo + d + k]
                similarity = fuzz.ratio(a, b, score_cutoff=_MIN_SIMILARITY) / 100
                ours[e + k], theirs[d + k] = _EXPLAINED, _USED
                if similarity:
                    credits[e + k] = factor * similarity
                    matched.add(lo + d + k)
    if not credits:
        return None
    first, last = min(matched), max(matched)
    skipped = sum(units.weights[i] for i in range(first, last + 1) if i not in matched)
    whole = sum(units.weights[lo:hi])
    snap = sum(units.weights[i] for i in matched) >= _SNAP_SHARE * whole
    start, end = _snapped(document, first, last, whole=snap)
    weight = sum(credit * sentence.weights[i] for i, credit in credits.items())
    return _Match(start, end, credits, skipped, weight - _GAP_WEIGHT * skipped)


def _common_runs(ours: list[str], theirs: list[str], sentence: Units, weights: list[float]) -> list[_Block]:
    """Runs of equal keys that are more than chance. `weights` are those of `theirs`."""
    blocks = [(b.a, b.b, b.size) for b in LCSseq.editops(ours, theirs).as_matching_blocks() if b.size]

    def weight(block: _Block) -> float:
        return sum(sentence.weights[block[0] : block[0] + block[2]])

    def strong(block: _Block) -> bool:
        first, size = block[0], block[2]
        dense = sum(bool(UNSPACED_CHAR.match(form)) for form in sentence.forms[first : first + size])
        return dense >= 2 or max(sentence.weights[first : first + size]) >= _MIN_BLOCK_WEIGHT

    def near(a: _Block, b: _Block) -> bool:
        return b[0] - a[0] - a[2] <= 2 and b[1] - a[1] - a[2] <= 2

    firm = [strong(block) for block in blocks]
    close = [near(a, b) for a, b in pairwise(blocks)]
    beside = [
        (i > 0 and firm[i - 1] and close[i - 1]) or (i < len(close) and firm[i + 1] and close[i])
        for i in range(len(blocks))
    ]
    kept = [block for block, f, b in zip(blocks, firm, beside, strict=True) if f or b]  # short words: beside only

    def gap(a: _Block, b: _Block) -> float:
        return _GAP_WEIGHT * sum(weights[a[1] + a[2] : b[1]])

    while len(kept) > 1 and weight(kept[0]) < gap(kept[0], kept[1]):
        kept.pop(0)
    while len(kept) > 1 and weight(kept[-1]) < gap(kept[-2], kept[-1]):
        kept.pop()
    return kept


def _candidates(sentence: Units, document: _Document) -> list[int]:
    """The document sentences that share most with the evidence sentence, rare units counting more."""
    shared: dict[int, float] = defaultdict(float)
    weights: dict[str, float] = dict(zip(sentence.keys, sentence.weights, strict=True))
    visited = 0
    for key in sorted(weights, key=lambda key: len(document.postings.get(key, ()))):
        places = document.postings.get(key, [])
        visited += len(places)
        if visited > _MAX_POSTINGS:
            break
        rarity = math.log(1 + len(document.borders) / len(places)) if places else 0.0
        for number in places:
            shared[number] += weights[key] * rarity
    return sorted(shared, key=lambda number: (-shared[number], number))[:_CANDIDATES]


def _cover(sentence: Units, document: _Document, near: int) -> list[_Match]:
    """Greedy: take the stretch that says most of what is not yet explained, while there is one worth it."""
    free = list(sentence.keys)
    total = sum(sentence.weights)
    candidates = _candidates(sentence, document)
    chosen: list[_Match] = []
    while len(chosen) < _MAX_SPANS:
        found = [match for number in candidates if (match := _compare(sentence, free, document, number))]
        best = max(found, key=lambda match: (match.gain, -abs(match.start - near)), default=None)
        if best is None or best.gain < max(_MIN_SPAN_SHARE * total, _MIN_BLOCK_WEIGHT):
            break
        chosen.append(best)
        for unit in best.credits:
            free[unit] = _EXPLAINED
    return _joined(chosen)


def _joined(matches: list[_Match]) -> list[_Match]:
    """In reading order, overlapping stretches made one."""
    joined: list[_Match] = []
    for match in sorted(matches, key=lambda match: (match.start, match.end)):
        if joined and match.start < joined[-1].end:
            last = joined.pop()
            credits, skipped = last.credits | match.credits, last.skipped + match.skipped
            match = _Match(last.start, max(last.end, match.end), credits, skipped, last.gain + match.gain)
        joined.append(match)
    return joined


def _supports(sentence: Units, matches: list[_Match]) -> tuple[list[float], float]:
    """Support of each match for its part of the sentence, and of the sentence (see the module's definition)."""
    owners = {unit: number for number, match in enumerate(matches) for unit in match.credits}
    owned = sorted(owners)
    parts = [0.0] * len(matches)
    for unit, weight in enumerate(sentence.weights):
        at = bisect_left(owned, unit)
        nearest = min(owned[max(0, at - 1) : at + 1], key=lambda other: (abs(other - unit), other))
        parts[owners[nearest]] += weight
    backed = [sum(c * sentence.weights[u] for u, c in match.credits.items()) for match in matches]
    costs = [part + _GAP_WEIGHT * match.skipped for part, match in zip(parts, matches, strict=True)]
    each = [round(min(1.0, b / c), 4) for b, c in zip(backed, costs, strict=True)]
    return each, round(min(1.0, sum(backed) / sum(costs)), 4)


def _approximate(text: str, document: _Document, near: int) -> tuple[tuple[Span, ...], float]:
    if document.work < _WORK_PER_COMPARISON:
        return (), 0.0
    document.work -= _WORK_PER_COMPARISON
    matches = _cover(sentence := units_of(text), document, near)
    while matches:
        each, whole = _supports(sentence, matches)
        if min(*each, whole) >= SUPPORT_FLOOR:
            spans = (Span(start=m.start, end=m.end, support=s) for m, s in zip(matches, each, strict=True))
            return tuple(spans), whole
        del matches[each.index(min(each))]
    return (), 0.0


# --- all sentences ---------------------------------------------------------------------------------------------------


class Aligner:
    """A document prepared once, to which any number of texts are aligned."""

    def __init__(self, document: str, language: str | None = None) -> None:
        self._sent, self._language = normalised(document), language
        self._document = _Document(self._sent.text, plain_sentences(self._sent.text, language))

    def align(self, text: str) -> tuple[EvidenceSentence, ...]:
        """See `align`."""
        self._document.work = _WORK
        ours = normalised(text)
        aligned: list[EvidenceSentence] = []
        near = 0
        for start, end in plain_sentences(ours.text, self._language):
            found, support = _find(ours.text[start:end], self._document, near)
            near = found[-1].end if found else near
            spans = tuple(_as_sent(span, self._sent) for span in found)
            first, last = ours.sent(start, end)
            aligned.append(EvidenceSentence(text=text[first:last], start=first, end=last, spans=spans, support=support))
        return tuple(aligned)


def align(evidence: str, document: str, *, language: str | None = None) -> tuple[EvidenceSentence, ...]:
    """The sentences of the evidence, each with the document spans that back it (support: see the module).

    A sentence that occurs more than once is taken to come from the place nearest to where the sentence before it
    ended. Spans of one sentence are in reading order and do not overlap.
    """
    return Aligner(document, language).align(evidence)


def _find(sentence: str, document: _Document, near: int) -> tuple[tuple[Span, ...], float]:
    exact = _verbatim(sentence, document, near)
    if exact is not None:
        return (Span(start=exact[0], end=exact[1], support=1.0),), 1.0
    return _approximate(sentence, document, near)


def _as_sent(span: Span, document: Normalised) -> Span:
    start, end = document.sent(span.start, span.end)
    return Span(start=start, end=end, support=span.support)
