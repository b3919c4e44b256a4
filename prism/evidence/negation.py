"""Negations: what a written text denies must be denied in the document, and what the document denies may not be stated.

A heuristic of words, for English, German, Russian, Chinese and Japanese. A *denial* is a cue ("not", "without", "kein",
"не", "不", "ない") with what it denies: the content words that follow it in its clause (those before it in Japanese,
and elsewhere where none follow). A written denial is supported if the document denies the same word anywhere; if it
has the word only undenied, or has neither the word nor any cue in the stretches that back the sentence, it is not.
A document's denial is lost if the sentence it backs states the word and the document never states it undenied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prism.evidence.sentences import UNIT, UNSPACED_CHAR
from prism.evidence.words import content_words, stem
from prism.text import straight

CUES = re.compile(
    r"(?<!\w)(?:not(?! only\b| just\b| all\b| to mention\b)|no(?!\.? ?\d| one but)|never|none|nobody|nothing|neither"
    r"|nor|without|cannot|nicht(?! nur\b)|kein\w{0,2}|ohne|nie|niemals|weder|nichts|niemand"
    r"|не(?! только\b)|нет|без|ни|никогда|никто|ничего|нельзя)(?!\w)"
    r"|(?<=n)'t(?!\w)"
    r"|不(?![过過同仅僅断斷但论論久少管料妨禁及得])|[没沒](?!有?[收落错])|无(?![论論疑线線限])|無(?![論料限線])|未(?![来來])|勿|并非|並非"
    r"|(?<=[\u3040-\u30ff\u4e00-\u9fff])(?:ない|なかっ|なく(?!な)|ません|ずに)",
)
"""What denies in a written text."""

_WEAK = re.compile(
    r"(?<!\w)(?:hardly|rarely|seldom|lack\w*|fail\w*|unable|avoid\w*|prevent\w*|refus\w*|instead|rather|except|free"
    r"|forbid\w*|prohibit\w*|disabl\w*|reject\w*|deni\w*|deny\w*|absen\w*|miss\w*|stop\w*|disallow\w*|skip\w*|kaum|statt"
    r"|außer|verhinder\w*|vermeid\w*|fehl\w*|verbiet\w*|verboten|невозможн\w*|отсутств\w*|кроме|запре\w*|лиш\w*)(?!\w)"
    r"|(?<!\w)(?:un|im|in|ir|il|non|dis|не|без|бес)(?=\w{4})|避免|防止|禁止|拒[绝絶]|缺乏|除|非|否|[没沒無无未不]",
)
"""What may amount to a denial in a document; here a wrong one costs less than a missed one."""

_CLAUSE_END = re.compile(r"[.,;:!?()\n，。；：！？（）、]")
_REACH = 6  # units between a cue and what it denies, in a document
_AFTER = re.compile(r"(?<!\w)(?:not|never|no|nicht|nie|нет|не)(?!\w)|(?<=n)'t|ない|なかっ|なく|ません|ずに")
"""Cues that deny what stands before them: "locks are not taken", "блокировок нет"."""
_MOST = 2_000  # words of one kind looked at in a document


class Denial(NamedTuple):
    """`text` is the cue with the first word it denies, as written; `keys` are the denied words' keys, nearest first."""

    text: str
    keys: tuple[str, ...]


def denials(text: str) -> Iterator[Denial]:
    """The denials of a `normalised` text; of a negation that denies nothing in its clause nothing is said."""
    folded = _lower(text)
    for cue in CUES.finditer(folded):
        behind = _clause_behind(folded, cue.end())
        ahead = _clause_ahead(folded, cue.start())
        if _backward(cue[0]):
            dense = ahead[-4:]
            if len(dense) > 1:
                yield Denial(text[cue.start() - len(dense) : cue.end()].strip(), _pairs(dense))
            continue
        if UNSPACED_CHAR.match(cue[0]):
            dense = behind[:4]
            if len(dense) > 1:
                yield Denial(text[cue.start() : cue.end() + 2].strip(), _pairs(dense))
            continue
        after = content_words(behind, framed=True)[:2]
        before = content_words(ahead, framed=True)[-2:]
        if after:
            end = cue.end() + behind.find(after[0].form) + len(after[0].form)
            start = folded.rfind(" ", 0, cue.start()) + 1 if cue[0] == "'t" else cue.start()
            yield Denial(text[start:end], tuple(word.key for word in after))
        elif before and cue[0] in ("not", "'t", "nicht", "не", "нет"):
            start = max(0, cue.start() - len(ahead) + ahead.rfind(before[-1].form))
            yield Denial(text[start : cue.end()], tuple(word.key for word in before[::-1]))


class NegationIndex:
    """Where a `normalised` document has which word, and whether it denies it there."""

    def __init__(self, *texts: str) -> None:
        self._text = "\n".join(_lower(text) for text in texts)
        self._places: dict[str, list[tuple[int, int]]] = {}
        for match in UNIT.finditer(self._text):
            form, (start, end) = match[0], match.span()
            if not UNSPACED_CHAR.match(form):
                self._places.setdefault(stem(form), []).append((start, end))
                continue
            before = self._text[start - 1 : start]
            if before and UNSPACED_CHAR.match(before):
                self._places.setdefault(before + form, []).append((start - 1, end))

    def stance(self, key: str) -> tuple[bool, bool]:
        """Whether the document denies the word somewhere, and whether it states it somewhere."""
        places = self._places.get(key, [])[:_MOST]
        denied = [self.denied(*place) for place in places]
        return any(denied), not all(denied)

    def has(self, key: str) -> bool:
        return key in self._places

    def denied(self, start: int, end: int) -> bool:
        """Whether a cue stands near enough, in the same clause, before the word or (of some cues) after it."""
        before = _clause_ahead(self._text, start)
        after = _clause_behind(self._text, end)
        near = " ".join(before.split()[-_REACH:]) if " " in before else before[-_REACH:]
        beyond = " ".join(after.split()[:4]) if " " in after else after[:_REACH]
        inside = self._text[start:end]
        return bool(
            CUES.search(f"{near} ") or _WEAK.search(near) or _WEAK.match(inside) or _AFTER.search(f" {beyond} ")
        )


def _has_cue(text: str) -> bool:
    folded = _lower(text)
    return bool(CUES.search(folded) or _WEAK.search(folded))


def unsupported(text: str, document: NegationIndex, backed: Sequence[str]) -> list[str]:
    """The denials of one written sentence that the document does not make, as written.

    `backed`: the stretches of the document, normalised, that back the sentence.
    """
    found = []
    for denial in denials(text):
        for key in denial.keys:
            denied, stated = document.stance(key)
            if denied or stated:
                break
        else:
            denied = any(_has_cue(stretch) for stretch in backed)
        if not denied:
            found.append(denial.text)
    return found


def lost(text: str, document: NegationIndex, backed: Sequence[str]) -> list[str]:
    """Denials of the stretches that back a sentence, as the document has them, which the sentence states undenied."""
    own = NegationIndex(text)
    found = []
    for stretch in backed:
        for denial in denials(stretch):
            key = denial.keys[0]
            denied_here, stated_here = own.stance(key)
            if own.has(key) and stated_here and not denied_here and not document.stance(key)[1]:
                found.append(denial.text)
    return found


def _lower(text: str) -> str:
    """Lower case, character for character."""
    lowered = straight(text).lower()
    if len(lowered) != len(text):
        lowered = "".join(low if len(low := c.lower()) == 1 else c for c in straight(text))
    return lowered


def _backward(cue: str) -> bool:
    return cue[0] in "なまず"


def _pairs(dense: str) -> tuple[str, ...]:
    return tuple(dense[i : i + 2] for i in range(len(dense) - 1))


def _clause_behind(text: str, end: int) -> str:
    stop = _CLAUSE_END.search(text, end, end + 120)
    return text[end : stop.start() if stop else end + 120]


def _clause_ahead(text: str, start: int) -> str:
    ahead = text[max(0, start - 120) : start]
    stops = [match.end() for match in _CLAUSE_END.finditer(ahead)]
    return ahead[stops[-1] :] if stops else ahead
