"""Capitals for what a lower-case model wrote: words as the document or the query spells them, sentences from the top.

A small model that reads lower case only spends its vocabulary on words instead of their spellings, and finds
"powershell" in "PowerShell". What it writes is mostly words it read, so their capitals stand in the prompt.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from prism.sentences import UNSPACED

_PART = rf"[^\W_{UNSPACED}]+"
_WORD = re.compile(rf"{_PART}(?:['’.\-_]{_PART})*")
_PARTS = re.compile(_PART)
_OPENING = re.compile(r"(?:\A|(?<=[.!?]\s))[^\W\d_]")
_AHEAD = re.compile(r"(?:\A|[.!?:]\s|\n)[\s\W]*\Z")
"""What stands before the first word of a sentence."""
_LOOK_BACK = 8


def restore(written: str, sources: Iterable[str]) -> str:
    """`written` with each word spelled as in the first source that has it, there as it mostly is.

    Sentences begin with a capital. Compounds are looked up whole, then part by part; words no source has stay as they
    are.
    """
    known: dict[str, str] = {}
    for source in sources:
        known = _spellings(source) | known
    spelt = _WORD.sub(lambda word: known.get(word[0].lower()) or _by_parts(word[0], known), written)
    return _OPENING.sub(lambda letter: letter[0].upper(), spelt)


def _by_parts(word: str, known: dict[str, str]) -> str:
    return _PARTS.sub(lambda part: known.get(part[0].lower(), part[0]), word)


def _spellings(source: str) -> dict[str, str]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for word in _words(source):
        counts[word.lower()][word] += 1
    return {word: spellings.most_common(1)[0][0] for word, spellings in counts.items()}


def _words(source: str) -> Iterator[str]:
    """Words and their parts. A first word with nothing but a first capital tells nothing: sentences begin so."""
    for match in _WORD.finditer(source):
        word = match[0]
        start = match.start()
        if word.istitle() and _AHEAD.search(source[max(0, start - _LOOK_BACK) : start]):
            continue
        yield word
        parts = _PARTS.findall(word)
        if len(parts) > 1:
            yield from parts
