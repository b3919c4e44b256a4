"""Whether an answer is right, as SQuAD counts it, in languages with and without spaces between words.

Normalisation, exact match and token F1 follow SQuAD v1.1's official script (Rajpurkar et al. 2016, section 6.1): lower
case, without punctuation and the articles a, an and the; F1 over bags of words, the best of the right answers counts. A
character of a script without spaces is a word of its own, as in CMRC 2018 (Cui et al. 2019, section 4.1), whose F1 goes
by the longest common subsequence instead of the bag.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from prism.text import UNSPACED

_ARTICLES = frozenset({"a", "an", "the"})
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def answer_words(text: str) -> list[str]:
    """The normalised words of an answer."""
    lowered = unicodedata.normalize("NFKC", text).lower()
    plain = "".join(c for c in lowered if unicodedata.category(c)[0] != "P" and c not in "$+<=>^`|~")
    return [word for word in _WORD.findall(plain) if word not in _ARTICLES]


def exact_match(answer: str, right: Iterable[str]) -> float:
    """1.0 if the answer is one of the right ones but for normalisation, else 0.0."""
    given = answer_words(answer)
    return float(any(given == answer_words(one) for one in right))


def token_f1(answer: str, right: Iterable[str]) -> float:
    """Largest harmonic mean of word precision and recall; 0.0 when nothing is shared."""
    return max((_f1(answer_words(answer), answer_words(one)) for one in right), default=0.0)


def _f1(given: Sequence[str], right: Sequence[str]) -> float:
    if not given or not right:
        return float(given == right)
    shared = (Counter(given) & Counter(right)).total()
    return 2 * shared / (len(given) + len(right))


def contains_answer(text: str, right: Iterable[str]) -> bool:
    """Whether the words of a right answer stand in the text, one after another. An answer without words never does."""
    hay = f" {' '.join(answer_words(text))} "
    return any(f" {' '.join(found)} " in hay for one in right if (found := answer_words(one)))
