"""A jury's scores as a teacher: records of whole questions for `prism-train`.

pairs + scores.csv -> questions drawn for training | questions held out
training: log odds of the jurors, weighed against people's labels by language -> `teacher_score`, texts by rule
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from prism.data.contributions import contribute
from prism.data.placing import holds_answer
from prism.errors import DataError
from prism.evidence.sentences import sentences
from prism.files.jsonl import read_objects, write_rows
from prism.outputs import write_text
from prism.text import stable_id
from studies.aggregation import JurorWeights
from studies.local_jury import Timed

Floats = NDArray[np.float64]
TEACHER = "the teacher"
"""The column of its scores in held-out.jsonl."""
REFITTED = ", refitted"
"""Behind a juror's name: its scores after the same fit without the other jurors."""
LEAST = 20
"""Pairs of each verdict that a language needs for weights of its own."""
_KNOWN = ("query_id", "doc_id", "language", "people", "assumed")
_NEEDED = ("query", "document", "query_id", "doc_id", "language")
_MOST_LOGIT = 20.0


class Scored(NamedTuple):
    """One pair that every juror scored."""

    row: dict[str, Any]
    """Its line in the file of pairs."""
    scores: Floats
    """R scores in [0, 1], in the order of the jurors."""

    @property
    def truth(self) -> int | None:
        """People's label, or the no that is taken for granted; None where neither is known."""
        label = self.row.get("people", self.row.get("assumed"))
        return None if label is None else int(label)


# --- scores ----------------------------------------------------------------------------------------------------------


def read_scored(pairs: Path, scores: Path) -> tuple[tuple[str, ...], list[Scored]]:
    """(jurors, the pairs all of them scored). Raises DataError when a score has no pair, or is none."""
    with opened(scores) as file:
        table = csv.DictReader(file)
        jurors = tuple(name for name in table.fieldnames or () if name not in _KNOWN)
        try:
            found = {
                (row["query_id"], row["doc_id"]): np.array([float(row[name]) for name in jurors])
                for row in table
                if all(row[name] for name in jurors)
            }
        except (KeyError, ValueError, TypeError, csv.Error) as error:
            raise DataError(
                f"{scores}, line {table.line_num}: expected ids and scores in [0, 1], got {error}"
            ) from None
    if not jurors or any(not ((one >= 0) & (one <= 1)).all() for one in found.values()):
        raise DataError(f"{scores}: expected a column of scores in [0, 1] for each juror beside {', '.join(_KNOWN)}")
    kept = [Scored(row, found.pop(ids)) for row in _rows(pairs) if (ids := (row["query_id"], row["doc_id"])) in found]
    if found:
        raise DataError(f"{scores}: {len(found)} scores have no pair in {pairs}, first {next(iter(found))}")
    return jurors, kept


def _rows(pairs: Path) -> Iterator[dict[str, Any]]:
    for number, _, row in read_objects(pairs):
        if isinstance(row, DataError):
            raise row
        if missing := [name for name in _NEEDED if not isinstance(row.get(name), str)]:
            raise DataError(f"{pairs}, line {number}: no {', '.join(missing)}: make it with `local_jury.py pairs`")
        yield row


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A table as UTF-8. Raises DataError for a file that is not there, or is not text."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield file
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error.strerror if isinstance(error, OSError) else 'not UTF-8'}") from None


def write_scores(path: Path, jurors: Mapping[str, Timed], pairs: Path) -> None:
    """A line for each pair that jurors read by logits scored, in the order of `pairs`; no file without such jurors."""
    found = {
        name: scores
        for name, timed in jurors.items()
        if (scores := {vote.pair_id: vote.score for vote in timed.votes if vote.score is not None})
    }
    if not found:
        return
    lines = StringIO(newline="")
    table = csv.writer(lines, lineterminator="\n")
    table.writerow([*_KNOWN, *found])
    for row in _rows(pairs):
        given = [one.get(stable_id(row["query"], row["document"])) for one in found.values()]
        if any(score is not None for score in given):
            table.writerow([*(row.get(name) for name in _KNOWN), *given])
    write_text(path, lines.getvalue())


def is_held_out(row: Mapping[str, Any], share: float) -> bool:
    """By a hash of the question, so that it is the same whatever else is there."""
    return int(stable_id("held out", row["query_id"]), 16) / 2**64 < share


# --- the teacher -----------------------------------------------------------------------------------------------------


class Teacher:
    """P(relevant) from the jurors' log odds: a logistic regression for each language that has labels enough."""

    def __init__(self, pairs: Sequence[Scored]) -> None:
        """Raises DataError where there are fewer than 20 labels of either kind in all."""
        known = [pair for pair in pairs if pair.truth is not None]
        self.fits: dict[str | None, JurorWeights] = {}
        for language in (None, *sorted({pair.row["language"] for pair in known})):
            own = [pair for pair in known if language in (None, pair.row["language"])]
            counts = Counter(pair.truth for pair in own)
            if min(counts[0], counts[1]) >= LEAST:
                truth = np.array([pair.truth == 1 for pair in own], dtype=np.bool_)
                self.fits[language] = JurorWeights.fit(log_odds([pair.scores for pair in own]), truth)
            elif language is None:
                raise DataError(f"a teacher needs {LEAST} pairs of either label, got {counts[1]} yes, {counts[0]} no")

    def scores(self, pairs: Sequence[Scored]) -> Floats:
        """[P] probabilities."""
        fits = [self.fits.get(pair.row["language"], self.fits[None]) for pair in pairs]
        odds = [fit.score(log_odds([pair.scores]))[0] for fit, pair in zip(fits, pairs, strict=True)]
        return np.asarray(expit(np.array(odds)), dtype=np.float64)

    def report(self, jurors: Sequence[str]) -> dict[str, dict[str, float]]:
        """Weights of log odds, and the intercept, by language."""
        return {
            language or "others": dict(zip(jurors, map(float, fit.weights), strict=True)) | {"intercept": fit.intercept}
            for language, fit in self.fits.items()
        }


def log_odds(scores: Sequence[Floats]) -> Floats:
    """[P, R]; a score of exactly 0 or 1 counts as log odds of 20."""
    odds: Floats = np.clip(logit(np.stack(scores)), -_MOST_LOGIT, _MOST_LOGIT)
    return odds


def write_records(pairs_file: Path, scores: Path, out: Path, share: float) -> str:
    """train.jsonl, held-out.jsonl with what people and jurors said, and labelled.jsonl of both with a verdict where one
    is known, to calibrate models that train on none of it (mini); returns what was written, in words."""
    jurors, pairs = read_scored(pairs_file, scores)
    own = [pair for pair in pairs if not is_held_out(pair.row, share)]
    held = [pair for pair in pairs if is_held_out(pair.row, share)]
    teacher = Teacher(own)
    made = list(records(own, teacher))
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "train.jsonl", made)
    write_rows(out / "held-out.jsonl", _held_out(held, own, jurors, teacher))
    write_rows(
        out / "labelled.jsonl",
        (pair.row | {"verdict": "yes" if pair.truth else "no"} for pair in pairs if pair.truth is not None),
    )
    write_text(out / "teacher.json", json.dumps({"weights": teacher.report(jurors)}, indent=1) + "\n")
    texts = sum("evidence" in record for record in made)
    return (
        f"{len(made):,} records of {_questions(own):,} questions, {texts:,} with texts -> {out / 'train.jsonl'}\n"
        f"{len(held):,} pairs of {_questions(held):,} questions -> {out / 'held-out.jsonl'}"
    )


def _held_out(
    held: Sequence[Scored], own: Sequence[Scored], jurors: Sequence[str], teacher: Teacher
) -> Iterator[dict[str, Any]]:
    """Pairs with all that can be asked of the small model's scores: the teacher's, the jurors', and what a juror's
    would be after the same fit without the others."""
    columns = {TEACHER: teacher.scores(held)}
    for at, name in enumerate(jurors):
        alone, asked = ([Scored(pair.row, pair.scores[at : at + 1]) for pair in some] for some in (own, held))
        columns[f"juror {name}"] = np.array([pair.scores[0] for pair in asked])
        columns[f"juror {name}{REFITTED}"] = Teacher(alone).scores(asked)
    for index, pair in enumerate(held):
        yield pair.row | {"scores": {name: float(scores_P[index]) for name, scores_P in columns.items()}}


def _questions(pairs: Sequence[Scored]) -> int:
    return len({pair.row["query_id"] for pair in pairs})


def records(pairs: Sequence[Scored], teacher: Teacher) -> Iterator[dict[str, Any]]:
    """Training records, the pairs of a question one after another (`prism.types.Example`)."""
    for pair, score in zip(pairs, teacher.scores(pairs), strict=True):
        row, truth = pair.row, pair.truth
        verdict = bool(score >= 0.5) if truth is None else truth == 1
        names = ("query", "document", "query_id", "doc_id", "source", "language")
        record = {name: row[name] for name in names if name in row} | {"teacher_score": round(float(score), 6)}
        yield record | {"verdict": "yes" if verdict else "no"} | (_texts(row) if row.get("people") == 1 else {})


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    """By rule: the first sentence that holds an answer, and what it says; nothing where none does."""
    document, answers = str(row["document"]), tuple(row.get("answers") or ())
    for low, high in sentences(document, row["language"]):
        evidence = document[low:high].strip()
        if holds_answer(evidence, answers):
            said = contribute(row["query"], evidence, row["language"], answers=answers)
            return {} if said is None else {"contribution": said, "evidence": evidence}
    return {}
