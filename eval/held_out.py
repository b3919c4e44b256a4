"""Measure a checkpoint on held-out groups: one positive among the negatives that BM25 and a dense model rank highest.

    python eval/held_out.py --model mini --groups runs/mini/data/dev.jsonl

Groups come from a recipe's data build; without one, `--recipe recipes/mini.yaml` makes it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer import Option

from prism.data.qa import build
from prism.devices import Dtype
from prism.errors import DataError, PrismError, RecipeError
from prism.outputs import require_folder
from prism.reports.report import command_line
from prism.reranker import Reranker
from prism.training.recipe import load_recipe
from studies.held_out import evaluate, markdown, read_groups

_CONSOLE = Console(stderr=True)


def _groups_file(groups: Path | None, recipe: Path) -> Path:
    if groups is not None:
        return groups
    resolved = load_recipe(recipe)
    if resolved.data.qa is None:
        raise RecipeError(f"{recipe} holds out no documents: pass --groups FILE")
    build(resolved.data.qa, resolved.folder / "data", resolved.seed, _CONSOLE.print)
    return resolved.folder / "data" / "dev.jsonl"


def main(
    model: Annotated[str, Option(help="Checkpoint: mini, a directory, or a hub id.")] = "mini",
    groups: Annotated[Path | None, Option(help="JSONL groups; default: those of the recipe.")] = None,
    recipe: Annotated[Path, Option(help="Recipe whose held-out documents to use.")] = Path("recipes/mini.yaml"),
    language: Annotated[
        str | None, Option(help="Only groups whose documents are in it, such as zh; default: all.")
    ] = None,
    limit: Annotated[int | None, Option(help="Only the first N groups of each kind of query.")] = None,
    dtype: Annotated[Dtype, Option(help="Arithmetic.")] = "auto",
    out: Annotated[Path | None, Option(help="Folder for report.json and report.md.")] = None,
) -> None:
    """Rank, write and check held-out groups; print the tables."""
    try:
        if out is not None:
            require_folder(out)
        chosen = read_groups(_groups_file(groups, recipe))
        if language is not None:
            chosen = [group for group in chosen if (group.positive.language or "en") == language]
            if not chosen:
                raise DataError(f"no held-out group is in language {language!r}: leave --language out for all")
        if limit is not None:
            kinds = sorted({group.kind for group in chosen})
            chosen = [g for kind in kinds for g in [c for c in chosen if c.kind == kind][:limit]]
        columns = (TextColumn("groups"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Reranker.load(model, dtype=dtype) as reranker, Progress(*columns, console=_CONSOLE) as progress:
            task = progress.add_task("", total=len(chosen))
            report = evaluate(reranker, chosen, progress=lambda done: progress.update(task, completed=done))
            name = reranker.name
    except PrismError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    text = markdown(name, report)
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        command = command_line()
        (out / "report.md").write_text(f"{text}\nCommand: `{command}`\n", encoding="utf-8")
        body = {"command": command, "parse_rate": report.parse_rate, **report.model_dump(mode="json")}
        (out / "report.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
