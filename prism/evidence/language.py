"""Which language a text is in, offline, or None where it does not say.

The script decides where it can (Chinese, Japanese, Korean, Greek, Hindi). For Latin, Cyrillic and Arabic letters
py3langid does: naive Bayes over byte n-grams (Lui and Baldwin 2012, langid.py), 5 MB inside the package, no download.
Short or mixed texts get no answer rather than a guess: a sentence in two languages is nobody's mistake to count.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from prism.text import language_of

MIN_LETTERS = 40
"""Fewer letters of an alphabet are too few to tell two languages that share it."""
MIN_PROBABILITY = 0.95
_BY_SCRIPT = frozenset({"zh", "ja", "ko", "el", "hi"})
"""What the script alone settles."""
_LETTER = re.compile(r"[^\W\d_]")
_NOT_PROSE = re.compile(r"https?://\S+|\S*[_/\\@]\S*|\b[A-Z0-9-]{2,}\b")
"""Addresses, paths, identifiers and acronyms, which are the same in every language."""


def identify(text: str) -> str | None:
    """ISO 639-1 code, or None when there is too little to go by."""
    prose = _NOT_PROSE.sub(" ", text[:5000])
    letters = len(_LETTER.findall(prose))
    by_script = language_of(prose)
    if by_script in _BY_SCRIPT:
        return by_script if letters >= 4 else None
    if letters < MIN_LETTERS:
        return None
    language, probability = _identifier().classify(prose)
    return str(language) if float(probability) >= MIN_PROBABILITY else None


def same_language(text: str, other: str) -> bool | None:
    """Whether two texts are in one language; None when either does not say."""
    first, second = identify(text), identify(other)
    return None if first is None or second is None else first == second


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
