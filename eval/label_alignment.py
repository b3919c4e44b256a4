"""Do model labels order systems as people's labels do, and do either order them as users do?

    python eval/label_alignment.py --labels ../shared/data/labels/llmjudge --out eval/results/label_alignment
    python eval/label_alignment.py --human qrels --model model.qrels --run a.run --run b.run --online metrics.csv

Systems are TREC run files (--run, at least two; more are better). Without them, systems are simulated from the human
labels, each query's documents by label plus noise, from nearly perfect to nearly random: this tests labels, no system.
--online is a CSV table, one line a system (the run's file name without ending): system and any of ctr, clicks,
dwell_time, abandonment, zero_result_rate. Without it, users are simulated on the human labels (PBM, cascade, DBN).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from prism.errors import PrismError
from prism.reports.report import Report, command_line, versions
from studies.command import taught
from studies.label_alignment import counted, load, load_runs, run

if TYPE_CHECKING:
    pass


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help=taught(__doc__))
def main(
    labels: Annotated[Path | None, Option(help="Folder with human.qrels and submissions/*.qrels.")] = None,
    human: Annotated[Path | None, Option(help="Human labels, if not in --labels.")] = None,
    model: Annotated[list[Path] | None, Option(help="A model's labels; repeatable.")] = None,
    run_files: Annotated[list[Path] | None, Option("--run", help="A system's TREC run; repeatable.")] = None,
    online: Annotated[Path | None, Option(help="CSV of online metrics by system.")] = None,
    k: Annotated[int, Option(min=1, help="Results a simulated user is shown.")] = 10,
    scale_top: Annotated[int, Option(min=1, help="The best label; 0 is the worst.")] = 3,
    limit: Annotated[int | None, Option(min=1, help="A quick look: the first N judges.")] = None,
    seed: Annotated[int, Option(help="Of what is simulated.")] = 0,
    out: Annotated[Path, Option(help="Folder for report.html, report.md, report.json.")] = Path(
        "eval/results/label_alignment"
    ),
) -> None:
    try:
        report = Report(
            "Labels for measuring systems", command=command_line(), versions=versions("ir-measures", "scipy", "numpy")
        )
        files = load(labels, human, model or [], scale_top, limit, report.section("Labels"))
        section = report.sections[0]
        section.text(
            f"{len(files[0].labels):,} pairs labelled by people, {counted(len(files) - 1)}, labels 0 to {scale_top}."
        )
        runs = load_runs(run_files or [], files[0])
        print(run(files, runs, online, k, scale_top, seed, report, out))
    except (PrismError, ModuleNotFoundError) as error:
        hint = "" if isinstance(error, PrismError) else ": pip install 'prism-reranker[eval]'"
        print(f"error: {error}{hint}", file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
