"""What `POST /v1/rerank` reads and answers. Requests may carry nulls and unknown fields; responses name every field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Tag

from prism.reranker import RerankResult
from prism.types import Judgment, Outcome, Record, Truncation, Unsupported, Verdict, clean


def _encodable(value: object) -> object:
    return clean(value) if isinstance(value, str) else value


def _name(value: object) -> object:
    return str(value) if type(value) is int else _encodable(value)


Text = Annotated[str, BeforeValidator(_encodable)]
"""A string; a lone surrogate, legal in JSON but in no encoding, is replaced one for one."""


class DocumentIn(BaseModel):
    """A document as an object."""

    model_config = ConfigDict(strict=True, extra="allow")

    text: Text
    id: Annotated[str | None, BeforeValidator(_name)] = None
    """A string, or a database's whole number."""
    title: Text | None = None

    def fields(self) -> dict[str, Any]:
        return {"text": self.text, "id": self.id, "title": self.title, **dict.fromkeys(self.model_extra or ())}


def _kind(document: object) -> str | None:
    if isinstance(document, str):
        return "text"
    return "object" if isinstance(document, dict | DocumentIn) else None


AnyDocument = Annotated[
    Annotated[Text, Tag("text")] | Annotated[DocumentIn, Tag("object")],
    Discriminator(
        _kind,
        custom_error_type="document_type",
        custom_error_message="Input should be a text or an object {text, id, title}",
    ),
]


class RerankRequest(BaseModel):
    """`null` means the default, everywhere."""

    model_config = ConfigDict(strict=True, extra="allow")

    query: Text
    documents: list[AnyDocument]
    model: Text | None = None
    """Clients send what they were set up with; the loaded model answers whatever the name."""
    top_n: int | None = None
    return_documents: bool | None = None
    evidence: bool | None = None
    """False: scores only, nothing is written."""
    evidence_tokens: int | None = None
    """How many tokens may be written for all documents together."""
    instruction: Text | None = None
    threshold: float | None = None
    max_prompt_tokens: int | None = None

    def texts(self) -> list[str | dict[str, Any]]:
        """The documents as `Reranker.arerank` takes them; unknown fields go along by name, for its warning."""
        return [document if isinstance(document, str) else document.fields() for document in self.documents]

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `Reranker.arerank`."""
        names = ("instruction", "top_n", "threshold", "evidence_tokens", "max_prompt_tokens")
        return {"evidence": self.evidence is not False, **{name: getattr(self, name) for name in names}}

    def warnings(self, model: str) -> list[str]:
        """What was sent and not heeded."""
        found = []
        if self.model not in (None, model):
            found.append(f"answered by {model!r}: there is no model {_shorten(self.model or '')!r} here")
        if unread := sorted(_shorten(name) for name in self.model_extra or {}):
            found.append(f"ignored fields: {', '.join(unread[:10])}{', …' if len(unread) > 10 else ''}")
        return found


class SpanOut(Record):
    """`[start, end)` in Unicode code points of the document text."""

    start: int
    end: int
    score: float
    """How well this stretch backs the evidence, 0 to 1."""


class DocumentOut(Record):
    text: str


class ErrorOut(Record):
    message: str
    type: str


class ResultOut(Record):
    """One document; best first, documents with an `error` last."""

    index: int
    relevance_score: float | None
    """null only with `error`: a document that could not be read has no score, and 0.0 would be a guess."""
    id: str | None = None
    document: DocumentOut | None = None
    verdict: Verdict | None
    outcome: Outcome
    contribution: str | None
    evidence: str | None
    relevant_spans: tuple[SpanOut, ...]
    support: float | None
    unsupported: tuple[Unsupported, ...]
    truncation: Truncation | None = None
    error: ErrorOut | None = None


class UsageOut(Record):
    total_tokens: int
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int


class Meta(Record):
    warnings: tuple[str, ...]


class RerankResponse(Record):
    id: str
    object: Literal["rerank"] = "rerank"
    model: str
    results: tuple[ResultOut, ...]
    usage: UsageOut
    meta: Meta


class ErrorBody(Record):
    """One body for the clients of every dialect."""

    id: str
    message: str
    detail: str
    error: ErrorOut


def response(request_id: str, request: RerankRequest, result: RerankResult) -> dict[str, Any]:
    """The JSON answer: optional fields are left out, all others are always there."""
    body = RerankResponse(
        id=request_id,
        model=result.model,
        results=tuple(_result(judgment, request) for judgment in result),
        usage=UsageOut(
            total_tokens=result.usage.prompt_tokens + result.usage.written_tokens,
            prompt_tokens=result.usage.prompt_tokens,
            cached_tokens=result.usage.cached_tokens,
            written_tokens=result.usage.written_tokens,
        ),
        meta=Meta(warnings=(*request.warnings(result.model), *result.warnings)),
    )
    return {"object": body.object, **body.model_dump(mode="json", exclude_unset=True)}


def _result(judgment: Judgment, request: RerankRequest) -> ResultOut:
    optional: dict[str, Any] = {}
    if judgment.id is not None:
        optional["id"] = judgment.id
    if request.return_documents:
        sent = request.documents[judgment.index]
        optional["document"] = DocumentOut(text=sent if isinstance(sent, str) else sent.text)
    if judgment.truncation:
        optional["truncation"] = judgment.truncation
    if judgment.error:
        optional["error"] = ErrorOut(message=judgment.error, type="invalid_document")
    return ResultOut(
        index=judgment.index,
        relevance_score=judgment.score,
        verdict=judgment.verdict,
        outcome=judgment.outcome,
        contribution=judgment.contribution,
        evidence=judgment.evidence,
        relevant_spans=tuple(SpanOut(start=s.start, end=s.end, score=s.support) for s in judgment.spans),
        support=judgment.support,
        unsupported=judgment.unsupported,
        **optional,
    )


def error_body(request_id: str, message: str, kind: str) -> dict[str, Any]:
    text = clean(message)
    return ErrorBody(id=request_id, message=text, detail=text, error=ErrorOut(message=text, type=kind)).model_dump()


def request_schema() -> dict[str, Any]:
    """JSON schema of the request with its one definition written out, as OpenAPI wants it inside a request body."""
    schema = RerankRequest.model_json_schema()
    definitions = schema.pop("$defs")

    def inline(node: Any) -> Any:
        if isinstance(node, dict):
            name = node.get("$ref", "").rpartition("/")[2]
            return inline(definitions[name]) if name else {key: inline(value) for key, value in node.items()}
        return [inline(item) for item in node] if isinstance(node, list) else node

    inlined: dict[str, Any] = inline(schema)
    return inlined


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
