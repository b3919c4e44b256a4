"""A jury's scores as the studies of labels and of experiments read them: label files, rankings, questions by set."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from prism.errors import InputError
from prism.files.trec import write_run
from prism.outputs import write_text
from prism.retrieval.bm25 import Bm25
from studies.label_quality import Judged
from studies.local_teacher import Scored, opened, read_scored
from studies.recorded import write_labels


def write_study(pairs_file: Path, scores: Path, out: Path, cuts: Mapping[str, float], only: Path | None = None) -> str:
    """What the studies of labels and experiments read: people's labels (and likely noes) and the jurors', rankings of
    each question's documents by BM25 and by them, and the questions by set
    (queries.csv). Pairs without a label are left out.

    `cuts`: juror -> the score from which it says 1; elsewhere 0.5. `only`: a CSV file whose column `query` names the
    questions that people labelled, as `experiments.py` draws them; rankings and questions stay. Raises InputError."""
    jurors, pairs = read_scored(pairs_file, scores)
    if strange := next((name for name in cuts if name not in jurors), None):
        raise InputError(f"--cut {strange}: the jurors are {', '.join(jurors)}")
    if "bm25" in jurors:
        raise InputError("a juror cannot be called bm25 here: that is the name of BM25's own ranking")
    known = [pair for pair in pairs if pair.truth is not None]
    if not known:
        raise InputError(f"{pairs_file}: no pair that was scored has a label by people, or a likely no")
    ids = [(str(pair.row["query_id"]), str(pair.row["doc_id"])) for pair in known]
    judges = []
    for at, name in enumerate(jurors):
        said = {id_: int(pair.scores[at] >= cuts.get(name, 0.5)) for id_, pair in zip(ids, known, strict=True)}
        judges.append(Judged(name, {id_: float(label) for id_, label in said.items()}, said, 1))
    asked = {query for query, _ in ids} if only is None else _queries(only)
    people = {id_: int(pair.truth == 1) for id_, pair in zip(ids, known, strict=True) if id_[0] in asked}
    if not people:
        raise InputError(f"{only}: its column `query` has none of the {len({query for query, _ in ids})} questions")
    write_labels(out / "labels", people, judges)
    rankings = {"bm25": _bm25(known)} | {name: [pair.scores[at] for pair in known] for at, name in enumerate(jurors)}
    for name, scores_P in rankings.items():
        write_run(out / f"{name}.run", _ranked(ids, scores_P), name)
    sources = {str(pair.row["query_id"]): str(pair.row.get("source", "all")) for pair in known}
    lines = [f"{query},{source},unknown\n" for query, source in sources.items()]
    write_text(out / "queries.csv", "".join(["query,interest,popularity\n", *lines]))
    by_people = sum("people" in pair.row and id_ in people for id_, pair in zip(ids, known, strict=True))
    return (
        f"{len(known):,} pairs of {len(sources):,} questions; human.qrels: {by_people:,} labels by people and"
        f" {len(people) - by_people:,} likely noes; {len(jurors)} jurors -> {out}"
    )


def _queries(path: Path) -> set[str]:
    with opened(path) as file:
        return {row["query"] for row in csv.DictReader(file) if row.get("query")}


def _ranked(ids: Sequence[tuple[str, str]], scores_P: Sequence[float]) -> dict[str, list[str]]:
    """Equal scores in the order of the document ids, which says nothing about them."""
    pages: dict[str, list[tuple[float, str]]] = {}
    for (query, document), score in zip(ids, scores_P, strict=True):
        pages.setdefault(query, []).append((-score, document))
    return {query: [document for _, document in sorted(page)] for query, page in pages.items()}


def _bm25(pairs: Sequence[Scored]) -> list[float]:
    """Each pair's score among the documents of its set."""
    found: dict[int, float] = {}
    for source in dict.fromkeys(pair.row.get("source") for pair in pairs):
        own = [at for at, pair in enumerate(pairs) if pair.row.get("source") == source]
        texts = {text: at for at, text in enumerate(dict.fromkeys(pairs[at].row["document"] for at in own))}
        index = Bm25(texts)
        for query, group in groupby(own, key=lambda at: pairs[at].row["query"]):
            scores = index.scores(query)
            found |= {at: float(scores[texts[pairs[at].row["document"]]]) for at in group}
    return [found[at] for at in range(len(pairs))]


def parse_cuts(given: Sequence[str]) -> dict[str, float]:
    """JUROR=SCORE, several. Raises InputError."""
    try:
        cuts = {name: float(score) for name, _, score in (text.partition("=") for text in given)}
    except ValueError:
        cuts = {"": math.nan}
    if not all(0 <= cut <= 1 for cut in cuts.values()):
        raise InputError(f"--cut takes JUROR=SCORE with a score in [0, 1], got {', '.join(given)}")
    return cuts
