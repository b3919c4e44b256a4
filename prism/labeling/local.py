"""Jurors on this machine: which clients serve their models, and who is asked together with whom.

A machine that runs its own jurors has few cores and little memory. So they are asked one after the other, each about
all pairs (`turns`): one server at a time has all cores and its own prompt cache.
"""

from __future__ import annotations

from collections.abc import Container
from functools import partial
from pathlib import Path

from prism.catalogue import model_file
from prism.errors import PanelError
from prism.labeling.panel import ApiJuror, LocalModel, Panel
from prism.llm.local_server import LocalServer
from prism.llm.served import ServedClient


def served_clients(panel: Panel, logs: Path) -> dict[str, ServedClient]:
    """Juror -> the client that serves its model, for each whose provider has one of this machine.

    Raises PanelError without such jurors.
    """
    found: dict[str, ServedClient] = {}
    for juror in panel.jurors:
        provider = panel.providers[juror.provider] if isinstance(juror, ApiJuror) else None
        if isinstance(juror, ApiJuror) and provider and provider.local:
            make = partial(_server, juror, provider.local, logs / f"{juror.name}.log")
            found[juror.name] = ServedClient(provider, make, name=juror.provider)
    if not found:
        raise PanelError(f"panel {panel.name} has no juror to start: none of its providers has `local`")
    return found


def _server(juror: ApiJuror, local: LocalModel, log: Path) -> LocalServer:
    return LocalServer(
        model_file(local.model),
        juror.model,
        log=log,
        context_tokens=local.context_tokens,
        threads=local.threads,
        chat_format=local.chat_format,
        logits=juror.read == "logits",
    )


def turns(panel: Panel, served: Container[str]) -> list[frozenset[str]]:
    """Who is asked together: each that is served alone, the others with their neighbours, in the panel's order."""
    found: list[set[str]] = []
    alone_before = True
    for juror in panel.jurors:
        alone = juror.name in served
        if alone or alone_before:
            found.append(set())
        found[-1].add(juror.name)
        alone_before = alone
    return [frozenset(names) for names in found]
