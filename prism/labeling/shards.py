"""A pairs file cut into shards that workers elsewhere read for themselves, by place and length in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from prism.errors import DataError
from prism.labeling.label_pairs import LabelPair, LineReader, scan
from prism.labeling.voting import PairCounts
from prism.types import Record


class Shard(Record):
    """Some lines of a pairs file."""

    number: int
    start: int
    """Bytes before its first line."""
    size: int
    """Bytes."""
    first_line: int
    """Counted from 1."""
    skip: tuple[int, ...] = ()
    """Lines in it that are no pair, or a pair that stood further up."""


def cut_into_shards(path: Path, lines: int, counts: PairCounts, limit: int | None = None) -> list[Shard]:
    """Parts of at most so many lines, as far as the first `limit` pairs; `counts` learns what the lines are.

    In memory are some hundred bytes for each shard, and a number for each line to skip. Raises DataError.
    """
    shards: list[Shard] = []
    start = size = 0
    first, number = 1, 0
    skip: list[int] = []

    def close() -> None:
        nonlocal start, size, first, skip
        shards.append(Shard(number=len(shards), start=start, size=size, first_line=first, skip=tuple(skip)))
        start, size, first, skip = start + size, 0, number + 1, []

    for number, (line, item) in enumerate(scan(path), start=1):
        if isinstance(item, LabelPair) and counts.pairs == limit:
            break
        if item is not None:
            counts.note(item)
            if not isinstance(item, LabelPair):
                skip.append(number)
        size += len(line)
        if number - first + 1 == lines:
            close()
    if size:
        close()
    return shards


def read_shard(path: Path, shard: Shard) -> Iterator[LabelPair]:
    """The pairs of a shard. Raises DataError when the file is not the one that was cut."""
    skip = frozenset(shard.skip)
    try:
        with path.open("rb") as file:
            file.seek(shard.start)
            lines = BytesIO(file.read(shard.size))
    except OSError as error:
        raise DataError(f"{path}: {error}: pairs must lie where every worker can read them") from error
    read = LineReader(path)
    for number, line in enumerate(lines, start=shard.first_line):
        pair = None if number in skip else read(number, line)
        if isinstance(pair, LabelPair):
            yield pair
        elif pair is not None:
            raise DataError(f"{path}:{number}: changed since the run began: leave the file alone, and run again")
