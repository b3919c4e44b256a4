"""The teacher of question-passage records: BM25, a dense model and shared words, calibrated on what people labelled.

A logistic regression turns the scores of a pair into the probability that the passage answers. It learns from passages
that people said answer (1); passages they said do not, random ones, and near ones that lack the set's own answer (0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prism.errors import DataError

Scored = NDArray[np.float32]
"""Pairs [pairs, 6]: the window's number, then what the first stages say about it:

BM25 over the query's best; log(1 + BM25); cosine (0 where no dense model reads the language); the largest share of the
question that one sentence says; the share that the whole window says.
"""
COLUMNS = 6
_HELD_OUT = 5
"""Every so-many-th query measures the fit instead of taking part in it."""
_LEAST = 4


class LabelledPassage(NamedTuple):
    """One pair the teacher learns from, or is measured on."""

    query: int
    scored: Scored
    """[6]."""
    relevant: bool


def window_of(scored: Scored) -> int:
    """The number of a scored pair's window."""
    return int(scored[0])


class Teacher:
    """A fitted calibration."""

    def __init__(self, labelled: Sequence[LabelledPassage]) -> None:
        """Raises DataError when the pairs do not hold both labels several times."""
        positives = sum(pair.relevant for pair in labelled)
        if min(positives, len(labelled) - positives) < _LEAST:
            raise DataError(
                f"the teacher needs at least {_LEAST} passages that answer and {_LEAST} that do not: got {positives}"
                f" and {len(labelled) - positives}: give more questions"
            )
        tried = [pair for pair in labelled if pair.query % _HELD_OUT == 0]
        rest = [pair for pair in labelled if pair.query % _HELD_OUT]
        both = len({pair.relevant for pair in rest}) == 2
        self.figures = _measured(_fitted(rest), tried) if both else {}
        self.figures |= {"pairs": len(labelled), "relevant": positives}
        self._model = _fitted(labelled)

    def probabilities(self, pairs: Scored) -> NDArray[np.float64]:
        """P(the passage answers) for each of [pairs, 6]."""
        if not len(pairs):
            return np.empty(0)
        return np.asarray(self._model.predict_proba(pairs[:, 1:])[:, 1], dtype=np.float64)


def _fitted(labelled: Sequence[LabelledPassage]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(np.stack([pair.scored[1:] for pair in labelled]), [pair.relevant for pair in labelled])
    return model


def _measured(model: Any, tried: Sequence[LabelledPassage]) -> dict[str, float]:
    """AUC, Brier score and log loss on queries that took no part in the fit."""
    from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

    labels = [pair.relevant for pair in tried]
    if len(set(labels)) < 2:
        return {}
    scores = model.predict_proba(np.stack([pair.scored[1:] for pair in tried]))[:, 1]
    return {
        "held_out_pairs": len(tried),
        "auc": round(float(roc_auc_score(labels, scores)), 4),
        "brier": round(float(brier_score_loss(labels, scores)), 4),
        "log_loss": round(float(log_loss(labels, scores)), 4),
    }


def target(probability: float, people: bool | None, ceiling: float) -> float:
    """The score a model is to give: what people said, shaded by the teacher; where they said nothing, the teacher's.

    yes: 0.90 to 0.98; no: 0.02 to 0.15; mined: 0.01 to `ceiling`.
    """
    if people is None:
        return round(min(max(probability, 0.01), ceiling), 4)
    return round(0.9 + 0.08 * probability if people else 0.02 + 0.13 * probability, 4)
