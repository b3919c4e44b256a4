"""Fitting what scores mean on half of the queries, measuring it on the other half, and refusing what is no better.

The unit of every split is the query: its pairs, and the sets made of them, stay on one side.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from prism.errors import CheckpointError, DataError, InputError
from prism.evaluation.answer_sets import SetReport, measure_sets
from prism.evaluation.reranking import QueryReranker
from prism.files.ids import QUERY_IDS, id_in
from prism.files.jsonl import Drops, Row, read_rows, require_text
from prism.files.ledger import Kept
from prism.measures import calibration as fitting
from prism.measures.calibration import Cut, Quality
from prism.outputs import made_whole, write_text
from prism.score_version import scores_part
from prism.scoring import Calibration
from prism.text import language_of, stable_id
from prism.types import Document, Record


class LabelledPair(NamedTuple):
    """One line of the pairs file."""

    query: str
    group: str
    """What keeps a query on one side of the split: its id, or its text."""
    document: Document
    relevant: bool


class ScoredPair(NamedTuple):
    """A labelled pair and its score."""

    query: str
    group: str
    score: float
    relevant: bool


class Result(NamedTuple):
    """Everything measured. Before: the score itself as a probability. All on held-out queries."""

    calibration: Calibration
    fitted: int
    held: int
    """How many pairs it was fitted on, and measured on."""
    before: Quality
    after: Quality
    cuts: Mapping[str, Cut]
    prior: float
    failures: int
    sets: SetReport | str
    """Of questions with and without their passage; or why there is nothing to be said of them."""

    @property
    def worse(self) -> str | None:
        """Why the fit must not be stored: it is no better than none on queries that it has not seen."""
        lost = [
            f"{name} {_value(old):.4f} without, {_value(new):.4f} with it"
            for name, old, new in (
                ("calibration error", self.before.calibration_error.value, self.after.calibration_error.value),
                ("Brier score", self.before.brier.value, self.after.brier.value),
            )
            if _value(new) >= _value(old)
        ]
        return "; ".join(lost) or None


def _value(value: float | None) -> float:
    assert value is not None  # errors of probabilities are always defined
    return value


# --- reading and scoring ---------------------------------------------------------------------------------------------


def read_labelled_pairs(path: Path, limit: int | None = None) -> list[LabelledPair]:
    """Labelled pairs. Raises DataError naming file and line at the first one that is not."""
    rows = [_pair(line.row, line.place) for line in read_rows(path, Drops())]
    if not rows:
        raise DataError(f"{path}: no pairs: expected JSONL lines with query, document, and verdict or label")
    return rows[:limit]


def _pair(row: Row, where: str) -> LabelledPair:
    query, document = (require_text(row, name, where) for name in ("query", "document"))
    verdict, label = row.get("verdict"), row.get("label")
    if verdict in ("yes", "no"):
        relevant = verdict == "yes"
    elif isinstance(label, int | float) and 0 <= label <= 9:  # true and false are labels here
        relevant = label >= 1
    else:
        raise DataError(
            f"{where}: expected verdict yes or no, or a label from 0 to 9, got {str(verdict or label)[:40]!r}"
        )
    title = row.get("title")
    read = Document(text=document, id=where, title=title if isinstance(title, str) else None)
    return LabelledPair(query, id_in(row, QUERY_IDS, where) or query, read, relevant)


class PairScore(Record):
    """A score that is kept."""

    version: str
    score: float


class KeptScores:
    """Scores on disk, so that no pair is scored twice: neither after an interruption nor for another fit.

    Raises DataError for a file that holds something else, or scores of another version.
    """

    def __init__(self, path: Path, version: str) -> None:
        self._version, self._kept = version, Kept(path, PairScore)
        self._scores: dict[str, float] = {}
        for pair, kept in self._kept.read().items():
            if kept.version != version:
                raise DataError(
                    f"{path} holds scores of version {kept.version}, and this model's are {version}: name another"
                    " file for --scores"
                )
            self._scores[pair] = kept.score

    def get(self, pair: LabelledPair) -> float | None:
        return self._scores.get(_pair_id(pair))

    def keep(self, pair: LabelledPair, score: float) -> None:
        self._scores[_pair_id(pair)] = score
        self._kept.append(_pair_id(pair), PairScore(version=self._version, score=score))


def _pair_id(pair: LabelledPair) -> str:
    return stable_id(pair.query, pair.document.title or "", pair.document.text)


def score_pairs(
    reranker: QueryReranker, pairs: Sequence[LabelledPair], kept: KeptScores | None = None
) -> tuple[list[ScoredPair], int]:
    """All pairs that could be scored, query by query, and how many could not. What is `kept` is not scored again."""
    from rich.progress import track

    by_query: dict[str, list[LabelledPair]] = {}
    for pair in pairs:
        by_query.setdefault(pair.query, []).append(pair)
    judged, failures = [], 0
    for query, rows in track(by_query.items(), "scoring", transient=True):
        known = [kept.get(row) if kept else None for row in rows]
        missing = [place for place, score in enumerate(known) if score is None]
        if missing:
            answer = reranker.rerank(query, [rows[place].document for place in missing], evidence=False)
            for judgment in answer.judgments:
                place = missing[judgment.index]
                known[place] = judgment.score
                if kept and judgment.score is not None:
                    kept.keep(rows[place], judgment.score)
        for row, score in zip(rows, known, strict=True):
            if score is None:
                failures += 1
            else:
                judged.append(ScoredPair(query, row.group, score, row.relevant))
    return judged, failures


# --- fitting and measuring -------------------------------------------------------------------------------------------


def held_out(group: str) -> bool:
    """Half of the queries, by a hash of their id: the same ones whatever else is in the file."""
    return _hash(group) % 2 == 1


def held_to_check(group: str) -> bool:
    """Half of those: what was promised on the others is checked on these."""
    return held_out(group) and _hash(group) // 2 % 2 == 1


def _hash(group: str) -> int:
    return hashlib.blake2b(group.encode("utf-8", "replace"), digest_size=1).digest()[0]


def fit_and_measure(
    judged: Sequence[ScoredPair], method: Literal["isotonic", "platt"], prior: float | None = None, failures: int = 0
) -> Result:
    """Split by query, fit on one half, measure on the other. Raises InputError when a half lacks a label."""
    fitted = [pair for pair in judged if not held_out(pair.group)]
    held = [pair for pair in judged if held_out(pair.group)]
    for name, side in (("fitting", fitted), ("held-out", held)):
        if len({pair.relevant for pair in side}) < 2:
            raise InputError(
                f"the {name} half has {sum(pair.relevant for pair in side)} relevant of {len(side)} pairs: more queries"
            )
    languages = _languages([pair.query for pair in fitted])
    calibration = fitting.fit(*_columns(fitted), method).model_copy(update={"languages": languages})
    scores, relevant = _columns(held)
    groups = [pair.group for pair in held]
    said = [calibration.probability(score) for score in scores]
    proposed = fitting.propose_cuts(*_columns(fitted))
    now = prior or calibration.prior
    cuts = fitting.at_cuts(scores, relevant, list(proposed.values()), calibration, now)
    return Result(
        calibration=calibration,
        fitted=len(fitted),
        held=len(held),
        before=fitting.quality(scores, relevant, groups),
        after=fitting.quality(said, relevant, groups),
        cuts=dict(zip(proposed, cuts, strict=True)),
        prior=now,
        failures=failures,
        sets=_measure_sets(judged, calibration),
    )


def _languages(queries: Sequence[str]) -> tuple[str, ...]:
    """Those of at least one pair in twenty: fewer do not move a fit."""
    counts = Counter(map(language_of, queries))
    return tuple(sorted(name for name, count in counts.items() if count * 20 >= len(queries)))


def _columns(pairs: Sequence[ScoredPair]) -> tuple[list[float], list[bool]]:
    return [pair.score for pair in pairs], [pair.relevant for pair in pairs]


def _measure_sets(judged: Sequence[ScoredPair], calibration: Calibration) -> SetReport | str:
    questions: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for pair in judged:
        questions.setdefault((pair.group, pair.query), ([], []))[pair.relevant].append(pair.score)
    parts: dict[str, dict[str, tuple[list[float], list[float]]]] = {"fit": {}, "bound": {}, "check": {}}
    for (group, _), scores in questions.items():
        part = "check" if held_to_check(group) else "bound" if held_out(group) else "fit"
        parts[part].setdefault(group, scores)  # one query a group: sets of one part are independent
    try:
        return measure_sets(parts["fit"], parts["bound"], parts["check"], calibration)
    except InputError as error:
        return str(error)


# --- storing ---------------------------------------------------------------------------------------------------------


class StoredYes(NamedTuple):
    """Where a yes is to begin."""

    threshold: float | None
    """Under queries in Latin letters, and all others that have none of their own; None: as it is."""
    thresholds: Mapping[str, float]
    """By language (`prism.text.LANGUAGES`)."""


AS_IT_IS = StoredYes(None, {})
OTHERS = "others"
"""What languages without a threshold of their own are called."""


def target_of(checkpoint: str, out: Path, in_place: bool) -> tuple[Path, Path]:
    """(where the checkpoint is, where the calibrated one goes)."""
    from prism.checkpoint import CONFIG_NAME
    from prism.location import MINI

    source = MINI if checkpoint == "mini" else Path(checkpoint)
    if not (source / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{checkpoint} has no {CONFIG_NAME} to store a calibration in: give a local Prism checkpoint"
        )
    target = source if in_place else out / "checkpoint"
    if not in_place and target.exists():
        raise InputError(f"{target} is there already: choose another --out, or move it away")
    return source, target


def store(source: Path, target: Path, result: Result, version: str, yes: StoredYes = AS_IT_IS) -> list[str]:
    """Put the fits into `prism.json` of `target`, a copy of `source` unless they are one; returns lines on it.

    `yes`: where a yes is to begin; under queries in other languages that stays as it is, unless it was found for other
    scores. Fits that are no better than none stay out. Raises DataError, with nothing written, where nothing is left.
    """
    from prism.checkpoint import CONFIG_NAME, PrismConfig

    if result.worse and yes == AS_IT_IS:
        raise DataError(
            f"not stored, the fit is no better than none on held-out queries: {result.worse}; give more pairs, or"
            " --method platt"
        )
    config = PrismConfig.model_validate_json((source / CONFIG_NAME).read_bytes())
    other = config.score_version is not None and scores_part(config.score_version) != version
    kept = {} if other else config.thresholds
    update: dict[str, Any] = {"score_version": version, "thresholds": {**kept, **yes.thresholds}}
    if yes.threshold is not None:
        update["threshold"] = yes.threshold
    update |= {"calibration": None, "answering": None} if result.worse and other else {}
    update |= {} if result.worse else _fits(result)
    text = config.model_copy(update=update).model_dump_json(indent=2) + "\n"
    if target == source:
        write_text(target / CONFIG_NAME, text)
    else:
        with made_whole(target) as part:
            shutil.copytree(source, part)
            write_text(part / CONFIG_NAME, text)
    return [str(target), *_stored(result, yes, sorted(set(config.thresholds) - set(kept) - set(yes.thresholds)))]


def _fits(result: Result) -> dict[str, Any]:
    sets = None if isinstance(result.sets, str) or result.sets.worse else result.sets.answering
    return {"calibration": result.calibration, "answering": sets}


def _stored(result: Result, yes: StoredYes, lost: Sequence[str]) -> Iterator[str]:
    """What of it is stored, and what is not."""
    found = {**({} if yes.threshold is None else {OTHERS: yes.threshold}), **yes.thresholds}
    if found:
        yield f"a yes begins at {', '.join(f'{at:.3f} ({name})' for name, at in found.items())}"
    if lost:
        yield f"thresholds of {', '.join(lost)} were found for other scores: dropped"
    sets = result.sets
    if result.worse:
        yield f"the fits are not stored, they are no better than none: {result.worse}"
    elif isinstance(sets, str) or sets.worse:
        reason = sets if isinstance(sets, str) else f"no better than the best document alone, {sets.worse}"
        yield f"only the pairs' fit is stored, not that of sets: {reason}"
