"""Questions with and without their passage, made of scores that are there already; how well a fit tells them apart.

Three parts, each of questions of its own. `fit`: the features and their weights. `bound`: the thresholds that keep an
error rate. `check`: whether they did. Where one set stands for a question, a hash decides if it is with or without.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from prism.answering import AnswerBound, Answering
from prism.errors import InputError
from prism.measures.calibration import Quality, quality
from prism.measures.selective import (
    Outcomes,
    Point,
    at_coverages,
    at_threshold,
    certify,
    outcomes,
    risk_area,
    risk_coverage,
    upper_bound,
)
from prism.measures.set_fit import FeatureFit, ScoredSet, choose_features
from prism.scoring import Calibration
from prism.types import Record

Scores: TypeAlias = tuple[Sequence[float], Sequence[float]]
"""Of one question: the scores of what does not answer, and of what does."""
RISKS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
ERROR = 0.1
"""Chance that a promise does not hold."""
COVERAGES = tuple(n / 20 for n in range(1, 21))
LEAST = 20
"""Questions a part must have."""


class Checked(Record):
    """A promise, and what became of it on questions that had no part in it."""

    bound: AnswerBound
    there: Point | None
    """None where nothing was called answered."""
    most: float | None
    """The risk there is lower than this, with probability 0.9 (Clopper and Pearson)."""


class SetReport(Record):
    """How well sets with and without an answer are told apart; `before`: by the best document's probability alone."""

    answering: Answering
    candidates: tuple[FeatureFit, ...]
    held: int
    """How many sets of `bound` and `check` together everything but the promises was measured on."""
    unanswered: int
    before: Quality
    after: Quality
    area_before: float
    area_after: float
    """Mean risk over all coverages."""
    curve: tuple[Point, ...]
    bounds: tuple[Checked, ...]

    @property
    def worse(self) -> str | None:
        """Why the fit must not be stored: the best document's probability does as well on questions not seen."""
        old, new = self.before.brier.value or 0.0, self.after.brier.value or 0.0
        return None if new < old else f"Brier score {old:.4f} by the best document alone, {new:.4f} with it"


def measure_sets(
    fit: Mapping[str, Scores], bound: Mapping[str, Scores], check: Mapping[str, Scores], calibration: Calibration
) -> SetReport:
    """Questions by id. Raises InputError when a part has too few with both kinds of documents, or nothing fits."""
    for name, part in (("fitting", fit), ("bounding", bound), ("checking", check)):
        both = sum(bool(others and right) for others, right in part.values())
        if both < LEAST:
            raise InputError(f"the {name} part has {both} questions with and without an answer, {LEAST} are needed")
    fitted, candidates = choose_features(
        [one for id_, each in fit.items() for one in many_sets(id_, each)], calibration
    )

    def told(sets: Sequence[ScoredSet]) -> Outcomes:
        return outcomes([fitted.probability(one.scores, calibration) for one in sets], [one.answered for one in sets])

    tune, test, last = ([one_set(id_, each) for id_, each in part.items()] for part in (fit, bound, check))
    promised = tuple(_promise(told(tune), told(test)))
    held = [*test, *last]
    truth, groups = [one.answered for one in held], [one.group for one in held]
    best = [calibration.probability(max(one.scores)) for one in held]
    return SetReport(
        answering=fitted.model_copy(update={"bounds": promised}),
        candidates=candidates,
        held=len(held),
        unanswered=len(truth) - sum(truth),
        before=quality(best, truth, groups),
        after=quality(told(held).confidence, truth, groups),
        area_before=risk_area(outcomes(best, truth)),
        area_after=risk_area(told(held)),
        curve=at_coverages(risk_coverage(told(held)), COVERAGES),
        bounds=tuple(check_bound(one, told(last)) for one in promised),
    )


def check_bound(bound: AnswerBound, given: Outcomes) -> Checked:
    """What became of a promise on other sets."""
    there = at_threshold(given, bound.threshold)
    return Checked(bound=bound, there=there, most=upper_bound(there.wrong, there.accepted, 0.1) if there else None)


def _promise(tune: Outcomes, test: Outcomes) -> Iterator[AnswerBound]:
    thresholds = [point.threshold for point in at_coverages(risk_coverage(tune), COVERAGES)]
    for risk in RISKS:
        threshold = certify(tune, test, thresholds, risk, ERROR)
        if threshold is not None and (point := at_threshold(test, threshold)) is not None:
            yield AnswerBound(
                risk=risk,
                threshold=threshold,
                confidence=1 - ERROR,
                called=point.accepted,
                wrong=point.wrong,
                sets=len(test.confidence),
            )


# --- sets ------------------------------------------------------------------------------------------------------------


def many_sets(question: str, scores: Scores) -> Iterator[ScoredSet]:
    """With and without, of 1, 2, 4, … documents up to all: what a set says must not depend on its size alone."""
    draw = _drawer(question)
    others, right = scores
    sizes = sorted({*(2**n for n in range(len(others).bit_length()) if 2**n <= len(others)), len(others)} - {0})
    for size in sizes or [len(right)]:
        if others:
            yield ScoredSet(question, draw(others, size), False)
        if right:
            yield ScoredSet(question, (*right, *draw(others, max(0, size - len(right)))), True)


def one_set(question: str, scores: Scores) -> ScoredSet:
    """All that does not answer; or what does in the place of as many others, for half of the questions."""
    others, right = scores
    draw = _drawer(question)
    with_it = bool(right) and (not others or draw((0.0, 1.0), 1) == (1.0,))
    if not with_it:
        return ScoredSet(question, tuple(others), False)
    return ScoredSet(question, (*right, *draw(others, max(0, len(others) - len(right)))), True)


def _drawer(question: str) -> Callable[[Sequence[float], int], tuple[float, ...]]:
    drawn = random.Random(question)  # the same for a question whatever else is in the file
    return lambda scores, count: tuple(drawn.sample(list(scores), min(count, len(scores))))
