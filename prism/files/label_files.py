"""Label files: who judged which pair how, read strictly, and lined up pair by pair.

Four columns `query 0 document label` (TREC qrels) or three `query document label` (BEIR), separated by tabs throughout
or by spaces throughout, with or without a header line; or JSONL as `prism label` writes it
(`read_records`). Every complaint is one line that names the file and the line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prism.errors import DataError, InputError
from prism.files.jsonl import Drops, read_rows
from prism.files.lines import is_json
from prism.files.trec import WIDEST, judged_lines, pair_of, read_label

Scale = tuple[int, int]
"""Lowest and highest label."""


class PairIds(NamedTuple):
    """A pair: query id and document id."""

    query: str
    document: str


@dataclass(frozen=True, slots=True)
class LabelFile:
    """One judge's labels."""

    name: str
    """The file's name without its ending."""
    path: Path
    labels: Mapping[PairIds, int]
    """In the order of the file."""
    lines: Mapping[PairIds, int]
    """Where each pair stands, for messages about it."""

    def outside(self, scale: Scale) -> list[PairIds]:
        """Pairs whose label is off the scale, in the order of the file."""
        return [place for place, label in self.labels.items() if not scale[0] <= label <= scale[1]]

    def scale(self) -> Scale:
        """Lowest and highest label in the file."""
        return min(self.labels.values()), max(self.labels.values())


def read_labels(path: Path, scale: Scale | None = None) -> LabelFile:
    """Read one label file.

    `scale` is what labels may be; without it anything that can be a label (`WIDEST`) is taken. Raises DataError for a
    missing or empty file, text that is not UTF-8, wrong columns, separators that change, a label that is not a whole
    number or is off the scale, and a pair that stands twice. JSONL: as `read_records` says.
    """
    if is_json(path):
        return read_records(path, scale or WIDEST)[0]
    labels: dict[PairIds, int] = {}
    lines: dict[PairIds, int] = {}
    for where, judged in judged_lines(path, scale or WIDEST):
        place = PairIds(judged.query, judged.document)
        if place in labels:
            raise DataError(
                f"{where}: query {_short(place.query)} document {_short(place.document)} stands twice,"
                f" first in line {lines[place]}: keep one of them"
            )
        labels[place] = judged.label
        lines[place] = int(where.rpartition(":")[2])
    if not labels:
        raise DataError(f"{path}: no labels: expected lines `query 0 document label` or `query document label`")
    return LabelFile(name=path.name.rpartition(".")[0] or path.name, path=path, labels=labels, lines=lines)


def read_records(path: Path, scale: Scale = WIDEST) -> list[LabelFile]:
    """The lines' own `label` first, then one file for each juror in their `votes` and `observed`, as first mentioned.

    A pair is named by `query_id` and `doc_id`, or by `query` and `document`: two files must name it in one way. Lines
    whose label is null are passed over, as a vote that failed. Raises DataError for anything else that is not a label
    on the scale, and for a pair that stands twice.
    """
    panel = path.name.rpartition(".")[0]
    labels: dict[str | None, dict[PairIds, int]] = {None: {}}
    lines: dict[PairIds, int] = {}
    for line in read_rows(path, Drops()):
        place = PairIds(*pair_of(line.row, line.place))
        if place in lines:
            raise DataError(f"{line.place}: this pair stands twice, first in line {lines[place]}: keep one of them")
        lines[place] = int(line.place.rpartition(":")[2])
        votes = [found.items() for key in ("votes", "observed") if isinstance(found := line.row.get(key), Mapping)]
        for name, label in [(None, line.row.get("label")), *chain.from_iterable(votes)]:
            if label is not None:
                labels.setdefault(name, {})[place] = read_label(label, line.place, scale)
    if not labels[None]:
        raise DataError(f"{path}: no labels: expected `label` on each line, as in the labels.jsonl of prism label")
    return [LabelFile(panel if name is None else name, path, given, lines) for name, given in labels.items()]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


# --- lined up --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LabelTable:
    """Labels of several judges for the pairs that the first of them, the reference, judged; sorted by query."""

    names: tuple[str, ...]
    """R judges."""
    queries: tuple[str, ...]
    """Q query ids, in the order of the reference."""
    query_of: NDArray[np.int64]
    """Index into `queries` for each of P pairs, ascending."""
    votes: NDArray[np.float64]
    """P x R labels; NaN where a judge has none for the pair."""
    left_out: tuple[int, ...]
    """For each judge, how many of its pairs the reference does not have."""

    def limited(self, queries: int) -> LabelTable:
        """The first `queries` queries only."""
        if queries < 1:
            raise InputError(f"a limit of {queries} queries leaves nothing: expected at least 1")
        kept = self.query_of < queries
        return LabelTable(
            names=self.names,
            queries=self.queries[:queries],
            query_of=self.query_of[kept],
            votes=self.votes[kept],
            left_out=self.left_out,
        )

    def columns(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Labels of some judges, in the order asked for: P x len(names)."""
        missing = [name for name in names if name not in self.names]
        if missing:
            raise InputError(f"no judge {missing[0]!r} here: expected some of {', '.join(self.names)}")
        return self.votes[:, [self.names.index(name) for name in names]]


def line_up(files: Sequence[LabelFile]) -> LabelTable:
    """Line label files up pair by pair; the first file decides which pairs count."""
    if not files:
        raise InputError("no label files: expected at least one")
    reference = files[0]
    queries = {query: index for index, query in enumerate(dict.fromkeys(place.query for place in reference.labels))}
    places = sorted(reference.labels, key=lambda place: queries[place.query])
    for other in files[1:]:
        if not any(place in other.labels for place in places):
            raise DataError(f"{other.path} and {reference.path} have no pair in common: same queries and documents?")
    missing = float("nan")
    votes = [[float(file.labels.get(place, missing)) for file in files] for place in places]
    return LabelTable(
        names=tuple(_distinct(files)),
        queries=tuple(queries),
        query_of=np.array([queries[place.query] for place in places], dtype=np.int64),
        votes=np.array(votes, dtype=np.float64),
        left_out=tuple(sum(place not in reference.labels for place in file.labels) for file in files),
    )


def _distinct(files: Sequence[LabelFile]) -> list[str]:
    """File names; where two are alike, with their folder."""
    names = [file.name for file in files]
    longer = [
        name if names.count(name) == 1 else f"{file.path.parent.name}/{name}"
        for name, file in zip(names, files, strict=True)
    ]
    return [name if longer.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(longer, start=1)]
