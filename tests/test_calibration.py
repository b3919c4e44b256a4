"""Calibration: fits, errors and cuts by hand; the record alone gives what scikit-learn gave; the command end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from prism.checkpoint import PrismConfig
from prism.errors import DataError, InputError
from prism.evaluation import calibrating as command
from prism.evaluation.answer_sets import SetReport, many_sets, measure_sets, one_set
from prism.evaluation.calibrating import (
    KeptScores,
    ScoredPair,
    StoredYes,
    fit_and_measure,
    held_out,
    held_to_check,
    read_labelled_pairs,
    score_pairs,
)
from prism.evaluation.calibration_report import curve_lines, summary, write_calibration_report
from prism.evaluation.yes_from import Verdicts, measure_languages, stored_yes
from prism.measures.calibration import (
    at_cuts,
    brier,
    calibration_error,
    fit,
    kappa_of_counts,
    propose_cuts,
    quality,
    reliability,
)
from prism.scoring import Calibration, shift_prior
from prism.template import PRISM
from prism.types import Judgment

PLATT = Calibration(method="platt", prior=0.5, pairs=10, slope=2.0, intercept=0.0)


# --- the record ------------------------------------------------------------------------------------------------------


def test_platt_by_hand():
    # logit(0.8) = ln 4; doubled, ln 16: 16 / 17.
    assert PLATT.probability(0.8) == pytest.approx(16 / 17)
    assert PLATT.probability(0.5) == 0.5
    assert 0.0 <= PLATT.probability(0.0) < 1e-9
    assert PLATT.probability(1.0) > 1 - 1e-9


def test_isotonic_by_hand():
    record = Calibration(method="isotonic", prior=0.5, pairs=10, knots=((0.2, 0.1), (0.4, 0.1), (0.6, 0.9)))
    assert [record.probability(s) for s in (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)] == pytest.approx(
        [0.1, 0.1, 0.1, 0.1, 0.5, 0.9, 0.9]
    )


def test_prior_shift_by_hand():
    # Odds change by the ratio of prior odds: p 0.8 (odds 4) at prior 0.5 becomes odds 4 / 9 at prior 0.1.
    assert shift_prior(0.8, 0.5, 0.1) == pytest.approx((4 / 9) / (13 / 9))
    assert shift_prior(0.8, 0.3, 0.3) == pytest.approx(0.8)
    assert (shift_prior(0.0, 0.5, 0.1), shift_prior(1.0, 0.5, 0.1)) == (0.0, 1.0)
    assert PLATT.probability(0.8, prior=0.1) == pytest.approx(16 / 9 / (1 + 16 / 9))
    with pytest.raises(ValueError, match="between 0 and 1"):
        shift_prior(0.5, 0.5, 1.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "isotonic"},
        {"method": "isotonic", "knots": ((0.4, 0.1), (0.2, 0.3))},
        {"method": "isotonic", "knots": ((0.2, 0.5), (0.4, 0.3))},
        {"method": "platt", "slope": -1.0},
        {"method": "platt", "slope": float("nan")},
    ],
)
def test_records_that_do_not_grow_are_refused(fields):
    with pytest.raises(ValidationError):
        Calibration(prior=0.5, pairs=4, **fields)


def test_scores_off_the_scale_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        PLATT.probability(1.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        PLATT.probability(math.nan)


# --- fitting ---------------------------------------------------------------------------------------------------------


def test_isotonic_pools_by_hand():
    # 0.1 no, 0.2 yes, 0.3 no, 0.4 yes: 0.2 and 0.3 violate the order and are pooled at 1/2.
    record = fit([0.1, 0.2, 0.3, 0.4], [False, True, False, True])
    assert [record.probability(s) for s in (0.1, 0.2, 0.25, 0.3, 0.4)] == pytest.approx([0, 0.5, 0.5, 0.5, 1])
    assert (record.prior, record.pairs) == (0.5, 4)


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_record_survives_json_and_calibrates(method):
    # True probability: logit p = 2 logit(score) - 1.
    rng = np.random.default_rng(0)
    scores = rng.random(4000) * 0.98 + 0.01
    truth = 1 / (1 + np.exp(-(2 * np.log(scores / (1 - scores)) - 1)))
    labels = rng.random(4000) < truth
    record = Calibration.model_validate_json(fit(scores[:2000], labels[:2000], method).model_dump_json())
    if method == "platt":
        assert (record.slope, record.intercept) == (pytest.approx(2, abs=0.25), pytest.approx(-1, abs=0.25))
    said = [record.probability(float(score)) for score in scores[2000:]]
    assert np.abs(np.array(said) - truth[2000:]).mean() < 0.05
    assert calibration_error(said, labels[2000:]) < 0.07 < calibration_error(scores[2000:], labels[2000:])
    assert brier(said, labels[2000:]) < brier(scores[2000:], labels[2000:])


def test_isotonic_record_equals_scikit_learn():
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(1)
    scores, labels = rng.random(300), rng.random(300) < 0.4
    theirs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, labels)
    record, grid = fit(scores, labels), np.linspace(0, 1, 101)
    assert [record.probability(float(s)) for s in grid] == pytest.approx(theirs.predict(grid).tolist(), abs=1e-9)


@pytest.mark.parametrize(("scores", "labels"), [([0.1, 0.2], [1, 1]), ([0.1, 0.9], [1, 0])])
@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_what_cannot_be_fitted(scores, labels, method):
    with pytest.raises(InputError):
        fit(scores, labels, method)
    with pytest.raises(InputError, match="outside 0 to 1"):
        fit([1.2, 0.1], [1, 0], method)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_calibration_error_by_hand():
    # Bins {0.1, 0.2} and {0.8, 0.9}: |1/2 - 0.15| and |1 - 0.85|, half the pairs each: 0.175 + 0.075.
    assert calibration_error([0.1, 0.2, 0.8, 0.9], [0, 1, 1, 1], bins=2) == pytest.approx(0.25)
    assert brier([0.1, 0.2, 0.8, 0.9], [0, 1, 1, 1]) == pytest.approx((0.01 + 0.64 + 0.04 + 0.01) / 4)


def test_ties_share_a_bin_whatever_their_order():
    for labels in ([1, 0, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]):
        assert calibration_error([0.5] * 4, labels, bins=2) == 0.0
        assert len(reliability([0.5] * 4, labels, bins=2)) == 1


def test_bins_have_equal_mass():
    found = reliability(np.linspace(0, 1, 100), np.ones(100), bins=4)
    assert [one.pairs for one in found] == [25, 25, 25, 25]
    assert all(one.low < one.relevant == 1.0 for one in found)


def test_intervals_resample_groups():
    # Every group has the same two pairs, so every resample has the value of the whole: no width, 0.25 and 0.125.
    found = quality([0.5, 0.5, 1.0, 1.0] * 6, [0, 1, 1, 1] * 6, [f"q{at // 4}" for at in range(24)])
    assert (found.brier.low, found.brier.value, found.brier.high) == (0.125, 0.125, 0.125)
    apart = quality([0.1] * 40, [1, 0] * 20, [f"q{at}" for at in range(40)])
    assert apart.calibration_error.value == pytest.approx(0.4)
    # The share that is relevant has a standard error of 0.5 / sqrt(40) = 0.079: 0.4 -+ 1.96 * 0.079.
    assert apart.calibration_error.low == pytest.approx(0.245, abs=0.03)
    assert apart.calibration_error.high == pytest.approx(0.555, abs=0.03)


# --- cuts ------------------------------------------------------------------------------------------------------------


def test_cuts_by_hand():
    scores, labels = [0.9, 0.8, 0.7, 0.2], [1, 0, 1, 0]
    half, most = at_cuts(scores, labels, [0.75, 0.1], PLATT)
    assert (half.precision, half.recall, half.passing) == (0.5, 0.5, 0.5)
    assert (most.precision, most.recall, most.passing) == (0.5, 1.0, 1.0)
    # At prior 0.1: 0.1 * 0.5 / (0.1 * 0.5 + 0.9 * 0.5); logit(0.75) = ln 3, doubled ln 9, odds 9 * (1/9) = 1.
    rare = at_cuts(scores, labels, [0.75], PLATT, prior=0.1)[0]
    assert rare.precision == pytest.approx(0.1)
    assert rare.posterior == pytest.approx(0.5)
    assert at_cuts(scores, labels, [0.95], PLATT)[0].precision is None


def test_proposed_cuts_by_hand():
    # Down the ranking: precision 1, 1, 2/3, 3/4, 3/5; recall 1/3, 2/3, 2/3, 1, 1. F1 is best at 0.4: 6/7.
    cuts = propose_cuts([0.9, 0.8, 0.6, 0.4, 0.1], [1, 1, 0, 1, 0])
    # Kappa: 2 of 3 found and no false yes, or 3 of 3 and one: agreed 0.8 both, by chance 0.48 and 0.56.
    assert cuts == {"default": 0.5, "best F1": 0.4, "best kappa": 0.8, "precision 0.9": 0.8, "recall 0.9": 0.4}
    # Equal scores pass together or not at all.
    assert "precision 0.9" not in propose_cuts([0.5, 0.5, 0.1], [1, 0, 0])


# --- the command -----------------------------------------------------------------------------------------------------


class Fake:
    """Scores by the number in the document; `broken` fails."""

    def __init__(self):
        self.asked = 0

    def rerank(self, query, documents, *, evidence, **_):
        assert not evidence
        made = []
        self.asked += len(documents)
        for index, document in enumerate(documents):
            broken = "broken" in document.text
            score = None if broken else float(document.text.split()[-1])
            made.append(Judgment(index=index, score=score, verdict=None, error="no" if broken else None))
        return SimpleNamespace(judgments=made[::-1])


def write_pairs(path: Path, queries: int = 40, power: float = 2.0) -> Path:
    """The chance of relevance is the score to some power: 1 is calibrated already."""
    rng = np.random.default_rng(2)
    lines = []
    for q in range(queries):
        for d in range(10):
            score = float(rng.random() * 0.98 + 0.01)
            verdict = "yes" if rng.random() < score**power else "no"
            lines.append(json.dumps({"query": f"q{q}", "document": f"doc {d} {score:.4f}", "verdict": verdict}))
    lines.append(json.dumps({"query": "q0", "document": "broken", "label": 1}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_measure_splits_by_query_and_improves(tmp_path):
    pairs = read_labelled_pairs(write_pairs(tmp_path / "pairs.jsonl"))
    judged, failures = score_pairs(Fake(), pairs)
    result = fit_and_measure(judged, "isotonic", prior=0.2, failures=failures)
    sides = {pair.group: held_out(pair.group) for pair in pairs}
    assert 10 < sum(sides.values()) < 30
    assert (result.fitted + result.held, result.failures, result.prior) == (400, 1, 0.2)
    for old, new in zip(result.before, result.after, strict=True):
        if hasattr(old, "value"):
            assert new.value < old.value
    assert result.after.calibration_error.low < result.after.calibration_error.value < result.after.brier.high
    assert result.worse is None
    assert "the bounding part has" in result.sets, "40 queries are too few"
    report = write_calibration_report(result, "mini", tmp_path / "out")
    assert "Posterior of relevance by score" in report.read_text()
    assert "Not measured: the bounding part has" in report.read_text()
    saved = json.loads((tmp_path / "out/report.json").read_text())
    assert saved["calibration"]["method"] == "isotonic"


def test_the_fit_notes_the_languages_of_its_queries():
    made = [
        ScoredPair(f"{asked} {n}", f"{asked} {n}", 0.9 if relevant else 0.1, relevant)
        for asked, count in (("where is it", 60), ("港口什么时候结冰的", 20), ("где она находится", 1))
        for n in range(count)
        for relevant in (True, False)
    ]
    assert fit_and_measure(made, "platt").calibration.languages == ("en", "zh")  # one query in 81 is too few


def test_no_pair_is_scored_twice(tmp_path):
    pairs = read_labelled_pairs(write_pairs(tmp_path / "pairs.jsonl", queries=4))
    fake, path = Fake(), tmp_path / "scores.sqlite"
    first, failures = score_pairs(fake, pairs, KeptScores(path, "v1"))
    assert (fake.asked, failures) == (41, 1)
    again, failures = score_pairs(fake, pairs, KeptScores(path, "v1"))
    assert (again, failures) == (first, 1)
    assert fake.asked == 42, "only the one that failed"
    with pytest.raises(DataError, match=r"holds scores of version v1, and this model's are v2: name another file"):
        KeptScores(path, "v2")
    path.write_text(json.dumps({"score": 1}) + "\n")
    with pytest.raises(DataError, match="is not a store of answers"):
        KeptScores(path, "v1")


def chinese_and_english(lies: bool = False) -> list[ScoredPair]:
    """Chinese noes score 0.8 and yes 0.95, others 0.3 and 0.7; with `lies`, held-out Chinese is the other way."""
    made = []
    for n in range(120):
        for query, (no, yes) in ((f"where is it {n}", (0.3, 0.7)), (f"港口什么时候结冰的 {n}", (0.8, 0.95))):
            turned = lies and query.startswith("港") and held_out(query)
            made += [ScoredPair(query, query, score, (score == yes) != turned) for score in (no, yes)]
    alone = [ScoredPair(f"где {n}", "one query", 0.5, n % 2 == 0) for n in range(80)]
    return [*made, *alone, *(pair._replace(query=f"いつ{pair.query}") for pair in made[:20])]


def test_where_a_yes_begins_is_chosen_by_language(tmp_path, checkpoint):
    judged = chinese_and_english()
    found = measure_languages(judged, "kappa", lambda language: 0.5)
    assert sorted(found) == ["others", "zh"], "Russian has one query, Japanese ten of each label"
    others, chinese = found["others"], found["zh"]
    assert (others.fitted + others.held, chinese.fitted + chinese.held) == (250, 240)  # kana decide one query in two
    assert (others.after.threshold, others.gain, others.better) == (0.7, (0.0, 0.0), False), "0.5 does as well"
    before = chinese.before
    assert (before.precision, before.recall, before.false_yes, before.kappa) == (0.5, 1.0, 1.0, 0.0)
    assert before.f1 == pytest.approx(2 / 3)
    assert chinese.after == Verdicts(threshold=0.95, precision=1.0, recall=1.0, false_yes=0.0, kappa=1.0, f1=1.0)
    assert chinese.gain == (1.0, 1.0)
    assert stored_yes(found) == StoredYes(None, {"zh": 0.95})
    config = checkpoint / "prism.json"
    old = PrismConfig(name="m", template=PRISM, thresholds={"ja": 0.6, "zh": 0.4}, score_version="v1+fits")
    config.write_text(old.model_dump_json())
    result = fit_and_measure(judged, "platt")
    said = command.store(checkpoint, checkpoint, result, "v1", stored_yes(found))
    assert said[1] == "a yes begins at 0.950 (zh)"
    assert PrismConfig.model_validate_json(config.read_text()).thresholds == {"ja": 0.6, "zh": 0.95}
    said = command.store(checkpoint, tmp_path / "other", result, "v2", StoredYes(0.7, {"zh": 0.8}))
    assert said[1:3] == [
        "a yes begins at 0.700 (others), 0.800 (zh)",
        "thresholds of ja were found for other scores: dropped",
    ]
    stored = PrismConfig.model_validate_json((tmp_path / "other/prism.json").read_text())
    assert (stored.threshold, stored.thresholds, stored.score_version) == (0.7, {"zh": 0.8}, "v2")
    page = write_calibration_report(result, "mini", tmp_path / "out", found).read_text()
    assert "zh, by kappa" in page
    line = next(line for line in summary(result, found) if line.startswith("| zh, by kappa"))
    assert (
        line == f"| zh, by kappa | {chinese.held} | 0.950 | 1.000 | 1.000 | 0.000 | 1.000 | 1.000 | +1.000 to +1.000 |"
    )


def test_a_threshold_that_does_not_hold_is_not_stored():
    judged = chinese_and_english(lies=True)
    found = measure_languages(judged, "f1", lambda language: 0.5)
    assert (found["zh"].after.f1, found["zh"].better) == (0.0, False)
    assert stored_yes(found) == StoredYes(None, {})
    wished = measure_languages(judged, "recall-0.9", lambda language: 0.5)
    assert stored_yes(wished) == StoredYes(0.7, {"zh": 0.95}), "who asks for a recall gets its cut, and what it gave"
    upside_down = [pair._replace(relevant=not pair.relevant) for pair in chinese_and_english()]
    unreached = measure_languages(upside_down, "precision-0.9", lambda language: 0.5)
    assert (unreached["zh"].after, unreached["zh"].better) == (None, False)
    assert stored_yes(unreached) == StoredYes(None, {})


def test_chance_is_no_reason_for_another_threshold():
    """Where a half is the best cut, a better one on few pairs is luck: hardly ever is it stored."""
    rng, stored = np.random.default_rng(4), 0
    for _ in range(60):
        made = []
        for n in range(50):
            relevant = n % 2 == 0
            score = 1 / (1 + math.exp(-rng.normal(1.2 if relevant else -1.2, 1.2)))
            made.append(ScoredPair(f"港{n}", f"{n}-{rng.integers(10**9)}", score, relevant))
            made.append(ScoredPair(f"港{n}", f"{n}-{rng.integers(10**9)}", 1 - score, not relevant))
        found = measure_languages(made, "kappa", lambda language: 0.5)
        stored += any(one.better for one in found.values())
    assert stored <= 6, "2.5 in a hundred are expected"


def test_by_hand_kappa_of_counts():
    # 20 + 15 of 50 agree; 25 * 30 + 25 * 20 of 2,500 would by chance (Cohen's kappa 0.4).
    assert kappa_of_counts(*np.array([20.0, 5.0, 10.0, 15.0])) == pytest.approx(0.4)
    assert kappa_of_counts(*np.array([9.0, 0.0, 0.0, 0.0])) == 0.0


def test_a_fit_that_is_no_better_leaves_the_thresholds(tmp_path, checkpoint):
    result = fit_and_measure(chinese_and_english(), "platt")
    worse = result._replace(before=result.after)
    assert worse.worse
    with pytest.raises(DataError, match="not stored"):
        command.store(checkpoint, tmp_path / "none", worse, "v1")
    said = command.store(checkpoint, tmp_path / "yes", worse, "v1", StoredYes(None, {"zh": 0.95}))
    assert said[2].startswith("the fits are not stored, they are no better than none: calibration error")
    stored = PrismConfig.model_validate_json((tmp_path / "yes/prism.json").read_text())
    assert (stored.calibration, stored.thresholds, stored.threshold) == (None, {"zh": 0.95}, 0.4)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    source = tmp_path / "model"
    source.mkdir()
    (source / "weights").write_text("w")
    config = PrismConfig(name="m", template=PRISM, threshold=0.4)
    (source / "prism.json").write_text(config.model_dump_json())
    return source


def test_store_copies_and_keeps_the_rest(tmp_path, checkpoint):
    pairs = read_labelled_pairs(write_pairs(tmp_path / "pairs.jsonl"))
    result = fit_and_measure(score_pairs(Fake(), pairs)[0], "platt")
    target = tmp_path / "out/checkpoint"
    target.parent.mkdir()
    config = PrismConfig.model_validate_json((checkpoint / "prism.json").read_text())
    said = command.store(checkpoint, target, result, "v1")
    assert "only the pairs' fit is stored" in said[1]
    stored = PrismConfig.model_validate_json((target / "prism.json").read_text())
    assert stored == config.model_copy(update={"calibration": result.calibration, "score_version": "v1"})
    assert (target / "weights").read_text() == "w"
    assert PrismConfig.model_validate_json((checkpoint / "prism.json").read_text()).calibration is None
    command.store(checkpoint, checkpoint, result, "v1")
    assert PrismConfig.model_validate_json((checkpoint / "prism.json").read_text()).calibration == result.calibration


def test_a_fit_that_is_worse_than_none_is_refused(tmp_path, checkpoint):
    # Where the fit looks, high scores are right ever and low ones never; on the held-out half scores are calibrated.
    rng = np.random.default_rng(3)
    judged = []
    for q in range(80):
        for score in map(float, rng.random(10)):
            right = rng.random() < score if held_out(f"q{q}") else score > 0.5
            judged.append(ScoredPair(f"q{q}", f"q{q}", score, bool(right)))
    result = fit_and_measure(judged, "isotonic")
    assert "calibration error" in result.worse
    assert "Brier score" in result.worse
    before = (checkpoint / "prism.json").read_bytes()
    for target in (checkpoint, tmp_path / "copy"):
        with pytest.raises(DataError, match="not stored, the fit is no better than none on held-out queries"):
            command.store(checkpoint, target, result, "v1")
    assert (checkpoint / "prism.json").read_bytes() == before
    assert not (tmp_path / "copy").exists()
    assert "no better than none" in write_calibration_report(result, "mini", tmp_path / "out").read_text()


# --- sets ------------------------------------------------------------------------------------------------------------


def test_sets_by_hand():
    others, right = [0.1, 0.2, 0.3, 0.4, 0.5], [0.9]
    made = list(many_sets("q", (others, right)))
    assert [(len(one.scores), one.answered) for one in made] == [
        (size, answered) for size in (1, 2, 4, 5) for answered in (False, True)
    ]
    assert all((0.9 in one.scores) == one.answered for one in made)
    single = [one_set(f"q{at}", (others, right)) for at in range(200)]
    assert {len(one.scores) for one in single} == {5}, "with or without, a set is of one size"
    assert all((0.9 in one.scores) == one.answered for one in single)
    assert 70 < sum(one.answered for one in single) < 130
    assert one_set("q", (others, [])).answered is False
    assert one_set("q", ([], right)).answered is True
    assert one_set("q7", (others, right)) == one_set("q7", (others, right))


def sets_of(questions: int, seed: int) -> dict[str, tuple[list[float], list[float]]]:
    """An answer scores between 0.4 and 1, five others as high as 0.8: from 0.8 on a set is answered for certain."""
    rng = np.random.default_rng(seed)
    return {
        f"{seed}-{at}": ((rng.random(5) * 0.8).tolist(), [float(rng.random() * 0.6 + 0.4)]) for at in range(questions)
    }


def found_sets() -> SetReport:
    return measure_sets(sets_of(200, 1), sets_of(200, 2), sets_of(200, 3), PLATT)


def test_a_set_is_told_better_than_by_its_best_document():
    found = found_sets()
    assert found.worse is None
    assert found.after.brier.value < found.before.brier.value
    assert found.after.calibration_error.value < found.before.calibration_error.value - 0.1
    assert found.area_after == found.area_before, "the best score alone was chosen, so that the order is the same"
    assert found.held == 400
    assert found.curve[-1].coverage == 1.0
    assert found.curve[-1].wrong == found.unanswered
    assert [p.coverage for p in found.curve] == sorted(p.coverage for p in found.curve)
    # A third of the answers, in half of the sets, score above all others: no error up to a coverage of about 1/3.
    assert found.curve[3].risk < 0.05
    assert found.bounds
    for one in found.bounds:
        assert one.there.risk <= one.bound.risk, "kept where it was checked"
        assert (one.bound.sets, one.bound.confidence) == (200, 0.9)
    lines = list(curve_lines(found))
    assert lines[0].startswith("| answerable from | coverage |")
    assert len(lines) == len(found.curve) + len(found.bounds) + 5


def test_sets_without_enough_questions():
    few = sets_of(19, 1)
    with pytest.raises(
        InputError, match="the bounding part has 19 questions with and without an answer, 20 are needed"
    ):
        measure_sets(sets_of(30, 2), few, few, PLATT)


def test_the_parts_of_a_split_are_apart():
    groups = [f"q{at}" for at in range(400)]
    assert all(held_out(group) for group in groups if held_to_check(group))
    assert 70 < sum(map(held_to_check, groups)) < 130


def test_store_keeps_the_fit_of_sets(tmp_path, checkpoint):
    pairs = read_labelled_pairs(write_pairs(tmp_path / "pairs.jsonl"))
    result = fit_and_measure(score_pairs(Fake(), pairs)[0], "platt")._replace(sets=found_sets())
    assert len(command.store(checkpoint, checkpoint, result, "v1")) == 1
    stored = PrismConfig.model_validate_json((checkpoint / "prism.json").read_text())
    assert stored.answering == result.sets.answering
    assert stored.answering.bounds
    report = write_calibration_report(result, "mini", tmp_path / "out").read_text()
    assert "Promises, each true with probability 0.9" in report
    swapped = result.sets.model_copy(update={"before": result.sets.after, "after": result.sets.before})
    said = command.store(checkpoint, checkpoint, result._replace(sets=swapped), "v1")
    assert "no better than the best document alone" in said[1]
    stored = PrismConfig.model_validate_json((checkpoint / "prism.json").read_text())
    assert (stored.answering, stored.calibration) == (None, result.calibration)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r":1: not JSON"),
        ("[1]", r":1: expected an object, got int"),
        ('{"query": "q"}', r":1: document: expected text, got nothing"),
        ('{"query": " ", "document": "d"}', r":1: query: expected text, got a blank"),
        ('{"query": "q", "document": "d"}', r":1: expected verdict yes or no, or a label"),
        ('{"query": "q", "document": "d", "label": 12}', r":1: expected verdict .* got '12'"),
        ('{"query": "q", "document": "d", "verdict": "maybe"}', r"got 'maybe'"),
    ],
)
def test_bad_pairs_name_the_line(tmp_path, line, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        read_labelled_pairs(path)


def test_halves_need_both_labels(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "q", "document": "d 0.5", "label": 1}\n')
    with pytest.raises(InputError, match=r"half has [01] relevant of [01] pairs"):
        fit_and_measure(score_pairs(Fake(), read_labelled_pairs(path))[0], "platt")
