"""Offline measures against online metrics: correlations by hand, tables read strictly, simulated users by formula."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import label_alignment as script
from prism.errors import DataError, InputError
from prism.labeling.rankings import RankingAgreement
from prism.measures.agreement import Estimate
from studies import label_alignment as study
from studies.alignment import align, read_online
from studies.clicks import Users, clicks, simulate

ROOT = Path(__file__).resolve().parents[1]


# --- alignment -------------------------------------------------------------------------------------------------------


def test_tau_b_by_hand():
    # Pairs of a, b, c: (a, b) and (a, c) alike, (b, c) not: (2 - 1) / 3. Spearman: 1 - 6 * (0 + 1 + 1) / (3 * 8).
    found = align({"a": 3, "b": 2, "c": 1}, {"a": 30, "b": 10, "c": 20}, ("nDCG", "clicks"))
    assert found.tau_b == pytest.approx(1 / 3)
    assert found.rho == pytest.approx(0.5)
    assert found.agreeing_pairs == pytest.approx(2 / 3)
    assert found.disagreements == (("b", "c"),)


def test_ties_count_as_tau_b_says():
    # Offline a > b = c, online a > b > c: 2 concordant, 1 tied on one side: 2 / sqrt(2 * 3).
    found = align({"a": 3, "b": 2, "c": 2}, {"a": 3, "b": 2, "c": 1}, ("x", "y"))
    assert found.tau_b == pytest.approx(2 / 6**0.5)
    assert found.agreeing_pairs == 1.0


def test_less_is_better_is_turned_round():
    found = align({"a": 3, "b": 2}, {"a": 0.1, "b": 0.4}, ("nDCG", "abandonment"), more=False)
    assert found.tau_b == 1.0


def test_nothing_to_order():
    flat = align({"a": 1, "b": 1}, {"a": 1, "b": 2}, ("x", "y"))
    assert (flat.tau_b, flat.rho, flat.agreeing_pairs) == (None, None, None)
    with pytest.raises(InputError, match="1 systems in common"):
        align({"a": 1, "b": 1}, {"a": 1, "c": 2}, ("x", "y"))


def test_online_table(tmp_path):
    path = tmp_path / "online.csv"
    path.write_text("system,ctr,dwell_time\na,0.2,31.5\nb,0.1,40\n")
    assert read_online(path, ["a", "b"]) == {"ctr": {"a": 0.2, "b": 0.1}, "dwell_time": {"a": 31.5, "b": 40.0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("system;ctr\na;0.2\n", r"online\.csv:1: no column 'system': expected comma-separated `system`"),
        ("system,ctr\na;0.2\n", r":2: expected 2 comma-separated"),
        ("system,likes\na,3\n", r":1: expected .* got system, likes"),
        ("system,ctr\nz,0.2\n", r":2: no run of system 'z'"),
        ("system,ctr\na,0.2\na,0.3\n", r":3: system 'a' stands twice"),
        ("system,ctr\na,1.2\nb,0.1\n", r":2: ctr '1.2' is not a number from 0 to 1"),
        ("system,clicks\na,nan\n", r":2: clicks 'nan'"),
        ("system,ctr\na,0.2\n", r"no line for system 'b'"),
    ],
)
def test_bad_online_tables_name_the_line(tmp_path, text, message):
    path = tmp_path / "online.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_online(path, ["a", "b"])


# --- simulated users -------------------------------------------------------------------------------------------------

SEARCHES = 40_000
"""The standard deviation of a share is then at most 0.0025."""


def rates(gains: list[float], model: str, users: Users) -> np.ndarray:
    return clicks(np.array(gains), model, users, SEARCHES, np.random.default_rng(0)).mean(axis=0)


def test_position_based_model():
    # P(click at k) = (1 / k) * attraction; attraction 0.1 + 0.8 * gain.
    users = Users(noise=0.1, attraction=0.9)
    assert rates([1.0, 1.0, 0.0], "pbm", users) == pytest.approx([0.9, 0.45, 0.1 / 3], abs=0.01)


def test_cascade_model():
    # The click at k needs no click above: 0.9, 0.1 * 0.9, 0.1 * 0.1 * 0.1; one click at most.
    users = Users(noise=0.1, attraction=0.9)
    assert rates([1.0, 1.0, 0.0], "cascade", users) == pytest.approx([0.9, 0.09, 0.001], abs=0.01)
    assert clicks(np.ones(5), "cascade", users, 500, np.random.default_rng(1)).sum(axis=1).max() == 1


def test_dynamic_bayesian_network():
    # On after rank 1 with gamma * (1 - a s) = 0.8 * (1 - 0.9 * 0.5); the second document is as attractive.
    users = Users(noise=0.1, attraction=0.9, satisfaction=0.5, continuation=0.8)
    assert rates([1.0, 1.0], "dbn", users) == pytest.approx([0.9, 0.9 * 0.8 * 0.55], abs=0.01)


def test_online_metrics_by_hand():
    # All is seen and clicked (eta 0, attraction and noise 1): CTR 1, two clicks a search with results, none abandoned.
    users = Users(noise=1.0, attraction=1.0, eta=0.0, dwell_s=10.0)
    found = simulate([[3, 0], []], 3, "pbm", users=users, searches=4000)
    assert (found.ctr, found.clicks, found.abandonment, found.zero_result_rate) == (1.0, 1.0, 0.0, 0.5)
    # 10 seconds on the label 3, one on the label 0, and half of the searches have none.
    assert found.dwell_time == pytest.approx(5.5, rel=0.05)
    assert simulate([[0]], 3, "dbn", users=Users(noise=0.0)).abandonment == 1.0


def test_users_refuse_labels_off_the_scale():
    with pytest.raises(InputError, match="label 4 lies outside 0 to 3"):
        simulate([[4]], 3, "pbm")
    with pytest.raises(InputError, match="no result pages"):
        simulate([], 3, "pbm")


# --- the script ------------------------------------------------------------------------------------------------------


def invoke(*words: str):
    import typer

    app = typer.Typer()
    app.command()(script.main)
    return CliRunner().invoke(app, list(words))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Human labels of three queries, a judge that agrees and one that says the opposite; a good, a bad run."""
    rows = [(q, d, d) for q in range(3) for d in range(4)]
    for name, label in {"human": lambda d: d, "same": lambda d: d, "opposite": lambda d: 3 - d}.items():
        (tmp_path / f"{name}.qrels").write_text("".join(f"q{q} 0 d{d} {label(lab)}\n" for q, d, lab in rows))
    orders = {"good": [3, 2, 1, 0], "fair": [2, 3, 1, 0], "bad": [0, 1, 2, 3]}
    for name, order in orders.items():
        lines = [f"q{q} Q0 d{d} {r} {9 - r} {name}\n" for q in range(3) for r, d in enumerate(order, 1)]
        (tmp_path / f"{name}.run").write_text("".join(lines))
    (tmp_path / "online.csv").write_text("system,ctr,abandonment\ngood,0.5,0.1\nfair,0.4,0.2\nbad,0.2,0.3\n")
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    found = ["--human", str(folder / "human.qrels"), "--out", str(folder / "out")]
    for name in ("same", "opposite"):
        found += ["--model", str(folder / f"{name}.qrels")]
    for name in ("good", "fair", "bad"):
        found += ["--run", str(folder / f"{name}.run")]
    return [*found, *more]


def test_script_orders_systems(folder):
    done = invoke(*words(folder, "--online", str(folder / "online.csv")))
    assert done.exit_code == 0, done.output
    report = json.loads((folder / "out/report.json").read_text())
    assert {order["name"]: order["tau"]["value"] for order in report["orders"]} == {"same": 1.0, "opposite": -1.0}
    taus = {(a["offline"], a["online"]): a["tau_b"] for a in report["alignment"]["human"]}
    assert taus["nDCG@10", "log: ctr"] == 1.0
    assert taus["nDCG@10", "log: abandonment"] == 1.0
    assert "0.9516" in (folder / "out/report.md").read_text()


def test_script_names_what_does_not_match(folder):
    (folder / "bad.run").write_text("other Q0 d1 1 1.0 x\n")
    done = invoke(*words(folder))
    assert done.exit_code == 2
    assert "bad.run:1: query 'other' is not in" in done.output
    (folder / "bad.run").write_text("q1 Q0 d1 1 x\n")
    assert "bad.run:1: got 5 columns" in invoke(*words(folder)).output


def test_help_teaches():
    shown = CliRunner().invoke(script.app, ["--help"]).output
    assert "    python eval/label_alignment.py --labels" in shown


def test_script_simulates_systems_and_users(folder):
    done = invoke(
        "--human", str(folder / "human.qrels"), "--model", str(folder / "same.qrels"), "--out", str(folder / "out")
    )
    assert done.exit_code == 0, done.output
    report = json.loads((folder / "out/report.json").read_text())
    assert report["orders"][0]["systems"] == 20
    assert report["orders"][0]["tau"]["value"] == pytest.approx(1.0)
    assert set(report["online"]) == {"pbm", "cascade", "dbn"}
    assert "Simulated systems" in (folder / "out/report.md").read_text()


def order(name: str, tau: float | None) -> RankingAgreement:
    return RankingAgreement(
        name=name, measure="nDCG@10", systems=4, queries=60, tau=Estimate(value=tau), rho=Estimate(value=tau), scores={}
    )


def test_the_headline_praises_no_judge_that_orders_systems_the_other_way_round():
    assert study.headline([order("a", -0.5), order("b", None)], 4) == (
        "No judge orders 4 systems as people do: the best, a, has tau-b -0.500."
    )
    assert study.headline([order("b", None)], 4) == "No judge tells 4 systems apart."
    assert study.headline([order("a", 0.25), order("b", 0.5)], 4).startswith("b orders 4 systems most like people")


def test_a_judge_that_labels_its_own_ranking_is_named():
    runs = ["scifact.bm25", "scifact.rrf-bm25-mini", "scifact.mini", "scifact.minimal"]
    assert study.own_runs(["mini", "gpt"], runs) == {"mini": ["scifact.rrf-bm25-mini", "scifact.mini"]}
