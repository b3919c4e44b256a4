"""Questions to paid services, asked once: answers are kept by what was asked, each when it arrives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from prism.errors import PrismError
from prism.files.ledger import Attempt, Ledger

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream


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


Ask = Callable[[Any], Awaitable[Answered]]
"""Asks one question. Raises a PrismError of a kind in `stops` when nothing more can be asked."""


async def ask_all(
    questions: Iterable[Question],
    ask: Ask,
    store: Ledger,
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
                    found = await ask(question.content)
                    store.put(question.key, found.answer, found.cost_usd, found.attempt)
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
