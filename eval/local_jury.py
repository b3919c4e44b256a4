"""A jury of small models on one machine, on real pairs: what its votes cost, and what they are worth.

    python eval/local_jury.py pairs runs/jury/pairs.jsonl --count 1500
    prism label configs/panels/local-three.yaml runs/jury/pairs.jsonl runs/jury/labels --start-local
    python eval/local_jury.py report runs/jury/pairs.jsonl runs/jury/labels --out eval/results/local_jury

Several panels may label into one folder, as long as their jurors' names differ: every rubric and juror there is
reported. People's labels are those of the sets; BM25's neighbours without one that hold no answer count as no in the
second kappa only.
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
from studies.local_jury import make_pairs, read_jury, read_truth
from studies.local_jury_report import add_cost, add_people, add_together

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
        certain, likely = read_truth(pairs_file), read_truth(pairs_file, assumed=True)
        for key, (rubric, jurors) in read_jury(labels).items():
            if jurors:
                section = page.section(f"Rubric {key}")
                found = {"cost": add_cost(section, jurors)}
                found |= {"people": add_people(section, rubric, jurors, certain, likely)}
                body[key] = found | {"together": add_together(section, rubric, jurors, likely, names, samples)}
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
