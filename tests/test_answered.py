"""`eval/answered.py`: the everyday questions as sets, and their table by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from prism.answer_check import AnswerFit
from prism.answering import AnswerBound, Answering
from prism.evaluation.answer_sets import SetReport
from prism.measures.calibration import quality
from prism.measures.set_fit import ScoredSet
from prism.scoring import Calibration

SCRIPT = Path(__file__).resolve().parents[1] / "eval" / "answered.py"
SAME = Calibration(method="isotonic", prior=0.5, pairs=10, knots=((0.0, 0.0), (1.0, 1.0)))
BOUND = AnswerBound(risk=0.3, threshold=0.75, confidence=0.9, called=30, wrong=5, sets=60)
BEST = Answering(weights={"best": 1.0}, intercept=0.0, prior=0.5, sets=60, bounds=(BOUND,))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("answered_script", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_everyday_questions_as_sets(script: ModuleType, tmp_path: Path) -> None:
    questions = [json.loads(line) for line in (SCRIPT.parent / "everyday/questions.jsonl").read_text().splitlines()]
    answered = next(one for one in questions if one["answers"])
    without = next(one for one in questions if not one["answers"])

    def recorded(one: dict) -> dict:
        return {"id": one["id"], "documents": {d["id"]: {"score": n / 10} for n, d in enumerate(one["documents"])}}

    path = tmp_path / "report.json"
    path.write_text(json.dumps({"models": {"m": {"questions": [recorded(answered), recorded(without)]}}}))
    asked, taken = script.read_everyday(path, "m")
    sizes = len(answered["documents"]), len(without["documents"])
    assert [(one.group, len(one.scores), one.answered) for one in asked] == [
        (answered["id"], sizes[0], True),
        (without["id"], sizes[1], False),
    ]
    right = [d["id"] for d in answered["documents"]].index(answered["answers"][0]) / 10
    [left] = taken
    assert (left.answered, sorted([*left.scores, right])) == (False, sorted(asked[0].scores))


def test_the_table_of_other_questions(script: ModuleType) -> None:
    sets = [ScoredSet(f"q{at}", (score, 0.1), at % 4 > 0) for at, score in enumerate((0.8, 0.8, 0.8, 0.6) * 5)]
    good = quality([0.5, 0.6], [0, 1], ["a", "b"])
    found = SetReport(
        answering=BEST, candidates=(), held=2, unanswered=1, before=good, after=good,
        area_before=0.5, area_after=0.5, curve=(), bounds=(script.check_bound(BOUND, script.outcomes([0.9], [True])),),
    )  # fmt: skip
    lines, body = script._elsewhere("Other", sets, {"of the set": AnswerFit(SAME, BEST)}, found)
    assert lines[2] == "20 sets, 5 without an answer."
    # From 0.8 on 15 of 20 sets, of which 5 hold no answer; from 0.6 on all.
    assert [(p["accepted"], p["wrong"]) for p in body["curve"]] == [(15, 5), (20, 5)]
    assert (body["bounds"][0]["there"]["accepted"], body["bounds"][0]["there"]["wrong"]) == (15, 5)
    assert "| 0.3 | 0.750 | 5 of 30 | 5 of 15 (0.333) |" in "\n".join(lines)
