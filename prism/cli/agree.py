"""`prism agree`: how far label files agree. Reads, warns, computes, prints; heavy imports wait until needed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prism.errors import DataError, InputError
from prism.outputs import writable_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from prism.files.label_files import LabelFile, LabelTable, Scale
    from prism.labeling.comparison import Agreement, PairAgreement
    from prism.labeling.rankings import RankingAgreement
    from prism.measures.agreement import Estimate
    from prism.types import Run


Files = Annotated[
    list[Path],
    typer.Argument(help="Label files, at least two; the first is the reference the others are compared with."),
]
ScaleOption = Annotated[
    str | None, typer.Option(help="Labels allowed, as LOW:HIGH (0:3); any other label is then an error.")
]
Runs = Annotated[
    list[Path] | None,
    typer.Option(help="Run file, or folder of them: correlate how the label files rank these systems."),
]
Measure = Annotated[str, typer.Option(help="What ranks the systems of --runs.")]
Samples = Annotated[int, typer.Option(min=0, help="Bootstrap samples of queries; 0: no intervals.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.")]
Jurors = Annotated[bool, typer.Option("--jurors", help="Compare each juror of JSONL files after the first, too.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the full comparison as JSON.")]
Plots = Annotated[Path | None, typer.Option(help="Folder for kappa.png and confusion.png.", callback=writable_folder)]


def agree(
    files: Files,
    scale: ScaleOption = None,
    runs: Runs = None,
    measure: Measure = "nDCG@10",
    samples: Samples = 2000,
    seed: Seed = 0,
    jurors: Jurors = False,
    as_json: AsJson = False,
    plots: Plots = None,
) -> None:
    """Compare label files: kappa, alpha, exact and within-one rates, confusion matrices.

    Files are TREC qrels (`query 0 document label`), three columns (`query document label`), separated by tabs or by
    spaces, or JSONL such as the labels.jsonl of prism label. Pairs that the first file does not have are left out;
    intervals are 95 %, over queries.

    Examples: prism agree people.qrels model-a.qrels model-b.qrels --plots pictures

    prism agree people.jsonl labels/labels.jsonl --jurors
    """
    from prism.files.label_files import line_up
    from prism.labeling.comparison import compare_judges

    read = _read_files(files, None if scale is None else parse_scale(scale), jurors=jurors)
    table = line_up(read)
    systems = _read_runs(runs or [])
    for warning in warnings_of(read, table):
        _say(f"warning: {warning}")
    with _progress(len(read) - 1) as step:
        agreement = compare_judges(table, samples, seed, step)
    rankings = _rankings(read, systems, measure, samples, seed) if runs else ()
    if as_json:
        _print_json(agreement, rankings)
    else:
        _print(agreement, rankings)
    if plots is not None:
        _save_plots(agreement, plots)


def _read_files(paths: Sequence[Path], allowed: Scale | None, *, jurors: bool) -> list[LabelFile]:
    """The reference, then the others, with their jurors if asked for."""
    from prism.files.label_files import read_labels

    if len(paths) < 2:
        raise InputError("agreement needs at least two label files, got one: name the reference first, then the others")
    read = [read_labels(paths[0], allowed)]
    for path in paths[1:]:
        read += _read_all(path, allowed) if jurors else [read_labels(path, allowed)]
    return read


def _rankings(
    files: Sequence[LabelFile], systems: dict[str, Run], measure: str, samples: int, seed: int
) -> tuple[RankingAgreement, ...]:
    from prism.labeling.rankings import compare_rankings

    return compare_rankings(files, systems, measure, samples, seed)


def _save_plots(agreement: Agreement, folder: Path) -> None:
    from prism.labeling.agreement_plots import save

    for path in save(agreement, folder):
        _say(f"wrote {path}")


def _read_all(path: Path, scale: Scale | None) -> list[LabelFile]:
    """A label file; of JSONL, each juror's part as well."""
    from prism.files.label_files import read_labels, read_records
    from prism.files.lines import is_json
    from prism.files.trec import WIDEST

    return read_records(path, scale or WIDEST) if is_json(path) else [read_labels(path, scale)]


def parse_scale(text: str) -> Scale:
    """`0:3` -> (0, 3)."""
    found = re.fullmatch(r"\s*([+-]?[0-9]{1,6})\s*:\s*([+-]?[0-9]{1,6})\s*", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise InputError(f"--scale {text!r}: expected LOW:HIGH with LOW below HIGH, such as 0:3")
    return int(found[1]), int(found[2])


def warnings_of(files: Sequence[LabelFile], table: LabelTable) -> Iterator[str]:
    """What a reader of the figures should know: labels the reference never uses, pairs that do not match."""
    low, high = files[0].scale()
    for index, file in enumerate(files[1:], start=1):
        outside = file.outside((low, high))
        if outside:
            first = outside[0]
            yield (
                f"{file.path}:{file.lines[first]}: label {file.labels[first]} is outside {low} to {high}, the labels of"
                f" {files[0].path} ({len(outside)} such); counted as its own label: --scale {low}:{high} refuses it"
            )
        missing = sum(place not in file.labels for place in files[0].labels)
        if missing:
            yield f"{file.path}: {missing} of {len(table.query_of)} pairs of the reference have no label here"
        if table.left_out[index]:
            yield f"{file.path}: {table.left_out[index]} pairs are not in {files[0].path} and are left out"


def _read_runs(given: Sequence[Path]) -> dict[str, Run]:
    """System -> its run; a folder stands for the files in it."""
    from prism.files.trec import read_run

    paths = [path for place in given for path in (sorted(place.iterdir()) if place.is_dir() else [place])]
    systems: dict[str, Run] = {}
    for path in paths:
        if path.stem in systems:
            raise DataError(f"{path}: two run files are named {path.stem!r}: a system's name is its file's, rename one")
        systems[path.stem] = read_run(path)
    return systems


# --- printing --------------------------------------------------------------------------------------------------------


def _print_json(agreement: Agreement, rankings: Sequence[RankingAgreement]) -> None:
    typer.echo(_json({**agreement.model_dump(mode="json"), "rankings": [r.model_dump(mode="json") for r in rankings]}))


def _print(agreement: Agreement, rankings: Sequence[RankingAgreement]) -> None:
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False)
    intervals = f"; [95 % intervals from {agreement.samples} samples of queries]" if agreement.samples else ""
    console.print(
        f"{agreement.pairs} pairs of {agreement.queries} queries, labels {', '.join(map(str, agreement.labels))},"
        f" against {_plain(agreement.reference)}{intervals}"
    )
    console.print("\nCohen's kappa")
    console.print(_kappas(agreement))
    console.print("Krippendorff's alpha, agreement rates, kappa query by query as median (lowest, highest)")
    console.print(_rates(agreement))
    group = agreement.group
    if group.judges > 2:
        console.print(
            f"All {group.judges} together: Fleiss' kappa {group.fleiss} on {group.complete_pairs} pairs; Krippendorff's"
            f" alpha nominal {group.alpha['nominal']}, ordinal {group.alpha['ordinal']},"
            f" interval {group.alpha['interval']}"
        )
    if len(agreement.compared) == 1:
        console.print(f"Rows: {_plain(agreement.reference)}, columns: {_plain(agreement.compared[0].name)}")
        console.print(_confusion(agreement.compared[0], agreement.labels))
    if rankings:
        console.print(f"\nRankings of {rankings[0].systems} systems by {rankings[0].measure}")
        console.print(_ranked(rankings))


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
    return table


def _kappas(agreement: Agreement) -> Table:
    cuts = agreement.labels[1:]
    table = _table("judge", "pairs", "nominal", "linear", "quadratic", *(f">= {cut}" for cut in cuts))
    for judged in agreement.compared:
        binary = [_short(judged.kappa_binary[cut]) for cut in cuts]
        row = [_short(judged.kappa_linear), _short(judged.kappa_quadratic), *binary]
        table.add_row(_plain(judged.name), str(judged.pairs), str(judged.kappa), *row)
    return table


def _rates(agreement: Agreement) -> Table:
    columns = ("alpha nominal", "ordinal", "interval", "exact", "within 1", "kappa by query")
    table = _table("judge", *columns)
    for judged in agreement.compared:
        alphas = [_short(judged.alpha["nominal"]), str(judged.alpha["ordinal"]), _short(judged.alpha["interval"])]
        rates = [_short(judged.exact), _short(judged.within_one)]
        table.add_row(_plain(judged.name), *alphas, *rates, _spread(judged))
    return table


def _spread(judged: PairAgreement) -> str:
    by_query = judged.by_query
    if by_query.median is None:
        return "undefined"
    return f"{by_query.median:.2f} ({by_query.lowest:.2f}, {by_query.highest:.2f})"


def _confusion(judged: PairAgreement, labels: Sequence[int]) -> Table:
    table = _table("", *(str(label) for label in labels))
    for label, counts in zip(labels, judged.confusion, strict=True):
        table.add_row(str(label), *(str(count) for count in counts))
    return table


def _ranked(rankings: Sequence[RankingAgreement]) -> Table:
    table = _table("judge", "queries", "Kendall's tau-b", "Spearman's rho")
    for ranking in rankings:
        table.add_row(_plain(ranking.name), str(ranking.queries), str(ranking.tau), str(ranking.rho))
    return table


def _short(estimate: Estimate) -> str:
    return "-" if estimate.value is None else f"{estimate.value:.3f}"


def _plain(name: str) -> str:
    from prism.text import printable

    return " ".join(printable(name).split())


def _json(body: dict[str, Any]) -> str:
    """ASCII: names are file names, and nothing in them may steer a terminal."""
    import json

    return json.dumps(body, indent=2, allow_nan=False).replace("\x7f", "\\u007f")


def _say(message: str) -> None:
    typer.echo(_plain(message), err=True)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("judges"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)
