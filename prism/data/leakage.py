"""Whether training data touches an evaluation set: same or nearly same queries, same or overlapping documents.

A near duplicate of a query has at least `query_similarity` percent in common with it (rapidfuzz: token sort ratio where
words are spaced, plain ratio where they are not). Of a document, at least `overlap` of the shorter text's runs of eight
words stand in the other one: containment (Broder 1997) rather than resemblance, so a window cut out of an evaluation
document is found, whatever surrounds it. Runs of words are compared exactly, nothing is estimated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rapidfuzz import fuzz, process

from prism.data.splits import units
from prism.errors import DataError, InputError
from prism.evidence.sentences import UNSPACED_CHAR
from prism.files.jsonl import Drops, Line, Row, read_rows

RUN = 8
"""Units in a run: words, or characters of scripts without spaces."""


class Leak(NamedTuple):
    """One training record that touches the evaluation set."""

    what: Literal["query", "document"]
    how: Literal["exact", "near"]
    share: float
    """Similarity of queries or overlap of documents, 0 to 1."""
    of: str
    """Which evaluation query or document: its id, or the start of its text."""

    @property
    def reason(self) -> str:
        near = "is" if self.how == "exact" else "nearly repeats"
        return f"leakage: {self.what} {near} one of the evaluation set"


class EvaluationTexts(NamedTuple):
    """Texts that must not occur in training, by id."""

    queries: dict[str, str]
    documents: dict[str, str]


class LeakageCheck:
    """An index of evaluation sets. Memory grows with their size, not with that of the training data."""

    def __init__(self, evaluation: EvaluationTexts, query_similarity: float = 90.0, overlap: float = 0.5) -> None:
        if not 50.0 <= query_similarity <= 100.0 or not 0.05 <= overlap <= 1.0:
            raise InputError("query similarity must lie in 50 to 100 (percent) and overlap in 0.05 to 1")
        self._similarity, self._overlap = query_similarity, overlap
        self._exact_queries = {" ".join(units(text)): id_ for id_, text in evaluation.queries.items()}
        self._spaced = {key: id_ for key, id_ in self._exact_queries.items() if not UNSPACED_CHAR.search(key)}
        self._unspaced = {key: id_ for key, id_ in self._exact_queries.items() if UNSPACED_CHAR.search(key)}
        self._index_documents(evaluation.documents)
        self.query_leak = lru_cache(maxsize=100_000)(self._query_leak)  # a query comes once per document

    def _index_documents(self, documents: dict[str, str]) -> None:
        self._names = list(documents)
        self._sizes: list[int] = []
        self._exact_documents: dict[int, int] = {}
        self._where: dict[int, list[int]] = {}
        for number, text in enumerate(documents.values()):
            found = units(text)
            self._exact_documents[hash(tuple(found))] = number
            own = runs(found)
            self._sizes.append(len(own))
            for run in own:
                self._where.setdefault(run, []).append(number)

    def check(self, query: str, document: str) -> Leak | None:
        """The query's leak if there is one, else the document's."""
        return self.query_leak(query) or self.document_leak(document)

    def _query_leak(self, query: str) -> Leak | None:
        key = " ".join(units(query))
        if key in self._exact_queries:
            return Leak("query", "exact", 1.0, self._exact_queries[key])
        spaced = not UNSPACED_CHAR.search(key)
        choices: Any = self._spaced if spaced else self._unspaced
        best = process.extractOne(
            key,
            choices.keys(),
            scorer=fuzz.token_sort_ratio if spaced else fuzz.ratio,
            score_cutoff=self._similarity,
        )
        return None if best is None else Leak("query", "near", best[1] / 100, choices[best[0]])

    def document_leak(self, document: str) -> Leak | None:
        """An evaluation document that is this one, or shares enough of its text."""
        found = units(document)
        if (exact := self._exact_documents.get(hash(tuple(found)))) is not None:
            return Leak("document", "exact", 1.0, self._names[exact])
        own = runs(found)
        shared = Counter(number for run in own for number in self._where.get(run, ()))
        shares = ((count / min(len(own), self._sizes[number]), -number) for number, count in shared.items())
        share, number = max(shares, default=(0.0, 0))
        return Leak("document", "near", share, self._names[-number]) if share >= self._overlap else None


def runs(found: Sequence[str]) -> set[int]:
    """Hashes of the runs of `RUN` units; none for shorter texts, which only match exactly."""
    return {hash(tuple(found[start : start + RUN])) for start in range(len(found) - RUN + 1)}


def read_evaluation(
    paths: Iterable[Path], drops: Drops, split: str = "test", judged_only: bool = True
) -> EvaluationTexts:
    """Evaluation sets from BEIR folders (queries of a split and the documents its qrels name) or JSONL files.

    A JSONL file may hold pairs (`query`, `document`), queries or documents (`text`). `judged_only=False` takes the
    whole corpus of a BEIR folder. Raises DataError when nothing comes of a path.
    """
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    for path in paths:
        before = len(queries) + len(documents)
        if path.is_dir():
            _read_beir(path, split, judged_only, queries, documents)
        else:
            _read_file(path, drops, queries, documents)
        if len(queries) + len(documents) == before:
            raise DataError(f"{path}: no query and no document in it: expected fields query, document or text")
    return EvaluationTexts(queries, documents)


def _read_beir(folder: Path, split: str, judged_only: bool, queries: dict[str, str], documents: dict[str, str]) -> None:
    from prism.files.beir import load_beir

    found = load_beir(folder.resolve().name, folder, split)
    queries.update({f"{found.name}/{id_}": text for id_, text in found.queries.items()})
    judged = {document for labels in found.qrels.values() for document in labels}
    for id_, (_, text) in found.corpus.items():
        if text.strip() and (not judged_only or id_ in judged):
            documents[f"{found.name}/{id_}"] = text


def _read_file(path: Path, drops: Drops, queries: dict[str, str], documents: dict[str, str]) -> None:
    for place, row in read_rows(path, drops):
        if isinstance(query := row.get("query", row.get("question")), str) and query.strip():
            queries[place] = query
        document = next((row[name] for name in ("document", "text", "contents") if isinstance(row.get(name), str)), "")
        if document.strip():
            documents[place] = document


def clean_rows(lines: Iterable[Line], check: LeakageCheck, leaks: Drops) -> Iterator[Row]:
    """The rows that do not leak; the others go into `leaks`, with what they touch."""
    for place, row in lines:
        if leak := check.check(row["query"], row["document"]):
            leaks.add(leak.reason, f"{place} touches {leak.of} ({leak.share:.2f})")
        else:
            yield row
