"""Several rankings of one query made into one.

Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009) needs ranks only and no tuning; the weighted sum needs
comparable scores, so they are normalised per query, and a weight, which `fit_weight` takes from other queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, get_args

import numpy as np

from prism.errors import InputError
from prism.files.trec import by_score
from prism.measures.ranking import measure
from prism.types import Qrels

Scores = Mapping[str, float]
"""Document -> score, for one query."""
Method = Literal["rrf", "minmax", "zscore"]
RANK_CONSTANT: Final = 60
"""k of reciprocal rank fusion, as in the paper."""
WEIGHTS: Final = tuple(step / 20 for step in range(21))


def reciprocal_rank(runs: Sequence[Scores], constant: int = RANK_CONSTANT) -> dict[str, float]:
    """sum over runs of 1 / (constant + rank), ranks from 1; a document a run lacks gets nothing from it."""
    fused: dict[str, float] = {}
    for scores in runs:
        for rank, document in enumerate(by_score(scores), start=1):
            fused[document] = fused.get(document, 0.0) + 1.0 / (constant + rank)
    return fused


def weighted(first: Scores, second: Scores, weight: float, method: Method) -> dict[str, float]:
    """weight * first + (1 - weight) * second, after normalising each; a document one of them lacks is its last.

    `minmax` maps a query's scores to [0, 1], `zscore` to mean 0 and standard deviation 1. Scores that are all alike
    carry no information and become 0.
    """
    if not 0.0 <= weight <= 1.0:
        raise InputError(f"the weight of a fusion lies between 0 and 1, got {weight}")
    one, other = _normalised(first, method), _normalised(second, method)
    last, other_last = min(one.values(), default=0.0), min(other.values(), default=0.0)
    documents = {**one, **other}
    return {d: weight * one.get(d, last) + (1.0 - weight) * other.get(d, other_last) for d in documents}


def _normalised(scores: Scores, method: Method) -> dict[str, float]:
    values = np.fromiter(scores.values(), dtype=float, count=len(scores))
    if len(values) == 0 or np.ptp(values) == 0:
        return dict.fromkeys(scores, 0.0)
    moved = (values - values.min()) / np.ptp(values) if method == "minmax" else (values - values.mean()) / values.std()
    return dict(zip(scores, moved.tolist(), strict=True))


def fit_weight(
    qrels: Qrels, first: Mapping[str, Scores], second: Mapping[str, Scores], method: Method, name: str = "nDCG@10"
) -> float:
    """The weight in steps of 0.05 with the best measure over these queries; of equals the one closest to a half."""

    def value(weight: float) -> tuple[float, float]:
        fused = {q: by_score(weighted(first.get(q, {}), second.get(q, {}), weight, method)) for q in qrels}
        return round(measure(qrels, fused, [name])[name], 9), -abs(weight - 0.5)

    return max(WEIGHTS, key=value)


def parse_fusion(text: str) -> tuple[Method, tuple[str, ...]]:
    """`rrf:bm25+mini` -> method and the systems to fuse. Raises InputError for anything else."""
    method, _, names = text.partition(":")
    systems = tuple(name.strip() for name in names.split("+") if name.strip())
    known: Callable[[str], bool] = get_args(Method).__contains__
    if not known(method) or len(set(systems)) < 2 or len(set(systems)) != len(systems):
        raise InputError(f"--fuse {text!r}: expected rrf:A+B, minmax:A+B or zscore:A+B with names of systems")
    if method != "rrf" and len(systems) != 2:
        raise InputError(f"--fuse {text!r}: a weighted sum has two systems, got {len(systems)}: use rrf for more")
    return method, systems  # type: ignore[return-value]  # checked above
