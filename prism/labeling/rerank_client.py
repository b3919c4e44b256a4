"""A reranker behind `POST /v1/rerank` (`prism serve`, or a server that speaks the same), for a juror to ask."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prism.errors import EngineError
from prism.llm.classify import without_key
from prism.llm.failures import Evidence, KeyRefused, Stop, Undelivered
from prism.llm.http import Address, ask
from prism.llm.rerank_api import rerank_url
from prism.result import RerankResult
from prism.text import clean
from prism.types import Document, Judgment, Usage, Verdict

if TYPE_CHECKING:
    import httpx

    from prism.labeling.panel import EndpointJuror


class RerankClient:
    """Asks the server for scores alone. Belongs to one event loop."""

    def __init__(self, settings: EndpointJuror) -> None:
        self._settings = settings
        self._http: httpx.AsyncClient | None = None
        self._evidence = Evidence()

    @property
    def _address(self) -> Address:
        settings = self._settings
        return Address(
            rerank_url("jina", settings.url),
            self._key(),
            settings.key_env or "no variable (the panel names none in key_env)",
            settings.max_attempts,
            settings.max_wait_s,
            "url and model",
        )

    async def arerank(
        self, query: str, documents: Sequence[Document], *, instruction: str | None = None, evidence: bool = False
    ) -> RerankResult:
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
    ) -> RerankResult:
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
        address = self._address
        headers = {"Authorization": f"Bearer {address.key}"} if address.key else {}
        http = self._client()
        answer = await ask(lambda: http.post(address.url, json=body, headers=headers), lambda body: body, address)
        self._evidence.answered()
        judgments = tuple(self._read(answer, len(documents)))
        return RerankResult(query=query, model=self._settings.model, judgments=judgments, usage=Usage())

    def _client(self) -> httpx.AsyncClient:
        import httpx

        if self._http is None:
            self._http = httpx.AsyncClient(timeout=self._settings.timeout_s)
        return self._http

    def _key(self) -> str | None:
        variable = self._settings.key_env
        if variable is None:
            return None
        key = os.environ.get(variable, "").strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise KeyRefused(f"{self._settings.name}: no key in the environment variable {variable}")
        return key

    def _read(self, answer: Any, count: int) -> list[Judgment]:
        """One judgment for each document. A score is taken as it is, or not at all."""
        results = answer.get("results") if isinstance(answer, dict) else None
        found = [_judgment(result, count) for result in results] if isinstance(results, list) else []
        if sorted(judgment.index for judgment in found if judgment) != list(range(count)):
            said = without_key(json.dumps(answer)[:200], self._key() or "")
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
        said = result.get("verdict")  # servers of another kind tell none: give the juror `cuts` where 0.5 is not meant
        verdict: Verdict = said if said in ("yes", "no") else "yes" if score >= 0.5 else "no"
        return Judgment(index=result["index"], score=float(score), verdict=verdict)
    return None
