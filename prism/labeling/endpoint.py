"""A reranker behind `POST /v1/rerank` (`prism serve`, or a server that speaks the same), for a juror to ask."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prism.errors import EngineError
from prism.labeling.failures import KeyRefused, Unavailable
from prism.labeling.replies import read_error, without_key
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

    async def arerank(
        self, query: str, documents: Sequence[Document], *, instruction: str | None = None, evidence: bool = False
    ) -> Scored:
        """Score documents; passing troubles are tried again with growing waits. Raises ChatError or EngineError."""
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

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
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Unavailable),
            stop=stop_after_attempt(self._settings.max_attempts),
            wait=wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT_S),
            reraise=True,
        )
        answer: Any = await retrying(self._post, body)
        return Scored(self._read(answer, len(documents)))

    async def _post(self, body: Mapping[str, Any]) -> Any:
        import httpx

        if self._http is None:
            self._http = httpx.AsyncClient(timeout=self._settings.timeout_s)
        name = self._settings.name
        try:
            response = await self._http.post(f"{self._settings.url}/rerank", json=body, headers=self._headers())
        except httpx.HTTPError as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise Unavailable("connection", f"{name}: no answer from {self._settings.url}: {why}") from None
        if response.status_code != 200:
            raise read_error(name, response.status_code, response.headers, response.content, self._settings)
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
            said = without_key(json.dumps(answer)[:200], self._settings)
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
