"""Rerank HTTP APIs as teachers: the Cohere, Jina and Voyage dialects. Any server that speaks one of them will do.

    cohere  POST /v2/rerank {model, query, documents, top_n}              billed: meta.billed_units.search_units
    jina    POST /v1/rerank {…, return_documents: false}                  billed: usage.total_tokens
    voyage  POST /v1/rerank {model, query, documents, top_k, truncation}  billed: usage.total_tokens

Cohere and Jina answer `results[]`, Voyage `data[]`, each item with `index` and `relevance_score`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prism.data.http_api import Address, ask
from prism.errors import InputError

if TYPE_CHECKING:
    import httpx
    from aiolimiter import AsyncLimiter

Dialect = Literal["cohere", "jina", "voyage"]

_DEFAULTS: dict[Dialect, tuple[str, str, str]] = {
    "cohere": ("https://api.cohere.com/v2/rerank", "COHERE_API_KEY", "results"),
    "jina": ("https://api.jina.ai/v1/rerank", "JINA_API_KEY", "results"),
    "voyage": ("https://api.voyageai.com/v1/rerank", "VOYAGE_API_KEY", "data"),
}


class Answer(NamedTuple):
    """Scores of one call."""

    scores: dict[int, float]
    """Position of the document in the call -> score; a position the API left out is missing."""
    tokens: int | None
    searches: int | None
    """Billed units, None where the API does not say."""


@dataclass(frozen=True, slots=True)
class ApiTeacher:
    """One model behind one address."""

    dialect: Dialect
    model: str
    url: str
    key: str | None
    attempts: int = 6
    longest_wait_s: float = 60.0

    @classmethod
    def from_environment(
        cls, dialect: Dialect, model: str, url: str | None = None, key_env: str | None = None
    ) -> ApiTeacher:
        """The key is read from `key_env`; a provider's own address needs one, a server of yours may not."""
        default_url, default_env, _ = _DEFAULTS[dialect]
        name = key_env or default_env
        key = os.environ.get(name)
        if key is None and (url is None or key_env is not None):
            raise InputError(f"no key in the environment: set {name}, or name another variable with --key-env")
        return cls(dialect, model, url or default_url, key)

    @property
    def name(self) -> str:
        """What scores are filed under: everything that decides them, and no key."""
        return f"{self.dialect} {self.model} {self.url}"

    async def ask(
        self, client: httpx.AsyncClient, query: str, documents: Sequence[str], limiter: AsyncLimiter | None = None
    ) -> Answer:
        """One call, asked again while the server is busy; every attempt waits for `limiter`.

        Raises Refused (this request is wrong), Unanswered (no answer in `attempts`) or Stopped (no request will do).
        """
        body, headers = self._body(query, documents), {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return await ask(
            lambda: client.post(self.url, json=body, headers=headers),
            lambda answer: self._read(answer, len(documents)),
            Address(self.url, self.key, self.attempts, self.longest_wait_s),
            limiter,
        )

    def _body(self, query: str, documents: Sequence[str]) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "query": query, "documents": list(documents)}
        if self.dialect == "voyage":
            return {**body, "top_k": len(documents), "return_documents": False, "truncation": True}
        if self.dialect == "jina":
            body["return_documents"] = False
        return {**body, "top_n": len(documents)}

    def _read(self, body: Any, count: int) -> Answer:
        results = body[_DEFAULTS[self.dialect][2]]
        scores = {
            int(result["index"]): float(result["relevance_score"]) for result in results if not result.get("error")
        }
        known = {index: score for index, score in scores.items() if 0 <= index < count and math.isfinite(score)}
        return Answer(
            known, _count(body, "usage", "total_tokens"), _count(body, "meta", "billed_units", "search_units")
        )


def _count(body: Any, *path: str) -> int | None:
    for name in path:
        body = body.get(name) if isinstance(body, Mapping) else None
    return int(body) if isinstance(body, int | float) and math.isfinite(body) else None
