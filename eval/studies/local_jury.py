"""A jury of small models on one machine: real pairs for it, and what its votes are worth.

Pairs: questions of `pairs/` with the passages people judged for them, and BM25's best others of the same set. Of those
others nobody said anything; one that holds none of the question's answers is taken for a no, and counted apart.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from prism.errors import DataError
from prism.files.jsonl import Drops, read_objects, read_rows
from prism.files.label_files import LabelFile, LabelTable, PairIds, line_up
from prism.labeling.rubrics import Rubric
from prism.labeling.store import Store
from prism.retrieval.bm25 import Bm25
from prism.text import stable_id
from prism.types import Vote

SHARES = {
    "squad-dev.en": 0.3,
    "clapnq-dev.en": 0.1,
    "boolq-dev.en": 0.05,
    "selqa.en": 0.05,
    "cmrc2018-train.zh": 0.25,
    "jaquad.ja": 0.25,
}
"""Of the questions: half are English. squad-dev and clapnq-dev have passages that people say do not answer."""
MOST_CHARS = 1000
NEIGHBOURS = 2


class Timed(NamedTuple):
    """What one juror did under one rubric."""

    votes: list[Vote]
    seconds: float | None
    """Mean time from sending a question to its answer; None without calls on record."""


# --- pairs -----------------------------------------------------------------------------------------------------------


def make_pairs(folder: Path, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """At least `count` pairs where the sets suffice, question by question in an order drawn by `seed`."""
    drawn: list[list[dict[str, Any]]] = []
    for name, share in SHARES.items():
        drawn += _of_set(folder / f"{name}.jsonl.gz", round(share * count), seed)
    for rows in sorted(drawn, key=lambda rows: stable_id(str(seed), rows[0]["query_id"])):
        yield from rows


def _of_set(path: Path, count: int, seed: int) -> list[list[dict[str, Any]]]:
    """Questions of one set, each with its pairs, until there are `count` pairs."""
    judged = _judged(path)
    passages = list(dict.fromkeys(passage for labels in judged.values() for passage in labels["labels"]))
    index = Bm25(passages)
    source = path.name.partition(".")[0]
    questions: list[list[dict[str, Any]]] = []
    found = 0
    for question in sorted(judged, key=lambda question: stable_id(str(seed), source, question)):
        if found >= count:
            break
        known = judged[question]
        hits = index.search([question], NEIGHBOURS + len(known["labels"]))[0]
        others = [passages[place] for place, _ in hits if passages[place] not in known["labels"]][:NEIGHBOURS]
        rows = [_row(source, question, known, passage) for passage in (*known["labels"], *others)]
        questions.append(rows)
        found += len(rows)
    return questions


def _judged(path: Path) -> dict[str, dict[str, Any]]:
    """Question -> its passages with people's labels, its answers and language; long passages are left out."""
    found: dict[str, dict[str, Any]] = {}
    for _, row in read_rows(path, Drops()):
        passage = " ".join(row["passage"].split())
        if len(passage) <= MOST_CHARS:
            one = found.setdefault(row["question"], {"labels": {}, "answers": set(), "lang": row["lang"]})
            one["labels"].setdefault(passage, row["label"])
            one["answers"].update(answer for answer in row.get("answers") or () if answer.strip())
    return found


def _row(source: str, question: str, known: Mapping[str, Any], passage: str) -> dict[str, Any]:
    label = known["labels"].get(passage)
    without = known["answers"] and not any(answer.casefold() in passage.casefold() for answer in known["answers"])
    row = {
        "query": question,
        "document": passage,
        "query_id": f"{source}-{stable_id(question)}",
        "doc_id": stable_id(passage),
        "source": source,
        "language": known["lang"],
        "answers": sorted(known["answers"]),
    }
    if label is not None:
        return {**row, "people": label}
    return {**row, "assumed": 0} if without else row


# --- votes -----------------------------------------------------------------------------------------------------------


def read_truth(pairs: Path, assumed: bool = False) -> dict[str, tuple[PairIds, int, str]]:
    """Pair id -> (query and document ids, people's label, language); `assumed`: with the noes taken for granted."""
    truth: dict[str, tuple[PairIds, int, str]] = {}
    for _, _, row in read_objects(pairs):
        if isinstance(row, DataError):
            raise row
        label = row.get("people", row.get("assumed") if assumed else None)
        if label is not None:
            place = PairIds(str(row["query_id"]), str(row["doc_id"]))
            truth[stable_id(row["query"], row["document"])] = (place, int(label), str(row["language"]))
    if not truth:
        raise DataError(f"{pairs}: no line has `people`: make it with `local_jury.py pairs`")
    return truth


def read_jury(out: Path) -> dict[str, tuple[Rubric, dict[str, Timed]]]:
    """Rubric key -> the rubric, and each juror's votes under it, from the folder of `prism label`."""
    file = out / "votes.sqlite"
    if not file.is_file():
        raise DataError(f"no votes at {file}: run `prism label` first")
    with closing(Store(file)) as store:
        rubrics = store.rubrics()
        votes: dict[str, dict[str, list[Vote]]] = {key: {} for key in rubrics}
        for vote in store.votes():
            votes[str(vote.rubric)].setdefault(vote.juror, []).append(vote)
    seconds = _seconds(file)
    return {
        key: (rubrics[key], {name: Timed(given, seconds.get((key, name))) for name, given in by.items()})
        for key, by in votes.items()
    }


def _seconds(file: Path) -> dict[tuple[str, str], float]:
    """(rubric, juror) -> mean seconds between a call and its vote: both are kept to the second, cut alike."""
    query = """SELECT votes.rubric, votes.juror, avg(strftime('%s', votes.created_at) - strftime('%s', calls.sent_at))
        FROM votes JOIN calls ON calls.id = votes.call GROUP BY 1, 2"""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        return {(rubric, juror): float(mean) for rubric, juror, mean in db.execute(query)}


def labels_of(votes: Sequence[Vote], truth: Mapping[str, tuple[PairIds, int, str]], name: str, path: Path) -> LabelFile:
    """A juror's labels by ids, of the pairs whose truth is known."""
    labels = {truth[v.pair_id][0]: v.label for v in votes if v.label is not None and v.pair_id in truth}
    return LabelFile(name, path, labels, dict.fromkeys(labels, 0))


def jury_table(
    truth: Mapping[str, tuple[PairIds, int, str]], jurors: Mapping[str, Timed], yes_from: int, out: Path
) -> LabelTable:
    """People first, then every juror, on the scale of the rubric: people's yes is the label from which it means yes.

    Only pairs on which some juror was asked count.
    """
    asked = {vote.pair_id for timed in jurors.values() for vote in timed.votes}
    people = {place: yes_from * label for id_, (place, label, _) in truth.items() if id_ in asked}
    files = [labels_of(timed.votes, truth, name, out) for name, timed in jurors.items()]
    with_labels = [file for file in files if file.labels]
    return line_up([LabelFile("people", out, people, dict.fromkeys(people, 0)), *with_labels])


def failures(votes: Sequence[Vote]) -> Counter[str]:
    """Kind of failure -> how many."""
    return Counter(vote.failure for vote in votes if vote.failure)
