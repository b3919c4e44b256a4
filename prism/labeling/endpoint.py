"""A reranker behind `POST /v1/rerank` (`prism serve`, or a server that speaks the same), for a juror to ask."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prism.errors import EngineError
from prism.llm.classify import Caller, read_error, without_key
from prism.llm.failures import Evidence, KeyRefused, Stop, Unavailable, Undelivered
from prism.llm.http import Address, retrying
from prism.llm.rerank_api import rerank_url
from prism.text import clean
from prism.types import Document, Judgment

if TYPE_CHECKING:
    import httpx

    from prism.labeling.panel import EndpointJuror

_LONGEST_WAIT_S = 30.0


class Scored(NamedTuple):
    """The part of a rerank result that a juror reads."""

    judgments: Sequence[Judgment]
    """In any order; `index` says of which document."""


class Endpoint:
    """Asks the server for scores alone. Belongs to one event loop."""

    threshold = 0.5
    """A server does not tell its own: give the juror `cuts` where another is meant."""

    def __init__(self, settings: EndpointJuror) -> None:
        self._settings = settings
        self._http: httpx.AsyncClient | None = None
        self._evidence = Evidence()

    @property
    def _caller(self) -> Caller:
        settings, variable = self._settings, self._settings.key_env
        key = os.environ.get(variable, "").strip() if variable else ""
        shown = variable or "no variable (the panel names none in key_env)"
        return Caller(settings.name, key, shown, settings.max_wait_s, "url and model")

    async def arerank(
        self, query: str, documents: Sequence[Document], *, instruction: str | None = None, evidence: bool = False
    ) -> Scored:
        """Score documents; passing troubles are tried again with growing waits. Raises ChatError or EngineError."""
        asked_at = time.monotonic()
        try:
            return await self._scored(query, documents, instruction, evidence)
        except (Undelivered, Stop) as error:
            single = len(documents) == 1
            raise await self._evidence.believed(error, asked_at, self._try_harmless, single=single) from None

    async def _try_harmless(self) -> Exception | None:
        """Ask about texts that nobody refuses. Returns how that failed; None when it was answered."""
        try:
            await self._scored("what is water", [Document(text="Water is a liquid.")], None, False)
        except (Undelivered, Stop) as error:
            return error
        return None

    async def _scored(
        self, query: str, documents: Sequence[Document], instruction: str | None, evidence: bool
    ) -> Scored:
        from tenacity import AsyncRetrying

        body: dict[str, Any] = {
            "model": self._settings.model,
            "query": clean(query),
            "documents": [
                {name: clean(text) for name, text in (("text", d.text), ("title", d.title)) if text} for d in documents
            ],
            "evidence": evidence,
        }
        if instruction:
            body["instruction"] = instruction
        settings = self._settings
        address = Address(settings.url, None, attempts=settings.max_attempts, longest_wait_s=_LONGEST_WAIT_S)
        answer: Any = await AsyncRetrying(**retrying(address))(self._post, body)
        self._evidence.answered()
        return Scored(self._read(answer, len(documents)))

    async def _post(self, body: Mapping[str, Any]) -> Any:
        import httpx

        if self._http is None:
            self._http = httpx.AsyncClient(timeout=self._settings.timeout_s)
        name = self._settings.name
        try:
            response = await self._http.post(rerank_url("jina", self._settings.url), json=body, headers=self._headers())
        except httpx.HTTPError as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise Unavailable("connection", f"{name}: no answer from {self._settings.url}: {why}") from None
        if response.status_code != 200:
            raise read_error(self._caller, response.status_code, response.headers, response.content)
        try:
            return json.loads(response.content)
        except ValueError:
            raise Unavailable("cut_body", f"{name}: the answer is not whole JSON") from None

    def _headers(self) -> dict[str, str]:
        variable = self._settings.key_env
        if variable is None:
            return {}
        key = os.environ.get(variable, "").strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise KeyRefused(f"{self._settings.name}: no key in the environment variable {variable}")
        return {"Authorization": f"Bearer {key}"}

    def _read(self, answer: Any, count: int) -> list[Judgment]:
        """One judgment for each document. A score is taken as it is, or not at all."""
        results = answer.get("results") if isinstance(answer, dict) else None
        found = [_judgment(result, count) for result in results] if isinstance(results, list) else []
        if sorted(judgment.index for judgment in found if judgment) != list(range(count)):
            said = without_key(json.dumps(answer)[:200], self._caller.key)
            raise EngineError(f"{self._settings.name}: expected one result for each of {count} documents, got {said}")
        return [judgment for judgment in found if judgment]

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None


def _judgment(result: Any, count: int) -> Judgment | None:
    if not isinstance(result, dict) or not isinstance(result.get("index"), int) or not 0 <= result["index"] < count:
        return None
    if error := result.get("error"):  # whatever stands in the place of its score is none
        return Judgment(index=result["index"], score=None, verdict=None, error=str(error)[:200])
    score = result.get("relevance_score")
    if isinstance(score, (int, float)) and not isinstance(score, bool) and 0 <= score <= 1:
        return Judgment(index=result["index"], score=float(score), verdict="yes" if score >= 0.5 else "no")
    return None
