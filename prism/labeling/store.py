"""The votes of a labelling run: an append-only SQLite file, keyed by pair x juror x rubric.

    calls    one row per request, written before it is sent, with the most it may cost
    ends     how a call ended that brought no answer
    votes    one row per answer: a label, or a recorded failure
    missed   questions that got no answer, and why; they are asked again

A vote is committed before anything counts it, and one that was paid for waits for the disk, so it outlives a power cut.
A call without end or vote was under way when the program died: it may have been paid for without its answer reaching
us, so it counts as spent, with the most it can have cost. Triggers refuse updates and deletes. WAL mode lets others
read while a run writes.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from anyio import to_thread

from prism.errors import DataError, PanelError
from prism.files.ledger import open_database, transaction
from prism.labeling.rubrics import Rubric
from prism.llm.money import from_pico, to_pico
from prism.types import Usage, Vote

_FORMAT = 1
_KEY = "pair_id TEXT NOT NULL, juror TEXT NOT NULL, rubric TEXT NOT NULL"
_TABLES = {
    "rubrics": "key TEXT PRIMARY KEY, text TEXT NOT NULL",
    "jurors": "name TEXT PRIMARY KEY, identity TEXT NOT NULL",
    "calls": f"""id INTEGER PRIMARY KEY, {_KEY}, provider TEXT NOT NULL, most_pico INTEGER NOT NULL,
        sent_at TEXT NOT NULL""",
    "ends": "call INTEGER PRIMARY KEY REFERENCES calls, kind TEXT NOT NULL, charged_pico INTEGER NOT NULL",
    "votes": f"""id INTEGER PRIMARY KEY, {_KEY}, round INTEGER NOT NULL, call INTEGER UNIQUE REFERENCES calls,
        label INTEGER, failure TEXT, score REAL, answer TEXT, prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL, written_tokens INTEGER NOT NULL, cost_pico INTEGER NOT NULL,
        created_at TEXT NOT NULL, UNIQUE (pair_id, juror, rubric, round),
        CHECK ((label IS NULL) <> (failure IS NULL))""",
    "missed": f"id INTEGER PRIMARY KEY, {_KEY}, kind TEXT NOT NULL, message TEXT NOT NULL, at TEXT NOT NULL",
}
_OPEN = "FROM calls LEFT JOIN ends ON ends.call = calls.id LEFT JOIN votes ON votes.call = calls.id"
_LATEST = """SELECT * FROM votes AS v WHERE round = (SELECT max(round) FROM votes AS w
    WHERE w.pair_id = v.pair_id AND w.juror = v.juror AND w.rubric = v.rubric)"""


class Spent(NamedTuple):
    """Money of one juror or provider."""

    calls: int
    paid_usd: Decimal
    """For answers; exact."""
    uncertain_usd: Decimal
    """At most, for requests whose answer never came: time-outs, lost connections, a program that died."""
    uncertain_calls: int
    in_flight: int
    """Of those, calls that were under way when a program died."""

    @property
    def total_usd(self) -> Decimal:
        return self.paid_usd + self.uncertain_usd


class Store:
    """One votes file. Not for use from two threads at once; `Committer` sees to that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        what, cure = "a votes file", "move it away or choose another OUT"
        self._db = open_database(path, what=what, cure=cure)
        self._create()
        self._reader = open_database(path, what=what, cure=cure)  # of its own: reading never waits for the disk
        self._db.row_factory = self._reader.row_factory = sqlite3.Row

    def _create(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _FORMAT):
            raise DataError(f"{self.path} has format {version}, this version reads {_FORMAT}: choose another OUT")
        with transaction(self._db):
            for name, columns in _TABLES.items():
                self._db.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns})")
                for verb in ("UPDATE", "DELETE"):
                    self._db.execute(
                        f"CREATE TRIGGER IF NOT EXISTS no_{verb.lower()}_{name} BEFORE {verb} ON {name}"
                        " BEGIN SELECT RAISE(ABORT, 'append-only'); END"
                    )
            self._db.execute(f"PRAGMA user_version = {_FORMAT}")

    # --- writing ---------------------------------------------------------------------------------------------------

    def commit(self, changes: Sequence[Change]) -> list[Any]:
        """Make all changes in one transaction, and return what each returned. Raises DataError when it cannot.

        A transaction survives the death of the program; with a paid change in it, a power cut too.
        """
        try:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if any(change.paid for change in changes) else 'NORMAL'}")
            with transaction(self._db):
                return [change.method(self, *change.arguments) for change in changes]
        except sqlite3.Error as error:
            raise DataError(f"cannot write {self.path}: {error}: is the disk full?") from error

    def register(self, rubric: Rubric, jurors: Mapping[str, str]) -> None:
        """Keep the rubric's text, and what each juror is. Raises PanelError when a juror's name means another one."""
        with transaction(self._db):
            self._db.execute("INSERT OR IGNORE INTO rubrics VALUES (?, ?)", (rubric.key, rubric.model_dump_json()))
            for name, identity in jurors.items():
                self._db.execute("INSERT OR IGNORE INTO jurors VALUES (?, ?)", (name, identity))
                known = self._db.execute("SELECT identity FROM jurors WHERE name = ?", (name,)).fetchone()[0]
                if known != identity:
                    raise PanelError(
                        f"juror {name!r} was {known} when {self.path} was made and is {identity} now:"
                        " give it another name, or choose another OUT"
                    )

    def add_call(self, pair_id: str, juror: str, rubric: str, provider: str, most_usd: Decimal) -> int:
        row = (pair_id, juror, rubric, provider, to_pico(most_usd), _now())
        columns = "pair_id, juror, rubric, provider, most_pico, sent_at"
        return self._db.execute(f"INSERT INTO calls ({columns}) VALUES (?, ?, ?, ?, ?, ?)", row).lastrowid or 0

    def end_call(self, call: int, kind: str, charged_usd: Decimal) -> None:
        self._db.execute("INSERT INTO ends VALUES (?, ?, ?)", (call, kind, to_pico(charged_usd)))

    def add_vote(self, vote: Vote, call: int | None = None) -> None:
        """Append; a second vote of the same juror on the same pair under the same rubric is a further round."""
        key = (vote.pair_id, vote.juror, vote.rubric or "")
        usage = vote.usage
        self._db.execute(
            """INSERT INTO votes (pair_id, juror, rubric, round, call, label, failure, score, answer, prompt_tokens,
                cached_tokens, written_tokens, cost_pico, created_at)
            VALUES (?1, ?2, ?3, (SELECT 1 + coalesce(max(round), 0) FROM votes WHERE pair_id = ?1 AND juror = ?2
                AND rubric = ?3), ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)""",
            (
                *key,
                call,
                vote.label,
                vote.failure,
                vote.score,
                vote.answer,
                usage.prompt_tokens,
                usage.cached_tokens,
                usage.written_tokens,
                to_pico(vote.cost_usd),
                (vote.created_at or datetime.now(UTC)).isoformat(timespec="seconds"),
            ),
        )

    def add_missed(self, pair_id: str, juror: str, rubric: str, kind: str, message: str) -> None:
        columns = "pair_id, juror, rubric, kind, message, at"
        row = (pair_id, juror, rubric, kind, message, _now())
        self._db.execute(f"INSERT INTO missed ({columns}) VALUES (?, ?, ?, ?, ?, ?)", row)

    # --- reading ---------------------------------------------------------------------------------------------------

    def votes_on(self, pair_id: str, rubric: str) -> dict[str, tuple[int | None, str | None]]:
        """Juror -> (label, failure), the latest round of each."""
        query = "SELECT juror, label, failure FROM votes WHERE pair_id = ? AND rubric = ? ORDER BY round"
        return {row[0]: (row[1], row[2]) for row in self._reader.execute(query, (pair_id, rubric))}

    def votes(self, rubric: str | None = None) -> Iterator[Vote]:
        """The latest vote of each juror on each pair, in the order they were cast."""
        for row in self._reader.execute(f"{_LATEST} AND (?1 IS NULL OR rubric = ?1) ORDER BY id", (rubric,)):
            yield _vote(row)

    def rubrics(self) -> dict[str, Rubric]:
        """Key -> rubric, for every question asked in this file."""
        rows = self._reader.execute("SELECT key, text FROM rubrics")
        return {row["key"]: Rubric.model_validate_json(row["text"]) for row in rows}

    def outcomes(self, rubric: str) -> dict[str, dict[str, int]]:
        """Juror -> label or kind of failure -> how many votes, the latest round of each."""
        query = f"""SELECT juror, coalesce(failure, CAST(label AS TEXT)) AS outcome, count(*) AS n
            FROM ({_LATEST}) WHERE rubric = ? GROUP BY 1, 2 ORDER BY 1, 2"""
        found: dict[str, dict[str, int]] = {}
        for row in self._reader.execute(query, (rubric,)):
            found.setdefault(row["juror"], {})[row["outcome"]] = row["n"]
        return found

    def usage(self, juror: str) -> Usage:
        """Tokens of all answers of one juror, further rounds included."""
        query = "SELECT sum(prompt_tokens), sum(cached_tokens), sum(written_tokens) FROM votes WHERE juror = ?"
        prompt, cached, written = self._reader.execute(query, (juror,)).fetchone()
        return Usage(prompt_tokens=prompt or 0, cached_tokens=cached or 0, written_tokens=written or 0)

    def spent(self, *, juror: str | None = None, provider: str | None = None) -> Spent:
        """Money of all calls that match, under every rubric."""
        row = self._reader.execute(
            f"""SELECT count(*), sum(votes.cost_pico), sum(ends.charged_pico), sum(ends.charged_pico > 0),
                sum(CASE WHEN votes.id IS NULL AND ends.call IS NULL THEN most_pico END),
                count(CASE WHEN votes.id IS NULL AND ends.call IS NULL THEN 1 END)
            {_OPEN} WHERE (?1 IS NULL OR calls.juror = ?1) AND (?2 IS NULL OR calls.provider = ?2)""",
            (juror, provider),
        ).fetchone()
        calls, paid, charged, uncertain, lost, in_flight = (value or 0 for value in row)
        return Spent(calls, from_pico(paid), from_pico(charged + lost), uncertain + in_flight, in_flight)

    def seconds_an_answer(self, juror: str, rubric: str) -> float | None:
        """From call to vote, on average of the last hundred; None without calls that were answered."""
        query = """SELECT avg(julianday(created_at) - julianday(sent_at)) * 86400 FROM
            (SELECT created_at, sent_at FROM votes JOIN calls ON calls.id = votes.call
             WHERE votes.juror = ? AND votes.rubric = ? ORDER BY votes.id DESC LIMIT 100)"""
        found: float | None = self._reader.execute(query, (juror, rubric)).fetchone()[0]
        return None if found is None else max(0.0, found)

    def ends(self, juror: str) -> dict[str, int]:
        """Kind -> how many of a juror's calls ended so without an answer; most were tried again."""
        query = (
            "SELECT kind, count(*) FROM ends JOIN calls ON calls.id = ends.call WHERE juror = ? GROUP BY 1 ORDER BY 1"
        )
        return {row[0]: row[1] for row in self._reader.execute(query, (juror,))}

    def close(self) -> None:
        self._reader.close()
        self._db.close()


class Change(NamedTuple):
    """A call of one of the store's writing methods, to be made later and perhaps elsewhere."""

    method: Callable[..., Any]
    """Of `Store`, unbound: `Store.add_vote`."""
    arguments: tuple[Any, ...]
    paid: bool
    """Wait for the disk; what cost nothing need not survive a power cut."""


class Committer:
    """Writes from many tasks: whatever waits goes into one transaction, and is committed when `write` returns."""

    def __init__(self, commit: Callable[[Sequence[Change]], Awaitable[Sequence[Any]]]) -> None:
        """`commit` makes all changes or raises DataError; `for_store` has it done in this process."""
        self._commit = commit
        self._waiting: list[tuple[Change, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def for_store(cls, store: Store) -> Committer:
        async def commit(changes: Sequence[Change]) -> list[Any]:
            return await to_thread.run_sync(store.commit, changes)

        return cls(commit)

    async def write(self, method: Callable[..., Any], *arguments: Any, paid: bool = False) -> Any:
        """Have `method(store, *arguments)` run in a transaction, and return what it returned.

        Once begun, cancelling does not undo it. `paid`: as in Change. Raises DataError.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((Change(method, arguments, paid), future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await asyncio.shield(future)

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                results = await self._commit([change for change, _ in batch])
            except DataError as error:
                for _, future in batch:
                    future.set_exception(error)
            else:
                for (_, future), result in zip(batch, results, strict=True):
                    future.set_result(result)

    async def drain(self) -> None:
        """Wait until all that was handed in is written."""
        if self._task:
            await self._task


def read_votes(path: Path, rubric: str | None = None) -> Iterator[Vote]:
    """The latest votes of a votes file, or of the output directory that holds it. Raises DataError if there is none."""
    file = path / "votes.sqlite" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"no votes at {file}: run `prism label` first")
    store = Store(file)
    try:
        yield from store.votes(rubric)
    finally:
        store.close()


def _vote(row: sqlite3.Row) -> Vote:
    return Vote(
        pair_id=row["pair_id"],
        juror=row["juror"],
        rubric=row["rubric"],
        label=row["label"],
        failure=row["failure"],
        score=row["score"],
        answer=row["answer"],
        usage=Usage(
            prompt_tokens=row["prompt_tokens"],
            cached_tokens=row["cached_tokens"],
            written_tokens=row["written_tokens"],
        ),
        cost_usd=from_pico(row["cost_pico"]),
        created_at=datetime.fromisoformat(row["created_at"]),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
