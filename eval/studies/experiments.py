"""Measuring an experiment on a search page with relevance labels: how good, how far off, how small an effect shows.

After "LLM-based Relevance Assessment for Web-Scale Search Evaluation at Pinterest" (arXiv:2509.03764). Where its
formulas are ambiguous or cannot hold as printed, the docstring says so and which reading is implemented.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from prism.errors import InputError
from prism.measures.statistics import Interval, adjust, constant
from prism.types import Qrels, Record, Run

# --- the measure -----------------------------------------------------------------------------------------------------


def sdcg(labels: Sequence[float], k: int, top: float = 5.0) -> float:
    """sDCG@K = sum of L_k / log2(1 + k) over sum of top / log2(1 + k), k = 1 … K; `labels` best rank first.

    The normaliser assumes unlimited documents with the best label, so it always runs to K: a query with fewer than K
    results cannot reach 1, however good they are. With labels from 1 to 5 the worst full page scores 1/5, not 0: all
    values sit in [0.2, 1] and relative effects look smaller than with labels from 0. A page that gains a useless result
    (label 1) scores higher than before.

    Raises InputError when a label lies outside [0, top] or k is below 1.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if strange := [label for label in labels if not 0.0 <= label <= top]:
        raise InputError(f"label {strange[0]} lies outside 0 to {top:g}: pass the scale's top label")
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    gains = np.asarray(labels[:k], dtype=np.float64)
    return float(gains @ discount[: len(gains)] / (top * discount.sum()))


def sdcg_of_run(labels: Qrels, run: Run, k: int, top: float = 5.0) -> dict[str, float]:
    """Query -> sDCG@K for the queries of the run whose first K documents are all labelled.

    An unlabelled document has no gain that could be guessed: its query is left out (compare the lengths to count).
    """
    values = {}
    for query, ranked in run.items():
        judged = labels.get(query, {})
        if ranked and all(document in judged for document in ranked[:k]):
            values[query] = sdcg([judged[document] for document in ranked[:k]], k, top)
    return values


# --- model labels against human labels -------------------------------------------------------------------------------


class ErrorSummary(Record):
    """Query-level errors: what model labels say minus what human labels say."""

    queries: int
    mean: float
    """Bias: it does not shrink with more queries."""
    p10: float
    median: float
    p90: float
    mean_absolute: float


def query_errors(model: Mapping[str, float], human: Mapping[str, float]) -> ErrorSummary:
    """Errors of one group of results: model value minus human value of each query both know."""
    queries = [query for query in human if query in model]
    if not queries:
        raise InputError("model and human labels share no query: are the ids the same?")
    return _summary([model[query] - human[query] for query in queries])


def paired_errors(
    model: tuple[Mapping[str, float], Mapping[str, float]], human: tuple[Mapping[str, float], Mapping[str, float]]
) -> ErrorSummary:
    """Errors of paired differences: (treatment - control by the model) minus (treatment - control by people).

    A bias that both groups share cancels here; it does not in `query_errors`.
    """
    queries = [q for q in human[0] if all(q in values for values in (human[1], *model))]
    if not queries:
        raise InputError("treatment and control share no query that model and people labelled: are the ids the same?")
    return _summary([(model[0][q] - model[1][q]) - (human[0][q] - human[1][q]) for q in queries])


def _summary(errors: Sequence[float]) -> ErrorSummary:
    p10, median, p90 = (float(p) for p in np.percentile(errors, [10, 50, 90]))
    return ErrorSummary(
        queries=len(errors),
        mean=math.fsum(errors) / len(errors),
        p10=p10,
        median=median,
        p90=p90,
        mean_absolute=math.fsum(map(abs, errors)) / len(errors),
    )


# --- effects ---------------------------------------------------------------------------------------------------------


def detectable_effect(
    mean: float,
    deviation: float,
    queries: int,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    correlation: float | None = None,
) -> float:
    """Minimum detectable effect, relative to the mean: (z_(1-alpha/2) + z_power) * sqrt(2 s^2 / n) / mean.

    As printed this is for two independent groups of `queries` each with equal variance, tested two-sided. `correlation`
    between the two values of one query makes it paired: sqrt(2 s^2 (1 - rho) / n); rho = 0 gives the printed form back.
    The printed z_beta must be the quantile of the power (0.84 for 80 %). Read with beta as the error of the second kind
    it is -0.84, and the "detectable" effect would be found one time in five.

    Raises InputError unless mean > 0, deviation >= 0, queries >= 2, alpha and power in (0, 1), correlation in [-1, 1].
    """
    rho = 0.0 if correlation is None else correlation
    if mean <= 0 or deviation < 0 or queries < 2 or not -1.0 <= rho <= 1.0:
        raise InputError(
            "the minimum detectable effect needs mean > 0, deviation >= 0, at least 2 queries and a correlation in"
            f" [-1, 1], got {mean}, {deviation}, {queries}, {rho}"
        )
    return detectable(math.sqrt(2.0 * deviation**2 * (1.0 - rho) / queries), alpha=alpha, power=power) / mean


def detectable(standard_error: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The absolute effect found with `power` by a two-sided test at `alpha`, whatever design gave the standard error.

    Leaves out the other tail (an effect in the wrong direction that comes out significant): under 1e-5 at 80 %.
    """
    if not (0.0 < alpha < 1.0 and 0.0 < power < 1.0):
        raise InputError(f"alpha and power lie between 0 and 1, got {alpha} and {power}")
    return float((stats.norm.ppf(1.0 - alpha / 2.0) + stats.norm.ppf(power)) * standard_error)


def power_at(effect: float, standard_error: float, alpha: float = 0.05) -> float:
    """Chance that a two-sided z-test at `alpha` finds an absolute effect: both tails counted."""
    shift, cut = effect / standard_error, stats.norm.ppf(1.0 - alpha / 2.0)
    return float(stats.norm.sf(cut - shift) + stats.norm.cdf(-cut - shift))


class SegmentEffect(Record):
    """Treatment minus control within one segment of the queries."""

    segment: str
    queries: int
    effect: float
    relative: float
    """Effect over the control's mean."""
    interval: Interval
    """95 %, t; not corrected for the number of segments."""
    p: float
    p_adjusted: float
    """Benjamini-Hochberg over the segments."""
    found: bool
    """p_adjusted <= level."""


def segment_effects(
    segments: Mapping[str, tuple[ArrayLike, ArrayLike]], level: float = 0.05
) -> tuple[SegmentEffect, ...]:
    """Effects per segment from its (treatment, control) values per query, paired; false discoveries kept under `level`.

    Raises InputError for a segment with fewer than two queries, or sides of different lengths.
    """
    rows = [_segment(name, np.asarray(a, np.float64), np.asarray(b, np.float64)) for name, (a, b) in segments.items()]
    adjusted = adjust([row.p for row in rows], "benjamini-hochberg")
    both = zip(rows, adjusted, strict=True)
    return tuple(row.model_copy(update={"p_adjusted": p, "found": p <= level}) for row, p in both)


def _segment(name: str, treatment: NDArray[np.float64], control: NDArray[np.float64]) -> SegmentEffect:
    if len(treatment) != len(control) or len(control) < 2:
        raise InputError(
            f"segment {name!r} needs at least 2 queries with both values, got {len(treatment)} and {len(control)}"
        )
    apart = treatment - control
    effect, base = float(apart.mean()), float(control.mean())
    low, high, p = effect, effect, float(abs(effect) < 1e-12)
    if not constant(apart):
        test = stats.ttest_1samp(apart, 0.0)
        low, high = (float(bound) for bound in test.confidence_interval(0.95))
        p = float(test.pvalue)
    return SegmentEffect(
        segment=name,
        queries=len(apart),
        effect=effect,
        relative=effect / base if base else math.nan,
        interval=Interval(low, high),
        p=p,
        p_adjusted=p,
        found=False,
    )
