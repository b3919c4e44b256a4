"""Rerankers that are not ours, behind the interface of `prism.Reranker`: cross-encoders and embedding models.

A reranker is named on the command line by kind and name:

    mini, path/to/checkpoint, org/name      Prism, by any engine
    cross-encoder:PATH-OR-NAME              sentence-transformers' CrossEncoder
    dense:PATH-OR-NAME                      cosine similarity of sentence-transformers vectors
    cohere:MODEL, jina:MODEL, voyage:MODEL  a rerank service; MODEL@URL for one at another address
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from prism.errors import InputError
from prism.types import Document, Judgment, Usage

if TYPE_CHECKING:
    from prism.evaluation.ranking import QueryReranker
    from prism.retrieval.dense import Encoder

Kind = Literal["prism", "cross-encoder", "dense", "cohere", "jina", "voyage"]


class Reply(NamedTuple):
    """What a reranker answers here."""

    judgments: Sequence[Judgment]
    usage: Usage


class Spec(NamedTuple):
    """One reranker as named on the command line."""

    kind: Kind
    name: str
    url: str | None
    """Where the service is, when not at its usual address."""

    @property
    def column(self) -> str:
        """Its name in reports: the last part of a path or hub name."""
        return Path(self.name).name if self.kind in ("cohere", "jina", "voyage") else Path(self.name).resolve().name

    @property
    def is_service(self) -> bool:
        return self.kind in ("cohere", "jina", "voyage")


def parse_spec(text: str) -> Spec:
    """`kind:name[@url]`, or the bare name of a Prism checkpoint. Raises InputError when the name is missing."""
    kind, colon, rest = text.partition(":")
    if not colon or kind not in get_args(Kind):
        return Spec("prism", text, None)
    name, _, url = rest.partition("@") if kind in ("cohere", "jina", "voyage") else (rest, "", "")
    if "@" in url:
        raise InputError(f"--model {kind}:{name}@...: a key does not belong in an address: set it in the environment")
    if not name or (url and not url.startswith(("http://", "https://"))):
        raise InputError(f"--model {text!r}: expected {kind}:NAME, or {kind}:NAME@http://... for a service")
    return Spec(kind, name, url or None)  # type: ignore[arg-type]  # checked above


def parse_fields(text: str) -> dict[str, Any]:
    """A JSON object whose fields go into every request to a service. Raises InputError for anything else."""
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise InputError(f"--api-fields {text!r}: expected a JSON object such as '{{\"evidence\": false}}'")
    return fields


def load_spec(
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


def document_text(document: Document) -> str:
    """Title and text as one, for rerankers that know no title."""
    return f"{document.title}\n{document.text}" if document.title else document.text


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

    def rerank(self, query: str, documents: Sequence[Document], **_: object) -> Reply:
        pairs = [(query, document_text(document)) for document in documents]
        scores = self._model.predict(pairs, batch_size=self._batch_size, show_progress_bar=False)
        judgments = [Judgment(index=i, score=float(score), verdict=None) for i, score in enumerate(scores)]
        limit = self._model.max_seq_length
        ids = self._model.tokenizer([q for q, _ in pairs], [text for _, text in pairs])["input_ids"]
        tokens = sum(min(len(of_pair), limit or len(of_pair)) for of_pair in ids)
        return Reply(judgments, Usage(prompt_tokens=tokens))

    def close(self) -> None:
        """Nothing to close."""


class DenseReranker:
    """Candidates by cosine similarity: the baseline every reranker should beat."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def rerank(self, query: str, documents: Sequence[Document], **_: object) -> Reply:
        scores = self._encoder.documents([document_text(d) for d in documents]) @ self._encoder.queries([query])[0]
        judgments = [Judgment(index=i, score=float(score), verdict=None) for i, score in enumerate(scores)]
        return Reply(judgments, Usage())

    def close(self) -> None:
        """Nothing to close."""
