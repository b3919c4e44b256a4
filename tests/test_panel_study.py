"""The panel study: nothing leaks, differences are paired, and the script writes a page that stands alone."""

from __future__ import annotations

import json
import re
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import panel_study as script
from prism.errors import InputError
from prism.files.label_files import LabelTable
from prism.labeling.sequential import replay, when_decided
from studies import panel_study
from studies.aggregation import majority_vote, verdict_kappa
from studies.panel_study import PanelStudy, Setting, calibrated_judge, study_panel

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "eval" / "panel_study.py"
LLMJUDGE = ROOT / "../shared/data/labels/llmjudge"


def made_up(queries: int = 5, pairs: int = 24, jurors: int = 3) -> LabelTable:
    """People and jurors on a scale of 0 to 3; the first juror errs least, the last most."""
    generator = np.random.default_rng(7)
    people = generator.integers(0, 4, queries * pairs)
    noise = [np.rint(generator.normal(0, 0.6 + 0.5 * juror, len(people))) for juror in range(jurors)]
    votes = np.clip(np.stack([people, *(people + n for n in noise)], axis=1), 0, 3)
    return LabelTable(
        names=("people", *(f"juror{juror}" for juror in range(jurors))),
        queries=tuple(f"q{query}" for query in range(queries)),
        query_of=np.repeat(np.arange(queries), pairs),
        votes=votes.astype(np.float64),
        left_out=(0,) * (jurors + 1),
    )


def with_people(table: LabelTable, people: np.ndarray) -> LabelTable:
    votes = np.column_stack([people, table.votes[:, 1:]])
    return LabelTable(table.names, table.queries, table.query_of, votes, table.left_out)


@pytest.fixture(scope="module")
def study() -> PanelStudy:
    return study_panel(
        made_up(), ["juror0", "juror1", "juror2"], 2, crowd=("dawid-skene",), thresholds=(1.0,), samples=60
    )


def test_figures_are_those_of_the_parts(study: PanelStudy) -> None:
    table = made_up()
    truth, votes = table.votes[:, 0] >= 2, table.votes[:, 1:]
    judged = {found.name: found for found in study.judged}
    assert (study.pairs, study.queries, study.positives) == (120, 5, int(truth.sum()))
    whole = majority_vote(votes, 2)
    assert judged["majority"].kappa.value == pytest.approx(verdict_kappa(whole, truth))
    assert judged["mean grade > 1"].kappa.value == pytest.approx(verdict_kappa((votes.mean(axis=1) > 1) * 1.0, truth))
    assert study.single["juror1"].value == pytest.approx(verdict_kappa(majority_vote(votes[:, [1]], 2), truth))
    exact = study.asked[0]
    assert (exact.name, exact.same_verdict) == ("majority decided", 1)
    assert exact.saved == pytest.approx(replay(votes.astype(int).tolist(), when_decided(2)).saved)


def test_differences_are_paired(study: PanelStudy) -> None:
    """A method against itself differs by 0 in every sample, however wide its own interval is."""
    judged = {found.name: found for found in study.judged}
    same = judged["majority"].minus_majority
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert judged["best juror"].minus_best_juror.high == 0
    for found in study.judged:
        assert found.minus_majority.value == pytest.approx(
            (found.kappa.value or 0) - (judged["majority"].kappa.value or 0)
        )


def test_every_order_was_tried(study: PanelStudy) -> None:
    votes = made_up().votes[:, 1:].astype(int)
    saved = {order: replay(votes[:, order].tolist(), when_decided(2)).saved for order in permutations(range(3))}
    assert study.orders.given == pytest.approx(saved[(0, 1, 2)])
    assert study.orders.lowest == pytest.approx(min(saved.values()))
    assert study.orders.highest == pytest.approx(max(saved.values()))


def test_a_posterior_never_sees_the_query_it_is_judged_on() -> None:
    """What people say about query 1 changes nothing there, and something elsewhere."""
    table = made_up()
    people = table.votes[:, 0]
    turned = with_people(table, np.where(table.query_of == 1, 3 - people, people))
    rows = [tuple(row) for row in table.votes[:, 1:].astype(int).tolist()]
    models = []
    for given in (table, turned):
        setting = Setting(given, table.names[1:], 2, samples=5)
        models.append([panel_study.without_query(query, setting, rows, setting.truth_P) for query in range(5)])
    before, after = models
    assert before[1] == after[1]
    assert all(before[query] != after[query] for query in (0, 2, 3, 4))


def test_bounds_trade_calls_for_certainty(study: PanelStudy) -> None:
    for name in ("posterior, from people", "posterior, from votes"):
        for order in ("given", "reversed"):
            found = [asked for asked in study.asked if asked.name == name and asked.order == order]
            saved = [asked.saved for asked in sorted(found, key=lambda asked: asked.bound or 0)]
            assert len(saved) == len(panel_study.BOUNDS)
            assert saved == sorted(saved, reverse=True)


def test_seeds_are_smaller_than_the_set(study: PanelStudy) -> None:
    assert {found.queries for found in study.seeded} == {1, 2}  # of 1, 2, 5, 10, 20 with five queries
    assert all(0 < found.draws <= panel_study.SEED_DRAWS for found in study.seeded)
    assert {found.name for found in study.seeded if found.queries == 2} == {
        "mean grade, calibrated",
        "juror weights",
        "best juror",
        panel_study.NO_SEED,
    }


def test_one_judge_whose_scale_is_shifted() -> None:
    """A judge who says 3 where people say 2 or 3, and 2 where they say 1, agrees once its cut is set elsewhere."""
    table = made_up(jurors=1)
    people = table.votes[:, 0]
    shifted = LabelTable(
        table.names, table.queries, table.query_of, np.column_stack([people, np.minimum(people + 1, 3)]), (0, 0)
    )
    own, fitted = calibrated_judge(shifted, (2,), samples=5)[2]
    assert own.value is not None
    assert own.value < 0.7
    assert fitted.value == 1


def test_what_cannot_be_studied_is_said() -> None:
    table = made_up()
    with pytest.raises(InputError, match="0 of 120 pairs >= 9"):
        study_panel(table, ["juror0"], 9)
    with pytest.raises(InputError, match="1 queries"):
        study_panel(table.limited(1), ["juror0"], 2)
    with pytest.raises(InputError, match="no judge 'x'"):
        study_panel(table, ["x"], 2)


# --- the script ------------------------------------------------------------------------------------------------------


runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
app = typer.Typer()
app.command()(script.main)


def test_help_teaches() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for option in ("--data", "--out", "--limit", "--samples", "--seed"):
        assert option in result.stdout


def test_missing_data_is_one_line(tmp_path: Path) -> None:
    result = runner.invoke(app, ["--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "point --data at" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
@pytest.mark.skipif(not LLMJUDGE.is_dir(), reason="no ../shared/data/labels/llmjudge")
def test_the_page_stands_alone(tmp_path: Path) -> None:
    result = runner.invoke(
        app, ["--data", str(LLMJUDGE.parent), "--out", str(tmp_path), "--limit", "3", "--samples", "20"]
    )
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/svg') >= 6
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    body = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert set(body["panel"]) == {">= 1", ">= 2", ">= 3"}
    assert len(body["llmjudge"]["compared"]) == 17
    assert body["rag25"]["labels"] == [0, 1, 2, 3, 4]
    assert "Only the first 3 queries" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.skipif(
    not (ROOT / "eval/results/panel_study/report.json").is_file(), reason="no eval/results/panel_study/report.json"
)
def test_the_kept_results_hold_the_known_facts() -> None:
    body = json.loads((ROOT / "eval/results/panel_study/report.json").read_text(encoding="utf-8"))
    kappas = {found["name"]: found["kappa"]["value"] for found in body["panel"][">= 2"]["judged"]}
    assert kappas["majority"] == pytest.approx(0.396, abs=5e-4)
    assert kappas["dawid-skene"] == pytest.approx(0.412, abs=5e-4)
    assert kappas["mean grade > 1"] == pytest.approx(0.415, abs=5e-4)
    assert kappas["best juror"] == pytest.approx(0.428, abs=5e-4)
    exact = body["panel"][">= 2"]["asked"][0]
    assert (exact["same_verdict"], exact["saved"]) == (1, pytest.approx(0.363, abs=5e-4))
    assert "eval/panel_study.py" in body["command"]
