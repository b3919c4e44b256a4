"""A jury's scores made training records, and what a model taught by them is set beside."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import local_jury
from prism.errors import DataError
from prism.evaluation.calibrating import read_labelled_pairs
from prism.files.examples import read_examples
from prism.types import Document
from studies.local_teacher import TEACHER, Scored, Teacher, read_scored
from studies.local_teacher_report import compare, judged, read_held_out

KNOWN = ("query_id", "doc_id", "language", "people", "assumed")


def jury(folder: Path, questions: int = 80) -> tuple[Path, Path]:
    """English questions with a yes, a likely no, and a pair nobody judged; half as many Japanese ones with a yes alone.
    Juror `sharp` knows in English, `blind` says 0.5 always."""
    rows, scores = [], []
    for n in range(questions):
        asked = {"query": f"When did ship {n} sail?", "query_id": f"s-{n}", "source": "s", "answers": [f"18{n:02}"]}
        found = [(f"It was built of oak. Ship {n} sailed in 18{n:02}.", {"people": 1}, 0.9)]
        found += [(f"Ship {n + 1} was large.", {"assumed": 0}, 0.2), (f"Ships, {n} of them.", {}, 0.9)]
        for at, (document, label, score) in enumerate(found if n % 3 else found[:1]):
            language = "en" if n % 3 else "ja"
            rows.append(asked | {"document": document, "doc_id": f"{n}-{at}", "language": language} | label)
            row = [f"s-{n}", f"{n}-{at}", language, label.get("people", ""), label.get("assumed", "")]
            scores.append([*row, score - 0.001 * n, 0.5])
    folder.mkdir(exist_ok=True)
    pairs, table = folder / "pairs.jsonl", folder / "scores.csv"
    rows.append(asked | {"document": "Nobody was asked about this.", "doc_id": "more", "language": "en"})
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([[*KNOWN, "sharp", "blind"], *scores])
    return pairs, table


def teach(folder: Path, *more: str) -> Path:
    pairs, table = jury(folder)
    done = CliRunner().invoke(local_jury.app, ["teach", str(pairs), str(table), str(folder / "out"), *more])
    assert done.exit_code == 0, done.output
    return folder / "out"


def refused(*words: Any) -> str:
    """The one line that a command ends in."""
    done = CliRunner().invoke(local_jury.app, list(map(str, words)))
    assert done.exit_code == 2
    assert len(done.output.strip().splitlines()) == 1
    return done.output


def test_every_known_verdict_is_kept_for_calibrating(tmp_path: Path) -> None:
    pairs, _ = jury(tmp_path)
    asked = {(row["query_id"], row["doc_id"]): row for row in map(json.loads, pairs.read_text().splitlines())}
    kept = [json.loads(line) for line in (teach(tmp_path) / "labelled.jsonl").read_text().splitlines()]
    known = {at: row.get("people", row.get("assumed")) for at, row in asked.items()}
    assert {(row["query_id"], row["doc_id"]): row["verdict"] for row in kept} == {
        at: "yes" if label else "no" for at, label in known.items() if label is not None
    }
    assert len(read_labelled_pairs(tmp_path / "out" / "labelled.jsonl")) == len(kept) > 100


def test_records_keep_questions_whole_and_apart(tmp_path: Path) -> None:
    out = teach(tmp_path)
    examples = list(read_examples(out / "train.jsonl"))
    held, columns = read_held_out(out / "held-out.jsonl")
    taught = [example.query_id for example in examples]
    assert len(taught) + len(held) == sum(3 if n % 3 else 1 for n in range(80))  # but not the pair nobody scored
    assert not {pair.row["query_id"] for pair in held} & set(taught)
    assert 0.1 < len({pair.row["query_id"] for pair in held}) / 80 < 0.4  # a quarter, by hash
    assert sorted(range(len(taught)), key=lambda at: taught.index(taught[at])) == list(range(len(taught)))
    assert columns.keys() == {
        TEACHER,
        *(f"juror {name}{fit}" for name in ("sharp", "blind") for fit in ("", ", refitted")),
    }


def test_the_teacher_believes_who_agrees_with_people(tmp_path: Path) -> None:
    examples = list(read_examples(teach(tmp_path) / "train.jsonl"))
    english = [example for example in examples if example.language == "en"]
    for at, low, high, verdict in ((0, 0.8, 1.0, "yes"), (1, 0.0, 0.2, "no"), (2, 0.8, 1.0, "yes")):
        some = [example for example in english if str(example.doc_id).endswith(f"-{at}")]
        assert all(low <= (example.teacher_score or 0.0) <= high for example in some), at
        assert {example.verdict for example in some} == {verdict}  # the last: nobody's label, so the teacher's
    # Texts by rule: the sentence with the answer, for what people called a yes, and for nothing else.
    assert all((example.evidence is not None) == str(example.doc_id).endswith("-0") for example in english)
    first = english[0]
    number = str(first.query_id)[2:]
    assert first.evidence == f"Ship {number} sailed in 18{int(number):02}."
    assert f"18{int(number):02}" in (first.contribution or "")


def test_a_language_with_one_label_alone_has_the_fit_of_all(tmp_path: Path) -> None:
    _, pairs = read_scored(*jury(tmp_path))
    teacher = Teacher(pairs)
    assert teacher.fits.keys() == {None, "en"}
    weights = teacher.report(("sharp", "blind"))
    assert weights["en"]["sharp"] > 0
    assert weights["en"]["blind"] == pytest.approx(0.0)
    with pytest.raises(DataError, match="a teacher needs 20 pairs of either label"):
        Teacher(pairs[:9])


class Says:
    """Scores a document by its length, and gives the ranking in another order."""

    def rerank(
        self, query: str, documents: list[Document], *, evidence: bool, threshold: float | None = None
    ) -> Iterable[Any]:
        assert not evidence
        return [SimpleNamespace(id=one.id, score=len(one.text) / 100) for one in reversed(documents)]


def pair(query: str, text: str, label: int | None, language: str = "en") -> Scored:
    known = {} if label is None else {"people": label}
    return Scored({"query": query, "query_id": query, "document": text, "language": language} | known, np.empty(0))


def test_scores_come_back_in_the_order_of_the_pairs() -> None:
    pairs = [pair("a", "xx", 1), pair("a", "xxxx", 0), pair("b", "x", None)]
    done: list[int] = []
    assert judged(Says(), pairs, done.append).tolist() == [0.02, 0.04, 0.01]
    assert done == [2, 1]


def test_agreement_as_by_hand() -> None:
    """before: yes to all four that are known, chance; after: right on three of four. Japanese: one pair."""
    pairs = [pair("a", "", 1), pair("a", "", 0), pair("b", "", 1), pair("b", "", None), pair("c", "", 0, "ja")]
    before, after = np.full(5, 0.8), np.array([0.9, 0.6, 0.7, 0.1, 0.3])
    teacher = np.array([1.0, 0.0, 1.0, 0.5, 0.0])
    found = {(one.model, one.language): one for one in compare(pairs, {"m": before, "n": after}, teacher, ["m"], 50)}
    every = found["n", None]
    assert (every.pairs, every.auc.value) == (4, 1.0)
    # Observed 3/4, chance (2 * 3 + 2 * 1) / 16.
    assert every.kappa.value == pytest.approx((3 / 4 - 1 / 2) / (1 / 2))
    assert (every.yes_of_yes, every.yes_of_no) == (1.0, 0.5)
    assert (found["m", None].kappa.value, found["m", None].auc.value) == (0.0, 0.5)
    assert every.over["m"].kappa.value == pytest.approx(0.5)
    assert every.over["m"].auc == every.auc.model_copy(update={"value": 0.5, "low": 0.5, "high": 0.5})
    assert found["m", None].over["m"].kappa.value == 0.0
    nats = -(math.log(0.9) + math.log(0.4) + math.log(0.7) + math.log(0.1) / 2 + math.log(0.9) / 2 + math.log(0.7)) / 5
    assert every.cross_entropy == pytest.approx(nats)
    japanese = found["n", "ja"]
    assert (japanese.pairs, japanese.auc.value, japanese.yes_of_yes, japanese.yes_of_no) == (1, None, None, 0.0)


def test_a_checkpoint_is_set_beside_jurors_and_teacher(tmp_path: Path, tiny_checkpoint: Path) -> None:
    out = teach(tmp_path, "--held-out", "0.1")
    command = ["taught", str(out), "--model", str(tiny_checkpoint), "--template", "prism", "--samples", "20"]
    done = CliRunner().invoke(local_jury.app, [*command, "--out", str(tmp_path / "report")])
    assert done.exit_code == 0, done.output
    models = json.loads((tmp_path / "report/report.json").read_text(encoding="utf-8"))["models"]
    assert {one["model"] for one in models} == {str(tiny_checkpoint), *read_held_out(out / "held-out.jsonl")[1]}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("query_id,doc_id,language,people,assumed\n", "a column of scores"),
        ("query_id,doc_id,language,people,assumed,a\ns-1,1-0,en,1,,1.5\n", "scores in [0, 1]"),
        ("query_id,doc_id,language,people,assumed,a\ns-1,1-0,en,1,,high\n", "line 2"),
        ("query_id,doc_id,language,people,assumed,a\ns-1,elsewhere,en,1,,0.5\n", "1 scores have no pair"),
    ],
)
def test_scores_that_are_none_end_in_one_line(tmp_path: Path, written: str, said: str) -> None:
    pairs, table = jury(tmp_path)
    table.write_text(written, encoding="utf-8")
    assert said in refused("teach", pairs, table, tmp_path / "out")


# --- the same scores as labels of the studies ------------------------------------------------------------------------


def study(folder: Path, *more: str) -> Path:
    pairs, table = jury(folder, 9)
    out = folder / "study"
    done = CliRunner().invoke(local_jury.app, ["study", str(pairs), str(table), str(out), *more])
    assert done.exit_code == 0, done.output
    return out


def test_scores_become_labels_and_rankings(tmp_path: Path) -> None:
    out = study(tmp_path, "--cut", "sharp=0.895")
    labels = out / "labels"
    people = (labels / "human.qrels").read_text(encoding="utf-8").splitlines()
    assert people[:3] == ["s-0 0 0-0 1", "s-1 0 1-0 1", "s-1 0 1-1 0"]  # 1-2 has no label
    said = (labels / "submissions" / "sharp.qrels").read_text(encoding="utf-8").splitlines()
    # Its scores are 0.9 - n / 1,000 for a yes, so 0.895 is still a 1.
    assert [line for line in said if line.endswith(" 1")] == [f"s-{n} 0 {n}-0 1" for n in range(6)]
    # BM25 finds the ship by its number and "sail"; jurors by their scores; equal ones by id.
    for name, first in (("bm25", "1-0"), ("sharp", "1-0"), ("blind", "1-0")):
        ranked = (out / f"{name}.run").read_text(encoding="utf-8").splitlines()
        assert [line.split()[2] for line in ranked if line.startswith("s-1 ")] == [first, "1-1"]
    assert (out / "queries.csv").read_text(encoding="utf-8").splitlines()[:2] == [
        "query,interest,popularity",
        "s-0,s,unknown",
    ]


def test_people_may_have_labelled_a_sample(tmp_path: Path) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text("query,stratum,stands_for\ns-1,s,9\n", encoding="utf-8")
    labels = study(tmp_path, "--only", str(sample)) / "labels"
    assert (labels / "human.qrels").read_text(encoding="utf-8").splitlines() == ["s-1 0 1-0 1", "s-1 0 1-1 0"]
    assert len((labels / "submissions" / "blind.qrels").read_text(encoding="utf-8").splitlines()) == 15


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--cut", "sharp"], "--cut takes JUROR=SCORE"),
        (["--cut", "sharp=nan"], "a score in [0, 1]"),
        (["--only", "nowhere.csv"], "nowhere.csv: No such file"),
        (["--cut", "blunt=0.5"], "the jurors are sharp, blind"),
        (["--only", "none.csv"], "has none of the 9 questions"),
    ],
)
def test_studies_that_cannot_be_end_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.csv").write_text("query\nelsewhere\n", encoding="utf-8")
    pairs, table = jury(tmp_path, 9)
    assert said in refused("study", pairs, table, tmp_path / "out", *given)
