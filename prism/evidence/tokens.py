"""What passages are compared by: the words of each sentence, and its numbers, dates and negations by value.

Offsets are code points of the text as sent. Nothing here raises for any `str`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

from prism.evidence.facts import DATES, MONTH, Date, as_date, prepared_text
from prism.evidence.negation import CUES
from prism.evidence.numbers import NUMBER, values
from prism.evidence.sentences import UNIT, UNSPACED_CHAR, plain_sentences
from prism.evidence.units import weight_of
from prism.evidence.words import functional
from prism.text import CASED, Normalised, normalised

TokenKind = Literal["word", "number", "date", "negation", "label"]

NEGATION = "\x1fnegation"
"""The key of every negation."""
MAX_SENTENCES = 60
"""Of one passage; what comes after is not compared, and no other text says all of such a passage."""

_TELLING_WORDS = """
after before above below under over up down against all each both either more most only until off may must should
could vor nach über unter auf gegen alle nur bis kann do до после над под через только
"""
_TELLING = frozenset(_TELLING_WORDS.split())
"""Function words without which two sentences do not say the same."""
_NUMBER_WORDS = """
two three four five six seven eight nine ten eleven twelve
zwei drei vier fünf sechs sieben acht neun zehn elf zwölf
два три четыре пять шесть семь восемь девять десять
"""
_WORDED = {word: n for line in _NUMBER_WORDS.strip().splitlines() for n, word in enumerate(line.split(), 2)}
_HAN_NUMBER = re.compile(r"[二两兩三四五六七八九十百千]+(?=[年月日天个個名人次岁歳米元倍种種条條位件本座])")
_LABEL_WORDS = """
type phase version chapter section table figure fig part volume no number grade stage class level group season
episode war article step track route line model series act item question page appendix typ teil kapitel abschnitt
tabelle band stufe klasse fall case study trial cohort experiment bezirk зона глава часть раздел тип
"""
_LABELS = frozenset(_LABEL_WORDS.split())
"""Words before a number that names a thing instead of counting."""
_BEFORE_A_YEAR = re.compile(
    r"(?:(?<!\w)(?:in|since|until|by|from|to|of|year|before|after|and|between|during|early|late|around|im|jahr|seit|ab|bis"
    r"|в|с|до|году|год)\s|[(–—-]\s?|^|[.!?。\n]\s?)$",
    re.IGNORECASE,
)
_YEAR_UNIT = re.compile(r"\s?(?:年|г\.|год)")
_CURRENCY = re.compile(r"[$€£¥]\s?$")
_ANY_CASE_MONTH = re.compile(rf"(?i:(?<!\w){MONTH}(?!\w))(?<!\bmay)(?<!\bmar)")
_NAME = re.compile(rf"[{CASED}]")


class Token(NamedTuple):
    """One thing that is said; `start` and `end` are offsets in the normalised text."""

    kind: TokenKind
    key: str
    """Tokens that say the same share it; of numbers and dates it is the value."""
    weight: float
    start: int
    end: int
    fact: bool
    """Whether a passage without it says something else, however much else is alike."""
    values: frozenset[str | Date] = frozenset()
    unit: str = ""

    @property
    def dense(self) -> bool:
        """Whether it is one character of a script without spaces."""
        return len(self.key) == 1 and bool(UNSPACED_CHAR.match(self.key))

    @property
    def inflects(self) -> bool:
        """Whether it is a character of Japanese endings and particles."""
        return len(self.key) == 1 and "\u3041" <= self.key <= "\u309f"

    @property
    def slot(self) -> str:
        """As it is aligned with others: a number or date stands for any of its kind and unit."""
        return f"\x1f{self.kind}{self.unit}" if self.kind in ("number", "date") else self.key


@dataclass(frozen=True)
class Sentence:
    start: int
    end: int
    tokens: tuple[Token, ...]

    @cached_property
    def slots(self) -> list[str]:
        return [token.slot for token in self.tokens if token.kind != "negation"]

    @cached_property
    def stated(self) -> list[Token]:
        """The tokens of `slots`."""
        return [token for token in self.tokens if token.kind != "negation"]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(token.key for token in self.tokens)

    @cached_property
    def words(self) -> frozenset[str]:
        return frozenset(token.key for token in self.tokens if token.kind == "word")


class ComparedText:
    """A text prepared once for all comparisons with others."""

    def __init__(self, text: str) -> None:
        self._normalised: Normalised = normalised(text)
        self.plain = prepared_text(text)
        borders = plain_sentences(self._normalised.text)
        self.whole = len(borders) <= MAX_SENTENCES
        self.sentences = tuple(_cut(borders[:MAX_SENTENCES], _tokens(self.plain)))

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        return tuple(token for sentence in self.sentences for token in sentence.tokens)

    @cached_property
    def keys(self) -> frozenset[str]:
        return frozenset(token.key for token in self.tokens)

    @cached_property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """Keys of tokens that follow each other; before and behind a sentence stands ""."""
        keys = ["", *(token.key for token in self.tokens), ""]
        borders = {pair for s in self.sentences for pair in (("", s.keys[0]), (s.keys[-1], ""))}
        return frozenset(pairwise(keys)) | borders

    @cached_property
    def denied(self) -> frozenset[str]:
        """Keys right behind a negation, in one sentence with it."""
        return frozenset(behind for before, behind in self._within() if before == NEGATION)

    @cached_property
    def affirmed(self) -> frozenset[str]:
        """Keys that stand somewhere without a negation before them."""
        return frozenset(behind for before, behind in self._within() if before != NEGATION)

    def _within(self) -> Iterator[tuple[str, str]]:
        for sentence in self.sentences:
            yield from zip(("", *sentence.keys), sentence.keys, strict=False)

    def sent(self, start: int, end: int) -> tuple[int, int]:
        """The stretch of the text as sent."""
        return self._normalised.sent(start, end)

    def shown(self, start: int, end: int) -> str:
        return self._normalised.text[start:end]


def _cut(borders: list[tuple[int, int]], tokens: list[Token]) -> Iterator[Sentence]:
    at = 0
    for start, end in borders:
        first = at
        while at < len(tokens) and tokens[at].start < end:
            at += 1
        if at > first:
            yield Sentence(start, end, tuple(tokens[first:at]))


def _tokens(text: str) -> list[Token]:
    """All tokens of a `prepared_text`, in reading order."""
    taken = bytearray(len(text))
    found: list[Token] = []

    def free(start: int, end: int) -> bool:
        return not any(taken[start:end])

    def take(token: Token) -> None:
        taken[token.start : token.end] = b"\x01" * (token.end - token.start)
        found.append(token)

    dated = _ANY_CASE_MONTH.sub(lambda match: match[0].title(), text)
    for pattern in DATES:
        for match in pattern.finditer(dated):
            fact = as_date(match)
            if fact and free(*match.span()):
                key = min(fact.keys, key=str)
                take(
                    Token(
                        "date", f"\x1f{key}", 6.0, match.start(), match.start() + len(fact.text), True, fact.keys, "d"
                    )
                )
    for match in NUMBER.finditer(text):
        if free(*match.span()):
            take(_number(match, text))
    for match in _HAN_NUMBER.finditer(text):
        if free(*match.span()):
            value = match[0].translate(str.maketrans("两兩", "二二"))
            unit = text[match.end()]
            take(Token("number", f"\x1f{value}", 4.0, *match.span(), True, frozenset({value}), unit))
    folded = text.lower() if len(text.lower()) == len(text) else text
    for match in CUES.finditer(folded):
        if free(*match.span()):
            take(Token("negation", NEGATION, 4.0, *match.span(), True))
    for match in UNIT.finditer(text):
        if free(*match.span()) and (token := _word(match, text)):
            found.append(token)
    return sorted(found, key=lambda token: token.start)


def _number(match: re.Match[str], text: str) -> Token:
    raw = match[0].rstrip(".,'\u2063")
    start, end = match.start(), match.start() + len(raw)
    known = values(match)
    value = min(known, key=lambda v: ("." in v, v))
    if _is_year(value, raw, text, start, end):
        return Token("date", f"\x1f{value}", 6.0, start, end, True, frozenset({(int(value), 0, None)}), "y")
    before = re.search(r"([^\W\d]+)[\s.-]?$", text[max(0, start - 30) : start])
    unit = _unit(raw, text, start, end)
    if before and _names(before[1], unit):
        return Token("label", f"\x1f{value}", 4.0, start, end, True)
    return Token("number", f"\x1f{value}{'%' * (unit == '%')}", 4.0, start, end, True, frozenset(known), unit)


def _is_year(value: str, raw: str, text: str, start: int, end: int) -> bool:
    if not (raw.isdecimal() and len(raw) == 4 and 1000 <= int(value) <= 2100):
        return False
    return bool(_BEFORE_A_YEAR.search(text[max(0, start - 12) : start]) or _YEAR_UNIT.match(text, end))


def _names(before: str, unit: str) -> bool:
    """Whether a number behind this word is part of a name ("type 2", "Apollo 11") and counts nothing."""
    if UNSPACED_CHAR.match(before[-1]):
        return before[-1] in "第号型"
    return before.lower() in _LABELS or (not unit and before[0].isupper() and not functional(before.lower()))


def _unit(raw: str, text: str, start: int, end: int) -> str:
    """What a number counts, as it is compared: a sign, a currency, the word or character behind it."""
    if raw.endswith("%"):
        return "%"
    if money := _CURRENCY.search(text[max(0, start - 2) : start]):
        return money[0].strip()
    match = UNIT.match(text, end + 1 if text[end : end + 1] in (" ", "-") else end)
    if match is None or match[0][0].isdigit():
        return ""
    form = match[0].lower()
    return "" if functional(form) else _key(form)


def _word(match: re.Match[str], text: str) -> Token | None:
    raw = match[0]
    form = raw.casefold()
    if form in _WORDED:
        unit = _unit(raw, text, *match.span())
        value = str(_WORDED[form])
        return Token("number", f"\x1f{value}", 4.0, *match.span(), True, frozenset({value}), unit)
    if functional(form) and form not in _TELLING:
        return None
    begins = not text[: match.start()].rstrip(" \"'([") or text[: match.start()].rstrip(" \"'([")[-1] in ".!?:\n"
    fact = any(c.isdigit() for c in raw) or (
        bool(_NAME.match(raw)) and raw[0].isupper() and not begins and not functional(form)
    )
    return Token("word", _key(form), weight_of(form), *match.span(), fact)


def _key(form: str) -> str:
    """What the forms of one word share."""
    if not form.isalpha() or UNSPACED_CHAR.match(form):
        return form
    return form[:6] if len(form) > 6 else form.removesuffix("s") if len(form) > 3 else form
