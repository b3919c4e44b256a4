"""Many questions to a paid model, each asked once: an answer is kept before the next question counts.

    kept = Kept(out / "judge.sqlite", Rating)
    asked = await ask_all(questions, rate, kept, at_once=8)

Killing the program, however rudely, costs at most the answers under way; the same call then goes on where it stood.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

from pydantic import Field

from prism.files.ledger import Kept
from prism.llm.failures import Stop, Undelivered
from prism.types import Record

R = TypeVar("R", bound=Record)
T = TypeVar("T")


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
