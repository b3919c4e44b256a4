"""`prism rerank` and `prism demo`: documents judged, and how judgments are shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prism.cli.documents import read_sources
from prism.cli.models import Device, Dtype, EvidenceFrom, Model, NoEvidence, SelfTest, Template, evidence_choice, load
from prism.cli.printing import console, plain
from prism.errors import InputError

if TYPE_CHECKING:
    from rich.text import Text

    from prism.result import RerankResult
    from prism.types import Document, Judgment


Query = Annotated[str, typer.Argument(help="What to look for.")]
Files = Annotated[
    list[str] | None,
    typer.Argument(help="JSON (.jsonl, .ndjson, .json, .gz): a document an object; else one a file; - or none: stdin."),
]
TopN = Annotated[int | None, typer.Option(help="Show this many.")]
Threshold = Annotated[float | None, typer.Option(help="Scores from here on mean yes.")]
EvidenceTokens = Annotated[int | None, typer.Option(help="At most this many tokens of it in all.")]
Instruction = Annotated[str | None, typer.Option(help="What counts as relevant, for templates that take it.")]
Reason = Annotated[str | None, typer.Option(help="Why it is asked; read beside the query.")]
Conversation = Annotated[
    Path | None, typer.Option(help="A file of what was said before: text, or a .json array of {role, content}.")
]
QueryTokens = Annotated[int | None, typer.Option(help="Read so many tokens of the query.")]
DocumentTokens = Annotated[int | None, typer.Option(help="Read so many tokens of each document.")]
CutOn = Annotated[
    Literal["left", "right"], typer.Option(help="Where long documents are cut: right keeps their beginning.")
]
OnLong = Annotated[
    Literal["truncate", "window", "refuse"],
    typer.Option(help="Cut long documents, read them in windows, or refuse them."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what it would take and what would be cut; compute nothing.")
]
Against = Annotated[
    list[str] | None,
    typer.Option(help="A file of evidence already held, read as documents are: what adds nothing comes last; repeat."),
]
AnswerRisk = Annotated[
    float | None,
    typer.Option(help="So often may what is taken for an answer be none, where the model can promise that rate."),
]
ScoreVersion = Annotated[
    str | None, typer.Option(help="The scores that --threshold was chosen for: warn if these are others.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Context = Annotated[int | None, typer.Option(help="Print the evidence for an LLM, within this many tokens.")]
ContextAs = Annotated[
    Literal["text", "xml", "json", "anthropic"] | None,
    typer.Option(help="Print it as Markdown (text), XML, JSON, or Anthropic's search_result blocks."),
]
ContextTokenizer = Annotated[
    str | None, typer.Option(help="Count its tokens as this one: a directory, a tokenizer.json, a name on the hub.")
]


def rerank(
    query: Query,
    files: Files = None,
    model: Model = "mini",
    top_n: TopN = None,
    threshold: Threshold = None,
    evidence: EvidenceFrom = "auto",
    no_evidence: NoEvidence = False,
    evidence_tokens: EvidenceTokens = None,
    instruction: Instruction = None,
    reason: Reason = None,
    conversation: Conversation = None,
    max_query_tokens: QueryTokens = None,
    max_document_tokens: DocumentTokens = None,
    truncation_side: CutOn = "right",
    on_long_document: OnLong = "truncate",
    dry_run: DryRun = False,
    against: Against = None,
    answer_risk: AnswerRisk = None,
    score_version: ScoreVersion = None,
    as_json: AsJson = False,
    context: Context = None,
    context_format: ContextAs = None,
    context_tokenizer: ContextTokenizer = None,
    template: Template = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    self_test: SelfTest = True,
) -> None:
    """Judge documents for a query.

    JSON files hold objects with `text` (or `document` or `contents`) and optionally `id` and `title`, one a line or in
    an array, packed (.gz) or not. Standard input is read alike if it begins like JSON, else as one document a line.
    """
    from prism.cli.asked import print_preflight, read_fields
    from prism.cli.context import context_options
    from prism.options import Options

    documents, held = _read(files, against)
    options = Options(instruction=instruction, top_n=top_n, threshold=threshold, against=held)
    source = evidence_choice(evidence, no_evidence)
    options |= Options(evidence=source, evidence_tokens=evidence_tokens)
    options |= Options(max_query_tokens=max_query_tokens, max_document_tokens=max_document_tokens)
    options |= Options(truncation_side=truncation_side, on_long_document=on_long_document)
    options |= Options(answer_risk=answer_risk, score_version=score_version)
    wanted = context_options(context, context_format, context_tokenizer, source)
    asked = read_fields(query, reason, conversation)
    with load(model, template=template, dtype=dtype, device=device, self_test=self_test) as reranker:
        if dry_run:
            print_preflight(reranker.preflight(asked, documents, **options), as_json=as_json)
        else:
            _print_result(reranker.rerank(asked, documents, **options), as_json=as_json, context=wanted)


def _read(files: list[str] | None, against: list[str] | None) -> tuple[list[Document], list[str]]:
    """(documents, texts already held). Raises InputError when there are no documents."""
    documents = list(read_sources(files or ["-"]))
    if not documents:
        raise InputError("no documents: pass files with text in them, or lines on standard input")
    return documents, [document.text for document in read_sources(against or [])]


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

    screen = console()
    with load(model, template=template, dtype=dtype, device=device, self_test=self_test) as reranker:
        for asked in [query] if query is not None else QUERIES:
            result = reranker.rerank(asked, DOCUMENTS, evidence=evidence_choice(evidence))
            screen.rule(plain(asked, "bold"), align="left")
            for judgment in result:
                screen.print(_shown(judgment, DOCUMENTS[judgment.index]), end="\n\n" if judgment.evidence else "\n")
            screen.print()


def _print_result(result: RerankResult, *, as_json: bool, context: dict[str, Any] | None) -> None:
    from prism.cli.context import as_json_text, print_context
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
        console().print(result)


def _shown(judgment: Judgment, document: Document) -> Text:
    """One judgment with its document; what backs the evidence is highlighted in the document."""
    from rich.text import Text

    from prism.result import notes, source_name

    colour = {"yes": "green", "no": "dim"}.get(judgment.verdict or "", "red")
    score = "" if judgment.score is None else f"{judgment.score:.3f}  "
    shown = Text.assemble(
        (f"{score}{judgment.verdict or 'error'}  ", f"bold {colour}"), plain(source_name(judgment), "bold")
    )
    for name, text in (("contribution", judgment.contribution), ("evidence", judgment.evidence)):
        if text:
            shown.append_text(plain(f"\n  {name}: {text}"))
    for note in notes(judgment):
        shown.append_text(plain(f"\n  ({note})", "yellow"))
    if judgment.spans:
        shown.append("\n  document: ")
        offset = len(shown)
        shown.append_text(plain(document.text, "dim"))
        for span in judgment.spans:
            shown.stylize("not dim reverse", offset + span.start, offset + span.end)
    return shown
