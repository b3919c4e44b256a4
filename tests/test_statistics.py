"""Bootstrap, paired comparisons and corrections: hand-worked values, seeds, planted differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prism.errors import InputError
from prism.measures.ranking import measure_queries
from prism.measures.statistics import adjust, bootstrap_means, compare_paired, mean_interval


def test_bootstrap_means_have_the_mean_and_the_spread_they_should():
    # Resampled means have mean 2.5 and variance (population variance) / N = 1.25 / 4.
    means = bootstrap_means([1, 2, 3, 4], samples=40_000, seed=3)
    assert means.shape == (40_000,)
    assert means.mean() == pytest.approx(2.5, abs=0.01)
    assert means.var() == pytest.approx(1.25 / 4, abs=0.01)
    assert set(np.unique(means * 4)) <= set(range(4, 17))


def test_bootstrap_of_two_values_is_known_exactly():
    # 0 and 1 drawn twice: means 0, 1/2, 1 with 1/4, 1/2, 1/4, so the 95 % percentile interval is the whole range.
    assert mean_interval([0.0, 1.0]) == (0.0, 1.0)
    assert mean_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)


def test_same_seed_same_interval_and_batches_do_not_matter():
    values = np.random.default_rng(0).normal(size=50)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_constant_values_have_no_width():
    assert mean_interval([0.3, 0.3, 0.3]) == (0.3, 0.3)
    same = compare_paired([0.5, 0.7], [0.5, 0.7])
    assert (same.difference, same.p_t, same.p_bootstrap) == (0.0, 1.0, 1.0)
    always = compare_paired([0.6, 0.8], [0.5, 0.7])
    assert always.p_t == 0.0
    assert always.interval == (pytest.approx(0.1), pytest.approx(0.1))


def test_paired_t_by_hand():
    # Differences 1, 2, 3: mean 2, s 1, t = 2 / (1 / sqrt 3) = 3.464, 2 degrees of freedom.
    # Survival of t with 2 df: P(T > t) = 1/2 - t / (2 sqrt(2 + t^2)).
    t = 2 * math.sqrt(3)
    p = 2 * (0.5 - t / (2 * math.sqrt(2 + t * t)))
    found = compare_paired([2, 4, 6], [1, 2, 3])
    assert found.p_t == pytest.approx(p)
    assert (found.queries, found.ours, found.other, found.difference) == (3, 4.0, 2.0, 2.0)
    # A resampled mean is 2 away from 2 never (means lie in [1, 3]): only the added one is left.
    assert found.p_bootstrap == pytest.approx(1 / 10_001)


@pytest.mark.parametrize("bad", [[], [1.0], [1.0, math.nan], [[1.0, 2.0]]])
def test_what_cannot_be_resampled(bad):
    with pytest.raises(InputError):
        mean_interval(bad)


def test_lengths_must_match():
    with pytest.raises(InputError, match="got 2 and 3"):
        compare_paired([1, 2], [1, 2, 3])


def test_corrections_by_hand():
    # Holm on (0.01, 0.04, 0.03): 3 * 0.01; 2 * 0.03; then max(0.06, 1 * 0.04).
    assert adjust([0.01, 0.04, 0.03], "holm") == pytest.approx([0.03, 0.06, 0.06])
    # Benjamini-Hochberg: 3/1 * 0.01; 3/2 * 0.03 lowered to what follows, 3/3 * 0.04.
    assert adjust([0.01, 0.04, 0.03], "benjamini-hochberg") == pytest.approx([0.03, 0.04, 0.04])
    assert adjust([], "holm") == []
    with pytest.raises(InputError, match=r"got 1\.5"):
        adjust([1.5], "holm")


def runs(moves: dict[int, int]) -> list[float]:
    """nDCG of 300 queries with one relevant document each, at rank 1 for the first 200 and 2 for the others.

    `moves` changes ranks of single queries.
    """
    qrels = {f"q{i}": {"d": 1} for i in range(300)}
    run = {}
    for i in range(300):
        rank = moves.get(i, 1 if i < 200 else 2)
        run[f"q{i}"] = [*(f"x{n}" for n in range(rank - 1)), "d"]
    return list(measure_queries(qrels, run, ["nDCG@10"])["nDCG@10"].values())


def test_a_planted_regression_of_two_percent_is_found():
    # 15 of 300 queries fall from rank 1 (nDCG 1) to rank 2 (1 / log2 3 = 0.6309). Lost: 15 * 0.3691 / 300 = 0.01845 on
    # a mean of (200 + 100 * 0.6309) / 300 = 0.8770, 2.1 %. t = 0.05 * 0.369 / (0.369 sqrt(0.05 * 0.95 / 299)) = 3.97.
    before, after = runs({}), runs(dict.fromkeys(range(15), 2))
    found = compare_paired(after, before)
    loss = 15 * (1 - 1 / math.log2(3)) / 300
    assert found.difference == pytest.approx(-loss)
    assert found.difference / found.other == pytest.approx(-0.02104, abs=1e-4)
    assert found.p_t < 0.001
    assert found.p_bootstrap < 0.001
    assert found.interval[1] < 0


def test_a_planted_zero_is_not_found():
    # As many queries rise from rank 2 to 1 as fall from 1 to 2.
    before = runs({})
    after = runs({**dict.fromkeys(range(15), 2), **dict.fromkeys(range(200, 215), 1)})
    found = compare_paired(after, before)
    assert found.difference == pytest.approx(0.0, abs=1e-12)
    assert found.p_t > 0.99
    assert found.interval[0] < 0 < found.interval[1]


def test_false_alarms_come_at_the_stated_level():
    # 400 experiments without a difference at 5 %: 20 expected, standard deviation 4.4; fixed seed.
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(400):
        first = rng.random(60)
        alarms += compare_paired(first + rng.normal(0, 0.1, 60), first, samples=400).p_bootstrap <= 0.05
    assert 7 <= alarms <= 33
