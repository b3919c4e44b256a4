"""Scores of a teacher that never saw our labels, made probabilities, and joined with the targets there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prism.errors import DataError

Numbers = NDArray[np.float64]
_LEAST = 20
"""Pairs of each verdict that a fit needs."""


def log_odds(scores: Sequence[float]) -> Numbers:
    """log(s / (1 - s)) of [pairs] scores in [0, 1]; 0 and 1 count as the nearest float32 scores that are neither."""
    tiny = float(np.finfo(np.float32).eps)
    clipped = np.clip(np.asarray(scores, dtype=np.float64), tiny, 1.0 - tiny)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def fitted(scores: Sequence[float], relevant: Sequence[bool]) -> tuple[float, float]:
    """(a, b) of P(relevant) = sigmoid(a * log-odds + b), by maximum likelihood (Platt 1999, "Probabilistic outputs for
    support vector machines").

    Raises DataError with fewer than 20 pairs of either verdict, or when the scores go against the verdicts.
    """
    from sklearn.linear_model import LogisticRegression

    least = min(sum(relevant), len(relevant) - sum(relevant))
    if least < _LEAST:
        raise DataError(f"calibrating a teacher needs {_LEAST} records of each verdict, got {least} of one")
    model = LogisticRegression(C=1e6).fit(log_odds(scores)[:, None], np.asarray(relevant))
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:
        raise DataError(f"the teacher's scores go against the verdicts (slope {slope:.3f}): it cannot teach them")
    return slope, intercept


def probabilities(scores: Sequence[float], fit: tuple[float, float]) -> Numbers:
    """P(relevant) for [pairs] scores."""
    slope, intercept = fit
    return np.asarray(1.0 / (1.0 + np.exp(-(slope * log_odds(scores) + intercept))))


def mixed(target: float | None, probability: float, share: float) -> float:
    """`share` of the teacher's probability and the rest of the target there was, to four digits."""
    joined = probability if target is None else (1.0 - share) * target + share * probability
    return round(min(max(joined, 0.001), 0.999), 4)
