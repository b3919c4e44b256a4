"""Training losses: pure functions over tensors. B rows, H hidden size, N chosen positions, V vocabulary.

None of them looks at a value on the way, so a GPU never makes its process wait: what does not count is multiplied by 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch.utils.checkpoint import checkpoint

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
    wrong, which is where an untaught model often finds itself.
    """
    if teacher_B.numel() == 0:
        return label_logits_B2.sum() * 0.0
    return F.binary_cross_entropy_with_logits(_difference(label_logits_B2), teacher_B.float())


def logit_mse(label_logits_B2: Tensor, teacher_B: Tensor) -> Tensor:
    """Distillation on the logit: mean over rows of (l_yes - l_no - logit(t))^2, logit(t) = ln(t / (1 - t)).

    Shapes as `score_mse`; teacher scores are kept `TEACHER_MARGIN` away from 0 and 1, where logits are infinite.
    Source: Ba and Caruana 2014, section 2.2 (regression on logits). Gradient with d the residual: 2 d / B on l_yes.
    """
    if teacher_B.numel() == 0:
        return label_logits_B2.sum() * 0.0
    return F.mse_loss(_difference(label_logits_B2), teacher_logit(teacher_B))


def margin_mse(label_logits_B2: Tensor, teacher_B: Tensor, query_B: Tensor) -> Tensor:
    """Distillation of differences: mean over pairs i < j of one query of ((d_i - d_j) - (t_i - t_j))^2, on logits.

    d = l_yes - l_no, t = logit of the teacher score; `query_B`: rows with equal numbers are documents of one query.
    What all documents of a query share is left free. Zero (with a gradient path) where no query has two rows. Source:
    Hofstätter et al. 2020, "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation",
    section 3.1 (Margin-MSE), over all pairs instead of sampled triples.
    """
    pairs_BB = _comparable_pairs(query_B)
    residual_B = _difference(label_logits_B2) - teacher_logit(teacher_B)
    squares_BB = (residual_B[:, None] - residual_B[None, :]).square()
    return (squares_BB * pairs_BB).sum() / pairs_BB.sum().clamp(min=1)


def listwise_kl(label_logits_B2: Tensor, teacher_B: Tensor, query_B: Tensor) -> Tensor:
    """Distillation of rankings: mean over queries of KL(softmax(t) || softmax(d)) over the documents of the query.

    d, t, `query_B` and zero as in `margin_mse`. Source: top-one probabilities of ListNet (Cao et al. 2007, "Learning to
    Rank: From Pairwise Approach to Listwise Approach", section 4), with the teacher's as the target; KL differs from
    their cross-entropy by the target's entropy, a constant. Gradient on d_i: (softmax(d)_i - softmax(t)_i) / queries.
    """
    if teacher_B.numel() == 0:
        return label_logits_B2.sum() * 0.0
    same_BB, pairs_BB = query_B[:, None] == query_B[None, :], _comparable_pairs(query_B)
    student_B = _log_softmax_within(_difference(label_logits_B2), same_BB)
    target_B = _log_softmax_within(teacher_logit(teacher_B), same_BB)
    terms_B = target_B.exp() * (target_B - student_B)  # 1 x (0 - 0) for a row that is alone
    # Of several rows of a query the first has one after it and none before it.
    queries = (pairs_BB.any(1) & ~pairs_BB.any(0)).sum()
    return terms_B.sum() / queries.clamp(min=1)


TEACHER_MARGIN = 1e-4
"""Teacher scores of exactly 0 or 1 count as this far from it: a logit of about 9."""


def _comparable_pairs(query_B: Tensor) -> Tensor:
    """Rows i < j of one query, as a matrix [B, B] of booleans."""
    return torch.triu(query_B[:, None] == query_B[None, :], diagonal=1)


def teacher_logit(teacher_B: Tensor) -> Tensor:
    return torch.logit(teacher_B.float(), eps=TEACHER_MARGIN)


def _difference(label_logits_B2: Tensor) -> Tensor:
    return label_logits_B2.float()[:, 0] - label_logits_B2.float()[:, 1]


def _log_softmax_within(values_B: Tensor, same_BB: Tensor) -> Tensor:
    """Log-softmax of each value among those of its own query."""
    among_BB = values_B[None, :].masked_fill(~same_BB, float("-inf"))
    return values_B - torch.logsumexp(among_BB, dim=1)


LOGITS_AT_ONCE = 2**28
"""About 1.6 GB of logits in bf16 and fp32: 1,766 positions of a vocabulary of 151,936."""


def token_cross_entropy(
    hidden_NH: Tensor,
    head_VH: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Tensor:
    """Weighted mean over N positions of -log softmax(hidden @ head^T)[target]: the SFT loss.

    With c the cross-entropy of a position and w its weight (default 1): sum w c / sum w. Takes the hidden states of
    needed positions only, so logits over a prompt are never built, and no more than `logits_at_once` of them at a time:
    where there are more, each part is computed again in the backward pass. In fp32 from the logits on. Zero (with a
    gradient path) for no positions. Source: supervised fine-tuning by maximum likelihood (Ouyang et al. 2022, "Training
    language models to follow instructions with human feedback", section 3.5); the weights make it a weighted one.
    """
    if targets_N.numel() == 0:
        return hidden_NH.sum() * 0.0
    if weights_N is None:
        weights_N = torch.ones_like(targets_N, dtype=torch.float32)
    rows = max(1, logits_at_once // len(head_VH))
    if len(targets_N) <= rows:
        return _cross_entropy_sum(hidden_NH, head_VH, targets_N, weights_N) / weights_N.sum()
    parts = zip(*(torch.split(tensor, rows) for tensor in (hidden_NH, targets_N, weights_N)), strict=True)
    sums = [
        checkpoint(_cross_entropy_sum, hidden, head_VH, targets, weights, use_reentrant=False, preserve_rng_state=False)
        for hidden, targets, weights in parts
    ]
    return torch.stack(sums).sum() / weights_N.sum()


def _cross_entropy_sum(hidden_NH: Tensor, head_VH: Tensor, targets_N: Tensor, weights_N: Tensor) -> Tensor:
    each_N = F.cross_entropy(F.linear(hidden_NH, head_VH).float(), targets_N, reduction="none")
    return (weights_N * each_N).sum()
