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
import ipaddress
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from prism import devices
from prism.data.commands import app as data_app
from prism.doctor.doctor_command import doctor
from prism.errors import DataError, InputError, PrismError
from prism.evaluation.calibrate_command import calibrate
from prism.export_command import export
from prism.labeling.agree_command import agree
from prism.labeling.label_command import label
from prism.labeling.writing_command import write_targets
from prism.mcp_server.mcp_command import mcp
from prism.pull_command import pull

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from prism.reranker import Reranker
    from prism.result import RerankResult
    from prism.types import Document, EvidenceChoice, Judgment

_EXTRAS = {
    "fastapi": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
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
            extra = _EXTRAS.get((error.name or "").partition(".")[0])  # an old version lacks a part of it
            if extra is None:
                raise
            _fail(f'this command needs {error.name}: run pip install "prism-reranker[{extra}]"')


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Rerankers that explain themselves: score, verdict, contribution and evidence for every document.",
)

app.add_typer(data_app, name="data")


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


Model = Annotated[str, typer.Option(help="mini (bundled), a checkpoint or adapter directory, or a name on the hub.")]
Template = Annotated[
    str | None, typer.Option(help="Prompt of a checkpoint that carries none: a built-in name or file.")
]
Dtype = Annotated[
    devices.Dtype, typer.Option(help="auto: bfloat16 where it is faster; int8: 8-bit integers, on CPUs that have them.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Engine = Annotated[
    Literal["hf", "vllm", "openai"],
    typer.Option(help="hf: in this process; vllm: vLLM on this machine; openai: servers at --base-url."),
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
SelfTest = Annotated[bool, typer.Option(help="Score a few obvious pairs after loading.")]


@app.command()
def rerank(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="JSON (.jsonl, .ndjson, .json, .gz): a document an object; else one a file; - or none: stdin."
        ),
    ] = None,
    model: Model = "mini",
    top_n: Annotated[int | None, typer.Option(help="Show this many.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Scores from here on mean yes.")] = None,
    evidence: EvidenceFrom = "auto",
    no_evidence: Annotated[bool, typer.Option("--no-evidence", help="Short for --evidence none.")] = False,
    evidence_tokens: Annotated[int | None, typer.Option(help="At most this many tokens of it in all.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="What counts as relevant, for templates that take it.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="A file of evidence already held, read as documents are: what adds nothing comes last; repeat."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    context: Annotated[int | None, typer.Option(help="Print the evidence for an LLM, within this many tokens.")] = None,
    context_format: Annotated[
        Literal["text", "xml", "json", "anthropic"] | None,
        typer.Option(help="Print it as Markdown (text), XML, JSON, or Anthropic's search_result blocks."),
    ] = None,
    context_tokenizer: Annotated[
        str | None,
        typer.Option(help="Count its tokens as this one: a directory, a tokenizer.json, a name on the hub."),
    ] = None,
    template: Template = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    self_test: SelfTest = True,
) -> None:
    """Judge documents for a query.

    JSON files hold objects with `text` (or `document` or `contents`) and optionally `id` and `title`, one a line or in
    an array; packed files (.gz) are read too. Standard input is read the same way if it begins like JSON, else as one
    document a line.
    """
    documents = list(_read_sources(files or ["-"]))
    if not documents:
        raise InputError("no documents: pass files with text in them, or lines on standard input")
    held = [document.text for document in _read_sources(against or [])]
    from prism.context_command import context_options

    wanted = context_options(context, context_format, context_tokenizer)
    with _load(model, template=template, dtype=dtype, device=device, self_test=self_test) as reranker:
        result = reranker.rerank(
            query,
            documents,
            instruction=instruction,
            top_n=top_n,
            threshold=threshold,
            evidence=False if no_evidence else _evidence(evidence),
            evidence_tokens=evidence_tokens,
            against=held,
        )
    _print_result(result, as_json=as_json, context=wanted)


@app.command()
def demo(
    query: Annotated[str | None, typer.Option(help="Ask the sample something else.")] = None,
    model: Model = "mini",
    evidence: EvidenceFrom = "auto",
    template: Template = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    self_test: SelfTest = True,
) -> None:
    """Rerank a bundled sample, and show where each document backs its evidence."""
    from prism.demo import DOCUMENTS, QUERIES

    console = _console()
    with _load(model, template=template, dtype=dtype, device=device, self_test=self_test) as reranker:
        for asked in [query] if query is not None else QUERIES:
            result = reranker.rerank(asked, DOCUMENTS, evidence=_evidence(evidence))
            console.rule(_plain(asked, "bold"), align="left")
            for judgment in result:
                console.print(_shown(judgment, DOCUMENTS[judgment.index]), end="\n\n" if judgment.evidence else "\n")
            console.print()


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    model: Model = "mini",
    max_documents: Annotated[int, typer.Option(min=1, help="Refuse requests with more.")] = 1000,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Refuse bodies over this many MiB.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Refuse requests with more prompt tokens.")] = 4_000_000,
    max_requests: Annotated[int, typer.Option(min=1, help="Answer 429 while this many are under way.")] = 64,
    request_timeout: Annotated[float, typer.Option(min=0.001, help="Seconds until a request is given up.")] = 300,
    drain_delay: Annotated[
        float, typer.Option(min=0, help="Seconds between the signal to end and the end of listening; /ready says 503.")
    ] = 0,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="One key a line. PRISM_API_KEYS adds keys, parted by commas.")
    ] = None,
    evidence: EvidenceFrom = "auto",
    no_evidence: Annotated[bool, typer.Option("--no-evidence", help="Short for --evidence none.")] = False,
    context_tokenizer: Annotated[
        list[str] | None,
        typer.Option(help="A tokenizer that requests may name as context_tokenizer: a directory, a file, a hub name."),
    ] = None,
    template: Template = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    self_test: SelfTest = True,
    engine: Engine = "hf",
    base_url: BaseUrl = None,
    served_model: ServedModel = None,
    engine_option: EngineOption = None,
    traces: Annotated[
        bool, typer.Option(help="Send OpenTelemetry spans, without texts, to OTEL_EXPORTER_OTLP_ENDPOINT.")
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the playground in a browser once it is served.")] = False,
) -> None:
    """Serve POST /v1/rerank to the clients of Cohere, Jina, Voyage, vLLM and Text Embeddings Inference, and raw HTTP.

    Beside it: a playground at /, a reference at /docs, /v1/models, /health, /ready and /metrics (Prometheus). Logs are
    JSON lines on standard error, without texts of requests. SIGTERM lets what is under way finish.
    """
    from prism.backends import read_vllm_options
    from prism.serving.app import create_app
    from prism.serving.keys import Keys
    from prism.serving.limits import Limits
    from prism.serving.run import open_browser, run
    from prism.serving.tracing import exporter

    keys = Keys.read(api_keys_file)
    if not keys and not _is_loopback(host):
        typer.echo(f"warning: {host} can be reached from other machines, and no API key is set", err=True)
    trace = exporter() if traces else None
    limits = Limits(
        max_documents=max_documents,
        max_body_bytes=int(max_body_mb * 2**20),
        max_tokens=max_tokens,
        max_requests=max_requests,
        request_timeout_s=request_timeout,
        tokenizers=tuple(context_tokenizer or ()),
        evidence=False if no_evidence else _evidence(evidence),
    )
    reranker = _load(
        model,
        template=template,
        dtype=dtype,
        device=device,
        self_test=self_test,
        engine=engine,
        base_url=base_url,
        served_model=served_model,
        engine_options=read_vllm_options(engine, engine_option or ()),
    )
    if engine == "hf":  # the others batch across requests themselves
        from prism.engines.turns import TakingTurns

        reranker.take_turns(TakingTurns)
    endpoint = create_app(reranker, limits, keys=keys, trace=trace)
    run(
        endpoint,
        host=host,
        port=port,
        drain_delay_s=drain_delay,
        finish_within_s=request_timeout,
        ready=open_browser if open_ else None,
    )


@app.command()
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
    if dry_run:
        from prism.training.dry_run import dry_run as plan
        from prism.training.dry_run import plan_table

        found = plan(recipe, overrides=overrides or [], output=output)
        if as_json:
            typer.echo(found.model_dump_json(indent=2))
        else:
            _console().print(plan_table(found))
        return
    if as_json:
        raise InputError("--json prints the plan of a --dry-run: add --dry-run")
    from prism.training.trainer import train as run

    typer.echo(run(recipe, overrides=overrides or [], resume=not fresh, output=output))


app.command()(agree)
app.command()(calibrate)
app.command()(doctor)
app.command()(label)
app.command()(mcp)
app.command()(write_targets)


app.command()(export)
app.command()(pull)


@app.command()
def version() -> None:
    """Print the version."""
    from prism import __version__

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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _evidence(source: Literal["written", "quoted", "auto", "none"]) -> EvidenceChoice | bool:
    return False if source == "none" else source


def _load(model: str, **options: Any) -> Reranker:
    _import_transformers()
    from prism.reranker import Reranker

    return Reranker.load(model, **options)


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


# --- reading ---------------------------------------------------------------------------------------------------------


def _read_sources(sources: Sequence[str]) -> Iterator[Document]:
    from prism.files.jsonl import read_objects
    from prism.files.lines import is_json, open_bytes, read_text_file
    from prism.types import Document

    for source in sources:
        if source == "-":
            yield from _read_standard_input()
        elif is_json(source):
            yield from (_document(place, row) for _, place, row in read_objects(Path(source)))
        else:
            with open_bytes(Path(source)) as stream:
                yield Document(text=read_text_file(stream, source), id=source)


def _read_standard_input() -> Iterator[Document]:
    """Read like a JSON file if it begins like one, else one document a line; blank lines are skipped."""
    from io import BufferedReader, BytesIO

    from prism.files.jsonl import objects_of
    from prism.files.lines import byte_lines, decode, unpacked
    from prism.types import Document

    if sys.stdin.isatty():
        typer.echo("reading documents from standard input, one a line; end with Ctrl-D", err=True)
    name = "standard input"
    stream = unpacked(BufferedReader(BytesIO(sys.stdin.buffer.read())))
    lines = list(byte_lines(stream, name))
    content = b"".join(line for _, line in lines)
    if _is_json(content):
        yield from (_document(place, row) for _, place, row in objects_of(BytesIO(content), name))
        return
    for number, line in lines:
        text = decode(line, f"{name}:{number}")
        if text.strip():
            yield Document(text=text, id=f"line {number}")


def _is_json(content: bytes) -> bool:
    """Whether the first line is an object, or the whole is an array of objects."""
    head = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    first = head.split(b"\n", 1)[0]
    try:
        value = json.loads(first if head.startswith(b"{") and first.strip() != b"{" else head)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _document(place: str, row: dict[str, Any] | DataError) -> Document:
    from prism.files.ids import DOCUMENT_IDS, id_in
    from prism.types import Document

    if isinstance(row, DataError):
        raise row
    name = next((name for name in ("text", "document", "contents") if name in row), None)
    if name is None:
        raise DataError(f"{place}: expected text, document or contents, got {', '.join(row)[:80] or 'nothing'}")
    text = row[name]
    if not isinstance(text, str):
        raise DataError(f"{place}: expected a string in {name}, got {json.dumps(text)[:80]}")
    title = row.get("title")
    id_ = id_in(row, ("id", *DOCUMENT_IDS, "_id"), place)
    return Document(text=text, id=place if id_ is None else id_, title=None if title is None else str(title))


# --- printing --------------------------------------------------------------------------------------------------------


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, emoji=False, markup=False)


def _plain(text: str, style: str = "") -> Text:
    from rich.text import Text

    from prism.text import printable

    return Text(printable(text), style)


def _print_result(result: RerankResult, *, as_json: bool, context: dict[str, Any] | None) -> None:
    from prism.context_command import as_json_text, print_context
    from prism.text import printable

    for warning in result.warnings:
        typer.echo(f"warning: {printable(warning)}", err=True)
    made = None if context is None else result.fit_context(**context)
    if as_json:
        both = {"context": made.model_dump(mode="json")} if made else {}
        typer.echo(as_json_text(result.model_dump(mode="json") | both))
        if made is not None and made.problem:  # the ranking is not lost, and a script notices
            raise InputError(f"{made.problem}: raise --context")
    elif made is not None:
        print_context(result, made)
    else:
        _console().print(result)


def _shown(judgment: Judgment, document: Document) -> Text:
    """One judgment with its document; what backs the evidence is highlighted in the document."""
    from rich.text import Text

    from prism.result import notes, source_name

    colour = {"yes": "green", "no": "dim"}.get(judgment.verdict or "", "red")
    score = "" if judgment.score is None else f"{judgment.score:.3f}  "
    shown = Text.assemble(
        (f"{score}{judgment.verdict or 'error'}  ", f"bold {colour}"), _plain(source_name(judgment), "bold")
    )
    for name, text in (("contribution", judgment.contribution), ("evidence", judgment.evidence)):
        if text:
            shown.append_text(_plain(f"\n  {name}: {text}"))
    for note in notes(judgment):
        shown.append_text(_plain(f"\n  ({note})", "yellow"))
    if judgment.spans:
        shown.append("\n  document: ")
        offset = len(shown)
        shown.append_text(_plain(document.text, "dim"))
        for span in judgment.spans:
            shown.stylize("not dim reverse", offset + span.start, offset + span.end)
    return shown


if __name__ == "__main__":
    main()
