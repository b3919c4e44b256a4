"""Label logits -> score: the one place this arithmetic lives (engines, losses and evaluation call it)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def score(l_yes: float, l_no: float) -> float:
    """sigmoid(l_yes - l_no), which equals softmax over {yes, no} at `yes`.

    Works on logits and on log-probabilities alike: a shared constant cancels. Saturates instead of overflowing.
    Source: Qwen3 Embedding and Reranking (Zhang et al. 2025, arXiv:2506.05176), section 2, reranking score.

    Raises ValueError when either is NaN: a broken forward pass must not become a ranking.
    """
    difference = l_yes - l_no
    if math.isnan(difference):
        raise ValueError(f"label logits are not comparable: yes={l_yes}, no={l_no}")
    if difference >= 0:
        return 1.0 / (1.0 + math.exp(-difference))
    odds = math.exp(difference)
    return odds / (1.0 + odds)


def score_tensor(label_logits_B2: Tensor) -> Tensor:
    """`score` over a batch: [B, 2] logits in the order (yes, no) -> [B] scores, differentiable, in fp32."""
    logits = label_logits_B2.float()
    return (logits[:, 0] - logits[:, 1]).sigmoid()
