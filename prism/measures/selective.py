"""Answering only where one is confident: how often one is wrong then, and what can be promised about it.

Something is accepted when its confidence is at least a threshold. Coverage is the share that is accepted, risk the
share of the accepted that is wrong (El-Yaniv and Wiener 2010; Geifman and El-Yaniv 2017, arXiv:1705.08500). Equal
confidences are accepted together or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from prism.errors import InputError
from prism.types import Record

_Z = 1.959963984540054
"""Of 95 %, two-sided."""


class Point(Record):
    """What comes of accepting from `threshold` on."""

    threshold: float
    coverage: float
    accepted: int
    wrong: int
    risk: float
    low: float
    high: float
    """95 % Wilson interval of the risk."""


class Outcomes(NamedTuple):
    """Confidences [N] of some things and whether each was right [N]."""

    confidence: NDArray[np.float64]
    right: NDArray[np.bool_]


def outcomes(confidence: ArrayLike, right: ArrayLike) -> Outcomes:
    """Raises InputError for lengths that differ, nothing at all, or a confidence that is no number."""
    given, truth = np.asarray(confidence, dtype=np.float64), np.asarray(right).astype(bool)
    if given.ndim != 1 or given.shape != truth.shape or not len(given):
        raise InputError(f"expected as many outcomes as confidences, got shapes {given.shape} and {truth.shape}")
    if not np.isfinite(given).all():
        raise InputError(f"confidence {int(np.argmin(np.isfinite(given)))} is not a finite number")
    return Outcomes(given, truth)


def at_threshold(given: Outcomes, threshold: float) -> Point | None:
    """The point of one threshold; None where it accepts nothing."""
    accepted, wrong = _counts(given, threshold)
    return _point(threshold, accepted, wrong, len(given.confidence)) if accepted else None


def risk_coverage(given: Outcomes) -> tuple[Point, ...]:
    """The whole curve: a point for each distinct confidence, by rising coverage, up to accepting everything."""
    order = np.argsort(-given.confidence, kind="stable")
    ranked, wrong = given.confidence[order], np.cumsum(~given.right[order])
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    return tuple(_point(float(ranked[at]), int(at) + 1, int(wrong[at]), len(ranked)) for at in last)


def _point(threshold: float, accepted: int, wrong: int, total: int) -> Point:
    """With Wilson's interval (1927): (w + z^2/2 -+ z sqrt(w (n - w) / n + z^2/4)) / (n + z^2)."""
    half = _Z * math.sqrt(wrong * (accepted - wrong) / accepted + _Z**2 / 4)
    low, high = ((wrong + _Z**2 / 2 + side) / (accepted + _Z**2) for side in (-half, half))
    return Point(
        threshold=threshold,
        coverage=accepted / total,
        accepted=accepted,
        wrong=wrong,
        risk=wrong / accepted,
        low=max(0.0, low),
        high=min(1.0, high),
    )


def risk_area(given: Outcomes) -> float:
    """Mean risk over all coverages, lower is better: the area under the curve (Geifman et al. 2019, arXiv:1805.08206).

    Over the N thresholds that accept 1, 2, ... N; of equal confidences each has their expected share of wrong ones.
    """
    order = np.argsort(-given.confidence, kind="stable")
    confidence, wrong = given.confidence[order], (~given.right[order]).astype(np.float64)
    _, group = np.unique(-confidence, return_inverse=True)
    shared = (np.bincount(group, weights=wrong) / np.bincount(group))[group]
    return float((np.cumsum(shared) / np.arange(1, len(shared) + 1)).mean())


def at_coverages(points: Sequence[Point], coverages: Sequence[float]) -> tuple[Point, ...]:
    """For each coverage the first point of a curve that reaches it; a point that serves several is there once."""
    reached = [next((one for one in points if one.coverage >= coverage - 1e-12), points[-1]) for coverage in coverages]
    return tuple(dict.fromkeys(reached))


def upper_bound(wrong: int, accepted: int, error: float) -> float:
    """What the risk lies under with probability 1 - `error`: Clopper and Pearson (1934), one-sided; 1 without any."""
    if not 0 <= wrong <= accepted or not 0.0 < error < 1.0:
        raise InputError(
            f"expected 0 <= wrong <= accepted and an error between 0 and 1, got {wrong}, {accepted}, {error}"
        )
    return 1.0 if wrong == accepted else float(stats.beta.ppf(1.0 - error, wrong + 1, accepted - wrong))


def certify(tune: Outcomes, test: Outcomes, thresholds: Sequence[float], risk: float, error: float) -> float | None:
    """The lowest of `thresholds` for which `test` shows a risk of at most `risk`, None where it shows none.

    The promise fails with probability at most `error` over `test`, whose outcomes must be independent of each other and
    of `tune` and `thresholds`: Learn then Test (Angelopoulos et al. 2021, arXiv:2110.01052). Whether the risk at a
    threshold is greater is tested exactly, p = P(Bin(accepted, risk) <= wrong); one after the other, the most promising
    on `tune` first, up to the first that is not rejected at `error` (fixed sequence testing; the order as in
    Pareto testing, Laufer-Goldshtein et al. 2023, arXiv:2210.07913). The risk of the accepted does not grow
    with the threshold alone, so conformal risk control (arXiv:2208.02814), made for losses that do, does not apply.
    """
    if not (0.0 < risk < 1.0 and 0.0 < error < 1.0):
        raise InputError(f"a risk and its error lie between 0 and 1, got {risk} and {error}")
    scale = len(test.confidence) / len(tune.confidence)
    promising = sorted(
        dict.fromkeys(thresholds), key=lambda threshold: (_p_value(tune, threshold, risk, scale), threshold)
    )
    kept: list[float] = []
    for threshold in promising:
        if _p_value(test, threshold, risk) > error:
            break
        kept.append(threshold)
    return min(kept, default=None)


def _p_value(given: Outcomes, threshold: float, risk: float, scale: float = 1.0) -> float:
    """Of the hypothesis that the risk from `threshold` on is greater; `scale`: as if there were so much more data."""
    accepted, wrong = _counts(given, threshold)
    n = round(accepted * scale)
    return float(stats.binom.cdf(min(n, round(wrong * scale)), n, risk)) if n else 1.0


def _counts(given: Outcomes, threshold: float) -> tuple[int, int]:
    chosen = given.confidence >= threshold
    return int(chosen.sum()), int((chosen & ~given.right).sum())
