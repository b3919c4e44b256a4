"""Pairs for a jury of small models, and the report on its votes: counted by hand."""

from __future__ import annotations

import gzip
import json
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import local_jury
from prism.files.label_files import PairIds
from prism.labeling.rubrics import RUBRICS
from prism.labeling.store import Store
from prism.text import stable_id
from prism.types import Usage, Vote
from studies.local_jury import MOST_CHARS, SHARES, make_pairs, read_jury, read_truth
from studies.local_jury_report import ranked

BINARY = RUBRICS["binary"]


def write_sets(folder: Path, questions: int = 8) -> Path:
    """Each set: questions with an answer, its passage, and one passage too long; in English also a judged no."""
    folder.mkdir()
    for name in SHARES:
        lang = name.rpartition(".")[2]
        rows: list[dict[str, Any]] = []
        for n in range(questions):
            asked = {
                "question": f"When did ship {n} of {name} sail?",
                "evidence": [],
                "lang": lang,
                "answers": [f"18{n}0"],
            }
            rows.append({**asked, "passage": f"Ship  {n} of {name}\nsailed in 18{n}0.", "label": 1})
            rows.append({**asked, "passage": f"Ship {n} " + "x" * MOST_CHARS, "label": 1})
            if name.startswith("squad"):
                rows.append({**asked, "passage": f"Ship {n} of {name} was large, a ship of oak.", "label": 0})
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def test_pairs_are_judged_ones_and_their_neighbours(tmp_path: Path) -> None:
    folder = write_sets(tmp_path / "pairs")
    rows = list(make_pairs(folder, 40, seed=1))
    assert rows == list(make_pairs(folder, 40, seed=1))
    assert rows != list(make_pairs(folder, 40, seed=2))
    assert len(rows) >= 40
    assert sum(row["language"] == "en" for row in rows) / len(rows) == pytest.approx(0.5, abs=0.1)
    assert all(len(row["document"]) <= MOST_CHARS for row in rows)
    by_question: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_question.setdefault(row["query"], []).append(row)
    for question, some in by_question.items():
        yes = [row for row in some if row.get("people") == 1]
        assert [row["document"] for row in yes] == [f"{question[9:-6].capitalize()} sailed in 18{question[14]}0."]
        assert len(some) == 3 + ("squad" in question)
        assert len({row["query_id"] for row in some}) == 1
        # The neighbours hold other years: taken for noes, as no person said so.
        assert [row.get("assumed") for row in some if "people" not in row] == [0, 0]


def test_a_neighbour_that_holds_the_answer_is_left_open(tmp_path: Path) -> None:
    folder = write_sets(tmp_path / "pairs")
    with gzip.open(folder / "jaquad.ja.jsonl.gz", "wt", encoding="utf-8") as file:
        for n in (1, 2):
            row = {"question": f"ship {n}?", "passage": f"Ship {n} sailed in 1850.", "label": 1, "lang": "ja"}
            file.write(json.dumps({**row, "answers": ["1850"]}) + "\n")
    found = [row for row in make_pairs(folder, 40, seed=1) if row["source"] == "jaquad"]
    assert [row.get("people", row.get("assumed")) for row in found] == [1, None, 1, None]


# --- the report ------------------------------------------------------------------------------------------------------

SAID = {"a": [1, 1, 0, 0, 1, 0, None, 0], "b": [1, 0, 0, 0, 1, 1, 1, 0], "c": [1, 1, 1, 1, 1, 0, 1, 1]}
PEOPLE = [1, 1, 0, 0, 1, 0, 1, None]
"""The last pair was judged by nobody, and taken for a no."""


@pytest.fixture
def jury(tmp_path: Path) -> tuple[Path, Path]:
    """Two pairs a question; each vote three seconds after its call."""
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "labels"
    rows = []
    for n, label in enumerate(PEOPLE):
        row = {
            "query": f"q{n // 2}",
            "document": f"d{n}",
            "query_id": f"q{n // 2}",
            "doc_id": f"d{n}",
            "language": "en",
        }
        rows.append(row | ({"assumed": 0} if label is None else {"people": label}))
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = out / "votes.sqlite"
    with closing(Store(file)) as store, closing(sqlite3.connect(file)) as database:
        store.register(BINARY, dict.fromkeys(SAID, "x"))
        for name, labels in SAID.items():
            for n, label in enumerate(labels):
                id_ = stable_id(f"q{n // 2}", f"d{n}")
                call = store.add_call(id_, name, BINARY.key, "here", Decimal(0))
                ((sent,),) = database.execute("SELECT sent_at FROM calls WHERE id = ?", (call,))
                later = datetime.fromisoformat(sent) + timedelta(seconds=3)
                failure = "cut_off" if label is None else None
                score = 0.2 + 0.1 * n if name == "c" else None
                usage = Usage(prompt_tokens=100, written_tokens=2)
                vote = Vote(pair_id=id_, juror=name, label=label, failure=failure, rubric=BINARY.key, usage=usage)
                store.add_vote(vote.model_copy(update={"created_at": later, "score": score}), call)
    return pairs, out


def test_truth_with_and_without_what_is_taken_for_granted(jury: tuple[Path, Path]) -> None:
    pairs, _ = jury
    assert len(read_truth(pairs)) == 7
    assert len(read_truth(pairs, assumed=True)) == 8


def test_seconds_are_those_between_call_and_vote(jury: tuple[Path, Path]) -> None:
    _, by = read_jury(jury[1])[BINARY.key]
    assert [timed.seconds for timed in by.values()] == [3.0] * len(SAID)


def test_the_report_counts_as_by_hand(jury: tuple[Path, Path], tmp_path: Path) -> None:
    """a: right on its six answers. b: 1 of 4 yes missed, 1 of 3 noes called yes: observed 5/7, chance (4*4+3*3)/49."""
    pairs, labels = jury
    out = tmp_path / "report"
    done = CliRunner().invoke(
        local_jury.app, ["report", str(pairs), str(labels), "--panel", "a,b,c", "--out", str(out), "--samples", "20"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))[BINARY.key]
    assert found["cost"]["a"]["failures"] == {"cut_off": 1}
    assert found["cost"]["b"]["labels"] == {"0": 4, "1": 4}
    people = found["people"]
    assert people["a"]["kappa"]["value"] == pytest.approx(1.0)
    assert people["b"]["right"] == pytest.approx(5 / 7)
    assert people["b"]["kappa"]["value"] == pytest.approx((5 / 7 - 25 / 49) / (1 - 25 / 49))
    assert (people["b"]["yes_of_yes"], people["b"]["yes_of_no"]) == (pytest.approx(3 / 4), pytest.approx(1 / 3))
    # c: two of three noes called yes: observed 5/7, chance (4*6 + 3*1)/49.
    assert people["c"]["kappa"]["value"] == pytest.approx((5 / 7 - 27 / 49) / (1 - 27 / 49))
    # c's scores grow from pair to pair. Yes: 0, 1, 4, 6; no: 2, 3, 5. Of 12 couples the yes is higher in 2 + 3.
    assert people["scored"]["c, people"]["auc"] == pytest.approx(5 / 12)
    assert people["scored"].keys() == {"c, people", "c, people and likely noes"}
    table = (out / "scores.csv").read_text(encoding="utf-8").splitlines()
    assert table[0] == "query_id,doc_id,language,people,assumed,c"
    assert [line.split(",")[:5] for line in (table[1], table[-1])] == [
        ["q0", "d0", "en", "1", ""],
        ["q3", "d7", "en", "", "0"],
    ]
    assert [float(line.rpartition(",")[2]) for line in table[1:]] == pytest.approx([0.2 + 0.1 * n for n in range(8)])
    # With the eighth pair, taken for a no, which b calls no: observed 6/8, chance (4*4 + 4*4)/64.
    assert people["b"]["kappa_likely"]["value"] == pytest.approx((6 / 8 - 1 / 2) / (1 / 2))
    assert people["b"]["by_language"] == {"en": pytest.approx(people["b"]["kappa"]["value"])}
    majority = next(way for way in found["together"]["judged"] if way["name"] == "majority")
    # Pair by pair: yes, yes, no, no, yes, no (a and c), yes (b and c): people's own.
    assert majority["kappa"]["value"] == pytest.approx(1.0)
    assert found["together"]["positives"] == 4


def test_scores_of_several_jurors_are_weighed_on_other_questions() -> None:
    """Log odds of one part people's yes from their no, of the other say nothing: together they part them too."""
    truth = {f"p{n}": (PairIds(f"q{n // 2}", f"d{n}"), label or 0, "en") for n, label in enumerate(PEOPLE)}
    sharp = {id_: (3.0 if label else -2.0) + 0.01 * n for n, (id_, (_, label, _)) in enumerate(truth.items())}
    blind = {id_: float(n % 2) for n, id_ in enumerate([*truth, "somebody else's pair"])}
    pairs, auc, kappa = ranked([sharp, blind], truth) or (0, 0.0, None)
    assert (pairs, auc) == (8, 1.0)
    assert kappa is not None
    assert kappa.value == pytest.approx(1.0)
    alone = ranked([blind], truth)
    # Yes: pairs 0, 1, 4, 6, so 0, 1, 0, 0; no: 2, 3, 5, 7, so 0, 1, 1, 1. Of 16 couples 1 is in order, 6 are ties.
    assert alone is not None
    assert alone[1] == pytest.approx((1 + 6 / 2) / 16)
    assert ranked([sharp], {id_: truth[id_] for id_ in ("p0", "p1")}) is None


def test_jurors_who_tell_nothing_rank_nothing() -> None:
    """All pairs are tied, although questions differ in how many of their pairs are a yes: 2, 0, 1 and 1."""
    truth = {f"p{n}": (PairIds(f"q{n // 2}", f"d{n}"), label or 0, "en") for n, label in enumerate(PEOPLE)}
    silent = dict.fromkeys(truth, 0.0)
    found = ranked([silent, silent], truth)
    assert found is not None
    assert found[1] == 0.5


def test_what_is_missing_is_one_line(tmp_path: Path, jury: tuple[Path, Path]) -> None:
    pairs, _ = jury
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"query": "q", "document": "d"}) + "\n")
    for given, words in (
        ([str(pairs), str(tmp_path / "nowhere")], "no votes at"),
        ([str(bare), str(tmp_path)], "no line has `people`"),
    ):
        done = CliRunner().invoke(local_jury.app, ["report", *given])
        assert done.exit_code == 2
        assert words in done.output
        assert len(done.output.strip().splitlines()) == 1
