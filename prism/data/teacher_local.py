"""Models on this machine as teachers: any reranker that Prism loads, a CrossEncoder, or an embedding model's cosine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from prism.retrieval.sentence_models import PairScorer, SentenceEncoder
from prism.text import stable_id

Kind = Literal["reranker", "cross-encoder", "embedding"]


class LocalTeacher(Protocol):
    """Scores pairs of query and document, in order."""

    name: str
    """What scores are filed under."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        """One score in [0, 1] per pair."""


def load_teacher(kind: Kind, model: str, device: str | None = None, template: str | None = None) -> LocalTeacher:
    """Load a directory, a model of the hub, or (kind `reranker`) whatever `Reranker.load` takes, with its `template`.

    Raises CheckpointError when it is not of that kind.
    """
    if kind == "reranker":
        return RerankerTeacher(model, device, template)
    return (CrossEncoderTeacher if kind == "cross-encoder" else EmbeddingTeacher)(model, device)


class RerankerTeacher:
    """The score of a yes/no model: taught to rerank, or a language model that only follows the template's question."""

    def __init__(self, model: str, device: str | None = None, template: str | None = None) -> None:
        from prism.reranker import Reranker

        # Not tested on loading: a model that was never taught to rerank may fail that and still know a lot.
        self._reranker = Reranker.load(model, template=template, device=device or "auto", self_test=False)
        self.name = _name("reranker", model) + (f" {template}" if template else "")

    def score(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        """NaN for a document that cannot be scored."""
        places: dict[str, list[int]] = {}
        for place, (query, _) in enumerate(pairs):
            places.setdefault(query, []).append(place)
        scores = [float("nan")] * len(pairs)
        for query, own in places.items():
            for judgment in self._reranker.rerank(query, [pairs[place][1] for place in own], evidence=False):
                if judgment.score is not None:
                    scores[own[judgment.index]] = judgment.score
        return scores


class CrossEncoderTeacher:
    """`sigmoid(logit)` of a cross-encoder."""

    def __init__(self, model: str, device: str | None = None) -> None:
        self.name = _name("cross-encoder", model)
        self._model = PairScorer(model, device=device)

    def score(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        return self._model.scores(pairs, len(pairs), sigmoid=True)


class EmbeddingTeacher:
    """`(1 + cosine) / 2` of an embedding model's vectors, with its own prompts for queries and documents."""

    def __init__(self, model: str, device: str | None = None) -> None:
        self.name = _name("embedding", model)
        self._encoder = SentenceEncoder(model, device)

    def score(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        distinct = {query: position for position, query in enumerate(dict.fromkeys(query for query, _ in pairs))}
        queries = self._encoder.queries(list(distinct))
        documents = self._encoder.documents([document for _, document in pairs])
        cosines = [
            float(queries[distinct[query]] @ vector) for (query, _), vector in zip(pairs, documents, strict=True)
        ]
        return [min(1.0, max(0.0, (1.0 + cosine) / 2.0)) for cosine in cosines]


def _name(kind: str, model: str) -> str:
    """Weights changed in place make another teacher."""
    folder = Path(model)
    weights = sorted(folder.rglob("*.safetensors")) if folder.is_dir() else []
    stamp = stable_id(*(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in weights))
    return f"{kind} {model} {stamp}" if weights else f"{kind} {model}"
