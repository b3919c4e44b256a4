"""A judge's labels against people's: as labels (confusion, mean, error) and as a ranking (nDCG query by query)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from prism.errors import InputError
from prism.measures.ranking import measure_queries
from prism.types import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = ("nDCG", "nDCG@5", "nDCG@10")
Pairs = Mapping[tuple[str, str], int]
"""(query, document) -> label."""


class Judged(NamedTuple):
    """What one judge said of the candidates. Pairs that are in neither mapping failed."""

    name: str
    scores: Mapping[tuple[str, str], float]
    """What ranks: labels, or finer scores."""
    labels: Pairs | None
    """Grades from 0 on; None for a judge that only ranks."""
    top: int
    """The best grade."""


class JudgeReport(Record):
    """One judge measured."""

    name: str
    pairs: int
    failures: int
    """Pairs without a label; they rank last and count in no other figure."""
    ndcg: dict[str, float]
    """Means over queries."""
    by_query: dict[str, dict[str, float]]
    mean_label: float | None
    human_mean: float | None
    """Over the same pairs."""
    mean_absolute_error: float | None
    """On people's scale: grades are stretched to it where the scales differ."""
    exact: float | None
    """Share of equal labels; None where the scales differ."""
    confusion: tuple[tuple[int, ...], ...] | None
    """[people's label, judge's label] -> pairs."""


def judge_report(judged: Judged, human: Pairs, human_top: int) -> JudgeReport:
    """Measure one judge over all pairs people labelled. Raises InputError when it has none of them, or a label is off.

    A query counts if people found at least one relevant document for it; others have no ideal ranking.
    """
    labels = judged.labels
    both = [pair for pair in human if pair in (judged.scores if labels is None else labels)]
    if not both:
        raise InputError(f"{judged.name} has no pair people labelled: are query and document ids the same?")
    by_query = _ndcg(judged, human)
    report = JudgeReport(
        name=judged.name,
        pairs=len(human),
        failures=len(human) - len(both),
        ndcg={name: float(np.mean(list(values.values()))) for name, values in by_query.items()},
        by_query=by_query,
        mean_label=None,
        human_mean=None,
        mean_absolute_error=None,
        exact=None,
        confusion=None,
    )
    if labels is None:
        return report
    ours = np.array([labels[pair] for pair in both])
    theirs = np.array([human[pair] for pair in both])
    if ours.min() < 0 or ours.max() > judged.top or theirs.min() < 0 or theirs.max() > human_top:
        raise InputError(f"{judged.name}: labels run from {ours.min()} to {ours.max()}, expected 0 to {judged.top}")
    confusion = np.zeros((human_top + 1, judged.top + 1), dtype=int)
    np.add.at(confusion, (theirs, ours), 1)
    update = {
        "mean_label": float(ours.mean()),
        "human_mean": float(theirs.mean()),
        "mean_absolute_error": float(np.abs(ours * human_top / judged.top - theirs).mean()),
        "exact": float((ours == theirs).mean()) if human_top == judged.top else None,
        "confusion": tuple(tuple(int(count) for count in row) for row in confusion),
    }
    return report.model_copy(update=update)


def _ndcg(judged: Judged, human: Pairs) -> dict[str, dict[str, float]]:
    """Measure -> query -> value: candidates by the judge's score, equal scores by document id, failures last."""
    qrels: dict[str, dict[str, int]] = {}
    for (query, document), label in human.items():
        qrels.setdefault(query, {})[document] = label
    qrels = {query: labels for query, labels in qrels.items() if max(labels.values()) > 0}
    if not qrels:
        raise InputError("people found nothing relevant: there is no ideal ranking to compare with")
    run = {
        query: sorted(labels, key=lambda d, q=query: (-judged.scores.get((q, d), -np.inf), d))  # type: ignore[misc]
        for query, labels in qrels.items()
    }
    return measure_queries(qrels, run, MEASURES)


def grade(score: float, cuts: Sequence[float]) -> int:
    """How many of the cuts the score reaches: three cuts make grades 0 to 3. Raises InputError unless cuts grow."""
    if list(cuts) != sorted(set(cuts)):
        raise InputError(f"cuts must grow, got {', '.join(map(str, cuts))}")
    return sum(score >= cut for cut in cuts)


def draw_ndcg(figure: Figure, found: Sequence[JudgeReport]) -> None:
    """Violins over queries, one row per judge, one panel per measure; the mark is the mean."""
    panels = figure.subplots(1, len(MEASURES), sharey=True, squeeze=False)[0]
    places = np.arange(len(found))[::-1]
    for axes, name in zip(panels, MEASURES, strict=True):
        values = [list(row.by_query[name].values()) for row in found]
        if all(len(row) > 1 for row in values):
            axes.violinplot(values, positions=places, orientation="horizontal", widths=0.8, showextrema=False)
        axes.plot([row.ndcg[name] for row in found], places, "|", ms=9, color="C1")
        axes.set_xlabel(name)
        axes.set_xlim(0.0, 1.0)
    panels[0].set_yticks(places, [row.name for row in found])


def draw_confusions(figure: Figure, found: Sequence[JudgeReport]) -> None:
    """One matrix per judge with a confusion: shares of each of people's labels."""
    grid = figure.subplots((len(found) + 2) // 3, min(3, len(found)), squeeze=False)
    for axes in grid.flat[len(found) :]:
        axes.set_visible(False)
    for axes, row in zip(grid.flat, found, strict=False):
        counts = np.array(row.confusion, dtype=float)
        shares = counts / np.maximum(1.0, counts.sum(axis=1, keepdims=True))
        axes.imshow(shares, vmin=0.0, vmax=1.0, cmap="Blues")
        axes.grid(visible=False)
        for (i, j), share in np.ndenumerate(shares):
            axes.text(
                j, i, f"{share:.2f}", ha="center", va="center", fontsize=8, color="white" if share > 0.5 else "black"
            )
        axes.set_title(row.name, fontsize=9)
        axes.set_xticks(range(shares.shape[1]))
        axes.set_yticks(range(shares.shape[0]))
        axes.set_xlabel("judge")
        axes.set_ylabel("people")
