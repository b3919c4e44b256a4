"""What a ranking without any knowledge scores: the floor a reranker has to beat, in closed form."""

from __future__ import annotations

import math

from prism.types import Qrels, Run


def shuffled_ndcg(qrels: Qrels, run: Run, depth: int, cutoff: int = 10) -> float:
    """Expected nDCG@`cutoff` when the first `depth` candidates of every query are put in random order.

    Each of the n candidates is equally likely at every rank, so the expected gain at a rank is their mean gain g, and
    the expected DCG@k is g * sum(1 / log2(1 + rank)) over the first min(k, n) ranks. Below them, for n < k, the rest
    keeps its order. The ideal ranking has all judged documents. Queries the run lacks count as 0.
    """
    values = []
    for query, labels in qrels.items():
        ranked = run.get(query, ())
        shuffled = min(depth, len(ranked))
        gains = [max(0, labels.get(document, 0)) for document in ranked]
        mean = sum(gains[:shuffled]) / shuffled if shuffled else 0.0
        expected = [mean] * shuffled + gains[shuffled:]
        ideal = sorted((label for label in labels.values() if label > 0), reverse=True)
        best = _dcg(ideal, cutoff)
        values.append(_dcg(expected, cutoff) / best if best else 0.0)
    return math.fsum(values) / len(values)


def _dcg(gains: list[int] | list[float], cutoff: int) -> float:
    return math.fsum(gain / math.log2(1 + rank) for rank, gain in enumerate(gains[:cutoff], start=1))
