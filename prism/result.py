"""What a rerank call answers, and how it is shown: to an LLM, in a terminal, in a notebook.

Everything shown comes from documents and from a model that read them, so it is data wherever it goes. What an LLM gets
is made in `prism.context`. In a terminal control characters are replaced and markup is not read; in HTML all text is
escaped.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal, overload

from pydantic import PrivateAttr

from prism.answer_check import AnswerCheck
from prism.context import ContextFormat, CountTokens, PromptContext, make_context, named_tokenizer
from prism.errors import InputError
from prism.text import printable as printable
from prism.types import Conflict, Judgment, Outcome, Place, QueryCut, Record, SameEvidence, Unanswered, Usage

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text


class RerankResult(Record):
    """Judgments, best first; documents that could not be judged stand last, with `error`."""

    query: str
    """As the model read it."""
    query_cuts: tuple[QueryCut, ...] = ()
    """What a budget cut off the query."""
    instruction: str | None = None
    """What the caller said that counts as relevant; None: the checkpoint's own."""
    model: str
    judgments: tuple[Judgment, ...]
    usage: Usage
    """Tokens of all documents sent, returned or not."""
    answerable: float | None = None
    """Calibrated probability that at least one of the documents sent answers. None without a calibration
    (`prism calibrate`) or without a document that could be judged. A calibration that knows of no sets, as those before
    0.2, gives that of the best document."""
    reason: Unanswered | None = None
    """Why the documents are not to be taken for an answer; None when they are, or when none could be judged."""
    sufficient: bool | None = None
    """Whether what is whole of the evidence in `judgments` answers as probably: False where the budget, `top_n` or a
    cut lost what does, or with a `reason`. None without a calibration, or when no evidence was asked for."""
    threshold: float | None = None
    """Where a yes began under this query; None: not told, as by another server."""
    score_version: str | None = None
    """Which scores these are; a threshold chosen for others means something else (`prism.score_version`)."""
    warnings: tuple[str, ...] = ()
    same: tuple[SameEvidence, ...] = ()
    """Documents whose evidence says the same, best first; nothing of it is left out of `judgments`."""
    conflicts: tuple[Conflict, ...] = ()
    """Where documents contradict each other, or a text of `against`, in sentences that back their evidence."""
    _count: CountTokens | None = PrivateAttr(default=None)
    _check: AnswerCheck | None = PrivateAttr(default=None)

    def __len__(self) -> int:
        return len(self.judgments)

    def __iter__(self) -> Iterator[Judgment]:  # type: ignore[override]  # pydantic would iterate over field names
        return iter(self.judgments)

    def __getitem__(self, rank: int) -> Judgment:
        return self.judgments[rank]

    @overload
    def context(
        self,
        *,
        format: Literal["text", "xml", "json"] = "text",
        max_tokens: int | None = None,
        tokenizer: str | None = None,
        count: CountTokens | None = None,
    ) -> str: ...

    @overload
    def context(
        self,
        *,
        format: Literal["anthropic"],
        max_tokens: int | None = None,
        tokenizer: str | None = None,
        count: CountTokens | None = None,
    ) -> list[dict[str, Any]]: ...

    def context(
        self,
        *,
        format: ContextFormat = "text",
        max_tokens: int | None = None,
        tokenizer: str | None = None,
        count: CountTokens | None = None,
    ) -> str | list[dict[str, Any]]:
        """The evidence for an LLM's prompt: whole sources, best first, as they fit in `max_tokens`.

        `format`: `text` (Markdown), `xml`, `json`, or `anthropic`: a list of `search_result` blocks with citations on
        (see `prism.context`). Source n is `result[n - 1]`. Tokens are counted as the reranker's own model counts them,
        as `tokenizer` does (a directory, a tokenizer.json, a name on the hub), or by `count`. Empty without evidence.
        Raises InputError when the budget holds none of the evidence, saying what would fit; and for a budget without a
        tokenizer, which a result read back from JSON or a pickle has left behind.
        """
        made = self.fit_context(format, max_tokens=max_tokens, tokenizer=tokenizer, count=count)
        if made.problem:
            raise InputError(f"{made.problem}: raise the budget")
        return made.content

    def fit_context(
        self,
        format: ContextFormat = "text",
        *,
        max_tokens: int | None = None,
        tokenizer: str | None = None,
        count: CountTokens | None = None,
    ) -> PromptContext:
        """`context`, with its tokens and what was left out. A budget that holds nothing is its `problem`."""
        if tokenizer is not None and count is not None:
            raise InputError("tokenizer and count both say how to count tokens: pass one of them")
        made = make_context(
            self.judgments,
            format,
            max_tokens,
            named_tokenizer(tokenizer) if tokenizer is not None else count or self._count,
        )
        enough = self._check and self._check.sufficient(made.documents, self.judgments, self.reason)
        return made.model_copy(update={"sufficient": enough})

    def made_with(self, count: CountTokens, check: AnswerCheck) -> RerankResult:
        """The same result, whose contexts count tokens with `count` and are judged by `check`."""
        made = self.model_copy()
        made._count, made._check = count, check
        return made

    def __getstate__(self) -> dict[Any, Any]:
        return {
            **super().__getstate__(),
            "__pydantic_private__": {"_count": None, "_check": None},
        }  # tools are no result

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RerankResult) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((self.query, self.model, self.judgments))

    def __str__(self) -> str:
        from rich.console import Console

        out = StringIO()
        Console(file=out, width=110, color_system=None, force_terminal=False).print(self.__rich__())
        return out.getvalue()

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        conflicts = "\n".join(f"conflict: {describe(conflict)}" for conflict in self.conflicts)
        said = [Text(line, style) for line, style in ((conflicts, "yellow"), (answered(self), "bold")) if line]
        return Group(_table(self.judgments), *said)

    def _repr_html_(self) -> str:
        said = "".join(f"<p><b>conflict</b>: {_escaped(describe(each))}</p>" for each in self.conflicts)
        said += f"<p>{_escaped(line)}</p>" if (line := answered(self)) else ""
        return _html(self.query, self.judgments) + said


# --- while a call is under way ---------------------------------------------------------------------------------------


class Ranked(Record):
    """All documents are scored, evidence is still to come."""

    result: RerankResult


class Contributed(Record):
    """What one document contributes; its evidence is still being written."""

    index: int
    contribution: str


class Judged(Record):
    """One document's judgment is final, evidence and checks included."""

    judgment: Judgment


Event = Ranked | Contributed | Judged | RerankResult
"""What `Reranker.astream` yields: one `Ranked`, then evidence as it is found, last the whole result."""


# --- for people ------------------------------------------------------------------------------------------------------


def source_name(judgment: Judgment) -> str:
    """What to call a document in a table: its title, its id, or its place in the caller's list."""
    return " · ".join(filter(None, (judgment.title, judgment.id))) or f"document {judgment.index}"


def notes(judgment: Judgment) -> list[str]:
    """What a reader should know before trusting a judgment."""
    found = []
    if judgment.error:
        found.append(f"error: {judgment.error}")
    if judgment.outcome in (Outcome.CUT_OFF, Outcome.MALFORMED):
        quoted = judgment.evidence_source == "quoted"
        found.append("no sentence could be quoted" if quoted else f"written text {judgment.outcome.replace('_', ' ')}")
    if judgment.outcome is Outcome.UNINFORMATIVE:
        found.append("the contribution only says the query again")
    found += _broken(judgment)
    if judgment.also:
        found.append(f"the same in {', '.join(judgment.also)}")
    if judgment.same_as is not None:
        found.append(f"says no more than documents[{judgment.same_as}]")
    if judgment.held is not None:
        found.append(f"adds nothing to against[{judgment.held}]")
    if judgment.truncation:
        found.append(f"read {judgment.truncation.read_chars:,} of {judgment.truncation.total_chars:,} characters")
    if judgment.unsupported:
        found.append("not in the document: " + ", ".join(item.text for item in judgment.unsupported))
    return found


_REASONS = {
    Unanswered.NONE_RELEVANT: "no document is relevant",
    Unanswered.RELATED_ONLY: "documents are related, that one answers is improbable",
    Unanswered.CONFLICTING: "documents contradict each other",
    Unanswered.CUT_OFF: "what was read does not answer, and not all was read",
}


def answered(result: RerankResult) -> str:
    """Whether the documents answer, in one line; empty where there is nothing to say."""
    known = [] if result.answerable is None else [f"answerable: {result.answerable:.2f}"]
    known += [f"{result.reason} ({_REASONS[result.reason]})"] if result.reason else []
    if result.sufficient is not None:
        known.append(f"evidence {'sufficient' if result.sufficient else 'not sufficient'}")
    return ", ".join(known)


def describe(conflict: Conflict) -> str:
    """A conflict in one line: what either side says, and where."""
    return printable(f"{conflict.kind}: {_said(conflict.left)}, {_said(conflict.right)}")


def _said(place: Place) -> str:
    where = place.id or f"{'against' if place.against else 'documents'}[{place.index}]"
    said = json.dumps(place.value, ensure_ascii=False) if place.value else "nothing like it"
    return f"{said} in {where} [{place.start}, {place.end})"


def _broken(judgment: Judgment) -> list[str]:
    checks = [judgment.check, judgment.contribution_check]
    stretches = dict.fromkeys(stretch for check in checks if check for stretch in check.broken)
    return [f"broken: {', '.join(stretches)}"] if stretches else []


def _table(judgments: Sequence[Judgment]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 1, 0))
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("document", max_width=28, overflow="fold")
    table.add_column("what it contributes", overflow="fold", ratio=1)
    for rank, judgment in enumerate(judgments, start=1):
        score = "" if judgment.score is None else f"{judgment.score:.3f}"
        table.add_row(
            Text(str(rank)),
            Text(score),
            Text(judgment.verdict or "error"),
            _text(source_name(judgment)),
            _cell(judgment),
        )
    return table


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(printable(text), style)


def _cell(judgment: Judgment) -> Text:
    from rich.text import Text

    parts = [_text(judgment.contribution, "bold")] if judgment.contribution else []
    parts += [_text(judgment.evidence)] if judgment.evidence else []
    parts += [_text(f"({note})", "yellow") for note in notes(judgment)]
    return Text("\n").join(parts)


def _html(query: str, judgments: Sequence[Judgment]) -> str:
    rows = "".join(_row(rank, judgment) for rank, judgment in enumerate(judgments, start=1))
    head = "".join(f"<th>{name}</th>" for name in ("", "score", "verdict", "document", "what it contributes"))
    return f"<table><caption>{_escaped(query)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _row(rank: int, judgment: Judgment) -> str:
    score = "" if judgment.score is None else f"{judgment.score:.3f}"
    parts = [f"<b>{_escaped(judgment.contribution)}</b>"] if judgment.contribution else []
    parts += [_escaped(judgment.evidence)] if judgment.evidence else []
    parts += [f"<i>({_escaped(note)})</i>" for note in notes(judgment)]
    cells = (str(rank), score, judgment.verdict or "error", _escaped(source_name(judgment)), "<br>".join(parts))
    return "<tr>" + "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells) + "</tr>"


def _escaped(text: str) -> str:
    return html.escape(printable(text)).replace("\n", "<br>")
