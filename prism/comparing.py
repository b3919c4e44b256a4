"""The passages of one answer, compared: which say the same, which contradict each other, which are held already.

Duplicates are told by evidence, not by document. Conflicts are looked for in the stretches of the documents that back
the evidence, so that their spans are offsets in the documents as sent; evidence that was not checked has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from prism.evidence.compare import Clash, clashes, said_by, same, says_all
from prism.evidence.tokens import ComparedText
from prism.judging import Pair, sort_key
from prism.types import Conflict, Judgment, Place, SameEvidence

MAX_COMPARED = 50
"""Evidence of so many documents, the best, is compared with each other."""
MAX_CONFLICTS = 100
_JOINED = 3  # code points between two spans that are read as one stretch


class Comparison(NamedTuple):
    judgments: list[Judgment]
    """In their order, which is another where evidence turned out to be held."""
    same: tuple[SameEvidence, ...]
    conflicts: tuple[Conflict, ...]
    warnings: list[str]


class _Stretch(NamedTuple):
    """A stretch of a text, prepared; `start` is its offset there."""

    start: int
    passage: ComparedText


class _Side(NamedTuple):
    """One text with the stretches in which it is compared."""

    place: int
    id: str | None
    against: bool
    stretches: list[_Stretch]


def mark_held(pairs: Sequence[Pair], held: Sequence[ComparedText]) -> list[Pair]:
    """The pairs, `held` set where one of these texts says all that the document does."""
    longest = max(len(passage.plain) for passage in held)
    return [
        pair._replace(
            judgment=pair.judgment.model_copy(update={"held": said_by(ComparedText(pair.document.text), held)})
        )
        if pair.windows and len(pair.document.text) <= 1.5 * longest
        else pair
        for pair in pairs
    ]


def compare(judgments: Sequence[Judgment], texts: Mapping[int, str], held: Sequence[ComparedText]) -> Comparison:
    """Compare the evidence of judgments, best first. `texts`: the documents as sent, by index."""
    whole = [j for j in judgments if j.evidence and not (j.check and j.check.broken)]
    passages = {j.index: ComparedText(j.evidence or "") for j in whole[:MAX_COMPARED]}
    known = {index: said_by(passage, held) for index, passage in passages.items()} if held else {}
    ordered = sorted(
        (_with(j, held=known[j.index]) if known.get(j.index) is not None else j for j in judgments), key=sort_key
    )
    compared = [judgment for judgment in ordered if judgment.index in passages]
    sides = [_side(judgment, texts[judgment.index]) for judgment in compared]
    holders = [_Side(at, None, True, [_Stretch(0, passage)]) for at, passage in enumerate(held)]
    found = [*_between(combinations(sides, 2)), *_between((side, other) for side in sides for other in holders)]
    apart = {frozenset((c.left.index, c.right.index)) for c in found if not c.right.against}
    groups = _groups([judgment.index for judgment in compared], passages, apart)
    leads = {index: group for group in groups for index in group}
    by_index = {judgment.index: judgment for judgment in judgments}
    warnings = []
    if len(whole) > MAX_COMPARED:
        warnings.append(f"evidence of the best {MAX_COMPARED} of {len(whole)} documents was compared")
    if len(found) > MAX_CONFLICTS:
        warnings.append(f"{MAX_CONFLICTS} of {len(found)} conflicts are told")
    return Comparison(
        [_grouped(judgment, leads.get(judgment.index, []), by_index) for judgment in ordered],
        tuple(SameEvidence(indices=tuple(g), ids=tuple(by_index[i].id for i in g)) for g in groups if len(g) > 1),
        tuple(found[:MAX_CONFLICTS]),
        warnings,
    )


def _with(judgment: Judgment, **update: object) -> Judgment:
    return judgment.model_copy(update=update)


def _groups(
    indices: Sequence[int], passages: Mapping[int, ComparedText], apart: set[frozenset[int]]
) -> list[list[int]]:
    """Each document in the group of the first better one whose evidence says all that its own does."""
    groups: list[list[int]] = []
    for index in indices:
        for group in groups:
            lead = group[0]
            if any(frozenset((index, other)) in apart for other in group):
                continue
            if same(passages[lead], passages[index]) or says_all(passages[lead], passages[index]):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _grouped(judgment: Judgment, group: Sequence[int], by_index: Mapping[int, Judgment]) -> Judgment:
    if len(group) < 2:
        return judgment
    if judgment.index != group[0]:
        return _with(judgment, same_as=group[0])
    return _with(judgment, also=tuple(by_index[index].id or f"document={index}" for index in group[1:]))


# --- conflicts -------------------------------------------------------------------------------------------------------


def _side(judgment: Judgment, text: str) -> _Side:
    stretches: list[tuple[int, int]] = []
    for span in judgment.spans:
        if stretches and span.start - stretches[-1][1] <= _JOINED:
            stretches[-1] = (stretches[-1][0], span.end)
        else:
            stretches.append((span.start, span.end))
    return _Side(
        judgment.index, judgment.id, False, [_Stretch(start, ComparedText(text[start:end])) for start, end in stretches]
    )


def _between(pairs: Iterator[tuple[_Side, _Side]]) -> Iterator[Conflict]:
    for left, right in pairs:
        for one in left.stretches:
            for other in right.stretches:
                for clash in clashes(one.passage, other.passage):
                    yield _conflict(clash, (left, one), (right, other))


def _conflict(clash: Clash, left: tuple[_Side, _Stretch], right: tuple[_Side, _Stretch]) -> Conflict:
    return Conflict(
        kind=clash.kind,
        left=_place(left, clash.left, clash.left_value),
        right=_place(right, clash.right, clash.right_value),
    )


def _place(where: tuple[_Side, _Stretch], span: tuple[int, int], value: str) -> Place:
    side, stretch = where
    start, end = span[0] + stretch.start, span[1] + stretch.start
    return Place(index=side.place, id=side.id, against=side.against, start=start, end=end, value=value)
