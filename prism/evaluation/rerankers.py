"""Rerankers that are not ours, behind the interface of `prism.Reranker`: cross-encoders and embedding models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prism.errors import InputError
from prism.evaluation.specs import Spec
from prism.text import titled
from prism.types import Document, Judgment, Usage

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
        from prism.evaluation.services import ServiceReranker

        return ServiceReranker(spec, cache, fields=fields)
    if spec.kind == "cross-encoder":
        return CrossEncoderReranker(spec.name, dtype)
    if spec.kind == "dense":
        from prism.retrieval.dense import SentenceEncoder

        return DenseReranker(SentenceEncoder(spec.name))
    from prism.reranker import Reranker

    settings: dict[str, Any] = {"engine": engine, "dtype": dtype, "template": template}
    return Reranker.load(spec.name, base_url=list(base_url) or None, **settings)


class CrossEncoderReranker:
    """A model of sentence-transformers' `CrossEncoder`. Scores are whatever the model's activation gives."""

    def __init__(self, name: str, dtype: str = "auto", batch_size: int = 32) -> None:
        from sentence_transformers import CrossEncoder

        settings: dict[str, Any] = {} if dtype == "auto" else {"model_kwargs": {"dtype": dtype}}
        try:
            self._model: Any = CrossEncoder(name, **settings)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load the cross-encoder {name!r} ({type(error).__name__}): expected a folder or a name on the"
                " hub that sentence-transformers can read"
            ) from error
        if getattr(self._model, "num_labels", 1) != 1:
            raise InputError(f"{name!r} gives {self._model.num_labels} numbers a pair: a reranker gives one")
        self._batch_size = batch_size

    def rerank(self, query: str, documents: Sequence[Document], **_: object) -> RerankerReply:
        pairs = [(query, titled(document.text, document.title)) for document in documents]
        scores = self._model.predict(pairs, batch_size=self._batch_size, show_progress_bar=False)
        judgments = [Judgment(index=i, score=float(score), verdict=None) for i, score in enumerate(scores)]
        limit = self._model.max_seq_length
        ids = self._model.tokenizer([q for q, _ in pairs], [text for _, text in pairs])["input_ids"]
        tokens = sum(min(len(of_pair), limit or len(of_pair)) for of_pair in ids)
        return RerankerReply(judgments, Usage(prompt_tokens=tokens))

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
