"""Experiment statistics: sDCG, errors, sampling, detectable effects; the script end to end."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prism.errors import DataError, InputError
from studies import monte_carlo as mc
from studies.experiments import (
    detectable,
    detectable_effect,
    paired_errors,
    power_at,
    query_errors,
    sdcg,
    sdcg_of_run,
    segment_effects,
)
from studies.sampling import draw, neyman, read_queries, strata, stratified_mean

ROOT = Path(__file__).resolve().parents[1]


# --- sDCG ------------------------------------------------------------------------------------------------------------


def test_sdcg_by_hand():
    # k = 1, 2: discounts 1 and 1 / log2 3. (5 + 3 / 1.585) / (5 + 5 / 1.585) = 6.8928 / 8.1546.
    d = 1 / math.log2(3)
    assert sdcg([5, 3], 2) == pytest.approx((5 + 3 * d) / (5 + 5 * d))
    assert sdcg([5, 3], 2) == pytest.approx(0.8453, abs=1e-4)


def test_sdcg_normaliser_runs_to_k():
    # One perfect result of two: 5 / (5 + 5 / log2 3), not 1. And a useless second one (label 1) raises the value.
    alone = sdcg([5], 2)
    assert alone == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert sdcg([5, 1], 2) > alone
    assert sdcg([5, 5, 1], 2) == pytest.approx(1.0)  # what lies past K does not count
    assert sdcg([], 3) == 0.0


def test_sdcg_scale_has_a_floor():
    assert sdcg([1] * 25, 25) == pytest.approx(0.2)
    assert sdcg([0] * 25, 25, top=4) == 0.0


@pytest.mark.parametrize(
    ("labels", "k", "message"), [([6], 1, "label 6"), ([-1], 1, "label -1"), ([1], 0, "k must be")]
)
def test_sdcg_refuses(labels, k, message):
    with pytest.raises(InputError, match=message):
        sdcg(labels, k)


def test_queries_with_unlabelled_results_are_left_out():
    labels = {"a": {"x": 3, "y": 0}, "b": {"x": 3}}
    values = sdcg_of_run(labels, {"a": ["x", "y"], "b": ["x", "y"], "c": ["x"]}, k=2, top=3)
    assert values == {"a": pytest.approx(1 / (1 + 1 / math.log2(3)))}
    assert sdcg_of_run(labels, {"b": ["x", "y"]}, k=1, top=3) == {"b": 1.0}


# --- errors ----------------------------------------------------------------------------------------------------------


def test_query_errors_by_hand():
    human = {f"q{i}": 0.5 for i in range(5)}
    model = {f"q{i}": 0.5 + e for i, e in enumerate((-0.2, -0.1, 0.0, 0.1, 0.4))}
    found = query_errors(model, human)
    # Linear percentiles of five values: P10 lies 0.4 of the way from the first to the second.
    assert (found.queries, found.median) == (5, pytest.approx(0.0))
    assert found.mean == pytest.approx(0.04)
    assert found.p10 == pytest.approx(-0.2 + 0.4 * 0.1)
    assert found.p90 == pytest.approx(0.1 + 0.6 * 0.3)
    assert found.mean_absolute == pytest.approx(0.16)


def test_shared_bias_cancels_in_paired_differences_only():
    human = ({"a": 0.5, "b": 0.7}, {"a": 0.4, "b": 0.6})
    model = tuple({q: v + 0.1 for q, v in group.items()} for group in human)
    assert query_errors(model[0], human[0]).mean == pytest.approx(0.1)
    found = paired_errors((model[0], model[1]), human)
    assert (found.mean, found.p10, found.p90) == (pytest.approx(0), pytest.approx(0), pytest.approx(0))


def test_errors_need_shared_queries():
    with pytest.raises(InputError, match="share no query"):
        query_errors({"a": 1.0}, {"b": 1.0})
    with pytest.raises(InputError, match="share no query"):
        paired_errors(({"a": 1.0}, {"a": 1.0}), ({"a": 1.0}, {"b": 1.0}))


# --- detectable effects ----------------------------------------------------------------------------------------------


def test_detectable_effect_by_hand():
    # z: 1.959964 + 0.841621 = 2.801585; sqrt(2 * 0.04 / 200) = 0.02; over a mean of 0.5.
    assert detectable_effect(0.5, 0.2, 200) == pytest.approx(2.801585 * 0.02 / 0.5, rel=1e-6)
    # Correlated by 0.75: the standard error halves.
    assert detectable_effect(0.5, 0.2, 200, correlation=0.75) == pytest.approx(2.801585 * 0.01 / 0.5, rel=1e-6)


def test_detectable_effect_has_the_power_it_promises():
    for power in (0.5, 0.8, 0.95):
        assert power_at(detectable(0.01, power=power), 0.01) == pytest.approx(power, abs=1e-4)
    # z_beta as the quantile of the error of the second kind: an effect found one time in five.
    assert power_at(detectable(0.01, power=0.2), 0.01) == pytest.approx(0.2, abs=0.002)
    assert power_at(0.0, 0.01) == pytest.approx(0.05)


@pytest.mark.parametrize("bad", [(0.0, 1.0, 10), (1.0, -1.0, 10), (1.0, 1.0, 1)])
def test_detectable_effect_refuses(bad):
    with pytest.raises(InputError):
        detectable_effect(*bad)


def test_segment_effects_by_hand():
    # Differences 1, 2, 3 as in the paired t-test by hand (p 0.0742); no difference: p 1. Adjusted: 2 * 0.0742, 1.
    found = segment_effects({"new": ([2, 4, 6], [1, 2, 3]), "old": ([1, 2], [1, 2])}, level=0.2)
    assert found[0].p == pytest.approx(0.0742, abs=1e-4)
    assert found[0].p_adjusted == pytest.approx(2 * found[0].p)
    assert (found[0].effect, found[0].relative, found[0].found) == (2.0, 1.0, True)
    assert (found[1].p_adjusted, found[1].found) == (1.0, False)
    with pytest.raises(InputError, match="'x' needs at least 2"):
        segment_effects({"x": ([1], [1])})


# --- sampling --------------------------------------------------------------------------------------------------------


def test_neyman_by_hand():
    # Weights 100 * 1, 100 * 3: a quarter and three quarters.
    assert neyman({"a": 100, "b": 100}, {"a": 1.0, "b": 3.0}, 40) == {"a": 10, "b": 30}
    # c would get 22 of 40 but holds 4; the rest is shared 1 : 3 again.
    assert neyman({"a": 100, "b": 100, "c": 4}, {"a": 1.0, "b": 3.0, "c": 125.0}, 40) == {"a": 9, "b": 27, "c": 4}
    # A stratum that never varied in the pilot still gets two; no deviation at all: by size.
    assert neyman({"a": 100, "b": 100}, {"a": 0.0, "b": 3.0}, 40) == {"a": 2, "b": 38}
    assert neyman({"a": 30, "b": 10}, {"a": 0.0, "b": 0.0}, 8) == {"a": 6, "b": 2}
    assert neyman({"a": 3, "b": 1}, {"a": 1.0, "b": 1.0}, 4) == {"a": 3, "b": 1}


def test_neyman_is_the_best_allocation():
    sizes, deviations = {"a": 50, "b": 30, "c": 20}, {"a": 1.0, "b": 2.0, "c": 4.0}

    def variance(counts: dict[str, int]) -> float:
        return sum((sizes[h] / 100 * deviations[h]) ** 2 / counts[h] for h in sizes)

    best = neyman(sizes, deviations, 19)
    others = [{"a": i, "b": j, "c": 19 - i - j} for i in range(2, 16) for j in range(2, 16) if 2 <= 19 - i - j <= 20]
    assert variance(best) == pytest.approx(min(map(variance, others)), rel=0.01)
    assert sum(best.values()) == 19


def test_neyman_refuses():
    with pytest.raises(InputError, match="need at least 4 and hold"):
        neyman({"a": 9, "b": 9}, {"a": 1.0, "b": 1.0}, 3)
    with pytest.raises(InputError, match="hold 18"):
        neyman({"a": 9, "b": 9}, {"a": 1.0, "b": 1.0}, 19)
    with pytest.raises(InputError, match="'a' has deviation nan"):
        neyman({"a": 9}, {"a": math.nan}, 3)


def test_stratified_mean_by_hand():
    # W 3/4, 1/4. Means 2 and 5: 2.75. Variances 1 and 2, n 3 and 2 of 30 and 10:
    # (3/4)^2 * (1 - 0.1) * 1/3 + (1/4)^2 * (1 - 0.2) * 2/2 = 0.16875 + 0.05 = 0.21875.
    found = stratified_mean({"a": [1, 2, 3], "b": [4, 6]}, {"a": 30, "b": 10})
    assert found.mean == pytest.approx(2.75)
    assert found.standard_error == pytest.approx(math.sqrt(0.21875))
    # Satterthwaite: 0.21875^2 / (0.16875^2 / 2 + 0.05^2 / 1).
    assert found.degrees_of_freedom == pytest.approx(0.21875**2 / (0.16875**2 / 2 + 0.05**2))
    assert found.queries == 5
    unlimited = stratified_mean({"a": [1, 2, 3], "b": [4, 6]}, {"a": 30, "b": 10}, finite=False)
    assert unlimited.standard_error == pytest.approx(math.sqrt(9 / 16 / 3 + 1 / 16))


def test_one_stratum_is_the_plain_mean_and_a_census_has_no_error():
    values = np.arange(10.0)
    found = stratified_mean({"all": values[:5]}, {"all": 10**9})
    assert found.standard_error == pytest.approx(values[:5].std(ddof=1) / math.sqrt(5), rel=1e-6)
    whole = stratified_mean({"a": [1, 2, 3], "b": [7]}, {"a": 3, "b": 1})
    assert (whole.mean, whole.standard_error) == (3.25, 0.0)
    assert whole.interval == (3.25, 3.25)


def test_stratified_mean_refuses():
    with pytest.raises(InputError, match="'a' of 9 queries has 1"):
        stratified_mean({"a": [1]}, {"a": 9})
    with pytest.raises(InputError, match="different strata: 'b'"):
        stratified_mean({"a": [1, 2]}, {"a": 9, "b": 9})


def test_queries_are_read_and_stratified(tmp_path):
    path = tmp_path / "queries.csv"
    path.write_text("query,interest,popularity\n" + "".join(f"q{i},food,{i}\n" for i in range(9)))
    members = strata(read_queries(path))
    assert members == {
        "food / tail": ["q0", "q1", "q2"], "food / torso": ["q3", "q4", "q5"], "food / head": ["q6", "q7", "q8"]
    }  # fmt: skip
    sample = draw(members, {"food / tail": 2, "food / torso": 3, "food / head": 0}, seed=1)
    assert [len(ids) for ids in sample.values()] == [2, 3, 0]
    assert set(sample["food / tail"]) < set(members["food / tail"])
    assert sample == draw(members, {"food / tail": 2, "food / torso": 3, "food / head": 0}, seed=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query;interest;popularity\nq;a;b\n", r"queries\.csv:1: no column 'query'"),
        ("query,interest\nq,a\n", r":1: no column 'popularity'"),
        ("query,interest,popularity\nq,a\n", r":2: expected 3 comma-separated"),
        ("query,interest,popularity\nq,a,1\nq,a,2\n", r":3: query 'q' stands twice"),
        ("query,interest,popularity\nq,a,1\nr,a,head\n", r":3: popularity 'head'"),
        ("query,interest,popularity\n", "no queries"),
    ],
)
def test_bad_query_tables_name_the_line(tmp_path, text, message):
    path = tmp_path / "queries.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_queries(path)


# --- simulation ------------------------------------------------------------------------------------------------------


def test_intervals_cover_what_they_promise():
    # 300 experiments at 95 %: standard deviation 1.3 %; the percentile bootstrap is known to be narrow at 25 queries.
    checks = {check.name: check for check in mc.interval_coverage(300, seed=1, samples=400)}
    assert checks["t interval, 300 queries"].seen == pytest.approx(0.95, abs=0.04)
    assert checks["bootstrap interval, 300 queries"].seen == pytest.approx(0.95, abs=0.04)
    assert checks["bootstrap interval, 25 queries"].seen >= 0.88


def test_neyman_estimates_better_and_only_with_weights():
    simple, proportional, neyman_, wrong = mc.designs(300, seed=2)
    assert neyman_.mean_standard_error < proportional.mean_standard_error < simple.mean_standard_error
    for design in (simple, proportional, neyman_):
        assert design.coverage.seen == pytest.approx(0.95, abs=0.04)
        assert design.mean_standard_error == pytest.approx(design.deviation, rel=0.12)
    assert wrong.coverage.seen < 0.5


def test_power_is_as_promised_where_the_formula_fits_the_design():
    seen = {check.name: check.seen for check in mc.power_of_detectable_effect(500, queries=300, seed=4)}
    assert seen["two groups, printed formula"] == pytest.approx(0.8, abs=0.05)
    assert seen["paired, formula with the correlation"] == pytest.approx(0.8, abs=0.05)
    assert seen["paired (rho 0.8), printed formula"] > 0.99
    assert seen["two groups, treatment deviates twice as much"] < 0.55
    assert seen["two groups, z_beta read as the 20 % quantile"] == pytest.approx(0.2, abs=0.05)
    assert seen["two groups, no effect"] == pytest.approx(0.05, abs=0.03)


def test_false_discoveries_stay_under_the_level():
    corrected, uncorrected = mc.segment_discoveries(60, seed=5)
    assert corrected.false_share < 0.08 < uncorrected.false_share
    assert corrected.power > 0.6


# --- the script ------------------------------------------------------------------------------------------------------


def script(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "eval/experiments.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def write_labels(folder: Path) -> None:
    """Four queries, three documents; judge b agrees with people, c says one more, a and d rank."""
    rows = [(q, d, (q + d) % 4) for q in range(4) for d in range(3)]
    (folder / "submissions").mkdir(parents=True)
    shifts = {"submissions/a": 1, "submissions/b": 0, "submissions/d": 2}
    for name, shift in {"human": 0, **shifts}.items():
        lines = [f"q{q} 0 d{d} {(label + shift) % 4}\n" for q, d, label in rows]
        (folder / f"{name}.qrels").write_text("".join(lines))


def test_script_reports(tmp_path):
    write_labels(tmp_path)
    queries = tmp_path / "queries.csv"
    queries.write_text("query,interest,popularity\n" + "".join(f"q{i},food,head\n" for i in range(4)))
    done = script(
        "--labels", str(tmp_path), "--scale-top", "3", "--k", "2", "--limit", "20", "--queries", str(queries),
        "--sample", "3", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    judged = report["labels"]["judges"]["b"]
    assert judged["single"]["mean"] == 0.0
    assert judged["effect"]["difference"] == report["labels"]["human"]["difference"]
    assert sum(report["plan"]["allocation"].values()) == 3
    assert len((tmp_path / "out/sample.csv").read_text().splitlines()) == 1 + 3
    assert report["plan"]["estimates"]["difference"]["queries"] == 4
    assert report["speed"]["ratio"] > 0
    assert "0.652" in (tmp_path / "out/report.md").read_text()
    assert "src=" in (tmp_path / "out/report.html").read_text()


def test_script_names_file_and_line(tmp_path):
    write_labels(tmp_path)
    (tmp_path / "human.qrels").write_text("q0 0 d0 7\n")
    done = script("--labels", str(tmp_path), "--scale-top", "3", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "human.qrels:1: label 7 is off the scale 0 to 3" in done.stderr
