"""Fitting `Answering`: logistic regression on features of a set's scores, the features chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prism.answering import Answering, Feature, features
from prism.errors import InputError
from prism.scoring import Calibration
from prism.types import Record

CANDIDATES: tuple[tuple[Feature, ...], ...] = (
    ("best",),
    ("any",),
    ("best", "second"),
    ("best", "any"),
    ("best", "second", "related"),
)
"""By rising complexity."""
FOLDS = 5


class ScoredSet(NamedTuple):
    """The scores of some documents for one question, and whether one of them answers it."""

    group: str
    """The question: its sets stay on one side of every split."""
    scores: tuple[float, ...]
    answered: bool


class FeatureFit(Record):
    """How well some features tell, cross-validated."""

    features: tuple[Feature, ...]
    log_loss: float
    """Mean over the sets of the folds, in nats; ln 2 is a coin's."""
    error: float
    """Standard error of the mean over questions."""


def fit_sets(sets: Sequence[ScoredSet], calibration: Calibration, names: Sequence[Feature]) -> Answering:
    """Raises InputError unless both kinds of sets occur, or when better documents make an answer no more probable."""
    labels = np.array([one.answered for one in sets])
    if not len(sets) or labels.all() or not labels.any():
        raise InputError(f"expected sets with and without an answer, got {int(labels.sum())} with of {len(sets)}")
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=100.0, max_iter=2000).fit(_matrix(sets, calibration, names), labels)
    weights = dict(zip(names, map(float, model.coef_[0]), strict=True))
    if not max(weights.get("best", 0.0), weights.get("any", 0.0)) > 0:
        raise InputError("sets with better documents do not answer more often: there is nothing to fit")
    return Answering(weights=weights, intercept=float(model.intercept_[0]), prior=float(labels.mean()), sets=len(sets))


def choose_features(sets: Sequence[ScoredSet], calibration: Calibration) -> tuple[Answering, tuple[FeatureFit, ...]]:
    """The fit of the fewest features within one standard error of the best, and how all did.

    One standard error: Breiman et al. (1984). Folds part questions, not sets. Raises InputError when nothing fits.
    """
    groups = sorted({one.group for one in sets})
    folds = {group: at % FOLDS for at, group in enumerate(groups)}
    found = [one for names in CANDIDATES if (one := _candidate(sets, calibration, names, folds))]
    if not found:
        raise InputError(f"no features of {len(sets)} sets of {len(groups)} questions tell whether they answer")
    best = min(found, key=lambda one: one.log_loss)
    simplest = next(one for one in found if one.log_loss <= best.log_loss + best.error)
    return fit_sets(sets, calibration, simplest.features), tuple(found)


def _candidate(
    sets: Sequence[ScoredSet], calibration: Calibration, names: tuple[Feature, ...], folds: dict[str, int]
) -> FeatureFit | None:
    losses: dict[str, list[float]] = {}
    for fold in range(FOLDS):
        inside = [one for one in sets if folds[one.group] != fold]
        try:
            fitted = fit_sets(inside, calibration, names)
        except InputError:
            return None
        for one in sets:
            if folds[one.group] == fold:
                p = fitted.probability(one.scores, calibration)
                losses.setdefault(one.group, []).append(-np.log(max(p if one.answered else 1 - p, 1e-12)))
    means = np.array([np.mean(each) for each in losses.values()])
    return FeatureFit(
        features=names, log_loss=float(means.mean()), error=float(means.std(ddof=1) / np.sqrt(len(means)))
    )


def _matrix(sets: Sequence[ScoredSet], calibration: Calibration, names: Sequence[Feature]) -> NDArray[np.float64]:
    rows = (features(one.scores, calibration) for one in sets)
    return np.array([[row[name] for name in names] for row in rows], dtype=np.float64)
