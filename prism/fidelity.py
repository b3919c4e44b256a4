"""Fidelity: whether the checkable facts of a written text occur in the document it was written about.

Five kinds of fact are looked up: URLs (and e-mail addresses, DOIs), dates, code, numbers and proper names. Wording is
compared after NFKC normalisation and case folding, dates and numbers by value. A fact that is absent is reported, not
judged: a correct sum of two numbers of the document is absent too.

Nothing here raises for any `str`, and every pattern is linear: no quantifier is nested in another.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal

from prism.text import clean
from prism.types import Fidelity, Unsupported

Kind = Literal["number", "date", "url", "code", "name"]
Date = tuple[int | None, int, int | None]  # year, month, day

MAX_FACTS = 5_000
"""Distinct facts looked up per text; what comes after is not checked, so that hostile text stays cheap."""

_KINDS: tuple[Kind, ...] = ("url", "date", "code", "number", "name")  # most specific first
_MASK = "\x00"  # stands where a fact was taken, so that no other kind reports the same characters

MARKS = "".join(
    chr(c)
    for block in (range(0x300, 0x3100), range(0xA66F, 0xAC00), range(0xFE00, 0xFE30))
    for c in block
    if unicodedata.category(chr(c)).startswith("M")
)
"""Combining marks of the living scripts; `\\w` leaves them out, words must not."""

_MARK_RUN = re.compile(f"(?<=[{MARKS}]{{8}})[{MARKS}]+")
_CASED = "A-Za-zÀ-ÖØ-öø-ʯͰ-ϿЀ-ԯḀ-ỿἀ-῿"  # scripts with capitals; \w would swallow Chinese around a Latin name

_ENGLISH = "the and of to is that for with was are on by this from it as be have not which were has at or an they"
_GERMAN = (
    "der die das und ist nicht ein eine von mit den dem des auf für im am zu sich werden wird nach bei war wurde hat "
    "sind durch über als auch er sie wie aus kam"
)
_STOP_WORDS = {"en": frozenset(_ENGLISH.split()), "de": frozenset(_GERMAN.split())}
_SCRIPTS = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("zh", re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")),
    ("ko", re.compile("[\uac00-\ud7af\u1100-\u11ff]")),
    ("ru", re.compile("[\u0400-\u04ff]")),
    ("ar", re.compile("[\u0600-\u06ff\u0750-\u077f]")),
    ("hi", re.compile("[\u0900-\u097f]")),
    ("el", re.compile("[\u0370-\u03ff]")),
)
_LATIN = re.compile("[A-Za-zÀ-ɏ]")


def language_of(text: str) -> str:
    """The language to treat a text as: by script, and between German and English by a vote of stop words."""
    sample = text[:20_000]
    counts = {code: len(pattern.findall(sample)) for code, pattern in _SCRIPTS}
    if counts["ja"] * 20 > counts["zh"]:  # Japanese writes Han too: kana decide
        counts["ja"] += counts["zh"]
    best = max(counts, key=lambda code: counts[code])
    # A Han or Hangul character says about as much as three Latin letters.
    if counts[best] * (3 if best in ("zh", "ja", "ko") else 1) > len(_LATIN.findall(sample)):
        return best
    words = re.findall(r"[^\W\d_]+", sample.lower())
    votes = {code: sum(word in stop for word in words) for code, stop in _STOP_WORDS.items()}
    german_letters = sum(sample.count(letter) for letter in "äöüß")
    return "de" if votes["de"] + min(german_letters, 2) > votes["en"] else "en"


def fold(text: str) -> str:
    """NFKC and case folding. Long runs of combining marks are cut: normalising them takes quadratic time."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", _MARK_RUN.sub("", text)).casefold()


@dataclass(frozen=True)
class Fact:
    """One thing to look up. Any one of `keys` found in the document supports it."""

    kind: Kind
    text: str
    keys: frozenset[str | Date]


# --- URLs and code ---------------------------------------------------------------------------------------------------

_URL = re.compile(
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
    key = fold(raw).removeprefix("https://").removeprefix("http://").removeprefix("www.")
    return key.rstrip("/")


def _url(match: re.Match[str]) -> Fact | None:
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
    return " ".join(fold(raw).removesuffix("()").split())


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
_DATES = tuple(
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


def _date(match: re.Match[str]) -> Fact | None:
    parts = match.groupdict()
    year, day = (int(parts[k]) if parts.get(k) else None for k in ("y", "d"))
    month = _MONTHS[parts["M"]] if parts.get("M") else int(parts["m"])
    readings: set[Date] = {(year, month, day)}
    if "/" in match[0] and day is not None and not match[0][:4].isdigit():
        readings.add((year, day, month))  # 3/4/2020 is the third of April or the fourth of March
    keys = {(y, m, d) for y, m, d in readings if 1 <= m <= 12 and (d is None or 1 <= d <= 31)}
    return Fact("date", match[0].strip(" ,."), frozenset(keys)) if keys else None


# --- numbers ---------------------------------------------------------------------------------------------------------

_GROUP_GAP = re.compile(r"(?<=\d)(?<!\d{4})[ \u00a0\u202f\u2009](?=\d{3}(?!\d))")  # 10 000
_GAP = "\u2063"
_NUMBER = re.compile(rf"(?<![{_CASED}\d_])(?<!\d[.,'’])(?<![{_CASED}][-‑])\d[\d.,'’{_GAP}]*(?:\s?%)?")
_ANY_NUMBER = re.compile(r"\d[\d.,'’]*")
_LIST_COMMA = re.compile(r"，(?!\d{3}(?!\d))")


def _readings(raw: str) -> frozenset[str]:
    """The values a written number may have, as plain decimal strings: "1,500" is 1500 or 1.500."""
    digits = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in raw if c in ".," or c.isdecimal())
    digits = digits.rstrip(".,")
    marks = [c for c in digits if c in ".,"]
    groups = digits.replace(",", ".").split(".")
    grouped = all(len(group) == 3 for group in groups[1:]) and 1 <= len(groups[0]) <= 3 and groups[0] != "0"
    if not marks:
        return frozenset({_whole(digits)})
    if len(marks) == 1:
        # Three decimals keep their zeros: otherwise "1,000" would be read as 1.
        decimals = groups[1] if len(groups[1]) == 3 else groups[1].rstrip("0")
        value = _whole(groups[0]) + ("." + decimals if decimals else "")
        return frozenset({value, _whole("".join(groups))}) if grouped else frozenset({value})
    if len(set(marks)) == 1:
        return frozenset({_whole("".join(groups)) if grouped else ".".join(groups)})  # 1.000.000, or a version
    if marks[-1] in marks[:-1]:
        return frozenset({digits})
    return _readings("".join(groups[:-1]) + "." + groups[-1]) - {_whole("".join(groups))}


def _whole(digits: str) -> str:
    return digits.lstrip("0") or "0"


def _number(match: re.Match[str]) -> Fact | None:
    raw = match[0].rstrip(f".,'’{_GAP}")
    return Fact("number", raw.replace(_GAP, " "), frozenset(_readings(raw)))


# --- names -----------------------------------------------------------------------------------------------------------

_TITLE = re.compile(r"《([^《》\n\x00]{1,80})》")
_WORD = re.compile(rf"[{_CASED}][{_CASED}0-9\u0300-\u036f'’‑-]*")
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
    return Fact("name", raw, frozenset({" ".join(fold(raw).split())})) if raw else None


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


def _bare(word: str) -> str:
    word = word.rstrip("'’‑-")
    return word[:-2] if word.endswith(("'s", "’s")) else word


def _names(text: str, language: str) -> Iterator[Fact]:
    """Capitalised words, sequences joined. German capitalises every noun: there, words that look like one are left."""
    run: list[str] = []
    last = -1
    before = ""
    for match in _WORD.finditer(text):
        word, start = _bare(match[0]), match.start()
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
        yield Fact("name", text, frozenset({fold(text)}))


# --- looking up ------------------------------------------------------------------------------------------------------


def _prepare(text: str) -> str:
    spaced = _LIST_COMMA.sub(", ", clean(text))  # NFKC would glue "3，5人" into a decimal
    if not spaced.isascii():
        # 《 and 》 survive NFKC; the gap mark is ours, so the text may not bring its own.
        spaced = unicodedata.normalize("NFKC", _MARK_RUN.sub("", spaced)).replace(_GAP, "")
    return _GROUP_GAP.sub(_GAP, spaced.replace(_MASK, " "))


def facts(text: str, language: str | None = None) -> tuple[Fact, ...]:
    """The distinct facts of a text, most specific kind first, in reading order within a kind."""
    rest = _prepare(text)
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

    take(_URL, _url)
    take(_BACKTICKS, _backticked)  # before dates: code may hold one
    for pattern in _DATES:
        take(pattern, _date)
    take(_CODE_TOKEN, _code)
    take(_TITLE, _title)
    take(_NUMBER, _number)
    for fact in _names(rest, language or language_of(text)):
        found.setdefault((fact.kind, fact.keys), fact)
    return tuple(sorted(found.values(), key=lambda fact: _KINDS.index(fact.kind)))


class Haystack:
    """A text in which facts are looked up, prepared once. `language` decides how far a name's ending may differ."""

    def __init__(self, text: str, language: str | None = None) -> None:
        prepared = _prepare(text)
        plain = prepared.replace(_GAP, " ")
        self.source = text
        self.language = language or language_of(text)
        self.text = " ".join(fold(plain).split())
        self.urls = {key for m in _URL.finditer(plain) if (fact := _url(m)) for key in fact.keys}
        self.dates: set[Date] = set()
        self.numbers: set[str] = set()
        for source in (plain, prepared.replace(_GAP, "")):  # "5 300" may be one number or two
            for match in _ANY_NUMBER.finditer(source):
                self.numbers |= _readings(match[0])
        for pattern in _DATES:
            for match in pattern.finditer(plain):
                self._add_date(_date(match))
        self.words: dict[str, dict[str, None]] = {}
        for match in _WORD.finditer(plain):
            for word in (_bare(match[0]), *re.split("['’‑-][0-9]*", match[0])):
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
        if fact.kind == "name" and all(_WORD.fullmatch(word) for word in fact.text.split(" ")):
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
    return fold(word).replace("ё", "е")


def _inflected(word: str, other: str, language: str) -> bool:
    """Whether two words differ in their endings only: a longer one anywhere, an exchanged one in Russian."""
    shared = 0
    for a, b in zip(word, other, strict=False):
        if a != b:
            break
        shared += 1
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
    absent = sorted((shown[key] for key, found in seen.items() if not found), key=lambda f: _KINDS.index(f.kind))
    return Fidelity(checked=len(seen), unsupported=tuple(Unsupported(kind=f.kind, text=f.text) for f in absent))


def fidelity(text: str, document: str, *, query: str | None = None, language: str | None = None) -> Fidelity:
    """Look up every fact of `text` in the document and, if given, the query.

    A number is compared by value ("1,000" is "1000", "3.5" is "3,5"), without its unit. A date may be less precise
    than the document's and written in another format. A URL is compared whole, without its scheme. Code must occur
    whole. A name is supported when each of its words occurs, give or take an inflected ending.
    """
    haystacks = tuple(Haystack(source, language) for source in (document, query) if source is not None)
    return verify([(facts(text, language), haystacks)])
