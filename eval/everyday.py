"""Everyday questions no model has seen: is the page that answers first, and does a model know when none does?

    python eval/everyday.py --model mini --out eval/results/everyday

The questions and their documents were written for this (`eval/everyday/README.md`). A few minutes a model on two cores.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Option

from prism.errors import PrismError
from prism.outputs import write_text
from prism.reports.report import command_line, versions
from prism.reranker import Reranker
from prism.retrieval.sentence_models import SentenceEncoder
from studies.everyday import (
    Answered,
    Question,
    ask,
    baseline,
    bm25,
    by_slice,
    dense,
    markdown,
    read_questions,
)
from studies.systems import progress_bar

QUESTIONS = Path(__file__).parent / "everyday" / "questions.jsonl"


def main(
    model: Annotated[list[str] | None, Option(help="Checkpoint: mini, a directory, or a hub id; repeatable.")] = None,
    template: Annotated[str | None, Option(help="Prompt of checkpoints that carry none.")] = None,
    questions: Annotated[Path, Option(exists=True, dir_okay=False, help="JSONL of questions.")] = QUESTIONS,
    encoder: Annotated[
        str | None, Option("--dense", help="Embedding model to set beside BM25: minilm, or a name.")
    ] = None,
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Option(help="Arithmetic.")] = "auto",
    seed: Annotated[int, Option(help="Draws the examples that are shown.")] = 17,
    out: Annotated[Path | None, Option(help="Folder for report.json and report.md.")] = None,
) -> None:
    """Ask everyday questions; print how often the right document is first, judged right, and quoted right."""
    try:
        asked = read_questions(questions)
        ranks = {"BM25": bm25(asked)} | ({encoder: dense(asked, SentenceEncoder(encoder))} if encoder else {})
        answered = {name: _ask(name, template, dtype, asked) for name in dict.fromkeys(model or ["mini"])}
    except PrismError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    baselines = {name: baseline(asked, found) for name, found in ranks.items()}
    text = markdown(answered, baselines, seed)
    print(text)
    if out is not None:
        body = {
            "command": command_line(),
            "versions": versions("torch", "transformers"),
            "questions_sha256": sha256(questions.read_bytes()).hexdigest(),
            "baselines": {
                name: {part: ranks and ranks.model_dump(mode="json") for part, ranks in found.items()}
                for name, found in baselines.items()
            },
            "models": {name: _body(ones) for name, ones in answered.items()},
        }
        write_text(out / "report.md", f"{text}\nCommand: `{command_line()}`\n")
        write_text(out / "report.json", json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def _ask(
    name: str, template: str | None, dtype: Literal["auto", "float32", "bfloat16"], questions: Sequence[Question]
) -> list[Answered]:
    with Reranker.load(name, template=template, dtype=dtype) as reranker, progress_bar() as progress:
        task = progress.add_task(reranker.name, total=len(questions))
        return ask(reranker, questions, lambda done: progress.update(task, completed=done))


def _body(answered: Sequence[Answered]) -> dict[str, Any]:
    measures = {part: found.model_dump(mode="json") for part, found in by_slice(answered).items()}
    return {"measures": measures, "questions": [_record(one) for one in answered]}


def _record(one: Answered) -> dict[str, Any]:
    said = {"score", "verdict", "outcome", "contribution", "evidence", "error"}
    documents = {str(j.id): j.model_dump(mode="json", include=said, exclude_none=True) for j in one.judgments}
    return {"id": one.question.id, "rank": one.rank, "good": one.good, "flawless": one.flawless, "documents": documents}


if __name__ == "__main__":
    typer.run(main)
