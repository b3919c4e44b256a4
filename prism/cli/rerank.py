"""`prism rerank` and `prism demo`: documents judged, and how judgments are shown."""

from __future__ import annotations

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
    an array; packed files (.gz) are read too. Standard input is read the same way if it begins like JSON, else as one
    document a line.
    """
    from prism.cli.context import context_options

    documents, held = _read(files, against)
    options: dict[str, Any] = {"instruction": instruction, "top_n": top_n, "threshold": threshold}
    options |= {"evidence": evidence_choice(evidence, no_evidence), "evidence_tokens": evidence_tokens}
    options |= {"answer_risk": answer_risk, "score_version": score_version}
    wanted = context_options(context, context_format, context_tokenizer)
    with load(model, template=template, dtype=dtype, device=device, self_test=self_test) as reranker:
        result = reranker.rerank(query, documents, against=held, **options)
    _print_result(result, as_json=as_json, context=wanted)


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
