"""Who sends what, and what each client parses.

`/v1/rerank`, `/v2/rerank` and `/rerank` answer the clients of Cohere, Jina, Voyage, vLLM and Text Embeddings Inference
(TEI). One answer serves all but two:

- Voyage's clients read `data` (always sent, next to `results`), and `detail` of an error; one of their versions crashes
  on an error with an object in `error`.
- TEI's clients send `texts` and read a bare array of all documents with `score`, and a text in `error`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from prism.result import RerankResult
from prism.serving.schema import (
    DocumentOut,
    ErrorBody,
    ErrorOut,
    Meta,
    RerankRequest,
    RerankResponse,
    ScoreOut,
    UsageOut,
    result_out,
    sent_text,
)
from prism.text import clean
from prism.types import Judgment, Usage

_LEAST_ODDS = 1e-12


class Dialect(StrEnum):
    """How a request is answered."""

    COMMON = "common"
    VOYAGE = "voyage"
    TEI = "tei"

    @property
    def writes(self) -> bool:
        """Whether clients show what was written: if not, nothing is unless they ask."""
        return self is Dialect.COMMON


def recognise(body: object) -> Dialect:
    """By fields only one dialect has: clients do not say who they are."""
    if isinstance(body, Mapping):
        if "texts" in body and body.get("documents") is None:
            return Dialect.TEI
        if "top_k" in body or "truncation" in body:
            return Dialect.VOYAGE
    return Dialect.COMMON


def common_names(body: object) -> object:
    """The body with `texts`, `top_k` and `return_text` under the names everyone else uses."""
    if not isinstance(body, Mapping):
        return body
    renamed = dict(body)
    for name, common in (("texts", "documents"), ("top_k", "top_n"), ("return_text", "return_documents")):
        if name in renamed and renamed.get(common) is None:
            renamed[common] = renamed.pop(name)
    return renamed


def answer(request_id: str, dialect: Dialect, request: RerankRequest, result: RerankResult) -> Any:
    """The JSON answer to a request."""
    if dialect is Dialect.TEI:
        return [_tei_item(judgment, request) for judgment in result]
    data = tuple(_score_out(judgment, request) for judgment in result)
    body = head(request_id, dialect, request, result).model_copy(update={"data": data, "usage": usage(result.usage)})
    return dump(body)


def head(request_id: str, dialect: Dialect, request: RerankRequest, result: RerankResult) -> RerankResponse:
    """The answer in full, without `data`."""
    return RerankResponse(
        id=request_id,
        object="list" if dialect is Dialect.VOYAGE else "rerank",
        model=result.model,
        results=tuple(result_out(judgment, request) for judgment in result),
        usage=usage(result.usage),
        meta=meta(request, result),
    )


def meta(request: RerankRequest, result: RerankResult) -> Meta:
    known = {} if result.answerable is None else {"answerable": result.answerable}
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
    fields: dict[str, Any] = {"index": judgment.index, "relevance_score": judgment.score or 0.0}
    if request.return_documents:
        fields["document"] = DocumentOut(text=sent_text(request, judgment.index))
    return ScoreOut(**fields)


def _tei_item(judgment: Judgment, request: RerankRequest) -> dict[str, Any]:
    """TEI's clients convert every score to a number: a document with an error has the lowest there is."""
    value = judgment.score or 0.0
    if request.raw_scores:
        p = min(max(value, _LEAST_ODDS), 1 - _LEAST_ODDS)
        value = math.log(p / (1 - p))
    item: dict[str, Any] = {"index": judgment.index, "score": value}
    if request.return_documents:
        item["text"] = sent_text(request, judgment.index)
    return item | ({"error": judgment.error} if judgment.error else {})


def error_body(request_id: str, message: str, kind: str, dialect: Dialect = Dialect.COMMON) -> dict[str, Any]:
    """What a failed request answers."""
    text = clean(message)
    if dialect is Dialect.VOYAGE:
        return {"detail": text, "message": text}
    if dialect is Dialect.TEI:
        return {"error": text, "error_type": kind, "message": text, "detail": text, "id": request_id}
    return ErrorBody(id=request_id, message=text, detail=text, error=ErrorOut(message=text, type=kind)).model_dump()
