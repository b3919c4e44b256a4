"""Relevance labels and runs: BEIR's and TREC's tables, and labels as JSON records; one reader for every command.

    query-id  corpus-id  score          tabs, a header          BEIR: ids may hold spaces
    query     0          document label  tabs or spaces          TREC's qrels
    query     Q0         document rank score tag                 TREC's runs
    {"query_id": ..., "doc_id": ..., "label": ...}               JSON: `score` for `label`, BEIR's names for the ids

A pair in JSON may be named by its texts (`query`, `document`) where it has no ids.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prism.errors import DataError
from prism.files.ids import DOCUMENT_IDS, QUERY_IDS, fits_tables, id_in, read_id
from prism.files.jsonl import read_objects
from prism.files.lines import is_json, text_lines
from prism.outputs import write_text
from prism.text import stable_id
from prism.types import Run, descending

WIDEST = (-10, 100)
"""Labels beyond this are a score or an id in the wrong column."""
_WHOLE = re.compile(r"[+-]?[0-9]{1,9}(?:\.0*)?")
_LABEL_COLUMN = {"label", "score", "relevance", "rel", "grade", "judgment", "judgement"}
_LABELS = "4 columns `query 0 document label` or 3 columns `query document label`"


class Qrel(NamedTuple):
    """One labelled pair."""

    query: str
    document: str
    label: int


class ScoredDoc(NamedTuple):
    """One line of a run."""

    query: str
    document: str
    score: float


def judged_lines(path: Path, scale: tuple[int, int] = WIDEST) -> Iterator[tuple[str, Qrel]]:
    """(`file:line`, labelled pair). A record whose label is null is passed over: nobody judged it.

    Raises DataError with file and line: other columns than the lines above, a label that is not a whole number on the
    scale, what is no id.
    """
    if is_json(path):
        for _, place, row in read_objects(path):
            if isinstance(row, DataError):
                raise row
            if (judged := judged_row(row, place, scale)) is not None:
                yield place, judged
        return
    table = LabelTableReader(scale)
    for where, line in text_lines(path):
        if (judged := table.read(line, where)) is not None:
            yield where, judged


class LabelTableReader:
    """Lines of a table of labels, which must all look like the first."""

    def __init__(self, scale: tuple[int, int] = WIDEST) -> None:
        self._scale = scale
        self._layout: tuple[str, int] | None = None

    def read(self, line: str, where: str) -> Qrel | None:
        """The pair on a line; None for the header. Raises DataError."""
        columns, layout = split_columns(line, where, _LABELS, (3, 4))
        if self._layout is None and _is_header(columns, where):
            return None
        self._layout = self._layout or layout
        if layout[0] != self._layout[0]:
            raise DataError(
                f"{where}: separated by {layout[0]}, the lines above by {self._layout[0]}: use one of the two"
            )
        if layout[1] != self._layout[1]:
            raise DataError(f"{where}: {layout[1]} columns, the lines above have {self._layout[1]}: fix the line")
        query, document = (
            read_id(value, name, where) for value, name in ((columns[0], "query"), (columns[-2], "document"))
        )
        return Qrel(query, document, read_label(columns[-1], where, self._scale))


def split_columns(line: str, where: str, expected: str, allowed: Sequence[int]) -> tuple[list[str], tuple[str, int]]:
    """(columns, (`tabs` or `spaces`, how many)): by tabs where there are any, so that ids may hold spaces."""
    tabs = "\t" in line.strip()
    columns = [column.strip() for column in line.strip().split("\t")] if tabs else line.split()
    if len(columns) not in allowed:
        if tabs and len(line.split()) in allowed:
            raise DataError(f"{where}: tabs and spaces are mixed: separate all columns by one of the two")
        raise DataError(f"{where}: got {len(columns)} columns, expected {expected}: fix the line")
    if not all(columns):
        raise DataError(f"{where}: column {columns.index('') + 1} is empty, expected {expected}: fix the line")
    return columns, ("tabs" if tabs else "spaces", len(columns))


def _is_header(columns: Sequence[str], where: str) -> bool:
    if {"query-id", "corpus-id"} & set(columns) and columns[:3] != ["query-id", "corpus-id", "score"]:
        raise DataError(f"{where}: header {' '.join(columns)!r}: expected query-id, corpus-id, score")
    return columns[-1].lower() in _LABEL_COLUMN


def judged_row(row: Mapping[str, Any], where: str, scale: tuple[int, int] = WIDEST) -> Qrel | None:
    """The labelled pair of a record; None when its label is null. Raises DataError when it names none."""
    name = next((name for name in ("label", "score") if name in row), None)
    if name is None:
        raise DataError(f"{where}: no field 'label': expected query_id, doc_id and label")
    if row[name] is None:
        return None
    return Qrel(*pair_of(row, where), read_label(row[name], where, scale))


def pair_of(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    """(query, document): by ids, else by the query's text and a hash of the document's. Raises DataError."""
    query = id_in(row, QUERY_IDS, where) or _text(row, "query")
    document = id_in(row, DOCUMENT_IDS, where)
    if document is None and (text := _text(row, "document")) is not None:
        document = stable_id(text)
    if query is None or document is None:
        raise DataError(f"{where}: no pair named: expected query_id and doc_id, or query and document")
    return query, document


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    return value if isinstance(value, str) and value.strip() else None


def read_label(value: object, where: str, scale: tuple[int, int] = WIDEST) -> int:
    """A whole number on the scale, also when written `1.0`; true and false are no numbers. Raises DataError."""
    number = math.nan
    if (isinstance(value, str) and _WHOLE.fullmatch(value.strip())) or (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
    ):
        number = float(value)
    if not number.is_integer():  # False for NaN
        shown = repr(value)
        shown = shown if len(shown) <= 62 else shown[:61] + "…"
        raise DataError(f"{where}: label {shown} is not a whole number: fix the line")
    label = int(number)
    if not scale[0] <= label <= scale[1]:
        raise DataError(f"{where}: label {label} is off the scale {scale[0]} to {scale[1]}: fix the line")
    return label


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Query -> document -> label. Raises DataError."""
    return collect_qrels(judged_lines(path), str(path))


def collect_qrels(judged: Iterable[tuple[str, Qrel]], source: str = "qrels") -> dict[str, dict[str, int]]:
    """Qrels from (where it stands, judged pair). Raises DataError when a pair carries two labels, or there is none."""
    qrels: dict[str, dict[str, int]] = {}
    for where, (query, document, label) in judged:
        if qrels.setdefault(query, {}).setdefault(document, label) != label:
            known = qrels[query][document]
            raise DataError(f"{where}: {query!r} {document!r} is labelled {label}, but {known} above: keep one of them")
    if not qrels:
        raise DataError(f"{source}: no labelled pair: expected `query-id corpus-id score` or TREC's 4 columns")
    return qrels


def run_lines(path: Path) -> Iterator[tuple[str, ScoredDoc]]:
    """(`file:line`, line) of a TREC run, by tabs where there are any. Raises DataError."""
    for where, line in text_lines(path):
        (query, _, document, _, score, _), _ = split_columns(line, where, "`query Q0 document rank score tag`", (6,))
        names = (read_id(query, "query", where), read_id(document, "document", where))
        yield where, ScoredDoc(*names, _number(score, where))


def _number(text: str, where: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"{where}: score {text!r} is not a finite number: fix the line")
    return score


def line_with(path: Path, word: str) -> str:
    """`file:line` of the first line with this id, for messages about it."""
    for where, line in text_lines(path):
        if word in (column.strip() for column in (line.split("\t") if "\t" in line else line.split())):
            return where
    return str(path)


# --- runs as orders ---------------------------------------------------------------------------------------------------


def read_run(path: Path) -> dict[str, list[str]]:
    """A TREC run: `query Q0 document rank score tag`. The score decides, not the rank; ties break by document id."""
    return {query: by_score(scores) for query, scores in read_scores(path).items()}


def by_score(scores: Mapping[str, float]) -> list[str]:
    """Documents, best first; ties break by document id."""
    return sorted(scores, key=lambda document: (-scores[document], document))


def read_scores(path: Path) -> dict[str, dict[str, float]]:
    """The scores of a TREC run: query -> document -> score."""
    scores: dict[str, dict[str, float]] = {}
    for where, (query, document, score) in run_lines(path):
        ranked = scores.setdefault(query, {})
        if document in ranked:
            raise DataError(f"{where}: document {document!r} stands twice for query {query!r}: keep one of the lines")
        ranked[document] = score
    if not scores:
        raise DataError(f"{path}: the run is empty: expected lines `query Q0 document rank score tag`")
    return scores


def write_run(path: Path, run: Run, tag: str) -> bool:
    """Write a TREC run; scores count down so that every reader sees this order (see `prism.measures.ranking`).

    Returns whether the very same was there already.

    Separated by spaces, as trec_eval wants it; by tabs where an id holds a space, as BEIR's qrels are.
    """
    tag = "_".join(tag.split()) or "run"
    lines = []
    for query, ranked in run.items():
        for rank, (document, score) in enumerate(descending(query, ranked), start=1):
            if not fits_tables(query + document):
                raise DataError(f"no run can hold a tab or line end in an id: query {query!r}, document {document!r}")
            lines.append((query, "Q0", document, str(rank), f"{score:.0f}", tag))
    spaced = any(len(f"x{query}x x{document}x".split()) != 2 for query, _, document, *_ in lines)
    return write_text(path, "".join(("\t" if spaced else " ").join(line) + "\n" for line in lines))
