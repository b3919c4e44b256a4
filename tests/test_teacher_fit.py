"""Teachers that never saw our labels: their scores as probabilities."""

from __future__ import annotations

import math
import random

import pytest

from prism.data.teacher_fit import Calibrated, calibrated, mixed
from prism.errors import DataError


def sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z))


def drawn(slope: float, intercept: float, count: int = 20_000) -> tuple[list[float], list[bool]]:
    """Scores whose log-odds z are relevant with probability sigmoid(slope z + intercept)."""
    rng = random.Random(7)
    odds = [rng.gauss(0.0, 3.0) for _ in range(count)]
    return [sigmoid(z) for z in odds], [rng.random() < sigmoid(slope * z + intercept) for z in odds]


def test_the_fit_finds_what_the_labels_were_drawn_from():
    fit = Calibrated(*drawn(0.5, -1.0), [None] * 20_000)
    assert fit.report()["all"] == pytest.approx([0.5, -1.0], abs=0.06)
    assert fit.probability(0.5, None) == pytest.approx(sigmoid(-1.0), abs=0.02)


def test_certain_scores_weigh_no_more_than_nearly_certain_ones():
    scores, relevant = drawn(1.0, 0.0, 2000)
    fit = Calibrated([*scores, 1.0, 0.0], [*relevant, False, True], [None] * 2002)
    near = Calibrated([*scores, 1 - 1e-6, 1e-6], [*relevant, False, True], [None] * 2002)
    assert fit.fits == near.fits
    assert fit.probability(1.0, None) == fit.probability(1 - 1e-6, None)


def test_a_language_with_verdicts_enough_has_its_own_fit():
    english, german = drawn(1.0, 0.0), drawn(1.0, -3.0)
    few = ([0.9, 0.1], [True, False])
    scores = [*english[0], *german[0], *few[0]]
    languages = ["en"] * 20_000 + ["de"] * 20_000 + ["fr"] * 2
    fit = Calibrated(scores, [*english[1], *german[1], *few[1]], languages)
    assert fit.probability(0.5, "en") == pytest.approx(0.5, abs=0.02)
    assert fit.probability(0.5, "de") == pytest.approx(sigmoid(-3.0), abs=0.02)
    assert fit.probability(0.5, "fr") == fit.probability(0.5, None)
    assert set(fit.report()) == {"all", "de", "en"}


def test_rows_without_a_verdict_take_no_part():
    scores, relevant = drawn(1.0, 0.0, 200)
    rows = [
        {"teacher_score": score, "verdict": "yes" if yes else "no"} for score, yes in zip(scores, relevant, strict=True)
    ]
    assert calibrated([*rows, {"teacher_score": 0.99}]).fits == calibrated(rows).fits


@pytest.mark.parametrize(
    ("scores", "relevant", "said"),
    [
        ([], [], "got 0 and 0"),
        ([0.9] * 19 + [0.1] * 50, [True] * 19 + [False] * 50, "got 19 and 50"),
        ([0.1] * 50 + [0.9] * 50, [True] * 50 + [False] * 50, "against the verdicts"),
    ],
)
def test_what_cannot_be_fitted_is_refused(scores, relevant, said):
    with pytest.raises(DataError, match=said):
        calibrated({"teacher_score": s, "verdict": "yes" if y else "no"} for s, y in zip(scores, relevant, strict=True))


def test_shares_of_two_targets():
    assert mixed(0.8, 0.4, 0.25) == pytest.approx(0.7)
    assert mixed(None, 0.4, 0.25) == 0.4
