"""Everything `prism agree` reports about a set of judges, computed from one table of labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations

import numpy as np

from prism.files.label_files import LabelTable
from prism.measures.agreement import (
    SAMPLES,
    Estimate,
    Floats,
    Level,
    Spread,
    Statistic,
    agreement_rate,
    binarise,
    categories,
    cohen_kappa,
    coincidence_tables,
    confusion_tables,
    cuts,
    estimate,
    fleiss_kappa,
    krippendorff_alpha,
    none_if_nan,
    resample,
    spread,
)
from prism.types import Record

LEVELS: tuple[Level, ...] = ("nominal", "ordinal", "interval")


class PairAgreement(Record):
    """One judge against the reference."""

    name: str
    pairs: int
    """Pairs both judged."""
    unlabelled: int
    """Pairs of the reference that this judge has no label for."""
    left_out: int
    """Pairs of this judge that the reference does not have."""
    kappa: Estimate
    kappa_linear: Estimate
    kappa_quadratic: Estimate
    kappa_binary: dict[int, Estimate]
    """Cut -> kappa of `label >= cut`."""
    alpha: dict[Level, Estimate]
    exact: Estimate
    within_one: Estimate
    by_query: Spread
    """Of nominal kappa."""
    confusion: tuple[tuple[int, ...], ...]
    """Rows: label of the reference; columns: label of this judge."""


class GroupAgreement(Record):
    """All judges together, the reference among them."""

    judges: int
    fleiss: Estimate
    complete_pairs: int
    """Pairs that everybody judged: what Fleiss' kappa is about."""
    alpha: dict[Level, Estimate]
    """Over every pair with at least two labels."""


class Agreement(Record):
    """The whole comparison."""

    reference: str
    names: tuple[str, ...]
    """Judges, the reference first."""
    labels: tuple[int, ...]
    """Labels that occur, ascending."""
    pairs: int
    queries: int
    samples: int
    """Bootstrap samples behind each interval; 0 means no intervals."""
    compared: tuple[PairAgreement, ...]
    kappa_matrix: tuple[tuple[float | None, ...], ...]
    """Nominal kappa of every two judges, in the order of `names`."""
    group: GroupAgreement


def compare_judges(
    table: LabelTable, samples: int = SAMPLES, seed: int = 0, progress: Callable[[int], None] = lambda done: None
) -> Agreement:
    """Compare every judge with the first, every two with each other, and all together.

    `samples=0` leaves the intervals out. `progress` hears how many judges are done.
    """
    values_K = categories(table.votes)
    drawn_SQ = resample(len(table.queries), samples, seed) if samples else None
    compared = []
    for judge in range(1, len(table.names)):
        compared.append(_against_reference(table, judge, values_K, drawn_SQ))
        progress(judge)
    return Agreement(
        reference=table.names[0],
        names=table.names,
        labels=tuple(int(value) for value in values_K),
        pairs=len(table.query_of),
        queries=len(table.queries),
        samples=samples,
        compared=tuple(compared),
        kappa_matrix=_kappa_matrix(table, values_K),
        group=_group(table, values_K, drawn_SQ),
    )


def two_judge_statistics(values_K: Floats) -> Mapping[str, Statistic]:
    """Name -> coefficient of a confusion table, for every coefficient that is reported for two judges."""
    statistics: dict[str, Statistic] = {
        "kappa": partial(cohen_kappa, values_K=values_K),
        "kappa_linear": partial(cohen_kappa, values_K=values_K, weights="linear"),
        "kappa_quadratic": partial(cohen_kappa, values_K=values_K, weights="quadratic"),
        "exact": partial(agreement_rate, values_K=values_K),
        "within_one": partial(agreement_rate, values_K=values_K, within=1),
    }
    return statistics


def binary_kappa(tables: Floats, values_K: Floats, cut: float) -> Floats:
    """Kappa of `label >= cut`."""
    return cohen_kappa(binarise(tables, values_K, cut), np.array([0.0, 1.0]))


def pair_alpha(tables: Floats, values_K: Floats, level: Level) -> Floats:
    """Krippendorff's alpha of a confusion table."""
    return krippendorff_alpha(tables + np.swapaxes(tables, -1, -2), values_K, level)


def _against_reference(table: LabelTable, judge: int, values_K: Floats, drawn_SQ: Floats | None) -> PairAgreement:
    tables = confusion_tables(table.votes[:, 0], table.votes[:, judge], table.query_of, values_K)
    estimates = {
        name: estimate(tables, statistic, drawn_SQ) for name, statistic in two_judge_statistics(values_K).items()
    }
    total = tables.sum(axis=0)
    return PairAgreement(
        name=table.names[judge],
        pairs=int(total.sum()),
        unlabelled=len(table.query_of) - int(total.sum()),
        left_out=table.left_out[judge],
        kappa_binary={
            cut: estimate(tables, partial(binary_kappa, values_K=values_K, cut=cut), drawn_SQ) for cut in cuts(values_K)
        },
        alpha={
            level: estimate(tables, partial(pair_alpha, values_K=values_K, level=level), drawn_SQ) for level in LEVELS
        },
        by_query=spread(tables, two_judge_statistics(values_K)["kappa"], table.queries),
        confusion=tuple(tuple(int(count) for count in row) for row in total),
        **estimates,
    )


def _kappa_matrix(table: LabelTable, values_K: Floats) -> tuple[tuple[float | None, ...], ...]:
    judges = len(table.names)
    matrix = np.ones((judges, judges))
    everything = np.zeros_like(table.query_of)  # one table for all queries: no interval is asked for
    for a, b in combinations(range(judges), 2):
        counts = confusion_tables(table.votes[:, a], table.votes[:, b], everything, values_K)
        matrix[a, b] = matrix[b, a] = cohen_kappa(counts[0], values_K)
    return tuple(tuple(none_if_nan(value) for value in row) for row in matrix)


def _group(table: LabelTable, values_K: Floats, drawn_SQ: Floats | None) -> GroupAgreement:
    complete = ~np.isnan(table.votes).any(axis=1)
    tables = coincidence_tables(table.votes, table.query_of, values_K)
    if complete.all():
        full = tables
    else:
        full = np.zeros_like(tables)
        kept = coincidence_tables(table.votes[complete], table.query_of[complete], values_K)
        full[: len(kept)] = kept
    return GroupAgreement(
        judges=len(table.names),
        fleiss=estimate(full, fleiss_kappa, drawn_SQ),
        complete_pairs=int(complete.sum()),
        alpha={
            level: estimate(tables, partial(krippendorff_alpha, values_K=values_K, level=level), drawn_SQ)
            for level in LEVELS
        },
    )
