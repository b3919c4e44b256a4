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
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx

from prism.errors import EngineError, InputError
from prism.evaluation.reranking import REFUSED
from prism.files.ledger import Ledger
from prism.llm.failures import Evidence, Stop, Unavailable, Undelivered
from prism.llm.http import Address, ask_now
from prism.llm.rerank_api import DIALECTS, rerank_url
from prism.text import clean, printable, titled
from prism.types import Document, Judgment, Usage
from studies.specs import Spec

ATTEMPTS: Final = 6
LONGEST_WAIT_S: Final = 60.0
TIMEOUT_S: Final = 120.0
_REFUSED_IN_A_ROW = 3
"""After so many refused documents, with none answered, it is the query that is refused."""


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
        self._spec, self._url = spec, rerank_url(spec.kind, spec.url)
        key = environment.get(self._dialect.key, "")
        if not key and spec.url is None:
            raise InputError(f"no key for {spec.kind}: set the environment variable {self._dialect.key}")
        self._fields = fields or {}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=TIMEOUT_S, headers=headers)
        self._address = Address(self._url, key, self._dialect.key, ATTEMPTS, LONGEST_WAIT_S, "model name and address")
        self._kept = Ledger(cache, cure="start over with another --out")
        self._evidence, self._doubting = Evidence(), threading.Lock()
        self._sleep = sleep

    def rerank(
        self, query: str, documents: Sequence[Document], *, instruction: str | None = None, **_: object
    ) -> ServiceReply:
        """Judge documents. An empty one is not sent, and one that is refused is found by halving: both fail alone.

        Raises EngineError when the service does not answer, InputError when it refuses the account.
        """
        if instruction is not None:
            raise InputError(f"{self._spec.kind} takes no instruction: leave --instruction out for services")
        texts = {index: clean(titled(document.text, document.title)) for index, document in enumerate(documents)}
        failed = {index: "the document is empty" for index, text in texts.items() if not text.strip()}
        asking = _Asking(query=clean(query), texts=texts, failed=failed)
        self._ask_all([index for index in texts if index not in failed], asking)
        errors = [Judgment(index=index, score=None, verdict=None, error=why) for index, why in asking.failed.items()]
        judged = sorted([*asking.judgments, *errors], key=lambda judgment: judgment.index)
        return ServiceReply(judged, asking.usage, asking.seconds, asking.requests)

    def close(self) -> None:
        self._client.close()
        self._kept.close()

    def _ask_all(self, indices: Sequence[int], asking: _Asking) -> None:
        """Ask about these documents in one request; in halves where it is refused."""
        if not indices or asking.given_up:
            asking.failed.update(dict.fromkeys(indices, asking.given_up))
            return
        asked_at = time.monotonic()
        try:
            reply = self._reply(asking.query, [asking.texts[index] for index in indices])
        except (Undelivered, Stop) as error:
            self._refused(indices, asking, error, asked_at)
            return
        asking.add(reply, indices)

    def _refused(self, indices: Sequence[int], asking: _Asking, error: Undelivered | Stop, asked_at: float) -> None:
        if isinstance(error, Unavailable):
            raise EngineError(f"{error}: run again to go on") from error
        with self._doubting:
            single = len(indices) == 1
            doubted = (single or isinstance(error, Stop)) and self._evidence.doubts(error, asked_at)
            harmless = self._try_harmless() if doubted else None
            found = self._evidence.verdict(error, harmless, doubted)
        if isinstance(found, Stop):
            raise InputError(str(found)) from error
        if not single:
            middle = len(indices) // 2
            self._ask_all(indices[:middle], asking)
            self._ask_all(indices[middle:], asking)
            return
        asking.failed[indices[0]] = f"{REFUSED}: {found}"[:200]
        if not asking.judgments and len(asking.failed) >= _REFUSED_IN_A_ROW:
            asking.given_up = f"{REFUSED} with other documents of the query: {found}"[:200]

    def _try_harmless(self) -> Exception | None:
        """Ask about texts that nobody refuses. Returns how that failed; None when it was answered."""
        try:
            self._ask(self._body("what is water", ["Water is a liquid at room temperature."]), 1)
        except (Undelivered, Stop) as error:
            return error
        return None

    def _body(self, query: str, texts: Sequence[str]) -> dict[str, Any]:
        return {**self._dialect.body(self._spec.name, query, texts), **self._fields}

    def _reply(self, query: str, texts: Sequence[str]) -> ServiceReply:
        body = self._body(query, texts)
        key = hashlib.sha256(json.dumps([self._url, body], sort_keys=True).encode()).hexdigest()
        kept = self._kept.get(key)
        if kept is None:
            answer, seconds = self._ask(body, len(texts))  # only what can be read is kept
            kept = {"answer": answer, "seconds": seconds}
            self._kept.put(key, kept)
        return self._read(kept["answer"], len(texts), kept["seconds"])

    def _ask(self, body: Mapping[str, Any], documents: int) -> tuple[Any, float]:
        """The answer, and the seconds of the request that brought it. Raises Undelivered, Stop or EngineError."""
        seconds = 0.0

        def send() -> httpx.Response:
            nonlocal seconds
            start = time.perf_counter()
            response = self._client.post(self._url, json=body)
            seconds = time.perf_counter() - start
            if response.status_code == 200 and response.content.lstrip()[:1] not in (b"{", b"["):
                raise EngineError(f"{self._url} did not answer in JSON: is it a rerank endpoint?")
            return response

        answer = ask_now(send, lambda body: body, self._address, self._sleep)
        self._read(answer, documents, seconds)
        self._evidence.answered()
        return answer, seconds

    def _read(self, answer: Any, documents: int, seconds: float) -> ServiceReply:
        """Raises EngineError unless the answer has results of this dialect, each for a document that was sent."""
        try:
            judgments = [_judgment(item, documents) for item in self._dialect.items(answer)]
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


@dataclass
class _Asking:
    """One query on its way, in as many requests as it takes."""

    query: str
    texts: Mapping[int, str]
    failed: dict[int, str]
    """Document -> why it has no score."""
    judgments: list[Judgment] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    requests: int = 0
    given_up: str = ""
    """Why nothing more is asked about this query."""

    def add(self, reply: ServiceReply, indices: Sequence[int]) -> None:
        """What was answered about these documents."""
        self.judgments += [
            judgment.model_copy(update={"index": indices[judgment.index]}) for judgment in reply.judgments
        ]
        self.usage += reply.usage
        self.seconds += reply.seconds
        self.requests += reply.requests


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
