"""`prism data corpus` and `sample`: a corpus from text files, and pairs for people to label."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from prism.cli.data import Bad, Out, PairsFile, Seed, app, finish
from prism.files.jsonl import Drops, read_pairs, write_rows, write_stage_report

_SHOWN = ("id", "query_id", "doc_id", "query", "document", "title", "source", "language")
"""What a person may see of a pair before labelling it."""


@app.command()
def corpus(
    out: Out,
    sources: Annotated[list[Path], typer.Argument(help="Text files, or folders with .md and .txt files below them.")],
    on_bad: Bad = "fail",
) -> None:
    """Make a corpus of text files: Markdown is cut at its headings, other text is one document a file.

    Example: prism data corpus corpus.jsonl handbook/
    """
    from prism.data.sections import read_texts

    drops = Drops()
    written = write_rows(out, read_texts(sources, drops, on_bad))
    finish(write_stage_report(out, "corpus", sources, drops, records=written.records), out, written)


@app.command()
def sample(
    pairs: PairsFile,
    out: Out,
    count: Annotated[int, typer.Option(min=1, help="How many pairs, at most.")] = 200,
    seed: Seed = 0,
    on_bad: Bad = "fail",
) -> None:
    """Draw pairs to label by hand: texts and ids alone, without votes, verdicts or scores, `label` still to be set.

    Then compare: prism agree OUT labels/labels.jsonl --jurors
    """
    drops = Drops()
    rows = {str(row["id"]): row for _, row in read_pairs(pairs, drops, on_bad)}
    drawn = random.Random(seed).sample(sorted(rows), min(count, len(rows)))
    shown = ({name: rows[key][name] for name in _SHOWN if name in rows[key]} | {"label": None} for key in drawn)
    written = write_rows(out, shown)
    finish(write_stage_report(out, "sample", [pairs], drops, records=written.records, seed=seed), out, written)
