"""Measure LLM judges against people: each alone, a panel's votes put together, and a panel asked one by one.

    python eval/panel_study.py --data ../shared/data/labels --out eval/results/panel_study

Needs `llmjudge/` (human.qrels, published.tsv, submissions/*.qrels) and, if there, `rag25/` (human.qrels, llm.qrels).
Recorded votes only: no model is called. Two to three minutes on one core; `prism-reranker[label,eval]`.
"""

from __future__ import annotations

import csv
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer import Option

from prism.errors import DataError, PrismError
from prism.files.label_files import LabelTable, line_up, read_labels
from prism.labeling.comparison import compare_judges
from prism.reports.report import Report, command_line, versions
from studies.panel_report import add_aggregation, add_judges, add_rag, add_seed, add_sequential, lead
from studies.panel_study import calibrated_judge, study_panel

PANEL = ("willia-umbrela1", "h2oloo-fewself", "Olz-exp", "RMITIR-llama38b", "NISTRetrieval-reason1")
"""In the order of asking."""
CROWD = ("dawid-skene", "dawid-skene-graded", "one-coin", "kos", "mmsr")
SLOW_CROWD = ("mace",)
"""Half a minute each: at >= 2 only."""
PACKAGES = ("numpy", "scipy", "scikit-learn", "crowd-kit", "pandas", "matplotlib")
_CONSOLE = Console(stderr=True)


def main(
    data: Annotated[Path, Option(help="Folder with llmjudge/ and, if there, rag25/.")] = Path("../shared/data/labels"),
    out: Annotated[Path, Option(help="Folder for report.json, report.md and report.html.")] = Path("runs/panel_study"),
    limit: Annotated[int | None, Option(min=2, help="Only the first N queries of each set: a quick look.")] = None,
    samples: Annotated[int, Option(min=1, help="Bootstrap samples of queries behind each interval.")] = 2000,
    seed: Annotated[int, Option(help="Seed of the bootstrap and of the human seeds drawn.")] = 0,
) -> None:
    """Agreement of 17 LLM judges with people, ways to aggregate a panel, and calls saved by asking in sequence."""
    try:
        page = _study(data, out, limit, samples, seed)
    except PrismError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    _CONSOLE.print(f"wrote {page}", highlight=False)


def _study(data: Path, out: Path, limit: int | None, samples: int, seed: int) -> Path:
    table = _llmjudge(data / "llmjudge", limit)
    report = Report("A panel of LLM judges against people", command=command_line(), versions=versions(*PACKAGES))
    with _CONSOLE.status("agreement of the judges") as status:
        agreement = compare_judges(table, samples, seed)
        study = partial(study_panel, table, samples=samples, seed=seed, say=lambda what: status.update(what))
        panel = {2: study(PANEL, 2, crowd=(*CROWD, *SLOW_CROWD), thresholds=(1.0,))}
        panel |= {cut: study(PANEL, cut, crowd=CROWD) for cut in (1, 3)}
        everybody = study(table.names[1:], 2, crowd=("dawid-skene", "dawid-skene-graded"))
    lead(report, panel[2])
    if limit is not None:
        report.section("A partial run").warn(
            f"Only the first {limit} queries of each set: figures differ from the full run."
        )
    add_judges(report.section("LLMJudge: 17 judges against people"), agreement, _published(data / "llmjudge"), limit)
    add_aggregation(report.section("Putting five votes together"), panel, everybody, limit)
    add_seed(report.section("How many labels from people it takes"), panel[2])
    add_sequential(report.section("Asking one by one"), panel[2])
    body: dict[str, Any] = {
        "llmjudge": agreement,
        "panel": {f">= {cut}": p for cut, p in panel.items()},
        "all_17": everybody,
    }
    if (data / "rag25").is_dir():
        body |= _rag(data / "rag25", report, limit, samples, seed)
    return report.write(out, body)


def _rag(folder: Path, report: Report, limit: int | None, samples: int, seed: int) -> dict[str, Any]:
    table = line_up([read_labels(folder / f"{name}.qrels", (0, 4)) for name in ("human", "llm")])
    table = table if limit is None else table.limited(limit)
    found, calibrated = compare_judges(table, samples, seed), calibrated_judge(table, (1, 2, 3), samples, seed)
    add_rag(report.section("TREC RAG 2025: one judge, labels 0 to 4"), found, calibrated)
    return {"rag25": found, "rag25_calibrated": {str(cut): pair for cut, pair in calibrated.items()}}


def _llmjudge(folder: Path, limit: int | None) -> LabelTable:
    paths = sorted((folder / "submissions").glob("*.qrels"))
    if not paths:
        raise DataError(f"no {folder}/submissions/*.qrels: point --data at the folder that holds llmjudge/")
    table = line_up([read_labels(path) for path in (folder / "human.qrels", *paths)])
    return table if limit is None else table.limited(limit)


def _published(folder: Path) -> dict[str, dict[str, float]]:
    with (folder / "published.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {row.pop("submission"): {name: float(value) for name, value in row.items()} for row in rows}


if __name__ == "__main__":
    typer.run(main)
