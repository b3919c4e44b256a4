"""Many questions to a paid service, each asked once: an answer is kept before the next question counts.

    kept = Kept(out / "judge.sqlite", Rating)
    asked = await ask_all(questions, rate, kept.append, at_once=8)

Killing the program, however rudely, costs at most the answers under way; the same call then goes on where it stood.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from pydantic import Field

from prism.errors import PrismError
from prism.llm.failures import BadAnswer, Stop, Undelivered
from prism.types import Record

R = TypeVar("R")
T = TypeVar("T")


class Question(NamedTuple):
    """What to ask, filed under a key."""

    key: str
    content: Any


def answer_key(*parts: Any) -> str:
    """32 hexadecimal digits over everything that decides an answer."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


class Asked(Record):
    """How a round of questions went."""

    answered: int = 0
    """Answers kept in this run."""
    undelivered: dict[str, int] = Field(default_factory=dict)
    """Why questions got no answer -> how many; the next run asks them again."""
    failures: dict[str, str] = Field(default_factory=dict)
    """Key of such a question -> what was said."""
    stopped: str | None = None
    """Why nothing more could be asked; the rest is for the next run."""


async def ask_all(
    questions: Iterable[tuple[str, T]],
    ask: Callable[[T], Awaitable[R]],
    keep: Callable[[str, R], None],
    *,
    at_once: int,
    progress: Callable[[], None] = lambda: None,
) -> Asked:
    """Ask each (key, question) with `at_once` under way; answers are kept as they come. `progress` hears of each.

    `ask` may turn a bad but paid answer into a record of its own. What it raises of Undelivered and BadAnswer is
    counted. Stop, of which `stopped` tells, and any other PrismError (a malformed line, a full disk), which is raised,
    end the round once those under way are finished; anything else ends it at once. Memory grows with failures alone.
    """
    waiting: Iterator[tuple[str, T]] = iter(questions)
    undelivered: Counter[str] = Counter()
    failures: dict[str, str] = {}
    answered = 0
    ended: list[PrismError] = []

    async def work() -> None:
        nonlocal answered
        for key, question in waiting:
            try:
                keep(key, await ask(question))
                answered += 1
            except (Undelivered, BadAnswer) as error:
                undelivered[error.kind] += 1
                failures[key] = str(error)
            progress()
            if ended:
                return

    async def work_to_the_end() -> None:
        try:
            await work()
        except PrismError as error:
            ended.append(error)
            progress()

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work_to_the_end())
    if failed := next((error for error in ended if not isinstance(error, Stop)), None):
        raise failed
    stopped = str(ended[0]) if ended else None
    return Asked(answered=answered, undelivered=dict(undelivered), failures=failures, stopped=stopped)
