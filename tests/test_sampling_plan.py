"""The sample of queries to label, and what the labelled ones say of all."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from prism.errors import InputError
from prism.reports.report import Report
from studies.sampling_plan import plan

SIZES = {"food / head": 4, "food / tail": 6}


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    """Four queries that are often asked (h0 ...) and six that are not (t0 ...)."""
    rows = [(f"{name[7]}{i}", "food", name[7:]) for name, size in SIZES.items() for i in range(size)]
    path = tmp_path / "queries.csv"
    path.write_text("query,interest,popularity\n" + "".join(",".join(row) + "\n" for row in rows))
    return path


def run(queries: Path, total: int, treatment: dict[str, float], control: dict[str, float]):
    report = Report("t", command="c", versions={})
    out = queries.parent / "out"
    found = plan(queries, total, (treatment, control), seed=0, section=report.section("plan"), out=out)
    report.write(out, {})
    return found, (out / "report.md").read_text(), out


def test_before_anything_is_labelled_the_sample_is_drawn(queries: Path) -> None:
    found, text, out = run(queries, 5, {}, {})
    assert found["allocation"] == {"food / head": 2, "food / tail": 3}  # equal deviations: proportional to 4 and 6
    assert found["estimates"] == {}
    rows = list(csv.DictReader((out / "sample.csv").read_text().splitlines()))
    assert [row["query"][0] for row in rows] == ["h", "h", "t", "t", "t"]
    assert [float(row["stands_for"]) for row in rows] == [2.0, 2.0, 2.0, 2.0, 2.0]
    assert sum(float(row["stands_for"]) for row in rows) == sum(SIZES.values())
    assert "sample.csv" in text
    assert run(queries, 5, {}, {})[0]["drawn"] == found["drawn"]  # the same seed, the same queries


def test_labelled_queries_speak_for_all_by_stratum(queries: Path) -> None:
    control = {"h0": 0.2, "h1": 0.4, "t0": 0.6, "t1": 0.8, "t2": 0.7}
    treatment = {query: value + 0.1 for query, value in control.items()}
    found, text, _ = run(queries, 5, treatment, control)
    # 4/10 of the queries have mean 0.3, 6/10 have 0.7: 0.54. The plain mean of the five labelled ones is 0.54 too, so
    # leave one out below to tell them apart.
    assert found["estimates"]["control"].mean == pytest.approx(0.4 * 0.3 + 0.6 * 0.7)
    assert found["estimates"]["difference"].mean == pytest.approx(0.1)
    assert found["estimates"]["difference"].standard_error == pytest.approx(0.0, abs=1e-9)
    del control["t2"]
    again, text, _ = run(queries, 5, treatment, control)
    assert again["estimates"]["control"].mean == pytest.approx(0.54)
    assert "| control | 4 | 0.5400 |" in text
    assert "0.5000 |" in text  # the plain mean of 0.2, 0.4, 0.6, 0.8
    # Variance of the control, Cochran 5.4: sum of W^2 (1 - n/N) s^2 / n = 0.16 * 0.5 * 0.02 / 2 + 0.36 * 2/3 * 0.02 / 2
    assert again["estimates"]["control"].standard_error == pytest.approx(0.0032**0.5)


def test_a_stratum_without_labels_has_no_say_and_is_named(queries: Path) -> None:
    values = {"h0": 0.2, "h1": 0.4, "t0": 0.6}
    found, text, _ = run(queries, 5, values, values)
    assert found["estimates"] == {}
    assert "food / tail has fewer than 2 labelled queries" in text
    assert [effect.segment for effect in found["effects"]] == ["food / head"]


def test_a_sample_too_small_for_its_strata_is_refused(queries: Path) -> None:
    with pytest.raises(InputError, match="cannot be drawn"):
        run(queries, 3, {}, {})
