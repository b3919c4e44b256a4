"""Rerankers that are not ours, behind the interface of `prism.Reranker`: cross-encoders and embedding models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prism.text import titled
from prism.types import Document, Judgment, Usage
from studies.specs import Spec

if TYPE_CHECKING:
    from prism.evaluation.reranking import QueryReranker
    from prism.retrieval.dense import Encoder


class RerankerReply(NamedTuple):
    """What a reranker answers here."""

    judgments: Sequence[Judgment]
    usage: Usage


def open_reranker(
    spec: Spec,
    *,
    engine: str,
    dtype: str,
    cache: Path,
    fields: Mapping[str, Any],
    base_url: Sequence[str] = (),
    template: str | None = None,
) -> QueryReranker:
    """Load a model, or prepare to ask a service, whose answers are kept in the file `cache`.

    `base_url`, `template`: where engine `openai` finds a Prism model, and the prompt of a checkpoint that carries none.
    """
    if spec.is_service:
        from studies.services import ServiceReranker

        return ServiceReranker(spec, cache, fields=fields)
    if spec.kind == "cross-encoder":
        return CrossEncoderReranker(spec.name, dtype)
    if spec.kind == "dense":
        from prism.retrieval.sentence_models import SentenceEncoder

        return DenseReranker(SentenceEncoder(spec.name))
    from prism.reranker import Reranker

    settings: dict[str, Any] = {"engine": engine, "dtype": dtype, "template": template}
    return Reranker.load(spec.name, base_url=list(base_url) or None, **settings)


class CrossEncoderReranker:
    """A cross-encoder of sentence-transformers. Scores are whatever the model's activation gives."""

    def __init__(self, name: str, dtype: str = "auto", batch_size: int = 32) -> None:
        from prism.retrieval.sentence_models import PairScorer

        self._model, self._batch_size = PairScorer(name, dtype=dtype), batch_size

    def rerank(self, query: str, documents: Sequence[Document], **_: object) -> RerankerReply:
        pairs = [(query, titled(document.text, document.title)) for document in documents]
        scores = self._model.scores(pairs, self._batch_size)
        judgments = [Judgment(index=i, score=score, verdict=None) for i, score in enumerate(scores)]
        return RerankerReply(judgments, Usage(prompt_tokens=self._model.tokens(pairs)))

    def close(self) -> None:
        """Nothing to close."""


class DenseReranker:
    """Candidates by cosine similarity: the baseline every reranker should beat."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def rerank(self, query: str, documents: Sequence[Document], **_: object) -> RerankerReply:
        scores = (
            self._encoder.documents([titled(d.text, d.title) for d in documents]) @ self._encoder.queries([query])[0]
        )
        judgments = [Judgment(index=i, score=float(score), verdict=None) for i, score in enumerate(scores)]
        return RerankerReply(judgments, Usage())

    def close(self) -> None:
        """Nothing to close."""
