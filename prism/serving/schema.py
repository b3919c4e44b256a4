"""What `POST /v1/rerank` reads and answers. Requests may carry nulls and unknown fields; responses name every field.

The request is the union of what the clients of Cohere, Jina, Voyage, vLLM and Text Embeddings Inference send, and
ours: `evidence`, `threshold`, `instruction`, `on_long_document`, `stream`. `dialects.py` knows who sends what.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema

from prism.inputs import OnLongDocument, Options
from prism.text import clean
from prism.types import Judgment, Outcome, Record, Truncation, Unsupported, Verdict, WindowScore


def _encodable(value: object) -> object:
    return clean(value) if isinstance(value, str) else value


def _name(value: object) -> object:
    return str(value) if type(value) is int else _encodable(value)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, BeforeValidator(_encodable)]
"""A string; a lone surrogate, legal in JSON but in no encoding, is replaced one for one."""
Whole = Annotated[int, BeforeValidator(_whole)]
"""JSON knows one kind of number: 3.0 is whole."""
# Bounds are published here and kept by `Reranker`, which answers 400 in words of its own.
NotBlank = Annotated[Text, Field(json_schema_extra={"pattern": r"\S"})]
Count = Annotated[Whole | None, Field(json_schema_extra={"minimum": 1})]
CountOrZero = Annotated[Whole | None, Field(json_schema_extra={"minimum": 0})]
Fraction = Annotated[float | None, Field(json_schema_extra={"minimum": 0, "maximum": 1})]


class DocumentIn(BaseModel):
    """A document as an object. With `rank_fields` in the request its text is made of the fields named there, and `text`
    may be missing; else it is required."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"required": ["text"]})

    text: Annotated[Text | None, WithJsonSchema({"type": "string"})] = None
    id: Annotated[str | None, BeforeValidator(_name)] = None
    """A string, or a database's whole number."""
    title: Text | None = None

    def fields(self, rank_fields: list[str] | None) -> dict[str, Any]:
        """What `Reranker` takes: text, id, title, and the names of fields nobody reads, for its warning."""
        extra = self.model_extra or {}
        if not rank_fields:
            return {"text": self.text, "id": self.id, "title": self.title, **dict.fromkeys(extra)}
        values = {"text": self.text, **extra}
        chosen = [values[name] for name in rank_fields if values.get(name) is not None and name != "title"]
        text = "\n".join(clean(value) if isinstance(value, str) else str(value) for value in chosen)
        title = self.title if "title" in rank_fields else None
        return {"text": text or title or "", "id": self.id, "title": title if text else None}


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


class EvidenceIn(BaseModel):
    """How much is written, for which documents, and what is looked up about it."""

    model_config = ConfigDict(strict=True, extra="allow")

    top_n: CountOrZero = None
    """Write for at most so many documents, the best."""
    threshold: Fraction = None
    """Write for documents with at least this score (and verdict yes)."""
    max_tokens: CountOrZero = None
    """Write at most so many tokens for all documents together."""
    checks: list[Literal["spans", "facts"]] | None = None
    """`spans`: where the document backs the evidence; `facts`: what it states that the document does not. Both by
    default."""


def _evidence_kind(value: object) -> str | None:
    if isinstance(value, bool):
        return "switch"
    return "settings" if isinstance(value, dict | EvidenceIn) else None


Evidence = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[EvidenceIn, Tag("settings")],
    Discriminator(
        _evidence_kind,
        custom_error_type="evidence_type",
        custom_error_message="Input should be true, false or an object {top_n, threshold, max_tokens, checks}",
    ),
]


class SpansIn(BaseModel):
    """Cohere's `relevant_spans`."""

    model_config = ConfigDict(strict=True, extra="allow")

    mode: Literal["enabled", "disabled"]
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Spans with at least this score; 0.1 by default."""
    max_spans: Annotated[Whole, Field(ge=0)] | None = None

    def choose(self, spans: tuple[SpanOut, ...]) -> tuple[SpanOut, ...]:
        """Best first, as Cohere orders them; equal scores in reading order."""
        if self.mode == "disabled":
            return ()
        least = 0.1 if self.threshold is None else self.threshold
        best = sorted((span for span in spans if span.score >= least), key=lambda span: -span.score)
        return tuple(best[: self.max_spans])


class RerankRequest(BaseModel):
    """`null` means the default, everywhere."""

    model_config = ConfigDict(strict=True, extra="allow")

    query: NotBlank
    documents: Annotated[list[AnyDocument], Field(json_schema_extra={"minItems": 1})]
    """Texts or objects. Clients of Text Embeddings Inference send `texts` instead."""
    model: Text | None = None
    """Clients send what they were set up with; the loaded model answers whatever the name."""
    top_n: Count = None
    """Voyage's clients send `top_k` instead."""
    return_documents: bool | None = None
    """Clients of Text Embeddings Inference send `return_text` instead."""
    rank_fields: list[str] | None = None
    """Which fields of document objects are read, in this order."""
    max_tokens_per_doc: Count = None
    """Read so many tokens of each document."""
    truncate_prompt_tokens: Annotated[Whole | None, Field(json_schema_extra={"minimum": -1})] = None
    """vLLM's name for `max_prompt_tokens`; -1: as many as the model reads."""
    truncation: bool | None = None
    """Voyage: false refuses documents that would be cut."""
    truncate: bool | None = None
    """Text Embeddings Inference; documents are always cut where the model's limit is, and the cut is reported."""
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    """Text Embeddings Inference; what is cut off is always the end."""
    raw_scores: bool | None = None
    """Text Embeddings Inference: log-odds instead of probabilities."""
    relevant_spans: SpansIn | None = None
    evidence: Evidence | None = None
    """False: scores only, nothing is written."""
    evidence_tokens: CountOrZero = None
    """Short for `evidence.max_tokens`."""
    instruction: NotBlank | None = None
    threshold: Fraction = None
    """Scores from here on mean yes."""
    max_prompt_tokens: Count = None
    on_long_document: OnLongDocument | None = None
    """`truncate` (default) cuts a long document, `window` reads it in windows."""
    stream: bool | None = None
    """Server-sent events: the ranking, then each text as it is written, usage, done."""

    def texts(self) -> list[str | dict[str, Any]]:
        """The documents as `Reranker.arerank` takes them."""
        return [sent if isinstance(sent, str) else sent.fields(self.rank_fields) for sent in self.documents]

    def settings(self) -> EvidenceIn:
        return self.evidence if isinstance(self.evidence, EvidenceIn) else EvidenceIn()

    def checks(self) -> tuple[str, ...]:
        """Which checks are reported: `spans`, `facts`."""
        asked = self.settings().checks
        return ("spans", "facts") if asked is None else tuple(asked)

    def writes(self, default: bool) -> bool:
        """Whether evidence is wanted, `default` where the request does not say."""
        if self.evidence is None:
            return default or (self.relevant_spans is not None and self.relevant_spans.mode == "enabled")
        return bool(self.evidence)

    def options(self, *, evidence: bool, max_total_tokens: int | None) -> Options:
        """Keyword arguments of `Reranker.arerank`."""
        settings = self.settings()
        least_tokens = (limit for limit in (self.evidence_tokens, settings.max_tokens) if limit is not None)
        prompt = None if self.truncate_prompt_tokens == -1 else self.truncate_prompt_tokens
        return Options(
            instruction=self.instruction,
            top_n=self.top_n,
            threshold=self.threshold,
            evidence=self.writes(evidence),
            evidence_tokens=min(least_tokens, default=None),
            evidence_top_n=settings.top_n,
            evidence_threshold=settings.threshold,
            check=bool(self.checks()),
            max_prompt_tokens=prompt if self.max_prompt_tokens is None else self.max_prompt_tokens,
            max_document_tokens=self.max_tokens_per_doc,
            max_total_tokens=max_total_tokens,
            on_long_document=self.on_long_document or "truncate",
        )

    def warnings(self, model: str) -> list[str]:
        """What was sent and not heeded."""
        found = []
        if self.model not in (None, model):
            found.append(f"answered by {model!r}: there is no model {_shorten(self.model or '')!r} here")
        names = [*(self.model_extra or {}), *(f"evidence.{name}" for name in self.settings().model_extra or {})]
        if unread := sorted(map(_shorten, names)):
            found.append(f"ignored fields: {', '.join(unread[:10])}{', …' if len(unread) > 10 else ''}")
        if self.rank_fields and len(self.rank_fields) > 1:
            found.append("relevant_spans are offsets in the rank_fields joined by line ends, without title")
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
    relevance_score: float
    """0 with `error`: that document has no score, but clients (LiteLLM is one) make a number of whatever is here."""
    id: str | None = None
    document: DocumentOut | None = None
    verdict: Verdict | None
    outcome: Outcome
    contribution: str | None
    evidence: str | None
    relevant_spans: tuple[SpanOut, ...]
    support: float | None
    unsupported: tuple[Unsupported, ...] | None
    """null when the check `facts` was not asked for."""
    truncation: Truncation | None = None
    windows: tuple[WindowScore, ...] | None = None
    """With `on_long_document: window`: what each window of a long document scored."""
    error: ErrorOut | None = None


class ScoreOut(Record):
    """One document as Voyage's clients read it."""

    index: int
    relevance_score: float
    document: DocumentOut | None = None


class UsageOut(Record):
    total_tokens: int
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int


class Meta(Record):
    warnings: tuple[str, ...]
    answerable: float | None = None
    """Calibrated probability that the best document answers the query, so that any does is at least so probable; left
    out when the model carries no calibration."""


class RerankResponse(Record):
    id: str
    object: Literal["rerank", "list"] = "rerank"
    model: str
    results: tuple[ResultOut, ...]
    data: tuple[ScoreOut, ...] | None = None
    """The same ranking in few words, for clients that look here; documents with an `error` have the score 0."""
    usage: UsageOut
    meta: Meta


class ErrorBody(Record):
    """One body for the clients of every dialect but two."""

    id: str
    message: str
    detail: str
    error: ErrorOut


class VoyageErrorBody(Record):
    """What Voyage's clients read of an error."""

    detail: str
    message: str


class TeiErrorBody(Record):
    """What the clients of Text Embeddings Inference read of an error."""

    error: str
    error_type: str
    message: str
    detail: str
    id: str


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
    if request.return_documents:
        optional["document"] = DocumentOut(text=sent_text(request, judgment.index))
    if judgment.truncation:
        optional["truncation"] = judgment.truncation
    if judgment.windows:
        optional["windows"] = judgment.windows
    if judgment.error:
        optional["error"] = ErrorOut(message=judgment.error, type="invalid_document")
    checks = request.checks()
    spans = tuple(SpanOut(start=s.start, end=s.end, score=s.support) for s in judgment.spans if "spans" in checks)
    return ResultOut(
        index=judgment.index,
        relevance_score=judgment.score or 0.0,
        verdict=judgment.verdict,
        outcome=judgment.outcome,
        contribution=judgment.contribution,
        evidence=judgment.evidence,
        relevant_spans=request.relevant_spans.choose(spans) if request.relevant_spans else spans,
        support=judgment.support if "spans" in checks else None,
        unsupported=judgment.unsupported if "facts" in checks else None,
        **optional,
    )


def sent_text(request: RerankRequest, index: int) -> str:
    """The text that spans of a document point into."""
    sent = request.documents[index]
    return sent if isinstance(sent, str) else str(sent.fields(request.rank_fields)["text"])


def request_schema() -> dict[str, Any]:
    """JSON schema of the request with its definitions written out, as OpenAPI wants it inside a request body."""
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
