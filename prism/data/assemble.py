"""`prism data build`: labels + teacher scores + targets -> training files with `losses` per record, and a data card.

    labels.jsonl ─┐
    scores.jsonl ─┼─ join by id -> losses -> leakage check -> balance -> split by query -> train.jsonl, dev.jsonl
    targets.jsonl ┘                     (what is left out, with the reason) -> dropped.jsonl    card.json, card.md

Records stream through; the join is an SQLite file that is removed at the end. Nothing here is random: the same input
gives the same files, so an interrupted build is simply run again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from prism.data.balance import Balanced, Cell, balance, cell_of
from prism.data.card import Rules, Sources, Tally, majority_share, write_card
from prism.data.leakage import LeakageCheck
from prism.data.splits import split_of
from prism.errors import DataError
from prism.files.jsonl import Drops, JsonlWriter, Line, OnBad, Row, read_pairs, read_rows, reject
from prism.outputs import require_folder
from prism.records import first_problem
from prism.types import Example, Verdict


def build_training_data(
    sources: Sources, rules: Rules, folder: Path, *, leakage: LeakageCheck | None = None, on_bad: OnBad = "fail"
) -> Row:
    """Write the files into `folder`; returns the card as a mapping. Raises DataError for bad input (see `on_bad`)."""
    require_folder(folder)
    for path in (sources.labels, sources.scores, sources.targets):
        if path is not None and not path.is_file():
            raise DataError(f"no file {path}: check the path")
    folder.mkdir(parents=True, exist_ok=True)
    drops, tally = Drops(), Tally(1 if rules.yes_from is None else rules.yes_from)
    work, merged = folder / "join.sqlite.part", folder / "merged.jsonl.part"
    try:
        with JsonlWriter(folder / "dropped.jsonl") as dropped, closing(_Join(work)) as join:
            join.fill(sources, drops, on_bad)
            left_out = _LeftOut(dropped, drops)
            lines = read_pairs(sources.labels, drops, on_bad)
            ids, cells = _merge(lines, merged, _Decide(rules, join, leakage), left_out, tally, on_bad)
            balanced = balance(ids, cells, total=rules.balance_total) if rules.balance_total and ids else None
            _write_splits(rules, folder, merged, balanced, left_out, tally)
    finally:
        work.unlink(missing_ok=True)
        merged.unlink(missing_ok=True)
    if not any(tally.records.values()):
        raise DataError(f"no record is left of {sources.labels}: {drops.report()}")
    return write_card(folder, sources, rules, tally, drops, balanced)


class _LeftOut:
    """Books a dropped record in the report and in dropped.jsonl."""

    def __init__(self, out: JsonlWriter, drops: Drops) -> None:
        self._out, self.drops = out, drops

    def add(self, reason: str, place: str, row: Row) -> None:
        self.drops.add(reason, place)
        known = {name: row[name] for name in ("id", "query", "query_id", "doc_id") if row.get(name) is not None}
        self._out.write({**known, "reason": reason, "place": place})


class _Join:
    """Teacher scores and targets by pair id, and which ids were seen, on disk."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN;"
            "CREATE TABLE scores (id TEXT PRIMARY KEY, score REAL) WITHOUT ROWID;"
            "CREATE TABLE targets (id TEXT PRIMARY KEY, contribution TEXT, evidence TEXT) WITHOUT ROWID;"
            "CREATE TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID;"
        )

    def fill(self, sources: Sources, drops: Drops, on_bad: OnBad) -> None:
        """Read scores and targets; of a pair that comes twice the last counts."""
        if sources.scores:
            found = _scores(read_pairs(sources.scores, drops, on_bad), drops, on_bad)
            self._db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", found)
        if sources.targets:
            lines = read_pairs(sources.targets, drops, on_bad)
            texts = ((row["id"], _text(row, "contribution"), _text(row, "evidence")) for _, row in lines)
            self._db.executemany("INSERT OR REPLACE INTO targets VALUES (?, ?, ?)", texts)

    def first(self, id_: str) -> bool:
        """Whether this pair has not been seen before."""
        return self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (id_,)).rowcount == 1

    def extend(self, row: Row) -> Row:
        """The row with the score and texts found for it; what the row brings along is kept otherwise."""
        score = self._db.execute("SELECT score FROM scores WHERE id = ?", (row["id"],)).fetchone()
        texts = self._db.execute("SELECT contribution, evidence FROM targets WHERE id = ?", (row["id"],)).fetchone()
        more: Row = {} if score is None else {"teacher_score": score[0]}
        if texts is not None and all(texts):
            more |= {"contribution": texts[0], "evidence": texts[1]}
        return {**row, **more}

    def close(self) -> None:
        self._db.close()


def _scores(lines: Iterable[Line], drops: Drops, on_bad: OnBad) -> Iterator[tuple[str, float]]:
    for place, row in lines:
        try:
            yield row["id"], _number(row, "teacher_score", place)
        except DataError as error:
            reject(error, place, drops, on_bad)


def _text(row: Row, name: str) -> str | None:
    """A written text; a failed one (null, blank) is none."""
    value = row.get(name)
    return value if isinstance(value, str) and value.strip() else None


def _number(row: Row, name: str, place: str) -> float:
    value = row.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.0 <= value <= 1.0:
        raise DataError(f"{place}: {name}: expected a number in [0, 1], got {value!r:.40}")
    return float(value)


# --- pass 1: join, decide --------------------------------------------------------------------------------------------


class _Decide:
    """What becomes of each labelled pair: a training record, or a reason to leave it out."""

    def __init__(self, rules: Rules, join: _Join, leakage: LeakageCheck | None) -> None:
        self._rules, self._join, self._leakage = rules, join, leakage

    def __call__(self, row: Row, place: str) -> Example | str:
        rules = self._rules
        verdict = verdict_of(row, rules.yes_from, place)
        if verdict is None:
            return "no label: the panel failed or is undecided"
        if not self._join.first(row["id"]):
            return "duplicate pair"
        if row.get("vote_share") is not None and majority_share(_number(row, "vote_share", place)) < rules.min_majority:
            return f"fewer than {rules.min_majority:.0%} of the votes behind the verdict"
        example = _example(self._join.extend(row), verdict, rules, place)
        if rules.require_targets and verdict == "yes" and not example.evidence:
            return "a yes without contribution and evidence"
        leak = self._leakage.check(example.query, example.document) if self._leakage else None
        return leak.reason if leak else example


def _merge(
    lines: Iterable[Line], path: Path, decide: _Decide, left_out: _LeftOut, tally: Tally, on_bad: OnBad
) -> tuple[list[str], list[Cell]]:
    """Write the records that stay to `path`; returns their ids and balancing cells, in order."""
    ids: list[str] = []
    cells: list[Cell] = []
    with JsonlWriter(path) as out:
        for place, row in lines:
            tally.read += 1
            try:
                decided = decide(row, place)
            except DataError as error:
                reject(error, place, left_out.drops, on_bad)
                continue
            if isinstance(decided, str):
                left_out.add(decided, place, row)
                continue
            tally.agreement(decided)
            ids.append(row["id"])
            cells.append(cell_of(decided.teacher_score, len(decided.document)))
            out.write({"place": place, "id": row["id"], "example": decided.model_dump(mode="json", exclude_none=True)})
    return ids, cells


def verdict_of(row: Row, yes_from: int | None, place: str) -> Verdict | None:
    """The panel's verdict, None when it has none: its `verdict`, or `label >= yes_from` where there is no such field.

    A `yes_from` that is given overrules the panel's verdict; the default for rows without one is 1.
    """
    verdict = row.get("verdict")
    if yes_from is None and "verdict" in row:
        if verdict in ("yes", "no", None):
            return cast("Verdict | None", verdict)
        raise DataError(f"{place}: verdict: expected yes, no or null, got {verdict!r:.40}")
    label = row.get("label")
    if label is None or isinstance(label, int | float):
        return None if label is None else "yes" if label >= (1 if yes_from is None else yes_from) else "no"
    raise DataError(f"{place}: label: expected a number or null, got {label!r:.40}")


def labelled_scores(
    scores: Path, labels: Path, yes_from: int | None, drops: Drops, on_bad: OnBad
) -> Iterator[tuple[float, bool, str]]:
    """(teacher score, whether the label means yes, query) of the pairs that both files have."""
    verdicts: dict[str, Verdict] = {}
    for place, row in read_pairs(labels, drops, on_bad):
        if verdict := verdict_of(row, yes_from, place):
            verdicts[row["id"]] = verdict
    for place, row in read_pairs(scores, drops, on_bad):
        if verdict := verdicts.get(row["id"]):
            yield _number(row, "teacher_score", place), verdict == "yes", row["query"]


def losses_for(verdict: Verdict, teacher_score: float | None) -> tuple[str, ...]:
    """Distil only where the teacher's side of 0.5 is the panel's verdict; text is always learnt."""
    agrees = teacher_score is not None and (teacher_score >= 0.5) == (verdict == "yes")
    return ("distill", "sft") if agrees else ("sft",)


def _example(row: Row, verdict: Verdict, rules: Rules, place: str) -> Example:
    score = None if row.get("teacher_score") is None else _number(row, "teacher_score", place) ** rules.power
    texts = ("contribution", "evidence") if verdict == "yes" and row.get("contribution") and row.get("evidence") else ()
    fields = ("query", "document", "doc_id", "query_id", "title", "source", "language", "vote_share", *texts)
    try:
        return Example.model_validate(
            {
                **{name: row[name] for name in fields if row.get(name) is not None},
                "teacher_score": None if score is None else round(score, 6),
                "verdict": verdict,
                "votes": votes_of(row),
                "losses": losses_for(verdict, score),
            }
        )
    except ValidationError as error:
        raise DataError(f"{place}: {first_problem(error)}") from error


def votes_of(row: Row) -> dict[str, Any] | None:
    """Juror -> label, None for those in `failures`."""
    votes, failures = row.get("votes"), row.get("failures")
    if not isinstance(votes, dict):
        return None
    return {**votes, **dict.fromkeys(failures if isinstance(failures, dict) else {})}


# --- pass 2: balance, split ------------------------------------------------------------------------------------------


def _write_splits(
    rules: Rules, folder: Path, merged: Path, balanced: Balanced | None, left_out: _LeftOut, tally: Tally
) -> None:
    with ExitStack() as files:
        outs = {name: files.enter_context(JsonlWriter(folder / f"{name}.jsonl")) for name in rules.splits}
        for number, (_, row) in enumerate(read_rows(merged, Drops())):
            record = row["example"]
            if balanced and number in balanced.dropped:
                left_out.add("balance: its cell of score and length is full", row["place"], {"id": row["id"], **record})
                continue
            name = split_of(record["query"], rules.splits, rules.salt)
            outs[name].write({"id": row["id"], **record})
            tally.written(name, record)
