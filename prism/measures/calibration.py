"""What a score means: probabilities fitted on labelled pairs, how far to believe them, precision and recall at cuts.

Fitting is scikit-learn's; what is fitted is a `prism.scoring.Calibration`, applied without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from prism.errors import InputError
from prism.scoring import Calibration
from prism.types import Record

Method = Literal["isotonic", "platt"]
Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]
BINS = 15


def fit(scores: ArrayLike, relevant: ArrayLike, method: Method = "isotonic") -> Calibration:
    """Fit on scores [N] in [0, 1] and labels [N].

    isotonic: the best growing function (Zadrozny and Elkan 2002); needs some hundred pairs. platt: a logistic curve
    over logit(score) (Platt 1999, without his smoothed targets). Raises InputError unless both labels occur, or when
    higher scores are not more often relevant.
    """
    given, labels = _pairs(scores, relevant)
    if labels.all() or not labels.any():
        raise InputError(f"calibration needs relevant and irrelevant pairs, got {int(labels.sum())} of {len(labels)}")
    if method == "platt":
        return _platt(given, labels)
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(given, labels)
    knots = tuple(zip(fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist(), strict=True))
    if len({y for _, y in knots}) == 1:
        raise InputError("higher scores are not more often relevant: there is nothing to calibrate")
    return Calibration(method="isotonic", knots=knots, prior=float(labels.mean()), pairs=len(labels))


def _platt(scores: Floats, labels: Labels) -> Calibration:
    from sklearn.linear_model import LogisticRegression

    bounded = np.clip(scores, 1e-12, 1 - 1e-12)
    model = LogisticRegression(C=1e6, max_iter=1000).fit(np.log(bounded / (1 - bounded))[:, None], labels)
    slope = float(model.coef_[0, 0])
    if slope <= 0:
        raise InputError(
            f"higher scores are not more often relevant (slope {slope:.3g}): there is nothing to calibrate"
        )
    return Calibration(
        method="platt",
        slope=slope,
        intercept=float(model.intercept_[0]),
        prior=float(labels.mean()),
        pairs=len(labels),
    )


class Bin(Record):
    """Pairs with about the same probability."""

    probability: float
    """Mean of what was said."""
    relevant: float
    """Share that is."""
    low: float
    high: float
    """95 % Wilson interval of the share."""
    pairs: int


def reliability(probabilities: ArrayLike, relevant: ArrayLike, bins: int = BINS) -> tuple[Bin, ...]:
    """Bins of equal mass, as far as ties allow: pairs with one probability share a bin, whatever their order."""
    given, labels = _pairs(probabilities, relevant)
    edges = np.unique(np.quantile(given, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf"))
    places = np.searchsorted(edges, given, side="left")
    found = []
    for place in np.unique(places):
        chosen = places == place
        hits, count = int(labels[chosen].sum()), int(chosen.sum())
        interval = stats.binomtest(hits, count).proportion_ci(method="wilson")
        mean = float(given[chosen].mean())
        found.append(Bin(probability=mean, relevant=hits / count, low=interval.low, high=interval.high, pairs=count))
    return tuple(found)


def calibration_error(probabilities: ArrayLike, relevant: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error with bins of equal mass: sum n_b / N |share relevant - mean probability|.

    Naeini et al. (2015) with the adaptive bins of Nixon et al. (2019). Biased upwards: perfect probabilities have a
    positive error too, the more bins and the fewer pairs the larger (Roelofs et al. 2022).
    """
    found = reliability(probabilities, relevant, bins)
    total = sum(one.pairs for one in found)
    return sum(one.pairs / total * abs(one.relevant - one.probability) for one in found)


def brier(probabilities: ArrayLike, relevant: ArrayLike) -> float:
    """Mean squared error of the probabilities (Brier 1950)."""
    given, labels = _pairs(probabilities, relevant)
    return float(((given - labels) ** 2).mean())


class Cut(Record):
    """What comes of calling every score from here on relevant."""

    score: float
    precision: float | None
    """None when nothing passes."""
    recall: float
    passing: float
    """Share of all pairs."""
    posterior: float
    """Probability of relevance at exactly this score."""


def at_cuts(
    scores: ArrayLike, relevant: ArrayLike, cuts: Sequence[float], calibration: Calibration, prior: float | None = None
) -> tuple[Cut, ...]:
    """Precision, recall and posterior at each cut, where `prior` of the documents are relevant (default: as given).

    Recall and the share of irrelevant documents that pass do not depend on the prior; precision follows from them by
    Bayes: prior * recall / (prior * recall + (1 - prior) * false positive rate). Raises InputError unless both labels
    occur.
    """
    given, labels = _pairs(scores, relevant)
    if labels.all() or not labels.any():
        raise InputError("precision and recall need relevant and irrelevant pairs")
    now = float(labels.mean()) if prior is None else prior
    found = []
    for cut in cuts:
        recall, fallout = float((given[labels] >= cut).mean()), float((given[~labels] >= cut).mean())
        passing = now * recall + (1 - now) * fallout
        precision = now * recall / passing if passing else None
        posterior = calibration.probability(cut, now)
        found.append(Cut(score=cut, precision=precision, recall=recall, passing=passing, posterior=posterior))
    return tuple(found)


def propose_cuts(scores: ArrayLike, relevant: ArrayLike) -> dict[str, float]:
    """Cuts worth a look: 0.5, best F1, the lowest with 90 % precision and the highest with 90 % recall here."""
    given, labels = _pairs(scores, relevant)
    order = np.argsort(-given, kind="stable")
    ranked, hits = given[order], np.cumsum(labels[order])
    last = np.append(ranked[1:] != ranked[:-1], True)  # a cut takes all of equal scores, or none
    ranked, hits, taken = ranked[last], hits[last], np.flatnonzero(last) + 1
    precision, recall = hits / taken, hits / max(1, hits[-1])
    cuts = {"default": 0.5, "best F1": float(ranked[np.argmax(2 * hits / (taken + hits[-1]))])}
    if (precision >= 0.9).any():
        cuts["precision 0.9"] = float(ranked[np.flatnonzero(precision >= 0.9)[-1]])
    cuts["recall 0.9"] = float(ranked[np.flatnonzero(recall >= 0.9)[0]])
    return cuts


def _pairs(scores: ArrayLike, relevant: ArrayLike) -> tuple[Floats, Labels]:
    given, labels = np.asarray(scores, dtype=np.float64), np.asarray(relevant)
    if given.ndim != 1 or given.shape != labels.shape or not len(given):
        raise InputError(f"expected as many labels as scores, got shapes {given.shape} and {labels.shape}")
    if not ((given >= 0) & (given <= 1)).all():
        raise InputError(f"score {given[~((given >= 0) & (given <= 1))][0]} lies outside 0 to 1")
    return given, labels.astype(bool)
