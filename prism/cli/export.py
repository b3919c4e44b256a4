"""`prism export`: a checkpoint in the layout of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from prism.cli.models import Template
from prism.outputs import require_folder

_NEXT = {
    "merged": "prism serve --model {target}",
    "sentence-transformers": "CrossEncoder({target!r}).rank(query, documents)",
    "sequence-classification": "vllm serve {target} --runner pooling --chat-template {target}/score_template.jinja",
    "gguf": "prism rerank QUERY FILES --model {target}",
}


def export(
    source: Annotated[str, typer.Argument(help="mini, a checkpoint or LoRA adapter directory, or a hub name.")],
    target: Annotated[Path, typer.Argument(help="A new directory; with layout gguf a new file.")],
    layout: Annotated[
        Literal["merged", "sentence-transformers", "sequence-classification", "gguf"],
        typer.Option(
            help="Whom it is for: Prism and any server, CrossEncoder, plain vLLM's own /rerank, or llama.cpp."
        ),
    ] = "merged",
    template: Template = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "q8_0"],
        typer.Option(help="Of the weights; auto: as they are, float16 in a GGUF file; the last two are for those."),
    ] = "auto",
) -> None:
    """Write a checkpoint for other tools: merged, for sentence-transformers, for plain vLLM, or for llama.cpp.

    The prompt goes along, so scores are the same. The second and third score only: contribution and evidence need
    `prism serve`. A GGUF file runs with `prism rerank` and `prism serve` where there is no torch.
    """
    from prism.export import export as write

    require_folder(target.parent if layout == "gguf" else target)
    written = write(source, target, layout, template=template, dtype=dtype)
    typer.echo(f"{written}: {layout}. Next: {_NEXT[layout].format(target=str(written))}")
