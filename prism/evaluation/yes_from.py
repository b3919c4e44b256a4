"""From which score on a yes is right in each language: chosen on the fitting half, measured on the other.

A language is what the letters of a query tell (`prism.text.LANGUAGES`); queries in Latin letters, and in those that are
not told apart, are one group, whose yes begins at the checkpoint's `threshold`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prism.evaluation.calibrating import OTHERS, ScoredPair, StoredYes, held_out
from prism.measures.calibration import kappa_of_counts, propose_cuts
from prism.text import LANGUAGES, language_of
from prism.types import Record

YesFor = Literal["kappa", "f1", "precision-0.9", "recall-0.9"]
LEAST_PAIRS, LEAST_QUERIES = 20, 10
"""Pairs of either label, and queries, that a language needs in each half; fewer say nothing of a cut."""
_CUTS: Mapping[YesFor, str] = {
    "kappa": "best kappa",
    "f1": "best F1",
    "precision-0.9": "precision 0.9",
    "recall-0.9": "recall 0.9",
}
"""Their names in `propose_cuts`."""
_SAMPLES, _SEED = 1000, 0

Floats = NDArray[np.float64]


class Verdicts(Record):
    """How right verdicts are, with a yes from `threshold` on."""

    threshold: float
    precision: float | None
    """None where nothing gets a yes."""
    recall: float
    false_yes: float
    """Share of the irrelevant pairs that get a yes."""
    kappa: float
    """Cohen's, with the labels."""
    f1: float


class LanguageYes(Record):
    """Verdicts under queries in one language, on held-out queries."""

    fitted: int
    held: int
    """How many pairs the threshold was chosen on, and measured on."""
    before: Verdicts
    """With the checkpoint's threshold."""
    after: Verdicts | None
    """With the one that was chosen; None where no score reaches the precision that is wanted."""
    gain: tuple[float, float] | None
    """95 % interval of what kappa (or F1, where that is wanted) gained, bootstrap over held-out queries."""
    better: bool
    """Whether all of it is above zero; a precision or recall is a wish, kept wherever a score reaches it."""


def measure_languages(
    judged: Sequence[ScoredPair], wanted: YesFor, threshold_of: Callable[[str], float]
) -> dict[str, LanguageYes]:
    """By language, where both halves have pairs and queries enough. `threshold_of`: the checkpoint's, by language."""
    by_language: dict[str, tuple[list[ScoredPair], list[ScoredPair]]] = {}
    for pair in judged:
        told = language_of(pair.query)
        halves = by_language.setdefault(told if told in LANGUAGES else OTHERS, ([], []))
        halves[held_out(pair.group)].append(pair)
    return {
        language: _measured(fitted, held, wanted, threshold_of(language))
        for language, (fitted, held) in sorted(by_language.items())
        if _enough(fitted) and _enough(held)
    }


def stored_yes(languages: Mapping[str, LanguageYes]) -> StoredYes:
    """The thresholds that are better than what the checkpoint has."""
    kept = {name: found.after.threshold for name, found in languages.items() if found.better and found.after}
    return StoredYes(kept.pop(OTHERS, None), kept)


def _enough(half: Sequence[ScoredPair]) -> bool:
    relevant = sum(pair.relevant for pair in half)
    return min(relevant, len(half) - relevant) >= LEAST_PAIRS and len({pair.group for pair in half}) >= LEAST_QUERIES


def _measured(fitted: Sequence[ScoredPair], held: Sequence[ScoredPair], wanted: YesFor, now: float) -> LanguageYes:
    cut = propose_cuts([pair.score for pair in fitted], [pair.relevant for pair in fitted]).get(_CUTS[wanted])
    before_G4 = _counts(held, now)
    gain = None if cut is None else _gain(before_G4, _counts(held, cut), _f1 if wanted == "f1" else _kappa)
    wish = wanted in ("precision-0.9", "recall-0.9")
    return LanguageYes(
        fitted=len(fitted),
        held=len(held),
        before=_verdicts(before_G4.sum(0), now),
        after=None if cut is None else _verdicts(_counts(held, cut).sum(0), cut),
        gain=gain,
        better=gain is not None and (wish or gain[0] > 0),
    )


def _counts(pairs: Sequence[ScoredPair], threshold: float) -> Floats:
    """[G, 4] of each group of queries: yes rightly, yes wrongly, no wrongly, no rightly."""
    groups = {group: at for at, group in enumerate(dict.fromkeys(pair.group for pair in pairs))}
    counts = np.zeros((len(groups), 4))
    for pair in pairs:
        counts[groups[pair.group], 2 * (pair.score < threshold) + (not pair.relevant)] += 1
    return counts


def _gain(before_G4: Floats, after_G4: Floats, measure: Callable[[Floats], Floats]) -> tuple[float, float]:
    """95 % interval of the difference, percentiles over resamples of the groups."""
    size = len(before_G4)
    times_SG = np.random.default_rng(_SEED).multinomial(size, [1 / size] * size, size=_SAMPLES)
    low, high = np.quantile(measure(times_SG @ after_G4) - measure(times_SG @ before_G4), [0.025, 0.975])
    return float(low), float(high)


def _kappa(counts_S4: Floats) -> Floats:
    return kappa_of_counts(*np.moveaxis(counts_S4, -1, 0))


def _f1(counts_S4: Floats) -> Floats:
    """2 TP / (2 TP + FP + FN), 0 where nothing is relevant or found."""
    hits, wrong, missed, _ = np.moveaxis(counts_S4, -1, 0)
    whole = 2 * hits + wrong + missed
    found: Floats = np.divide(2 * hits, whole, out=np.zeros_like(whole), where=whole > 0)
    return found


def _verdicts(counts_4: Floats, threshold: float) -> Verdicts:
    hits, wrong, missed, right_noes = map(float, counts_4)
    return Verdicts(
        threshold=threshold,
        precision=hits / (hits + wrong) if hits + wrong else None,
        recall=hits / (hits + missed),
        false_yes=wrong / (wrong + right_noes),
        kappa=float(_kappa(counts_4)),
        f1=float(_f1(counts_4)),
    )
