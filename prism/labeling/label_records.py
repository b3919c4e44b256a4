"""Labels from JSONL, such as the `labels.jsonl` of `prism label`: the panel's, and those of each of its jurors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prism.errors import DataError
from prism.files.jsonl import Drops, read_rows
from prism.files.trec import WIDEST, pair_of, read_label
from prism.labeling.label_files import LabelFile, Place, Scale


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
        place = Place(*pair_of(line.row, line.place))
        if place in lines:
            raise DataError(f"{line.place}: this pair stands twice, first in line {lines[place]}: keep one of them")
        lines[place] = int(line.place.rpartition(":")[2])
        votes = line.row.get("votes")
        for name, label in [(None, line.row.get("label")), *(votes.items() if isinstance(votes, Mapping) else ())]:
            if label is not None:
                labels.setdefault(name, {})[place] = read_label(label, line.place, scale)
    if not labels[None]:
        raise DataError(f"{path}: no labels: expected `label` on each line, as in the labels.jsonl of prism label")
    return [LabelFile(panel if name is None else name, path, given, lines) for name, given in labels.items()]
