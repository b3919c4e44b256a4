"""Fidelity: whether the checkable facts of a written text occur in the document it was written about.

Wording is compared after NFKC normalisation and case folding, dates and numbers by value. A fact that is absent is
reported, not judged: a correct sum of two numbers of the document is absent too. Nothing here raises for any `str`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from itertools import islice

from prism.evidence.facts import (
    DATES,
    KINDS,
    URL,
    WORD,
    Date,
    Fact,
    Kind,
    as_date,
    as_url,
    bare,
    facts,
    prepared_text,
)
from prism.evidence.numbers import ANY_NUMBER, GAP, spelt_values, values
from prism.evidence.words import shared_start
from prism.text import language_of
from prism.types import Fidelity, Unsupported

MAX_FACTS = 5_000
"""Distinct facts looked up per text; what comes after is not checked, so that hostile text stays cheap."""


class Haystack:
    """A text in which facts are looked up, prepared once. `language` decides how far a name's ending may differ."""

    def __init__(self, text: str, language: str | None = None) -> None:
        prepared = prepared_text(text)
        plain = prepared.replace(GAP, " ")
        self.source = text
        self.language = language or language_of(plain)
        self.text = " ".join(plain.casefold().split())
        self.urls = {key for m in URL.finditer(plain) if (fact := as_url(m)) for key in fact.keys}
        self.dates: set[Date] = set()
        self.numbers = spelt_values(plain)
        for source in (plain, prepared.replace(GAP, "")):  # "5 300" may be one number or two
            for match in ANY_NUMBER.finditer(source):
                self.numbers |= values(match)
        for pattern in DATES:
            for match in pattern.finditer(plain):
                self._add_date(as_date(match))
        self.words: dict[str, dict[str, None]] = {}
        for match in WORD.finditer(plain):
            for word in (bare(match[0]), *re.split("['’‑-][0-9]*", match[0])):
                self.words.setdefault(_plain_word(word)[:3], {})[_plain_word(word)] = None

    def _add_date(self, fact: Fact | None) -> None:
        for key in fact.keys if fact else ():
            if isinstance(key, tuple):
                year, month, day = key
                # A date of the text may be less precise than the document's, never more.
                self.dates |= {key, (None, month, day), (year, month, None)}
                self.numbers |= {str(part) for part in (year, day) if part is not None}

    @cached_property
    def facts(self) -> set[tuple[Kind, frozenset[str | Date]]]:
        """The text's own facts, read as a written text's are: whatever is copied is found, however odd its borders."""
        return {(fact.kind, fact.keys) for fact in facts(self.source, self.language)}

    def has(self, fact: Fact) -> bool:
        return self._finds(fact) or (fact.kind, fact.keys) in self.facts

    def _finds(self, fact: Fact) -> bool:
        if fact.kind == "url":
            return not fact.keys.isdisjoint(self.urls)
        if fact.kind == "date":
            return not fact.keys.isdisjoint(self.dates)
        if fact.kind == "number":
            return not fact.keys.isdisjoint(self.numbers)
        key = str(next(iter(fact.keys)))
        if fact.kind == "name" and all(WORD.fullmatch(word) for word in fact.text.split(" ")):
            return all(self._knows(word) for word in fact.text.split(" "))
        return _occurs(key, self.text)

    def _knows(self, word: str) -> bool:
        plain = _plain_word(word)
        bucket = self.words.get(plain[:3], {})
        if plain in bucket:
            return True
        parts = re.split("[-‑]", word)
        if len(parts) > 1:
            return all(self._knows(part) if part[:1].isupper() else part.isalpha() for part in parts if part)
        exact = any(c.isdigit() for c in word) or (word.isupper() and len(word) > 1)
        return not exact and any(_inflected(plain, other, self.language) for other in islice(bucket, 1_000))


def _plain_word(word: str) -> str:
    return word.casefold().replace("ё", "е")


def _inflected(word: str, other: str, language: str) -> bool:
    """Whether two words differ in their endings only: a longer one anywhere, an exchanged one in Russian."""
    shared = shared_start(word, other)
    rest = max(len(word), len(other)) - shared
    if language == "ru":
        return shared >= 3 and rest <= 3 and shared * 2 > max(len(word), len(other))
    if language == "de" and shared == len(word) and shared >= 4:
        return True  # the head of a compound: "Berlin" in "Berlinwahl"
    return shared >= 3 and rest <= 3 and shared == min(len(word), len(other))


def _occurs(needle: str, hay: str) -> bool:
    """Whether `needle` occurs in `hay` without cutting a word or a number at either end (50 places are tried)."""
    at = -1
    for _ in range(50):
        at = hay.find(needle, at + 1)
        if at < 0:
            return False
        if not _glued(hay, at) and not _glued(hay, at + len(needle)):
            return True
    return False


def _glued(hay: str, at: int) -> bool:
    return 0 < at < len(hay) and all(c == "_" or (c.isascii() and c.isalnum()) for c in hay[at - 1 : at + 1])


def verify(texts: Iterable[tuple[tuple[Fact, ...], tuple[Haystack, ...]]]) -> Fidelity:
    """Look up the facts of one or more texts, each in its own haystacks; a fact two texts share is counted once."""
    seen: dict[tuple[Kind, frozenset[str | Date]], bool] = {}
    shown: dict[tuple[Kind, frozenset[str | Date]], Fact] = {}
    for text_facts, haystacks in texts:
        for fact in text_facts[:MAX_FACTS]:
            key = (fact.kind, fact.keys)
            shown.setdefault(key, fact)
            seen[key] = seen.get(key, True) and any(hay.has(fact) for hay in haystacks)
    absent = sorted((shown[key] for key, found in seen.items() if not found), key=lambda f: KINDS.index(f.kind))
    return Fidelity(checked=len(seen), unsupported=tuple(Unsupported(kind=f.kind, text=f.text) for f in absent))


def fidelity(text: str, document: str, *, query: str | None = None, language: str | None = None) -> Fidelity:
    """Look up every fact of `text` in the document and, if given, the query.

    A number is compared by value ("1,000" is "1000", "3.5" is "3,5", "three years" has 3), without its unit. A date may
    be less precise than the document's and written in another format. A URL is compared whole, without its scheme. Code
    must occur whole. A name is supported when each of its words occurs, give or take an inflected ending.
    """
    haystacks = tuple(Haystack(source, language) for source in (document, query) if source is not None)
    return verify([(facts(text, language), haystacks)])
