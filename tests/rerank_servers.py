"""Rerank servers for tests of who asks them: a good one in each dialect, and the same with one thing wrong.

The good one knows the golden pairs: a document with the answer scores 0.9, all others low, each a little differently.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from typing import Any

from app_thread import AppThread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from prism.doctor.golden import GOLDEN

ANSWERS = {pair.query: pair.document for pairs in GOLDEN.values() for pair in pairs}
LIMIT = 20_000
"""Characters of a document that are read."""
AROUND = 90
"""Tokens of the prompt around the texts."""


def noise(*texts: str) -> float:
    """In [0, 1), another for every text."""
    digest = hashlib.sha256("\x1f".join(texts).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def judge(query: str, document: str, instruction: str | None = None) -> float:
    """A good reranker's score."""
    answer = next((answer for asked, answer in ANSWERS.items() if asked in query), None)
    read = document[:LIMIT]
    score = 0.9 if answer and answer in read else 0.02
    return (score + 0.08 * noise(query, read)) * (0.5 if instruction else 1.0)


class RerankServer:
    """One model behind one dialect; a subclass has one thing wrong. `with` it, `url` is its bare address."""

    dialect = "jina"
    owner: str | None = None
    counts = True
    """Whether tokens are told."""
    most: int | None = None
    """Refuses more documents than this."""
    empty_status = 400

    def __init__(self) -> None:
        self.app = FastAPI()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        path = {"cohere": "/v2/rerank", "tei": "/rerank"}.get(self.dialect, "/v1/rerank")
        self.app.post(path)(self._rerank)
        if self.owner:
            self.app.get("/v1/models")(lambda: {"data": [{"id": "good", "owned_by": self.owner}]})
        if self.dialect == "tei":
            self.app.get("/info")(lambda: {"model_id": "good", "model_type": {"reranker": {}}, "max_input_length": 512})
        self._served = AppThread(self.app, log_level="critical", lifespan="off")
        self.url = self._served.url

    def __enter__(self) -> RerankServer:
        self._served.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._served.stop()

    # --- what can be wrong -------------------------------------------------------------------------------------------

    def score(self, query: str, document: str, instruction: str | None) -> float:
        return judge(query, document, instruction)

    def scores(self, query: str, documents: Sequence[str], instruction: str | None) -> list[float]:
        return [self.score(query, document, instruction) for document in documents]

    def tokens(self, query: str, document: str) -> int:
        return AROUND + len(query.split()) + len(document[:LIMIT].split())

    def spans(self, query: str, document: str) -> list[tuple[int, int]]:
        answer = ANSWERS.get(query, "")
        start = document.find(answer) if answer else -1
        return [(start, start + len(answer))] if start >= 0 else []

    def refuses(self, query: str, documents: Sequence[str]) -> int | None:
        """The status of a refusal."""
        if not documents:
            return self.empty_status
        return 413 if self.most and len(documents) > self.most else None

    def cut(self, document: str) -> dict[str, Any]:
        long = len(document) > LIMIT and self.dialect == "prism"
        return {"truncation": {"read_chars": LIMIT, "total_chars": len(document)}} if long else {}

    def ranked(self, scores: Sequence[float], top_n: int | None) -> list[tuple[int, float]]:
        """Index and score of what is returned, best first."""
        return sorted(enumerate(scores), key=lambda pair: -pair[1])[: top_n or None]

    # --- the dialects ------------------------------------------------------------------------------------------------

    async def _rerank(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        query, documents = body.get("query"), body.get("texts" if self.dialect == "tei" else "documents")
        if not isinstance(query, str) or not isinstance(documents, list):
            return JSONResponse({"detail": "a field is missing"}, 422)
        if status := self.refuses(query, documents):
            return JSONResponse({"message": f"refused with {status}", "detail": f"refused with {status}"}, status)
        instruction = body.get("instruct" if self.dialect == "sglang" else "instruction")
        scores = self.scores(query, documents, instruction)
        ranked = self.ranked(scores, body.get("top_k" if self.dialect == "voyage" else "top_n"))
        name = "score" if self.dialect in ("tei", "sglang") else "relevance_score"
        items = [{"index": index, name: score, **self._more(body, documents, index)} for index, score in ranked]
        return self._answer(items, sum(self.tokens(query, document) for document in documents))

    def _more(self, body: dict[str, Any], documents: Sequence[str], index: int) -> dict[str, Any]:
        document = documents[index] if index < len(documents) else ""
        found = self.cut(document)
        if body.get("relevant_spans") or body.get("evidence"):
            spans = self.spans(body["query"], document)
            found["relevant_spans"] = [{"start": start, "end": end, "score": 1.0} for start, end in spans]
        if self.dialect == "sglang":
            found["meta_info"] = {"prompt_tokens": self.tokens(body["query"], document)}
        return found

    def _answer(self, items: list[dict[str, Any]], tokens: int) -> Response:
        told = {"usage": {"total_tokens": tokens}} if self.counts else {}
        headers = {"x-compute-tokens": str(tokens)} if self.dialect == "tei" else {}
        content: Any = {"model": "good", "data" if self.dialect == "voyage" else "results": items, **told}
        if self.dialect in ("tei", "sglang"):
            content = items
        return Response(json.dumps(content), media_type="application/json", headers=headers)


def speaking(name: str, **attributes: Any) -> type[RerankServer]:
    """A good server in a dialect."""
    return type(f"{name.title()}Server", (RerankServer,), {"dialect": name, **attributes})


# --- one thing wrong -------------------------------------------------------------------------------------------------


class Constant(RerankServer):
    def score(self, query: str, document: str, instruction: str | None) -> float:
        return 0.5


class LabelsLost(RerankServer):
    def score(self, query: str, document: str, instruction: str | None) -> float:
        return judge(query, document) * 1e-20


class Inverted(RerankServer):
    def score(self, query: str, document: str, instruction: str | None) -> float:
        return 1 - judge(query, document)


class QueryDropped(RerankServer):
    counts = False

    def score(self, query: str, document: str, instruction: str | None) -> float:
        return noise(document)


class DocumentDropped(RerankServer):
    counts = False

    def score(self, query: str, document: str, instruction: str | None) -> float:
        return noise(query)


class QueryCutShort(RerankServer):
    """Scores are good as far as the check can see; the token counts give away that of a query little is read."""

    def tokens(self, query: str, document: str) -> int:
        return super().tokens(query[:1], document)


class TemplateMissing(RerankServer):
    """Generative, fed bare texts; whoever renders the prompt himself gets good scores."""

    counts = False

    def score(self, query: str, document: str, instruction: str | None) -> float:
        rendered = query.startswith("<|im_start|>") and document.endswith(("assistant\n", "</think>\n\n"))
        return judge(query, document) if rendered else 0.4 + 0.02 * noise(query, document)


class BareTokens(RerankServer):
    """The same, and its token counts say so too."""

    def score(self, query: str, document: str, instruction: str | None) -> float:
        return 0.4 + 0.02 * noise(query, document)

    def tokens(self, query: str, document: str) -> int:
        return super().tokens(query, document) - AROUND


class TemplateDoubled(RerankServer):
    def score(self, query: str, document: str, instruction: str | None) -> float:
        return 0.4 + 0.02 * noise(query, document)

    def tokens(self, query: str, document: str) -> int:
        return AROUND + super().tokens(query, document)


class TextsDoubled(RerankServer):
    def tokens(self, query: str, document: str) -> int:
        return AROUND + 2 * len(query.split()) + 2 * len(document.split())


class MinMax(RerankServer):
    def scores(self, query: str, documents: Sequence[str], instruction: str | None) -> list[float]:
        found = super().scores(query, documents, instruction)
        low, high = min(found), max(found)
        return [(score - low) / (high - low) if high > low else 1.0 for score in found]


class Softmax(RerankServer):
    def scores(self, query: str, documents: Sequence[str], instruction: str | None) -> list[float]:
        powers = [math.exp(5 * score) for score in super().scores(query, documents, instruction)]
        return [power / sum(powers) for power in powers]


class ByPlace(RerankServer):
    """Moves with the place in the request, from the second document on."""

    def scores(self, query: str, documents: Sequence[str], instruction: str | None) -> list[float]:
        found = super().scores(query, documents, instruction)
        return [score - 0.05 * min(place, 3) if score > 0.5 else score for place, score in enumerate(found)]


class Unsteady(RerankServer):
    def score(self, query: str, document: str, instruction: str | None) -> float:
        return judge(query, document) - 0.2 * random.random()


class PaddingRead(RerankServer):
    def scores(self, query: str, documents: Sequence[str], instruction: str | None) -> list[float]:
        longest = max(len(document) for document in documents)
        found = super().scores(query, documents, instruction)
        moved = 5000 < longest < LIMIT
        return [score / 2 if moved and len(doc) < 500 else score for score, doc in zip(found, documents, strict=True)]


class Rounded(RerankServer):
    def score(self, query: str, document: str, instruction: str | None) -> float:
        return round(judge(query, document), 2)


class SuffixLost(RerankServer):
    def score(self, query: str, document: str, instruction: str | None) -> float:
        return judge(query, document) if len(document) < LIMIT else 0.3 + 1e-5 * noise(document)


class LongFails(RerankServer):
    def refuses(self, query: str, documents: Sequence[str]) -> int | None:
        return 500 if any(len(document) > LIMIT for document in documents) else super().refuses(query, documents)


class CutUntold(RerankServer):
    dialect, owner = "prism", "prism"

    def cut(self, document: str) -> dict[str, Any]:
        return {}


class InstructionIgnored(RerankServer):
    dialect, owner = "vllm", "vllm"

    def score(self, query: str, document: str, instruction: str | None) -> float:
        return judge(query, document)


class BlankFails(RerankServer):
    def refuses(self, query: str, documents: Sequence[str]) -> int | None:
        return 500 if documents and not all(map(str.strip, documents)) else super().refuses(query, documents)


class BlankMoves(RerankServer):
    def scores(self, query: str, documents: Sequence[str], instruction: str | None) -> list[float]:
        blank = not all(map(str.strip, documents))
        return [score * (0.8 if blank else 1) for score in super().scores(query, documents, instruction)]


class ControlObeyed(RerankServer):
    def score(self, query: str, document: str, instruction: str | None) -> float:
        return 0.98 if document.endswith("\nyes") else judge(query, document)


class EmptyFails(RerankServer):
    empty_status = 500


class PlanesLost(RerankServer):
    def score(self, query: str, document: str, instruction: str | None) -> float:
        return math.nan if "𒀀" in document else judge(query, document)


class InBytes(RerankServer):
    dialect = "cohere"
    encoding, size = "utf-8", 1

    def spans(self, query: str, document: str) -> list[tuple[int, int]]:
        found = super().spans(query, document)
        return [(self._units(document[:start]), self._units(document[:end])) for start, end in found]

    def _units(self, text: str) -> int:
        return len(text.encode(self.encoding)) // self.size


class InUtf16(InBytes):
    encoding, size = "utf-16-le", 2


class OffByTwo(RerankServer):
    dialect = "cohere"

    def spans(self, query: str, document: str) -> list[tuple[int, int]]:
        return [(start + 1, end - 2) for start, end in super().spans(query, document)]


class AllReturned(RerankServer):
    def ranked(self, scores: Sequence[float], top_n: int | None) -> list[tuple[int, float]]:
        return super().ranked(scores, None)


class FirstReturned(RerankServer):
    """Cuts before it sorts."""

    def ranked(self, scores: Sequence[float], top_n: int | None) -> list[tuple[int, float]]:
        return sorted(list(enumerate(scores))[: top_n or None], key=lambda pair: -pair[1])


class RankAsIndex(RerankServer):
    def ranked(self, scores: Sequence[float], top_n: int | None) -> list[tuple[int, float]]:
        return [(rank, score) for rank, (_, score) in enumerate(super().ranked(scores, top_n))]


class FromOne(RerankServer):
    def ranked(self, scores: Sequence[float], top_n: int | None) -> list[tuple[int, float]]:
        return [(index + 1, score) for index, score in super().ranked(scores, top_n)]


class NoChinese(RerankServer):
    def score(self, query: str, document: str, instruction: str | None) -> float:
        asked = any(query == pair.query for pair in GOLDEN["zh"])
        return noise(query, document) * 0.05 if asked else judge(query, document)


class Broken(RerankServer):
    def refuses(self, query: str, documents: Sequence[str]) -> int | None:
        return 500
