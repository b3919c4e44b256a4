"""What a teacher has been asked and what it answered: an SQLite file that survives a killed process.

A call is written down as `sent` before it leaves and becomes `paid` together with its scores, in one transaction. So
after a crash no score that arrived is lost, and the calls whose answer never arrived are known: at most as many as were
in flight. Scores are keyed by a hash of teacher, query and document: the same pair is never paid twice, in any file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from prism.files.ledger import open_database, transaction

_TABLES = (
    """CREATE TABLE IF NOT EXISTS calls (id INTEGER PRIMARY KEY, teacher TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('sent', 'paid', 'refused')), pairs INTEGER NOT NULL, tokens INTEGER NOT NULL,
    searches INTEGER NOT NULL, cost REAL NOT NULL, at TEXT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS scores
    (key TEXT PRIMARY KEY, score REAL NOT NULL, call INTEGER NOT NULL REFERENCES calls (id)) WITHOUT ROWID""",
)


class Cost(NamedTuple):
    """What calls used up. `cost` is in the currency of the prices given."""

    tokens: int = 0
    searches: int = 0
    cost: float = 0.0


class TeacherBill(NamedTuple):
    """The accounts of one teacher."""

    calls: int
    pairs: int
    tokens: int
    searches: int
    cost: float
    unanswered_calls: int
    """Sent by a process that died before the answer came: possibly paid, and counted in `cost` as estimated."""


def score_key(teacher: str, query: str, document: str) -> str:
    """32 hexadecimal digits over everything that decides a score."""
    content = json.dumps([teacher, query, document])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


class TeacherStore:
    """Scores by key, and one row per call. One process writes at a time."""

    def __init__(self, path: Path, teacher: str) -> None:
        self._teacher = teacher
        cure = "name another file with --store"
        self._db = open_database(path, _TABLES, what="a store of teacher scores", cure=cure)

    def __enter__(self) -> TeacherStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._db.close()

    def get(self, keys: Sequence[str]) -> dict[str, float]:
        """Those of the keys that have a score."""
        found: dict[str, float] = {}
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            marks = ",".join("?" * len(some))
            found.update(self._db.execute(f"SELECT key, score FROM scores WHERE key IN ({marks})", some))
        return found

    def sent(self, pairs: int, estimate: Cost) -> int:
        """Write down a call that is about to leave; returns its number."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = (self._teacher, "sent", pairs, *estimate, now)
        made = self._db.execute(
            "INSERT INTO calls (teacher, state, pairs, tokens, searches, cost, at) VALUES (?, ?, ?, ?, ?, ?, ?)", row
        )
        return int(made.lastrowid or 0)

    def paid(self, call: int, cost: Cost, scores: Mapping[str, float]) -> None:
        """The answer came: cost and scores in one transaction."""
        rows: Iterable[tuple[str, float, int]] = ((key, score, call) for key, score in scores.items())
        with transaction(self._db):
            self._db.execute(
                "UPDATE calls SET state = 'paid', pairs = ?, tokens = ?, searches = ?, cost = ? WHERE id = ?",
                (len(scores), *cost, call),
            )
            self._db.executemany("INSERT OR REPLACE INTO scores (key, score, call) VALUES (?, ?, ?)", rows)

    def refused(self, call: int) -> None:
        """The call failed for good and cost nothing."""
        self._db.execute("UPDATE calls SET state = 'refused', cost = 0, tokens = 0, searches = 0 WHERE id = ?", (call,))

    def spent(self) -> TeacherBill:
        """Everything this teacher has cost so far, over all runs."""
        row = self._db.execute(
            "SELECT count(*) FILTER (WHERE state = 'paid'), total(pairs) FILTER (WHERE state = 'paid'), total(tokens),"
            " total(searches), total(cost), count(*) FILTER (WHERE state = 'sent') FROM calls WHERE teacher = ?",
            (self._teacher,),
        ).fetchone()
        calls, pairs, tokens, searches, cost, unanswered = row
        return TeacherBill(calls, int(pairs), int(tokens), int(searches), float(cost), unanswered)
