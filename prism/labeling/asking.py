"""Many questions to a paid model, each asked once: answers go to an append-only file before the next question counts.

    kept = Kept(out / "judge.jsonl", Rating)
    asked = await ask_all(questions, rate, kept, at_once=8)

Killing the program, however rudely, costs at most the answers under way; the same call then goes on where it stood.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import Field

from prism.errors import DataError
from prism.labeling.failures import Stop, Undelivered
from prism.text import clean
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
        finished: dict[str, R] = {}
        content = self.path.read_bytes() if self.path.is_file() else b""
        start = 0
        for number, line in enumerate(content.splitlines(keepends=True), start=1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("cut off")
                row = json.loads(line)
                finished[str(row["key"])] = self._kind.model_validate(row["value"])
            except (ValueError, KeyError, TypeError) as error:  # pydantic's own is a ValueError
                if start + len(line) < len(content):
                    raise DataError(f"{self.path}:{number}: not a finished record: move the file away") from error
                os.truncate(self.path, start)
                self._say(f"dropped line {number} of {self.path.name}: it was cut off; it is done again")
                break
            start += len(line)
        return finished

    def append(self, key: str, value: R) -> None:
        """One write, on disk when this returns."""
        line = json.dumps({"key": key, "value": value.model_dump(mode="json")}, ensure_ascii=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(clean(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


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
