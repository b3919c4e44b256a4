"""`prism doctor`: the command and what it prints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prism import devices
from prism.cli.models import Template

if TYPE_CHECKING:
    from rich.console import Console

    from prism.doctor.examination import Examination
    from prism.doctor.exchange import Check
    from prism.doctor.targets import Target

_COLOURS = {"passed": "green", "failed": "bold red", "skipped": "dim"}


TargetOption = Annotated[
    str | None, typer.Argument(help="A checkpoint (mini, a folder, a hub id), or the URL of any rerank server.")
]
Dialect = Annotated[
    Literal["auto", "prism", "cohere", "jina", "voyage", "vllm", "tei", "sglang"],
    typer.Option(help="How the server is asked; auto: as it says itself, or as it answers."),
]
Model = Annotated[str | None, typer.Option(help="The model's name on the server; default: its first.")]
ApiKeyEnv = Annotated[str | None, typer.Option(help="The environment variable that holds the key.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for one answer of a server.")]
Only = Annotated[list[str] | None, typer.Option(help="Just this check; repeat. `golden` is all golden:*.")]
List = Annotated[bool, typer.Option("--list", help="Show the checks and leave.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the report there as JSON; -: print it.")]
Dtype = Annotated[devices.Dtype, typer.Option(help="Of a checkpoint's weights.")]
Device = Annotated[str, typer.Option(help="Where a checkpoint runs: auto, cpu, cuda, cuda:1, mps.")]


def doctor(
    target: TargetOption = None,
    dialect: Dialect = "auto",
    model: Model = None,
    api_key_env: ApiKeyEnv = None,
    timeout: Timeout = 60.0,
    only: Only = None,
    list_: List = False,
    json_: Json = None,
    template: Template = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Examine a reranker: does it read the prompt it needs, do scores depend on the pair alone, does it bear bad input?

    Servers in the dialects of Cohere, Jina, Voyage, vLLM, Text Embeddings Inference, SGLang and Prism. Known failures
    are called by name, with what to do. Ends with 0 when every check passed, 1 when one failed, 2 when the target could
    not be reached.
    """
    from prism.errors import InputError

    if list_:
        _print_checks()
        return
    if target is None:
        raise InputError("nothing to examine: name a checkpoint or the URL of a server (--list shows the checks)")
    server: dict[str, Any] = {"dialect": dialect, "model": model, "key_env": api_key_env, "timeout_s": timeout}
    opening = partial(_open, template=template, dtype=dtype, device=device, **server)
    report = _examined(target, opening, only or [], json_)
    if not report.passed:
        raise typer.Exit(1)


def _examined(target: str, opening: Callable[[str], Target], only: list[str], json_: Path | None) -> Examination:
    """Open the target, ask it, and print or write what was found."""
    from rich.console import Console

    from prism.doctor.examination import chosen, examine
    from prism.outputs import writable_file, write_text

    checks = chosen(only)
    to_file = None if json_ is None or str(json_) == "-" else writable_file(json_)
    console = Console(stderr=True, highlight=False)
    with console.status(f"opening {target}"):
        opened = opening(target)
    try:
        with _Bar(console, len(checks)) as bar:
            report = examine(opened, checks, bar.starting)
    finally:
        opened.close()
    if json_ is not None and to_file is None:
        typer.echo(report.model_dump_json(indent=2))
    else:
        _print(Console(highlight=False, markup=False, emoji=False), report)
        if to_file:
            write_text(to_file, report.model_dump_json(indent=2) + "\n")
    return report


def _open(
    target: str,
    *,
    dialect: str,
    model: str | None,
    key_env: str | None,
    timeout_s: float,
    template: str | None,
    dtype: devices.Dtype,
    device: str,
) -> Target:
    """Raises PrismError for options of the other kind of target, and for what cannot be reached."""
    from prism.doctor.opening import open_server, open_unchecked
    from prism.errors import InputError

    if target.startswith(("http://", "https://")):
        if template is not None:
            raise InputError("--template is for checkpoints: a server has its own")
        return open_server(target, dialect=dialect, model=model, key_env=key_env, timeout_s=timeout_s)
    if dialect != "auto" or model is not None or key_env is not None:
        raise InputError(f"--dialect, --model and --api-key-env are for servers, and {target!r} is no http:// address")
    return open_unchecked(target, template=template, dtype=dtype, device=device)


class _Bar:
    """A progress bar on standard error, where that is a terminal."""

    def __init__(self, console: Console, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=total)
        self._begun = False

    def starting(self, check: Check) -> None:
        self._progress.update(self._task, description=check.name, advance=1 if self._begun else 0)
        self._begun = True

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _print_checks() -> None:
    from rich.console import Console
    from rich.table import Table

    from prism.doctor.examination import CHECKS

    table = Table("check", "what it asks", box=None)
    for check in CHECKS:
        table.add_row(check.name, check.title)
    Console(highlight=False).print(table)


def _print(console: Console, report: Examination) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from prism.text import printable

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("sent", overflow="fold", ratio=2)
    table.add_column("got", overflow="fold", ratio=3)
    for finding in report.findings:
        got = f"{finding.failure}: {finding.got}" if finding.failure else finding.got
        style = _COLOURS[finding.status]
        table.add_row(
            Text(finding.check, "dim" if finding.status == "skipped" else ""),
            Text(finding.status, style),
            Text(printable(finding.sent)),
            Text(printable(got), style if finding.failure or finding.status == "skipped" else ""),
        )
    console.print(Text(printable(f"{report.target} ({report.dialect})"), "bold"))
    console.print(table)
    for diagnosis in report.diagnoses:
        console.print(Text.assemble((f"{diagnosis.failure}", "bold red"), f" ({', '.join(diagnosis.checks)})"))
        console.print(f"  {diagnosis.meaning}\n  what to do: {diagnosis.advice}", soft_wrap=True)
    counts = [sum(finding.status == status for finding in report.findings) for status in _COLOURS]
    console.print(f"{counts[0]} passed, {counts[1]} failed, {counts[2]} skipped")
