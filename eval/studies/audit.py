"""Where people and model disagree strongly: a page to annotate again from, and the decisions back into the qrels.

    audit.html      the pairs, texts side by side          decisions.csv    query,document,human,model,decision
An annotator fills in `decision`; empty means undecided. `patch` then rewrites only the labels that were decided.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from prism.errors import DataError
from prism.files.ids import read_id
from prism.files.jsonl import dumps, parse_row
from prism.files.lines import is_json, text_lines
from prism.files.trec import LabelTableReader, Qrel, judged_row, read_label
from prism.outputs import write_text
from prism.text import printable
from studies.tables import read_table

COLUMNS = ("query", "document", "human", "model", "decision")
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem}"
    "article{border-top:1px solid #8888;padding:1rem 0}.texts{display:grid;grid-template-columns:1fr 2fr;gap:1.5rem}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;font:inherit;margin:0;max-height:24rem;overflow:auto}"
    "h1,h2,p{overflow-wrap:anywhere}h2{font-size:1rem}small{opacity:.75}@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}}"
    "@media(max-width:45rem){.texts{grid-template-columns:1fr}}"
)


class Disagreement(NamedTuple):
    """One pair people found worthless and models perfect."""

    query: str
    document: str
    human: int
    model: int
    judges: tuple[str, ...]
    """Who says so."""


def disagreements(
    human: Mapping[tuple[str, str], int], judges: Mapping[str, Mapping[tuple[str, str], int]], low: int, high: int
) -> list[Disagreement]:
    """Pairs with a human label up to `low` that judges label `high` or more; most judges first, then by id."""
    found = []
    for (query, document), label in human.items():
        if label > low:
            continue
        said = {name: labels[query, document] for name, labels in judges.items() if (query, document) in labels}
        agreeing = tuple(name for name, value in said.items() if value >= high)
        if agreeing:
            found.append(Disagreement(query, document, label, max(said.values()), agreeing))
    return sorted(found, key=lambda d: (-len(d.judges), d.query, d.document))


def write_audit(
    out: Path,
    rows: Sequence[Disagreement],
    text_of: Callable[[str, str], tuple[str, str]],
    scale: str,
) -> tuple[Path, Path]:
    """`audit.html` and an empty `decisions.csv` in `out`. `text_of` gives query text and document text of two ids.

    An existing decisions.csv is somebody's work: it is never overwritten.
    """
    page = "\n".join(_page(rows, text_of, scale))
    write_text(out / "audit.html", page)
    table, decisions = io.StringIO(), out / "decisions.csv"
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([row.query, row.document, row.human, row.model, ""] for row in rows)
    if not decisions.exists():
        write_text(decisions, table.getvalue())
    return out / "audit.html", decisions


def _page(rows: Sequence[Disagreement], text_of: Callable[[str, str], tuple[str, str]], scale: str) -> Iterable[str]:
    yield "<!doctype html><html lang=en><meta charset=utf-8><title>Audit</title>"
    yield f'<meta name=viewport content="width=device-width, initial-scale=1"><style>{_STYLE}</style>'
    yield f"<h1>{len(rows)} pairs to annotate again</h1><p>{_shown(scale)} Write the label you decide on into the"
    yield "column <code>decision</code> of decisions.csv; leave it empty where you cannot decide.</p>"
    for number, row in enumerate(rows, start=1):
        query, document = text_of(row.query, row.document)
        yield f"<article><h2>{number}. query {_shown(row.query)}, document {_shown(row.document)}</h2>"
        yield f"<p>people: {row.human}; models: up to {row.model} <small>({_shown(', '.join(row.judges))})</small></p>"
        yield f"<div class=texts><pre>{_shown(query)}</pre><pre>{_shown(document)}</pre></div></article>"
    yield "</html>"


def _shown(text: str) -> str:
    return escape(printable(text))


# --- decisions back --------------------------------------------------------------------------------------------------


def read_decisions(path: Path, human: Mapping[tuple[str, str], int], top: int) -> dict[tuple[str, str], int]:
    """Decided pairs. Raises DataError with file and line: other columns, an unknown pair, a label not in 0 to `top`."""
    decided: dict[tuple[str, str], int] = {}
    for where, row in read_table(path, ("query", "document", "decision"), ", ".join(COLUMNS)).rows:
        pair = read_id(row["query"], "query", where), read_id(row["document"], "document", where)
        if pair not in human:
            raise DataError(f"{where}: people never labelled query {pair[0]!r} document {pair[1]!r}: check the ids")
        if pair in decided:
            raise DataError(f"{where}: query {pair[0]!r} document {pair[1]!r} is decided above: keep one of the lines")
        if row["decision"].strip():
            decided[pair] = _decision(row["decision"].strip(), top, where)
    return decided


def _decision(text: str, top: int, where: str) -> int:
    try:
        return read_label(text, where, (0, top))
    except DataError as error:
        raise DataError(f"{where}: decision {text!r} is not a whole number from 0 to {top}: fix the line") from error


def patch(labels: Path, decided: Mapping[tuple[str, str], int], out: Path) -> int:
    """A copy of the label file with the decided labels, otherwise the same lines. Returns how many labels changed.

    Raises DataError unless each decided pair stands in the file.
    """
    read = _json_line if is_json(labels) else _TableLine()
    changed, lines, left = 0, [], set(decided)
    for where, line in text_lines(labels):
        found = read(line, where)
        if found is not None and (found[0].query, found[0].document) in decided:
            judged, written = found
            pair = judged.query, judged.document
            left.discard(pair)
            if judged.label != decided[pair]:
                line = written(decided[pair])
                changed += 1
        lines.append(line + "\n")
    if left:
        query, document = min(left)
        raise DataError(f"{labels}: query {query!r} document {document!r} is decided, but no line of its own has it")
    write_text(out, "".join(lines))
    return changed


_Found = tuple[Qrel, Callable[[int], str]] | None
"""The pair on a line, and the line with another label."""


class _TableLine:
    def __init__(self) -> None:
        self._table = LabelTableReader()

    def __call__(self, line: str, where: str) -> _Found:
        judged = self._table.read(line, where)
        if judged is None:
            return None
        last = re.search(r"\S+(?=\s*\Z)", line)
        assert last is not None
        return judged, lambda label: f"{line[: last.start()]}{label}{line[last.end() :]}"


def _json_line(line: str, where: str) -> _Found:
    row = parse_row(line, where)
    judged = judged_row(row, where)
    name = "label" if "label" in row else "score"
    return None if judged is None else (judged, lambda label: dumps({**row, name: label}))
