"""What the integrations share: rerank in this process or over HTTP, one record for each document that is kept.

    Adapter.rank -> Reranker.rerank           or  POST /v1/rerank (llm.http)
                 -> JudgedDocument.of_judgment    JudgedDocument.of_result
                 -> kept, best first -> the framework's own objects, copied

A framework's class is an `Adapter` or holds one: settings, loading, asking and what is told about a document are here.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from anyio import to_thread
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError, model_validator

from prism.llm.http import Address, ask, ask_now
from prism.llm.rerank_api import DIALECTS, rerank_url
from prism.options import OnLongDocument, Options
from prism.records import first_problem
from prism.types import (
    EvidenceChoice,
    EvidenceSource,
    Judgment,
    Outcome,
    Record,
    Span,
    Truncation,
    Unsupported,
    Verdict,
)

if TYPE_CHECKING:
    import ssl

    from prism.reranker import Reranker

KEY: Final = "PRISM_API_KEY"
"""The environment variable with the key of a Prism server."""
METADATA: Final = "prism"
"""Where a document's metadata holds what Prism says about it."""
_LONGEST_WAIT_S: Final = 10.0
_logger = logging.getLogger("prism.integrations")
_loading = threading.Lock()


class FrameworkDocument(NamedTuple):
    """A framework's document as far as it is read."""

    text: str | None
    """None is an error on this document, the others are judged."""
    metadata: Mapping[str, Any]


class JudgedDocument(Record):
    """What Prism says about one document, whichever way it was asked."""

    index: int
    """Position of the document in the call."""
    score: float | None
    """None only with `error`."""
    verdict: Verdict | None
    outcome: Outcome
    contribution: str | None
    evidence: str | None
    evidence_source: EvidenceSource | None
    spans: tuple[Span, ...]
    """Where the document backs the evidence: offsets into the text as it was given."""
    support: float | None
    unsupported: tuple[Unsupported, ...]
    """What contribution and evidence state that the document does not."""
    broken: tuple[str, ...]
    """Stretches of the evidence that no writer meant."""
    truncation: Truncation | None
    error: str | None

    @classmethod
    def of_judgment(cls, judgment: Judgment) -> JudgedDocument:
        return cls(
            **{name: getattr(judgment, name) for name in cls.model_fields if name != "broken"},
            broken=judgment.check.broken if judgment.check else (),
        )

    @classmethod
    def of_result(cls, item: Mapping[str, Any]) -> JudgedDocument:
        """One of `results` of a Prism server. Raises KeyError or ValueError for what is none."""
        error = item.get("error")
        told: dict[str, Any] = {
            "score": None if error else item["relevance_score"],
            "spans": [{"start": s["start"], "end": s["end"], "support": s["score"]} for s in item["relevant_spans"]],
            "truncation": item.get("truncation"),
            "error": error and error["message"],
        }
        told |= {name: item[name] for name in cls.model_fields if name not in told}
        try:
            return cls.model_validate(told)
        except ValidationError as problem:
            raise ValueError(first_problem(problem)) from problem

    @property
    def quotable(self) -> str | None:
        """The evidence, if it can stand for the document."""
        return None if self.broken else self.evidence or None


class Adapter(BaseModel):
    """Whom to ask, what for, and what to do with the answer."""

    model_config = ConfigDict(
        extra="forbid",
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # the key is among it
    )

    model: str | None = None
    """A checkpoint to load in this process: `mini` (the default), a directory, a name on the hub."""
    load_options: dict[str, Any] = Field(default_factory=dict)
    """More arguments of `Reranker.load`: `engine`, `device`, `template`, …"""
    reranker: Any = Field(default=None, exclude=True, repr=False)
    """A `Reranker` that is loaded already, in place of `model`. It stays yours to close."""
    url: str | None = None
    """The base URL of a Prism server, in place of a model in this process."""
    api_key: SecretStr | None = Field(default=None, exclude=True)
    """The server's key; else what is in PRISM_API_KEY."""
    timeout_s: float = Field(default=60.0, gt=0)
    """How long one attempt over HTTP may take."""
    attempts: int = Field(default=3, ge=1)
    """How often a server that is busy or silent is asked."""

    instruction: str | None = None
    top_n: int | None = Field(default=None, ge=1)
    """At most so many documents come back."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Scores from here on mean yes; the model's own threshold by default."""
    evidence: EvidenceChoice | bool = "auto"
    """`written` by the model, `quoted` from the document, `auto` as the model prefers, or false for scores only."""
    evidence_tokens: int | None = Field(default=None, ge=0)
    """At most so many tokens of evidence for all documents together."""
    evidence_top_n: int | None = Field(default=None, ge=0)
    """Evidence for at most so many documents, the best."""
    on_long_document: OnLongDocument = "truncate"

    only_yes: bool = True
    """Leave out documents with the verdict no, and those that could not be judged. If false all come back, ranked,
    those that could not be judged last."""
    content: Literal["document", "evidence"] = "document"
    """Whether documents come back with their own text, or with their evidence in its place where it is sound."""
    title_key: str | None = "title"
    """The metadata that holds a document's title, shown to the model where it is a text."""

    _loaded: Reranker | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _one_place(self) -> Adapter:
        given = {"url": self.url, "reranker": self.reranker, "model": self.model or self.load_options or None}
        if len(named := [name for name, value in given.items() if value is not None]) > 1:
            raise ValueError(f"expected one of url, reranker and model (with load_options), got {' and '.join(named)}")
        if self.url is not None:
            rerank_url("prism", self.url)
        elif self.reranker is not None and not callable(getattr(self.reranker, "arerank", None)):
            raise ValueError(f"reranker must be a prism.Reranker, got {type(self.reranker).__name__}")
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """Settings travel; a loaded model does not."""
        return {**super().__getstate__(), "__pydantic_private__": {"_loaded": None}}

    # --- asking ------------------------------------------------------------------------------------------------------

    def rank(self, query: str, passages: Sequence[FrameworkDocument], top_n: int | None = None) -> list[JudgedDocument]:
        """What is kept, best first. `top_n`: for this call.

        Raises InputError for a wrong call, CheckpointError, EngineError, and over HTTP ChatError of the kinds in
        `llm.failures`.
        """
        if not passages:
            return []
        options, documents = self._options(top_n), self._documents(passages)
        if self.url is None:
            result = self.warm_up().rerank(query, documents, **options)
            return self._kept(list(map(JudgedDocument.of_judgment, result)), result.warnings)
        import httpx

        url, headers, body = self._request(query, documents, options)
        with httpx.Client(timeout=self.timeout_s, verify=_certificates()) as client:
            answer = ask_now(
                lambda: client.post(url, json=body, headers=headers),
                lambda answer: _read(answer, len(documents)),
                self._address(url),
                time.sleep,
            )
        return self._kept(*answer)

    async def arank(
        self, query: str, passages: Sequence[FrameworkDocument], top_n: int | None = None
    ) -> list[JudgedDocument]:
        """`rank`, awaited; cancellable at any time."""
        if not passages:
            return []
        options, documents = self._options(top_n), self._documents(passages)
        if self.url is None:
            reranker = await to_thread.run_sync(self.warm_up)
            result = await reranker.arerank(query, documents, **options)
            return self._kept(list(map(JudgedDocument.of_judgment, result)), result.warnings)
        import httpx

        url, headers, body = self._request(query, documents, options)
        async with httpx.AsyncClient(timeout=self.timeout_s, verify=_certificates()) as client:
            answer = await ask(
                lambda: client.post(url, json=body, headers=headers),
                lambda answer: _read(answer, len(documents)),
                self._address(url),
            )
        return self._kept(*answer)

    def warm_up(self) -> Reranker:
        """The reranker of this process, loaded at the first call."""
        if self.reranker is not None:
            given: Reranker = self.reranker
            return given
        with _loading:
            if self._loaded is None:
                from prism.reranker import Reranker

                self._loaded = Reranker.load(self.model or "mini", **self.load_options)
            return self._loaded

    def close(self) -> None:
        """Free the model, if it was loaded here; the next call loads it again."""
        with _loading:
            loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.close()

    # --- what is made of a document ----------------------------------------------------------------------------------

    def text_of(self, judged: JudgedDocument, text: str) -> str:
        """What a document comes back with; `text` is its own."""
        return judged.quotable or text if self.content == "evidence" else text

    def metadata_of(self, judged: JudgedDocument) -> dict[str, Any]:
        """What a document's metadata says under `prism`, in JSON's types; `content` says which text came back."""
        shown = "evidence" if self.content == "evidence" and judged.quotable else "document"
        return {**judged.model_dump(mode="json", exclude={"index"}), "content": shown}

    def _kept(self, found: list[JudgedDocument], warnings: Sequence[str]) -> list[JudgedDocument]:
        for warning in warnings:
            _logger.warning("%s", warning)
        if failed := [judged for judged in found if judged.error]:
            example = f"document {failed[0].index}: {failed[0].error}"
            _logger.warning("%d of %d documents could not be judged, %s", len(failed), len(found), example)
        return [judged for judged in found if judged.verdict == "yes"] if self.only_yes else found

    # --- what is sent ------------------------------------------------------------------------------------------------

    def _documents(self, passages: Sequence[FrameworkDocument]) -> list[dict[str, Any]]:
        sent = []
        for text, metadata in passages:
            title = metadata.get(self.title_key) if self.title_key else None
            sent.append({"text": text, **({"title": title} if isinstance(title, str) and title.strip() else {})})
        return sent

    def _options(self, top_n: int | None) -> Options:
        return Options(
            instruction=self.instruction,
            top_n=top_n or self.top_n,
            threshold=self.threshold,
            evidence=self.evidence,
            evidence_tokens=self.evidence_tokens,
            evidence_top_n=self.evidence_top_n,
            on_long_document=self.on_long_document,
        )

    def _request(
        self, query: str, documents: Sequence[Mapping[str, Any]], options: Options
    ) -> tuple[str, dict[str, str], dict[str, Any]]:
        """URL, headers, body."""
        assert self.url is not None  # who asks a server has one
        body = {"query": query, "documents": documents, **options}
        source, tokens, top_n = (body.pop(name) for name in ("evidence", "evidence_tokens", "evidence_top_n"))
        wanted = {"source": "auto" if source is True else source, "max_tokens": tokens, "top_n": top_n}
        body["evidence"] = wanted if source else False
        key = self._key()
        return rerank_url("prism", self.url), {"Authorization": f"Bearer {key}"} if key else {}, body

    def _key(self) -> str | None:
        return self.api_key.get_secret_value() if self.api_key else os.environ.get(KEY)

    def _address(self, url: str) -> Address:
        return Address(url, self._key(), f"api_key or {KEY}", self.attempts, _LONGEST_WAIT_S, "url")


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: it takes longer than a request."""
    import httpx

    return httpx.create_ssl_context()


def _read(answer: Any, count: int) -> tuple[list[JudgedDocument], list[str]]:
    """What a server answered about `count` documents, and its warnings. Raises KeyError, TypeError or ValueError."""
    found = [JudgedDocument.of_result(item) for item in DIALECTS["prism"].items(answer)]
    places = {judged.index for judged in found}
    if len(places) < len(found) or not places <= set(range(count)):
        raise ValueError(f"expected results about documents 0 to {count - 1}, each at most once")
    return found, list(answer["meta"]["warnings"])
