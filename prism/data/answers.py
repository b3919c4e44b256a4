"""Answers of paid services, kept by what was asked: an SQLite file that survives a killed process.

Each answer is committed when it arrives. A run that dies has lost at most the answers that were under way.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from prism.errors import DataError, PrismError

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL, cost_usd TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (id INTEGER PRIMARY KEY, most_usd TEXT NOT NULL);
"""


class Question(NamedTuple):
    """What to ask, filed under a key."""

    key: str
    content: Any


class Answered(NamedTuple):
    """What came back, as JSON, and what it cost."""

    answer: Any
    cost_usd: Decimal = Decimal(0)
    attempt: Attempt | None = None
    """The booked attempt that this answer settles."""


def answer_key(*parts: Any) -> str:
    """32 hexadecimal digits over everything that decides an answer."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


class AnswerStore:
    """Answers by key, and what they cost. One process writes at a time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path} is no store of answers ({error}): name another file with --store") from error

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._db.close()

    def get(self, key: str) -> Any | None:
        """The answer, None when there is none."""
        row = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, answered: Answered) -> None:
        """Keep an answer in place of the attempt that brought it, in one transaction."""
        row = (key, json.dumps(answered.answer), str(answered.cost_usd))
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("INSERT OR REPLACE INTO answers (key, answer, cost_usd) VALUES (?, ?, ?)", row)
        if answered.attempt:
            self._db.execute("DELETE FROM attempts WHERE id = ?", (answered.attempt.id,))
        self._db.execute("COMMIT")

    def spent_usd(self) -> Decimal:
        """Paid for answers, and at most paid for attempts that were never heard of again or failed."""
        found = self._db.execute("SELECT cost_usd FROM answers UNION ALL SELECT most_usd FROM attempts")
        return sum((Decimal(cost) for (cost,) in found), Decimal(0))

    def attempt(self) -> Attempt:
        """Hears of the attempts of one question, so that money is booked before it is spent."""
        return Attempt(self._db)


class Attempt:
    """What a chat client tells about the attempts of one question (its `log`)."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db, self.id = db, 0

    async def sent(self, most_usd: Decimal) -> None:
        """An attempt leaves and may cost this much."""
        self.id = self._db.execute("INSERT INTO attempts (most_usd) VALUES (?)", (str(most_usd),)).lastrowid or 0

    async def failed(self, kind: str, charged_usd: Decimal) -> None:
        """It brought no answer, and cost at most this."""
        self._db.execute("UPDATE attempts SET most_usd = ? WHERE id = ?", (str(charged_usd), self.id))


Ask = Callable[[Any], Awaitable[Answered]]
"""Asks one question. Raises a PrismError of a kind in `stops` when nothing more can be asked."""


async def ask_all(
    questions: Iterable[Question],
    ask: Ask,
    store: AnswerStore,
    *,
    concurrency: int,
    stops: tuple[type[PrismError], ...],
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, str]:
    """Have every question answered that is not in the store. Returns why those without an answer have none.

    Raises the first error of `stops`, after what was under way has been stored.
    """
    import anyio

    failures: dict[str, str] = {}
    stopped: list[PrismError] = []
    send, receive = anyio.create_memory_object_stream[Question](0)

    async def work(waiting: MemoryObjectReceiveStream[Question]) -> None:
        async with waiting:
            async for question in waiting:
                if stopped:
                    continue
                try:
                    store.put(question.key, await ask(question.content))
                except stops as error:
                    stopped.append(error)
                except PrismError as error:
                    failures[question.key] = str(error)
                advance(1)

    async with anyio.create_task_group() as group:
        for _ in range(concurrency):
            group.start_soon(work, receive.clone())
        receive.close()
        async with send:
            asked: set[str] = set()
            try:
                for question in questions:
                    if stopped:
                        break
                    if question.key in asked or store.get(question.key) is not None:
                        advance(1)
                        continue
                    asked.add(question.key)
                    await send.send(question)
            except PrismError as error:  # a malformed line: what is under way is still stored
                stopped.append(error)
    if stopped:
        raise stopped[0]
    return failures
