"""`prism export`: a checkpoint in the layout of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from prism.files.outputs import writable_folder

_NEXT = {
    "merged": "prism serve --model {target}",
    "sentence-transformers": "CrossEncoder({target!r}).rank(query, documents)",
    "sequence-classification": "vllm serve {target} --runner pooling --chat-template {target}/score_template.jinja",
}


def export(
    source: Annotated[str, typer.Argument(help="mini, a checkpoint or LoRA adapter directory, or a hub name.")],
    target: Annotated[Path, typer.Argument(help="A new directory.", callback=writable_folder)],
    layout: Annotated[
        Literal["merged", "sentence-transformers", "sequence-classification"],
        typer.Option(help="Whom it is for: Prism and any server, CrossEncoder, or plain vLLM's own /rerank."),
    ] = "merged",
    template: Annotated[str | None, typer.Option(help="Prompt of a checkpoint that carries none.")] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the weights; auto: as they are.")
    ] = "auto",
) -> None:
    """Write a checkpoint for other tools: merged, for sentence-transformers, or for plain vLLM.

    The prompt goes along, so scores are the same. The last two layouts score only: contribution and evidence need
    `prism serve`.
    """
    from prism.export import export as write

    written = write(source, target, layout, template=template, dtype=dtype)
    typer.echo(f"{written}: {layout}. Next: {_NEXT[layout].format(target=str(written))}")
