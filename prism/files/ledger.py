"""Finished work by key, in one SQLite file: what was done, or paid for, is not done again.

    with Ledger(path) as kept:
        if kept.get(key) is None:
            kept.put(key, answer)

Each entry is on disk when `put` returns, and is there whole or not at all: whatever kills the program costs at most
what was under way. Money is booked before it is spent (`attempt`).
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from prism.errors import DataError
from prism.files.jsonl import dumps
from prism.types import Record

R = TypeVar("R", bound=Record)
T = TypeVar("T")
Say = Callable[[str], None]
_TABLES = (
    "CREATE TABLE IF NOT EXISTS answers"
    " (key TEXT PRIMARY KEY, answer TEXT NOT NULL, cost_usd TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS attempts (id INTEGER PRIMARY KEY, most_usd TEXT NOT NULL)",
)


def open_database(path: Path, tables: Iterable[str] = (), *, what: str, cure: str) -> sqlite3.Connection:
    """A database that outlives a power cut and can be read while it is written, from any thread.

    Raises DataError when the file is no database: it is not `what`, and `cure` says what to do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        for table in tables:
            database.execute(table)
    except sqlite3.DatabaseError as error:
        database.close()
        raise DataError(f"{path} is not {what} ({error}): {cure}") from error
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


class Ledger:
    """Answers by key, as JSON, and what they cost. Safe to use from several threads; one process writes at a time."""

    def __init__(self, path: Path, *, cure: str = "name another file") -> None:
        """Raises DataError when there is something else at `path`; `cure` says what to do then."""
        self._path = path
        self._lock = threading.Lock()
        self._database = open_database(path, _TABLES, what="a store of answers", cure=cure)
        columns = {row[1] for row in self._database.execute("PRAGMA table_info(answers)")}
        if "seconds" in columns:  # as 0.1 kept the answers of rerank services
            self._adopt_timed()

    def _adopt_timed(self) -> None:
        with transaction(self._database):
            self._database.execute("ALTER TABLE answers RENAME TO timed")
            self._database.execute(_TABLES[0])
            self._database.execute(
                "INSERT INTO answers"
                " SELECT key, json_object('answer', json(answer), 'seconds', seconds), '0' FROM timed"
            )
            self._database.execute("DROP TABLE timed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def get(self, key: str) -> Any | None:
        """The answer, None when there is none."""
        with self._lock:
            row = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def missing(
        self, questions: Iterable[tuple[str, T]], skipped: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[str, T]]:
        """The (key, question) that have no answer, each key once; `skipped` hears of each of the others."""
        met: set[str] = set()
        for key, question in questions:
            if key in met or self.get(key) is not None:
                skipped()
            else:
                met.add(key)
                yield key, question

    def items(self) -> Iterator[tuple[str, Any]]:
        """Everything there is, by key."""
        with self._lock:
            rows = self._database.execute("SELECT key, answer FROM answers ORDER BY key").fetchall()
        return ((key, json.loads(answer)) for key, answer in rows)

    def put(self, key: str, answer: Any, cost_usd: Decimal = Decimal(0), attempt: Attempt | None = None) -> None:
        """Keep an answer, in place of an older one, and of the attempt that brought it. Raises DataError."""
        row = (key, dumps(answer), str(cost_usd))
        try:
            with self._lock, transaction(self._database):
                self._database.execute("INSERT OR REPLACE INTO answers (key, answer, cost_usd) VALUES (?, ?, ?)", row)
                if attempt:
                    self._database.execute("DELETE FROM attempts WHERE id = ?", (attempt.id,))
        except sqlite3.OperationalError as error:
            raise DataError(f"cannot write {self._path}: {error}: what is in it is kept; run again") from error

    def spent_usd(self) -> Decimal:
        """Paid for answers, and at most paid for attempts that were never heard of again or failed."""
        with self._lock:
            found = self._database.execute("SELECT cost_usd FROM answers UNION ALL SELECT most_usd FROM attempts")
            return sum((Decimal(cost) for (cost,) in found), Decimal(0))

    def attempt(self) -> Attempt:
        """Hears of the attempts of one question, so that money is booked before it is spent."""
        return Attempt(self._database)


class Attempt:
    """What a chat client tells about the attempts of one question (its `log`)."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database, self.id = database, 0

    async def sent(self, most_usd: Decimal) -> None:
        """An attempt leaves and may cost this much."""
        made = self._database.execute("INSERT INTO attempts (most_usd) VALUES (?)", (str(most_usd),))
        self.id = made.lastrowid or 0

    async def failed(self, kind: str, charged_usd: Decimal) -> None:
        """It brought no answer, and cost at most this."""
        self._database.execute("UPDATE attempts SET most_usd = ? WHERE id = ?", (str(charged_usd), self.id))


class Kept(Generic[R]):
    """Records of one kind in a ledger, which is open only while it is read or written.

    A file of 0.1 beside it (`NAME.jsonl`: a line an entry) is taken over when the ledger is first used.
    """

    def __init__(self, path: Path, kind: type[R], say: Say = lambda _: None) -> None:
        self.path = path
        self._kind = kind
        self._say = say

    def read(self) -> dict[str, R]:
        """Key -> record. Raises DataError when the file holds anything else."""
        if not self.exists():
            return {}
        with self._open() as ledger:
            found = list(ledger.items())
        try:
            return {key: self._kind.model_validate(value) for key, value in found}
        except ValueError as error:  # pydantic's own is one
            raise DataError(f"{self.path}: not records of this kind: {_CURE}") from error

    def append(self, key: str, value: R) -> None:
        """On disk when this returns, in place of an older one. Raises DataError."""
        try:
            with self._open() as ledger:
                ledger.put(key, value.model_dump(mode="json"))
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror or error}: run again") from error

    def exists(self) -> bool:
        """Whether there is anything to read."""
        return self.path.exists() or self._old.exists()

    def clear(self) -> None:
        """Start over: nothing is kept."""
        for path in (self.path, *(self.path.with_name(self.path.name + end) for end in ("-wal", "-shm")), self._old):
            path.unlink(missing_ok=True)

    @property
    def _old(self) -> Path:
        return self.path.with_suffix(".jsonl")

    def _open(self) -> Ledger:
        taken_over = self._old.is_file() and not self.path.exists()
        old = list(self._old_entries()) if taken_over else []
        ledger = Ledger(self.path, cure=_CURE)
        for key, value in old:
            ledger.put(key, value)
        if taken_over:
            self._old.rename(self._old.with_name(self._old.name + ".old"))
        return ledger

    def _old_entries(self) -> Iterator[tuple[str, Any]]:
        """Lines of 0.1: `{"key", "value"}`, or records with an `id`. The last may have been cut off."""
        lines = self._old.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("cut off")
                row = json.loads(line)
                key, value = (row["key"], row["value"]) if "key" in row else (row["id"], row)
                self._kind.model_validate(value)
            except (ValueError, KeyError, TypeError) as error:  # pydantic's own is a ValueError
                if number < len(lines):
                    raise DataError(f"{self._old}:{number}: not a finished record: {_CURE}") from error
                self._say(f"dropped line {number} of {self._old.name}: it was cut off; it is done again")
                return
            yield str(key), value


_CURE = "move the file away, or start over"
