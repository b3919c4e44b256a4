"""Scores of a teacher that never saw our labels, made probabilities, and joined with the targets there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prism.errors import DataError

Numbers = NDArray[np.float64]
_LEAST = 20
"""Pairs of each verdict that a fit needs."""


def log_odds(scores: Sequence[float]) -> Numbers:
    """log(s / (1 - s)) of [pairs] scores in [0, 1]; 0 and 1 count as the nearest float32 scores that are neither."""
    tiny = float(np.finfo(np.float32).eps)
    clipped = np.clip(np.asarray(scores, dtype=np.float64), tiny, 1.0 - tiny)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def fitted(scores: Sequence[float], relevant: Sequence[bool]) -> tuple[float, float]:
    """(a, b) of P(relevant) = sigmoid(a * log-odds + b), by maximum likelihood (Platt 1999, "Probabilistic outputs for
    support vector machines").

    Raises DataError with fewer than 20 pairs of either verdict, or when the scores go against the verdicts.
    """
    from sklearn.linear_model import LogisticRegression

    least = min(sum(relevant), len(relevant) - sum(relevant))
    if least < _LEAST:
        raise DataError(f"calibrating a teacher needs {_LEAST} records of each verdict, got {least} of one")
    model = LogisticRegression(C=1e6).fit(log_odds(scores)[:, None], np.asarray(relevant))
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:
        raise DataError(f"the teacher's scores go against the verdicts (slope {slope:.3f}): it cannot teach them")
    return slope, intercept


class Calibrated:
    """What a teacher's scores mean as probabilities, by language where there are verdicts enough for it."""

    def __init__(self, scores: Sequence[float], relevant: Sequence[bool], languages: Sequence[str | None]) -> None:
        """Raises DataError as `fitted` does, for the fit over all languages."""
        self.fits: dict[str | None, tuple[float, float]] = {None: fitted(scores, relevant)}
        """Language -> (a, b); None: all pairs, for languages that have no fit of their own."""
        for language in sorted({known for known in languages if known}):
            at = [index for index, found in enumerate(languages) if found == language]
            own = [relevant[index] for index in at]
            if min(sum(own), len(own) - sum(own)) >= _LEAST:
                self.fits[language] = fitted([scores[index] for index in at], own)

    def probability(self, score: float, language: str | None) -> float:
        """P(relevant) for a score in [0, 1]."""
        return float(probabilities([score], self.fits.get(language, self.fits[None]))[0])

    def report(self) -> dict[str, list[float]]:
        """Slope and intercept by language, for a report."""
        return {name or "all": [round(number, 4) for number in fit] for name, fit in self.fits.items()}


def calibrated(rows: Iterable[Mapping[str, Any]]) -> Calibrated:
    """Fitted on the rows that carry a verdict beside their `teacher_score`. Raises DataError as `fitted` does."""
    known = [
        (row["teacher_score"], row["verdict"] == "yes", row.get("language"))
        for row in rows
        if row.get("verdict") in ("yes", "no")
    ]
    scores, relevant, languages = zip(*known, strict=True) if known else ((), (), ())
    return Calibrated(scores, relevant, languages)


def probabilities(scores: Sequence[float], fit: tuple[float, float]) -> Numbers:
    """P(relevant) for [pairs] scores."""
    slope, intercept = fit
    return np.asarray(1.0 / (1.0 + np.exp(-(slope * log_odds(scores) + intercept))))


def mixed(target: float | None, probability: float, share: float) -> float:
    """`share` of the teacher's probability and the rest of the target there was, if there was one."""
    joined = probability if target is None else (1.0 - share) * target + share * probability
    return round(joined, 6)
