"""Score x length balancing: no teacher score and no document length may dominate the training data.

Records fall into cells of score (equal widths) and length (powers of two of characters). Every cell is cut down to the
same cap; which records of a cell stay is decided by a hash of their id, so it depends on no order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from prism.errors import DataError, InputError
from prism.files.jsonl import Drops, OnBad, Row, read_pairs
from prism.text import stable_id


class Cell(NamedTuple):
    """Where a record falls."""

    score: int
    """Index of the score bin; -1 for records without a score."""
    length: int
    """floor(log2(characters))."""

    def describe(self, bins: int) -> str:
        score = "no score" if self.score < 0 else f"{self.score / bins:.2f}-{(self.score + 1) / bins:.2f}"
        return f"score {score}, {2**self.length}-{2 ** (self.length + 1) - 1} characters"


def cell_of(score: float | None, characters: int, bins: int = 10) -> Cell:
    """The cell of a record. `score` lies in [0, 1]; 1.0 belongs to the last bin."""
    return Cell(-1 if score is None else min(int(score * bins), bins - 1), max(1, characters).bit_length() - 1)


def cap_for(counts: Iterable[int], total: int) -> int:
    """The highest cap with `sum(min(count, cap)) <= total`, at least 1: small cells stay whole, large ones share."""
    if total < 1:
        raise InputError(f"the wanted total must be at least 1, got {total}")
    ordered = sorted(counts)
    left, cells = total, len(ordered)
    for position, count in enumerate(ordered):
        share = left // (cells - position)
        if count > share:
            return max(1, share)
        left -= count
    return max(ordered, default=1)


class Balanced(NamedTuple):
    """What balancing decided."""

    dropped: set[int]
    """Positions of the records to leave out."""
    cap: int
    before: Counter[Cell]
    after: Counter[Cell]


def balance(ids: Sequence[str], cells: Sequence[Cell], *, total: int | None = None, cap: int | None = None) -> Balanced:
    """Cut every cell to `cap` records, or to the cap that leaves about `total` (at most) in all."""
    if (total is None) == (cap is None):
        raise InputError("give either a total or a cap per cell")
    if cap is not None and cap < 1:
        raise InputError(f"the cap per cell must be at least 1, got {cap}")
    before = Counter(cells)
    limit = cap if cap is not None else cap_for(before.values(), total or 0)
    members: dict[Cell, list[tuple[str, int]]] = {}
    for position, (id_, cell) in enumerate(zip(ids, cells, strict=True)):
        members.setdefault(cell, []).append((stable_id("balance", id_), position))
    dropped = {position for found in members.values() for _, position in sorted(found)[limit:]}
    return Balanced(dropped, limit, before, Counter({cell: min(count, limit) for cell, count in before.items()}))


def balance_file(
    path: Path, drops: Drops, on_bad: OnBad, *, total: int | None, cap: int | None
) -> tuple[Iterator[Row], Row]:
    """The rows that stay, and how full the cells were; reads the file twice, holding an id per record."""
    ids: list[str] = []
    cells: list[Cell] = []
    for place, row in read_pairs(path, Drops(), on_bad):
        ids.append(row["id"])
        cells.append(_cell(row, place))
    if not ids:
        raise DataError(f"{path}: no records to balance")
    decided = balance(ids, cells, total=total, cap=cap)
    shown = {cell.describe(10): [n, decided.after[cell]] for cell, n in sorted(decided.before.items())}
    return _kept(path, decided, drops, on_bad), {"cap": decided.cap, "cells": shown}


def _cell(row: Row, place: str) -> Cell:
    score = row.get("teacher_score")
    if score is not None and not (isinstance(score, int | float) and 0.0 <= score <= 1.0):
        raise DataError(f"{place}: teacher_score: expected a number in [0, 1], got {score!r:.40}")
    return cell_of(score, len(row["document"]))


def _kept(path: Path, decided: Balanced, drops: Drops, on_bad: OnBad) -> Iterator[Row]:
    for number, (place, row) in enumerate(read_pairs(path, drops, on_bad)):
        if number in decided.dropped:
            drops.add("its cell of score and length is full", place)
        else:
            yield row
