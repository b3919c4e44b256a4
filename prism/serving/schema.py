"""What `POST /v1/rerank` reads. Requests may carry nulls and unknown fields; what is answered is in `dialects`.

The request is the union of what the clients of Cohere, Jina, Voyage, vLLM and Text Embeddings Inference send, and
ours: `evidence`, `threshold`, `instruction`, `on_long_document`, `stream`. `dialects.py` knows who sends what.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from prism.context import ContextFormat
from prism.errors import InputError
from prism.inputs import yaml_text
from prism.options import OnLongDocument, Options
from prism.serving.values import (
    AnyDocument,
    AnyWhole,
    Count,
    CountOrAll,
    CountOrZero,
    Fraction,
    Maybe,
    Query,
    SideIn,
    Switch,
    Text,
    encodable,
    not_truth,
    switched,
    unsaid,
)
from prism.types import EvidenceChoice, Record


def _chosen(document: Mapping[str, Any], rank_fields: list[str]) -> dict[str, Any]:
    """The document that `rank_fields` make of an object: the fields named, in that order, each on a line of its own."""
    named = {name: document[name] for name in rank_fields if document.get(name) is not None}
    try:
        texts = {name: _as_text(value) for name, value in named.items()}
    except RecursionError:
        return {"text": named, "id": document.get("id")}  # nested too deeply: an error of its own
    title = texts.pop("title", None)
    text = "\n".join(texts.values())
    return {"text": text or title or "", "id": document.get("id"), "title": title if text else None}


def _as_text(value: object) -> str:
    """What is no text is read as JSON, as it was sent."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class EvidenceIn(BaseModel):
    """Where evidence comes from, how much of it, for which documents, and what is looked up about it."""

    model_config = ConfigDict(strict=True, extra="allow", use_attribute_docstrings=True)

    source: EvidenceChoice | None = None
    """`written` by the model, with a contribution; `quoted`: sentences of the document, word for word; `auto`: as the
    model prefers."""
    top_n: CountOrZero = None
    """For at most so many documents, the best."""
    threshold: Fraction = None
    """For documents with at least this score (and verdict yes)."""
    max_tokens: CountOrZero = None
    """At most so many tokens for all documents together."""
    checks: list[Literal["spans", "facts"]] | None = None
    """`spans`: where the document backs the evidence; `facts`: what it states that the document does not. Both by
    default."""


def _evidence_kind(value: object) -> str | None:
    if isinstance(value, bool):
        return "switch"
    if isinstance(value, str):
        return "source" if value in get_args(EvidenceChoice) else None
    return "settings" if isinstance(value, dict | EvidenceIn) else None


Evidence = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[EvidenceChoice, Tag("source")] | Annotated[EvidenceIn, Tag("settings")],
    Discriminator(
        _evidence_kind,
        custom_error_type="evidence_type",
        custom_error_message=(
            "Input should be true, false, 'written', 'quoted', 'auto' or an object"
            " {source, top_n, threshold, max_tokens, checks}"
        ),
    ),
]


class SpanOut(Record):
    """`[start, end)` in Unicode code points of the document text."""

    start: int
    end: int
    score: float
    """How well this stretch backs the evidence, 0 to 1."""


class SpansIn(BaseModel):
    """Cohere's `relevant_spans`."""

    model_config = ConfigDict(strict=True, extra="allow", use_attribute_docstrings=True)

    mode: Literal["enabled", "disabled"]
    threshold: Annotated[
        Annotated[float, Field(strict=False, ge=0, le=1), BeforeValidator(not_truth)] | None, BeforeValidator(unsaid)
    ] = None
    """Spans with at least this score; 0.1 by default."""
    max_spans: Annotated[
        Annotated[int, Field(strict=False, ge=0), BeforeValidator(not_truth)] | None, BeforeValidator(unsaid)
    ] = None

    def choose(self, spans: tuple[SpanOut, ...]) -> tuple[SpanOut, ...]:
        """Best first, as Cohere orders them; equal scores in reading order."""
        if self.mode == "disabled":
            return ()
        least = 0.1 if self.threshold is None else self.threshold
        best = sorted((span for span in spans if span.score >= least), key=lambda span: -span.score)
        return tuple(best[: self.max_spans])


class RerankRequest(BaseModel):
    """`null` means the default, everywhere, and so does a blank text but for the query."""

    model_config = ConfigDict(strict=True, extra="allow", use_attribute_docstrings=True)

    query: Query
    """A text; `{"text": ...}` is read too. Or several fields, each a text or `{text, max_tokens}`: `question`;
    `reason`, why it is asked (its first 128 tokens by default); `conversation`, also as a list of `{role, content}`
    (its last 512). Each is read as one line, so that no field can pose as another."""
    documents: Annotated[list[AnyDocument], Field(json_schema_extra={"minItems": 1})]
    """Texts or objects. Clients of Text Embeddings Inference send `texts` instead."""
    model: Maybe = None
    """Clients send what they were set up with; the loaded model answers whatever the name."""
    top_n: CountOrZero = None
    """Voyage's clients send `top_k` instead. 0 means all, as with vLLM; at /v2/rerank and as `top_k` it is refused."""
    return_documents: Switch = None
    """Clients of Text Embeddings Inference send `return_text` instead."""
    rank_fields: list[str] | None = None
    """Which fields of document objects are read, in this order. What is not a text in them is read as JSON."""
    max_tokens_per_doc: CountOrZero = None
    """Read so many tokens of each document and its title. 0 means no limit, as with vLLM."""
    max_tokens_per_query: CountOrZero = None
    """vLLM: read so many tokens of the query, its first; of several fields the question first, then reason, then
    conversation. What was cut off is in `query_cuts`. 0 means no limit."""
    truncate_prompt_tokens: CountOrAll = None
    """vLLM's name for `max_prompt_tokens`; -1: as many as the model reads."""
    truncation: Switch = None
    """Voyage: false refuses documents that would be cut."""
    truncate: Switch = None
    """Text Embeddings Inference: as `truncation`."""
    truncation_side: SideIn = None
    """vLLM: where long documents are cut: `right` (default) reads their beginning, `left` their end. Titles stay.
    Clients of Text Embeddings Inference send `truncation_direction`."""
    priority: AnyWhole = None
    """Cohere and vLLM: lower numbers first, 0 by default. When the server is full, a request with a higher number is
    given up (429) for one with a lower one, the highest first; where requests wait for the model, lower ones go first.
    """
    dry_run: Switch = None
    """Nothing is computed: `preflight` says what the request would take (tokens, time), and what would be cut."""
    return_logits: Switch = None
    """Each result has `logit`, l_yes - l_no, beside its score, which is the sigmoid of it."""
    raw_scores: Switch = None
    """Text Embeddings Inference: scores are log-odds, not probabilities. Thresholds and verdicts stay as they are."""
    use_activation: Switch = None
    """vLLM: false means `raw_scores`."""
    relevant_spans: SpansIn | None = None
    evidence: Annotated[Evidence | None, BeforeValidator(switched)] = None
    """True or `auto`: from where the model prefers; `written` by it; `quoted` from the document, which every model can;
    false: scores only."""
    evidence_tokens: CountOrZero = None
    """Short for `evidence.max_tokens`."""
    context_format: Annotated[ContextFormat | None, BeforeValidator(unsaid)] = None
    """The evidence as it goes into a prompt, in `context`: `text` (Markdown), `xml`, `json`, or `anthropic`: the
    `search_result` blocks of the Messages API, citations on."""
    context_tokens: Count = None
    """At most so many tokens of it: whole sources, best first, as they fit. `context_format` is `text` by default."""
    context_tokenizer: Maybe = None
    """Which tokenizer counts them: one that `prism serve --context-tokenizer` named; the model's own by default."""
    instruction: Maybe = None
    """What counts as relevant, for models whose template takes that; others answer 422. `instruct` is read too. Echoed
    in the answer."""
    threshold: Fraction = None
    """Scores from here on mean yes."""
    max_prompt_tokens: Count = None
    on_long_document: Annotated[OnLongDocument | None, BeforeValidator(unsaid)] = None
    """`truncate` (default) cuts a long document, `window` reads it in windows, `refuse` refuses the request."""
    against: list[Text] | None = None
    """Evidence texts that the caller holds already. A document that adds nothing to one of them comes behind all others
    of its verdict, and its `held` says to which."""
    answer_risk: Fraction = None
    """Of the requests whose documents are taken for an answer (no `meta.reason`) at most this share may hold none; 400
    where the model cannot promise that rate. Without it, what is more probable than not is an answer."""
    score_version: Maybe = None
    """For which scores (`meta.score_version`) the thresholds were chosen; others are a warning."""
    stream: Switch = None
    """Server-sent events: the ranking, then evidence as it is found, usage, done."""

    def texts(self) -> list[Any]:
        """The documents as `Reranker.arerank` takes them, encodable."""
        return [self._read(sent) for sent in self.documents]

    def sent_text(self, index: int) -> str | None:
        """The text that spans of a document point into; None where it has none."""
        read = self._read(self.documents[index])
        text = read.get("text") if isinstance(read, dict) else read
        return text if isinstance(text, str) else None

    def _read(self, sent: Any) -> Any:
        if isinstance(sent, dict):
            read = _chosen(sent, self.rank_fields) if self.rank_fields else sent
            if "text" in read:
                return {**read, "text": encodable(read["text"])}
            if (text := yaml_text(read)) is not None:
                return {"text": encodable(text), "id": read.get("id"), "title": read.get("title")}
            return read
        return encodable(sent)

    def settings(self) -> EvidenceIn:
        return self.evidence if isinstance(self.evidence, EvidenceIn) else EvidenceIn()

    def checks(self) -> tuple[str, ...]:
        """Which checks are reported: `spans`, `facts`."""
        asked = self.settings().checks
        return ("spans", "facts") if asked is None else tuple(asked)

    @property
    def wants_context(self) -> bool:
        return self.context_format is not None or self.context_tokens is not None

    def source(self, default: EvidenceChoice | bool) -> EvidenceChoice | bool:
        """Where evidence is to come from, `default` where the request does not say; false: no evidence is wanted."""
        if isinstance(self.evidence, bool | str):
            return self.evidence
        asked = self.evidence is not None or self.wants_spans or self.wants_context or bool(self.evidence_tokens)
        return self.settings().source or default or asked

    @property
    def wants_spans(self) -> bool:
        return self.relevant_spans is not None and self.relevant_spans.mode == "enabled"

    def refuse_contradictions(self) -> None:
        """Raises InputError for fields of which no more than one can be meant."""
        prompt, ours = self.truncate_prompt_tokens, self.max_prompt_tokens
        forbidden = self.forbids_cuts()
        pairs = {
            ("evidence: false", "relevant_spans"): self.evidence is False and self.wants_spans,
            ("evidence: false", "a context"): self.evidence is False and self.wants_context,
            ("dry_run", "stream"): self.dry_run and self.stream,
            ("dry_run", "a context"): self.dry_run and self.wants_context,
            ("truncate_prompt_tokens", "max_prompt_tokens"): None not in (prompt, ours) and prompt != ours,
            (forbidden, "on_long_document: truncate"): forbidden and self.on_long_document == "truncate",
            ("raw_scores", "use_activation"): self.raw_scores is not None and self.raw_scores is self.use_activation,
        }
        if found := next((names for names, contradict in pairs.items() if contradict), None):
            raise InputError(f"{found[0]} and {found[1]} contradict each other: leave one of them out")

    def options(self, *, evidence: EvidenceChoice | bool, max_total_tokens: int | None) -> Options:
        """Keyword arguments of `Reranker.arerank`."""
        settings = self.settings()
        least_tokens = (limit for limit in (self.evidence_tokens, settings.max_tokens) if limit is not None)
        prompt = None if self.truncate_prompt_tokens == -1 else self.truncate_prompt_tokens
        return Options(
            instruction=self.instruction,
            top_n=self.top_n,
            threshold=self.threshold,
            evidence=self.source(evidence),
            evidence_tokens=min(least_tokens, default=None),
            evidence_top_n=settings.top_n,
            evidence_threshold=settings.threshold,
            check=bool(self.checks()),
            max_prompt_tokens=prompt if self.max_prompt_tokens is None else self.max_prompt_tokens,
            max_document_tokens=self.max_tokens_per_doc or None,
            max_query_tokens=self.max_tokens_per_query or None,
            max_total_tokens=max_total_tokens,
            truncation_side=self.truncation_side,
            priority=self.priority,
            against=self.against,
            answer_risk=self.answer_risk,
            score_version=self.score_version,
            on_long_document=self.on_long_document or ("refuse" if self.forbids_cuts() else "truncate"),
        )

    def forbids_cuts(self) -> str | None:
        """The setting under which no document may be cut, as it was sent."""
        settings = {
            "truncation: false": self.truncation is False,
            "truncate: false": self.truncate is False,
        }
        return next((name for name, asked in settings.items() if asked), None)

    def spellings(self) -> dict[str, str]:
        """What `Reranker` calls an option, and what this request called it: errors speak the sender's language."""
        from_vllm = self.truncate_prompt_tokens is not None and self.max_prompt_tokens is None
        found = {
            "max_document_tokens": "max_tokens_per_doc",
            "max_query_tokens": "max_tokens_per_query",
            "max_prompt_tokens": "truncate_prompt_tokens" if from_vllm else None,
            "evidence_tokens": "evidence.max_tokens" if self.evidence_tokens is None else None,
            "evidence_top_n": "evidence.top_n",
            "evidence_threshold": "evidence.threshold",
            "on_long_document='refuse'": None if self.on_long_document else self.forbids_cuts(),
        }
        return {name: sent for name, sent in found.items() if sent}

    @property
    def raw(self) -> bool:
        """Whether scores are told as log-odds."""
        return bool(self.raw_scores) or self.use_activation is False

    def warnings(self, model: str) -> list[str]:
        """What was sent and not heeded."""
        found = other_model(self.model, model)
        inner = {"evidence": self.evidence, "relevant_spans": self.relevant_spans}
        names = list(self.model_extra or {})
        for outer, settings in inner.items():
            names += [f"{outer}.{name}" for name in (isinstance(settings, BaseModel) and settings.model_extra) or {}]
        if names:
            found.append(ignored(names))
        if self.rank_fields and len(self.rank_fields) > 1:
            found.append("relevant_spans are offsets in the rank_fields joined by line ends, without title")
        return found


def other_model(asked: str | None, model: str) -> list[str]:
    """The warning about a model that is not the one that answered."""
    return (
        [] if asked in (None, model) else [f"answered by {model!r}: there is no model {_shorten(asked or '')!r} here"]
    )


def ignored(names: Iterable[str]) -> str:
    """The warning about fields nobody reads."""
    unread = sorted(map(_shorten, names))
    return f"ignored fields: {', '.join(unread[:10])}{', …' if len(unread) > 10 else ''}"


def request_schema() -> dict[str, Any]:
    """JSON schema of a rerank request."""
    return inlined_schema(RerankRequest)


def inlined_schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema with its definitions written out, as OpenAPI wants it inside a request body."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, dict):
            name = node.get("$ref", "").rpartition("/")[2]
            kept = {key: value for key, value in node.items() if key != "discriminator"}  # it names definitions
            return inline(definitions[name]) if name else {key: inline(value) for key, value in kept.items()}
        return [inline(item) for item in node] if isinstance(node, list) else node

    inlined: dict[str, Any] = inline(schema)
    return inlined


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
