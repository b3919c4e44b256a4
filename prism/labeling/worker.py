"""Labels one shard of a pairs file after another, in a process of its own; the coordinator has store and accounts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prism.errors import InputError
from prism.labeling.coordinator import Call, RemoteAccount
from prism.labeling.jurors import Juror, make_jurors
from prism.labeling.panel import Panel
from prism.labeling.shards import Shard, read_shard
from prism.labeling.store import Committer
from prism.labeling.voting import Standing, Voting, work_through
from prism.types import Record


class ShardDone(Record):
    """What a worker did about one shard."""

    lines: int
    not_asked: int = 0
    standings: tuple[Standing, ...] = ()
    """Of this shard alone."""
    error: str | None = None
    """Why the run cannot go on."""


class Worker:
    """Belongs to one event loop. Models and connections are kept from shard to shard; nothing else is."""

    def __init__(self, panel: Panel, pairs: Path, call: Call, workers: int = 1) -> None:
        """`workers`: how many there are in all. Raises InputError, as `share` does."""
        self._panel = share(panel, workers)
        self._pairs = pairs
        self._call = call
        self._committer = Committer(partial(call, "commit"))
        self._accounts = {name: RemoteAccount(call, name) for name in panel.providers}
        self._jurors: Sequence[Juror] = ()
        self._stopped: dict[str, str] = {}

    async def label(self, shard: Shard) -> ShardDone:
        """Ask about the pairs of a shard what the store does not have. Raises PrismError when the run cannot go on."""
        await self._open()
        pairs = list(read_shard(self._pairs, shard))
        attempt, known = await self._call("begin", shard.number, [pair.id for pair in pairs])
        for account in self._accounts.values():
            account.attempt = attempt
        standings = {
            juror.name: Standing(juror.name, stopped=self._stopped.get(juror.name)) for juror in self._panel.jurors
        }
        voting = Voting(self._panel, self._jurors, self._committer, standings)
        waiting = iter(zip(pairs, known, strict=True))

        async def work() -> None:
            for pair, votes in waiting:
                await voting.label(pair, votes)

        await work_through(self._panel, work)
        for account in self._accounts.values():
            await account.drain()
        self._stopped = {name: standing.stopped for name, standing in standings.items() if standing.stopped}
        return ShardDone(
            lines=len(pairs) + len(shard.skip), not_asked=voting.not_asked, standings=tuple(standings.values())
        )

    async def _open(self) -> None:
        if not self._jurors:
            jurors = make_jurors(self._panel, self._accounts, self._committer)
            for juror in jurors:
                await juror.open()
            self._jurors = jurors

    async def aclose(self) -> None:
        for juror in self._jurors:
            await juror.aclose()


def share(panel: Panel, workers: int) -> Panel:
    """The panel as one of so many workers may use it: with its share of the requests under way at once.

    Raises InputError when there would be less than one for each.
    """
    providers = {}
    for name, provider in panel.providers.items():
        if provider.concurrency < workers:
            raise InputError(
                f"{workers} workers, but provider {name} is allowed {provider.concurrency} requests at once:"
                " take fewer workers, or raise its concurrency"
            )
        providers[name] = provider.model_copy(update={"concurrency": provider.concurrency // workers})
    return panel.model_copy(update={"providers": providers})
