"""`prism train`: a reranker from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prism.cli.printing import console
from prism.errors import InputError


def train(
    recipe: Annotated[Path, typer.Argument(help="The YAML file that says everything about the run.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Change one setting: a.b=value.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where the run goes.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the data and estimate steps, memory and time; load no weights.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print the plan as JSON.")] = False,
) -> None:
    """Train a reranker from a recipe; resumes where the last run stopped.

    `--dry-run` first: it reads the tokenizer only, counts what will be trained on, and names what is dropped and why.
    """
    from prism.data.qa import build

    if dry_run:
        from prism.training.dry_run import dry_run as plan
        from prism.training.dry_run import plan_table

        found = plan(recipe, overrides=overrides or [], output=output, build=build)
        if as_json:
            typer.echo(found.model_dump_json(indent=2))
        else:
            console().print(plan_table(found))
        return
    if as_json:
        raise InputError("--json prints the plan of a --dry-run: add --dry-run")
    from prism.training.trainer import train as run

    typer.echo(run(recipe, overrides=overrides or [], resume=not fresh, output=output, build=build))
