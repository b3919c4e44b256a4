"""Mixing several files into one, in given proportions, each file in a random order of its own."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from prism.data.jsonl import Drops, OnBad, Row, parse_row, reject
from prism.errors import DataError, InputError


def mix(
    weights: Mapping[Path, float], total: int | None, seed: int, drops: Drops, on_bad: OnBad = "fail"
) -> Iterator[Row]:
    """Rows of the files, interleaved so that every stretch of the result has the proportions of `weights`.

    Without `total` the mixture ends when the first file is used up; with it, files that are too short are read again in
    a new order. Only line offsets are held in memory. `mixed_from` names the file of each row.
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
    """Lines of one file in random order, again and again."""

    def __init__(self, path: Path, seed: int, files: ExitStack, drops: Drops, on_bad: OnBad) -> None:
        if path.suffix == ".gz":
            raise InputError(f"{path}: mixing reads lines in random order, which .gz does not allow: unpack it first")
        self._path, self._rng = path, random.Random(seed)
        self._offsets = _offsets(path, drops, on_bad)
        if not self._offsets:
            raise DataError(f"{path}: no records to mix")
        self._order: list[int] = []
        self._rounds = 0
        self._file = files.enter_context(path.open("rb"))

    @property
    def used_up(self) -> bool:
        return self._rounds > 0 and not self._order

    def next(self) -> Row:
        if not self._order:
            self._order = self._rng.sample(range(len(self._offsets)), len(self._offsets))
            self._rounds += 1
        self._file.seek(self._offsets[self._order.pop()])
        return {**parse_row(self._file.readline(), str(self._path)), "mixed_from": self._path.name}


def _offsets(path: Path, drops: Drops, on_bad: OnBad) -> Sequence[int]:
    """Where the well-formed lines start, in bytes."""
    if not path.is_file():
        raise DataError(f"no file {path}: expected a .jsonl file")
    offsets, at = array("q"), 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                if line.strip():
                    parse_row(line, f"{path}:{number}")
                    offsets.append(at)
            except DataError as error:
                reject(error, f"{path}:{number}", drops, on_bad)
            at += len(line)
    return offsets


def parse_weights(files: Sequence[str]) -> dict[Path, float]:
    """`FILE` or `FILE=WEIGHT` each. Raises InputError naming the one that is neither."""
    weights: dict[Path, float] = {}
    for file in files:
        name, _, weight = file.rpartition("=") if "=" in file else (file, "", "1")
        try:
            weights[Path(name)] = float(weight)
        except ValueError as error:
            raise InputError(f"{file}: expected FILE or FILE=WEIGHT") from error
    return weights
