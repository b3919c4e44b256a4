"""How growth is measured: the power of the curve, and points in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from growth import reported
from studies.growth import CURVES, Point, growth, measure


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_power_without_what_every_call_costs(power):
    """t = 5 + n to the power, sizes far apart: the five seconds do not hide the growth."""
    points = [Point(size, 5.0 + size**power) for size in (1, 100, 10_000)]
    assert growth(points) == pytest.approx(power, abs=0.01)


def test_growth_needs_three_sizes_that_differ():
    assert growth([Point(1, 1.0), Point(10, 2.0)]) is None
    assert growth([Point(1, 1.0), Point(10, 1.0), Point(100, 0.9)]) is None
    assert growth([Point(1, 1.0), Point(10, 2.0), Point(100, error="out of memory")]) is None


def test_a_size_that_failed_is_told_and_not_counted(tmp_path: Path):
    points = [Point(10, 1.0), Point(100, 10.0), Point(1000, 100.0), Point(10_000, error="MemoryError: none left")]
    reported({"documents": points, "corpus": [Point(10, error="OSError: full")]}).write(tmp_path, {})
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| documents | 10 | 1000 documents | 1.00 |" in page
    assert "10000 documents: MemoryError: none left" in page
    assert "10 lines: OSError: full" in page


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_a_corpus_is_measured_with_its_memory(tmp_path: Path):
    curve = next(curve for curve in CURVES if curve.name == "corpus")._replace(sizes=(10, 200_000))
    small, large = measure(curve, tmp_path, 200_000)
    assert (small.size, large.size) == (10, 200_000)
    assert large.seconds > 0
    assert large.peak_mib > 200_000 * 12 / 2**20, "12 bytes a line are kept, and its id"
