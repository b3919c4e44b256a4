"""`prism label`: ask a panel about pairs, watch it work, see what it did."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prism.errors import InputError
from prism.outputs import writable_folder

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from prism.labeling.estimate import CostEstimate
    from prism.labeling.local import OwnModels
    from prism.labeling.panel import Panel
    from prism.labeling.reports import LabelingReport
    from prism.labeling.run import Progress
    from prism.labeling.voting import RunState

PanelOption = Annotated[Path, typer.Argument(help="YAML file: jurors, rubric, providers, budgets (configs/panels).")]
Pairs = Annotated[Path, typer.Argument(help="JSONL with query and document, or qrels for recorded votes.")]
Out = Annotated[
    Path, typer.Argument(help="Directory for votes.sqlite, labels.jsonl and report.json.", callback=writable_folder)
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only estimate calls, tokens and cost; with --start-local say what is here.")
]
OnBadLine = Annotated[
    Literal["stop", "skip"], typer.Option(help="A line that is no pair: refuse the file, or count and go on.")
]
RetryFailures = Annotated[
    bool, typer.Option("--retry-failures", help="Ask once more where a juror refused or could not be read.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first pairs of the file.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Ray workers, here or on RAY_ADDRESS; default: none, this process asks.")
]
GpusPerWorker = Annotated[float, typer.Option(min=0, help="With --workers: GPUs each of them gets.")]
StartLocal = Annotated[
    bool,
    typer.Option("--start-local", help="Serve the panel's own models with llama.cpp, one after the other."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report (or the estimate) as JSON.")]


def label(
    panel: PanelOption,
    pairs: Pairs,
    out: Out,
    dry_run: DryRun = False,
    on_bad_line: OnBadLine = "stop",
    retry_failures: RetryFailures = False,
    limit: Limit = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = 0.0,
    start_local: StartLocal = False,
    as_json: AsJson = False,
) -> None:
    """Label query-document pairs with a panel of jurors.

    Begin with --dry-run. Every vote is on disk before it counts: stop the command whenever you like, even with kill -9,
    and run it again to go on. A juror whose key is missing, wrong or out of credit stops alone, and the exit code is 1.
    One that got no answer to some questions (a refused text, a busy server) is asked those again by the next run, and
    the exit code is 1, too. Keys come from the environment variables that the panel file names.

    --workers spreads the work over processes, on this machine or a Ray cluster: for millions of pairs, or a GPU for
    each local model. A worker may die: another goes on with its pairs, and the store says what is left to ask.

    --start-local serves the models that the panel names under `local` on this machine: no key, no account. Their logs
    are in OUT/servers, and they end with this command, however it ends.
    """
    from prism.labeling.panel import load_panel

    if start_local and workers is not None:
        raise InputError("--start-local is for one process on this machine: leave out --workers")
    loaded = load_panel(panel)
    if dry_run:
        _estimate(loaded, pairs, out, limit, start_local=start_local, as_json=as_json)
        return
    options = {"on_bad_line": on_bad_line, "retry_failures": retry_failures, "limit": limit}
    report = _ask(loaded, pairs, out, workers=workers, gpus=gpus_per_worker, start_local=start_local, **options)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        _print_report(report, out)
    if report.stopped or report.interrupted or any(juror.missed for juror in report.jurors):
        raise typer.Exit(1)


def _ask(
    panel: Panel, pairs: Path, out: Path, *, workers: int | None, gpus: float, start_local: bool, **options: Any
) -> LabelingReport:
    import anyio

    from prism.labeling.label_pairs import count_lines
    from prism.labeling.run import label as ask_panel

    limit = options["limit"]
    lines = count_lines(pairs)
    with _watch(lines if limit is None else min(limit, lines)) as progress:
        if workers is None:
            here = partial(ask_panel, panel, pairs, out, start_local=start_local, progress=progress, **options)
            return anyio.run(here)
        from prism.labeling.ray_workers import label_over_workers

        return label_over_workers(panel, pairs, out, workers, gpus=gpus, progress=progress, **options)


# --- while it runs ---------------------------------------------------------------------------------------------------


@contextmanager
def _watch(lines: int) -> Iterator[Progress]:
    """A live view on a terminal, a line now and then elsewhere; both on standard error."""
    console = _console(stderr=True)
    if not console.is_terminal:
        yield _plain(lines)
        return
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    who = TextColumn("{task.description}")
    bar = Progress(who, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
    task = bar.add_task("lines", total=lines)
    seen: list[RunState] = []

    def view() -> Group:
        return Group(bar, _standings(seen[0])) if seen else Group(bar)

    def progress(state: RunState) -> None:
        seen[:] = [state]
        bar.update(task, completed=state.counts.finished, description=state.asking or "lines")

    with Live(get_renderable=view, console=console, refresh_per_second=4):
        yield progress


def _plain(lines: int) -> Progress:
    from prism.reports.bar import ProgressLines

    told = ProgressLines(lines, "lines")

    def progress(state: RunState) -> None:
        spent = sum((standing.spent_usd for standing in state.standings.values()), Decimal(0))
        told.reached(state.counts.finished, state.asking or "lines", f", ${spent:.4f} spent")

    return progress


def _standings(state: RunState) -> Table:
    table = _table("juror", "answers", "failures", "no answer", "spent")
    for standing in state.standings.values():
        table.add_row(
            standing.name,
            f"{standing.asked:,}",
            f"{standing.failures:,}",
            f"{standing.missed.total():,}",
            f"${standing.spent_usd:.4f}",
            _plain_text(standing.stopped or ""),
        )
    return table


# --- before and after ------------------------------------------------------------------------------------------------


def _estimate(panel: Panel, pairs: Path, out: Path, limit: int | None, *, start_local: bool, as_json: bool) -> None:
    from prism.labeling.estimate import estimate_cost

    found = estimate_cost(panel, pairs, out, limit, start_local=start_local)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _print_estimate(found)


def _print_estimate(found: CostEstimate) -> None:
    table = _table("juror", "questions", "tokens in", "tokens out", "expected", "at most", "spent so far", "key")
    for juror in found.jurors:
        table.add_row(
            juror.name,
            f"{juror.questions:,}",
            f"{juror.usage.prompt_tokens:,}",
            f"{juror.usage.written_tokens:,}",
            f"${juror.expected_usd:.4f}",
            f"${juror.most_usd:.4f}",
            f"${juror.spent_usd:.4f}",
            _plain_text(juror.key),
        )
    _console().print(table)
    expected = sum((juror.expected_usd for juror in found.jurors), Decimal(0))
    most = sum((juror.most_usd for juror in found.jurors), Decimal(0))
    typer.echo(
        f"{found.pairs:,} pairs ({found.repeated:,} repeated lines). About ${expected:.4f}, at most ${most:.4f}."
    )
    typer.echo("Tokens are estimated at four bytes each; tries that time out come on top, within the budgets.")
    if found.sequential:
        typer.echo("The panel is sequential: it stops early and asks fewer questions than this.")
    for juror in found.jurors:
        if juror.observer:
            typer.echo(f"{juror.name} is an observer: its votes are stored and compared, and decide nothing.")
        if juror.missing:
            typer.echo(f"{juror.name}: its model is not here yet: run `prism pull {juror.missing}`")
        if juror.seconds is not None and juror.questions:
            typer.echo(
                f"{juror.name}: about {juror.seconds / 60:,.0f} min for what is left, going by its last answers."
            )
    if found.served:
        _print_served(found.served, {juror.name for juror in found.jurors if juror.questions and juror.seconds is None})
    _print_bad_lines(found.bad_lines, found.bad_line_count)


def _print_served(served: OwnModels, untimed: Container[str]) -> None:
    typer.echo("Served here one after the other, each with all cores and about all of its pairs:")
    for one in served.models:
        typer.echo(f"  {one.juror}: {_shown(one.problem or f'{one.model} is here')}")
    typer.echo(f"  {served.program or 'llama.cpp has its server here'}")
    if any(one.juror in untimed for one in served.models):
        typer.echo("How long that takes shows after a few answers: run with --limit 20, then --dry-run again.")


def _print_report(report: LabelingReport, out: Path) -> None:
    table = _table("juror", "votes", "failures", "no answer", "calls", "tokens in", "tokens out", "paid", "unsure")
    for juror in report.jurors:
        failures = ", ".join(f"{n:,} {kind}" for kind, n in juror.failures.items())
        table.add_row(
            juror.name,
            f"{juror.votes:,}",
            f"{juror.failure_rate:.1%}" + (f" ({failures})" if failures else ""),
            f"{sum(juror.missed.values()):,}",
            f"{juror.calls:,}",
            f"{juror.usage.prompt_tokens:,}",
            f"{juror.usage.written_tokens:,}",
            f"${juror.paid_usd:.4f}",
            f"${juror.uncertain_usd:.4f}",
        )
    _console().print(table)
    verdicts = ", ".join(f"{n:,} {verdict}" for verdict, n in report.verdicts.items())
    typer.echo(f"{report.pairs:,} pairs: {verdicts}; {report.not_asked:,} votes saved by stopping early -> {out}")
    for juror in report.jurors:
        if juror.in_flight:
            typer.echo(f"{juror.name}: {juror.in_flight} requests were under way when a run died: maybe paid twice")
        if juror.missed:
            kinds = ", ".join(f"{n:,} {kind}" for kind, n in juror.missed.items())
            why = f"; the last: {juror.last_missed}" if juror.last_missed else ""
            typer.echo(_shown(f"{juror.name} got no answer to {kinds}: run the same command again{why}"), err=True)
        if juror.stopped:
            typer.echo(_shown(f"{juror.name} stopped: {juror.stopped}"), err=True)
    if report.unchanged:
        typer.echo(f"finished before: nothing was left to ask, {out} is unchanged")
    if report.interrupted:
        typer.echo("interrupted: run the same command to go on", err=True)
    _print_bad_lines(report.first_bad_lines, report.bad_lines)


def _print_bad_lines(first: tuple[str, ...], count: int) -> None:
    for line in first:
        typer.echo(_shown(line), err=True)
    if count > len(first):
        typer.echo(f"… and {count - len(first):,} more bad lines", err=True)


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for place, column in enumerate(columns):
        left = place == 0 or column == "key"
        table.add_column(column, justify="left" if left else "right", no_wrap=place == 0, overflow="fold")
    return table


def _plain_text(text: str) -> str:
    from rich.markup import escape

    return escape(_shown(text))


def _shown(text: str) -> str:
    from prism.text import printable

    return " ".join(printable(text).split())


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, 140)  # a file has no edge to wrap at
    return console
