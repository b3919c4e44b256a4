"""Measure evidence: does it hold what matters, is it true to the document, and does an agent answer better from it?

    python eval/evidence_quality.py --model mini --data ../shared/data --sets scifact,cmrc2018

    cases -> each system's text, kept as it comes -> measures -> judges, reader -> report.json, report.md, report.html

Systems: whole (the document), lead-3 (first sentences), bm25-3, tfidf-3, embedding-3 (sentences most like the query),
any Prism checkpoint (--model; --evidence written,quoted for both sources on the same pairs), any HTTP pruner (--pruner
NAME=URL). Sets: scifact, qed, covidqa, cmrc2018, or a .jsonl file. Judges and the reader are models behind
OpenAI-compatible APIs: MODEL@BASE_URL, or MODEL@BASE_URL#KEY_VARIABLE to name the environment variable that holds the
key; or local:FOLDER, a chat model in this process. Whatever was written or paid for is kept in OUT/state: a stopped run
goes on.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console
from typer import Option

from prism.errors import InputError, PrismError
from prism.outputs import require_folder
from prism.types import EvidenceChoice
from studies.command import taught
from studies.evidence_quality import Engine, Options, evaluate, load_reranker

# --- command line ----------------------------------------------------------------------------------------------------

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _names(given: list[str] | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in ",".join(given or []).split(",") if name.strip())


def _sources(given: str) -> tuple[EvidenceChoice, ...]:
    sources = _names([given])
    if not sources or not set(sources) <= set(get_args(EvidenceChoice)):
        raise InputError(f"--evidence {given!r}: expected {', '.join(get_args(EvidenceChoice))}, comma-separated")
    return tuple(dict.fromkeys(sources))  # type: ignore[arg-type]  # checked above


@app.command(help=taught(__doc__))
def main(
    model: Annotated[list[str] | None, Option(help="mini, folder or hub name; repeatable. none: no model.")] = None,
    data: Annotated[Path, Option(help="Folder with beir/scifact and qa/.")] = Path("../shared/data"),
    sets: Annotated[list[str] | None, Option(help="Comma-separated. Default: all four.")] = None,
    systems: Annotated[list[str] | None, Option(help="Baselines, comma-separated: whole, lead-3, bm25-1, …")] = None,
    pruner: Annotated[list[str] | None, Option(help="NAME=URL of an HTTP pruner; repeatable.")] = None,
    judge: Annotated[
        list[str] | None, Option(help="MODEL@BASE_URL[#KEY_VARIABLE] or local:FOLDER; repeatable.")
    ] = None,
    reader: Annotated[str | None, Option(help="The same, one. Default: containment only.")] = None,
    limit: Annotated[int | None, Option(min=1, help="Only N pairs of each set, evenly spread.")] = None,
    judge_limit: Annotated[int | None, Option(min=1, help="Judge only the first N of them.")] = None,
    concurrency: Annotated[int, Option(min=1, help="Questions to one API under way at once.")] = 8,
    engine: Annotated[Engine, Option(help="What runs a Prism model.")] = "hf",
    base_url: Annotated[list[str] | None, Option(help="Its servers, up to /v1, for engine openai; repeatable.")] = None,
    evidence: Annotated[
        str, Option(help="Where a Prism model's evidence comes from, comma-separated: auto, written, quoted.")
    ] = "auto",
    template: Annotated[str | None, Option(help="Prompt of a checkpoint without one: instruct, a file, …")] = None,
    tokenizer: Annotated[str, Option(help="Counts context tokens: mini, a folder, or a hub name.")] = "mini",
    fresh: Annotated[bool, Option("--fresh", help="Make all texts again; paid answers are kept.")] = False,
    examples: Annotated[int, Option(min=0, help="Good and bad examples of each model, drawn by a fixed seed.")] = 3,
    out: Annotated[Path, Option(help="Folder for the report and the state.")] = Path("eval/results/evidence_quality"),
) -> None:
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    try:
        require_folder(out)
        options = Options(
            models=tuple(name for name in model or ["mini"] if name != "none"),
            data=data,
            sets=_names(sets),
            systems=_names(systems),
            pruners=tuple(pruner or ()),
            judges=tuple(judge or ()),
            reader=reader,
            limit=limit,
            judge_limit=judge_limit,
            concurrency=concurrency,
            tokenizer=tokenizer,
            template=template,
            evidence=_sources(evidence),
            fresh=fresh,
            examples=examples,
            out=out,
        )
        load = partial(load_reranker, engine=engine, base_url=base_url or (), template=template)
        typer.echo(evaluate(options, console.print, load))
    except (PrismError, ModuleNotFoundError) as error:
        hint = "" if isinstance(error, PrismError) else ": pip install 'prism-reranker[eval]'"
        typer.echo(f"error: {error}{hint}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
