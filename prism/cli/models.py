"""Options that say which model answers and where, and the model they name."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prism import devices

if TYPE_CHECKING:
    from prism.backends import EngineName
    from prism.reranker import Reranker
    from prism.types import EvidenceChoice

Model = Annotated[
    str, typer.Option(help="mini (bundled), a checkpoint or adapter directory, a GGUF file, or a name on the hub.")
]
Template = Annotated[
    str | None,
    typer.Option(
        help="Prompt of a checkpoint that carries none: prism, qwen3-reranker, instruct, instruct-label, or a file."
    ),
]
Dtype = Annotated[
    devices.Dtype, typer.Option(help="auto: bfloat16 where it is faster; int8: 8-bit integers, on CPUs that have them.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Engine = Annotated[
    Literal["auto", "hf", "vllm", "openai", "llamacpp"],
    typer.Option(
        help="hf: in this process; vllm: vLLM on this machine; openai: servers at --base-url; llamacpp: a GGUF file of"
        " `prism export`, without torch; auto: llamacpp for such a file where it is installed, else hf."
    ),
]
BaseUrl = Annotated[
    list[str] | None,
    typer.Option(help="Where engine openai finds the model, up to /v1; repeat for several servers."),
]
EngineOption = Annotated[
    list[str] | None,
    typer.Option(help="With vllm: NAME=VALUE of vLLM's AsyncEngineArgs, such as tensor_parallel_size=2; repeat."),
]
ServedModel = Annotated[str | None, typer.Option(help="The model's name on those servers; default: their first.")]
EvidenceFrom = Annotated[
    Literal["written", "quoted", "auto", "none"],
    typer.Option(
        help="written: by the model, with a contribution; quoted: sentences of the document, which every reranker can;"
        " auto: as the checkpoint prefers. Requests to a server may say otherwise."
    ),
]
NoEvidence = Annotated[bool, typer.Option("--no-evidence", help="Short for --evidence none.")]
SelfTest = Annotated[bool, typer.Option(help="Score a few obvious pairs after loading.")]


def evidence_choice(source: Literal["written", "quoted", "auto", "none"], none: bool = False) -> EvidenceChoice | bool:
    """What `rerank` takes as `evidence`."""
    return False if none or source == "none" else source


def load(model: str, *, engine: EngineName = "auto", **options: Any) -> Reranker:
    """`Reranker.load`, sooner."""
    with _uncollected():
        from prism.backends import choose_engine
        from prism.reranker import Reranker

        chosen = choose_engine(engine, model)
        if chosen != "llamacpp":  # which needs no transformers
            _import_transformers()
    return Reranker.load(model, engine=chosen, **options)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Inside, for imports, no garbage is collected, and later none is looked for in what they made.

    Of half a million objects nearly all stay, and to look through them again and again takes a sixth of the start-up.
    """
    collects, first = gc.isenabled(), "transformers" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if first:  # later there may be garbage of earlier work, which would stay for good
            gc.freeze()
        if collects:
            gc.enable()


def _import_transformers() -> None:
    """Import transformers without scikit-learn and scipy, a third of its start-up.

    Where they are installed it takes them, for losses of image models and a kind of assisted decoding. This process is
    ours and needs neither; in a program that imports Prism transformers is left as it is.
    """
    from transformers import utils

    names = ("is_sklearn_available", "is_scipy_available")
    known = {name: getattr(utils, name) for name in names}
    try:
        for name in names:
            setattr(utils, name, lambda: False)
        import transformers.generation.candidate_generator
        import transformers.modeling_utils  # noqa: F401  # these two take them
    finally:
        for name, function in known.items():
            setattr(utils, name, function)
