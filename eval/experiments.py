"""How small an effect can an experiment show, and do model labels show the same one as people's?

    python eval/experiments.py --labels ../shared/data/labels/llmjudge --scale-top 3 --out eval/results/experiments

`--labels` is a folder with human.qrels and submissions/*.qrels, or name files with --human and --model. The rankings
compared are TREC runs (--control, --treatment); without them, rankings by the labels of two of the judges, which then
do not judge. --queries FILE.csv (query, interest, popularity) draws a stratified sample of them (sample.csv), estimates
the experiment over all of them from those that are labelled, and splits effects by stratum.
The statistics themselves are checked by simulation each time (--limit N: N simulated experiments, first N judges).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from prism.errors import PrismError
from studies.command import taught
from studies.experiment_report import load, run

if TYPE_CHECKING:
    pass


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help=taught(__doc__))
def main(
    labels: Annotated[Path | None, Option(help="Folder with human.qrels and submissions/*.qrels.")] = None,
    human: Annotated[Path | None, Option(help="Human labels, if not in --labels.")] = None,
    model: Annotated[list[Path] | None, Option(help="A model's labels; repeatable.")] = None,
    control: Annotated[Path | None, Option(help="TREC run shown to the control group.")] = None,
    treatment: Annotated[Path | None, Option(help="TREC run shown to the treatment group.")] = None,
    queries: Annotated[Path | None, Option(help="CSV of all queries: query,interest,popularity.")] = None,
    k: Annotated[int, Option(min=1, help="Ranks that count.")] = 25,
    scale_top: Annotated[int, Option(min=1, help="The best label; 0 is the worst.")] = 5,
    sample: Annotated[int, Option(min=2, help="Queries to label in all, for --queries.")] = 600,
    limit: Annotated[int | None, Option(min=20, help="A quick look: N simulated experiments, first N judges.")] = None,
    seed: Annotated[int, Option(help="Of the simulations.")] = 0,
    out: Annotated[Path, Option(help="Folder for report.html, report.md, report.json.")] = Path(
        "eval/results/experiments"
    ),
) -> None:
    try:
        given = [labels, human, *(model or []), control, treatment]
        inputs = load(labels, human, model or [], (control, treatment), scale_top) if any(given) else None
        print(run(inputs, queries, k, sample, limit, seed, out))
    except (PrismError, ModuleNotFoundError) as error:
        hint = "" if isinstance(error, PrismError) else ": pip install 'prism-reranker[eval]'"
        print(f"error: {error}{hint}", file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
