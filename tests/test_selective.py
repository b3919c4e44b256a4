"""Coverage, risk and promises: values by hand, the curve's properties, and the promise kept in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prism.errors import InputError
from prism.measures.selective import (
    at_coverages,
    at_threshold,
    certify,
    outcomes,
    risk_area,
    risk_coverage,
    upper_bound,
)

FOUR = outcomes([0.8, 0.9, 0.3, 0.8], [False, True, False, True])


def test_curve_by_hand():
    found = [(p.threshold, p.coverage, p.accepted, p.wrong, p.risk) for p in risk_coverage(FOUR)]
    assert found == [(0.9, 0.25, 1, 0, 0.0), (0.8, 0.75, 3, 1, pytest.approx(1 / 3)), (0.3, 1.0, 4, 2, 0.5)]
    assert at_threshold(FOUR, 0.95) is None
    # Wilson, 2 of 4: (2 + z^2 / 2) / (4 + z^2) -+ z / (4 + z^2) * sqrt(2 * 2 / 4 + z^2 / 4), z = 1.96.
    last = risk_coverage(FOUR)[-1]
    assert (last.low, last.high) == (pytest.approx(0.15, abs=1e-3), pytest.approx(0.85, abs=1e-3))
    theirs = stats.binomtest(1, 3).proportion_ci(method="wilson")
    assert (risk_coverage(FOUR)[1].low, risk_coverage(FOUR)[1].high) == pytest.approx((theirs.low, theirs.high))
    assert at_threshold(FOUR, 0.8) == risk_coverage(FOUR)[1]


def test_area_by_hand():
    # Accepting 1, 2, 3, 4 of them: 0 wrong, then half of the one wrong among two ties, then it, then two.
    assert risk_area(FOUR) == pytest.approx((0 + 0.5 / 2 + 1 / 3 + 2 / 4) / 4)
    assert risk_area(outcomes([0.5] * 3, [True, False, True])) == pytest.approx(1 / 3)


def test_coverages_by_hand():
    points = risk_coverage(FOUR)
    assert [p.threshold for p in at_coverages(points, (0.25, 0.5, 0.75, 1.0))] == [0.9, 0.8, 0.3]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_coverage_rises_as_the_threshold_falls(rows):
    points = risk_coverage(outcomes(*zip(*rows, strict=True)))
    coverages, thresholds = [p.coverage for p in points], [p.threshold for p in points]
    assert coverages == sorted(set(coverages))
    assert thresholds == sorted(set(thresholds), reverse=True)
    assert coverages[-1] == 1.0
    assert points[-1].wrong == sum(not right for _, right in rows)
    assert all(p.low <= p.risk + 1e-12 and p.risk - 1e-12 <= p.high for p in points)
    assert 0.0 <= risk_area(outcomes(*zip(*rows, strict=True))) <= 1.0


def test_clopper_pearson_by_hand():
    # None wrong of n: (1 - u)^n = error.
    assert upper_bound(0, 10, 0.1) == pytest.approx(1 - 0.1**0.1)
    # One of two: P(at most one wrong) = 1 - u^2 = error.
    assert upper_bound(1, 2, 0.19) == pytest.approx(0.9)
    assert (upper_bound(3, 3, 0.1), upper_bound(0, 0, 0.1)) == (1.0, 1.0)
    with pytest.raises(InputError, match="wrong <= accepted"):
        upper_bound(2, 1, 0.1)


@pytest.mark.parametrize(("right", "found"), [(22, 0.9), (21, None)])
def test_promise_by_hand(right, found):
    # 0.9^22 = 0.0985 is small enough for an error of 0.1, 0.9^21 = 0.1094 is not; 10 wrong of 32 are never.
    given = outcomes([0.9] * right + [0.1] * 10, [True] * right + [False] * 10)
    assert certify(given, given, [0.9, 0.1], risk=0.1, error=0.1) == found


def test_promise_is_the_lowest_threshold_that_was_shown():
    given = outcomes([0.9] * 60 + [0.5] * 60 + [0.1] * 60, [True] * 120 + [False] * 60)
    assert certify(given, given, [0.9, 0.5, 0.1], risk=0.1, error=0.1) == 0.5
    with pytest.raises(InputError, match="between 0 and 1"):
        certify(given, given, [0.5], risk=0.0, error=0.1)


def test_promises_are_kept_in_simulation():
    """Right with probability u where the confidence u is uniform: the risk from t on is (1 - t) / 2, 0.2 at t = 0.6."""
    rng = np.random.default_rng(0)
    trials, broken, naive, promised = 300, 0, 0, 0
    for _ in range(trials):
        (tune, test) = ((u, rng.random(400) < u) for u in (rng.random(400), rng.random(400)))
        grid = np.quantile(tune[0], np.linspace(0, 0.95, 20)).tolist()
        found = certify(outcomes(*tune), outcomes(*test), grid, risk=0.2, error=0.1)
        promised += found is not None
        broken += found is not None and found < 0.6
        seen = [at for at in grid if (test[0] >= at).any() and (~test[1][test[0] >= at]).mean() <= 0.2]
        naive += min(seen, default=1.0) < 0.6
    assert broken <= 45, "0.1 of 300 and three standard errors"
    assert promised > 200
    assert naive > 90, "what looks right on the same data breaks its word far more often"


@pytest.mark.parametrize(
    ("confidence", "right", "message"),
    [([], [], "as many outcomes"), ([0.5], [True, False], "as many outcomes"), ([float("nan")], [True], "finite")],
)
def test_bad_outcomes(confidence, right, message):
    with pytest.raises(InputError, match=message):
        outcomes(confidence, right)
