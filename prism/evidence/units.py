"""Units: what texts are compared by. See `spans` for how they are weighed and matched."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prism.evidence.sentences import UNIT, UNSPACED_CHAR
from prism.text import straight


@dataclass(frozen=True)
class Units:
    """The units of a text: folded form, key (forms that differ in their endings share it), weight, offsets."""

    forms: list[str]
    keys: list[str]
    weights: list[float]
    starts: list[int]
    ends: list[int]


def units_of(text: str) -> Units:
    units = Units([], [], [], [], [])
    for match in UNIT.finditer(text):
        form = match[0].casefold()
        units.forms.append(form)
        units.keys.append(form[:4] if len(form) > 4 and form.isalpha() else form)
        units.weights.append(weight_of(form))
        units.starts.append(match.start())
        units.ends.append(match.end())
    return units


def weight_of(form: str) -> float:
    if form[-1:].isdigit() and not form[0].isalpha():
        return float(min(max(len(form), 4), 8))
    return 2.0 if UNSPACED_CHAR.match(form) else float(min(len(form), 8))


def flattened(text: str) -> tuple[str, list[int], list[int]]:
    """Lower case with single spaces, one character for each kept; and where each word starts in it and in `text`."""
    text = straight(text)
    lowered = text.lower()
    if len(lowered) != len(text):  # a few capitals become two characters: those keep their case
        lowered = "".join(low if len(low := c.lower()) == 1 else c for c in text)
    lowered = lowered.replace("ς", "σ")  # which of the two `lower` gives depends on what follows
    words, here, there, length = [], [], [], 0
    for match in re.finditer(r"\S+", lowered):
        words.append(match[0])
        here.append(length)
        there.append(match.start())
        length += len(match[0]) + 1
    return " ".join(words), here, there
