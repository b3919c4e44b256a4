"""Jurors on this machine: which servers a panel needs, and starting each when it is first asked.

A machine that runs its own jurors has few cores and little memory. So they are asked one after the other, each about
all pairs (`turns`): one server at a time has all cores and its own prompt cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from anyio import to_thread

from prism.catalogue import CATALOGUE, verified_file
from prism.errors import EngineError, InputError, PanelError
from prism.labeling.panel import ApiJuror, Panel
from prism.llm.failures import Broken
from prism.llm.local_server import LocalServer, Program


class OnDemand:
    """A server that starts when its address is asked for. Belongs to one event loop."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self._starting = asyncio.Lock()
        self._started = False
        self._failed: Broken | None = None

    async def url(self) -> str:
        """Raises Broken when it does not come up, and again whenever asked."""
        async with self._starting:
            if self._failed:
                raise self._failed
            if not self._started:
                try:
                    await to_thread.run_sync(self._server.start, abandon_on_cancel=True)
                except (EngineError, InputError) as error:
                    self._failed = Broken(str(error))
                    raise self._failed from None
                self._started = True
        return self._server.url

    def gone(self) -> str | None:
        """How it ended; None while it lives."""
        return self._server.gone()

    async def aclose(self) -> None:
        await to_thread.run_sync(self._server.end)


def servers_for(panel: Panel, logs: Path, program: Program | None = None) -> dict[str, OnDemand]:
    """Juror -> its server, for each whose provider has a model of this machine; nothing is started.

    Raises PanelError without such jurors, CheckpointError or InputError for a model that is not here, InputError where
    nothing can serve it or memory does not suffice for it alone.
    """
    found: dict[str, OnDemand] = {}
    for juror in panel.jurors:
        local = panel.providers[juror.provider].local if isinstance(juror, ApiJuror) else None
        if isinstance(juror, ApiJuror) and local:
            server = LocalServer(
                gguf_file(local.model),
                juror.model,
                log=logs / f"{juror.name}.log",
                context_tokens=local.context_tokens,
                threads=local.threads,
                chat_format=local.chat_format,
                logits=juror.read == "logits",
                program=program,
            )
            server.require_memory()
            found[juror.name] = OnDemand(server)
    if not found:
        raise PanelError(f"panel {panel.name} has no juror to start: none of its providers has `local`")
    return found


def gguf_file(model: str) -> Path:
    """The file of a model by its name in `prism pull`'s list, verified, or by its path.

    Raises CheckpointError for one of the list that is not here, InputError for what is neither.
    """
    base = CATALOGUE.get(model)
    if base:
        return verified_file(base)
    path = Path(model)
    if not path.is_file():
        raise InputError(f"no model {model}: expected a GGUF file, or one of {', '.join(CATALOGUE)}")
    return path


def turns(panel: Panel, servers: Mapping[str, OnDemand]) -> list[frozenset[str]]:
    """Who is asked together: each juror with a server alone, the others with their neighbours, in the panel's order."""
    found: list[set[str]] = []
    for juror in panel.jurors:
        alone = juror.name in servers
        if alone or not found or found[-1] & servers.keys():
            found.append(set())
        found[-1].add(juror.name)
    return [frozenset(names) for names in found]
