"""Label logits -> score: the one place this arithmetic lives (engines, losses and evaluation call it)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from prism.types import Record

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 1e-12
"""Probabilities nearer to 0 or 1 than this have no odds."""


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


class Calibration(Record):
    """How a score becomes a probability of relevance; fitted by `prism calibrate`, kept in `prism.json`.

    The score itself stays as it is: rankings, thresholds and verdicts do not change.
    """

    method: Literal["isotonic", "platt"]
    prior: float = Field(gt=0.0, lt=1.0)
    """Share of relevant pairs in the data it was fitted on; what probabilities assume unless told otherwise."""
    pairs: int = Field(ge=1)
    """How many pairs it was fitted on."""
    languages: tuple[str, ...] = ()
    """Of the queries it was fitted on, as `prism.text.language_of` tells them; empty: not noted. A model's scores mean
    other things in a language that it knows less of, so nothing is said of queries in others."""
    knots: tuple[tuple[float, float], ...] = ()
    """Isotonic: (score, probability), both growing; straight lines between them, flat outside."""
    slope: float = 1.0
    intercept: float = 0.0
    """Platt: sigmoid(slope * logit(score) + intercept)."""

    @model_validator(mode="after")
    def _grows(self) -> Calibration:
        scores, probabilities = zip(*self.knots, strict=True) if self.knots else ((), ())
        if self.method == "isotonic" and (
            not self.knots
            or list(scores) != sorted(set(scores))
            or list(probabilities) != sorted(probabilities)
            or not 0.0 <= probabilities[0] <= probabilities[-1] <= 1.0
        ):
            raise ValueError("isotonic calibration needs knots whose scores and probabilities grow")
        if self.method == "platt" and not self.slope > 0.0:
            raise ValueError(f"a higher score must mean a higher probability: slope is {self.slope}")
        return self

    def probability(self, score: float, prior: float | None = None) -> float:
        """Probability of relevance at `score`, where `prior` of all documents are relevant (default: as when fitted).

        Raises ValueError when score or prior lie outside [0, 1].
        """
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"a score lies between 0 and 1, got {score}")
        fitted = self._platt(score) if self.method == "platt" else self._isotonic(score)
        return fitted if prior is None else shift_prior(fitted, self.prior, prior)

    def _platt(self, score: float) -> float:
        bounded = min(max(score, _LEAST), 1.0 - _LEAST)
        return _sigmoid(self.slope * math.log(bounded / (1.0 - bounded)) + self.intercept)

    def _isotonic(self, score: float) -> float:
        place = bisect_right(self.knots, (score, math.inf))
        if place == 0:
            return self.knots[0][1]
        if place == len(self.knots):
            return self.knots[-1][1]
        (x0, y0), (x1, y1) = self.knots[place - 1], self.knots[place]
        return y0 + (y1 - y0) * (score - x0) / (x1 - x0)


def shift_prior(probability: float, fitted: float, now: float) -> float:
    """A probability of relevance learnt where `fitted` of the documents were relevant, where `now` of them are.

    p' = (now/fitted) p / ((now/fitted) p + ((1-now)/(1-fitted)) (1-p)): Saerens, Latinne, Decaestecker (2002), eq. 2.4.
    Holds if relevant documents score alike in both places, and irrelevant ones too. Raises ValueError outside (0, 1).
    """
    if not (0.0 < fitted < 1.0 and 0.0 < now < 1.0):
        raise ValueError(f"a prior lies between 0 and 1, got {fitted} and {now}")
    yes = now / fitted * probability
    no = (1.0 - now) / (1.0 - fitted) * (1.0 - probability)
    return yes / (yes + no)


def _sigmoid(x: float) -> float:
    return score(x, 0.0)


def option_probabilities(scores: Sequence[float]) -> tuple[float, ...]:
    """Which of several options holds, from the score of each on its own: P(i) = odds_i / sum of all odds.

    For independent yes/no answers this is exact, given that exactly one is yes:
    P(only i) = p_i * prod over j != i of (1 - p_j), and the ratio of two of these is the ratio of their odds.
    """
    bounded = (min(max(score, _LEAST), 1.0 - _LEAST) for score in scores)
    odds = [p / (1.0 - p) for p in bounded]
    return tuple(one / math.fsum(odds) for one in odds)


def level_probabilities(score: float, levels: int) -> tuple[float, ...]:
    """A score spread over ordered levels, lowest first: binomial(levels - 1, score).

    Its mean is score * (levels - 1), so that levels rank as scores do; of two levels the upper has the score itself.
    """
    steps = levels - 1
    return tuple(math.comb(steps, k) * score**k * (1.0 - score) ** (steps - k) for k in range(levels))
