"""Haystack: `PrismRanker`, a component for a `Pipeline` or on its own."""

# No `from __future__ import annotations` here: Haystack 2 reads the types of a component's inputs as they are written.
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import SecretStr, ValidationError

from prism.errors import InputError
from prism.integrations.adapter import KEY, METADATA, Adapter, FrameworkDocument, JudgedDocument
from prism.options import OnLongDocument
from prism.records import first_problem
from prism.types import EvidenceChoice

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret
except ImportError as error:
    raise ImportError(
        f'prism.integrations.haystack needs {error.name}: run pip install "prism-reranker[haystack]"', name=error.name
    ) from error


@component
class PrismRanker:
    """Keeps the documents that Prism says yes to, best first, with their evidence.

    What comes back are copies with the same ids: `score` is Prism's, `meta["prism"]` everything else.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        load_options: dict[str, Any] | None = None,
        url: str | None = None,
        api_key: Secret | None = Secret.from_env_var(KEY, strict=False),  # noqa: B008  # frozen, as Haystack has it
        timeout_s: float = 60.0,
        attempts: int = 3,
        instruction: str | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        evidence: EvidenceChoice | bool = "auto",
        evidence_tokens: int | None = None,
        evidence_top_n: int | None = None,
        on_long_document: OnLongDocument = "truncate",
        only_yes: bool = True,
        content: Literal["document", "evidence"] = "document",
        title_key: str | None = "title",
    ) -> None:
        """The settings of `Adapter`, where `top_k` is `top_n`. Raises InputError for one that is wrong."""
        self._settings: dict[str, Any] = {
            "model": model,
            "load_options": load_options or {},
            "url": url,
            "timeout_s": timeout_s,
            "attempts": attempts,
            "instruction": instruction,
            "threshold": threshold,
            "evidence": evidence,
            "evidence_tokens": evidence_tokens,
            "evidence_top_n": evidence_top_n,
            "on_long_document": on_long_document,
            "only_yes": only_yes,
            "content": content,
            "title_key": title_key,
        }
        self._api_key, self._top_k = api_key, top_k
        key = api_key.resolve_value() if api_key and url else None
        try:
            self._adapter = Adapter(**self._settings, top_n=top_k, api_key=SecretStr(key) if key else None)
        except ValidationError as error:
            raise InputError(f"PrismRanker: {first_problem(error)}".replace("top_n", "top_k")) from error

    def to_dict(self) -> dict[str, Any]:
        """The settings, with the name of the key's environment variable. Raises ValueError for a key in plain text."""
        api_key = self._api_key.to_dict() if self._api_key else None
        data: dict[str, Any] = default_to_dict(self, **self._settings, top_k=self._top_k, api_key=api_key)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        settings = dict(data.get("init_parameters", {}))
        if isinstance(key := settings.get("api_key"), dict):  # Haystack 2 leaves it a dictionary
            settings["api_key"] = Secret.from_dict(key)
        ranker: Self = default_from_dict(cls, {**data, "init_parameters": settings})
        return ranker

    def warm_up(self) -> None:
        """Loads the model, where it runs in this process."""
        if not self._adapter.url:
            self._adapter.warm_up()

    def close(self) -> None:
        """Frees the model; the next call loads it again."""
        self._adapter.close()

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """`top_k`: for this call. Raises as `Adapter.rank` does."""
        return self._copies(documents, self._adapter.rank(query, _passages(documents), top_k))

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """`run`, awaited."""
        return self._copies(documents, await self._adapter.arank(query, _passages(documents), top_k))

    def _copies(self, documents: Sequence[Document], found: Sequence[JudgedDocument]) -> dict[str, list[Document]]:
        return {"documents": [self._copy(documents[judged.index], judged) for judged in found]}

    def _copy(self, document: Document, judged: JudgedDocument) -> Document:
        meta = {**document.meta, METADATA: self._adapter.metadata_of(judged)}
        text = document.content if document.content is None else self._adapter.text_of(judged, document.content)
        copied: Document = replace(document, content=text, meta=meta, score=judged.score)
        return copied


def _passages(documents: Sequence[Document]) -> list[FrameworkDocument]:
    return [FrameworkDocument(document.content, document.meta) for document in documents]
