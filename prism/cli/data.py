"""`prism data …`: from texts to training files. Each command is a thin shell over one module of `prism.data`.

Every command reads JSONL (`.gz` too), streams, writes its output whole or not at all, and puts `OUT.report.json` beside
it: how many records came in and went out, how many were dropped and why, what it cost. Here is what they share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prism.files.jsonl import OnBad, Row, WrittenFile, report_path
from prism.files.lines import ending
from prism.outputs import writable_file

app = typer.Typer(no_args_is_help=True, help="Make training data: pairs, negatives, teacher scores, splits, checks.")


def writable_output(path: Path | None) -> Path | None:
    """The path, when a file and its report can be written there. Raises InputError."""
    if writable_file(path) is not None and path is not None:
        writable_file(report_path(path))
    return path


PairsFile = Annotated[Path, typer.Argument(help="JSONL with query and document (and doc_id, title) on each line.")]
CorpusFile = Annotated[Path, typer.Argument(help="JSONL with text (and id, title, headings) on each line.")]
RecordsFile = Annotated[Path, typer.Argument(help="JSONL with query, document and teacher_score on each line.")]
Out = Annotated[
    Path,
    typer.Argument(
        help="Where the result goes: a JSONL file, with OUT.report.json beside it.", callback=writable_output
    ),
]
Bad = Annotated[OnBad, typer.Option("--on-bad", help="A malformed line: end the command, or be counted and left out.")]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]
YesFrom = Annotated[int | None, typer.Option(help="Labels from here on mean yes. Default: the verdict stands, else 1.")]
Splits = Annotated[str, typer.Option(help="Names and shares of the queries; shares sum to 1.")]
QuerySimilarity = Annotated[float, typer.Option(min=50, max=100, help="Percent from which queries nearly repeat.")]
Overlap = Annotated[
    float, typer.Option(min=0.05, max=1, help="Share of a text's runs of eight words that is too much.")
]
BeirSplit = Annotated[str, typer.Option(help="Which qrels of a BEIR folder.")]
AllDocuments = Annotated[bool, typer.Option("--all-documents", help="The whole corpus, not only judged documents.")]


def count_lines(path: Path) -> int | None:
    """Lines of a plain file, for the progress bar."""
    if not path.is_file() or path.name.lower().endswith(".gz") or ending(path) == ".json":
        return None
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def finish(report: Row, out: Path, written: WrittenFile | None = None) -> None:
    """One line on what was made, one for each reason something was dropped."""
    from prism.text import printable

    unchanged = ", unchanged" if written and written.unchanged else ""
    typer.echo(f"{out}: {report['records']:,} records{unchanged}")
    for reason, found in report["dropped"].items():
        first = found["first"][0] if found["first"] else ""
        typer.echo(printable(f"dropped {found['count']:,}: {reason} (first: {first})"), err=True)
