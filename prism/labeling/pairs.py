"""Reading the pairs to label: a stream of lines, each a pair or a complaint, and each pair only once.

JSONL with `query` and `document` (and `title`, `doc_id`, `query_id`; whatever else stands there is kept), or qrels for
panels of recorded votes, which need ids but no texts. Nothing is held in memory but the line at hand.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from prism.errors import DataError
from prism.text import clean, stable_id
from prism.types import Document


class LabelPair(NamedTuple):
    """One pair to label."""

    id: str
    """Stable hash of query and document; of their ids where there are no texts."""
    line: int
    query: str
    document: Document
    query_id: str | None
    doc_id: str | None
    record: dict[str, Any]
    """The line as it was read."""

    @property
    def has_text(self) -> bool:
        return bool(self.query and self.document.text)


class BadLine(NamedTuple):
    """A line that is not a pair."""

    line: int
    problem: str


class Repeated(NamedTuple):
    """A pair that stood further up."""

    line: int


Item = LabelPair | BadLine | Repeated
"""What a line is."""


def read_pairs(path: Path) -> Iterator[Item]:
    """Every line that is not blank. Raises DataError when there is no such file."""
    return (item for _, item in scan(path) if item is not None)


def scan(path: Path) -> Iterator[tuple[bytes, Item | None]]:
    """Every line as it stands, and what it is; None for a blank line or a header."""
    if not path.is_file():
        raise DataError(f"no pairs {path}: expected JSONL with query and document, or qrels")
    with path.open("rb") as file, _Seen() as seen:
        for number, line in enumerate(file, start=1):
            pair = parse_line(path, number, line)
            if isinstance(pair, LabelPair) and not seen.add(pair.id):
                yield line, Repeated(number)
            else:
                yield line, pair


def parse_line(path: Path, number: int, line: bytes) -> LabelPair | BadLine | None:
    """One line of a pairs file; its name says of which kind. None for a blank line or a header."""
    if not line.strip():
        return None
    parse = _from_json if path.suffix in (".jsonl", ".json", ".ndjson") else _from_qrels
    try:
        return parse(number, line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError:
        return BadLine(number, "not UTF-8 text")


def count_lines(path: Path) -> int:
    """How many lines a file has, for progress."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _from_json(number: int, line: str) -> LabelPair | BadLine:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadLine(number, f"not JSON: {str(error)[:120]}")
    if not isinstance(record, dict):
        return BadLine(number, f"expected an object with query and document, got {type(record).__name__}")
    names = ("query_id", "doc_id", "title")
    query_id, doc_id, title = (None if record.get(name) is None else clean(str(record[name])) for name in names)
    texts = []
    for name in ("query", "document"):
        text = record.get(name)
        if text is None and query_id and doc_id and not ("query" in record or "document" in record):
            text = ""  # ids alone: enough for recorded votes
        elif not isinstance(text, str):
            return BadLine(number, f"expected a string in {name}, got {type(text).__name__}")
        elif not text.strip():
            return BadLine(number, f"{name} is blank")
        texts.append(text)
    query, text = texts
    id_ = stable_id(query, text) if text else stable_id("", query_id or "", doc_id or "")
    document = Document(text=text, id=doc_id, title=title)
    return LabelPair(id_, number, query, document, query_id, doc_id, record)


def _from_qrels(number: int, line: str) -> LabelPair | BadLine | None:
    columns = line.split()
    if columns[:3] == ["query-id", "corpus-id", "score"]:
        return None
    if len(columns) not in (3, 4):
        return BadLine(
            number, f"expected `query 0 document label` or `query document label`, got {len(columns)} columns"
        )
    query_id, doc_id = columns[0], columns[-2]
    record = {"query_id": query_id, "doc_id": doc_id}
    return LabelPair(
        stable_id("", query_id, doc_id), number, "", Document(text="", id=doc_id), query_id, doc_id, record
    )


class _Seen:
    """Ids met so far, in a private temporary database: on disk when there are many, gone when closed."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("CREATE TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("BEGIN")

    def add(self, id_: str) -> bool:
        """False when it was there."""
        return self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (id_,)).rowcount == 1

    def __enter__(self) -> _Seen:
        return self

    def __exit__(self, *_: object) -> None:
        with closing(self._db):
            self._db.execute("COMMIT")
