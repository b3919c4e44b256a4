"""Tokenized rows as Arrow: written part by part, mapped into memory by every process that trains, cut out as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prism.errors import DataError

IGNORED = -100
"""torch's cross-entropy skips this label."""
SCHEMA = pa.schema(
    [
        ("input_ids", pa.large_list(pa.int32())),
        ("weights", pa.large_list(pa.float32())),
        ("label_position", pa.int32()),
        ("teacher_score", pa.float64()),
        ("query", pa.int32()),
    ]
)
"""The fields of `Row`."""


class Row(NamedTuple):
    """One training sequence, not yet padded."""

    input_ids: NDArray[np.int32]
    """[tokens]."""
    label_position: int
    """Where the label stands; the logits one step before it are the score."""
    teacher_score: float
    """NaN when the record does not distil."""
    query: int
    """Equal for the documents of one query."""
    weights: NDArray[np.float32]
    """[tokens from the label to the end]: what the cross-entropy of each counts. 0: the token is no target.

    The label counts where no teacher scores it; with a soft teacher its cross-entropy would fight the distillation.
    """

    @property
    def labels(self) -> NDArray[np.int32]:
        """[tokens]: cross-entropy targets; IGNORED where nothing counts."""
        targets = np.full_like(self.input_ids, IGNORED)
        counted = np.flatnonzero(self.weights) + self.label_position
        targets[counted] = self.input_ids[counted]
        return targets


def part_of(rows: Sequence[Row]) -> pa.RecordBatch:
    """Rows as one Arrow record batch: four bytes a token, and what a row has besides."""

    def flat(name: str, dtype: type) -> Any:
        parts = [getattr(row, name) for row in rows]
        ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        values = np.concatenate([np.empty(0, dtype), *parts])
        return pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values))

    columns = [
        flat("input_ids", np.int32),
        flat("weights", np.float32),
        pa.array(np.array([row.label_position for row in rows], np.int32)),
        pa.array(np.array([row.teacher_score for row in rows], np.float64), from_pandas=False),
        pa.array(np.array([row.query for row in rows], np.int32)),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


class Rows:
    """Rows in the order of the records. Tokens stay where they lie and are looked up one row at a time; what all of
    them is asked for at once (lengths, queries, teacher scores) is one array each, [rows]."""

    def __init__(self, parts: Sequence[pa.RecordBatch]) -> None:
        """`parts`: record batches of `SCHEMA`, in memory or mapped."""
        self._ids = [_Lists(part.column("input_ids")) for part in parts]
        self._weights = [_Lists(part.column("weights")) for part in parts]
        self._starts = np.cumsum([0, *(part.num_rows for part in parts)])
        self.lengths: NDArray[np.int32] = _joined([np.diff(ids.offsets) for ids in self._ids], np.int32)
        self.label_positions: NDArray[np.int32] = _column(parts, "label_position", np.int32)
        self.teacher_scores: NDArray[np.float64] = _column(parts, "teacher_score", np.float64)
        self.queries: NDArray[np.int32] = _column(parts, "query", np.int32)

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Rows:
        """Rows that are held in memory."""
        return cls([part_of(rows)])

    @classmethod
    def open(cls, path: Path) -> Rows:
        """A file of `SCHEMA`, mapped: its pages are shared by all processes that read them. Raises DataError."""
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            return cls([reader.get_batch(number) for number in range(reader.num_record_batches)])
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise DataError(f"{path} holds no tokenized records ({' '.join(str(error).split())}): delete it") from error

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Row]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Row:
        """Raises IndexError beyond the last row."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        place = index - int(self._starts[part])
        return Row(
            input_ids=self._ids[part][place],
            label_position=int(self.label_positions[index]),
            teacher_score=float(self.teacher_scores[index]),
            query=int(self.queries[index]),
            weights=self._weights[part][place],
        )

    @property
    def targets(self) -> int:
        """Tokens whose cross-entropy counts."""
        return sum(int(np.count_nonzero(weights.values)) for weights in self._weights)


class _Lists:
    """A column of lists as arrays that nothing was copied into."""

    def __init__(self, column: Any) -> None:
        self.offsets: NDArray[np.int64] = column.offsets.to_numpy()
        self.values: NDArray[Any] = column.values.to_numpy()

    def __getitem__(self, place: int) -> NDArray[Any]:
        return self.values[self.offsets[place] : self.offsets[place + 1]]


def _column(parts: Sequence[pa.RecordBatch], name: str, dtype: type) -> NDArray[Any]:
    return _joined([part.column(name).to_numpy(zero_copy_only=True) for part in parts], dtype)


def _joined(arrays: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    """A copy in memory: what is sorted and summed over and over does not hang on a file."""
    return np.concatenate([np.empty(0, dtype), *arrays], dtype=dtype, casting="same_kind")
