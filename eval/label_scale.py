"""Whether labelling stays small: synthetic pairs stream past recorded jurors; the peak memory of `prism label` is read.

    python eval/label_scale.py --pairs 10000 --pairs 100000 --pairs 1000000 --out eval/results/label_scale
    python eval/label_scale.py --pairs 100000 --workers 2 --out runs/label_scale_workers

Pairs, votes and labels lie in a temporary folder (about 1.6 GB for a million pairs). Each size is a run of the command
in a process of its own; afterwards every verdict is counted against what it must be. `prism-reranker[label]`, and
`[scale]` for workers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from typer import Option

from prism.errors import PrismError
from prism.labeling.reports import LabelingReport as LabelReport
from prism.reports.report import Report, command_line, versions

PER_QUERY = 20
WORDS = ("key", "region", "bucket", "policy", "rotate", "table", "index", "backup", "alert", "volume", "query", "role")
"""Text is made of these; its content decides nothing here, its length does."""
DOCUMENT_WORDS = 60
LIMIT_MIB = 1024
_CONSOLE = Console(stderr=True)


class Run(NamedTuple):
    """One run of the command."""

    pairs: int
    peak_mib: float
    """Of the largest process."""
    seconds: float
    input_mib: float
    store_mib: float
    labels_mib: float


def main(
    pairs: Annotated[list[int], Option(min=1, help="Sizes to run, one after another.")] = [1_000_000],  # noqa: B006
    jurors: Annotated[int, Option(min=1, max=9, help="Recorded jurors; each votes on every pair.")] = 1,
    workers: Annotated[int | None, Option(min=1, help="Ray workers; default: none.")] = None,
    out: Annotated[Path | None, Option(help="Folder for report.json, report.md and report.html.")] = None,
) -> None:
    """Peak memory of labelling, by number of pairs."""
    try:
        runs = [measure(count, jurors, workers) for count in pairs]
    except PrismError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    for run in runs:
        print(f"{run.pairs:,} pairs: peak {run.peak_mib:,.0f} MiB, {run.pairs / run.seconds:,.0f} pairs/s")
    if out is not None:
        _CONSOLE.print(f"wrote {write(runs, jurors, workers, out)}", highlight=False)


def measure(count: int, jurors: int, workers: int | None) -> Run:
    """Label so many pairs. Raises PrismError when the command fails or a verdict is not what it must be."""
    with tempfile.TemporaryDirectory(prefix="label_scale_") as name:
        folder = Path(name)
        with _CONSOLE.status(f"{count:,} pairs: writing them"):
            panel, pairs = _write_input(folder, count, jurors)
        command = [sys.executable, "-m", "prism.cli", "label", str(panel), str(pairs), str(folder / "out")]
        command += ["--workers", str(workers)] if workers else []
        started = time.monotonic()
        with (folder / "said").open("wb") as said, _CONSOLE.status(f"{count:,} pairs: labelling"):
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        if status:
            raise PrismError(f"the command failed: {(folder / 'said').read_text(errors='replace')[-500:]}")
        _check(LabelReport.model_validate_json((folder / "out" / "report.json").read_text()), count, jurors)
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB here
        sizes = (_mib(pairs), _mib(folder / "out" / "votes.sqlite"), _mib(folder / "out" / "labels.jsonl"))
        return Run(count, usage.ru_maxrss / unit, seconds, *sizes)


def _write_input(folder: Path, count: int, jurors: int) -> tuple[Path, Path]:
    """Juror j says yes to every pair but each (j + 2)nd."""
    pairs, panel = folder / "pairs.jsonl", folder / "panel.yaml"
    with pairs.open("w", encoding="utf-8") as file:
        for i in range(count):
            words = " ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(DOCUMENT_WORDS))
            row = {"query": f"how to {WORDS[i % len(WORDS)]} number {i // PER_QUERY}", "document": f"{i}: {words}"}
            row |= {"query_id": f"q{i // PER_QUERY}", "doc_id": f"d{i}"}
            file.write(json.dumps(row) + "\n")
    names = [f"juror{j}" for j in range(jurors)]
    for j, name in enumerate(names):
        with (folder / f"{name}.qrels").open("w", encoding="utf-8") as file:
            for i in range(count):
                file.write(f"q{i // PER_QUERY} 0 d{i} {int(i % (j + 2) != 0)}\n")
    lines = "".join(f"  - {{name: {name}, kind: recorded, path: {name}.qrels}}\n" for name in names)
    panel.write_text(f"name: scale\nrubric: binary\njurors:\n{lines}", encoding="utf-8")
    return panel, pairs


def _check(report: LabelReport, count: int, jurors: int) -> None:
    yes = sum(2 * sum(i % (j + 2) != 0 for j in range(jurors)) > jurors for i in range(count))
    expected = {"yes": yes, "no": count - yes, "undecided": 0}
    votes = {juror.votes for juror in report.jurors}
    if report.verdicts != expected or votes != {count}:
        raise PrismError(f"expected {expected} and {count} votes of each juror, got {report.verdicts} and {votes}")


def _mib(path: Path) -> float:
    return path.stat().st_size / 2**20


def write(runs: list[Run], jurors: int, workers: int | None, out: Path) -> Path:
    """The report's pages."""
    report = Report("Labelling many pairs", command=command_line(), versions=versions("ray") if workers else {})
    most = max(run.peak_mib for run in runs)
    verdict = "under" if most < LIMIT_MIB else "NOT under"
    largest = max(run.pairs for run in runs)
    report.lead(f"{largest:,} pairs stream past {jurors} recorded juror(s): peak {most:,.0f} MiB, {verdict} 1 GiB.")
    section = report.section("Peak memory by number of pairs")
    how = f"{workers} Ray workers and the process that started them" if workers else "one process"
    section.text(
        f"`prism label` as {how}; the peak is that of the largest process, the interpreter and its libraries included."
        " Votes of every juror on every pair go to the store, and every verdict was checked against the one expected."
    )
    section.table(
        ["pairs", "peak MiB", "pairs / s", "pairs file MiB", "votes.sqlite MiB", "labels.jsonl MiB"],
        [[r.pairs, r.peak_mib, r.pairs / r.seconds, r.input_mib, r.store_mib, r.labels_mib] for r in runs],
        digits=0,
    )
    section.note("Pairs per second depend on the machine and on what else it does; memory does not.")
    return report.write(out, {"jurors": jurors, "workers": workers, "runs": [run._asdict() for run in runs]})


if __name__ == "__main__":
    typer.run(main)
