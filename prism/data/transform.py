"""The power transform that aligns a teacher with the 0.5 threshold: `score ** p`, fitted on labelled pairs.

A teacher separates yes from no at a threshold t of its own. `t ** p = 0.5` for `p = ln 0.5 / ln t`; the order of
scores does not change. The published Prism rerankers used p = 1.609, that is t = 0.65, for their teacher: another
teacher needs another p, so it is fitted here and never assumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from prism.errors import DataError
from prism.files.jsonl import Drops, Line, OnBad, Row, reject
from prism.types import Record

PUBLISHED_POWER = 1.609
"""For comparison in reports only."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class PowerFit(Record):
    """A fitted transform and how far it can be trusted."""

    power: float = Field(gt=0.0)
    threshold: float = Field(gt=0.0, lt=1.0)
    """Raw score that becomes 0.5."""
    pairs: int
    queries: int
    kappa: float
    """Cohen's kappa between labels and `score ** power >= 0.5`, on the pairs fitted on."""
    kappa_untransformed: float
    kappa_published: float
    """With p = 1.609."""
    interval: tuple[float, float]
    """95 % percentile bootstrap interval of the power, resampling queries."""


def fit_power(
    scores: Sequence[float], labels: Sequence[bool], queries: Sequence[str], *, samples: int = 500, seed: int = 0
) -> PowerFit:
    """The power whose 0.5 threshold agrees best with the labels: highest Cohen's kappa, midpoint of the best gap.

    Raises DataError when the labels hold one verdict only, a score is outside [0, 1], or the teacher separates nothing.
    """
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.bool_)
    if not len(score) or label.all() or not label.any():
        raise DataError(f"cannot fit a threshold on {len(score)} pairs with one verdict only: label some of the other")
    if not np.all((score >= 0.0) & (score <= 1.0)):
        raise DataError("teacher scores must lie in [0, 1]: score the pairs with --squash first")
    threshold = best_threshold(score, label)
    groups = _groups(queries)
    rng = np.random.default_rng(seed)
    powers = [power for power in (_resampled(score, label, groups, rng) for _ in range(samples)) if power is not None]
    low, high = np.quantile(powers, [0.025, 0.975]) if powers else (math.nan, math.nan)
    return PowerFit(
        power=power_of(threshold),
        threshold=threshold,
        pairs=len(score),
        queries=len(groups),
        kappa=kappa(label, score >= threshold),
        kappa_untransformed=kappa(label, score >= 0.5),
        kappa_published=kappa(label, score**PUBLISHED_POWER >= 0.5),
        interval=(float(low), float(high)),
    )


def read_fit(path: Path) -> PowerFit:
    """What `prism data fit --out` wrote. Raises DataError when the file is not that."""
    try:
        return PowerFit.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(f"{path}: not what `prism data fit --out` writes") from error


def power_of(threshold: float) -> float:
    """p with `threshold ** p == 0.5`."""
    if not 0.0 < threshold < 1.0:
        raise DataError(f"the best threshold is {threshold:g}: this teacher separates nothing at these labels")
    return math.log(0.5) / math.log(threshold)


def best_threshold(scores: Floats, labels: Bools) -> float:
    """Middle of the gap between two neighbouring scores at which `score >= threshold` has the highest kappa."""
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(labels[order])
    ends = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], False))  # cuts only between different scores
    if not len(ends):
        raise DataError(f"all teacher scores are {ranked[0]:g}: nothing to fit")
    total, positives = len(labels), int(hits[-1])
    true, chosen = hits[ends].astype(np.float64), ends + 1.0
    observed = (2 * true - chosen + total - positives) / total
    expected = (chosen * positives + (total - chosen) * (total - positives)) / total**2
    best = int(np.argmax((observed - expected) / (1.0 - expected)))
    return float((ranked[ends[best]] + ranked[ends[best] + 1]) / 2)


def kappa(a: Bools, b: Bools) -> float:
    """Cohen's kappa (1960) of two yes/no judges; 1 when both always say the same one thing."""
    observed = float(np.mean(a == b))
    p, q = float(np.mean(a)), float(np.mean(b))
    expected = p * q + (1 - p) * (1 - q)
    return 1.0 if expected == 1.0 else (observed - expected) / (1.0 - expected)


def transformed(lines: Iterable[Line], power: float, drops: Drops, on_bad: OnBad) -> Iterator[Row]:
    """The rows with `teacher_score ** power`; rows without a score pass as they are."""
    for place, row in lines:
        score = row.get("teacher_score")
        if score is not None and not (isinstance(score, int | float) and 0.0 <= score <= 1.0):
            error = DataError(f"{place}: teacher_score: expected a number in [0, 1], got {score!r:.40}")
            reject(error, place, drops, on_bad)
            continue
        yield row if score is None else {**row, "teacher_score": round(score**power, 6)}


def _groups(queries: Sequence[str]) -> list[NDArray[np.intp]]:
    _, inverse = np.unique(np.asarray(queries, dtype=object).astype(str), return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(inverse[order])) + 1)


def _resampled(
    score: Floats, label: Bools, groups: Sequence[NDArray[np.intp]], rng: np.random.Generator
) -> float | None:
    """The power on queries drawn with replacement; None where the draw cannot be fitted."""
    drawn = np.concatenate([groups[index] for index in rng.integers(0, len(groups), len(groups))])
    try:
        return power_of(best_threshold(score[drawn], label[drawn])) if 0 < label[drawn].sum() < len(drawn) else None
    except DataError:
        return None
