"""Votes that were cast before, as a juror: nothing is asked and nothing is paid."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from anyio import to_thread

from prism.errors import DataError, InputError
from prism.files.ids import DOCUMENT_IDS, QUERY_IDS, id_in
from prism.files.jsonl import read_objects
from prism.files.lines import is_json
from prism.files.trec import judged_lines, read_label
from prism.labeling.label_pairs import LabelPair
from prism.labeling.panel import RecordedJuror
from prism.labeling.rubrics import Rubric
from prism.labeling.votes import CastVote, dated, failed_vote
from prism.text import stable_id
from prism.types import Vote


class FileJuror:
    """Votes cast before. They are looked up in a private temporary database, so their number does not matter."""

    def __init__(self, settings: RecordedJuror, rubric: Rubric) -> None:
        self.name = settings.name
        self._path = settings.path
        self._rubric = rubric
        self._db: sqlite3.Connection | None = None

    async def open(self) -> None:
        if self._db is None:
            self._db = await to_thread.run_sync(self._read)

    async def ask(self, pair: LabelPair) -> CastVote:
        vote = dated(Vote(pair_id=pair.id, juror=self.name, label=None, rubric=self._rubric.key))
        if self._db is None:
            raise InputError(f"juror {self.name} was asked before it was opened")
        for key in (pair.id, stable_id("", pair.query_id or "", pair.doc_id or "")):
            row = self._db.execute("SELECT label, failure FROM recorded WHERE key = ?", (key,)).fetchone()
            if row is not None:
                return CastVote(vote.model_copy(update={"label": row[0], "failure": row[1]}))
        return CastVote(failed_vote(vote, "absent"))

    def _read(self) -> sqlite3.Connection:
        db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        try:
            db.execute("CREATE TABLE recorded (key TEXT PRIMARY KEY, label INTEGER, failure TEXT) WITHOUT ROWID")
            db.execute("BEGIN")
            for where, recorded in read_recorded(self._path):
                if recorded.label is not None and recorded.label not in self._rubric.labels:
                    labels = ", ".join(map(str, self._rubric.labels))
                    raise DataError(f"{where}: label {recorded.label} is none of {labels} (rubric {self._rubric.name})")
                row = (recorded.key, recorded.label, recorded.failure)
                known = db.execute("SELECT label, failure FROM recorded WHERE key = ?", row[:1]).fetchone()
                if known is not None and tuple(known) != row[1:]:
                    raise DataError(f"{where}: another vote on this pair stands further up: keep one of them")
                db.execute("INSERT OR IGNORE INTO recorded VALUES (?, ?, ?)", row)
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    async def aclose(self) -> None:
        if self._db is not None:
            with closing(self._db):
                self._db = None


class Recorded(NamedTuple):
    """One vote of a file."""

    key: str
    label: int | None
    failure: str | None


def read_recorded(path: Path) -> Iterator[tuple[str, Recorded]]:
    """(`file:line`, vote) for each line of qrels, or of JSONL with `label` and what names the pair.

    A pair is named by `pair_id`, by `query_id` and `doc_id`, or by `query` and `document`. A null label is a failure
    and may say which. Raises DataError at the first line that is none of these.
    """
    if not path.is_file():
        raise DataError(f"no recorded votes {path}: check the juror's path in the panel file")
    if is_json(path):
        for _, where, row in read_objects(path):
            if isinstance(row, DataError):
                raise row
            yield where, _recorded(row, where)
    else:
        for where, judged in judged_lines(path):
            yield where, Recorded(stable_id("", judged.query, judged.document), judged.label, None)


def _recorded(row: Mapping[str, Any], where: str) -> Recorded:
    if "label" not in row:
        raise DataError(f"{where}: expected an object with label")
    query_id, doc_id = id_in(row, QUERY_IDS, where), id_in(row, DOCUMENT_IDS, where)
    if isinstance(row.get("pair_id"), str):
        key = row["pair_id"]
    elif query_id is not None and doc_id is not None:
        key = stable_id("", query_id, doc_id)
    elif isinstance(row.get("query"), str) and isinstance(row.get("document"), str):
        key = stable_id(row["query"], row["document"])
    else:
        raise DataError(f"{where}: no pair named: expected pair_id, query_id and doc_id, or query and document")
    label = None if row["label"] is None else read_label(row["label"], where)
    return Recorded(key, label, str(row.get("failure") or "unknown") if label is None else None)
