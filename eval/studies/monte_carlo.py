"""Do the statistics keep their promises? Simulated experiments whose truth is known.

Each check repeats an experiment many times and compares what is promised (95 % coverage, 80 % power, 5 % false alarms)
with what happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from prism.measures.statistics import SAMPLES, bootstrap_means, mean_interval
from prism.types import Record
from studies.experiments import detectable_effect, segment_effects
from studies.sampling import neyman, stratified_mean

Floats = NDArray[np.float64]
INTERESTS = ("home", "food", "fashion", "travel")
_SPREADS = {"head": 0.06, "torso": 0.14, "tail": 0.26}
_SIZES = {"head": 500, "torso": 2000, "tail": 2500}


class Check(Record):
    """One promise and what became of it."""

    name: str
    promised: float | None
    """None where the formula promises nothing and the figure only shows what happens."""
    seen: float
    low: float
    high: float
    """95 % Wilson interval of `seen`: the noise of the simulation itself."""
    experiments: int


def _check(name: str, promised: float | None, hits: int, experiments: int) -> Check:
    found = stats.binomtest(hits, experiments).proportion_ci(method="wilson")
    return Check(
        name=name, promised=promised, seen=hits / experiments, low=found.low, high=found.high, experiments=experiments
    )


def population(seed: int = 0) -> dict[str, Floats]:
    """Stratum -> query values in [0, 1]: 20,000 queries of four interests and three popularities.

    Rare queries are worse and differ more, as a search engine's do; that is what stratification lives on.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for place, interest in enumerate(INTERESTS):
        for popularity, spread in _SPREADS.items():
            mean = 0.75 - spread + 0.03 * place
            strength = mean * (1 - mean) / spread**2 - 1  # of the beta distribution with this mean and deviation
            values = rng.beta(mean * strength, (1 - mean) * strength, _SIZES[popularity])
            found[f"{interest} / {popularity}"] = values
    return found


# --- intervals -------------------------------------------------------------------------------------------------------


def interval_coverage(experiments: int, seed: int = 0, samples: int = 2000) -> Iterator[Check]:
    """How often 95 % intervals of a mean hold the truth, for few and for many queries of a skewed population."""
    rng = np.random.default_rng(seed)
    everything = np.concatenate(list(population(seed).values()))
    truth = everything.mean()
    for queries in (25, 300):
        drawn_EN = rng.choice(everything, (experiments, queries))
        intervals = [mean_interval(values, samples=samples, seed=place) for place, values in enumerate(drawn_EN)]
        hits = sum(low <= truth <= high for low, high in intervals)
        yield _check(f"bootstrap interval, {queries} queries", 0.95, hits, experiments)
        half_E = stats.t.ppf(0.975, queries - 1) * drawn_EN.std(axis=1, ddof=1) / np.sqrt(queries)
        hits = int((np.abs(drawn_EN.mean(axis=1) - truth) <= half_E).sum())
        yield _check(f"t interval, {queries} queries", 0.95, hits, experiments)


class Design(Record):
    """One way to draw queries, over many draws."""

    name: str
    deviation: float
    """Standard deviation of the estimates."""
    mean_standard_error: float
    """What the estimates said of themselves."""
    bias: float
    coverage: Check


def designs(experiments: int, total: int = 600, pilot: int = 20, seed: int = 0) -> tuple[Design, ...]:
    """Simple random sampling, proportional strata, Neyman with a pilot's deviations; and Neyman without weights."""
    strata = population(seed)
    sizes = {name: len(values) for name, values in strata.items()}
    everything = np.concatenate(list(strata.values()))
    rng = np.random.default_rng(seed + 1)

    def simple() -> tuple[float, float, float]:
        estimate = stratified_mean({"all": rng.choice(everything, total, replace=False)}, {"all": len(everything)})
        return estimate.mean, estimate.standard_error, estimate.interval[1] - estimate.mean

    def stratified(deviations: dict[str, float]) -> dict[str, Floats]:
        counts = neyman(sizes, deviations, total)
        return {name: rng.choice(values, counts[name], replace=False) for name, values in strata.items()}

    def piloted() -> dict[str, Floats]:
        return stratified({name: float(rng.choice(v, pilot, replace=False).std(ddof=1)) for name, v in strata.items()})

    def weighted(sample: dict[str, Floats]) -> tuple[float, float, float]:
        estimate = stratified_mean(sample, sizes)
        return estimate.mean, estimate.standard_error, estimate.interval[1] - estimate.mean

    def plain(sample: dict[str, Floats]) -> tuple[float, float, float]:
        values = np.concatenate(list(sample.values()))
        error = float(values.std(ddof=1) / np.sqrt(len(values)))
        return float(values.mean()), error, float(stats.t.ppf(0.975, len(values) - 1)) * error

    ways: dict[str, Callable[[], tuple[float, float, float]]] = {
        "simple random sampling": simple,
        "strata, proportional": lambda: weighted(stratified(dict.fromkeys(sizes, 1.0))),
        f"strata, Neyman (pilot of {pilot} a stratum)": lambda: weighted(piloted()),
        "Neyman sample, plain mean (wrong)": lambda: plain(piloted()),
    }
    return tuple(_design(name, way, float(everything.mean()), experiments) for name, way in ways.items())


def _design(name: str, way: Callable[[], tuple[float, float, float]], truth: float, experiments: int) -> Design:
    means, errors, halves = (np.array(column) for column in zip(*(way() for _ in range(experiments)), strict=True))
    hits = int((np.abs(means - truth) <= halves).sum())
    return Design(
        name=name,
        deviation=float(means.std(ddof=1)),
        mean_standard_error=float(errors.mean()),
        bias=float(means.mean() - truth),
        coverage=_check(f"interval, {name}", None if "wrong" in name else 0.95, hits, experiments),
    )


# --- the minimum detectable effect -----------------------------------------------------------------------------------


def power_of_detectable_effect(experiments: int, queries: int = 1000, seed: int = 0) -> Iterator[Check]:
    """Experiments with exactly the minimum detectable effect: how often a two-sided test at 5 % finds it.

    Values are normal with the population's mean and deviation; two values of one query correlate by 0.8.
    """
    everything = np.concatenate(list(population(seed).values()))
    mean, deviation, rho = float(everything.mean()), float(everything.std(ddof=1)), 0.8
    rng = np.random.default_rng(seed)

    def values(spread: float = deviation) -> Floats:
        return rng.normal(mean, spread, (experiments, queries))

    def effect(**options: float) -> float:
        return mean * detectable_effect(mean, deviation, queries, **options)

    def paired(shift: float) -> int:
        control = values()
        own = rng.normal(0.0, deviation, control.shape)
        treatment = mean + shift + rho * (control - mean) + np.sqrt(1 - rho**2) * own
        return _found(stats.ttest_rel(treatment, control, axis=1).pvalue)

    def independent(shift: float, spread: float = deviation) -> int:
        return _found(stats.ttest_ind(values(spread) + shift, values(), axis=1, equal_var=False).pvalue)

    yield _check("two groups, printed formula", 0.8, independent(effect()), experiments)
    yield _check("paired, formula with the correlation", 0.8, paired(effect(correlation=rho)), experiments)
    yield _check("paired (rho 0.8), printed formula", 0.8, paired(effect()), experiments)
    yield _check("two groups, treatment deviates twice as much", 0.8, independent(effect(), 2 * deviation), experiments)
    yield _check("two groups, z_beta read as the 20 % quantile", 0.8, independent(effect(power=0.2)), experiments)
    yield _check("two groups, no effect", 0.05, independent(0.0), experiments)
    yield _check("paired, no effect", 0.05, paired(0.0), experiments)


def _found(p_values: Floats) -> int:
    return int((p_values <= 0.05).sum())


# --- segments --------------------------------------------------------------------------------------------------------


class Discoveries(Record):
    """What a rule found in segments of which some have an effect."""

    rule: str
    false_share: float
    """Mean share of false ones among the discoveries (0 where there are none)."""
    power: float
    """Share of the true effects found."""


def segment_discoveries(experiments: int, seed: int = 0) -> tuple[Discoveries, Discoveries]:
    """Twenty segments of 200 queries, four with a true effect: by Benjamini-Hochberg, and uncorrected."""
    rng = np.random.default_rng(seed)
    names, true = [f"s{place:02}" for place in range(20)], {"s00", "s01", "s02", "s03"}
    shares: dict[str, list[tuple[float, float]]] = {"Benjamini-Hochberg": [], "uncorrected": []}
    for _ in range(experiments):
        control = {name: rng.normal(0.6, 0.2, 200) for name in names}
        shifted = {name: values + 0.02 * (name in true) for name, values in control.items()}
        rows = segment_effects({n: (shifted[n] + rng.normal(0.0, 0.08, 200), control[n]) for n in names})
        for rule, found in (
            ("Benjamini-Hochberg", {row.segment for row in rows if row.found}),
            ("uncorrected", {row.segment for row in rows if row.p <= 0.05}),
        ):
            shares[rule].append((len(found - true) / max(1, len(found)), len(found & true) / len(true)))
    means = {rule: np.mean(values, axis=0) for rule, values in shares.items()}
    first, second = (Discoveries(rule=rule, false_share=float(m[0]), power=float(m[1])) for rule, m in means.items())
    return first, second


# --- speed -----------------------------------------------------------------------------------------------------------


class Speed(Record):
    """The bootstrap as it is, against the same in a Python loop, in one run."""

    queries: int
    samples: int
    vectorised_s: float
    loop_s: float
    """Drawing and adding one value after another."""
    drawn_in_c_s: float
    """A loop over the samples only, each drawn by `random.choices` and added by `sum`, both written in C."""

    @property
    def ratio(self) -> float:
        return self.loop_s / self.vectorised_s


def bootstrap_speed(queries: int = 300, samples: int = SAMPLES, seed: int = 0) -> Speed:
    """CPU seconds of each, the fastest of three runs of the vectorised one (the first pays for imports)."""
    import random

    values = np.random.default_rng(seed).normal(0.0, 0.1, queries)
    timed = []
    for _ in range(3):
        start = time.process_time()
        bootstrap_means(values, samples, seed)
        timed.append(time.process_time() - start)
    plain, rng = values.tolist(), random.Random(seed)
    start = time.process_time()
    sorted(sum(rng.choices(plain, k=queries)) / queries for _ in range(samples))
    drawn_in_c_s = time.process_time() - start
    start, means = time.process_time(), []
    for _ in range(samples):
        total = 0.0
        for _ in range(queries):
            total += plain[rng.randrange(queries)]
        means.append(total / queries)
    means.sort()
    loop_s = time.process_time() - start
    return Speed(queries=queries, samples=samples, vectorised_s=min(timed), loop_s=loop_s, drawn_in_c_s=drawn_in_c_s)
