"""Systems that give an agent something to read in place of a document: Prism, and what it has to beat.

A system has a `name`, an `identity` (whatever decides its answers, so that kept ones are used only while it holds),
and `extract`, which turns one pair into an `Extract`. A pair that breaks says so in `failure`; the others go on.

HTTP pruners answer one pair at a time:

    POST <url>   {"query": "...", "document": "...", "title": "..." or null}
    200          {"evidence": "..."}    or  {"spans": [[start, end], ...]}, half-open code points of the document
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from prism.errors import InputError
from prism.evaluation.evidence_quality import Extract
from prism.evaluation.evidence_sets import Case
from prism.evidence.sentences import sentences
from prism.llm.failures import Stop, Undelivered
from prism.llm.http import Address, ask_now
from prism.retrieval.bm25 import Bm25
from prism.retrieval.sentence_models import MINILM, SentenceEncoder
from prism.text import UNSPACED
from prism.types import Document, EvidenceChoice, Judgment, Outcome

Ranker = Literal["bm25", "tfidf", "embedding"]
_RUN = re.compile(f"[{UNSPACED}]+")


class System(Protocol):
    """What is measured."""

    name: str

    @property
    def identity(self) -> str: ...

    def extract(self, case: Case) -> Extract: ...


class Judges(Protocol):
    """A reranker that gives evidence; `Reranker` fits."""

    def rerank(
        self, query: str, documents: list[Document], *, threshold: float | None, evidence: EvidenceChoice
    ) -> Iterable[Judgment]: ...


class Prism:
    """A checkpoint's evidence, from one source, asked for whatever the verdict: threshold 0."""

    def __init__(self, name: str, reranker: Judges, identity: str, evidence: EvidenceChoice = "auto") -> None:
        self.name = name
        self.identity = f"{identity} {evidence}"
        self._reranker, self._evidence = reranker, evidence

    def extract(self, case: Case) -> Extract:
        start = time.perf_counter()
        asked = self._reranker.rerank(case.query, [case.to_document()], threshold=0.0, evidence=self._evidence)
        judgment = next(iter(asked))
        outcome = Outcome.MALFORMED if judgment.error else judgment.outcome
        return Extract(
            evidence=judgment.evidence,
            contribution=judgment.contribution,
            outcome=outcome,
            generated=judgment.evidence_source == "written",
            failure=judgment.error,
            seconds=time.perf_counter() - start,
            spent=judgment.usage.prompt_tokens + judgment.usage.written_tokens,
        )


class WholeDocument:
    """Everything: what evidence is there to replace."""

    name = identity = "whole document"

    def extract(self, case: Case) -> Extract:
        return Extract(evidence=case.document)


class LeadSentences:
    """The first sentences: what a truncated document amounts to."""

    def __init__(self, sentences: int) -> None:
        self.name = self.identity = f"lead {sentences}"
        self._sentences = sentences

    def extract(self, case: Case) -> Extract:
        return _joined(case, range(self._sentences))


class BestSentences:
    """The sentences most like the query, in reading order. Ties go to the earlier sentence."""

    def __init__(self, ranker: Ranker, sentences: int, documents: Sequence[str] = (), embedder: str = MINILM) -> None:
        """`documents`: over whose sentences TF-IDF counts; BM25 and embeddings need none."""
        self.name = f"{ranker} {sentences}"
        self.identity = f"{self.name} {embedder if ranker == 'embedding' else len(documents)}"
        self._sentences = sentences
        self._scores = _RANKERS[ranker](documents, embedder)

    def extract(self, case: Case) -> Extract:
        start = time.perf_counter()
        texts = [case.document[low:high] for low, high in case.sentences()]
        scores = self._scores.score(case.query, texts)
        best = np.argsort(-scores, kind="stable")[: self._sentences]
        return _joined(case, sorted(int(index) for index in best), time.perf_counter() - start)


def _joined(case: Case, indices: Iterable[int], seconds: float = 0.0) -> Extract:
    borders = case.sentences()
    texts = [case.document[slice(*borders[index])] for index in indices if index < len(borders)]
    joiner = "" if _RUN.search(case.document[:200]) else " "
    return Extract(evidence=joiner.join(texts) or None, seconds=seconds)


# --- rankers ---------------------------------------------------------------------------------------------------------


class _ByBm25:
    def __init__(self, documents: Sequence[str], embedder: str) -> None:
        pass

    def score(self, query: str, texts: Sequence[str]) -> Any:
        scores = np.zeros(len(texts))
        try:
            found = Bm25(texts).search([query], len(texts))[0] if texts else []
        except InputError:  # not one word in the document
            found = []
        for index, score in found:
            scores[index] = score
        return scores


class _ByTfidf:
    """Cosine of TF-IDF vectors over words and pairs of words without English stop words, as VeriSci's baseline has it
    (allenai/scifact, `rationale_selection/tfidf.py`); idf over the sentences of all pairs' documents. Text without
    spaces between words counts by pairs of characters."""

    def __init__(self, documents: Sequence[str], embedder: str) -> None:
        self._documents = documents

    @cached_property
    def _vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        split = [text[low:high] for text in self._documents for low, high in sentences(text)]
        if not split:
            raise InputError("TF-IDF needs documents to count words in: got none")
        return TfidfVectorizer(stop_words="english", ngram_range=(1, 2), preprocessor=_spaced).fit(split)

    def score(self, query: str, texts: Sequence[str]) -> Any:
        if not texts:
            return np.zeros(0)
        similarities = self._vectorizer.transform(texts) @ self._vectorizer.transform([query]).T
        return similarities.toarray()[:, 0]


def _spaced(text: str) -> str:
    """`银比铜` -> ` 银比 比铜 `, and lower case."""

    def pairs(run: re.Match[str]) -> str:
        characters = run[0]
        return f" {' '.join(characters[i : i + 2] for i in range(max(1, len(characters) - 1)))} "

    return _RUN.sub(pairs, text.lower())


class _ByEmbedding:
    """Cosine of sentence embeddings."""

    def __init__(self, documents: Sequence[str], embedder: str) -> None:
        self._name = embedder

    @cached_property
    def _model(self) -> SentenceEncoder:
        from transformers.utils import logging

        logging.disable_progress_bar()
        return SentenceEncoder(self._name)

    def score(self, query: str, texts: Sequence[str]) -> Any:
        if not texts:
            return np.zeros(0)
        return np.asarray(self._model.documents(texts) @ self._model.queries([query])[0], dtype=float)


_RANKERS: dict[Ranker, Any] = {"bm25": _ByBm25, "tfidf": _ByTfidf, "embedding": _ByEmbedding}


# --- over HTTP -------------------------------------------------------------------------------------------------------


class HttpPruner:
    """Any pruner behind a small HTTP interface (see the module); passing troubles are retried."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        timeout_s: float = 60.0,
        attempts: int = 4,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import httpx

        self.name = name
        self.identity = f"{name} {url}"
        self._address = Address(url, None, attempts=attempts, longest_wait_s=30.0, check="--pruner")
        self._http, self._sleep = httpx.Client(timeout=timeout_s), sleep

    def extract(self, case: Case) -> Extract:
        start = time.perf_counter()
        asked = {"query": case.query, "document": case.document, "title": case.title}
        url = self._address.url
        try:
            body = ask_now(lambda: self._http.post(url, json=asked), lambda body: body, self._address, self._sleep)
            evidence = _read_answer(body, case.document)
        except (Undelivered, Stop, ValueError) as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            return Extract(evidence=None, outcome=Outcome.MALFORMED, failure=f"{self.name}: {why}")
        return Extract(evidence=evidence or None, seconds=time.perf_counter() - start)

    def close(self) -> None:
        self._http.close()


def _read_answer(body: object, document: str) -> str:
    """The evidence of an answer. Raises ValueError saying what was got and what was expected."""
    if isinstance(body, dict) and isinstance(body.get("evidence"), str):
        return str(body["evidence"])
    spans = body.get("spans") if isinstance(body, dict) else None
    if not isinstance(spans, list):
        raise ValueError("answered without `evidence` (a string) or `spans` (a list of [start, end])")
    return " ".join(document[low:high] for low, high in (_span(span, len(document)) for span in spans))


def _span(span: object, length: int) -> tuple[int, int]:
    if isinstance(span, list) and len(span) == 2 and all(type(offset) is int for offset in span):
        low, high = span
        if 0 <= low < high <= length:
            return low, high
    raise ValueError(f"answered the span {str(span)[:40]}: expected [start, end] with 0 <= start < end <= {length}")
