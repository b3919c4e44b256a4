"""The score: hand-worked values, stability, agreement of the two forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prism.scoring import score, score_tensor

LOGIT = st.floats(-1e4, 1e4)


@pytest.mark.parametrize(
    ("l_yes", "l_no", "expected"),
    [
        (0.0, 0.0, 0.5),
        (math.log(3.0), 0.0, 0.75),  # odds 3 to 1
        (-1.0, -1.0 + math.log(4.0), 0.2),  # odds 1 to 4; the shared -1 cancels
        (2000.0, 0.0, 1.0),
        (0.0, 2000.0, 0.0),
    ],
)
def test_score(l_yes, l_no, expected):
    assert score(l_yes, l_no) == pytest.approx(expected, abs=1e-12)


@given(LOGIT, LOGIT)
def test_score_and_its_complement_sum_to_one(l_yes, l_no):
    assert score(l_yes, l_no) + score(l_no, l_yes) == pytest.approx(1.0)


@given(LOGIT, LOGIT)
def test_tensor_form_agrees(l_yes, l_no):
    both = score_tensor(torch.tensor([[l_yes, l_no]], dtype=torch.float32))
    single = score(*torch.tensor([l_yes, l_no], dtype=torch.float32).tolist())
    assert both.item() == pytest.approx(single, abs=1e-6)


def test_nan_is_never_a_score():
    with pytest.raises(ValueError, match="not comparable"):
        score(float("nan"), 0.0)
    with pytest.raises(ValueError, match="not comparable"):
        score(float("-inf"), float("-inf"))
