"""Labels from JSONL, such as the `labels.jsonl` of `prism label`: the panel's, and those of each of its jurors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prism.data.jsonl import Drops, read_rows
from prism.errors import DataError
from prism.labeling.label_files import WIDEST, LabelFile, Place, Scale
from prism.text import stable_id

RECORDS = (".jsonl", ".ndjson")
"""Endings of such files."""


def read_records(path: Path, scale: Scale = WIDEST) -> list[LabelFile]:
    """The lines' own `label` first, then one file for each juror in their `votes`, in the order of first mention.

    A pair is named by `query_id` and `doc_id`, or by `query` and `document`: two files must name it in one way. Lines
    whose label is null are passed over, as a vote that failed. Raises DataError for anything else that is not a label
    on the scale, and for a pair that stands twice.
    """
    panel = path.name.rpartition(".")[0]
    labels: dict[str | None, dict[Place, int]] = {None: {}}
    lines: dict[Place, int] = {}
    for line in read_rows(path, Drops()):
        place = _place(line.row, line.place)
        if place in lines:
            raise DataError(f"{line.place}: this pair stands twice, first in line {lines[place]}: keep one of them")
        lines[place] = int(line.place.rpartition(":")[2])
        votes = line.row.get("votes")
        for name, label in [(None, line.row.get("label")), *(votes.items() if isinstance(votes, Mapping) else ())]:
            if label is not None:
                labels.setdefault(name, {})[place] = _label(label, scale, line.place)
    if not labels[None]:
        raise DataError(f"{path}: no labels: expected `label` on each line, as in the labels.jsonl of prism label")
    return [LabelFile(panel if name is None else name, path, given, lines) for name, given in labels.items()]


def _place(row: Mapping[str, Any], where: str) -> Place:
    query = row.get("query_id") or row.get("query")
    document = row.get("doc_id")
    if document is None and isinstance(row.get("document"), str):
        document = stable_id(row["document"])
    if query is None or document is None:
        raise DataError(f"{where}: no pair named: expected query_id and doc_id, or query and document")
    return Place(str(query), str(document))


def _label(value: object, scale: Scale, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where}: label {value!r} is not a whole number: fix the line")
    if not scale[0] <= value <= scale[1]:
        raise DataError(f"{where}: label {value} is off the scale {scale[0]} to {scale[1]}: fix the line")
    return value
