"""What a score means: probabilities fitted on labelled pairs, how far to believe them, precision and recall at cuts.

Fitting is scikit-learn's; what is fitted is a `prism.scoring.Calibration`, applied without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from prism.errors import InputError
from prism.measures.agreement import Estimate
from prism.scoring import Calibration
from prism.types import Record

Method = Literal["isotonic", "platt"]
Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]
Counts = NDArray[np.int64]
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
    counts, hits, means = _binned(given, labels, bins)
    found = []
    for count, hit, mean in zip(counts.tolist(), hits.tolist(), means.tolist(), strict=True):
        interval = stats.binomtest(hit, count).proportion_ci(method="wilson")
        found.append(Bin(probability=mean, relevant=hit / count, low=interval.low, high=interval.high, pairs=count))
    return tuple(found)


def _binned(given: Floats, labels: Labels, bins: int) -> tuple[Counts, Counts, Floats]:
    """Of each bin that is not empty: how many pairs, how many relevant, the mean probability."""
    edges = np.unique(np.quantile(given, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf"))
    places = np.searchsorted(edges, given, side="left")
    counts = np.bincount(places)
    full = counts > 0
    hits = np.bincount(places, weights=labels)[full].astype(np.int64)
    return counts[full], hits, np.bincount(places, weights=given)[full] / counts[full]


def calibration_error(probabilities: ArrayLike, relevant: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error with bins of equal mass: sum n_b / N |share relevant - mean probability|.

    Naeini et al. (2015) with the adaptive bins of Nixon et al. (2019). Biased upwards: perfect probabilities have a
    positive error too, the more bins and the fewer pairs the larger (Roelofs et al. 2022).
    """
    given, labels = _pairs(probabilities, relevant)
    counts, hits, means = _binned(given, labels, bins)
    return float(np.abs(hits - counts * means).sum() / len(given))


class Quality(Record):
    """How far some probabilities are to be believed; 95 % intervals by resampling groups (queries)."""

    calibration_error: Estimate
    brier: Estimate
    reliability: tuple[Bin, ...]


def quality(
    probabilities: ArrayLike, relevant: ArrayLike, groups: Sequence[str], samples: int = 500, seed: int = 0
) -> Quality:
    """Errors of probabilities [N] whose pairs come in `groups` [N], with basic bootstrap intervals, 2 x - quantile.

    Basic (Davison and Hinkley 1997, eq. 5.6), since the calibration error of a resample is biased upwards once more,
    by which a percentile interval would lie above the estimate.
    """
    given, labels = _pairs(probabilities, relevant)
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    rows = [np.array(places) for places in members.values()]
    rng = np.random.default_rng(seed)
    draws = [np.concatenate([rows[at] for at in rng.integers(len(rows), size=len(rows))]) for _ in range(samples)]

    def estimate(measure: Callable[[Floats, Labels], float]) -> Estimate:
        value = measure(given, labels)
        low, high = np.quantile([measure(given[draw], labels[draw]) for draw in draws], [0.025, 0.975])
        return Estimate(value=value, low=max(0.0, 2 * value - float(high)), high=max(0.0, 2 * value - float(low)))

    return Quality(
        calibration_error=estimate(calibration_error),
        brier=estimate(brier),
        reliability=reliability(given, labels),
    )


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
    """Cuts worth a look: 0.5, best F1, best kappa (Cohen 1960, of being over the cut with being relevant), the lowest
    with 90 % precision and the highest with 90 % recall here."""
    given, labels = _pairs(scores, relevant)
    order = np.argsort(-given, kind="stable")
    ranked, hits = given[order], np.cumsum(labels[order])
    last = np.append(ranked[1:] != ranked[:-1], True)  # a cut takes all of equal scores, or none
    ranked, hits, taken = ranked[last], hits[last], np.flatnonzero(last) + 1
    precision, recall = hits / taken, hits / max(1, hits[-1])
    cuts = {"default": 0.5, "best F1": float(ranked[np.argmax(2 * hits / (taken + hits[-1]))])}
    wrong, missed = taken - hits, hits[-1] - hits
    kappa = kappa_of_counts(*(np.asarray(n, float) for n in (hits, wrong, missed, len(labels) - taken - missed)))
    cuts["best kappa"] = float(ranked[np.argmax(kappa)])
    if (precision >= 0.9).any():
        cuts["precision 0.9"] = float(ranked[np.flatnonzero(precision >= 0.9)[-1]])
    cuts["recall 0.9"] = float(ranked[np.flatnonzero(recall >= 0.9)[0]])
    return cuts


def kappa_of_counts(hits: Floats, wrong: Floats, missed: Floats, right_noes: Floats) -> Floats:
    """Cohen's kappa (1960) of verdicts with labels, (p_o - p_e) / (1 - p_e), for counts of any one shape: yes rightly,
    yes wrongly, no wrongly, no rightly. Where all is of one kind there is nothing to agree on: 0."""
    count, taken, relevant = hits + wrong + missed + right_noes, hits + wrong, hits + missed
    agreed = (hits + right_noes) / count
    expected = (taken * relevant + (count - taken) * (count - relevant)) / count**2
    kappa: Floats = np.divide(agreed - expected, 1 - expected, out=np.zeros_like(expected), where=expected < 1)
    return kappa


def _pairs(scores: ArrayLike, relevant: ArrayLike) -> tuple[Floats, Labels]:
    given, labels = np.asarray(scores, dtype=np.float64), np.asarray(relevant)
    if given.ndim != 1 or given.shape != labels.shape or not len(given):
        raise InputError(f"expected as many labels as scores, got shapes {given.shape} and {labels.shape}")
    if not ((given >= 0) & (given <= 1)).all():
        raise InputError(f"score {given[~((given >= 0) & (given <= 1))][0]} lies outside 0 to 1")
    return given, labels.astype(bool)
