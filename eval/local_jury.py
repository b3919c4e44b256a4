"""A jury of small models on one machine, on real pairs: what its votes cost, and what they are worth.

    python eval/local_jury.py pairs runs/jury/pairs.jsonl --count 1500
    prism label configs/panels/local-three.yaml runs/jury/pairs.jsonl runs/jury/labels --start-local
    python eval/local_jury.py report runs/jury/pairs.jsonl runs/jury/labels --out eval/results/local_jury

Jurors that are read by their logits can teach a small model, and what it learnt shows on the questions held out:

    python eval/local_jury.py teach runs/jury/pairs.jsonl eval/results/local_jury/scores.csv runs/jury/taught
    prism-train recipes/mini-jury.yaml
    python eval/local_jury.py taught runs/jury/taught --model runs/mini-jury/checkpoint

The same scores as labels of the other studies:

    python eval/local_jury.py study runs/jury/pairs.jsonl eval/results/local_jury/scores.csv runs/jury/study \
        --cut qwen-prism=0.66
    python eval/label_alignment.py --labels runs/jury/study/labels --scale-top 1
    python eval/experiments.py --labels runs/jury/study/labels --scale-top 1 --k 3 --control runs/jury/study/bm25.run \
        --treatment runs/jury/study/mini.run --queries runs/jury/study/queries.csv --sample 150

Several panels may label into one folder, as long as their jurors' names differ: every rubric and juror there is
reported, and its scores are kept in scores.csv. People's labels are those of the sets; BM25's neighbours without one
that hold no answer count as no in the second kappa, and for the teacher.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from prism.errors import PrismError
from prism.files.jsonl import write_rows
from prism.reports.report import Report, command_line, versions
from studies.command import taught
from studies.local_jury import Timed, make_pairs, read_jury, read_truth
from studies.local_jury_report import add_cost, add_people, add_together
from studies.local_study import parse_cuts, write_study
from studies.local_teacher import write_records, write_scores
from studies.local_teacher_report import add_taught

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=taught(__doc__))


@app.command()
def pairs(
    out: Annotated[Path, Argument(help="Where the pairs go, as JSONL.")],
    count: Annotated[int, Option(min=20, help="About so many pairs.")] = 1500,
    data: Annotated[Path, Option(help="Folder with squad-dev.en.jsonl.gz and its sisters.")] = Path(
        "../shared/data/pairs"
    ),
    seed: Annotated[int, Option(help="Draws the questions.")] = 22,
) -> None:
    """Questions with judged passages and BM25 neighbours, half of them English, passages up to 1,000 characters."""
    with _told():
        out.parent.mkdir(parents=True, exist_ok=True)
        print(f"{write_rows(out, make_pairs(data, count, seed)).records:,} pairs -> {out}")


@app.command()
def report(
    pairs_file: Annotated[Path, Argument(metavar="PAIRS", help="What was labelled.")],
    labels: Annotated[Path, Argument(help="The folder of prism label.")],
    panel: Annotated[str, Option(help="Jurors put together, in the order of asking.")] = "qwen,smollm,gemma",
    samples: Annotated[int, Option(min=1, help="Bootstrap samples of questions behind each interval.")] = 500,
    out: Annotated[Path, Option(help="Folder for report.json, report.md and report.html.")] = Path("runs/local_jury"),
) -> None:
    """Votes, failures, seconds; kappa between jurors and with people; aggregation, and what asking in turn saves."""
    names = tuple(name for name in panel.split(",") if name)
    page = Report(
        "A jury of small models on one machine", command=command_line(), versions=versions("numpy", "crowd-kit")
    )
    body = {}
    with _told():
        every: dict[str, Timed] = {}
        certain, likely = read_truth(pairs_file), read_truth(pairs_file, assumed=True)
        for key, (rubric, jurors) in read_jury(labels).items():
            if jurors:
                section = page.section(f"Rubric {key}")
                found = {"cost": add_cost(section, jurors)}
                found |= {"people": add_people(section, rubric, jurors, certain, likely)}
                body[key] = found | {"together": add_together(section, rubric, jurors, likely, names, samples)}
                every |= jurors
        write_scores(out / "scores.csv", every, pairs_file)
        print(page.write(out, body))


@app.command()
def teach(
    pairs_file: Annotated[Path, Argument(metavar="PAIRS", help="What was labelled.")],
    scores: Annotated[Path, Argument(help="Its scores: scores.csv, as `report` writes it.")],
    out: Annotated[Path, Argument(help="Folder for train, held-out, teacher, and labelled.jsonl (to calibrate mini).")],
    held_out: Annotated[float, Option(min=0.05, max=0.95, help="Share of the questions to measure on.")] = 0.25,
) -> None:
    """Training records: jurors' log odds, weighed against people's labels by language, are the teacher's score."""
    with _told():
        print(write_records(pairs_file, scores, out, held_out))


@app.command()
def study(
    pairs_file: Annotated[Path, Argument(metavar="PAIRS", help="What was labelled.")],
    scores: Annotated[Path, Argument(help="Its scores: scores.csv, as `report` writes it.")],
    out: Annotated[Path, Argument(help="Folder for labels/, a run of each juror and of BM25, and queries.csv.")],
    cut: Annotated[list[str] | None, Option(help="JUROR=SCORE: from it on the juror says 1; repeatable.")] = None,
    only: Annotated[Path | None, Option(help="CSV with a column query: people labelled these alone.")] = None,
) -> None:
    """Scores as label files and rankings, for label_alignment.py and experiments.py."""
    with _told():
        print(write_study(pairs_file, scores, out, parse_cuts(cut or []), only))


@app.command("taught")
def what_was_learnt(
    folder: Annotated[Path, Argument(help="What `teach` made.")],
    model: Annotated[list[str], Option(help="Checkpoint: mini, a directory; repeatable.")],
    template: Annotated[str | None, Option(help="Prompt of checkpoints that carry none.")] = None,
    samples: Annotated[int, Option(min=1, help="Bootstrap samples of questions behind each interval.")] = 2000,
    out: Annotated[Path, Option(help="Folder for report.json, report.md and report.html.")] = Path(
        "runs/local_teacher"
    ),
) -> None:
    """Scores of models on the questions held out, against people's labels and the teacher's scores."""
    page = Report(
        "What a jury's scores teach", command=command_line(), versions=versions("torch", "transformers", "peft")
    )
    with _told():
        body = add_taught(page.section("Questions held out"), folder, list(dict.fromkeys(model)), template, samples)
        print(page.write(out, body))


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except PrismError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
