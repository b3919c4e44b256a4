"""How growth is measured: the power of the curve, and points in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from studies.growth import CURVES, Point, growth, measure


@pytest.mark.parametrize(("last", "power"), [(10.0, 1.0), (100.0, 2.0), (1.0, 0.0)])
def test_power_of_the_size_between_the_last_two_points(last, power):
    points = [Point(1, 99.0, 0.0), Point(10, 1.0, 0.0), Point(100, last, 0.0)]
    assert growth(points) == pytest.approx(power)


def test_one_point_has_no_growth():
    assert growth([Point(10, 1.0, 0.0)]) is None


def test_every_curve_starts_small_and_rises():
    assert all(list(curve.sizes) == sorted(set(curve.sizes)) and len(curve.sizes) > 2 for curve in CURVES)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_a_corpus_is_measured_with_its_memory(tmp_path: Path):
    curve = next(curve for curve in CURVES if curve.name == "corpus")._replace(sizes=(10, 200_000))
    small, large = measure(curve, tmp_path, 200_000)
    assert (small.size, large.size) == (10, 200_000)
    assert large.seconds > 0
    assert large.peak_mib > 200_000 * 12 / 2**20, "12 bytes a line are kept, and its id"
