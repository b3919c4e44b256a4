"""Rerank BEIR data sets and measure the result.

    python eval/beir_qa.py --model mini --data ../shared/data/beir --datasets scifact --top-k 20

    load_beir -> first stage -> rerank the top k, one query after another -> fuse -> TREC runs -> report

Every finished query is kept in `<out>/state`, vectors and answers of services in `<out>/cache`, so a run that was
stopped, however rudely, goes on where it stood, and nothing is computed or paid for twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from typer import Option

from prism.devices import Dtype
from prism.errors import PrismError
from studies.beir_qa import Options, evaluate

# --- command line ----------------------------------------------------------------------------------------------------

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_HELP = """Rerank BEIR data sets and measure the result.

Rerankers: mini, a folder or a hub name (Prism, by any engine); cross-encoder:NAME; dense:NAME; cohere:MODEL,
jina:MODEL, voyage:MODEL (keys from COHERE_API_KEY, JINA_API_KEY, VOYAGE_API_KEY; MODEL@URL for another address).

Example: --model mini --model cross-encoder:models/minilm --fuse rrf:bm25+mini --data ../shared/data/beir --top-k 20
"""


@app.command(help=_HELP)
def main(
    model: Annotated[list[str] | None, Option(help="Reranker; repeatable. none: first stage only.")] = None,
    data: Annotated[Path | None, Option(help="Folder of BEIR sets, or one set. Default: mteb/* on the hub.")] = None,
    datasets: Annotated[list[str] | None, Option(help="Comma-separated. Default: all in --data, or BEIR-QA.")] = None,
    split: Annotated[str, Option(help="Which qrels.")] = "test",
    first: Annotated[str, Option(help="First stage: bm25 or dense:NAME.")] = "bm25",
    run: Annotated[Path | None, Option(help="TREC run with the candidates, instead of --first.")] = None,
    baseline: Annotated[list[str] | None, Option(help="Also retrieve with bm25 or dense:NAME; repeatable.")] = None,
    fuse: Annotated[list[str] | None, Option(help="rrf:A+B, minmax:A+B, zscore:A+B of systems; repeatable.")] = None,
    tune_queries: Annotated[int, Option(min=2, help="Train queries to fit the weight of a fusion on.")] = 200,
    top_k: Annotated[int, Option(min=1, help="How many candidates to rerank.")] = 100,
    limit: Annotated[int | None, Option(min=1, help="Only the first N queries.")] = None,
    engine: Annotated[Literal["hf", "vllm", "openai"], Option(help="What runs a Prism model.")] = "hf",
    base_url: Annotated[list[str] | None, Option(help="Its servers, up to /v1, for engine openai; repeatable.")] = None,
    template: Annotated[
        str | None, Option(help="Prompt of a checkpoint without one: instruct-label, qwen3-reranker, …, or a file.")
    ] = None,
    dtype: Annotated[Dtype, Option(help="Precision of the model.")] = "auto",
    instruction: Annotated[str | None, Option(help="Instead of the checkpoint's own.")] = None,
    max_prompt_tokens: Annotated[int | None, Option(min=1, help="Where documents are cut.")] = None,
    query_batch: Annotated[int, Option(min=1, help="Queries under way at once.")] = 1,
    api_fields: Annotated[str, Option(help="JSON object sent along with every request to a service.")] = "{}",
    price: Annotated[list[str] | None, Option(help="SYSTEM=DOLLARS/UNIT: search, ksearch, token, Mtoken.")] = None,
    resume: Annotated[bool, Option("--resume/--fresh", help="Go on with a stopped run, or rank again.")] = True,
    out: Annotated[Path, Option(help="Folder for report, runs, state and cache.")] = Path("eval/results/beir_qa"),
) -> None:
    lists = ("model", "datasets", "baseline", "fuse", "price", "base_url")
    given = {name: value for name, value in locals().items() if name not in (*lists, "lists")}
    names = tuple(name.strip() for name in ",".join(datasets or []).split(",") if name.strip())
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    try:
        options = Options(
            models=tuple(m for m in model or [] if m != "none"),
            datasets=names,
            baseline=tuple(baseline or ()),
            fuse=tuple(fuse or ()),
            price=tuple(price or ()),
            base_url=tuple(base_url or ()),
            **given,
        )
        typer.echo(evaluate(options, console.print))
    except (PrismError, ModuleNotFoundError) as error:
        hint = "" if isinstance(error, PrismError) else ": pip install 'prism-reranker[eval]'"
        typer.echo(f"error: {error}{hint}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
