"""`prism data build`: losses per record, drops with reasons, splits, leakage, balance, a card that adds up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prism import cli
from prism.data.assemble import build_training_data, losses_for, verdict_of
from prism.data.card import Rules, Sources
from prism.data.leakage import EvaluationTexts, LeakageCheck
from prism.errors import DataError
from prism.files.examples import read_examples
from prism.files.jsonl import write_rows
from prism.text import stable_id

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def save(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    write_rows(path, rows)
    return path


def load(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def pair(number: int) -> dict[str, Any]:
    return {"query": f"query {number}", "document": f"document {number}", "doc_id": f"d{number}"}


def labelled(number: int, label: int | None, share: float = 1.0, **more: Any) -> dict[str, Any]:
    """A line as `prism label` writes it; `share` of the votes are behind the label."""
    votes = {} if label is None else {"a": label, "b": label if share == 1.0 else 1 - label}
    judged = {"verdict": None if label is None else "yes" if label else "no", "label": label}
    yes = None if label is None else share if label else 1 - share
    return {**pair(number), **judged, "votes": votes, "failures": {"c": "refused"}, "vote_share": yes, **more}


ONE_SPLIT = {"train": 1.0}


@pytest.mark.parametrize(
    ("verdict", "teacher", "losses"),
    [
        ("yes", 0.9, ("distill", "sft")),
        ("yes", 0.5, ("distill", "sft")),
        ("yes", 0.4999, ("sft",)),
        ("no", 0.4999, ("distill", "sft")),
        ("no", 0.5, ("sft",)),
        ("yes", None, ("sft",)),
    ],
)
def test_only_where_teacher_and_panel_agree_is_there_distillation(
    verdict: Any, teacher: float | None, losses: tuple[str, ...]
) -> None:
    assert losses_for(verdict, teacher) == losses


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        ({"label": 1}, "yes"),
        ({"label": 0}, "no"),
        ({"label": None}, None),
        ({"label": None, "verdict": "yes"}, "yes"),
        ({"label": 1, "verdict": None}, None),
        ({"label": 1, "verdict": "no"}, "no"),
        ({"verdict": "no"}, "no"),
        ({}, None),
    ],
)
def test_verdicts(row: dict[str, Any], verdict: str | None) -> None:
    assert verdict_of(row, None, "p") == verdict


def test_graded_labels_and_nonsense() -> None:
    assert verdict_of({"label": 1}, 2, "p") == "no"
    assert verdict_of({"label": 2, "verdict": "no"}, 2, "p") == "yes"
    with pytest.raises(DataError, match="l:4: label: expected a number or null, got 'maybe'"):
        verdict_of({"label": "maybe"}, 1, "l:4")
    with pytest.raises(DataError, match="l:4: verdict: expected yes, no or null, got 1"):
        verdict_of({"verdict": 1}, None, "l:4")


def test_everything_is_joined_and_every_drop_has_its_reason(tmp_path: Path) -> None:
    labels = save(
        tmp_path / "labels.jsonl",
        [
            labelled(0, 1),  # teacher agrees, has a target
            labelled(1, 1),  # teacher disagrees
            labelled(2, 0),  # teacher agrees
            labelled(3, 0),  # no teacher score
            labelled(4, None),  # no label
            labelled(0, 1),  # duplicate
            labelled(5, 1, share=0.5),  # disputed
            {**labelled(6, 1), "query": "when does the harbour freeze"},  # leaks
        ],
    )
    scores = save(
        tmp_path / "scores.jsonl",
        [{**pair(n), "teacher_score": score} for n, score in ((0, 0.81), (1, 0.16), (2, 0.25), (5, 0.9))],
    )
    targets = save(
        tmp_path / "targets.jsonl",
        [
            {**pair(0), "contribution": "It says so.", "evidence": "document 0"},
            {**pair(1), "contribution": "It says so.", "evidence": None},
            {**pair(2), "contribution": "not for a no", "evidence": "document 2"},
        ],
    )
    check = LeakageCheck(EvaluationTexts({"e": "When does the harbour freeze?"}, {}))
    card = build_training_data(
        Sources(labels=labels, scores=scores, targets=targets),
        Rules(min_majority=0.6, power=0.5, splits=ONE_SPLIT),
        tmp_path / "out",
        leakage=check,
    )
    found = list(read_examples(tmp_path / "out" / "train.jsonl"))
    assert [(e.query, e.verdict, e.losses, e.teacher_score, e.evidence) for e in found] == [
        ("query 0", "yes", ("distill", "sft"), 0.9, "document 0"),
        ("query 1", "yes", ("sft",), 0.4, None),
        ("query 2", "no", ("sft",), 0.5, None),  # 0.25 ** 0.5 is 0.5, a yes: the teacher disagrees once transformed
        ("query 3", "no", ("sft",), None, None),
    ]
    assert found[0].votes == {"a": 1, "b": 1, "c": None}
    assert found[0].vote_share == 1.0
    assert load(tmp_path / "out" / "train.jsonl")[0]["id"] == stable_id("query 0", "document 0")
    assert {(d["place"].rpartition(":")[2], d["reason"]) for d in load(tmp_path / "out" / "dropped.jsonl")} == {
        ("5", "no label: the panel failed or is undecided"),
        ("6", "duplicate pair"),
        ("7", "fewer than 60% of the votes behind the verdict"),
        ("8", "leakage: query is one of the evaluation set"),
    }
    assert card["labels_read"] == 8
    assert card["splits"] == {"train": {"queries": 4, "yes": 2, "no": 2}}
    assert card["losses"] == {"sft": 3, "distill+sft": 1}
    assert card["targets"] == {"written": 1, "label only": 1}
    # Panel yes, yes, no against teacher yes, no, yes: agreement 1/3, expected 4/9 + 1/9, kappa (3/9 - 5/9) / (4/9).
    agreement = card["agreement"]["teacher_and_panel"]
    assert (agreement["pairs"], agreement["agreement"], agreement["kappa"]) == (3, 0.3333, -0.5)
    assert card["agreement"]["jurors"] == {"a": {"agrees": 4}, "b": {"agrees": 4}, "c": {"failed": 4}}
    assert sum(found["count"] for found in card["dropped"].values()) == 4
    assert not list((tmp_path / "out").glob("*.part*"))


def test_splits_are_by_query_and_the_build_is_reproducible(tmp_path: Path) -> None:
    rows = [{**labelled(n, n % 2), "query": f"query {n // 4}"} for n in range(400)]
    labels = save(tmp_path / "labels.jsonl", rows)
    rules = Rules(splits={"train": 0.8, "dev": 0.2})
    first = build_training_data(Sources(labels=labels), rules, tmp_path / "a")
    again = build_training_data(Sources(labels=labels), rules, tmp_path / "b")
    assert {**first, "inputs": 0} == {**again, "inputs": 0}
    sides = {name: load(tmp_path / "a" / f"{name}.jsonl") for name in ("train", "dev")}
    assert sides["train"] == load(tmp_path / "b" / "train.jsonl")
    assert sum(map(len, sides.values())) == 400
    assert {r["query"] for r in sides["train"]}.isdisjoint({r["query"] for r in sides["dev"]})
    assert {name: len({r["query"] for r in found}) for name, found in sides.items()} == {
        name: found["queries"] for name, found in first["splits"].items()
    }


def test_balance_counts_add_up(tmp_path: Path) -> None:
    rows = [{**labelled(n, int(n < 10)), "teacher_score": 0.95 if n < 10 else 0.05} for n in range(100)]
    card = build_training_data(
        Sources(labels=save(tmp_path / "l.jsonl", rows)), Rules(splits=ONE_SPLIT, balance_total=30), tmp_path / "out"
    )
    found = Counter(row["verdict"] for row in load(tmp_path / "out" / "train.jsonl"))
    assert found["yes"] == 10
    assert found.total() == sum(after for _, after in card["balance"]["cells"].values()) <= 30
    dropped = load(tmp_path / "out" / "dropped.jsonl")
    assert {row["reason"] for row in dropped} == {"balance: its cell of score and length is full"}
    assert len(dropped) == 100 - found.total()


def test_malformed_input_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    labels.write_text(json.dumps(labelled(0, 1)) + "\n" + json.dumps({**pair(1), "label": "maybe"}) + "\n{broken\n")
    scores = save(tmp_path / "s.jsonl", [{**pair(0), "teacher_score": 7}, {**pair(1), "teacher_score": 0.5}])
    base = ["data", "build", str(labels), str(tmp_path / "out"), "--splits", "train=1.0"]
    for more, words in (
        ([], "labels.jsonl:2: label"),
        (["--scores", str(scores)], "s.jsonl:1: teacher_score: expected"),
    ):
        failed = runner.invoke(cli.app, [*base, *more])
        assert failed.exit_code == 2
        assert words in failed.stderr
        assert not (tmp_path / "out" / "train.jsonl").exists()
    passed = runner.invoke(cli.app, [*base, "--scores", str(scores), "--on-bad", "skip"])
    assert passed.exit_code == 0, passed.stderr
    assert "dropped 3: malformed line" in passed.stderr
    assert len(load(tmp_path / "out" / "train.jsonl")) == 1


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no record is left"):
        build_training_data(Sources(labels=save(tmp_path / "l.jsonl", [labelled(0, None)])), Rules(), tmp_path / "out")


def test_the_card_shows_cost_and_cannot_be_forged(tmp_path: Path) -> None:
    row = {**labelled(0, 1), "source": "a|b\n# Fake <script> \x1b[31m", "teacher_score": 0.7}
    labels = save(tmp_path / "labels.jsonl", [row])
    (tmp_path / "labels.jsonl.report.json").write_text(json.dumps({"cost": {"usd": 1.25}}))
    card = build_training_data(Sources(labels=labels), Rules(splits=ONE_SPLIT), tmp_path / "out")
    assert card["cost"] == {"labels.jsonl": {"usd": 1.25}}
    page = (tmp_path / "out" / "card.md").read_text()
    assert "| a\\|b # Fake &lt;script> \ufffd[31m | 1 |" in page
    assert "\n# Fake" not in page
    assert '{"usd": 1.25}' in page
    assert "1 labelled pairs were read, 1 are in the files" in page
