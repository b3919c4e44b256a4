"""Reading the checkable facts of a text: URLs (and e-mail addresses, DOIs), dates, code, numbers and proper names.

Nothing here raises for any `str`, and every pattern is linear: no quantifier is nested in another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from prism.evidence.numbers import GAP, GROUP_GAP, NUMBER, SPELT, spelt_value, values
from prism.text import CASED, language_of, normalised, straight

Kind = Literal["number", "date", "url", "code", "name"]
Date = tuple[int | None, int, int | None]  # year, month, day

KINDS: tuple[Kind, ...] = ("url", "date", "code", "number", "name")  # most specific first
_MASK = "\x00"  # stands where a fact was taken, so that no other kind reports the same characters


@dataclass(frozen=True)
class Fact:
    """One thing to look up. Any one of `keys` found in the document supports it."""

    kind: Kind
    text: str
    keys: frozenset[str | Date]


# --- URLs and code ---------------------------------------------------------------------------------------------------

URL = re.compile(
    r"https?://[^\s<>\"'`|\\^{}\x00，。；、（）【】「」《》]+"
    r"|(?<![A-Za-z0-9])10\.[0-9]{4,9}/[^\s<>\"'`\x00，。；、（）]+"
    r"|(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{3,255}"
    r"|(?<![A-Za-z0-9@._/-])[A-Za-z0-9.-]{1,100}\.(?:com|org|net|edu|gov|io|de|cn|ru|eu)"
    r"(?![A-Za-z0-9_(-]|\.[A-Za-z0-9])(?:/[^\s<>\"'`\x00，。；、（）]*)?"
)
_BACKTICKS = re.compile(r"`{1,3}([^`\n\x00]{1,200})`{1,3}")
_CODE_TOKEN = re.compile(r"(?<![A-Za-z0-9_.\\/~$-])[A-Za-z0-9_.\\/~$:-]+(?:\(\))?")
_CAMEL = re.compile(r"^[a-z]{2,40}[0-9]*[A-Z][a-z]")
_DOTTED = re.compile(r"^[A-Za-z_][A-Za-z0-9_]+\.[A-Za-z_][A-Za-z0-9_]")
_FLAG = re.compile(r"^(?:--[A-Za-z]|-[A-Za-z]$)")
_PATH = re.compile(r"^(?:\.{0,2}|~|[A-Za-z]:)[/\\][A-Za-z0-9_.~]")
_FILE = re.compile(r"[/\\][A-Za-z0-9_-]{1,60}\.[A-Za-z0-9]{1,5}$")
_VERSION = re.compile(r"^v[0-9]")


def _url_key(raw: str) -> str:
    key = raw.casefold().removeprefix("https://").removeprefix("http://").removeprefix("www.")
    return key.rstrip("/")


def as_url(match: re.Match[str]) -> Fact | None:
    raw = match[0].rstrip(".,;:!?*_]~")
    if raw.endswith(")") and "(" not in raw:
        raw = raw.rstrip(").,;")
    if "@" in raw and "://" not in raw and "." not in raw.rpartition("@")[2]:
        return None
    return Fact("url", raw, frozenset({_url_key(raw)}))


def _backticked(match: re.Match[str]) -> Fact | None:
    raw = match[1].strip()
    return Fact("code", raw, frozenset({_code_key(raw)})) if raw else None


def _code_key(raw: str) -> str:
    return " ".join(raw.casefold().removesuffix("()").split())


def _code(match: re.Match[str]) -> Fact | None:
    raw = match[0].rstrip(".:-" if not match[0].endswith("()") else "")
    letters = any(c.isalpha() for c in raw)
    inner = raw.strip("_")
    looks = (
        (raw.endswith("()") and letters)
        or ("_" in inner and letters)
        or (raw.startswith("__") and bool(inner) and letters)
        or any(pattern.search(raw) for pattern in (_CAMEL, _DOTTED, _FLAG, _PATH, _FILE, _VERSION))
    )
    return Fact("code", raw, frozenset({_code_key(raw)})) if looks else None


# --- dates -----------------------------------------------------------------------------------------------------------

_MONTH_NAMES = """
January Jan Januar Jänner Январь Января января январь янв
February Feb Februar Feber Февраль Февраля февраля февраль фев
March Mar März Mrz Март Марта марта март мар
April Apr Апрель Апреля апреля апрель апр
May Mai Май Мая мая май
June Jun Juni Июнь Июня июня июнь июн
July Jul Juli Июль Июля июля июль июл
August Aug Август Августа августа август авг
September Sept Sep Сентябрь Сентября сентября сентябрь сен
October Oct Oktober Okt Октябрь Октября октября октябрь окт
November Nov Ноябрь Ноября ноября ноябрь ноя
December Dec Dezember Dez Декабрь Декабря декабря декабрь дек
"""
_MONTHS = {name: number for number, line in enumerate(_MONTH_NAMES.strip().splitlines(), 1) for name in line.split()}
MONTH = "(?:" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + ")"
_DAY = r"(?P<d>\d{1,2})(?:st|nd|rd|th|\.)?"
_YEAR = r"(?P<y>\d{4})(?!\d)"
DATES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<![\w/.-])(?P<y>\d{4})([-/.])(?P<m>\d{1,2})\2(?P<d>\d{1,2})(?![\d/-])",
        rf"(?<![\w/.-])(?P<d>\d{{1,2}})\.\s?(?P<m>\d{{1,2}})\.\s?{_YEAR}",
        rf"(?<![\w/.-])(?P<d>\d{{1,2}})/(?P<m>\d{{1,2}})/{_YEAR}",
        rf"(?<!\d)(?<!\d[.,]){_DAY}\s(?:of\s)?(?P<M>{MONTH})(?!\w)\.?(?:,?\s{_YEAR})?",
        rf"(?<!\w)(?P<M>{MONTH})\.?\s{_DAY}(?!\d)(?:,?\s{_YEAR})?",
        rf"(?<!\w)(?P<M>{MONTH})\.?,?\s{_YEAR}",
        r"(?<!\d)(?P<y>\d{4})\s?[年년]\s?(?P<m>\d{1,2})\s?[月월](?:\s?(?P<d>\d{1,2})\s?[日号號일])?",
        r"(?<!\d)(?P<m>\d{1,2})\s?[月월]\s?(?P<d>\d{1,2})\s?[日号號일]",
    )
)


def as_date(match: re.Match[str]) -> Fact | None:
    parts = match.groupdict()
    year, day = (int(parts[k]) if parts.get(k) else None for k in ("y", "d"))
    month = _MONTHS[parts["M"]] if parts.get("M") else int(parts["m"])
    readings: set[Date] = {(year, month, day)}
    if "/" in match[0] and day is not None and not match[0][:4].isdigit():
        readings.add((year, day, month))  # 3/4/2020 is the third of April or the fourth of March
    keys = {(y, m, d) for y, m, d in readings if 1 <= m <= 12 and (d is None or 1 <= d <= 31)}
    return Fact("date", match[0].strip(" ,."), frozenset(keys)) if keys else None


# --- numbers ---------------------------------------------------------------------------------------------------------


def _number(match: re.Match[str]) -> Fact | None:
    raw = match[0].rstrip(f".,'{GAP}")
    return Fact("number", raw.replace(GAP, " "), values(match))


def _spelt(match: re.Match[str]) -> Fact | None:
    found = spelt_value(match)
    return Fact("number", match[0], found) if found else None


# --- names -----------------------------------------------------------------------------------------------------------

_TITLE = re.compile(r"《([^《》\n\x00]{1,80})》")
WORD = re.compile(rf"[{CASED}][{CASED}0-9\u0300-\u036f'’‑-]*")
_BEFORE_A_NOUN = """
der die das den dem des ein eine einen einem einer eines kein keine keinen keinem keiner dieser diese dieses diesen
diesem jeder jede jedes jeden jedem alle aller allen sein seine seinen seinem seiner ihr ihre ihren ihrem ihrer unser
unsere viele vielen einige einigen mehr mehrere zum zur beim vom ins ans
"""
_NOUN_SUFFIXES = "ung ungen heit heiten keit keiten schaft schaften tion tionen tät täten ismus nis nisse chen"
_ADDRESSES = "dr mr mrs ms prof st sr jr hr fr г ул им"
_DETERMINERS = frozenset(_BEFORE_A_NOUN.split())
_NOUN_ENDINGS = tuple(_NOUN_SUFFIXES.split())
_TITLES_OF_PEOPLE = frozenset(_ADDRESSES.split())


def _title(match: re.Match[str]) -> Fact | None:
    raw = match[1].strip()
    return Fact("name", raw, frozenset({" ".join(raw.casefold().split())})) if raw else None


def _mid_sentence(text: str, start: int) -> bool:
    """Whether a capital at `start` is the writer's choice: only after a word, a comma or the like on the same line."""
    before = text[max(0, start - 20) : start].rstrip(" \t")
    if not before:
        return False
    if before[-1] == ".":
        return before[:-1].rpartition(" ")[2].casefold() in _TITLES_OF_PEOPLE
    return before[-1].isalnum() or before[-1] in ",;)%&/+=" + _MASK


def _marked(word: str) -> bool:
    """Capitals or digits inside: a name wherever it stands (mRNA-1273, NASA), unless it is a shouted heading."""
    return any(c.isdigit() for c in word) or (len(word) <= 6 and any(c.isupper() for c in word[1:]))


def bare(word: str) -> str:
    word = word.rstrip("'’‑-")
    return word[:-2] if word.endswith(("'s", "’s")) else word


def _names(text: str, language: str) -> Iterator[Fact]:
    """Capitalised words, sequences joined. German capitalises every noun: there, words that look like one are left."""
    run: list[str] = []
    last = -1
    before = ""
    for match in WORD.finditer(text):
        word, start = bare(match[0]), match.start()
        joined = bool(run) and language != "de" and start == last + 1 and text[last] == " "
        if run and not joined:
            yield from _name(run)
            run = []
        # Chinese and Japanese have no capitals of their own, so a Latin one counts at the start of a sentence too.
        counts = joined or _marked(word) or language in ("zh", "ja", "ko") or _mid_sentence(text, start)
        noun = language == "de" and (before in _DETERMINERS or word.endswith(_NOUN_ENDINGS)) and not _marked(word)
        skipped = word.split("'")[0].split("’")[0] == "I" or word.casefold() in _TITLES_OF_PEOPLE
        if word[:1].isupper() and counts and not noun and not skipped:
            run.append(word)
        elif run:
            yield from _name(run)
            run = []
        last, before = match.end(), word
    if run:
        yield from _name(run)


def _name(run: list[str]) -> Iterator[Fact]:
    text = " ".join(run)
    if len(text) > 1:  # a single letter is a label, not a name
        yield Fact("name", text, frozenset({text.casefold()}))


def prepared_text(text: str) -> str:
    """As facts are read in it: `normalised`, quotes straight, numbers in groups held together."""
    return GROUP_GAP.sub(GAP, straight(normalised(text).text).replace(_MASK, " "))


def facts(text: str, language: str | None = None) -> tuple[Fact, ...]:
    """The distinct facts of a text, most specific kind first, in reading order within a kind."""
    rest = prepared_text(text)
    language = language or language_of(rest)
    found: dict[tuple[Kind, frozenset[str | Date]], Fact] = {}

    def take(pattern: re.Pattern[str], read: Callable[[re.Match[str]], Fact | None]) -> None:
        nonlocal rest

        def keep(match: re.Match[str]) -> str:
            fact = read(match)
            if fact is None:
                return match[0]
            found.setdefault((fact.kind, fact.keys), fact)
            taken = len(fact.text) if match[0].startswith(fact.text) else len(match[0])
            return _MASK * taken + match[0][taken:]  # a full stop after a URL still ends the sentence

        rest = pattern.sub(keep, rest)

    take(URL, as_url)
    take(_BACKTICKS, _backticked)  # before dates: code may hold one
    for pattern in DATES:
        take(pattern, as_date)
    take(_CODE_TOKEN, _code)
    take(_TITLE, _title)
    take(NUMBER, _number)
    take(SPELT, _spelt)
    for fact in _names(rest, language):
        found.setdefault((fact.kind, fact.keys), fact)
    return tuple(sorted(found.values(), key=lambda fact: KINDS.index(fact.kind)))
