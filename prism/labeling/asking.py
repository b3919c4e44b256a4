"""Many questions to a paid model, each asked once: answers go to an append-only file before the next question counts.

    kept = Kept(out / "judge.jsonl", Rating)
    asked = await ask_all(questions, rate, kept, at_once=8)

Killing the program, however rudely, costs at most the answers under way; the same call then goes on where it stood.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import Field

from prism.files.jsonl import dumps
from prism.files.ledger import append_line, read_ledger
from prism.llm.failures import Stop, Undelivered
from prism.types import Record

R = TypeVar("R", bound=Record)
T = TypeVar("T")
Say = Callable[[str], None]


class Kept(Generic[R]):
    """Finished work by key, one line each: `{"key": ..., "value": ...}`. One process writes a file at a time."""

    def __init__(self, path: Path, kind: type[R], say: Say = lambda _: None) -> None:
        self.path = path
        self._kind = kind
        self._say = say

    def read(self) -> dict[str, R]:
        """Key -> value; of two lines with one key the later counts. A last line that was cut off is dropped.

        Raises DataError naming file and line when anything else is not one of our lines.
        """
        cure = "move the file away"
        return dict(read_ledger(self.path, self._read, what="a finished record", cure=cure, say=self._say))

    def _read(self, line: bytes) -> tuple[str, R]:
        row = json.loads(line)
        return str(row["key"]), self._kind.model_validate(row["value"])

    def append(self, key: str, value: R) -> None:
        """One write, on disk when this returns."""
        append_line(self.path, dumps({"key": key, "value": value.model_dump(mode="json")}))


class Asked(Record):
    """How a round of questions went."""

    answered: int = 0
    """Answers kept in this run."""
    undelivered: dict[str, int] = Field(default_factory=dict)
    """Why questions got no answer -> how many; the next run asks them again."""
    stopped: str | None = None
    """Why nothing more could be asked; the rest is for the next run."""


async def ask_all(
    items: Iterable[tuple[str, T]],
    ask: Callable[[T], Awaitable[R]],
    kept: Kept[R],
    *,
    at_once: int,
    progress: Callable[[], None] = lambda: None,
) -> Asked:
    """Ask each (key, question) with `at_once` under way; answers are kept as they come. `progress` hears of each.

    `ask` turns a bad but paid answer into a record of its own. What it raises of Undelivered is counted, Stop ends the
    round once those under way are finished, and anything else ends it at once. Memory does not grow with `items`.
    """
    waiting: Iterator[tuple[str, T]] = iter(items)
    undelivered: Counter[str] = Counter()
    answered = 0
    stopped: list[str] = []

    async def work() -> None:
        nonlocal answered
        for key, item in waiting:
            try:
                value = await ask(item)
            except Undelivered as error:
                undelivered[error.kind] += 1
            except Stop as error:
                stopped.append(str(error))
            else:
                kept.append(key, value)
                answered += 1
            progress()
            if stopped:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
    return Asked(answered=answered, undelivered=dict(undelivered), stopped=next(iter(stopped), None))
