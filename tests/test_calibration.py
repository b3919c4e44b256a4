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
from prism.measures.calibration import (
    at_cuts,
    brier,
    calibration_error,
    fit,
    propose_cuts,
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
    assert cuts == {"default": 0.5, "best F1": 0.4, "precision 0.9": 0.8, "recall 0.9": 0.4}
    # Equal scores pass together or not at all.
    assert "precision 0.9" not in propose_cuts([0.5, 0.5, 0.1], [1, 0, 0])


# --- the command -----------------------------------------------------------------------------------------------------


class Fake:
    """Scores by the number in the document; `broken` fails."""

    def rerank(self, query, documents, *, evidence, **_):
        assert not evidence
        made = []
        for index, document in enumerate(documents):
            broken = "broken" in document.text
            score = None if broken else float(document.text.split()[-1])
            made.append(Judgment(index=index, score=score, verdict=None, error="no" if broken else None))
        return SimpleNamespace(judgments=made[::-1])


def write_pairs(path: Path, queries: int = 40) -> Path:
    rng = np.random.default_rng(2)
    lines = []
    for q in range(queries):
        for d in range(10):
            score = float(rng.random() * 0.98 + 0.01)
            verdict = "yes" if rng.random() < score**2 else "no"
            lines.append(json.dumps({"query": f"q{q}", "document": f"doc {d} {score:.4f}", "verdict": verdict}))
    lines.append(json.dumps({"query": "q0", "document": "broken", "label": 1}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_measure_splits_by_query_and_improves(tmp_path):
    pairs = command.read_pairs(write_pairs(tmp_path / "pairs.jsonl"))
    result = command.measure(Fake(), pairs, "isotonic", prior=0.2)
    sides = {pair.group: command.held_out(pair.group) for pair in pairs}
    assert 10 < sum(sides.values()) < 30
    assert len(result.fitted.scores) + len(result.held.scores) == 400
    assert result.failures == 1
    assert result.after[0] < result.before[0]
    assert result.after[1] < result.before[1]
    assert result.prior == 0.2
    report = command.write_report(result, "mini", tmp_path / "out")
    assert "Posterior of relevance by score" in report.read_text()
    saved = json.loads((tmp_path / "out/report.json").read_text())
    assert saved["calibration"]["method"] == "isotonic"


def test_store_copies_and_keeps_the_rest(tmp_path):
    source, target = tmp_path / "model", tmp_path / "out/checkpoint"
    source.mkdir()
    (source / "weights").write_text("w")
    config = PrismConfig(name="m", template=PRISM, threshold=0.4)
    (source / "prism.json").write_text(config.model_dump_json())
    target.parent.mkdir()
    command.store(source, target, PLATT)
    stored = PrismConfig.model_validate_json((target / "prism.json").read_text())
    assert stored == config.model_copy(update={"calibration": PLATT})
    assert (target / "weights").read_text() == "w"
    assert PrismConfig.model_validate_json((source / "prism.json").read_text()).calibration is None
    command.store(source, source, PLATT)
    assert PrismConfig.model_validate_json((source / "prism.json").read_text()).calibration == PLATT


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
        command.read_pairs(path)


def test_halves_need_both_labels(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "q", "document": "d 0.5", "label": 1}\n')
    with pytest.raises(InputError, match=r"half has [01] relevant of [01] pairs"):
        command.measure(Fake(), command.read_pairs(path), "platt")
