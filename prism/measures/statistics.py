"""Is the difference real? Bootstrap intervals, paired comparisons over queries, corrections for many comparisons.

The one place for the bootstrap over queries: resampling is scipy's, vectorised, 10,000 samples unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy import stats

from prism.errors import InputError
from prism.types import Record

SAMPLES = 10_000
"""Bootstrap samples."""
Correction = Literal["holm", "benjamini-hochberg"]
_NAMES: Mapping[Correction, str] = {"holm": "holm", "benjamini-hochberg": "fdr_bh"}
_AT_ONCE = 1 << 23
"""Values drawn at once: 64 MiB of positions."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Paired(Record):
    """`ours` against `other` on the same queries."""

    queries: int = Field(ge=2)
    ours: float
    other: float
    difference: float
    """Mean of ours - other."""
    interval: Interval
    """Of the difference: percentile bootstrap over queries."""
    p_bootstrap: float
    """Two-sided, by the bootstrap shifted to a difference of zero."""
    p_t: float
    """Two-sided paired t-test."""


def bootstrap_means(values: ArrayLike, samples: int = SAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Means of `samples` resamples of `values` [N], drawn with replacement: [samples].

    Raises InputError for fewer than two values, or one that is not finite.
    """
    given = _finite(values)
    return _bootstrap(given, samples, seed, 0.95)[1]


def mean_interval(values: ArrayLike, *, confidence: float = 0.95, samples: int = SAMPLES, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the mean of `values` [N] (Efron and Tibshirani 1993, section 13.3).

    Values that are all alike have an interval without width. Raises InputError for fewer than two values.
    """
    return _bootstrap(_finite(values), samples, seed, confidence)[0]


def compare_paired(
    ours: ArrayLike, other: ArrayLike, *, confidence: float = 0.95, samples: int = SAMPLES, seed: int = 0
) -> Paired:
    """Values of one measure [N] per query under two systems, in the same order of queries.

    The bootstrap p-value moves the resampled differences to mean zero and counts how often they are as far from it as
    the observed difference (Efron and Tibshirani 1993, section 16.4), with one added above and below so that it is
    never zero (Davison and Hinkley 1997, eq. 4.11). Raises InputError when the lengths differ.
    """
    first, second = _finite(ours), _finite(other)
    if len(first) != len(second):
        raise InputError(
            f"a paired comparison needs the same queries on both sides, got {len(first)} and {len(second)}"
        )
    apart = first - second
    interval, means = _bootstrap(apart, samples, seed, confidence)
    difference = float(apart.mean())
    far = int((np.abs(means - difference) >= abs(difference) * (1 - 1e-12)).sum())
    p_t = float(abs(difference) < 1e-12) if constant(apart) else float(stats.ttest_1samp(apart, 0.0).pvalue)
    return Paired(
        queries=len(apart),
        ours=float(first.mean()),
        other=float(second.mean()),
        difference=difference,
        interval=interval,
        p_bootstrap=(1 + far) / (1 + len(means)),
        p_t=p_t,
    )


def adjust(p_values: Sequence[float], correction: Correction) -> list[float]:
    """p-values corrected for being looked at together, in the same order.

    `holm` bounds the chance of any false discovery (Holm 1979), `benjamini-hochberg` the expected share of false ones
    among the discoveries (Benjamini and Hochberg 1995); both through statsmodels.
    """
    if not p_values:
        return []
    if strange := [p for p in p_values if not 0.0 <= p <= 1.0]:
        raise InputError(f"a p-value lies between 0 and 1, got {strange[0]}")
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(list(p_values), method=_NAMES[correction])[1]]


def constant(values: NDArray[np.float64]) -> bool:
    """All alike, but for rounding: such values have no spread to test against."""
    return bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1 or len(given) < 2:
        raise InputError(f"statistics over queries need a list of at least two values, got shape {given.shape}")
    if not np.isfinite(given).all():
        raise InputError(f"value {int(np.argmin(np.isfinite(given)))} is not a finite number: leave such queries out")
    return given


def _bootstrap(
    values: NDArray[np.float64], samples: int, seed: int, confidence: float
) -> tuple[Interval, NDArray[np.float64]]:
    mean = float(values.mean())
    if constant(values):
        return Interval(mean, mean), np.full(samples, mean)
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=samples,
        batch=max(1, _AT_ONCE // len(values)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    return Interval(float(low), float(high)), found.bootstrap_distribution
