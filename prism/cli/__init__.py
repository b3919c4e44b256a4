"""The commands. Each is a thin shell over one call of the library; what is heavy is imported when it is needed.

    prism rerank QUERY FILES...   judge documents from files or standard input
    prism demo                    see it work on a bundled sample
    prism serve                   the HTTP endpoint
    prism mcp                     tools for agents, over the Model Context Protocol
    prism train RECIPE            train a reranker (`prism-train` is the same)
    prism data ...                make training data
    prism label PANEL PAIRS OUT   label pairs with a panel of jurors
    prism write-targets L OUT     contribution and evidence for the pairs labelled yes, by an LLM, checked
    prism agree A.qrels B.qrels   how far label files agree
    prism calibrate MODEL PAIRS   what scores mean as probabilities
    prism doctor TARGET           examine a checkpoint, or any rerank server
    prism export MODEL DIR        a checkpoint for other tools
    prism pull NAME               the base model that mini (or another adapter) builds on
    prism version                 or `prism --version`

`python -m prism` is the same; `prism --install-completion` teaches the shell to complete all this.
Whatever goes wrong on purpose ends in one line, `error: ...`, and exit code 2.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from prism.cli import (
    agree,
    calibrate,
    data,
    data_build,  # noqa: F401  # these four add their commands to those of `data`
    data_pairs,  # noqa: F401
    data_queries,  # noqa: F401
    data_texts,  # noqa: F401
    doctor,
    export,
    label,
    mcp,
    pull,
    rerank,
    serve,
    train,
    write_targets,
)
from prism.errors import PrismError

_EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "safetensors", "accelerate", "gguf"), ""),  # left out on purpose
    "fastapi": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "backports": "serve",
    "trl": "train",
    "peft": "train",
    "datasets": "train",
    "bm25s": "train",
    "sentence_transformers": "label",
    "httpx": "label",
    "tenacity": "label",
    "aiolimiter": "label",
    "scipy": "label",
    "matplotlib": "label",
    "ir_measures": "eval",
    "sklearn": "eval",
    "statsmodels": "eval",
    "ray": "scale",
    "mcp": "mcp",
}


class _Commands(TyperGroup):
    """Ends errors of ours, and missing extras, in one line instead of a traceback."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer's own context type differs by version
        try:
            return super().invoke(ctx)
        except PrismError as error:
            _fail(str(error))
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]  # an old version lacks a part of it
            if package not in _EXTRAS:
                raise
            extra = f"[{_EXTRAS[package]}]" if _EXTRAS[package] else ""
            more = "" if extra else " (without torch: rerank and serve, for files of `prism export --layout gguf`)"
            _fail(f'this command needs {error.name}: run pip install "prism-reranker{extra}"{more}')


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Rerankers that explain themselves: score, verdict, contribution and evidence for every document.",
)


def _say_version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


_COMMANDS = (
    *(rerank.rerank, rerank.demo, serve.serve, train.train, agree.agree, calibrate.calibrate, doctor.doctor),
    *(label.label, mcp.mcp, write_targets.write_targets, export.export, pull.pull),
)
for _command in _COMMANDS:
    app.command()(_command)
app.add_typer(data.app, name="data")


@app.command()
def version() -> None:
    """Print the version."""
    from prism.version import __version__

    typer.echo(__version__)


def main() -> None:
    """`prism`."""
    _replace_unencodable()
    app(prog_name="prism")


def main_train() -> None:
    """`prism-train`: an alias of `prism train`."""
    _replace_unencodable()
    app(["train", *sys.argv[1:]], prog_name="prism")


def _replace_unencodable() -> None:
    """A terminal that cannot show a character shows `?` instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream somebody put in its place
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def _fail(message: str) -> NoReturn:
    from prism.text import printable

    typer.echo(f"error: {' '.join(printable(message).split())}", err=True)
    raise typer.Exit(2)
