"""Scores of a teacher that never saw our labels, made probabilities, and joined with the targets there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prism.errors import DataError, InputError
from prism.measures.calibration import fit
from prism.scoring import Calibration

_LEAST = 20
"""Pairs of each verdict that a fit needs."""


class Calibrated:
    """What a teacher's scores mean as probabilities, by language where there are verdicts enough for it."""

    def __init__(self, scores: Sequence[float], relevant: Sequence[bool], languages: Sequence[str | None]) -> None:
        """Platt's fit over scores in [0, 1]; see `prism.measures.calibration.fit`.

        Raises DataError with fewer than 20 pairs of either verdict, or when the scores go against the verdicts.
        """
        if _rarer(relevant) < _LEAST:
            yes = sum(relevant)
            raise DataError(
                f"calibrating a teacher needs {_LEAST} records with verdict yes and {_LEAST} with no, got {yes} and"
                f" {len(relevant) - yes}: label more (`prism label`), or leave --calibrate out"
            )
        self.fits: dict[str | None, Calibration] = {None: _fitted(scores, relevant)}
        """By language; None: over all pairs, for languages that have no fit of their own."""
        for language in sorted({known for known in languages if known}):
            at = [index for index, found in enumerate(languages) if found == language]
            own = [relevant[index] for index in at]
            if _rarer(own) >= _LEAST:
                self.fits[language] = _fitted([scores[index] for index in at], own)

    def probability(self, score: float, language: str | None) -> float:
        """P(relevant) for a score in [0, 1]."""
        return self.fits.get(language, self.fits[None]).probability(_kept(score))

    def report(self) -> dict[str, list[float]]:
        """Slope and intercept over log-odds by language, for a report."""
        return {name or "all": [round(one.slope, 4), round(one.intercept, 4)] for name, one in self.fits.items()}


def calibrated(rows: Iterable[Mapping[str, Any]]) -> Calibrated:
    """Fitted on the rows that carry a verdict beside their `teacher_score`. Raises DataError as `Calibrated` does."""
    known = [
        (row["teacher_score"], row["verdict"] == "yes", row.get("language"))
        for row in rows
        if row.get("verdict") in ("yes", "no")
    ]
    scores, relevant, languages = zip(*known, strict=True) if known else ((), (), ())
    return Calibrated(scores, relevant, languages)


def mixed(target: float | None, probability: float, share: float) -> float:
    """`share` of the teacher's probability and the rest of the target there was, if there was one."""
    joined = probability if target is None else (1.0 - share) * target + share * probability
    return round(joined, 6)


def _rarer(relevant: Sequence[bool]) -> int:
    return min(sum(relevant), len(relevant) - sum(relevant))


def _fitted(scores: Sequence[float], relevant: Sequence[bool]) -> Calibration:
    try:
        return fit([_kept(score) for score in scores], relevant, "platt")
    except InputError as error:
        raise DataError(f"the teacher's scores go against the verdicts, so it cannot teach them: {error}") from error


def _kept(score: float) -> float:
    """Scores are kept to six digits: one that became 0 or 1 is no further from 0.5 than the last that did not."""
    return min(max(score, 1e-6), 1.0 - 1e-6)
