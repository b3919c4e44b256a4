"""Dense retrieval: texts as unit vectors by a sentence-transformers model, searched exactly.

Vectors live in a file (float32, row by row), named by a hash of the model and of every text, written as they are made:
a stopped run goes on with the first text it lacks, and no second run computes them again. Searching reads the file in
blocks, so memory holds one block, whatever the size of the corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from prism.errors import InputError
from prism.retrieval.sentence_models import Vectors

TEXTS_AT_ONCE = 1024
ROWS_AT_ONCE = 65_536
QUERIES_AT_ONCE = 256


class Encoder(Protocol):
    """Texts -> unit vectors [texts, dimensions]."""

    def queries(self, texts: Sequence[str]) -> Vectors: ...

    def documents(self, texts: Sequence[str]) -> Vectors: ...


class DenseIndex:
    """Documents by their position; equal scores in the order of positions."""

    def __init__(self, vectors: Vectors) -> None:
        """`vectors`: [documents, dimensions]; of a file, they are read as they are used."""
        self.vectors = vectors

    def search(self, queries: Vectors, k: int) -> list[list[tuple[int, float]]]:
        """For each query [dimensions] its `k` nearest (position, cosine), best first."""
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        found: list[list[tuple[int, float]]] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            found += self._search(queries[start : start + QUERIES_AT_ONCE], k)
        return found

    def _search(self, queries: Vectors, k: int) -> list[list[tuple[int, float]]]:
        best: list[tuple[NDArray[np.int64], Vectors]] = [
            (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)) for _ in queries
        ]
        for start in range(0, len(self.vectors), ROWS_AT_ONCE):
            scores_QR = queries @ np.asarray(self.vectors[start : start + ROWS_AT_ONCE]).T
            places = np.arange(start, start + scores_QR.shape[1])
            best = [_merge(kept, places, scores, k) for kept, scores in zip(best, scores_QR, strict=True)]
        return [[(int(p), float(s)) for p, s in zip(*of_query, strict=True)] for of_query in best]


class Dense:
    """Documents in memory, ranked by the cosine of an encoder's vectors: as `Bm25` is used."""

    def __init__(self, encoder: Encoder, documents: Iterable[str]) -> None:
        self._encoder, self._index = encoder, DenseIndex(encoder.documents(list(documents)))

    def search(self, queries: Sequence[str], k: int) -> list[list[tuple[int, float]]]:
        """See `DenseIndex.search`."""
        return self._index.search(self._encoder.queries(queries), k)


def _merge(
    kept: tuple[NDArray[np.int64], Vectors], places: NDArray[np.int64], scores: Vectors, k: int
) -> tuple[NDArray[np.int64], Vectors]:
    """The best k of both; earlier positions stand first and win ties."""
    all_places, all_scores = np.concatenate([kept[0], places]), np.concatenate([kept[1], scores])
    chosen = np.arange(len(all_scores))
    if len(all_scores) > k:
        chosen = np.flatnonzero(all_scores >= np.partition(all_scores, -k)[-k])
    order = chosen[np.lexsort((all_places[chosen], -all_scores[chosen]))][:k]
    return all_places[order], all_scores[order]


def build_index(
    texts: Callable[[], Iterator[str]],
    encoder: Encoder,
    identity: object,
    folder: Path,
    progress: Callable[[int], None] = lambda done: None,
    texts_at_once: int = TEXTS_AT_ONCE,
) -> DenseIndex:
    """Encode what `texts()` yields, called afresh for each pass, or what is missing in `folder`, then open it.

    `identity` tells the model from every other one. `progress` hears how many texts are done.
    """
    digest, count = hashlib.sha256(json.dumps(identity, default=str).encode()), 0
    for text in texts():
        content = text.encode("utf-8", errors="surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
        count += 1
    if count == 0:
        raise InputError("dense retrieval needs at least one document: got none")
    dimensions = encoder.documents([next(texts())]).shape[1]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest.hexdigest()[:16]}.{dimensions}.f32"
    done = path.stat().st_size // (4 * dimensions) if path.exists() else 0
    with path.open("ab") as file:
        file.truncate(done * 4 * dimensions)  # a row that was cut off when the program died
        rest = islice(texts(), done, None)
        while block := list(islice(rest, texts_at_once)):
            progress(done)
            file.write(np.ascontiguousarray(encoder.documents(block), dtype=np.float32).tobytes())
            file.flush()
            os.fsync(file.fileno())
            done += len(block)
    progress(done)
    return DenseIndex(np.memmap(path, dtype=np.float32, mode="r", shape=(count, dimensions)))
