"""Scripts, and which language a text is in. Texts are `normalised`; nothing here raises for any `str`."""

from __future__ import annotations

import re

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
