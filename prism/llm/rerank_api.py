"""Rerank HTTP APIs in their dialects. Any server that speaks one of them will do.

    cohere  POST /v2/rerank {model, query, documents, top_n}              billed: meta.billed_units.search_units
    jina    POST /v1/rerank {…, return_documents: false}                  billed: usage.total_tokens
    voyage  POST /v1/rerank {model, query, documents, top_k}              billed: usage.total_tokens
    vllm    POST /v1/rerank {model, query, documents, top_n, instruction}
    tei     POST /rerank    {query, texts, truncate}                      (Text Embeddings Inference)
    sglang  POST /v1/rerank {query, documents, top_n, instruct}
    prism   POST /v1/rerank {query, documents, top_n, instruction, evidence}

Most answer `results[]`, Voyage `data[]`, TEI and SGLang a bare array; each item has `index` and `relevance_score`, with
the last two `score`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from prism.errors import InputError
from prism.llm.allowance import plain_address
from prism.llm.http import Address, ask

if TYPE_CHECKING:
    import httpx
    from aiolimiter import AsyncLimiter

Name = Literal["cohere", "jina", "voyage"]
"""Services with an address of their own; the other dialects are of software that is run by whoever asks."""
_NO_TEXTS: Final[Mapping[str, Any]] = {"return_documents": False}


class ApiFormat(NamedTuple):
    """How one API is asked."""

    base_url: str
    """The service's own address; for software just the version that a server's bare address gets."""
    key: str
    """The environment variable with the key; empty for software."""
    limit: str | None
    """The field that says how many results to return."""
    results: str | None
    """The field of the answer that holds them; None: the answer is their array."""
    fields: Mapping[str, Any]
    texts: str = "documents"
    score: str = "relevance_score"
    named: bool = True
    """Whether requests name a model."""
    instruction: str | None = None
    """The field that takes an instruction."""
    spans: Mapping[str, Any] | None = None
    """Fields that ask for `relevant_spans` in the answer."""

    def body(self, model: str, query: str, documents: Sequence[str], top_n: int | None = None) -> dict[str, Any]:
        """What is sent. `top_n`: how many results to ask for, all by default."""
        sent: dict[str, Any] = {"model": model} if self.named and model else {}
        sent |= {"query": query, self.texts: list(documents)}
        if self.limit:
            sent[self.limit] = len(documents) if top_n is None else top_n
        return {**sent, **self.fields}

    def items(self, answer: Any) -> list[Mapping[str, Any]]:
        """The results in an answer. Raises KeyError or TypeError for one of another dialect."""
        found = answer if self.results is None else answer[self.results]
        if not isinstance(found, list) or not all(isinstance(item, Mapping) for item in found):
            raise TypeError(f"expected an array of objects in {self.results or 'the answer'}")
        return found


DIALECTS: Final[Mapping[str, ApiFormat]] = {
    "cohere": ApiFormat(
        *("https://api.cohere.com/v2", "COHERE_API_KEY", "top_n", "results", {}),
        spans={"relevant_spans": {"mode": "enabled"}},
    ),
    "jina": ApiFormat("https://api.jina.ai/v1", "JINA_API_KEY", "top_n", "results", _NO_TEXTS),
    "voyage": ApiFormat("https://api.voyageai.com/v1", "VOYAGE_API_KEY", "top_k", "data", _NO_TEXTS),
    "vllm": ApiFormat("/v1", "", "top_n", "results", {}, instruction="instruction"),
    "tei": ApiFormat("", "", None, None, {"truncate": True}, texts="texts", score="score", named=False),
    "sglang": ApiFormat("/v1", "", "top_n", None, _NO_TEXTS, score="score", named=False, instruction="instruct"),
    "prism": ApiFormat(
        *("/v1", "", "top_n", "results", {"evidence": False}),
        instruction="instruction",
        spans={"evidence": "quoted"},
    ),
}
_ENDING = "/rerank"


def rerank_url(dialect: str, url: str | None = None) -> str:
    """Where to post to. `url` is a base URL, up to and including `/v1`, as everywhere; that of `…/rerank` is taken too.

    A server's bare address gets the version its dialect has. Raises InputError for what is no address.
    """
    base = DIALECTS[dialect].base_url
    if not url and not urlsplit(base).netloc:
        raise InputError(f"{dialect} has no address of its own: say where your server is")
    try:
        given = plain_address(url or base)
    except ValueError as error:
        raise InputError(f"{url!r}: {error} (the base URL, up to /v1)") from error
    if given.endswith(_ENDING):
        return given
    if not urlsplit(given).path:
        given += urlsplit(base).path
    return given + _ENDING


class CallScores(NamedTuple):
    """Scores of one call."""

    scores: dict[int, float]
    """Position of the document in the call -> score; a position the API left out is missing."""
    tokens: int | None
    searches: int | None
    """Billed units, None where the API does not say."""


@dataclass(frozen=True, slots=True)
class ApiTeacher:
    """One model behind one address."""

    dialect: Name
    model: str
    url: str
    """The base URL, or that of `…/rerank`."""
    key: str | None
    key_env: str | None = None
    """Where the key came from, for messages."""
    attempts: int = 6
    longest_wait_s: float = 60.0

    @classmethod
    def from_environment(
        cls, dialect: Name, model: str, url: str | None = None, key_env: str | None = None
    ) -> ApiTeacher:
        """The key is read from `key_env`; a provider's own address needs one, a server of yours may not."""
        name = key_env or DIALECTS[dialect].key
        key = os.environ.get(name)
        if key is None and (url is None or key_env is not None):
            raise InputError(f"no key in the environment: set {name}, or name another variable with --key-env")
        return cls(dialect, model, rerank_url(dialect, url), key, name)

    @property
    def name(self) -> str:
        """What scores are filed under: everything that decides them, and no key."""
        return f"{self.dialect} {self.model} {self.url}"

    async def ask(
        self, client: httpx.AsyncClient, query: str, documents: Sequence[str], limiter: AsyncLimiter | None = None
    ) -> CallScores:
        """One call, asked again while the server is busy; every attempt waits for `limiter`.

        Raises Rejected (this request is wrong), Unavailable (no answer in `attempts`) or Stop (no request will do).
        """
        url = rerank_url(self.dialect, self.url)
        body = DIALECTS[self.dialect].body(self.model, query, documents)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        address = Address(url, self.key, self.key_env or DIALECTS[self.dialect].key, self.attempts, self.longest_wait_s)
        return await ask(
            lambda: client.post(url, json=body, headers=headers),
            lambda answer: self._read(answer, len(documents)),
            address,
            limiter,
        )

    def _read(self, body: Any, count: int) -> CallScores:
        dialect = DIALECTS[self.dialect]
        items = dialect.items(body)
        scores = {int(item["index"]): float(item[dialect.score]) for item in items if not item.get("error")}
        known = {index: score for index, score in scores.items() if 0 <= index < count and math.isfinite(score)}
        return CallScores(
            known, _count(body, "usage", "total_tokens"), _count(body, "meta", "billed_units", "search_units")
        )


def _count(body: Any, *path: str) -> int | None:
    for name in path:
        body = body.get(name) if isinstance(body, Mapping) else None
    return int(body) if isinstance(body, int | float) and math.isfinite(body) else None
