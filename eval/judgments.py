"""How good are a judge's relevance labels? Against people's, next to BM25 and embedding similarity.

    python eval/judgments.py --labels ../shared/data/labels/llmjudge --out eval/results/judgments/llmjudge
    python eval/judgments.py --beir ../shared/data/beir/scifact --reranker mini --out eval/results/judgments/scifact
    python eval/judgments.py --beir DATA --judge gpt-x@https://api.example.com/v1#EXAMPLE_KEY --out DIR
    python eval/judgments.py --human human.qrels --apply-decisions DIR/decisions.csv --patch-out patched.qrels

Labels come from recorded files (--labels, --model), from a reranker whose score is cut into grades 0 to 3 (--reranker,
--cuts), or from a chat model that says a grade, with and without reasoning (--judge; local:FOLDER is one in this
process). With --beir the candidates are BM25's best and everything people labelled; what people did not label counts as
0, and all labels are written to DIR/labels, which label_alignment.py and experiments.py read with --labels. A stopped
run goes on where it stood.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from prism.errors import InputError, PrismError
from prism.outputs import require_folder
from prism.reports.report import Report, command_line, versions
from studies.chat_models import parse_chat_spec
from studies.command import taught
from studies.judgments import apply_decisions, judge_texts, recorded, run, with_texts
from studies.label_quality import grade
from studies.recorded import write_labels

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help=taught(__doc__))
def main(
    labels: Annotated[Path | None, Option(help="Folder with human.qrels and submissions/*.qrels.")] = None,
    human: Annotated[Path | None, Option(help="Human labels, if not in --labels.")] = None,
    model: Annotated[list[Path] | None, Option(help="A model's recorded labels; repeatable.")] = None,
    scale_top: Annotated[int, Option(min=1, help="The best recorded label; 0 is the worst.")] = 3,
    beir: Annotated[Path | None, Option(help="A BEIR set with texts.")] = None,
    split: Annotated[str, Option(help="Its qrels.")] = "test",
    depth: Annotated[int, Option(min=1, help="BM25 candidates a query.")] = 20,
    reranker: Annotated[list[str] | None, Option(help="mini, folder or hub name, as a judge; repeatable.")] = None,
    cuts: Annotated[str, Option(help="Scores from which a reranker's grade is 1, 2, 3.")] = "0.25,0.5,0.75",
    embedder: Annotated[str | None, Option(help="sentence-transformers model, as a baseline; or minilm.")] = None,
    judge: Annotated[
        list[str] | None, Option(help="MODEL@BASE_URL[#KEY_VARIABLE] or local:FOLDER: says grades; repeatable.")
    ] = None,
    concurrency: Annotated[int, Option(min=1, help="Questions to one API under way at once; llama.cpp: 1.")] = 8,
    audited: Annotated[int, Option("--audit", min=0, help="Strong disagreements to put into audit.html.")] = 50,
    apply_decisions_file: Annotated[Path | None, Option("--apply-decisions", help="Filled-in decisions.csv.")] = None,
    patch_out: Annotated[Path | None, Option(help="Where the patched qrels go.")] = None,
    limit: Annotated[
        int | None, Option(min=1, help="A quick look: first N judges, or first N queries of --beir.")
    ] = None,
    out: Annotated[Path, Option(help="Folder for the report, audit.html, decisions.csv.")] = Path(
        "eval/results/judgments"
    ),
) -> None:
    try:
        require_folder(out)
        if apply_decisions_file is not None:
            print(apply_decisions(human, apply_decisions_file, patch_out, scale_top))
            return
        report = Report("Relevance judgments", command=command_line(), versions=versions("ir-measures", "scikit-learn"))
        section = report.section("What is judged")
        if beir is not None:
            steps = _cuts(cuts)
            chat = [parse_chat_spec(text, concurrency=concurrency) for text in judge or ()]
            candidates, judges = with_texts(beir, split, depth, limit)
            judges += judge_texts(candidates, reranker or [], steps, embedder, chat, out)
            write_labels(out / "labels", candidates.human, judges)
            section.text(f"{beir.name} {split}: BM25's best {depth} a query and everything labelled. Grades at {cuts}.")
            section.warn(
                "What nobody labelled counts as 0 here: some of it is relevant. The audit is the way to find out."
            )
        else:
            candidates, judges = recorded(labels, human, model or [], scale_top, limit, section)
        queries = len({query for query, _ in candidates.human})
        section.text(
            f"{len(candidates.human):,} pairs of {queries} queries; people's labels run from 0 to {candidates.top}."
        )
        print(run(candidates, judges, report, audited, out))
    except (PrismError, ModuleNotFoundError) as error:
        hint = "" if isinstance(error, PrismError) else ": pip install 'prism-reranker[eval]'"
        print(f"error: {error}{hint}", file=sys.stderr)
        raise typer.Exit(2) from None


def _cuts(text: str) -> tuple[float, ...]:
    try:
        cuts = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--cuts takes numbers with commas between them, got {text!r}") from None
    grade(0.0, cuts)  # says whether they grow
    return cuts


if __name__ == "__main__":
    app()
