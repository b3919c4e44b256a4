"""What a panel is worth: aggregation and sequential asking on recorded votes, measured against people.

Everything learnt from people is judged by leaving one query out; intervals and paired differences come from one set of
bootstrap samples of the queries, so that two methods are always compared on the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations

import numpy as np

from prism.errors import InputError
from prism.files.label_files import LabelTable
from prism.labeling import sequential
from prism.measures.agreement import (
    SAMPLES,
    Estimate,
    Floats,
    Integers,
    cohen_kappa,
    confusion_tables,
    estimate,
    interval,
    none_if_nan,
    resample,
    resampled,
)
from prism.types import Record, Verdict
from studies import aggregation
from studies.aggregation import Booleans

BINARY = np.array([0.0, 1.0])
BOUNDS = (0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
"""Posterior bounds tried."""
SEED_QUERIES = (1, 2, 5, 10, 20)
"""Sizes of the human seed tried, in queries."""
SEED_DRAWS = 40
"""Random seeds of each size."""
NO_SEED = f"{aggregation.DEFAULT}, no seed"


class Judged(Record):
    """One way to label, against people."""

    name: str
    learns_from: str
    """nobody, votes (of all queries, no human label) or people (of the other queries)."""
    kappa: Estimate
    minus_majority: Estimate
    """Difference of kappa, paired over the same resampled queries."""
    minus_best_juror: Estimate
    minus_default: Estimate
    """Difference to what `studies.aggregation.aggregate` does unless told otherwise."""


class Asked(Record):
    """One stop rule, against asking everybody."""

    name: str
    order: str
    """given, or reversed: a control for how much hangs on who is asked first."""
    bound: float | None
    saved: float
    """Share of the calls not made."""
    same_verdict: float
    """Share of pairs with the whole panel's majority verdict."""
    kappa: Estimate
    """Against people."""
    minus_majority: Estimate
    """Difference to the whole panel's majority, paired."""


class Seeded(Record):
    """One way to use a human seed of some size."""

    name: str
    queries: int
    draws: int
    """Random seeds that held both kinds of pairs."""
    median: float | None
    low: float | None
    high: float | None
    """Of kappa minus the majority's on the queries outside the seed: median and 5 % and 95 % quantiles over draws."""


class Orders(Record):
    """Share of calls saved by the exact rule, over every order of asking."""

    given: float
    lowest: float
    highest: float
    highest_order: tuple[str, ...]


class PanelStudy(Record):
    """One panel at one cut."""

    jurors: tuple[str, ...]
    cut: int
    pairs: int
    queries: int
    samples: int
    positives: int
    """Pairs that people label `>= cut`."""
    single: dict[str, Estimate]
    """Each juror alone."""
    judged: tuple[Judged, ...]
    asked: tuple[Asked, ...]
    orders: Orders
    seeded: tuple[Seeded, ...]


class Setting:
    """Votes, truth and the samples everything is compared on."""

    def __init__(
        self, table: LabelTable, jurors: Sequence[str], cut: int, samples: int = SAMPLES, seed: int = 0
    ) -> None:
        self.votes_PR = table.columns(jurors)
        people_P = table.columns(table.names[:1])[:, 0]
        self.truth_P: Booleans = people_P >= cut
        self.query_P: Integers = table.query_of
        self.jurors, self.cut = tuple(jurors), cut
        self.queries = len(table.queries)
        self.drawn_SQ = resample(self.queries, samples, seed)
        if self.queries < 2 or self.truth_P.all() or not self.truth_P.any():
            raise InputError(
                f"{self.queries} queries with {int(self.truth_P.sum())} of {len(self.truth_P)} pairs >= {cut}: leaving"
                " one query out needs two queries and pairs of both kinds"
            )

    def tables(self, verdicts_P: Floats) -> Floats:
        """[Q, 2, 2] people against verdicts."""
        return confusion_tables(self.truth_P.astype(np.float64), verdicts_P, self.query_P, BINARY)

    def kappa(self, verdicts_P: Floats) -> Estimate:
        return estimate(self.tables(verdicts_P), _kappa, self.drawn_SQ)

    def difference(self, ours_P: Floats, other_P: Floats) -> Estimate:
        """Kappa of ours minus kappa of other."""
        ours, other = self.tables(ours_P), self.tables(other_P)
        samples = resampled(ours, self.drawn_SQ, _kappa) - resampled(other, self.drawn_SQ, _kappa)
        low, high = interval(samples)
        return Estimate(
            value=none_if_nan(float(_kappa(ours.sum(axis=0)) - _kappa(other.sum(axis=0)))), low=low, high=high
        )


def _kappa(tables: Floats) -> Floats:
    return cohen_kappa(tables, BINARY)


def study_panel(
    table: LabelTable,
    jurors: Sequence[str],
    cut: int,
    *,
    crowd: Sequence[str] = ("dawid-skene", "dawid-skene-graded", "one-coin", "kos", "mmsr"),
    thresholds: Sequence[float] = (),
    samples: int = SAMPLES,
    seed: int = 0,
    say: Callable[[str], None] = lambda what: None,
) -> PanelStudy:
    """Study one panel; `table`'s first judge is the people. `jurors` stand in the order they are asked.

    `thresholds` are further fixed cuts of the mean grade. `say` hears what is being computed.
    """
    setting = Setting(table, jurors, cut, samples, seed)
    say("aggregation")
    verdicts = dict(_verdicts(setting, crowd, thresholds, say))
    base, best = verdicts["majority"][1], verdicts["best juror"][1]
    default = aggregation.aggregate(setting.votes_PR, cut)[0]
    judged = tuple(
        Judged(
            name=name,
            learns_from=learns_from,
            kappa=setting.kappa(labels_P),
            minus_majority=setting.difference(labels_P, base),
            minus_best_juror=setting.difference(labels_P, best),
            minus_default=setting.difference(labels_P, default),
        )
        for name, (learns_from, labels_P) in verdicts.items()
    )
    say("asking in sequence")
    return PanelStudy(
        jurors=setting.jurors,
        cut=cut,
        pairs=len(setting.truth_P),
        queries=setting.queries,
        samples=samples,
        positives=int(setting.truth_P.sum()),
        single={
            name: setting.kappa(aggregation.majority_vote(setting.votes_PR[:, [place]], cut))
            for place, name in enumerate(setting.jurors)
        },
        judged=judged,
        asked=tuple(_asked(setting)),
        orders=_orders(setting),
        seeded=tuple(_seeded(setting, default, seed)),
    )


# --- aggregation -----------------------------------------------------------------------------------------------------


def _verdicts(
    setting: Setting, crowd: Sequence[str], thresholds: Sequence[float], say: Callable[[str], None]
) -> Iterator[tuple[str, tuple[str, Floats]]]:
    """(name, (what it learns from, verdicts))"""
    votes_PR, cut = setting.votes_PR, setting.cut
    yield "majority", ("nobody", aggregation.majority_vote(votes_PR, cut))
    yield f"mean grade >= {cut - 0.5:g}", ("nobody", aggregation.aggregate(votes_PR, cut, "mean")[0])
    for threshold in thresholds:
        means_P = aggregation.mean_grade(votes_PR)
        yield f"mean grade > {threshold:g}", ("nobody", aggregation.above(means_P, threshold))
    for method in crowd:
        say(method)
        scores_P = aggregation.crowd_probability(votes_PR, cut, method)
        yield method, ("votes", aggregation.above(scores_P, 0.5))
        if method == "dawid-skene-graded":
            fitted = aggregation.out_of_fold(scores_P[:, None], setting.truth_P, setting.query_P, aggregation.fit_mean)
            yield f"{method}, calibrated", ("people", fitted)
    for name, fit in _seeded_fits(cut).items():
        yield name, ("people", aggregation.out_of_fold(votes_PR, setting.truth_P, setting.query_P, fit))


def _seeded_fits(cut: int) -> Mapping[str, aggregation.Fit]:
    return {
        "mean grade, calibrated": aggregation.fit_mean,
        "juror weights": aggregation.fit_weights,
        "best juror": aggregation.fit_best_juror(cut),
    }


# --- asking in sequence ----------------------------------------------------------------------------------------------


def _asked(setting: Setting) -> Iterator[Asked]:
    whole_P = aggregation.majority_vote(setting.votes_PR, setting.cut)
    for order in ("given", "reversed"):
        step = 1 if order == "given" else -1
        rows = _rows(setting.votes_PR[:, ::step])
        exact = sequential.replay(rows, sequential.when_decided(setting.cut))
        yield _measured(setting, "majority decided", order, None, exact.calls, exact.verdicts, whole_P)
        for name, truth_P in (("posterior, from people", setting.truth_P), ("posterior, from votes", whole_P == 1)):
            models = [without_query(query, setting, rows, truth_P) for query in range(setting.queries)]
            for bound in BOUNDS:
                calls, verdicts = _held_out(setting, rows, models, bound)
                yield _measured(setting, name, order, bound, calls, verdicts, whole_P)


def _held_out(
    setting: Setting, rows: Sequence[tuple[int | None, ...]], models: Sequence[sequential.PosteriorBound], bound: float
) -> tuple[list[int], list[Verdict | None]]:
    """(calls, verdicts) of every pair, by the model that never saw its query."""
    calls: list[int] = []
    verdicts: list[Verdict | None] = []
    for query, model in enumerate(models):  # pairs are sorted by query: what is appended stays in their order
        stop = model.model_copy(update={"bound": bound})
        done = sequential.replay([rows[pair] for pair in np.flatnonzero(setting.query_P == query).tolist()], stop)
        calls += done.calls
        verdicts += done.verdicts
    return calls, verdicts


def without_query(
    query: int, setting: Setting, rows: Sequence[tuple[int | None, ...]], truth_P: Booleans
) -> sequential.PosteriorBound:
    """Fitted on every other query."""
    others = np.flatnonzero(setting.query_P != query).tolist()
    return sequential.PosteriorBound.fit([rows[pair] for pair in others], truth_P[others].tolist(), bound=0.9)


def _measured(
    setting: Setting,
    name: str,
    order: str,
    bound: float | None,
    calls: Sequence[int],
    verdicts: Sequence[Verdict | None],
    whole_P: Floats,
) -> Asked:
    labels_P = np.array([{"yes": 1.0, "no": 0.0, None: np.nan}[verdict] for verdict in verdicts])
    return Asked(
        name=name,
        order=order,
        bound=bound,
        saved=1 - sum(calls) / setting.votes_PR.size,
        same_verdict=float((labels_P == whole_P).mean()),
        kappa=setting.kappa(labels_P),
        minus_majority=setting.difference(labels_P, whole_P),
    )


def _orders(setting: Setting, most: int = 5) -> Orders:
    """Every order of asking; panels of more than `most` jurors only in the order given."""
    size = len(setting.jurors)
    given = tuple(range(size))
    saved: dict[tuple[int, ...], float] = {}
    stop = sequential.when_decided(setting.cut)
    for order in permutations(given) if size <= most else [given]:
        saved[order] = sequential.replay(_rows(setting.votes_PR[:, order]), stop).saved
    best = max(saved, key=lambda order: saved[order])
    return Orders(
        given=saved[given],
        lowest=min(saved.values()),
        highest=saved[best],
        highest_order=tuple(setting.jurors[juror] for juror in best),
    )


def _rows(votes_PR: Floats) -> list[tuple[int | None, ...]]:
    return [tuple(None if np.isnan(label) else int(label) for label in row) for row in votes_PR]


# --- how much seed ---------------------------------------------------------------------------------------------------


def _seeded(setting: Setting, default_P: Floats, seed: int) -> Iterator[Seeded]:
    """Kappa minus the majority's on queries outside the seed, for seeds of some queries drawn at random."""
    generator = np.random.default_rng(seed)
    whole_P = aggregation.majority_vote(setting.votes_PR, setting.cut)
    for size in SEED_QUERIES:
        if size >= setting.queries:
            continue
        gains: dict[str, list[float]] = {name: [] for name in (*_seeded_fits(setting.cut), NO_SEED)}
        for _ in range(SEED_DRAWS):
            inside_P = np.isin(setting.query_P, generator.choice(setting.queries, size, replace=False))
            for name, verdicts_P in _on_seed(setting, inside_P, default_P):
                truth_P = setting.truth_P[~inside_P]
                base = aggregation.verdict_kappa(whole_P[~inside_P], truth_P)
                gains[name].append(aggregation.verdict_kappa(verdicts_P, truth_P) - base)
        for name, values in gains.items():
            if values:
                low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
                yield Seeded(name=name, queries=size, draws=len(values), median=middle, low=low, high=high)


def _on_seed(setting: Setting, inside_P: Booleans, default_P: Floats) -> Iterator[tuple[str, Floats]]:
    truth_P = setting.truth_P[inside_P]
    if truth_P.all() or not truth_P.any():
        return  # a seed of one kind teaches nothing
    try:
        fits = {name: fit(setting.votes_PR[inside_P], truth_P) for name, fit in _seeded_fits(setting.cut).items()}
    except InputError:
        return  # nor does one whose votes are all the same
    for name, predict in fits.items():
        yield name, predict(setting.votes_PR[~inside_P])
    yield NO_SEED, default_P[~inside_P]


# --- one judge ------------------------------------------------------------------------------------------------------


def calibrated_judge(
    table: LabelTable, cuts: Sequence[int], samples: int = SAMPLES, seed: int = 0
) -> dict[int, tuple[Estimate, Estimate]]:
    """The second judge of the table against the first: cut -> (kappa of its own `>= cut`, kappa with a threshold set on
    the other queries)."""
    found = {}
    for cut in cuts:
        setting = Setting(table, table.names[1:2], cut, samples, seed)
        own = aggregation.majority_vote(setting.votes_PR, cut)
        fitted = aggregation.out_of_fold(setting.votes_PR, setting.truth_P, setting.query_P, aggregation.fit_mean)
        found[cut] = (setting.kappa(own), setting.kappa(fitted))
    return found
