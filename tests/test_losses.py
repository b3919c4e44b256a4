"""Losses: hand-worked values, gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from prism.training.losses import (
    TEACHER_MARGIN,
    listwise_kl,
    logit_mse,
    margin_mse,
    score_cross_entropy,
    score_mse,
    token_cross_entropy,
)

LN3 = math.log(3.0)


def test_score_mse_by_hand():
    # Scores 0.75 and 0.5 against 0.25 and 1.0: ((0.5)^2 + (0.5)^2) / 2 = 0.25.
    logits = torch.tensor([[LN3, 0.0], [1.0, 1.0]])
    assert score_mse(logits, torch.tensor([0.25, 1.0])).item() == pytest.approx(0.25)


def test_score_mse_gradient_by_hand():
    # p = 0.75, t = 0.25, one row: 2 (p - t) p (1 - p) = 2 * 0.5 * 0.1875 = 0.1875 on l_yes.
    logits = torch.tensor([[LN3, 0.0]], requires_grad=True)
    score_mse(logits, torch.tensor([0.25])).backward()
    assert logits.grad.tolist()[0] == pytest.approx([0.1875, -0.1875])


def test_score_cross_entropy_by_hand():
    # p = 0.75, t = 1: -ln 0.75. With t = 0.25: -0.25 ln 0.75 - 0.75 ln 0.25.
    logits = torch.tensor([[LN3, 0.0]])
    assert score_cross_entropy(logits, torch.tensor([1.0])).item() == pytest.approx(-math.log(0.75))
    expected = -0.25 * math.log(0.75) - 0.75 * math.log(0.25)
    assert score_cross_entropy(logits, torch.tensor([0.25])).item() == pytest.approx(expected)


def test_score_cross_entropy_pulls_back_from_saturation_where_mse_does_not():
    target = torch.tensor([1.0])
    for loss, least, most in ((score_mse, 0.0, 1e-6), (score_cross_entropy, 0.99, 1.0)):
        logits = torch.tensor([[-20.0, 0.0]], requires_grad=True)
        loss(logits, target).backward()
        assert least <= -logits.grad[0, 0].item() <= most


def test_token_cross_entropy_by_hand():
    # Logits hidden @ head^T = [ln 3, 0]: p = (0.75, 0.25). Targets 0 and 1: -(ln 0.75 + ln 0.25) / 2.
    hidden = torch.tensor([[1.0], [1.0]])
    head = torch.tensor([[LN3], [0.0]])
    loss = token_cross_entropy(hidden, head, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_token_cross_entropy_weighted_by_hand():
    # As above, position 0 (-ln 0.75) counting 3 and position 1 (-ln 0.25) counting 1.
    # Gradient of the mean on a hidden state: w / sum w x (p - onehot) @ head = 3/4 x (0.75 - 1) ln 3, 1/4 x 0.75 ln 3.
    hidden = torch.tensor([[1.0], [1.0]], requires_grad=True)
    head = torch.tensor([[LN3], [0.0]])
    loss = token_cross_entropy(hidden, head, torch.tensor([0, 1]), torch.tensor([3.0, 1.0]))
    assert loss.item() == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4)
    loss.backward()
    assert hidden.grad.flatten().tolist() == pytest.approx([-0.1875 * LN3, 0.1875 * LN3])


def test_many_positions_are_taken_in_parts():
    """However many at once: the same value and the same gradients."""
    torch.manual_seed(4)
    hidden, head = torch.randn(10, 6, requires_grad=True), torch.randn(7, 6, requires_grad=True)
    targets, counted = torch.randint(7, (10,)), torch.rand(10)
    found = []
    for at_once in (10 * 7, 3 * 7):
        hidden.grad = head.grad = None
        loss = token_cross_entropy(hidden, head, targets, counted, at_once)
        loss.backward()
        found.append((loss.detach(), hidden.grad.clone(), head.grad.clone()))
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(*found, strict=True))


def test_logit_mse_by_hand():
    # Differences ln 3 and 0 against logit(0.5) = 0 and logit(0.75) = ln 3: (ln^2 3 + ln^2 3) / 2. Gradient 2 d / B = d.
    logits = torch.tensor([[LN3, 0.0], [1.0, 1.0]], requires_grad=True)
    loss = logit_mse(logits, torch.tensor([0.5, 0.75]))
    assert loss.item() == pytest.approx(LN3**2)
    loss.backward()
    assert logits.grad.tolist()[0] == pytest.approx([LN3, -LN3])
    assert logits.grad.tolist()[1] == pytest.approx([-LN3, LN3])


def test_teachers_that_are_certain_stay_finite():
    # logit(1 - m) = ln((1 - m) / m), reached from below.
    certain = math.log((1 - TEACHER_MARGIN) / TEACHER_MARGIN)
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    assert logit_mse(logits, torch.tensor([1.0, 0.0])).item() == pytest.approx(certain**2, rel=1e-4)
    for loss in (margin_mse, listwise_kl):
        assert loss(logits, torch.tensor([1.0, 0.0]), torch.tensor([7, 7])).isfinite()


def test_margin_mse_by_hand():
    # Query 5 has differences ln 3, 0 and teachers 0.5, 0.75, i.e. logits 0, ln 3: the margin is ln 3 against -ln 3.
    # Query 9 has one row: nothing to compare. Mean over the one pair: (2 ln 3)^2.
    logits = torch.tensor([[LN3, 0.0], [50.0, 0.0], [2.0, 2.0]])
    loss = margin_mse(logits, torch.tensor([0.5, 0.1, 0.75]), torch.tensor([5, 9, 5]))
    assert loss.item() == pytest.approx(4 * LN3**2)


def test_margin_mse_averages_over_pairs():
    # Differences 0, 1, 3 and equal teachers: pairs (0-1)^2, (0-3)^2, (1-3)^2, mean 14 / 3.
    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    assert margin_mse(logits, torch.full((3,), 0.3), torch.tensor([1, 1, 1])).item() == pytest.approx(14 / 3)


def test_listwise_kl_by_hand():
    # Teacher logits ln 3 and 0: softmax (3/4, 1/4). Student differences 0 and 0: (1/2, 1/2).
    # KL = 3/4 ln(3/2) + 1/4 ln(1/2). Gradient on the first difference: 1/2 - 3/4.
    logits = torch.zeros(2, 2, requires_grad=True)
    loss = listwise_kl(logits, torch.tensor([0.75, 0.5]), torch.tensor([4, 4]))
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    loss.backward()
    assert logits.grad.tolist()[0] == pytest.approx([-0.25, 0.25])


def test_listwise_kl_averages_over_queries_and_leaves_single_rows_out():
    # Query 1 as above, query 2 agrees with its teacher exactly (KL 0), query 3 has one row: half of one query's KL.
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [LN3, 0.0], [0.0, 0.0], [9.0, 0.0]], requires_grad=True)
    teacher, query = torch.tensor([0.75, 0.5, 0.75, 0.5, 0.1]), torch.tensor([1, 1, 2, 2, 3])
    loss = listwise_kl(logits, teacher, query)
    assert loss.item() == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2)
    loss.backward()
    assert logits.grad[4].abs().sum() == 0


@pytest.mark.parametrize("loss", [margin_mse, listwise_kl])
def test_losses_over_a_query_ignore_what_its_documents_share(loss):
    torch.manual_seed(5)
    logits, teacher, query = torch.randn(6, 2), torch.rand(6), torch.tensor([1, 1, 1, 2, 2, 2])
    raised = logits + torch.tensor([[3.0, 0.0]] * 3 + [[0.0, 5.0]] * 3)
    assert loss(raised, teacher, query).item() == pytest.approx(loss(logits, teacher, query).item(), rel=1e-4)


@pytest.mark.parametrize("loss", [margin_mse, listwise_kl])
def test_without_two_documents_of_a_query_there_is_nothing_to_learn(loss):
    logits = torch.randn(3, 2, requires_grad=True)
    found = loss(logits, torch.rand(3), torch.tensor([1, 2, 3]))
    found.backward()
    assert found.item() == 0.0
    assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize(
    "loss",
    [
        score_mse,
        score_cross_entropy,
        logit_mse,
        lambda logits, teacher: margin_mse(logits, teacher, torch.tensor([1, 1, 2, 2])),
        lambda logits, teacher: listwise_kl(logits, teacher, torch.tensor([1, 1, 2, 2])),
    ],
    ids=["score_mse", "score_cross_entropy", "logit_mse", "margin_mse", "listwise_kl"],
)
def test_gradients_match_finite_differences(loss):
    torch.manual_seed(3)
    teacher = torch.rand(4)
    logits = torch.randn(4, 2, requires_grad=True)
    loss(logits, teacher).backward()
    step = 1e-2
    for row in range(4):
        for column in range(2):
            moved = torch.zeros(4, 2)
            moved[row, column] = step
            with torch.no_grad():
                slope = (loss(logits + moved, teacher) - loss(logits - moved, teacher)) / (2 * step)
            assert logits.grad[row, column].item() == pytest.approx(slope.item(), abs=2e-4)
    assert logits.grad.abs().min() > 0


def test_no_rows_give_zero_with_a_gradient_path():
    hidden = torch.randn(3, 4, requires_grad=True)
    logits = hidden[:, :2][torch.zeros(3, dtype=torch.bool)]
    empty = torch.tensor([])
    total = score_mse(logits, empty) + score_cross_entropy(logits, empty) + logit_mse(logits, empty)
    total = total + margin_mse(logits, empty, empty) + listwise_kl(logits, empty, empty)
    total = total + token_cross_entropy(hidden[:0], torch.randn(5, 4), torch.tensor([], dtype=torch.long))
    total.backward()
    assert total.item() == 0.0
    assert hidden.grad.abs().sum() == 0
