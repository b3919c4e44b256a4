"""What a small model learnt from a jury's scores: the questions held out, before and after, as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prism.errors import DataError
from prism.files.jsonl import read_objects
from prism.measures.agreement import (
    Estimate,
    cohen_kappa,
    confusion_tables,
    interval,
    none_if_nan,
    resample,
    resampled,
)
from prism.reports.blocks import Cell, Section
from prism.reranker import Reranker
from prism.types import Document, Record
from studies.held_out import Judges
from studies.local_teacher import REFITTED, TEACHER, Floats, Scored
from studies.systems import progress_bar

_BINARY = np.array([0.0, 1.0])


class Gain(Record):
    """What a model has more than another, over the same questions."""

    auc: Estimate
    kappa: Estimate


class Agreement(Record):
    """A model's scores against labels, in one language or all (None); 95 % intervals over questions."""

    model: str
    language: str | None
    pairs: int
    auc: Estimate
    kappa: Estimate
    """Of verdicts at 0.5."""
    over: dict[str, Gain]
    """Over the juror that the models go on from, as it was and refitted."""
    yes_of_yes: float | None
    yes_of_no: float | None
    cross_entropy: float
    """With the teacher's scores, in nats, over every pair."""


def add_taught(
    section: Section, folder: Path, models: Sequence[str], template: str | None, samples: int
) -> dict[str, Any]:
    """Scores the pairs of held-out.jsonl with each model, and sets them beside the jurors' and the teacher's.

    Gains are over the first juror, as it was and with the fit by language that no training is needed for.
    """
    pairs, given = read_held_out(folder / "held-out.jsonl")
    scores = dict(given)
    for name in models:
        with Reranker.load(name, template=template) as reranker, progress_bar() as progress:
            task = progress.add_task(name, total=len(pairs))
            scores[name] = judged(reranker, pairs, partial(progress.advance, task))
    juror = next(name for name in given if name != TEACHER)
    found = compare(pairs, scores, given[TEACHER], (juror, f"{juror}{REFITTED}"), samples)
    known = Counter((pair.row["language"], "people" in pair.row) for pair in pairs if pair.truth is not None)
    for language in dict.fromkeys(one.language for one in found):
        own = [one for one in found if one.language == language]
        people, likely = (
            sum(count for (code, by), count in known.items() if language in (None, code) and by == people)
            for people in (True, False)
        )
        section.table(
            ["model", "AUC", "kappa at 0.5", *_gains(own[0]), "yes of their yes", "yes of their no", "nats"],
            [_cells(one) for one in own],
            caption=f"{language or 'All languages'}: {people} pairs with people's labels, {likely} likely noes; nats:"
            " cross-entropy with the teacher's scores",
            digits=3,
        )
    body = {name: [round(float(score), 6) for score in scores_P] for name, scores_P in scores.items()}
    questions = len({pair.row["query_id"] for pair in pairs})
    return {"questions": questions, "pairs": len(pairs), "models": found, "scores": body}


def _gains(one: Agreement) -> list[str]:
    return [f"{measure} minus {name}" for name in one.over for measure in ("AUC", "kappa")]


def _cells(one: Agreement) -> list[Cell]:
    gains = [str(gain) for over in one.over.values() for gain in (over.auc, over.kappa)]
    return [one.model, str(one.auc), str(one.kappa), *gains, one.yes_of_yes, one.yes_of_no, one.cross_entropy]


def read_held_out(path: Path) -> tuple[list[Scored], dict[str, Floats]]:
    """(pairs, what scored them before -> scores [P]). Raises DataError for a file that `teach` did not write."""
    pairs: list[Scored] = []
    columns: dict[str, list[float]] = {}
    for _, _, row in read_objects(path):
        if isinstance(row, DataError):
            raise row
        try:
            for name, score in row["scores"].items():
                columns.setdefault(name, []).append(float(score))
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not made by `local_jury.py teach`: {error!r}") from None
        pairs.append(Scored(row, np.empty(0)))
    if TEACHER not in columns or any(len(scores) != len(pairs) for scores in columns.values()):
        raise DataError(f"{path}: not made by `local_jury.py teach`, or nothing is held out")
    return pairs, {name: np.array(scores) for name, scores in columns.items()}


def judged(model: Judges, pairs: Sequence[Scored], advance: Callable[[int], object]) -> Floats:
    """[P] scores of the pairs, question by question."""
    found: list[float] = []
    for _, group in groupby(pairs, key=lambda pair: pair.row["query_id"]):
        own = list(group)
        documents = [Document(id=str(at), text=pair.row["document"]) for at, pair in enumerate(own)]
        ranked = {one.id: one.score for one in model.rerank(own[0].row["query"], documents, evidence=False)}
        found += [float(ranked[str(at)] or 0.0) for at in range(len(own))]
        advance(len(own))
    return np.array(found)


def compare(
    pairs: Sequence[Scored], scores: Mapping[str, Floats], teacher_P: Floats, over: Sequence[str], samples: int
) -> list[Agreement]:
    """Each model's scores against the labels, in all languages and in each; gains are over the models named."""
    at = {query: index for index, query in enumerate(dict.fromkeys(pair.row["query_id"] for pair in pairs))}
    query_P = np.array([at[pair.row["query_id"]] for pair in pairs])
    truth_P = np.array([np.nan if pair.truth is None else pair.truth for pair in pairs], dtype=np.float64)
    language_P = np.array([pair.row["language"] for pair in pairs])
    drawn_SQ = resample(len(at), samples)
    found = []
    for language in (None, *sorted(set(language_P))):
        own = np.ones(len(pairs), dtype=np.bool_) if language is None else language_P == language
        truth = np.where(own, truth_P, np.nan)
        measured = {name: _measured(one, truth, query_P, drawn_SQ) for name, one in scores.items()}
        for name, (table, drawn) in measured.items():
            yes, no = table[1], table[0]
            found.append(
                Agreement(
                    model=name,
                    language=language,
                    pairs=int(table.sum()),
                    auc=_estimate(drawn.auc),
                    kappa=_estimate(drawn.kappa),
                    over={other: _gain(drawn, measured[other][1]) for other in over},
                    yes_of_yes=float(yes[1] / yes.sum()) if yes.sum() else None,
                    yes_of_no=float(no[1] / no.sum()) if no.sum() else None,
                    cross_entropy=_cross_entropy(scores[name][own], teacher_P[own]),
                )
            )
    return found


class _Drawn(NamedTuple):
    """Each [1 + S]: the value over all questions, then over each sample of them."""

    auc: Floats
    kappa: Floats


def _measured(scores_P: Floats, truth_P: Floats, query_P: Any, drawn_SQ: Floats) -> tuple[Floats, _Drawn]:
    """(counts [2, 2] of labels and verdicts at 0.5, the measures)."""
    tables = confusion_tables(truth_P, (scores_P >= 0.5).astype(np.float64), query_P, _BINARY)
    every_SQ = np.vstack([np.ones((1, drawn_SQ.shape[1])), drawn_SQ])
    kappa = resampled(tables, every_SQ[:, : len(tables)], partial(cohen_kappa, values_K=_BINARY))
    return tables.sum(axis=0), _Drawn(_auc(scores_P, truth_P, query_P, every_SQ), kappa)


def _auc(scores_P: Floats, truth_P: Floats, query_P: Any, drawn_SQ: Floats) -> Floats:
    """[S]: the share of (yes, no) couples in the right order, ties half (Mann and Whitney 1947), each pair counted as
    often as its question was drawn; NaN without both."""
    yes, no = truth_P == 1, truth_P == 0
    right = np.sign(scores_P[yes][:, None] - scores_P[no]) / 2 + 0.5
    yes_SY, no_SN = drawn_SQ[:, query_P[yes]], drawn_SQ[:, query_P[no]]
    couples = yes_SY.sum(axis=1) * no_SN.sum(axis=1)
    ordered = ((yes_SY @ right) * no_SN).sum(axis=1)
    found: Floats = np.divide(ordered, couples, out=np.full(len(couples), np.nan), where=couples > 0)
    return found


def _gain(drawn: _Drawn, other: _Drawn) -> Gain:
    return Gain(auc=_estimate(drawn.auc - other.auc), kappa=_estimate(drawn.kappa - other.kappa))


def _estimate(values: Floats) -> Estimate:
    value = none_if_nan(float(values[0]))
    if value is None:
        return Estimate(value=None)
    low, high = interval(values[1:])
    return Estimate(value=value, low=low, high=high)


def _cross_entropy(scores_P: Floats, teacher_P: Floats) -> float:
    kept = np.clip(scores_P, 1e-6, 1 - 1e-6)
    return float(np.mean(-teacher_P * np.log(kept) - (1 - teacher_P) * np.log1p(-kept)))
