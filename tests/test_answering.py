"""Whether a set answers: features by hand, the fit, reasons, evidence that is enough, versions of scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEngine
from pydantic import ValidationError

from prism.answer_check import AnswerCheck, AnswerFit
from prism.answering import AnswerBound, Answering, features
from prism.checkpoint import Checkpoint, PrismConfig, stored_config
from prism.errors import InputError
from prism.location import MINI, locate
from prism.measures.set_fit import CANDIDATES, ScoredSet, choose_features, fit_sets
from prism.reranker import Reranker
from prism.score_version import fingerprint, name_scores, scores_part, stale
from prism.scoring import Calibration
from prism.template import PRISM, Template
from prism.types import Conflict, Judgment, Outcome, Place, Truncation, Unanswered

SAME = Calibration(method="isotonic", prior=0.5, pairs=10, knots=((0.0, 0.0), (1.0, 1.0)))
"""A score is its own probability."""
BEST = Answering(weights={"best": 1.0}, intercept=0.0, prior=0.5, sets=100)
"""The probability of a set is its best score."""
BOUNDS = tuple(
    AnswerBound(risk=risk, threshold=at, confidence=0.9, called=50, wrong=1, sets=100)
    for risk, at in ((0.1, 0.8), (0.3, 0.6))
)


# --- the record ------------------------------------------------------------------------------------------------------


def test_features_by_hand():
    found = features([0.5, 0.8, 0.5, 0.2], SAME)
    assert found["best"] == pytest.approx(math.log(4))
    assert found["second"] == pytest.approx(0.0)
    assert found["any"] == pytest.approx(math.log(0.96 / 0.04))  # 1 - 0.5 * 0.2 * 0.5 * 0.8
    assert found["related"] == pytest.approx(math.log(3))
    lone = features([1.0], SAME)
    assert (lone["best"], lone["second"]) == (pytest.approx(math.log(999)), pytest.approx(-math.log(999)))
    with pytest.raises(ValueError, match="without scores"):
        features([], SAME)


def test_probability_by_hand():
    assert BEST.probability([0.2, 0.7, 0.4], SAME) == pytest.approx(0.7)
    both = Answering(weights={"best": 1.0, "second": -1.0}, intercept=0.0, prior=0.5, sets=10)
    assert both.probability([0.8, 0.8], SAME) == pytest.approx(0.5)
    assert both.probability([0.8, 0.2], SAME) == pytest.approx(16 / 17)
    assert Answering(weights={"any": 1.0}, intercept=0.0, prior=0.5, sets=10).probability([0.5, 0.5], SAME) == (
        pytest.approx(0.75)
    )


def test_bounds():
    known = BEST.model_copy(update={"bounds": BOUNDS})
    assert [getattr(known.bound(risk), "threshold", None) for risk in (0.05, 0.1, 0.29, 0.3, 0.9)] == [
        *(None, 0.8, 0.8, 0.6, 0.6),
    ]
    assert Answering.model_validate_json(known.model_dump_json()) == known


@pytest.mark.parametrize(
    "fields",
    [
        {"weights": {}},
        {"weights": {"second": 1.0}},
        {"weights": {"best": -1.0}},
        {"weights": {"best": math.inf}},
        {"weights": {"worst": 1.0}},
        {"weights": {"best": 1.0}, "bounds": BOUNDS[::-1]},
    ],
)
def test_records_that_mean_nothing_are_refused(fields):
    with pytest.raises(ValidationError):
        Answering(**{"intercept": 0.0, "prior": 0.5, "sets": 10, **fields})


def test_a_fit_of_sets_needs_that_of_pairs():
    with pytest.raises(ValidationError, match="answering needs the calibration"):
        PrismConfig(name="m", template=PRISM, answering=BEST)
    old = PrismConfig(name="m", template=PRISM, calibration=SAME).model_dump(mode="json")
    without = {name: value for name, value in old.items() if name not in ("answering", "score_version")}
    assert PrismConfig.model_validate(without).calibration == SAME, "files from before there were sets"


# --- fitting ---------------------------------------------------------------------------------------------------------


def drawn_sets(questions: int, weight_of_second: float, seed: int = 0) -> list[ScoredSet]:
    """Four scores; answered with log-odds 2 best + weight x second - 1."""
    rng = np.random.default_rng(seed)
    sets = []
    for at in range(questions):
        scores = tuple(map(float, rng.random(4) * 0.96 + 0.02))
        best, second = sorted(scores)[::-1][:2]
        odds = 2 * math.log(best / (1 - best)) + weight_of_second * math.log(second / (1 - second)) - 1
        sets.append(ScoredSet(f"q{at}", scores, bool(rng.random() < 1 / (1 + math.exp(-odds)))))
    return sets


def test_fit_finds_what_made_the_sets():
    found = fit_sets(drawn_sets(6000, -2.0), SAME, ("best", "second"))
    assert found.weights == {"best": pytest.approx(2.0, abs=0.2), "second": pytest.approx(-2.0, abs=0.2)}
    assert found.intercept == pytest.approx(-1.0, abs=0.2)
    assert (found.sets, 0.3 < found.prior < 0.7) == (6000, True)


@pytest.mark.parametrize(("weight", "chosen"), [(0.0, ["best"]), (-2.0, ["best", "second"])])
def test_the_simplest_features_that_do_are_chosen(weight, chosen):
    fitted, candidates = choose_features(drawn_sets(1500, weight), SAME)
    assert list(fitted.weights) == chosen
    assert [one.features for one in candidates] == list(CANDIDATES)
    assert all(one.log_loss < math.log(2) for one in candidates)


def test_nothing_to_fit():
    with pytest.raises(InputError, match="2 with of 2"):
        fit_sets([ScoredSet("a", (0.5,), True)] * 2, SAME, ("best",))
    upside = [ScoredSet(f"q{at}", (at / 20,), at < 10) for at in range(1, 20)]
    with pytest.raises(InputError, match="nothing to fit"):
        fit_sets(upside, SAME, ("best",))
    with pytest.raises(InputError, match="no features of 19 sets"):
        choose_features(upside, SAME)


# --- one call --------------------------------------------------------------------------------------------------------


def judged(index: int, score: float, evidence: str | None = "Yes.", **fields: Any) -> Judgment:
    outcome = fields.pop("outcome", Outcome.COMPLETE if evidence else Outcome.NOT_WRITTEN)
    verdict = "yes" if score >= 0.5 else "no"
    return Judgment(index=index, score=score, verdict=verdict, evidence=evidence, outcome=outcome, **fields)


CUT = Truncation(read_chars=10, total_chars=90)
PLACE = Place(index=0, start=0, end=4, value="1")
CONFLICT = Conflict(kind="number", left=PLACE, right=PLACE.model_copy(update={"index": 1, "value": "2"}))


@pytest.mark.parametrize(
    ("judgments", "conflicts", "reason"),
    [
        ([judged(0, 0.9), judged(1, 0.2)], [], None),
        ([judged(0, 0.9), judged(1, 0.8)], [CONFLICT], Unanswered.CONFLICTING),
        ([judged(0, 0.6), judged(1, 0.2)], [], Unanswered.RELATED_ONLY),
        ([judged(0, 0.6), judged(1, 0.2)], [CONFLICT], Unanswered.RELATED_ONLY),
        ([judged(0, 0.4), judged(1, 0.2)], [], Unanswered.NONE_RELEVANT),
        ([judged(0, 0.6, truncation=CUT), judged(1, 0.2)], [], Unanswered.CUT_OFF),
        ([judged(0, 0.4, truncation=CUT), judged(1, 0.2)], [], Unanswered.CUT_OFF),
        ([judged(0, 0.6), judged(1, 0.2, truncation=CUT)], [], Unanswered.RELATED_ONLY),
        ([judged(0, 0.9, truncation=CUT)], [], None),
        ([], [], None),
    ],
)
def test_reasons(judgments, conflicts, reason):
    check = AnswerCheck(AnswerFit(SAME, BEST), 0.7, judgments)
    assert check.answer(judgments, conflicts).reason == reason


def test_without_a_calibration_the_verdicts_decide():
    for score, reason in ((0.6, None), (0.4, Unanswered.NONE_RELEVANT)):
        found = AnswerCheck(AnswerFit(), 0.5, [judged(0, score)]).answer([judged(0, score)])
        assert found == (None, reason, None)


@pytest.mark.parametrize(
    ("kept", "enough"),
    [
        ([judged(0, 0.9), judged(1, 0.6)], True),
        ([judged(1, 0.6)], False),
        ([judged(0, 0.9, None), judged(1, 0.6)], False),
        ([judged(0, 0.9, outcome=Outcome.CUT_OFF), judged(1, 0.6)], False),
        ([judged(0, 0.9, outcome=Outcome.UNINFORMATIVE)], True),
        ([], False),
    ],
    ids=["all", "top_n lost the best", "no budget for the best", "the best is cut off", "uninformative", "none"],
)
def test_sufficient_is_what_was_kept(kept, enough):
    check = AnswerCheck(AnswerFit(SAME, BEST), 0.7, [judged(0, 0.9), judged(1, 0.6)])
    assert check.answer(kept) == (pytest.approx(0.9), None, enough)
    assert check.answer(None).sufficient is None, "no evidence was asked for"


def test_documents_without_a_yes_are_no_answer_unless_a_rate_was_asked_for():
    judgments = [judged(0, 0.45), judged(1, 0.4)]  # probable by a fit that starts low
    likely = Answering(weights={"best": 1.0}, intercept=3.0, prior=0.5, sets=9)
    check = AnswerCheck(AnswerFit(SAME, likely), 0.5, judgments)
    assert check.probability is not None
    assert check.probability > 0.9
    assert check.answer(judgments) == (check.probability, Unanswered.NONE_RELEVANT, False)
    promised = AnswerCheck(AnswerFit(SAME, likely), 0.5, judgments, promised=True)
    assert promised.answer().reason is None


def test_a_set_does_not_become_better_by_losing_a_rival():
    rivals = Answering(weights={"best": 1.0, "second": -1.0}, intercept=0.0, prior=0.5, sets=10)
    check = AnswerCheck(AnswerFit(SAME, rivals), 0.6, [judged(0, 0.9), judged(1, 0.9)])
    assert check.answer([judged(0, 0.9)]) == (pytest.approx(0.5), Unanswered.RELATED_ONLY, False)


def test_an_old_calibration_speaks_of_the_best_document():
    assert AnswerFit(SAME).probability([0.2, 0.7]) == pytest.approx(0.7)
    assert AnswerFit(SAME, BEST).probability([]) == 0.0


def test_nothing_is_said_in_a_language_the_fit_has_not_seen(reranker: Reranker):
    fit = AnswerFit(SAME.model_copy(update={"languages": ("en", "ja")}), BEST)
    assert fit.for_query("When did the harbour freeze?") is fit
    assert fit.for_query("港が凍ったのはいつですか") is fit
    assert fit.for_query("港口什么时候结冰的？") == AnswerFit()
    assert AnswerFit(SAME, BEST).for_query("港口什么时候结冰的？") == AnswerFit(SAME, BEST), "not noted: any"


def test_error_rates_that_can_be_promised():
    fit = AnswerFit(SAME, BEST.model_copy(update={"bounds": BOUNDS}))
    assert [fit.cut(risk, "m") for risk in (None, 0.1, 0.5)] == [0.5, 0.8, 0.6]
    with pytest.raises(InputError, match=r"m cannot promise an answer_risk of 0\.05: its lowest is 0\.1"):
        fit.cut(0.05, "m")
    with pytest.raises(InputError, match="it promises none"):
        AnswerFit(SAME).cut(0.1, "m")


# --- in a call -------------------------------------------------------------------------------------------------------

QUERY = "when does the harbour freeze?"
GOOD, FAIR, BAD = (f"p={p} {text}" for p, text in ((0.9, "It froze in 1963."), (0.7, "Ice."), (0.2, "No.")))


@pytest.fixture(scope="module")
def reranker(tiny_tokenizer: Any) -> Reranker:
    engine = FakeEngine(Template(PRISM, tiny_tokenizer))
    answering = BEST.model_copy(update={"bounds": BOUNDS})
    return Reranker(
        engine.template, engine, name="fake", calibration=SAME, answering=answering, score_version="abc+def"
    )


def test_a_result_says_it(reranker: Reranker):
    found = reranker.rerank(QUERY, [BAD, GOOD, FAIR])
    assert (found.answerable, found.reason, found.sufficient) == (pytest.approx(0.9), None, True)
    assert found.score_version == "abc+def"
    assert "answerable: 0.90, evidence sufficient" in str(found)
    assert "answerable: 0.90, evidence sufficient" in found._repr_html_()
    only = reranker.rerank(QUERY, [BAD], evidence=False)
    assert (only.reason, only.sufficient) == (Unanswered.NONE_RELEVANT, None)
    assert "none_relevant (no document is relevant)" in str(only)


def test_what_the_budget_drops_counts(reranker: Reranker):
    assert reranker.rerank(QUERY, [GOOD, FAIR], evidence_tokens=0).sufficient is False
    assert reranker.rerank(QUERY, [GOOD, FAIR], evidence_top_n=1, answer_risk=0.1).sufficient is True
    found = reranker.rerank(QUERY, [GOOD, FAIR], answer_risk=0.1)

    def words(text: str) -> int:
        return len(text.split())

    whole = found.fit_context()
    assert (whole.documents, whole.sufficient) == ((0, 1), True)
    # `[2] document=1 Contribution: It helps. > p=0.7 Ice.` is 8 words, the better source has 11.
    short = found.fit_context(max_tokens=8, count=words)
    assert (short.documents, short.sufficient) == ((1,), False)


def test_error_rates_decide(reranker: Reranker):
    assert reranker.rerank(QUERY, [FAIR]).reason is None
    assert reranker.rerank(QUERY, [FAIR], answer_risk=0.3).reason is None
    assert reranker.rerank(QUERY, [FAIR], answer_risk=0.1).reason is Unanswered.RELATED_ONLY
    with pytest.raises(InputError, match="fake cannot promise"):
        reranker.rerank(QUERY, [FAIR], answer_risk=0.01)
    with pytest.raises(InputError, match="answer_risk must lie between 0 and 1"):
        reranker.rerank(QUERY, [FAIR], answer_risk=2.0)


def test_thresholds_of_other_scores_warn(reranker: Reranker):
    for chosen_for in (None, "abc", "abc+def"):
        assert reranker.rerank(QUERY, [FAIR], score_version=chosen_for).warnings == ()
    for chosen_for in ("other", "abc+other"):
        (said,) = reranker.rerank(QUERY, [FAIR], threshold=0.6, score_version=chosen_for).warnings
        assert said == (
            f"the thresholds were chosen for scores of version {chosen_for}, and these are abc+def: calibrate or choose"
            " them again"
        )


# --- versions --------------------------------------------------------------------------------------------------------


def test_versions_name_what_determines_scores(tmp_path: Path):
    home = tmp_path / "weights"
    home.mkdir()
    (home / "model.safetensors").write_bytes(bytes(200_000))

    def version(**template: Any) -> str:
        return name_scores(PRISM.model_copy(update=template), home, Path, None)

    first = version()
    assert (len(first), version(name="other", max_prompt_tokens=99, max_written_tokens=9)) == (12, first)
    assert version(text=PRISM.text.replace("Query", "Question")) != first
    assert version(yes="ja") != first
    (home / "README.md").write_text("nothing that scores")
    assert version() == first
    for place in (0, 100_000, 199_999):
        content = bytearray(200_000)
        content[place] = 1
        (home / "model.safetensors").write_bytes(content)
        assert version() != first, place
    assert fingerprint(home) == fingerprint(home / "model.safetensors")


def test_a_checkpoint_stamps_its_answers(tmp_path: Path, tiny_checkpoint: Path):
    plain = Checkpoint.load(tiny_checkpoint, template="prism")
    assert "+" not in plain.score_version
    (tmp_path / "mine").mkdir()
    for file in tiny_checkpoint.iterdir():
        (tmp_path / "mine" / file.name).write_bytes(file.read_bytes())
    versions = []
    for stamp, calibration in ((None, None), (plain.score_version, SAME), ("0" * 12, SAME)):
        config = PrismConfig(name="mine", template=PRISM, calibration=calibration, score_version=stamp)
        (tmp_path / "mine" / "prism.json").write_text(config.model_dump_json())
        with Reranker.load(str(tmp_path / "mine"), dtype="float32", self_test=False) as reranker:
            found = reranker.rerank("q", ["a document"], evidence=False)
        versions.append((found.score_version, found.warnings))
    assert [scores_part(version or "") for version, _ in versions] == [plain.score_version] * 3
    assert versions[1][0] == versions[2][0] != versions[0][0]
    assert [len(warnings) for _, warnings in versions] == [0, 0, 1]
    assert versions[2][1][0].startswith("the calibration in prism.json was fitted for scores of version 000000000000")


def test_mini_is_calibrated_for_its_own_scores():
    config = stored_config(MINI)
    assert config.calibration is not None
    assert name_scores(config.template, MINI, locate, config.base_sha256) == config.score_version


@pytest.mark.parametrize(
    ("chosen_for", "now", "warns"),
    [
        ("a+b", "a+b", False),
        ("a", "a+b", False),
        ("a+c", "a+b", True),
        ("b", "a+b", True),
        ("a+b", "a", True),
        (None, "a", False),
        ("a", None, False),
    ],
)
def test_stale(chosen_for, now, warns):
    assert bool(stale(chosen_for, now, "x")) == warns
