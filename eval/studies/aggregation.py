"""From the votes of a panel to one verdict a pair.

Votes are a matrix [P pairs, R jurors] of labels, NaN where a juror gave none; a verdict is `label >= cut`, as 1.0
(yes), 0.0 (no) or NaN where no juror answered: no vote is made up. Two families:

- without people: `majority_vote`, `mean_grade` above a threshold and crowd models (crowd-kit), which learn each
  juror's errors from how the jurors disagree;
- with a small seed of pairs labelled by people: a calibrated threshold on the mean grade, weights for jurors, the best
  single juror. Whatever is learnt from the seed must be judged on other queries: `out_of_fold`.

What the default rests on is in `eval/results/panel_study/`: see `DEFAULT`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prism.errors import InputError
from prism.measures.agreement import Floats, Integers, cohen_kappa
from prism.types import Vote

Booleans: TypeAlias = NDArray[np.bool_]
Predict: TypeAlias = Callable[[Floats], Floats]
"""Votes [P, R] -> verdicts [P]."""
Fit: TypeAlias = Callable[[Floats, Booleans], Predict]
"""(votes of the seed, what people said) -> how to judge further pairs."""
Method = Literal["majority", "mean", "dawid-skene", "dawid-skene-graded", "one-coin", "kos", "mmsr", "mace"]
CROWD_MODELS: dict[str, str] = {
    "dawid-skene": "DawidSkene",
    "dawid-skene-graded": "DawidSkene",
    "one-coin": "OneCoinDawidSkene",
    "kos": "KOS",
    "mmsr": "MMSR",
    "mace": "MACE",
}
"""Method -> class of `crowdkit.aggregation`. All but `dawid-skene-graded` see `label >= cut` only."""
DEFAULT: Method = "dawid-skene-graded"
"""Of the ways that need no people it had the highest kappa on LLMJudge at >= 2 and >= 3, and at >= 2 it beats the
majority with a paired interval above 0; at >= 1 all are alike. Intervals of the kappas themselves overlap (25 queries).
"""
FEWEST_JURORS = 3
"""Below this, disagreement does not tell which juror errs: crowd models are not identified."""


@dataclass(frozen=True, slots=True)
class VoteTable:
    """Votes as a matrix."""

    pair_ids: tuple[str, ...]
    jurors: tuple[str, ...]
    votes: Floats
    """P x R labels, NaN where there is none."""


def vote_table(votes: Iterable[Vote]) -> VoteTable:
    """Pairs and jurors in the order they first appear; failures and votes that were never cast are NaN.

    Raises InputError when a juror voted twice on one pair with different labels.
    """
    pairs: dict[str, int] = {}
    jurors: dict[str, int] = {}
    cells: dict[tuple[int, int], float] = {}
    for vote in votes:
        cell = pairs.setdefault(vote.pair_id, len(pairs)), jurors.setdefault(vote.juror, len(jurors))
        label = float("nan") if vote.label is None else float(vote.label)
        known = cells.get(cell, float("nan"))
        if not np.isnan(known) and not np.isnan(label) and known != label:
            raise InputError(
                f"juror {vote.juror!r} labels pair {vote.pair_id!r} both {known:.0f} and {label:.0f}: keep one vote"
            )
        cells[cell] = known if np.isnan(label) else label
    table = np.full((len(pairs), len(jurors)), np.nan)
    for cell, label in cells.items():
        table[cell] = label
    return VoteTable(tuple(pairs), tuple(jurors), table)


# --- without people --------------------------------------------------------------------------------------------------


def yes_share(votes_PR: Floats, cut: float) -> Floats:
    """Share of the votes cast that are `label >= cut`: [P], NaN where there is none."""
    cast = ~np.isnan(votes_PR)
    return _divided((votes_PR >= cut).sum(axis=1), cast.sum(axis=1))


def majority_vote(votes_PR: Floats, cut: float) -> Floats:
    """More than half of the votes cast; a tie is a no, as in `prism.labeling.sequential`."""
    return above(yes_share(votes_PR, cut), 0.5)


def mean_grade(votes_PR: Floats) -> Floats:
    """Mean of the labels cast: [P], NaN where there is none."""
    return _divided(np.nansum(votes_PR, axis=1), (~np.isnan(votes_PR)).sum(axis=1))


def above(scores_P: Floats, threshold: float) -> Floats:
    """Verdicts: strictly above the threshold. NaN stays NaN."""
    return np.where(np.isnan(scores_P), np.nan, (scores_P > threshold).astype(np.float64))


def crowd_probability(votes_PR: Floats, cut: float, method: str = "dawid-skene") -> Floats:
    """P(label >= cut) under a crowd model fitted to these votes: [P], NaN where there is none.

    `kos` and `mmsr` know no probabilities: 0 or 1. Dawid and Skene (1979); KOS: Karger, Oh and Shah (2014); MMSR: Ma
    and Olshevsky (2020); MACE: Hovy et al. (2013).
    """
    import pandas
    from crowdkit import aggregation

    if method not in CROWD_MODELS:
        raise InputError(f"no crowd model {method!r}: expected one of {', '.join(CROWD_MODELS)}")
    rows, jurors = np.nonzero(~np.isnan(votes_PR))
    labels = votes_PR[rows, jurors]
    seen = labels if method == "dawid-skene-graded" else (labels >= cut).astype(np.float64)
    found = np.full(len(votes_PR), np.nan)
    if len(set(seen.tolist())) < 2:  # nothing to learn from: everybody always says the same
        found[rows] = (labels >= cut).astype(np.float64)
        return found
    model = getattr(aggregation, CROWD_MODELS[method])(
        **({"random_state": 0} if method in {"kos", "mmsr", "mace"} else {})
    )
    votes = pandas.DataFrame({"task": rows, "worker": jurors, "label": seen.astype(int)})
    with warnings.catch_warnings():  # crowd-kit 1.4 uses keywords that pandas 3 is going to drop
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        answers = model.fit_predict(votes)
    threshold = cut if method == "dawid-skene-graded" else 1
    probabilities = getattr(model, "probas_", None)
    if probabilities is None:
        found[answers.index.to_numpy()] = (answers.to_numpy() >= threshold).astype(np.float64)
    else:
        of_yes = probabilities[[label for label in probabilities.columns if label >= threshold]].sum(axis=1)
        found[of_yes.index.to_numpy()] = of_yes.to_numpy()
    return found


def aggregate(votes_PR: Floats, cut: float, method: Method = DEFAULT) -> tuple[Floats, Floats]:
    """(verdicts [P], scores [P]) without people; NaN where no juror answered.

    The score is the share of yes votes (`majority`), the mean grade (`mean`, yes from `cut` - 0.5 on, which is what
    rounds to it) or P(label >= cut) (crowd models, yes above 0.5). With fewer than three jurors a crowd model has
    nothing to go by, and the majority is taken.
    """
    if votes_PR.ndim != 2 or 0 in votes_PR.shape:
        raise InputError(f"votes of shape {votes_PR.shape}: expected pairs x jurors, at least one of each")
    if method == "majority" or (method in CROWD_MODELS and votes_PR.shape[1] < FEWEST_JURORS):
        scores, threshold = yes_share(votes_PR, cut), 0.5
    elif method == "mean":
        scores, threshold = mean_grade(votes_PR), np.nextafter(cut - 0.5, -np.inf)
    else:
        scores, threshold = crowd_probability(votes_PR, cut, method), 0.5
    return above(scores, threshold), scores


# --- with a seed of pairs labelled by people -------------------------------------------------------------------------


def calibrated_threshold(scores_P: Floats, truth_P: Booleans) -> float:
    """The threshold with the highest Cohen's kappa against the truth, where `score > threshold` means yes.

    Candidates lie halfway between neighbouring scores; of several best ones, the middle one. Raises InputError unless
    both kinds of truth and two scores are there.
    """
    usable = ~np.isnan(scores_P)
    scores, truth = scores_P[usable], truth_P[usable]
    values, position = np.unique(scores, return_inverse=True)
    if len(values) < 2 or truth.all() or not truth.any():
        raise InputError(
            f"a seed of {len(truth)} pairs with {int(truth.sum())} true ones and {len(values)} scores cannot set a"
            " threshold: label more pairs, of both kinds"
        )
    yes = np.bincount(position, weights=truth)
    no = np.bincount(position, weights=~truth)
    above_yes, above_no = yes.sum() - np.cumsum(yes)[:-1], no.sum() - np.cumsum(no)[:-1]
    tables = np.stack([no.sum() - above_no, above_no, yes.sum() - above_yes, above_yes], axis=-1).reshape(-1, 2, 2)
    kappas = cohen_kappa(tables, np.array([0.0, 1.0]))
    best = np.flatnonzero(kappas >= kappas.max() - 1e-12)
    chosen = best[(len(best) - 1) // 2]
    return float((values[chosen] + values[chosen + 1]) / 2)


def fit_mean(votes_PR: Floats, truth_P: Booleans) -> Predict:
    """Mean grade above the threshold that suits the seed best."""
    threshold = calibrated_threshold(mean_grade(votes_PR), truth_P)
    return lambda votes: above(mean_grade(votes), threshold)


def fit_weights(votes_PR: Floats, truth_P: Booleans) -> Predict:
    """Weighted sum of grades (see `JurorWeights`) above the threshold that suits the seed best."""
    weights = JurorWeights.fit(votes_PR, truth_P)
    threshold = calibrated_threshold(weights.score(votes_PR), truth_P)
    return lambda votes: above(weights.score(votes), threshold)


def fit_best_juror(cut: float) -> Fit:
    """The one juror whose `label >= cut` has the highest kappa on the seed: what a panel has to beat."""

    def fit(votes_PR: Floats, truth_P: Booleans) -> Predict:
        kappas = [verdict_kappa(above(votes, cut - 0.5), truth_P) for votes in votes_PR.T]
        best = int(np.nanargmax(kappas))
        return lambda votes: above(votes[:, best], cut - 0.5)

    return fit


@dataclass(frozen=True, slots=True)
class JurorWeights:
    """What each juror's grade counts for: logistic regression of the truth on the grades.

    A juror who gave no label for a pair is taken to have given their mean label of the seed.
    """

    weights: Floats
    """R log odds a grade."""
    intercept: float
    means: Floats
    """R mean labels of the seed."""

    @classmethod
    def fit(cls, votes_PR: Floats, truth_P: Booleans, strength: float = 1.0) -> JurorWeights:
        """`strength` is scikit-learn's C: less of it pulls the weights closer to 0."""
        from sklearn.linear_model import LogisticRegression

        if truth_P.all() or not truth_P.any():
            raise InputError(
                f"a seed of {len(truth_P)} pairs of one kind cannot weigh jurors: label pairs of both kinds"
            )
        means = mean_grade(votes_PR.T)
        if np.isnan(means).any():
            raise InputError(f"juror {int(np.isnan(means).argmax()) + 1} has no vote in the seed: leave that juror out")
        model = LogisticRegression(C=strength).fit(np.where(np.isnan(votes_PR), means, votes_PR), truth_P)
        return cls(weights=model.coef_[0], intercept=float(model.intercept_[0]), means=means)

    def score(self, votes_PR: Floats) -> Floats:
        """Log odds of a yes: [P], NaN where no juror answered."""
        filled = np.where(np.isnan(votes_PR), self.means, votes_PR)
        log_odds: Floats = filled @ self.weights + self.intercept
        return np.where(np.isnan(votes_PR).all(axis=1), np.nan, log_odds)


def out_of_fold(votes_PR: Floats, truth_P: Booleans, query_P: Integers, fit: Fit) -> Floats:
    """Verdicts for each query from a fit on all other queries: leave one query out, so nothing leaks."""
    verdicts = np.full(len(truth_P), np.nan)
    for query in np.unique(query_P):
        held_out = query_P == query
        verdicts[held_out] = fit(votes_PR[~held_out], truth_P[~held_out])(votes_PR[held_out])
    return verdicts


def verdict_kappa(verdicts_P: Floats, truth_P: Booleans) -> float:
    """Cohen's kappa of verdicts against people, over pairs that have a verdict."""
    usable = ~np.isnan(verdicts_P)
    counts = np.bincount((2 * truth_P + (verdicts_P == 1))[usable], minlength=4).reshape(2, 2).astype(np.float64)
    return float(cohen_kappa(counts, np.array([0.0, 1.0])))


def _divided(above_P: Floats, below_P: Integers) -> Floats:
    shares: Floats = np.divide(above_P, below_P, out=np.full(len(below_P), np.nan), where=below_P > 0)
    return shares
