"""Counting the errors of the comparison of passages, by language and kind of pair (`eval/passage_compare.py`)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from prism.evidence.compare import clashes, same, says_all
from prism.evidence.tokens import ComparedText
from studies.passage_pairs import Made, found_pairs, made_pairs, read_groups, scifact_pairs

Tallies = Mapping[str, Mapping[str, list[int]]]
"""Set of pairs -> kind of error -> how often it happened, how often it could."""
ERRORS = ("false duplicate", "missed duplicate", "false conflict", "missed conflict")


def count(made: Iterator[Made], shown: int) -> dict[str, list[int]]:
    """Kind of error and of pair -> how often it happened, how often it could."""
    found: dict[str, list[int]] = {}
    for what, kind, left, right in made:
        a, b = ComparedText(left), ComparedText(right)
        alike = says_all(a, b) if what == "held" else same(a, b)
        errors = {
            ("missed" if what in ("same", "held") else "false") + " duplicate": alike == (what not in ("same", "held"))
        }
        errors[("missed" if what == "conflict" else "false") + " conflict"] = bool(clashes(a, b)) == (
            what != "conflict"
        )
        for error, wrong in errors.items():
            for name in (error, f"{error}: {kind}"):
                tally = found.setdefault(name, [0, 0])
                tally[0], tally[1] = tally[0] + wrong, tally[1] + 1
                if wrong and ":" in name and tally[0] <= shown:
                    print(f"--- {name}\n  {left!r}\n  {right!r}\n  {clashes(a, b)}")
    return found


def count_all(data: Path, limit: int, half: int = 1, shown: int = 0) -> dict[str, dict[str, list[int]]]:
    """All sets of pairs. `half`: 0 is the one the thresholds were chosen on; `shown`: errors of a kind to print."""
    found = {}
    for language in ("en", "zh", "ja", "de", "ru"):
        groups = list(read_groups(data, language, limit, half))
        found[language] = count(made_pairs(groups, language, random.Random(7)), shown)
    found["en, found"] = count(found_pairs(data, half, limit), shown)
    found["SciFact"] = count(scifact_pairs(data / "beir" / "scifact", half), shown)
    return found


def table(found: Tallies, *, kinds: bool = True) -> list[str]:
    """A Markdown table; without `kinds` the four errors alone."""
    names = sorted({name for rates in found.values() for name in rates}) if kinds else ERRORS
    lines = [f"| | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
    for name in names:
        cells = ("{} of {}".format(*rates[name]) if name in rates else "" for rates in found.values())
        lines.append(f"| {name if ':' in name else f'**{name}**'} | {' | '.join(cells)} |")
    return lines
