"""Mixing several files into one, in given proportions, each file in a random order of its own."""

from __future__ import annotations

import math
import random
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from prism.errors import DataError, InputError
from prism.files.jsonl import Drops, OnBad, Row, dumps, parse_row, read_rows


def mix(
    weights: Mapping[Path, float], total: int | None, seed: int, drops: Drops, on_bad: OnBad = "fail"
) -> Iterator[Row]:
    """Rows of the files, interleaved so that every stretch of the result has the proportions of `weights`.

    Without `total` the mixture ends when the first file is used up; with it, files that are too short are read again in
    a new order. Only offsets are held in memory. `mixed_from` names the file of each row.
    """
    if not weights or any(weight <= 0 for weight in weights.values()):
        raise InputError("give at least one file, each with a weight above 0")
    with ExitStack() as files:
        streams = [_Shuffled(path, seed + number, files, drops, on_bad) for number, path in enumerate(weights)]
        shares = list(weights.values())
        taken = [0] * len(streams)
        while total is None or sum(taken) < total:
            # The file that is furthest behind its share comes next; the first of equals, so the result never varies.
            choice = min(range(len(streams)), key=lambda index: (taken[index] + 1) / shares[index])
            if total is None and streams[choice].used_up:
                return
            yield streams[choice].next()
            taken[choice] += 1


class _Shuffled:
    """Records of one file in random order, again and again. They are copied to disk first, so a file may be packed."""

    def __init__(self, path: Path, seed: int, files: ExitStack, drops: Drops, on_bad: OnBad) -> None:
        self._path, self._rng = path, random.Random(seed)
        self._file = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # the stack closes it
        self._starts = array("q")
        for _, row in read_rows(path, drops, on_bad):
            self._starts.append(self._file.tell())
            self._file.write(dumps(row).encode() + b"\n")
        if not self._starts:
            raise DataError(f"{path}: no records to mix")
        self._order: list[int] = []
        self._rounds = 0

    @property
    def used_up(self) -> bool:
        return self._rounds > 0 and not self._order

    def next(self) -> Row:
        if not self._order:
            self._order = self._rng.sample(range(len(self._starts)), len(self._starts))
            self._rounds += 1
        self._file.seek(self._starts[self._order.pop()])
        return {**parse_row(self._file.readline(), str(self._path)), "mixed_from": self._path.name}


def parse_weights(files: Sequence[str]) -> dict[Path, float]:
    """`FILE` or `FILE=WEIGHT` each. Raises InputError naming the one that is neither."""
    weights: dict[Path, float] = {}
    for file in files:
        name, _, weight = file.rpartition("=") if "=" in file else (file, "", "1")
        try:
            weights[Path(name)] = float(weight)
        except ValueError as error:
            raise InputError(f"{file}: expected FILE or FILE=WEIGHT") from error
        if not math.isfinite(weights[Path(name)]):
            raise InputError(f"{file}: the weight is no number: expected one above 0")
    return weights
