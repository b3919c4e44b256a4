"""The one process that writes a votes file for workers elsewhere, and keeps the providers' accounts for all of them.

Workers hold nothing that cannot be lost: before a shard they are told which votes there are, each request is on record
before it is sent and each vote on disk before it counts, as in a run without workers. A worker that dies has its shard
done again by another, which asks only what the store does not have.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from prism.errors import DataError
from prism.labeling.panel import Panel
from prism.labeling.run import accounts, still_valid
from prism.labeling.store import Change, Committer, Store
from prism.labeling.voting import Known
from prism.llm.allowance import Allowance
from prism.types import Usage

_MOST_DEATHS = 5
"""Of workers, on one shard, before the run ends: its pairs may be what kills them."""

Attempt = tuple[int, int]
"""Part, and how often it was begun."""
Call = Callable[..., Awaitable[Any]]
"""`await call("turn", "provider", usage)`: one of the coordinator's methods, wherever it runs."""


class Coordinator:
    """Lives in one event loop."""

    def __init__(self, panel: Panel, votes: Path, retry_failures: bool = False) -> None:
        self._panel = panel
        self._votes = votes
        self._retry_failures = retry_failures
        self._store: Store | None = None
        self._accounts: dict[str, Allowance] = {}
        self._begun: Counter[int] = Counter()
        self._aside: dict[int, list[tuple[str, Decimal]]] = {}
        """Part -> (provider, most_usd) of the requests under way."""

    async def open(self) -> None:
        """Raises DataError when the votes file cannot be opened."""
        self._store = Store(self._votes)
        self._committer = Committer.for_store(self._store)
        self._accounts = accounts(self._panel, self._store)

    async def begin(self, shard: int, pair_ids: Sequence[str]) -> tuple[Attempt, list[Known]]:
        """The attempt, and what is known of each pair.

        A shard that was begun before has lost its worker: what that one had under way counts as spent. Raises DataError
        when a shard has cost too many workers.
        """
        if self._store is None:
            raise DataError(f"{self._votes} was asked before it was opened")
        self._begun[shard] += 1
        if self._begun[shard] > _MOST_DEATHS:
            raise DataError(f"{_MOST_DEATHS} workers died over part {shard}: run without --workers to see why")
        for provider, most_usd in self._aside.pop(shard, []):
            self._accounts[provider].settle(most_usd, most_usd)
        self._aside[shard] = []
        await self._committer.drain()
        votes = (self._store.votes_on(id_, self._panel.rubric.key) for id_ in pair_ids)
        return (shard, self._begun[shard]), [still_valid(known, self._retry_failures) for known in votes]

    async def commit(self, changes: Sequence[Change]) -> list[Any]:
        """Changes of several workers go into one transaction."""
        writes = (self._committer.write(change.method, *change.arguments, paid=change.paid) for change in changes)
        return await asyncio.gather(*writes)

    async def turn(self, provider: str, estimate: Usage) -> None:
        await self._accounts[provider].turn(estimate)

    async def pause(self, provider: str, seconds: float) -> None:
        self._accounts[provider].pause(seconds)

    async def set_aside(self, attempt: Attempt, provider: str, most_usd: Decimal) -> None:
        """Raises OverBudget."""
        await self._accounts[provider].set_aside(most_usd)
        shard, begun = attempt
        if begun == self._begun[shard]:
            self._aside[shard].append((provider, most_usd))
        else:  # its worker died while it waited
            self._accounts[provider].settle(most_usd, Decimal(0))

    async def settle(self, attempt: Attempt, provider: str, most_usd: Decimal, paid_usd: Decimal) -> None:
        shard, begun = attempt
        if begun == self._begun[shard]:
            self._aside[shard].remove((provider, most_usd))
            self._accounts[provider].settle(most_usd, paid_usd)

    async def aclose(self) -> None:
        if self._store is not None:
            await self._committer.drain()
            self._store.close()
            self._store = None


class RemoteAccount:
    """A provider's allowance, as a worker sees it."""

    def __init__(self, call: Call, provider: str) -> None:
        self.attempt: Attempt = (0, 0)
        """What the worker is at."""
        self._call = call
        self._provider = provider
        self._told: set[asyncio.Task[Any]] = set()

    async def turn(self, estimate: Usage) -> None:
        await self._call("turn", self._provider, estimate)

    def pause(self, seconds: float) -> None:
        self._tell("pause", self._provider, seconds)

    async def set_aside(self, most_usd: Decimal) -> None:
        await self._call("set_aside", self.attempt, self._provider, most_usd)

    def settle(self, most_usd: Decimal, paid_usd: Decimal) -> None:
        self._tell("settle", self.attempt, self._provider, most_usd, paid_usd)

    def _tell(self, *message: Any) -> None:
        async def tell() -> None:
            await self._call(*message)

        task = asyncio.get_running_loop().create_task(tell())
        self._told.add(task)
        task.add_done_callback(self._told.discard)

    async def drain(self) -> None:
        """Wait until the coordinator has heard everything."""
        await asyncio.gather(*self._told)
