"""Who sends what, and what each client parses.

`/v1/rerank`, `/v2/rerank` and `/rerank` answer the clients of Cohere, Jina, Voyage, vLLM and Text Embeddings Inference
(TEI). One answer serves all but these:

- Voyage's clients read `data` (always sent, next to `results`), and `detail` of an error; one of their versions crashes
  on an error with an object in `error`.
- TypeSafe's clients look for an object in `detail` of an error (`systemone`).
- TEI's clients send `texts` and read a bare array of all documents with `score`, and a text in `error`. An array has no
  place for warnings: they stand in the header `X-Prism-Warnings`, a JSON array of texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal

from prism.context import PromptContext
from prism.errors import InputError
from prism.preflight import Preflight
from prism.result import RerankResult
from prism.serving.schema import RerankRequest, SpanOut
from prism.types import (
    Conflict,
    ContributionCheck,
    EvidenceSource,
    Judgment,
    Outcome,
    QueryCut,
    Record,
    SameEvidence,
    Span,
    Truncation,
    Unanswered,
    Unsupported,
    Usage,
    Verdict,
    WindowScore,
)

WARNINGS = "X-Prism-Warnings"
_LEAST_LOGIT = -1e3
"""Stands for the log-odds of a document without a score: lower than any model's."""
_COMMON = {
    "texts": "documents",
    "top_k": "top_n",
    "return_text": "return_documents",
    "truncation_direction": "truncation_side",
    "instruct": "instruction",
}
"""Fields that others call otherwise than we do."""


class Dialect(StrEnum):
    """How a request is answered."""

    COMMON = "common"
    VOYAGE = "voyage"
    TEI = "tei"
    SYSTEM_ONE = "systemone"
    DECISIONS = "decisions"

    @property
    def writes(self) -> bool:
        """Whether clients show what was written: if not, nothing is unless they ask."""
        return self is Dialect.COMMON


def recognise(body: object) -> Dialect:
    """By fields only one dialect has: clients do not say who they are."""
    if isinstance(body, Mapping):
        if "questions" in body:
            return Dialect.SYSTEM_ONE if "state" in body else Dialect.DECISIONS
        if "texts" in body and body.get("documents") is None:
            return Dialect.TEI
        if "top_k" in body or "truncation" in body:
            return Dialect.VOYAGE
    return Dialect.COMMON


def common_names(body: object) -> tuple[object, dict[str, str]]:
    """The body under the names everyone else uses, and what it said instead of them, for its errors.

    Raises InputError where it says one thing under two names, differently.
    """
    if not isinstance(body, Mapping):
        return body, {}
    renamed, sent = dict(body), {}
    for name, common in _COMMON.items():
        if None not in (renamed.get(name), renamed.get(common)) and renamed[name] != renamed[common]:
            raise InputError(f"{name} and {common} are the same, and contradict each other: send one of them")
        if name in renamed and renamed.get(common) is None:
            renamed[common] = renamed.pop(name)
            sent[common] = name
    return renamed, sent


def spelled(message: str, names: Mapping[str, str]) -> str:
    """An error's text in the words of the sender: `names` has what was sent for what we call it."""
    if not names:
        return message
    ours = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<![\w.])(?:{ours})(?![\w])", lambda found: names[found[0]], message)


# --- what is answered ------------------------------------------------------------------------------------------------


class DocumentOut(Record):
    text: str


class ErrorOut(Record):
    message: str
    type: str


class ContributionOut(Record):
    """What was verified about the contribution."""

    support: float | None
    """Share of its content words that the document or its title has; null when the check `spans` was not asked for."""
    spans: tuple[SpanOut, ...]
    fidelity: float | None
    """Share of its facts and negations that the document has; null when the check `facts` was not asked for."""
    unsupported: tuple[Unsupported, ...] | None
    broken: tuple[str, ...]
    """Stretches that no writer meant."""
    uninformative: bool
    """Whether it only says the query again."""


class ResultOut(Record):
    """One document; best first, documents with an `error` last."""

    index: int
    relevance_score: float
    """0 with `error`: that document has no score, but clients (LiteLLM is one) make a number of whatever is here.
    Log-odds with `raw_scores`."""
    logit: float | None = None
    """With `return_logits`: l_yes - l_no; null with `error`."""
    id: str | None = None
    document: DocumentOut | None = None
    verdict: Verdict | None
    outcome: Outcome
    contribution: str | None
    evidence: str | None
    evidence_source: EvidenceSource | None
    """Where evidence was sought, found or not; null when none was asked for."""
    relevant_spans: tuple[SpanOut, ...]
    support: float | None
    unsupported: tuple[Unsupported, ...] | None
    """Of contribution and evidence; null when the check `facts` was not asked for."""
    fidelity: float | None
    """Share of the evidence's facts and negations that the document has; null without evidence or the check `facts`."""
    broken: tuple[str, ...]
    """Stretches of the evidence that no writer meant."""
    contribution_check: ContributionOut | None
    """null without a contribution or without checks."""
    truncation: Truncation | None = None
    windows: tuple[WindowScore, ...] | None = None
    """With `on_long_document: window`: what each window of a long document scored."""
    also: tuple[str, ...] | None = None
    """Further documents whose evidence says no more: their ids, `document=N` where they have none."""
    same_as: int | None = None
    """Index of the better document whose evidence says all that this one's does."""
    held: int | None = None
    """Position in `against` of the text that already says all that this document, or its evidence, does."""
    error: ErrorOut | None = None


class ScoreOut(Record):
    """One document as Voyage's clients read it: theirs is the text itself."""

    index: int
    relevance_score: float
    document: str | None = None


class UsageOut(Record):
    total_tokens: int
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int


class Meta(Record):
    warnings: tuple[str, ...]
    answerable: float | None = None
    """Calibrated probability that at least one of the documents answers the query; left out when the model carries no
    calibration, or no document could be judged."""
    reason: Unanswered | None = None
    """Why the documents are not to be taken for an answer; left out when they are. `none_relevant`: no yes;
    `related_only`: a yes, but no answer; `conflicting`: answers that contradict each other; `cut_off`: what was read
    does not answer, and not all was read."""
    sufficient: bool | None = None
    """Whether the evidence that is here answers as probably: false where a budget or a cut lost what does, or with a
    `reason`; left out without a calibration or evidence. Of `context`, its own field says so."""
    threshold: float | None = None
    """Where a yes began: as asked for, or the model's own under queries in this language."""
    score_version: str | None = None
    """Which scores these are: a threshold chosen for others means something else."""


class RerankResponse(Record):
    id: str
    object: Literal["rerank", "list"] = "rerank"
    model: str
    results: tuple[ResultOut, ...]
    data: tuple[ScoreOut, ...] | None = None
    """The same ranking in few words, for clients that look here; documents with an `error` have the score 0."""
    context: PromptContext | None = None
    """With `context_format` or `context_tokens`: the evidence as it goes into a prompt, and what was left out."""
    same: tuple[SameEvidence, ...] | None = None
    """Documents whose evidence says the same; left out where there are none."""
    instruction: str | None = None
    """What was sent as `instruction`."""
    query_cuts: tuple[QueryCut, ...] | None = None
    """What a budget cut off the query; left out where it was read whole."""
    preflight: Preflight | None = None
    """With `dry_run`: what the request would take; there are no `results` then."""
    conflicts: tuple[Conflict, ...] | None = None
    """Sentences that give different values for the same thing; left out where there are none."""
    usage: UsageOut
    meta: Meta


class TeiItem(Record):
    """One document as the clients of Text Embeddings Inference read it; an answer to them is a bare array of these."""

    index: int
    score: float
    text: str | None = None
    error: str | None = None


def result_out(judgment: Judgment, request: RerankRequest) -> ResultOut:
    """One judgment, with what the request asked to see of it."""
    optional: dict[str, Any] = {}
    if judgment.id is not None:
        optional["id"] = judgment.id
    if request.return_documents and (text := request.sent_text(judgment.index)) is not None:
        optional["document"] = DocumentOut(text=text)
    if request.return_logits:
        optional["logit"] = judgment.logit
    if judgment.truncation:
        optional["truncation"] = judgment.truncation
    if judgment.windows:
        optional["windows"] = judgment.windows
    if judgment.also:
        optional["also"] = judgment.also
    if judgment.same_as is not None:
        optional["same_as"] = judgment.same_as
    if judgment.held is not None:
        optional["held"] = judgment.held
    if judgment.error:
        optional["error"] = ErrorOut(message=judgment.error, type="invalid_document")
    checks = request.checks()
    spans = _spans(judgment.spans, checks)
    check, about = judgment.check, judgment.contribution_check
    return ResultOut(
        index=judgment.index,
        relevance_score=told_score(judgment, request),
        verdict=judgment.verdict,
        outcome=judgment.outcome,
        contribution=judgment.contribution,
        evidence=judgment.evidence,
        evidence_source=judgment.evidence_source,
        relevant_spans=request.relevant_spans.choose(spans) if request.relevant_spans else spans,
        support=judgment.support if "spans" in checks else None,
        unsupported=judgment.unsupported if "facts" in checks else None,
        fidelity=check.fidelity.score if check and judgment.evidence and "facts" in checks else None,
        broken=check.broken if check else (),
        contribution_check=_contribution_out(about, checks) if about else None,
        **optional,
    )


def _spans(spans: Sequence[Span], checks: Sequence[str]) -> tuple[SpanOut, ...]:
    return tuple(SpanOut(start=s.start, end=s.end, score=s.support) for s in spans if "spans" in checks)


def _contribution_out(check: ContributionCheck, checks: Sequence[str]) -> ContributionOut:
    facts = check.fidelity if "facts" in checks else None
    return ContributionOut(
        support=check.support if "spans" in checks else None,
        spans=_spans(check.spans, checks),
        fidelity=facts.score if facts else None,
        unsupported=facts.unsupported if facts else None,
        broken=check.broken,
        uninformative=check.uninformative,
    )


def told_score(judgment: Judgment, request: RerankRequest) -> float:
    """A document with an error has the lowest score there is: clients convert whatever is here to a number."""
    if not request.raw:
        return judgment.score or 0.0
    return _LEAST_LOGIT if judgment.logit is None else judgment.logit


def answer(
    request_id: str,
    dialect: Dialect,
    request: RerankRequest,
    result: RerankResult,
    context: PromptContext | None = None,
) -> Any:
    """The JSON answer to a request."""
    if dialect is Dialect.TEI:
        return [_tei_item(judgment, request) for judgment in result]
    data = tuple(_score_out(judgment, request) for judgment in result)
    optional = {"context": context} if context else {}
    return dump(head(request_id, dialect, request, result).model_copy(update={"data": data, **optional}))


def head(request_id: str, dialect: Dialect, request: RerankRequest, result: RerankResult) -> RerankResponse:
    """The answer in full, without `data`."""
    return RerankResponse(
        id=request_id,
        object="list" if dialect is Dialect.VOYAGE else "rerank",
        model=result.model,
        results=tuple(result_out(judgment, request) for judgment in result),
        **relations(result),
        **_echoes(result),
        usage=usage(result.usage),
        meta=meta(request, result),
    )


def relations(result: RerankResult) -> dict[str, Any]:
    """What passages have to do with each other, where they have."""
    found = {"same": result.same, "conflicts": result.conflicts}
    return {name: told for name, told in found.items() if told}


def _echoes(result: RerankResult) -> dict[str, Any]:
    """How query and instruction were read, where there is something to say."""
    found = {"instruction": result.instruction, "query_cuts": result.query_cuts}
    return {name: told for name, told in found.items() if told}


def preflight_answer(request_id: str, request: RerankRequest, found: Preflight) -> dict[str, Any]:
    """The JSON answer to a request with `dry_run`."""
    warnings = (*request.warnings(found.model), *found.warnings)
    body = RerankResponse(
        id=request_id,
        object="rerank",
        model=found.model,
        results=(),
        preflight=found,
        usage=usage(Usage()),
        meta=Meta(warnings=warnings),
    )
    return dump(body)


def meta(request: RerankRequest, result: RerankResult) -> Meta:
    told = {name: getattr(result, name) for name in Meta.model_fields if name != "warnings"}
    known = {name: value for name, value in told.items() if value is not None}
    return Meta(warnings=(*request.warnings(result.model), *result.warnings), **known)


def dump(body: RerankResponse) -> dict[str, Any]:
    """Optional fields are left out, all others are always there."""
    return body.model_dump(mode="json", exclude_unset=True)


def usage(used: Usage) -> UsageOut:
    return UsageOut(
        total_tokens=used.prompt_tokens + used.written_tokens,
        prompt_tokens=used.prompt_tokens,
        cached_tokens=used.cached_tokens,
        written_tokens=used.written_tokens,
    )


def _score_out(judgment: Judgment, request: RerankRequest) -> ScoreOut:
    fields: dict[str, Any] = {"index": judgment.index, "relevance_score": told_score(judgment, request)}
    if request.return_documents:
        fields["document"] = request.sent_text(judgment.index) or ""
    return ScoreOut(**fields)


def _tei_item(judgment: Judgment, request: RerankRequest) -> dict[str, Any]:
    item: dict[str, Any] = {"index": judgment.index, "score": told_score(judgment, request)}
    if request.return_documents:
        item["text"] = request.sent_text(judgment.index) or ""
    return item | ({"error": judgment.error} if judgment.error else {})


def headers(dialect: Dialect, request: RerankRequest, result: RerankResult) -> dict[str, str]:
    """What the body has no place for. In ASCII, and no header of its own can begin in it."""
    if dialect is not Dialect.TEI:
        return {}
    warnings = [spelled(warning, {"documents": "texts"}) for warning in meta(request, result).warnings]
    return {WARNINGS: json.dumps(warnings)} if warnings else {}
