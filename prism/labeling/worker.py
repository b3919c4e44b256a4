"""Labels one part of a pairs file after another, in a process of its own; the keeper has the store and the accounts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prism.errors import InputError
from prism.labeling.jurors import Juror, make_jurors
from prism.labeling.keeper import Call, RemoteAccount
from prism.labeling.panel import Panel
from prism.labeling.parts import Part, read_part
from prism.labeling.polling import Poll, Standing, work_through
from prism.labeling.store import Committer
from prism.types import Record


class PartDone(Record):
    """What a worker did about one part."""

    lines: int
    not_asked: int = 0
    standings: tuple[Standing, ...] = ()
    """Of this part alone."""
    error: str | None = None
    """Why the run cannot go on."""


class Worker:
    """Belongs to one event loop. Models and connections are kept from part to part; nothing else is."""

    def __init__(self, panel: Panel, pairs: Path, call: Call, workers: int = 1) -> None:
        """`workers`: how many there are in all. Raises InputError, as `share` does."""
        self._panel = share(panel, workers)
        self._pairs = pairs
        self._call = call
        self._committer = Committer(partial(call, "commit"))
        self._accounts = {name: RemoteAccount(call, name) for name in panel.providers}
        self._jurors: Sequence[Juror] = ()
        self._stopped: dict[str, str] = {}

    async def label(self, part: Part) -> PartDone:
        """Ask about the pairs of a part what the store does not have. Raises PrismError when the run cannot go on."""
        await self._open()
        pairs = list(read_part(self._pairs, part))
        attempt, known = await self._call("begin", part.number, [pair.id for pair in pairs])
        for account in self._accounts.values():
            account.attempt = attempt
        standings = {
            juror.name: Standing(juror.name, stopped=self._stopped.get(juror.name)) for juror in self._panel.jurors
        }
        poll = Poll(self._panel, self._jurors, self._committer, standings)
        waiting = iter(zip(pairs, known, strict=True))

        async def work() -> None:
            for pair, votes in waiting:
                await poll.label(pair, votes)

        await work_through(self._panel, work)
        for account in self._accounts.values():
            await account.drain()
        self._stopped = {name: standing.stopped for name, standing in standings.items() if standing.stopped}
        return PartDone(
            lines=len(pairs) + len(part.skip), not_asked=poll.not_asked, standings=tuple(standings.values())
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
    """The panel as one of so many workers may use it: with its part of the requests under way at once.

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
