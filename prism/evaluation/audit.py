"""Where people and model disagree strongly: a page to annotate again from, and the decisions back into the qrels.

    audit.html      the pairs, texts side by side          decisions.csv    query,document,human,model,decision
An annotator fills in `decision`; empty means undecided. `patch` then rewrites only the labels that were decided.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from prism.errors import DataError
from prism.evaluation.report import write_whole
from prism.result import printable

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
    write_whole(out / "audit.html", page)
    table, decisions = io.StringIO(), out / "decisions.csv"
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([row.query, row.document, row.human, row.model, ""] for row in rows)
    if not decisions.exists():
        write_whole(decisions, table.getvalue())
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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    reader = csv.DictReader(text.splitlines())
    if missing := [name for name in ("query", "document", "decision") if name not in (reader.fieldnames or ())]:
        raise DataError(f"{path}:1: no column {missing[0]!r}: expected comma-separated {', '.join(COLUMNS)}")
    decided: dict[tuple[str, str], int] = {}
    for row in reader:
        where, pair = f"{path}:{reader.line_num}", (row["query"], row["document"])
        if None in row or None in row.values():
            raise DataError(f"{where}: expected {len(reader.fieldnames or ())} comma-separated values: fix the line")
        if pair not in human:
            raise DataError(f"{where}: people never labelled query {pair[0]!r} document {pair[1]!r}: check the ids")
        if pair in decided:
            raise DataError(f"{where}: query {pair[0]!r} document {pair[1]!r} is decided above: keep one of the lines")
        if row["decision"].strip():
            decided[pair] = _label(row["decision"].strip(), top, where)
    return decided


def _label(text: str, top: int, where: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value.is_integer() and 0 <= value <= top):
        raise DataError(f"{where}: decision {text!r} is not a whole number from 0 to {top}: fix the line")
    return int(value)


def patch(qrels: Path, decided: Mapping[tuple[str, str], int], out: Path) -> int:
    """A copy of the label file with the decided labels, otherwise the same text. Returns how many labels changed."""
    changed, lines = 0, []
    for line in qrels.read_text(encoding="utf-8").splitlines(keepends=True):
        columns = line.split("\t") if "\t" in line else line.split()
        pair = (columns[0].strip(), columns[-2].strip()) if len(columns) >= 3 else ("", "")
        label = columns[-1].strip() if columns else ""
        if pair in decided and float(label) != decided[pair]:
            head, _, tail = line.rpartition(label)
            line = f"{head}{decided[pair]}{tail}"
            changed += 1
        lines.append(line)
    write_whole(out, "".join(lines))
    return changed
