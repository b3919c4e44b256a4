"""Votes that were cast before, as a juror: nothing is asked and nothing is paid."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from anyio import to_thread

from prism.errors import DataError, InputError
from prism.labeling.answers import Answer, dated, failed
from prism.labeling.pairs import LabelPair
from prism.labeling.panel import RecordedJuror
from prism.labeling.rubrics import Rubric
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

    async def ask(self, pair: LabelPair) -> Answer:
        vote = dated(Vote(pair_id=pair.id, juror=self.name, label=None, rubric=self._rubric.key))
        if self._db is None:
            raise InputError(f"juror {self.name} was asked before it was opened")
        for key in (pair.id, stable_id("", pair.query_id or "", pair.doc_id or "")):
            row = self._db.execute("SELECT label, failure FROM recorded WHERE key = ?", (key,)).fetchone()
            if row is not None:
                return Answer(vote.model_copy(update={"label": row[0], "failure": row[1]}))
        return Answer(failed(vote, "absent"))

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
    parse = _recorded_json if path.suffix in (".jsonl", ".json", ".ndjson") else _recorded_qrels
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8 text: is this the right file?") from error
            recorded = parse(text, where) if text.strip() else None
            if recorded is not None:
                yield where, recorded


def _recorded_qrels(line: str, where: str) -> Recorded | None:
    columns = line.split()
    if columns[:3] == ["query-id", "corpus-id", "score"]:
        return None
    if len(columns) not in (3, 4):
        raise DataError(
            f"{where}: expected `query 0 document label` or `query document label`, got {len(columns)} columns"
        )
    return Recorded(stable_id("", columns[0], columns[-2]), _whole(columns[-1], where), None)


def _recorded_json(line: str, where: str) -> Recorded:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, Mapping) or "label" not in record:
        raise DataError(f"{where}: expected an object with label")
    if isinstance(record.get("pair_id"), str):
        key = record["pair_id"]
    elif record.get("query_id") is not None and record.get("doc_id") is not None:
        key = stable_id("", str(record["query_id"]), str(record["doc_id"]))
    elif isinstance(record.get("query"), str) and isinstance(record.get("document"), str):
        key = stable_id(record["query"], record["document"])
    else:
        raise DataError(f"{where}: no pair named: expected pair_id, query_id and doc_id, or query and document")
    label = None if record["label"] is None else _whole(record["label"], where)
    return Recorded(key, label, str(record.get("failure") or "unknown") if label is None else None)


def _whole(value: object, where: str) -> int:
    """A whole number, also when written `1.0`; true and false are not numbers."""
    try:
        number = float("nan" if isinstance(value, bool) else str(value))
    except ValueError:
        number = float("nan")
    if not number.is_integer():
        raise DataError(f"{where}: label {value!r} is not a whole number: fix the line")
    return int(number)
