"""Passages compared with each other: which say the same, which contradict each other, which add something.

A heuristic of words and values, without a model; `docs/how-to/passages.md` says how often it is wrong.

same        What one passage says the other says too, both ways: each word, number, date and negation of one stands in
            the other beside the same neighbour. Spelling, punctuation, number and date formats and the order of
            clauses do not matter. A few words that one puts in do not either, unless they are facts.
conflict    Two sentences that agree in nearly all their words, and differ in one value: a number with the same unit, a
            date, a negation, a yes against a no. If either passage has the other's sentence as well, or says several
            such sentences with different values (a table), there is no conflict.

Nothing here raises for any `str`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from rapidfuzz.distance import LCSseq

from prism.evidence.tokens import ComparedText, Sentence, Token

ClashKind = Literal["number", "date", "negation", "answer"]

PUT_IN = 0.15
"""Share of a passage's weight that words may have which only it has."""
ALIKE = 0.75
"""Share of the shorter sentence's words that two sentences must share to be about one thing."""
_REPLACED = 0.05
"""Share of the weight that single words may have which stand in place of others."""
_LONGER = 0.75
"""Weight that the longer sentence may have beyond what both share, as a share of that."""
_FEWEST_WORDS = 3
_MOST_TOKENS = 120  # of a sentence that is aligned; longer ones are lists

_POINTS_BACK = re.compile(
    r"\W*(?:(?:he|she|it|they|his|her|its|their|this|these|that|those|er|sie|es|dies\w*|он|она|оно|они|это\w*)(?!\w)"
    r"|[他她它其这這该該此]|彼|その|この|これ|それ)",
    re.IGNORECASE,
)
_ANSWER = re.compile(
    r"\s*(?:(?P<yes>yes|ja(?!\w)|да|是的|对的|はい)|(?P<no>no|nein|нет|不是|不对|いいえ))\s*[,.;:!，。、！]",
    re.IGNORECASE,
)


class Clash(NamedTuple):
    """Two sentences that contradict each other: offsets in the texts as sent, and the values as written."""

    kind: ClashKind
    left: tuple[int, int]
    right: tuple[int, int]
    left_value: str
    """Empty where the other side alone denies."""
    right_value: str

    def turned(self) -> Clash:
        return Clash(self.kind, self.right, self.left, self.right_value, self.left_value)


# --- same ------------------------------------------------------------------------------------------------------------


def same(left: ComparedText, right: ComparedText) -> bool:
    """Whether each says what the other says. Symmetric; every passage is the same as itself."""
    if left.plain == right.plain:
        return True
    return _covers(left, right) and _covers(right, left) and not clashes(left, right)


def says_all(holder: ComparedText, other: ComparedText) -> bool:
    """Whether `holder` says everything that `other` says."""
    return holder.plain == other.plain or (_covers(holder, other) and not clashes(holder, other))


def _covers(holder: ComparedText, other: ComparedText) -> bool:
    tokens = other.tokens
    if not tokens or not other.whole or len(other.keys - holder.keys) > len(other.keys) * 0.3:
        return False
    if not _same_polarity(holder, other):
        return False
    total = sum(token.weight for token in tokens)
    unsaid = replaced = 0.0
    for run, before, behind in _unsaid_runs(holder, other):
        instead = (before, behind) not in holder.pairs
        if any(token.fact for token in run) or (instead and len(run) > 1):
            return False
        weight = sum(token.weight for token in run)
        unsaid += weight
        replaced += weight * instead
    return unsaid <= PUT_IN * total and replaced <= _REPLACED * total


def _same_polarity(holder: ComparedText, other: ComparedText) -> bool:
    """Whether `holder` denies what `other` denies, and states what it states."""
    if not (other.denied & holder.keys) <= holder.denied:
        return False
    return not (other.affirmed & holder.denied) - holder.affirmed


def _unsaid_runs(holder: ComparedText, other: ComparedText) -> Iterator[tuple[list[Token], str, str]]:
    """Runs of tokens that `holder` does not have beside a neighbour of theirs, with the keys before and behind."""
    keys = ["", *(token.key for token in other.tokens), ""]
    first = {sentence.tokens[0].start for sentence in other.sentences}
    last = {sentence.tokens[-1].start for sentence in other.sentences}
    run: list[Token] = []
    before = ""
    for at, token in enumerate(other.tokens):
        one, this, behind = keys[at : at + 3]
        said = not holder.pairs.isdisjoint({(one, this), (this, behind)})
        if token.start in first and token.start in last:  # a sentence of one word
            said = said or this in holder.keys
        if said:
            if run:
                yield run, before, this
            run, before = [], this
        else:
            run.append(token)
    if run:
        yield run, before, ""


def said_by(text: ComparedText, held: Sequence[ComparedText]) -> int | None:
    """The first of `held` that says everything `text` says."""
    return next((at for at, each in enumerate(held) if same(each, text) or says_all(each, text)), None)


# --- conflicts -------------------------------------------------------------------------------------------------------


def clashes(left: ComparedText, right: ComparedText) -> tuple[Clash, ...]:
    """Where two passages contradict each other, in reading order of the left. Symmetric; none with itself."""
    if left.plain > right.plain:  # one order for both, since of several alignments one is taken
        return tuple(sorted((clash.turned() for clash in clashes(right, left)), key=lambda clash: clash.left))
    theirs = {sentence.keys for sentence in right.sentences}
    ours = {sentence.keys for sentence in left.sentences}
    lone_left = [sentence for sentence in left.sentences if sentence.keys not in theirs]
    lone_right = [sentence for sentence in right.sentences if sentence.keys not in ours]
    found: list[Clash] = []
    for a in lone_left:
        for b in lone_right:
            clash = _clash(left, a, right, b) if _may_clash(a, b) else None
            if clash and _same_setting(left, a, right, b) and not _listed(left, a) and not _listed(right, b):
                found.append(clash)
    return tuple(sorted(found, key=lambda clash: clash.left))


def _may_clash(a: Sentence, b: Sentence) -> bool:
    fewest = min(len(a.words), len(b.words))
    return len(a.words & b.words) >= max(2, ALIKE * fewest * 0.8) and max(len(a.slots), len(b.slots)) <= _MOST_TOKENS


def _listed(passage: ComparedText, sentence: Sentence) -> bool:
    """Whether the passage says such a sentence with other values too: then it is one row of several."""
    others = (each for each in passage.sentences if each.keys != sentence.keys)
    return any(_may_clash(sentence, each) and _clash(passage, sentence, passage, each) for each in others)


def _same_setting(left: ComparedText, a: Sentence, right: ComparedText, b: Sentence) -> bool:
    """Whether the sentences before let two sentences speak of one thing: "It weighs 3 kg" says it of what?"""
    places = left.sentences.index(a), right.sentences.index(b)
    if 0 in places:
        return True
    before = _align(left.sentences[places[0] - 1], right.sentences[places[1] - 1])
    lost = [sum(token.weight for token in before.alone(side)) for side in (0, 1)]
    if _POINTS_BACK.match(left.shown(a.start, a.end)):
        return before.shared >= max(lost) and before.one_subject
    named = any(token.fact and token.kind == "word" for token in a.tokens)
    definite = left.shown(a.start, a.start + 4).lower() == "the "
    return (named and not definite) or before.shared < max(lost) or before.one_subject


class _Aligned(NamedTuple):
    """Two sentences token by token: what matches, and what of either stands in no match, gap by gap."""

    matched: list[tuple[Token, Token]]
    gaps: list[tuple[list[Token], list[Token]]]

    @property
    def shared(self) -> float:
        return sum(a.weight for a, _ in self.matched if a.kind == "word")

    @property
    def one_subject(self) -> bool:
        """Whether no name, and no more than a word, stands in another's place."""
        replaced = [gap for gap in self.gaps if gap[0] and gap[1] and not all(t.inflects for s in gap for t in s)]
        return not any(max(map(len, gap)) > 1 or any(t.fact for side in gap for t in side) for gap in replaced)

    def alone(self, side: int) -> list[Token]:
        return [token for gap in self.gaps for token in gap[side]]


def _align(a: Sentence, b: Sentence) -> _Aligned:
    matched: list[tuple[Token, Token]] = []
    gaps: list[tuple[list[Token], list[Token]]] = [([], [])]
    for code in LCSseq.opcodes(a.slots, b.slots):
        ours, theirs = a.stated[code.src_start : code.src_end], b.stated[code.dest_start : code.dest_end]
        if code.tag == "equal":
            matched += zip(ours, theirs, strict=True)
            gaps.append(([], []))
        else:
            gaps[-1][0].extend(ours)
            gaps[-1][1].extend(theirs)
    return _Aligned(matched, [gap for gap in gaps if gap[0] or gap[1]])


def _clash(left: ComparedText, a: Sentence, right: ComparedText, b: Sentence) -> Clash | None:
    aligned = _align(a, b)
    if not _about_one_thing(aligned):
        return None
    different = [(x, y) for x, y in aligned.matched if _differ(x, y)]
    denials = _only_denied(a, b), _only_denied(b, a)
    kind: ClashKind
    if len(different) == 1 and denials == ([], []):
        x, y = different[0]
        kind = "date" if x.kind == "date" else "number"
        values = left.shown(x.start, x.end), right.shown(y.start, y.end)
    elif not different and _opposite_answers(left, a, right, b):
        kind, values = "answer", (_first_word(left, a), _first_word(right, b))
    elif (
        not different
        and len(denials[0]) + len(denials[1]) == 1
        and _denies(denials, aligned, (right, b) if denials[0] else (left, a))
    ):
        kind = "negation"
        shown = [
            passage.shown(found[0].start, found[0].end) if found else ""
            for passage, found in zip((left, right), denials, strict=True)
        ]
        values = shown[0], shown[1]
    else:
        return None
    return Clash(kind, left.sent(a.start, a.end), right.sent(b.start, b.end), *values)


def _differ(x: Token, y: Token) -> bool:
    """Whether two values cannot be the same. A date may be less precise than the other."""
    if x.kind != "date":
        return bool(x.values) and x.values.isdisjoint(y.values)
    return not any(
        all(p == q or not (p and q) for p, q in zip(one, other, strict=True)) for one in x.values for other in y.values
    )


def _about_one_thing(aligned: _Aligned) -> bool:
    """Whether two sentences agree in nearly all their words, and in all that name something."""
    alone = aligned.alone(0), aligned.alone(1)
    lost = [sum(token.weight for token in tokens) for tokens in alone]
    shared = aligned.shared
    words = sum(0.5 if a.dense else 1.0 for a, _ in aligned.matched if a.kind == "word")
    if words < _FEWEST_WORDS or shared < ALIKE * (shared + min(lost)) or max(lost) > _LONGER * shared:
        return False
    if any(token.fact for token in alone[0]) and any(token.fact for token in alone[1]):
        return False
    singles = [gap for gap in aligned.gaps if gap[0] and gap[1]]
    return aligned.one_subject and sum(max(x[0].weight, y[0].weight) for x, y in singles) <= _REPLACED * shared


def _only_denied(a: Sentence, b: Sentence) -> list[Token]:
    """The negations of `a` beyond those that `b` has."""
    own = [token for token in a.tokens if token.kind == "negation"]
    other = sum(token.kind == "negation" for token in b.tokens)
    return own[other:]


def _denies(denials: tuple[list[Token], list[Token]], aligned: _Aligned, other: tuple[ComparedText, Sentence]) -> bool:
    """Whether what the lone negation denies is in both sentences, and no cut took the negation from the `other`."""
    side = 0 if denials[0] else 1
    cue = denials[side][0]
    behind = [pair[side] for pair in aligned.matched if pair[side].start >= cue.end]
    lone = [token for token in aligned.alone(side) if token.start >= cue.end]
    if lone and (not behind or lone[0].start < behind[0].start):
        return False
    leads = not any(pair[side].end <= cue.start for pair in aligned.matched)
    passage, sentence = other
    begins = passage.shown(sentence.start, sentence.start + 1)
    return not (leads and sentence is passage.sentences[0] and not begins.isupper())


def _opposite_answers(left: ComparedText, a: Sentence, right: ComparedText, b: Sentence) -> bool:
    answers = _ANSWER.match(left.shown(a.start, a.end)), _ANSWER.match(right.shown(b.start, b.end))
    return bool(answers[0] and answers[1] and bool(answers[0]["yes"]) != bool(answers[1]["yes"]))


def _first_word(passage: ComparedText, sentence: Sentence) -> str:
    match = _ANSWER.match(passage.shown(sentence.start, sentence.end))
    return match[0].strip(" ,.;:!，。、！") if match else ""
