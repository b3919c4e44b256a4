"""How far judges agree: chance-corrected coefficients, and what resampling the queries does to them.

Every coefficient here is a function of counts: of a confusion table for two judges, of a coincidence table for any
number. Counts of queries add up, so the tables are made once per query, and a bootstrap over queries is a weighted sum
of tables: thousands of samples cost one matrix product, where the usual packages would count every pair again for each.
Functions therefore take tables of shape [..., K, K] and return [...]; tests hold them against scikit-learn, statsmodels
and krippendorff. K categories have the values of their labels: distances are between labels, not between positions.

Pairs of one query are not independent, so intervals resample queries (Efron and Tibshirani 1993, percentile interval).
A coefficient that is not defined, because its expected disagreement is zero, is NaN: never 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prism.errors import InputError
from prism.types import Record

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Statistic: TypeAlias = Callable[[Floats], Floats]
"""Tables [..., K, K] -> values [...]."""
Weights = Literal["nominal", "linear", "quadratic"]
Level = Literal["nominal", "ordinal", "interval"]
SAMPLES = 2000
"""Bootstrap samples."""


class Estimate(Record):
    """A value with its 95 % interval over queries. None stands for not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "undefined"
        interval = "" if self.low is None or self.high is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


class Spread(Record):
    """How one coefficient varies from query to query; None where no query has it."""

    lowest: float | None = None
    quartile1: float | None = None
    median: float | None = None
    quartile3: float | None = None
    highest: float | None = None
    lowest_query: str | None = None
    highest_query: str | None = None
    undefined: int
    """Queries for which the coefficient is not defined, such as those where both judges gave one label throughout."""


# --- tables ----------------------------------------------------------------------------------------------------------


def categories(votes: Floats) -> Floats:
    """The labels that occur, ascending: [K]."""
    found: Floats = np.unique(votes[~np.isnan(votes)])
    return found


def confusion_tables(a_P: Floats, b_P: Floats, query_P: Integers, values_K: Floats) -> Floats:
    """Counts [Q, K, K] of (label of a, label of b) per query; pairs that either did not judge are left out.

    `query_P` counts from 0. Queries without a common pair have tables of zeros.
    """
    both = ~(np.isnan(a_P) | np.isnan(b_P))
    size = len(values_K)
    rows, columns = (np.searchsorted(values_K, votes[both]) for votes in (a_P, b_P))
    queries = int(query_P.max(initial=-1)) + 1
    flat = (query_P[both] * size + rows) * size + columns
    return np.bincount(flat, minlength=queries * size * size).reshape(queries, size, size).astype(np.float64)


def coincidence_tables(votes_PR: Floats, query_P: Integers, values_K: Floats) -> Floats:
    """Coincidences [Q, K, K] per query (Krippendorff 2011, "Computing Krippendorff's alpha-reliability", step C-2).

    A pair with m labels adds, for each ordered couple of them, 1 / (m - 1) to that couple's cell; a pair with fewer
    than two labels adds nothing.
    """
    queries = int(query_P.max(initial=-1)) + 1
    tables = np.zeros((queries, len(values_K), len(values_K)))
    for query in range(queries):
        votes = votes_PR[query_P == query]
        counts_PK = (votes[:, :, None] == values_K).sum(axis=1).astype(np.float64)
        labels_P = counts_PK.sum(axis=1)
        counts_PK, labels_P = counts_PK[labels_P > 1], labels_P[labels_P > 1]
        shares_PK = counts_PK / (labels_P - 1)[:, None]
        tables[query] = counts_PK.T @ shares_PK - np.diag(shares_PK.sum(axis=0))
    return tables


def binarise(tables: Floats, values_K: Floats, cut: float) -> Floats:
    """[..., K, K] -> [..., 2, 2]: labels below `cut` against labels from `cut` on."""
    side = np.stack([values_K < cut, values_K >= cut]).astype(np.float64)
    split: Floats = np.einsum("ik,...kl,jl->...ij", side, tables, side)
    return split


def cuts(values_K: Floats) -> list[int]:
    """Where the scale can be cut in two: every label but the lowest."""
    return [int(value) for value in values_K[1:]]


# --- two judges ------------------------------------------------------------------------------------------------------


def cohen_kappa(tables: Floats, values_K: Floats, weights: Weights = "nominal") -> Floats:
    """Cohen's kappa (1960), weighted (1968): 1 - sum(w * observed) / sum(w * expected).

    w is 0 on the diagonal and elsewhere 1 (nominal), the labels' distance (linear) or its square (quadratic); expected
    is the product of the margins.
    """
    distance = np.abs(values_K[:, None] - values_K[None, :])
    weight = {"nominal": (distance > 0).astype(np.float64), "linear": distance, "quadratic": distance**2}[weights]
    total = tables.sum(axis=(-2, -1))
    expected = tables.sum(axis=-1)[..., :, None] * tables.sum(axis=-2)[..., None, :]
    return 1 - _ratio((weight * tables).sum(axis=(-2, -1)) * total, (weight * expected).sum(axis=(-2, -1)))


def agreement_rate(tables: Floats, values_K: Floats, within: float = 0) -> Floats:
    """Share of pairs whose two labels differ by at most `within`."""
    near = np.abs(values_K[:, None] - values_K[None, :]) <= within
    return _ratio((near * tables).sum(axis=(-2, -1)), tables.sum(axis=(-2, -1)))


# --- any number of judges --------------------------------------------------------------------------------------------


def krippendorff_alpha(coincidences: Floats, values_K: Floats, level: Level = "nominal") -> Floats:
    """Krippendorff's alpha = 1 - (n - 1) * sum(o * d) / sum(n_c * n_k * d) over a coincidence table (2011, step D).

    d is 1 (nominal), the squared distance (interval), or for ordinal the square of the labels counted from c to k, each
    end by half. Handles missing labels; with two judges who judged everything this is alpha of their confusion table
    plus its transpose.
    """
    margin = coincidences.sum(axis=-1)
    if level == "ordinal":
        middle = np.cumsum(margin, axis=-1) - margin / 2
        distance = (middle[..., :, None] - middle[..., None, :]) ** 2
    else:
        apart = np.abs(values_K[:, None] - values_K[None, :])
        distance = (apart > 0).astype(np.float64) if level == "nominal" else apart**2
    expected = (margin[..., :, None] * margin[..., None, :] * distance).sum(axis=(-2, -1))
    observed = (coincidences * distance).sum(axis=(-2, -1))
    return 1 - _ratio((margin.sum(axis=-1) - 1) * observed, expected)


def fleiss_kappa(coincidences: Floats) -> Floats:
    """Fleiss' kappa (1971) = (P - Pe) / (1 - Pe), for pairs that every judge labelled.

    With m labels for each of N pairs, the coincidence table sums to N * m and its diagonal to N * m * P, so the mean
    agreement P is their ratio; Pe is the sum of the squared shares of the categories.
    """
    total = coincidences.sum(axis=(-2, -1))
    observed = _ratio(np.trace(coincidences, axis1=-2, axis2=-1), total)
    expected = (_ratio(coincidences.sum(axis=-1), total[..., None]) ** 2).sum(axis=-1)
    return 1 - _ratio(1 - observed, 1 - expected)


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / below, NaN where below is 0 (or so small that only rounding is left)."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    usable = np.abs(below) > 1e-12
    return np.where(
        usable, np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=usable), np.nan
    )


# --- intervals and spread --------------------------------------------------------------------------------------------


def resample(queries: int, samples: int = SAMPLES, seed: int = 0) -> Floats:
    """How often each query is drawn in each sample: [samples, queries], rows sum to `queries`."""
    if queries < 1 or samples < 1:
        raise InputError(f"cannot draw {samples} samples of {queries} queries: both must be at least 1")
    draws = np.random.default_rng(seed).multinomial(queries, np.full(queries, 1 / queries), size=samples)
    return draws.astype(np.float64)


def resampled(tables_Q: Floats, drawn_SQ: Floats, statistic: Statistic) -> Floats:
    """The statistic of each sample: per-query tables [Q, ...] added up as often as their query was drawn -> [S]."""
    return statistic(np.tensordot(drawn_SQ, tables_Q, axes=1))


def estimate(tables_Q: Floats, statistic: Statistic, drawn_SQ: Floats | None = None) -> Estimate:
    """The statistic of all queries together, with its interval when samples are given."""
    value = float(statistic(tables_Q.sum(axis=0)))
    if drawn_SQ is None or np.isnan(value):
        return Estimate(value=none_if_nan(value))
    low, high = interval(resampled(tables_Q, drawn_SQ, statistic))
    return Estimate(value=value, low=low, high=high)


def interval(samples_S: Floats, coverage: float = 0.95) -> tuple[float | None, float | None]:
    """Percentile interval; samples in which the statistic is not defined are left out, (None, None) if all are."""
    defined = samples_S[~np.isnan(samples_S)]
    if not len(defined):
        return None, None
    low, high = np.quantile(defined, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def spread(tables_Q: Floats, statistic: Statistic, queries: Sequence[str]) -> Spread:
    """The statistic query by query."""
    values = statistic(tables_Q)
    defined = np.flatnonzero(~np.isnan(values))
    if not len(defined):
        return Spread(undefined=len(queries))
    quartiles = np.quantile(values[defined], [0, 0.25, 0.5, 0.75, 1])
    ends = (defined[np.argmin(values[defined])], defined[np.argmax(values[defined])])
    return Spread(
        **dict(zip(("lowest", "quartile1", "median", "quartile3", "highest"), map(float, quartiles), strict=True)),
        lowest_query=queries[ends[0]],
        highest_query=queries[ends[1]],
        undefined=len(queries) - len(defined),
    )


def none_if_nan(value: float) -> float | None:
    """NaN, which JSON does not have, becomes None."""
    return None if np.isnan(value) else float(value)
