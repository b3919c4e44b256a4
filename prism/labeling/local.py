"""Jurors on this machine: which clients serve their models, and who is asked together with whom.

A machine that runs its own jurors has few cores and little memory. So they are asked one after the other, each about
all pairs (`turns`): one server at a time has all cores and its own prompt cache.
"""

from __future__ import annotations

from collections.abc import Container
from functools import partial
from pathlib import Path

from prism.catalogue import model_file
from prism.errors import CheckpointError, InputError, PanelError
from prism.labeling.panel import ApiJuror, LocalModel, Panel
from prism.llm.local_server import LocalServer, find_program
from prism.llm.served import ServedClient
from prism.types import Record


class OwnModel(Record):
    """What is known of a juror's model before it is asked."""

    juror: str
    model: str
    problem: str | None
    """Why it cannot be served now, and what to do; None: it is here, and there is memory for it."""


class OwnModels(Record):
    """What `--start-local` finds on this machine."""

    program: str | None
    """Why llama.cpp's server cannot be started, and what to do; None: it is here."""
    models: tuple[OwnModel, ...]


def served_clients(panel: Panel, logs: Path) -> dict[str, ServedClient]:
    """Juror -> the client that serves its model, for each whose provider has one of this machine.

    Raises PanelError without such jurors.
    """
    return {
        juror.name: ServedClient(
            panel.providers[juror.provider], partial(_server, juror, local, logs), name=juror.provider
        )
        for juror, local in _of_this_machine(panel)
    }


def look_around(panel: Panel, logs: Path) -> OwnModels:
    """Which of the panel's own models could be served now. Files are read, nothing is started or written.

    Raises PanelError where no juror has such a model.
    """
    problem = None
    try:
        find_program()
    except InputError as error:
        problem = str(error)
    found = []
    for juror, local in _of_this_machine(panel):
        lacks = None
        try:
            if problem:
                model_file(local.model)
            else:
                _server(juror, local, logs).require_memory()
        except (CheckpointError, InputError) as error:
            lacks = str(error)
        found.append(OwnModel(juror=juror.name, model=local.model, problem=lacks))
    return OwnModels(program=problem, models=tuple(found))


def _of_this_machine(panel: Panel) -> list[tuple[ApiJuror, LocalModel]]:
    jurors = [juror for juror in panel.jurors if isinstance(juror, ApiJuror)]
    found = [(juror, local) for juror in jurors if (local := panel.providers[juror.provider].local)]
    if not found:
        raise PanelError(f"panel {panel.name} has no juror to start: none of its providers has `local`")
    return found


def _server(juror: ApiJuror, local: LocalModel, logs: Path) -> LocalServer:
    return LocalServer(
        model_file(local.model),
        juror.model,
        log=logs / f"{juror.name}.log",
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
