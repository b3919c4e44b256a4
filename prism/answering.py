"""Whether a set of documents answers: from all its scores to one probability, and what was promised at which threshold.

A set answers if one of its documents does. The best score alone says too little: hard neighbours of an answer score
high too, and among many documents the best is high by chance. Fitted by `prism calibrate` on questions with and without
their passage; kept in `prism.json`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from prism.scoring import Calibration, score
from prism.types import Record

Feature = Literal["best", "second", "any", "related"]
"""`best`, `second`: log-odds of the two highest scores (a lone document's rival has 0.001); `any`: log-odds that
some document is relevant if they were independent, 1 - prod(1 - p), p calibrated; `related`: ln(1 + n) of the n others
that score 0.5 and more."""
_LEAST = 0.001
"""Scores and probabilities closer to 0 or 1 tell no more apart."""
DEFAULT_CUT = 0.5
"""More probable than not: decides where no error rate was asked for."""


class AnswerBound(Record):
    """From `threshold` on, of the sets that are called answered at most `risk` hold no answer.

    With probability `confidence` over the questions it was found on, for questions like those: Learn then Test
    (Angelopoulos et al. 2021, arXiv:2110.01052) with exact binomial tests. Each bound holds by itself, not all at once.
    """

    risk: float = Field(gt=0.0, lt=1.0)
    threshold: float = Field(ge=0.0, le=1.0)
    confidence: float = Field(gt=0.0, lt=1.0)
    called: int = Field(ge=1)
    """How many sets of the part that it was tested on were called answered; the next is how many held no answer."""
    wrong: int = Field(ge=0)
    sets: int = Field(ge=1)
    """How many sets that part has."""


class Answering(Record):
    """P(the set holds an answer) = sigmoid(intercept + sum of weight x feature)."""

    weights: Mapping[Feature, float]
    intercept: float
    prior: float = Field(gt=0.0, lt=1.0)
    """Share of sets with an answer among those it was fitted on, which the probability assumes."""
    sets: int = Field(ge=1)
    """How many sets it was fitted on."""
    bounds: tuple[AnswerBound, ...] = ()
    """By rising risk."""

    @model_validator(mode="after")
    def _grows(self) -> Answering:
        leading = [self.weights[name] for name in ("best", "any") if name in self.weights]
        if not all(map(math.isfinite, [*self.weights.values(), self.intercept])) or not max(leading, default=0.0) > 0:
            raise ValueError(
                "a better best document must make an answer more probable: a weight of best or any is not > 0"
            )
        risks = [bound.risk for bound in self.bounds]
        if risks != sorted(set(risks)):
            raise ValueError(f"bounds stand by rising risk, each once, got {risks}")
        return self

    def probability(self, scores: Sequence[float], calibration: Calibration) -> float:
        """Of a set by the scores of its documents. Raises ValueError for an empty set."""
        values = features(scores, calibration)
        return score(self.intercept + sum(weight * values[name] for name, weight in self.weights.items()), 0.0)

    def bound(self, risk: float) -> AnswerBound | None:
        """The bound with the highest risk up to `risk`, which calls the most answered."""
        return max((one for one in self.bounds if one.risk <= risk), key=lambda one: one.risk, default=None)


def features(scores: Sequence[float], calibration: Calibration) -> dict[Feature, float]:
    """All features of a set of scores. Raises ValueError for an empty set."""
    if not scores:
        raise ValueError("a set without scores has no best one")
    ranked = sorted(scores, reverse=True)
    none = math.prod(1.0 - calibration.probability(each) for each in ranked)
    return {
        "best": _log_odds(ranked[0]),
        "second": _log_odds(ranked[1] if len(ranked) > 1 else 0.0),
        "any": _log_odds(1.0 - none),
        "related": math.log1p(sum(each >= 0.5 for each in ranked[1:])),
    }


def _log_odds(p: float) -> float:
    bounded = min(max(p, _LEAST), 1.0 - _LEAST)
    return math.log(bounded / (1.0 - bounded))
