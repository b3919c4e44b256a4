"""Rerank services over HTTP, in the dialects of Cohere, Jina and Voyage.

Answers are kept by a hash of everything that was asked (address, body), with the time they took: what was paid for
once is not paid for again, and its latency stays the one that was measured. Keys come from the environment and are
neither stored nor shown.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import tenacity

from prism.errors import EngineError, InputError
from prism.evaluation.rerankers import Spec, document_text
from prism.result import printable
from prism.text import clean
from prism.types import Document, Judgment, Usage

ATTEMPTS: Final = 6
LONGEST_WAIT_S: Final = 60.0
TIMEOUT_S: Final = 120.0


class Dialect(NamedTuple):
    """How one service is asked."""

    url: str
    key: str
    """The environment variable with the key."""
    limit: str
    """The field that says how many results to return."""
    results: str
    """The field of the answer that holds them."""
    fields: Mapping[str, Any]


DIALECTS: Final = {
    "cohere": Dialect("https://api.cohere.com/v2/rerank", "COHERE_API_KEY", "top_n", "results", {}),
    "jina": Dialect("https://api.jina.ai/v1/rerank", "JINA_API_KEY", "top_n", "results", {"return_documents": False}),
    "voyage": Dialect(
        "https://api.voyageai.com/v1/rerank", "VOYAGE_API_KEY", "top_k", "data", {"return_documents": False}
    ),
}


class ServiceReply(NamedTuple):
    """What a service answered, and what that took."""

    judgments: Sequence[Judgment]
    usage: Usage
    seconds: float
    """Of the request when it was made, waiting for a busy service left out."""
    requests: int
    """As billed; 1 where the service does not say."""


class ServiceReranker:
    """One model of one service."""

    def __init__(
        self,
        spec: Spec,
        cache: Path,
        *,
        fields: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] = os.environ,
        sleep: Any = time.sleep,
    ) -> None:
        """`fields` go into every request. Raises InputError when there is no key for a service that needs one."""
        self._dialect = DIALECTS[spec.kind]
        self._spec, self._url = spec, spec.url or self._dialect.url
        key = environment.get(self._dialect.key, "")
        if not key and spec.url is None:
            raise InputError(f"no key for {spec.kind}: set the environment variable {self._dialect.key}")
        self._fields = {**self._dialect.fields, **(fields or {})}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=TIMEOUT_S, headers=headers)
        self._kept = _Kept(cache)
        self._sleep = sleep

    def rerank(
        self, query: str, documents: Sequence[Document], *, instruction: str | None = None, **_: object
    ) -> ServiceReply:
        if instruction is not None:
            raise InputError(f"{self._spec.kind} takes no instruction: leave --instruction out for services")
        body = {
            "model": self._spec.name,
            "query": clean(query),
            "documents": [clean(document_text(document)) for document in documents],
            self._dialect.limit: len(documents),
            **self._fields,
        }
        key = hashlib.sha256(json.dumps([self._url, body], sort_keys=True).encode()).hexdigest()
        answer, seconds = self._kept.get(key) or (None, 0.0)
        if answer is None:
            answer, seconds = self._ask(body)
            self._read(answer, len(documents), seconds)  # only what can be read is kept
            self._kept.put(key, answer, seconds)
        return self._read(answer, len(documents), seconds)

    def close(self) -> None:
        self._client.close()
        self._kept.close()

    def _ask(self, body: Mapping[str, Any]) -> tuple[Any, float]:
        retry = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Busy),
            wait=_wait,
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retry(self._ask_once, body)
        except _Busy as error:
            raise EngineError(f"{self._url} failed {ATTEMPTS} times, last: {error}: run again to go on") from error

    def _ask_once(self, body: Mapping[str, Any]) -> tuple[Any, float]:
        start = time.perf_counter()
        try:
            response = self._client.post(self._url, json=body)
        except httpx.TransportError as error:
            raise _Busy(f"{type(error).__name__}: {error}", None) from error
        seconds = time.perf_counter() - start
        if response.status_code in (408, 429) or response.status_code >= 500:
            raise _Busy(f"status {response.status_code}", _retry_after(response))
        if response.status_code in (401, 403):
            raise InputError(f"{self._url} refused the key: check the environment variable {self._dialect.key}")
        if response.status_code != 200:
            said = printable(response.text[:200])
            raise EngineError(f"{self._url} answered {response.status_code}: {said!r}: check model name and address")
        try:
            return response.json(), seconds
        except ValueError as error:
            raise EngineError(f"{self._url} did not answer in JSON: is it a rerank endpoint?") from error

    def _read(self, answer: Any, documents: int, seconds: float) -> ServiceReply:
        """Raises EngineError unless the answer has results of this dialect, each for a document that was sent."""
        try:
            results = answer[self._dialect.results]
            judgments = [_judgment(result, documents) for result in results]
            if len({judgment.index for judgment in judgments}) != len(judgments):
                raise ValueError("a document comes twice")
            usage = answer.get("usage") or {}
            billed = ((answer.get("meta") or {}).get("billed_units") or {}).get("search_units", 1)
            tokens = Usage(prompt_tokens=int(usage.get("total_tokens") or 0))
            return ServiceReply(judgments, tokens, seconds, int(billed))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__}: {printable(str(error))[:120]}"
            raise EngineError(
                f"{self._url} did not answer as {self._spec.kind} does ({what}): check kind and URL"
            ) from error


class _Busy(Exception):
    """Worth another try."""

    def __init__(self, what: str, after_s: float | None) -> None:
        super().__init__(what)
        self.after_s = after_s


def _wait(state: tenacity.RetryCallState) -> float:
    """What the service asked for, else 1, 2, 4 ... seconds."""
    error = state.outcome.exception() if state.outcome else None
    after = error.after_s if isinstance(error, _Busy) else None
    return min(LONGEST_WAIT_S, 2.0 ** (state.attempt_number - 1) if after is None else after)


def _retry_after(response: httpx.Response) -> float | None:
    try:
        seconds = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _judgment(result: Mapping[str, Any], documents: int) -> Judgment:
    index = result["index"]
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < documents:
        raise ValueError(f"index {index!r} of {documents} documents")
    if result.get("error"):
        return Judgment(index=index, score=None, verdict=None, error=printable(str(result["error"]))[:200])
    score = float(result["relevance_score"])
    if not math.isfinite(score):
        raise ValueError(f"score {score}")
    return Judgment(index=index, score=score, verdict=None)


class _Kept:
    """Answers on disk, by key; each is there whole or not at all, also after kill -9."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file = sqlite3.connect(path, check_same_thread=False)
        with self._file:
            self._file.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT, seconds REAL)")

    def get(self, key: str) -> tuple[Any, float] | None:
        with self._lock:
            row = self._file.execute("SELECT answer, seconds FROM answers WHERE key = ?", (key,)).fetchone()
        return (json.loads(row[0]), row[1]) if row else None

    def put(self, key: str, answer: Any, seconds: float) -> None:
        with self._lock, self._file:
            self._file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, json.dumps(answer), seconds))

    def close(self) -> None:
        self._file.close()
