"""Plain functions on text that even `prism --help` can afford to import."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

_SURROGATES = re.compile("[\ud800-\udfff]")
# Control characters but tab and newline, line and paragraph separators, bidirectional overrides, lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

INVISIBLE = (
    "\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb"
    "\U000e0001-\U000e01ef"
)
"""Soft hyphens, zero-width and direction marks, variation selectors, tags: as the inside of a character class."""

MARKS = "".join(
    chr(c)
    for block in (range(0x300, 0x3100), range(0xA66F, 0xAC00), range(0xFE20, 0xFE30))
    for c in block
    if unicodedata.category(chr(c)).startswith("M")
)
"""Combining marks of the living scripts; `\\w` leaves them out, words must not."""

# What may melt into the character before it: marks, vowels and finals of Hangul, half-width voicing marks.
_FOLLOWS = f"{MARKS}\u1160-\u11ff\ud7b0-\ud7ff\u3131-\u3163\uff9e-\uffdc"
# Most of what is written: letters and signs that are as plain as they can be, unless something melts into them.
_STABLE = (
    "\x00-\x7f«»À-ıĴ-ľŁ-ňŊ-žƀ-ƺΆΈ-ΊΌΎ-ΡΣ-ώЀ-҂Ҋ-ԯא-תء-ؿف-ي\u0904-\u0939–—"
    "、。「」『』《》【】\u3041-\u3096\u30a1-\u30fe\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
)
_CLUSTER = re.compile(
    rf"(?s)(?P<stable>[{_STABLE}]+)(?![{INVISIBLE}]*[{_FOLLOWS}])|[{INVISIBLE}]+|\s|.(?:[{INVISIBLE}]*[{_FOLLOWS}])*"
)
_HIDDEN = re.compile(f"[{INVISIBLE}]+")
_MOST_FOLLOWING = 30  # normalising a long run of marks takes quadratic time: the rest of it is dropped
_QUOTES = str.maketrans("‘’‚‛′ʼ“”„‟″", "''''''\"\"\"\"\"")
_HYPHENS = str.maketrans("‐‑−", "---")
_RAISED = re.compile("[²³¹⁰-⁹₀-₉]")
_LIST_COMMA = re.compile(r"，(?!\d{3}(?!\d))")


class Normalised(NamedTuple):
    """A text in its plainest spelling, and where each of its characters comes from in the text as sent."""

    text: str
    starts: Sequence[int]
    """For each character of `text`: where what became of it begins in the text as sent."""
    ends: Sequence[int]

    def sent(self, start: int, end: int) -> tuple[int, int]:
        """The stretch of the text as sent that became `text[start:end]`; `start` < `end`."""
        return self.starts[start], self.ends[end - 1]


def normalised(text: str) -> Normalised:
    """NFKC, without what cannot be seen, hyphens and minus signs as "-": spellings that read alike become one.

    What NFKC would spoil is kept: "…" is not the end of three sentences, a comma of full width in a list of numbers
    (3，5) is none of a decimal, a raised digit behind a digit (10², 2019³) none of the number. Quotes stay as they are,
    since curly ones tell where a quotation ends: see `straight`. Takes time linear in the length; raises for no `str`.
    """
    text = clean(text)
    if text.isascii():
        return Normalised(text, range(len(text)), range(1, len(text) + 1))
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for match in _CLUSTER.finditer(text):
        start, end = match.span()
        raw = match[0]
        if match["stable"]:
            pieces.append(raw)
            starts.extend(range(start, end))
            ends.extend(range(start + 1, end + 1))
            continue
        plain = _plain(raw, text, start, pieces)
        pieces.append(plain)
        starts.extend([start] * len(plain))
        ends.extend([end] * len(plain))
    return Normalised("".join(pieces), starts, ends)


def _plain(raw: str, text: str, start: int, before: Sequence[str]) -> str:
    """One cluster of `text`, beginning at `start`, in its plainest spelling; `before` is what stands before it."""
    if before and before[-1][-1:].isdecimal():
        if raw == "，" and _LIST_COMMA.match(text, start):
            return ", "
        if _RAISED.match(raw):
            return "^" + _spelt(raw)
    return _spelt(raw)


@lru_cache(maxsize=4096)
def _spelt(raw: str) -> str:
    if raw == "…":
        return raw
    return unicodedata.normalize("NFKC", _HIDDEN.sub("", raw)[:_MOST_FOLLOWING]).translate(_HYPHENS)


def straight(text: str) -> str:
    """Curly quotes and apostrophes as they stand on a keyboard, one for one."""
    return text.translate(_QUOTES)


def titled(text: str, title: str | None) -> str:
    """The title above the text, as the template shows a document: for models that know no title."""
    return f"{title}\n{text}" if title else text


def clean(text: str) -> str:
    """Lone surrogates, which no tokenizer or UTF-8 stream accepts, become U+FFFD one for one: offsets stay right."""
    return _SURROGATES.sub("\ufffd", text)


def clean_all(value: Any) -> Any:
    """`clean` on every text in what JSON gave."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [clean_all(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): clean_all(item) for key, item in value.items()}
    return value


def printable(text: str) -> str:
    """Text that can only be read: what could steer a terminal becomes U+FFFD, one for one, so offsets stay right."""
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r", " "))


def as_id(value: object) -> str:
    """An id as text: a string as it is, a whole number (`1.0` is 1) in digits. Raises ValueError for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:  # beyond, floats skip whole numbers
        return str(int(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError("expected a string or a whole number")


def stable_id(*parts: str) -> str:
    """16 hexadecimal digits that depend on the parts alone."""
    return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "replace"), digest_size=8).hexdigest()


# --- scripts and languages --------------------------------------------------------------------------------------------

CASED = "A-Za-zÀ-ÖØ-öø-ʯͰ-ϿЀ-ԯḀ-ỿἀ-῿"
"""Scripts with capitals, as the inside of a character class; `\\w` would swallow Chinese around a Latin name."""
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Scripts that put no spaces between words, as the inside of a character class."""

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
LANGUAGES = frozenset(code for code, _ in _SCRIPTS)
"""Those that `language_of` tells by their letters, not by a vote of words."""


def require_languages(names: Iterable[str]) -> None:
    """Raises ValueError for a name that is none of `LANGUAGES`."""
    if unknown := sorted(set(names) - LANGUAGES):
        raise ValueError(
            f"no language that its letters tell is {unknown[0][:40]!r}: expected {', '.join(sorted(LANGUAGES))}"
        )


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
