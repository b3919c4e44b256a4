"""People's labels and recorded judges' labels of the same pairs, as the scripts about labels take them.

FOLDER/human.qrels and FOLDER/submissions/*.qrels, or files by name. A label off the scale is a failure of the judge
that gave it; a file that cannot be meant (other ids, another scale throughout) is an error that names file and line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from prism.errors import DataError, InputError
from prism.files.label_files import LabelFile, PairIds, read_labels
from prism.files.trec import line_with, read_run
from prism.outputs import write_text
from studies.label_quality import Judged, Pairs


class Recorded(NamedTuple):
    """Label files, read and checked."""

    people: LabelFile
    judges: list[LabelFile]
    """Only with labels on the scale."""
    off: Mapping[str, list[str]]
    """Judge -> `file:line` of its labels off the scale, where it has any."""
    top: int

    def warnings(self) -> list[str]:
        """A sentence for each judge with labels off the scale."""
        return [
            f"{where[0]}: label off the scale 0 to {self.top} ({len(where)} in all): a failure"
            for where in self.off.values()
        ]


def read_recorded(
    folder: Path | None, human: Path | None, model: Sequence[Path], top: int, limit: int | None = None
) -> Recorded:
    """Read people's labels, 0 to `top`, and those of the first `limit` judges.

    Raises InputError without people or judges. Raises DataError naming file and line for a file that is malformed, for
    people's label off the scale, and for a judge none of whose labels is on it or whose pairs people never labelled.
    """
    if folder is not None:
        human = human or folder / "human.qrels"
        model = [*model, *sorted((folder / "submissions").glob("*.qrels"))]
    if human is None or not model:
        raise InputError("no labels: pass --labels FOLDER, or --human FILE and --model FILE (repeatable)")
    people = read_labels(human, (0, top))
    judges, off = [], {}
    for path in model[:limit]:
        judge = read_labels(path)
        outside = judge.outside((0, top))
        _check(judge, people, outside, top)
        if outside:
            off[judge.name] = [f"{path.name}:{judge.lines[place]}" for place in outside]
        kept = {place: label for place, label in judge.labels.items() if 0 <= label <= top}
        judges.append(replace(judge, labels=kept))
    return Recorded(people, judges, off, top)


def as_pairs(file: LabelFile) -> dict[tuple[str, str], int]:
    """The labels by plain pairs of query and document."""
    return {(place.query, place.document): label for place, label in file.labels.items()}


def _check(judge: LabelFile, people: LabelFile, outside: Sequence[PairIds], top: int) -> None:
    first = next(iter(judge.labels))
    where = f"{judge.path}:{judge.lines[first]}"
    if not any(place in people.labels for place in judge.labels):
        raise DataError(
            f"{where}: query {first.query!r} document {first.document!r} is not in {people.path}, nor is any other pair"
            " of this file: are the ids the same?"
        )
    if len(outside) == len(judge.labels):
        raise DataError(
            f"{where}: label {judge.labels[first]} is off the scale 0 to {top}, and so are all others: pass the scale's"
            " top label with --scale-top"
        )


def read_labelled_run(path: Path, people: LabelFile) -> dict[str, list[str]]:
    """A TREC run over the labelled queries. Raises DataError naming file and line when it has none of them."""
    run = read_run(path)
    first = next(iter(run))
    if not run.keys() & {place.query for place in people.labels}:
        raise DataError(
            f"{line_with(path, first)}: query {first!r} is not in {people.path}, nor is any other of this run: are the"
            " ids the same?"
        )
    return run


def write_labels(folder: Path, people: Pairs, judges: Sequence[Judged]) -> None:
    """Write `human.qrels` and `submissions/<judge>.qrels`, what `read_recorded` reads, for judges that gave labels.

    Raises DataError for an id with a space in it, which would move the columns.
    """
    files = {"human": people, **{f"submissions/{_slug(j.name)}": j.labels for j in judges if j.labels is not None}}
    for name, labels in files.items():
        if strange := next((id_ for pair in labels for id_ in pair if len(f"x{id_}x".split()) != 1), None):
            raise DataError(f"id {strange!r} has a space in it and cannot stand in {name}.qrels: rename it")
        write_text(folder / f"{name}.qrels", "".join(f"{q} 0 {d} {label}\n" for (q, d), label in labels.items()))


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)
