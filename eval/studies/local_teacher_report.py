"""What a small model learnt from a jury's scores: the questions held out, before and after, as a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prism.errors import DataError
from prism.files.jsonl import read_objects
from prism.measures.agreement import (
    Estimate,
    cohen_kappa,
    confusion_tables,
    estimate,
    interval,
    none_if_nan,
    resample,
    resampled,
)
from prism.reports.blocks import Cell, Section
from prism.reranker import Reranker
from prism.types import Document, Judgment, Record
from studies.local_teacher import TEACHER, Floats, Scored
from studies.systems import progress_bar

_BINARY = np.array([0.0, 1.0])


class Judges(Protocol):
    """What is measured: `Reranker` fits."""

    def rerank(self, query: str, documents: list[Document], *, evidence: bool) -> Iterable[Judgment]: ...


class Agreement(Record):
    """A model's scores against people's labels, in one language or all (None)."""

    model: str
    language: str | None
    pairs: int
    auc: float | None
    kappa: Estimate
    """Of verdicts at 0.5; 95 % over questions."""
    gained: Estimate
    """Kappa minus that of the first model, over the same questions."""
    yes_of_yes: float | None
    yes_of_no: float | None
    cross_entropy: float
    """With the teacher's scores, in nats, over every pair."""


def add_taught(
    section: Section, folder: Path, models: Sequence[str], template: str | None, samples: int
) -> dict[str, Any]:
    """Scores the pairs of held-out.jsonl with each model, and sets them beside the jurors' and the teacher's."""
    pairs, given = read_held_out(folder / "held-out.jsonl")
    scores: dict[str, Floats] = {}
    for name in models:
        with Reranker.load(name, template=template) as reranker, progress_bar() as progress:
            task = progress.add_task(name, total=len(pairs))
            scores[name] = judged(reranker, pairs, partial(progress.advance, task))
    found = compare(pairs, scores | given, given[TEACHER], samples)
    for language in dict.fromkeys(one.language for one in found):
        own = [one for one in found if one.language == language]
        section.table(
            ["model", "AUC", "kappa at 0.5", f"minus {models[0]}", "yes of their yes", "yes of their no", "nats"],
            [_cells(one) for one in own],
            caption=f"{language or 'All languages'}: {own[0].pairs} pairs with people's labels or a likely no; nats:"
            " cross-entropy with the teacher's scores",
            digits=3,
        )
    return {"questions": len({pair.row["query_id"] for pair in pairs}), "pairs": len(pairs), "models": found}


def _cells(one: Agreement) -> list[Cell]:
    return [one.model, one.auc, str(one.kappa), str(one.gained), one.yes_of_yes, one.yes_of_no, one.cross_entropy]


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


def compare(pairs: Sequence[Scored], scores: Mapping[str, Floats], teacher_P: Floats, samples: int) -> list[Agreement]:
    """Each model's scores against people, in all languages and in each; `gained` is over the first model."""
    at = {query: index for index, query in enumerate(dict.fromkeys(pair.row["query_id"] for pair in pairs))}
    query_P = np.array([at[pair.row["query_id"]] for pair in pairs])
    truth_P = np.array([np.nan if pair.truth is None else pair.truth for pair in pairs], dtype=np.float64)
    language_P = np.array([pair.row["language"] for pair in pairs])
    drawn = resample(len(at), samples)
    found = []
    for language in (None, *sorted(set(language_P))):
        own = np.ones(len(pairs), dtype=np.bool_) if language is None else language_P == language
        tables = {
            name: confusion_tables(np.where(own, truth_P, np.nan), (one >= 0.5).astype(np.float64), query_P, _BINARY)
            for name, one in scores.items()
        }
        first = next(iter(tables.values()))
        for name, table in tables.items():
            total = table.sum(axis=0)
            found.append(
                Agreement(
                    model=name,
                    language=language,
                    pairs=int(total.sum()),
                    auc=_auc(scores[name][own], truth_P[own]),
                    kappa=estimate(table, _kappa, drawn),
                    gained=_gained(table, first, drawn),
                    yes_of_yes=none_if_nan(float(total[1, 1] / total[1].sum())) if total[1].sum() else None,
                    yes_of_no=none_if_nan(float(total[0, 1] / total[0].sum())) if total[0].sum() else None,
                    cross_entropy=_cross_entropy(scores[name][own], teacher_P[own]),
                )
            )
    return found


def _kappa(tables: Floats) -> Floats:
    return cohen_kappa(tables, _BINARY)


def _gained(tables: Floats, before: Floats, drawn: Floats) -> Estimate:
    value = float(_kappa(tables.sum(axis=0)) - _kappa(before.sum(axis=0)))
    low, high = interval(resampled(tables, drawn, _kappa) - resampled(before, drawn, _kappa))
    return Estimate(value=none_if_nan(value), low=low, high=high)


def _auc(scores_P: Floats, truth_P: Floats) -> float | None:
    """None without both labels."""
    from sklearn.metrics import roc_auc_score

    known = ~np.isnan(truth_P)
    return float(roc_auc_score(truth_P[known], scores_P[known])) if len(np.unique(truth_P[known])) == 2 else None


def _cross_entropy(scores_P: Floats, teacher_P: Floats) -> float:
    kept = np.clip(scores_P, 1e-6, 1 - 1e-6)
    return float(np.mean(-teacher_P * np.log(kept) - (1 - teacher_P) * np.log1p(-kept)))
