"""Losses: hand-worked values, gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from prism.training.losses import score_cross_entropy, score_mse, token_cross_entropy

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


@pytest.mark.parametrize("loss", [score_mse, score_cross_entropy])
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
            assert logits.grad[row, column].item() == pytest.approx(slope.item(), abs=1e-4)
    assert logits.grad.abs().min() > 0


def test_no_rows_give_zero_with_a_gradient_path():
    hidden = torch.randn(3, 4, requires_grad=True)
    logits = hidden[:, :2][torch.zeros(3, dtype=torch.bool)]
    empty = torch.tensor([])
    total = score_mse(logits, empty) + score_cross_entropy(logits, empty)
    total = total + token_cross_entropy(hidden[:0], torch.randn(5, 4), torch.tensor([], dtype=torch.long))
    total.backward()
    assert total.item() == 0.0
    assert hidden.grad.abs().sum() == 0
