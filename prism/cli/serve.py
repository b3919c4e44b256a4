"""`prism serve`: the HTTP endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prism.cli.models import (
    BaseUrl,
    Device,
    Dtype,
    Engine,
    EngineOption,
    EvidenceFrom,
    Model,
    NoEvidence,
    SelfTest,
    ServedModel,
    Template,
    evidence_choice,
    load,
)

if TYPE_CHECKING:
    from prism.backends import EngineName
    from prism.reranker import Reranker
    from prism.serving.limits import Keys, Limits
    from prism.serving.observability import Trace
    from prism.types import EvidenceChoice


Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535)]
MaxDocuments = Annotated[int, typer.Option(min=1, help="Refuse requests with more.")]
MaxBody = Annotated[float, typer.Option(min=0.001, help="Refuse bodies over this many MiB.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Refuse requests with more prompt tokens.")]
MaxRequests = Annotated[int, typer.Option(min=1, help="Answer 429 while this many are under way.")]
RequestTimeout = Annotated[float, typer.Option(min=0.001, help="Seconds until a request is given up.")]
DrainDelay = Annotated[
    float, typer.Option(min=0, help="Seconds between the signal to end and the end of listening; /ready says 503.")
]
KeysFile = Annotated[Path | None, typer.Option(help="One key a line. PRISM_API_KEYS adds keys, parted by commas.")]
ContextTokenizers = Annotated[
    list[str] | None,
    typer.Option(help="A tokenizer that requests may name as context_tokenizer: a directory, a file, a hub name."),
]
Traces = Annotated[bool, typer.Option(help="Send OpenTelemetry spans, without texts, to OTEL_EXPORTER_OTLP_ENDPOINT.")]
Open = Annotated[bool, typer.Option("--open", help="Open the playground in a browser once it is served.")]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    model: Model = "mini",
    max_documents: MaxDocuments = 1000,
    max_body_mb: MaxBody = 64,
    max_tokens: MaxTokens = 4_000_000,
    max_requests: MaxRequests = 64,
    request_timeout: RequestTimeout = 300,
    drain_delay: DrainDelay = 0,
    api_keys_file: KeysFile = None,
    evidence: EvidenceFrom = "auto",
    no_evidence: NoEvidence = False,
    context_tokenizer: ContextTokenizers = None,
    template: Template = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    self_test: SelfTest = True,
    engine: Engine = "auto",
    base_url: BaseUrl = None,
    served_model: ServedModel = None,
    engine_option: EngineOption = None,
    traces: Traces = False,
    open_: Open = False,
) -> None:
    """Serve POST /v1/rerank to the clients of Cohere, Jina, Voyage, vLLM and Text Embeddings Inference, and raw HTTP.

    Beside it: /v1/systemone and /v1/decisions for typed questions (Jev's and OpenAI's), a playground at /, a reference
    at /docs, /v1/models, /health, /ready and /metrics (Prometheus). Logs are JSON lines on standard error, without
    texts of requests. SIGTERM lets what is under way finish.
    """
    import prism.serving.app  # noqa: F401  # what is not installed is said before a model loads

    keys, trace = _keys(api_keys_file, host), _exporter() if traces else None
    choice = evidence_choice(evidence, no_evidence)
    limits = _limits(max_documents, max_body_mb, max_tokens, max_requests, request_timeout, context_tokenizer, choice)
    where: dict[str, Any] = {"base_url": base_url, "served_model": served_model, "engine_option": engine_option}
    options: dict[str, Any] = {"template": template, "dtype": dtype, "device": device, "self_test": self_test}
    reranker = _open(model, engine, **where, **options)
    _run(reranker, limits, keys, trace, host=host, port=port, drain_delay_s=drain_delay, open_page=open_)


def _keys(path: Path | None, host: str) -> Keys:
    from prism.llm.allowance import is_loopback
    from prism.serving.limits import Keys

    keys = Keys.read(path)
    if not keys and not is_loopback(host):
        typer.echo(f"warning: {host} can be reached from other machines, and no API key is set", err=True)
    return keys


def _exporter() -> Trace:
    from prism.serving.observability import exporter

    return exporter()


def _limits(
    documents: int,
    body_mb: float,
    tokens: int,
    requests: int,
    timeout_s: float,
    tokenizers: list[str] | None,
    evidence: EvidenceChoice | bool,
) -> Limits:
    from prism.serving.limits import Limits

    return Limits(
        max_documents=documents,
        max_body_bytes=int(body_mb * 2**20),
        max_tokens=tokens,
        max_requests=requests,
        request_timeout_s=timeout_s,
        tokenizers=tuple(tokenizers or ()),
        evidence=evidence,
    )


def _open(model: str, engine: EngineName, *, engine_option: list[str] | None, **options: Any) -> Reranker:
    from prism.backends import read_vllm_options

    settings = read_vllm_options(engine, engine_option or ())
    return load(model, engine=engine, engine_options=settings, **options)


def _run(
    reranker: Reranker,
    limits: Limits,
    keys: Keys,
    trace: Trace | None,
    *,
    host: str,
    port: int,
    drain_delay_s: float,
    open_page: bool,
) -> None:
    from prism.serving.app import create_app
    from prism.serving.serve import open_browser, run

    run(
        create_app(reranker, limits, keys=keys, trace=trace),
        host=host,
        port=port,
        drain_delay_s=drain_delay_s,
        finish_within_s=limits.request_timeout_s,
        ready=open_browser if open_page else None,
    )
