"""Training losses: pure functions over tensors. B rows, H hidden size, N chosen positions, V vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from prism.scoring import score_tensor

if TYPE_CHECKING:
    from torch import Tensor


def score_mse(label_logits_B2: Tensor, teacher_B: Tensor) -> Tensor:
    """Point-wise distillation: mean over rows of (sigmoid(l_yes - l_no) - t)^2.

    `label_logits_B2`: logits of (yes, no); `teacher_B`: target scores in [0, 1]. Reduction: mean; zero for no rows.
    Source: mean squared error between student score and teacher score, as in knowledge distillation by regression
    (Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", section 2.2), on probabilities instead of logits.
    Gradient with p the score: 2 (p - t) p (1 - p) / B on l_yes, its negative on l_no.
    """
    if teacher_B.numel() == 0:
        return label_logits_B2.sum() * 0.0
    return F.mse_loss(score_tensor(label_logits_B2), teacher_B.float())


def score_cross_entropy(label_logits_B2: Tensor, teacher_B: Tensor) -> Tensor:
    """Soft cross-entropy on the two labels: mean over rows of -t log p - (1 - t) log (1 - p), p the score.

    Shapes as `score_mse`; needs no clamping, since it is computed from the logit. Source: distillation by cross-entropy
    with soft targets (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2), two classes.
    Gradient: (p - t) / B on l_yes. Unlike the squared error's it does not vanish where the score is saturated and
    wrong, which is where a model that starts from nothing soon finds itself.
    """
    if teacher_B.numel() == 0:
        return label_logits_B2.sum() * 0.0
    difference_B = label_logits_B2.float()[:, 0] - label_logits_B2.float()[:, 1]
    return F.binary_cross_entropy_with_logits(difference_B, teacher_B.float())


def token_cross_entropy(hidden_NH: Tensor, head_VH: Tensor, targets_N: Tensor) -> Tensor:
    """Mean over N positions of -log softmax(hidden @ head^T)[target]: the SFT and language-model losses.

    Takes hidden states of the needed positions only, so logits over a prompt are never built. In fp32 from the logits
    on. Reduction: mean; zero (with a gradient path) for no positions.
    """
    if targets_N.numel() == 0:
        return hidden_NH.sum() * 0.0
    return F.cross_entropy(F.linear(hidden_NH, head_VH).float(), targets_N)
