"""Would other labels rank the systems otherwise? Rank correlations of systems measured against two sets of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from prism.errors import InputError
from prism.files.label_files import LabelFile
from prism.measures.agreement import SAMPLES, Estimate, Floats, interval, none_if_nan, resample
from prism.measures.ranking import measure_queries
from prism.types import Record, Run


class RankingAgreement(Record):
    """Systems under one judge's labels against the same systems under the reference's."""

    name: str
    measure: str
    systems: int
    queries: int
    """Queries that both judges have labels for."""
    tau: Estimate
    """Kendall's tau-b."""
    rho: Estimate
    """Spearman's rho."""
    scores: dict[str, tuple[float, float]]
    """System -> its mean under the reference and under this judge."""


def compare_rankings(
    files: Sequence[LabelFile], runs: Mapping[str, Run], measure: str = "nDCG@10", samples: int = SAMPLES, seed: int = 0
) -> tuple[RankingAgreement, ...]:
    """Each further label file against the first, which also decides which pairs count.

    Needs at least two systems. Labels below 0, which TREC uses for junk, count as 0.
    """
    if len(runs) < 2:
        raise InputError(f"a ranking of systems needs at least two run files, got {len(runs)}")
    reference = files[0]
    return tuple(_compare(reference, other, runs, measure, samples, seed) for other in files[1:])


def _compare(
    reference: LabelFile, other: LabelFile, runs: Mapping[str, Run], measure: str, samples: int, seed: int
) -> RankingAgreement:
    labelled = {place.query for place in reference.labels if place in other.labels}
    queries = [query for query in dict.fromkeys(place.query for place in reference.labels) if query in labelled]
    if not queries:
        raise InputError(f"{other.path} has no pair of {reference.path}: same queries and documents?")
    a_MQ, b_MQ = (_values(file, reference, runs, measure, queries) for file in (reference, other))
    a_M, b_M = a_MQ.mean(axis=1), b_MQ.mean(axis=1)
    tau, rho = (float(statistic(a_M, b_M)) for statistic in (kendall_tau_b, spearman_rho))
    bounds: list[tuple[float | None, float | None]] = [(None, None), (None, None)]
    if samples:
        drawn_SQ = resample(len(queries), samples, seed) / len(queries)
        drawn_a, drawn_b = drawn_SQ @ a_MQ.T, drawn_SQ @ b_MQ.T
        bounds = [interval(statistic(drawn_a, drawn_b)) for statistic in (kendall_tau_b, spearman_rho)]
    return RankingAgreement(
        name=other.name,
        measure=measure,
        systems=len(runs),
        queries=len(queries),
        tau=Estimate(value=none_if_nan(tau), low=bounds[0][0], high=bounds[0][1]),
        rho=Estimate(value=none_if_nan(rho), low=bounds[1][0], high=bounds[1][1]),
        scores={name: (float(a), float(b)) for name, a, b in zip(runs, a_M, b_M, strict=True)},
    )


def _values(
    file: LabelFile, reference: LabelFile, runs: Mapping[str, Run], measure: str, queries: Sequence[str]
) -> Floats:
    """[systems, queries]"""
    qrels: dict[str, dict[str, int]] = {query: {} for query in queries}
    for place in reference.labels:
        if place in file.labels and place.query in qrels:
            qrels[place.query][place.document] = max(0, file.labels[place])
    rows = []
    for run in runs.values():
        of_query = measure_queries(qrels, run, [measure])[measure]
        rows.append([of_query[query] for query in queries])
    return np.array(rows, dtype=np.float64)


def kendall_tau_b(a: Floats, b: Floats) -> Floats:
    """Kendall's tau-b (1945) along the last axis: [..., M] -> [...]; NaN where one side ties throughout.

    `scipy.stats.kendalltau` for many samples at once. Means that differ by less than 1e-12 tie: sums in another order.
    """
    first, second = (np.sign(_apart(scores)) for scores in (a, b))
    both = (first * second).sum(axis=(-2, -1))
    spreads = np.sqrt((first**2).sum(axis=(-2, -1)) * (second**2).sum(axis=(-2, -1)))
    found: Floats = np.divide(both, spreads, out=np.full(np.shape(both), np.nan), where=spreads > 0)
    return found


def _apart(scores: Floats) -> Floats:
    apart = scores[..., :, None] - scores[..., None, :]
    return np.where(np.abs(apart) < 1e-12, 0.0, apart)


def spearman_rho(a: Floats, b: Floats) -> Floats:
    """Spearman's rho along the last axis, Pearson's correlation of mean ranks; NaN where one side ties throughout."""
    first, second = (stats.rankdata(np.round(scores, 12), axis=-1) for scores in (a, b))
    first, second = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (first, second))
    spreads = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
    both = (first * second).sum(axis=-1)
    found: Floats = np.divide(both, spreads, out=np.full(np.shape(both), np.nan), where=spreads > 0)
    return found
