"""Votes into verdicts, and asking one by one. Expected values are worked out by hand beside each test."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from prism.errors import InputError
from prism.files.label_files import line_up, read_labels
from prism.labeling.sequential import (
    PosteriorBound,
    ask_in_order,
    decided,
    replay,
    when_decided,
)
from prism.types import Vote
from studies.aggregation import (
    CROWD_MODELS,
    JurorWeights,
    above,
    aggregate,
    calibrated_threshold,
    crowd_probability,
    fit_best_juror,
    fit_mean,
    fit_weights,
    majority_vote,
    mean_grade,
    out_of_fold,
    verdict_kappa,
    vote_table,
    yes_share,
)

NAN = math.nan
LLMJUDGE = Path(__file__).resolve().parents[1] / "../shared/data/labels/llmjudge"
needs_llmjudge = pytest.mark.skipif(not LLMJUDGE.is_dir(), reason="no ../shared/data/labels/llmjudge")
PANEL = ("willia-umbrela1", "h2oloo-fewself", "Olz-exp", "RMITIR-llama38b", "NISTRetrieval-reason1")


# --- votes -----------------------------------------------------------------------------------------------------------


def test_votes_become_a_matrix() -> None:
    votes = [
        Vote(pair_id="p", juror="a", label=2),
        Vote(pair_id="q", juror="b", label=0),
        Vote(pair_id="p", juror="b", label=None, failure="refused"),
        Vote(pair_id="p", juror="a", label=2),  # said again
        Vote(pair_id="q", juror="b", label=None, failure="timed out"),  # a failed repeat takes nothing away
    ]
    table = vote_table(votes)
    assert (table.pair_ids, table.jurors) == (("p", "q"), ("a", "b"))
    np.testing.assert_array_equal(table.votes, [[2, NAN], [NAN, 0]])
    with pytest.raises(InputError, match="juror 'a' labels pair 'p' both 2 and 1"):
        vote_table([*votes, Vote(pair_id="p", juror="a", label=1)])


VOTES = np.array([[2, 3, 0], [2, 0, NAN], [0, 1, 2], [NAN, NAN, 3], [NAN, NAN, NAN]])


def test_majority_counts_cast_votes_and_a_tie_is_no() -> None:
    # at >= 2: 2 of 3 yes; 1 of 2, a tie: no; 1 of 3 no; 1 of 1 yes; nobody: no verdict
    np.testing.assert_array_equal(yes_share(VOTES, 2), [2 / 3, 1 / 2, 1 / 3, 1, NAN])
    np.testing.assert_array_equal(majority_vote(VOTES, 2), [1, 0, 0, 1, NAN])


def test_mean_grade_counts_cast_votes() -> None:
    np.testing.assert_array_equal(mean_grade(VOTES), [5 / 3, 1, 1, 3, NAN])
    np.testing.assert_array_equal(above(mean_grade(VOTES), 1.0), [1, 0, 0, 1, NAN])  # strictly above
    verdicts, scores = aggregate(np.array([[1.0, 2.0], [1.0, 1.0]]), 2, "mean")
    assert scores.tolist() == [1.5, 1]
    assert verdicts.tolist() == [1, 0]  # 1.5 rounds to 2


def test_no_vote_is_made_up() -> None:
    for method in ("majority", "mean", "dawid-skene", "dawid-skene-graded"):
        verdicts, scores = aggregate(VOTES, 2, method)
        assert np.isnan(verdicts).tolist() == [False] * 4 + [True]
        assert np.isnan(scores[4])
    with pytest.raises(InputError, match="expected pairs x jurors"):
        aggregate(np.zeros((0, 3)), 2)


# --- crowd models ----------------------------------------------------------------------------------------------------


def two_experts_and_three_coins() -> tuple[np.ndarray, np.ndarray]:
    """(votes, truth): two jurors are right 19 times of 20, independently; three toss coins. Labels 0 and 3."""
    generator = np.random.default_rng(11)
    truth = generator.random(400) < 0.5
    right = generator.random((400, 2)) < 0.95
    coins = generator.random((400, 3)) < 0.5
    yes = np.hstack([np.where(right, truth[:, None], ~truth[:, None]), coins])
    return yes * 3.0, truth


def test_dawid_skene_finds_out_who_knows() -> None:
    votes, truth = two_experts_and_three_coins()
    by_majority, by_model = verdict_kappa(majority_vote(votes, 2), truth), aggregate(votes, 2, "dawid-skene")[0]
    assert verdict_kappa(by_model, truth) > by_majority + 0.1
    experts_agree = votes[:, 0] == votes[:, 1]
    # posterior odds are then 19 * 19 to 1, whatever the coins say
    np.testing.assert_array_equal(by_model[experts_agree], votes[experts_agree, 0] / 3)


@pytest.mark.parametrize("method", [name for name in CROWD_MODELS if name != "mace"])
def test_every_crowd_model_beats_the_coins(method: str) -> None:
    votes, truth = two_experts_and_three_coins()
    scores = crowd_probability(votes, 2, method)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert verdict_kappa(above(scores, 0.5), truth) > verdict_kappa(majority_vote(votes, 2), truth)


def test_crowd_models_with_nothing_to_learn_from() -> None:
    assert crowd_probability(np.full((3, 4), 2.0), 2).tolist() == [1, 1, 1]
    assert crowd_probability(np.full((3, 4), 1.0), 2).tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="no crowd model 'x'"):
        crowd_probability(VOTES, 2, "x")


def test_two_jurors_fall_back_to_the_majority() -> None:
    votes = np.array([[3.0, 0.0], [3.0, 3.0], [0.0, 0.0]])
    verdicts, scores = aggregate(votes, 2)
    assert verdicts.tolist() == [0, 1, 0]
    assert scores.tolist() == [0.5, 1, 0]


# --- a seed from people ----------------------------------------------------------------------------------------------


def test_threshold_by_hand() -> None:
    scores, truth = np.array([0.0, 1, 1, 2, 3]), np.array([False, False, True, False, True])
    # 0.5: right 3 of 5, expected (1*3 + 4*2)/25 = 11/25: kappa 4/14
    # 1.5: right 3 of 5, expected (3*3 + 2*2)/25 = 13/25: kappa 2/12
    # 2.5: right 4 of 5, expected (4*3 + 1*2)/25 = 14/25: kappa 6/11, the best
    assert calibrated_threshold(scores, truth) == 2.5
    assert verdict_kappa(above(scores, 2.5), truth) == pytest.approx(6 / 11)
    assert calibrated_threshold(np.append(scores, NAN), np.append(truth, True)) == 2.5
    assert calibrated_threshold(np.array([0.0, 4.0]), np.array([False, True])) == 2.0


@pytest.mark.parametrize("truth", [[True, True], [False, False]])
def test_a_seed_of_one_kind_is_refused(truth: list[bool]) -> None:
    votes = np.array([[0.0], [1.0]])
    for fit in (fit_mean, fit_weights):
        with pytest.raises(InputError, match=r"one kind|cannot set a threshold"):
            fit(votes, np.array(truth))
    with pytest.raises(InputError, match="1 scores"):
        calibrated_threshold(np.array([1.0, 1.0]), np.array([True, False]))


def test_weights_follow_who_is_right() -> None:
    votes, truth = two_experts_and_three_coins()
    weights = JurorWeights.fit(votes, truth)
    assert min(weights.weights[:2]) > 3 * max(abs(weights.weights[2:]))
    predicted = fit_weights(votes, truth)(votes)
    assert verdict_kappa(predicted, truth) > verdict_kappa(majority_vote(votes, 2), truth)
    # a missing vote counts as the juror's mean, all missing as no answer
    filled = np.array([[3.0, weights.means[1], 0, 0, 0]])
    gap = np.array([[3.0, NAN, 0, 0, 0]])
    assert weights.score(gap)[0] == pytest.approx(weights.score(filled)[0])
    assert np.isnan(weights.score(np.full((1, 5), NAN))[0])
    with pytest.raises(InputError, match="juror 2 has no vote in the seed"):
        JurorWeights.fit(np.array([[1.0, NAN], [0.0, NAN]]), np.array([True, False]))


def test_best_juror_is_the_best_of_the_seed() -> None:
    votes = np.array([[0.0, 3.0], [0.0, 3.0], [3.0, 0.0], [3.0, 3.0]])
    truth = np.array([False, False, True, True])
    assert fit_best_juror(2)(votes, truth)(np.array([[3.0, 0.0], [0.0, 3.0]])).tolist() == [1, 0]


def test_nothing_leaks_out_of_the_held_out_query() -> None:
    """Verdicts of a query do not change when people change their minds about that query, and do when about others."""
    votes, truth = two_experts_and_three_coins()
    query = np.repeat(np.arange(4), 100)
    for fit in (fit_mean, fit_weights, fit_best_juror(2)):
        before = out_of_fold(votes, truth, query, fit)
        turned = np.where(query == 2, ~truth, truth)
        np.testing.assert_array_equal(out_of_fold(votes, turned, query, fit)[query == 2], before[query == 2])
    turned = np.where(query != 2, ~truth, truth)
    assert (out_of_fold(votes, turned, query, fit_weights)[query == 2] != before[query == 2]).any()


# --- one by one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("yes", range(5))
@pytest.mark.parametrize("no", range(5))
@pytest.mark.parametrize("remaining", range(4))
def test_decided_means_no_further_votes_matter(yes: int, no: int, remaining: int) -> None:
    """Against brute force over everything the remaining jurors could say, failures included."""
    outcomes = set()
    for further in product(("yes", "no", None), repeat=remaining):
        total = yes + further.count("yes"), no + further.count("no")
        outcomes.add(("yes" if total[0] > total[1] else "no") if sum(total) else None)
    expected = outcomes.pop() if len(outcomes) == 1 else None
    assert decided(yes, no, remaining) == expected


def test_decided_by_hand() -> None:
    assert decided(3, 0, 2) == "yes"  # three of five
    assert decided(2, 0, 3) is None
    assert decided(0, 3, 2) == "no"
    assert decided(2, 2, 0) == "no"  # a tie
    assert decided(1, 2, 1) == "no"  # at best a tie
    assert decided(0, 0, 0) is None  # nobody answered
    with pytest.raises(InputError, match="cannot be negative"):
        decided(-1, 0, 0)


def test_stopping_early_never_changes_the_majority() -> None:
    """Every panel of five whose jurors say yes, no or nothing."""
    rows = list(product((3, 0, None), repeat=5))
    done = replay(rows, when_decided(2))
    votes = np.array([[NAN if label is None else label for label in row] for row in rows])
    whole = majority_vote(votes, 2)
    assert list(done.verdicts) == [None if math.isnan(verdict) else ("yes" if verdict else "no") for verdict in whole]
    assert all(1 <= calls <= 5 for calls in done.calls)


def test_calls_by_hand() -> None:
    rows = [[3, 3, 3, 0, 0], [0, 0, 0, 3, 3], [3, 0, 3, 0, 3], [3, 3, 0, 0, 0], [None, 3, 3, None, 3]]
    done = replay(rows, when_decided(2))
    # three yes; three no; only the fifth decides; two yes against two no, the fifth decides;
    # two yes and two failures: the fifth cannot turn it after the fourth (2 > 0 + 1)
    assert done.calls == (3, 3, 5, 5, 4)
    assert done.verdicts == ("yes", "no", "yes", "no", "yes")
    assert done.saved == pytest.approx(1 - 20 / 25)
    with pytest.raises(InputError, match="nothing to replay"):
        replay([], when_decided(2))
    with pytest.raises(InputError, match="nothing to replay"):
        replay([[1], [1, 2]], when_decided(2))


def test_posterior_by_hand() -> None:
    # one juror; true pairs labelled 1 1, false pairs 0 1. With one added to every count: P(1 | yes) = 3/4,
    # P(1 | no) = 2/4, P(0 | yes) = 1/4, P(0 | no) = 2/4; the prior is even.
    model = PosteriorBound.fit([[1], [1], [0], [1]], [True, True, False, False], bound=0.9)
    assert model.probability([]) == pytest.approx(1 / 2)
    assert model.probability([1]) == pytest.approx(3 / 5)  # odds 3 to 2
    assert model.probability([0]) == pytest.approx(1 / 3)  # odds 1 to 2
    assert model.probability([None]) == model.probability([7]) == pytest.approx(1 / 2)  # says nothing
    assert model([1], 0) == "yes"
    assert model([1], 1) is None  # 0.6 does not pass 0.9
    assert model.model_copy(update={"bound": 0.59})([1], 1) == "yes"
    assert model.model_copy(update={"bound": 0.65})([0], 1) == "no"  # 1/3 < 0.35
    assert model([None], 0) is None  # nobody answered


def test_posterior_odds_multiply() -> None:
    row = [[1, 1], [1, 1], [0, 0], [1, 1]]
    model = PosteriorBound.fit(row, [True, True, False, False], bound=0.9)
    assert model.probability([1, 1]) == pytest.approx(9 / 13)  # (3/2)^2 = 9 to 4
    assert ask_in_order([1, 1], model.model_copy(update={"bound": 0.65})) == (2, "yes")
    extreme = PosteriorBound(bound=0.9, prior_log_odds=0, log_ratios=({0: -5000.0, 1: 5000.0},))
    assert (extreme.probability([0]), extreme.probability([1])) == (0, 1)


def test_posterior_needs_both_kinds() -> None:
    with pytest.raises(InputError, match="2 of 2 pairs are true"):
        PosteriorBound.fit([[1], [0]], [True, True], bound=0.9)
    with pytest.raises(InputError, match="expected one full row"):
        PosteriorBound.fit([[1], [0, 1]], [True, False], bound=0.9)
    with pytest.raises(InputError, match="expected one full row"):
        PosteriorBound.fit([[1]], [True, False], bound=0.9)


# --- known facts on recorded votes -----------------------------------------------------------------------------------


@needs_llmjudge
def test_known_facts_of_the_five_judges() -> None:
    paths = [LLMJUDGE / "human.qrels", *(LLMJUDGE / "submissions" / f"{name}.qrels" for name in PANEL)]
    table = line_up([read_labels(path) for path in paths])
    votes, truth = table.columns(PANEL), table.votes[:, 0] >= 2
    whole = majority_vote(votes, 2)
    assert verdict_kappa(whole, truth) == pytest.approx(0.396, abs=5e-4)
    assert verdict_kappa(above(mean_grade(votes), 1.0), truth) == pytest.approx(0.415, abs=5e-4)
    assert verdict_kappa(aggregate(votes, 2, "dawid-skene")[0], truth) == pytest.approx(0.412, abs=5e-4)
    single = [verdict_kappa(majority_vote(votes[:, [juror]], 2), truth) for juror in range(5)]
    assert max(single) == pytest.approx(0.428, abs=5e-4)
    assert single.index(max(single)) == PANEL.index("h2oloo-fewself")
    done = replay([[int(label) for label in row] for row in votes], when_decided(2))
    assert done.saved == pytest.approx(0.363, abs=5e-4)
    assert [verdict == "yes" for verdict in done.verdicts] == (whole == 1).tolist()
