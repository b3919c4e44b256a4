"""Reading the pairs to label: a stream of lines, each a pair or a complaint, and each pair only once.

JSONL with `query` and `document` (and `title`, `doc_id`, `query_id`; whatever else stands there is kept), or qrels for
panels of recorded votes, which need ids but no texts. Nothing is held in memory but the line at hand.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from prism.errors import DataError
from prism.files.ids import DOCUMENT_IDS, QUERY_IDS, id_in
from prism.files.jsonl import is_array, parse_row, read_objects, require_text
from prism.files.lines import byte_lines, decode, is_gzip, is_json, open_bytes
from prism.files.trec import LabelTableReader, Qrel
from prism.text import stable_id
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


def read_label_pairs(path: Path) -> Iterator[Item]:
    """Every line that is not blank, of a file packed or not. Raises DataError when there is no such file."""
    _require_file(path)
    with _Seen() as seen:
        for item in _items(path):
            if (found := seen.first(item)) is not None:
                yield found


def _items(path: Path) -> Iterator[LabelPair | BadLine | None]:
    if not is_json(path):
        read = LineReader(path)
        with open_bytes(path) as stream:
            yield from (read(number, line) for number, line in byte_lines(stream, str(path)))
        return
    for number, where, row in read_objects(path):
        try:
            if isinstance(row, DataError):
                raise row
            yield _from_row(number, row, where)
        except DataError as error:
            yield BadLine(number, str(error).removeprefix(f"{where}: "))


def scan(path: Path) -> Iterator[tuple[bytes, Item | None]]:
    """Every line as it stands, and what it is; None for a blank line or a header. For files whose lines are records:

    raises DataError for packed files and JSON arrays, and when there is no such file.
    """
    _require_file(path)
    with path.open("rb") as file, _Seen() as seen:
        read = LineReader(path)
        if is_gzip(file):
            raise DataError(f"{path}: a packed file cannot be read in parts: unpack it, or run without --workers")
        for number, line in byte_lines(file, str(path)):
            if number == 1 and is_json(path) and is_array(line):
                raise DataError(f"{path}: a JSON array cannot be read in parts: write one object a line")
            yield line, seen.first(read(number, line))


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"no pairs {path}: expected JSONL with query and document, or qrels")


class LineReader:
    """Lines of a pairs file; its name says of which kind."""

    def __init__(self, path: Path) -> None:
        self._path, self._json, self._table = path, is_json(path), LabelTableReader()

    def __call__(self, number: int, line: bytes) -> LabelPair | BadLine | None:
        """One line: None for a blank line or a header."""
        where = f"{self._path}:{number}"
        try:
            text = decode(line, where)
            if not text.strip():
                return None
            if self._json:
                return _from_row(number, parse_row(text, where), where)
            judged = self._table.read(text, where)
            return None if judged is None else _from_judged(number, judged)
        except DataError as error:
            return BadLine(number, str(error).removeprefix(f"{where}: "))


def count_lines(path: Path) -> int:
    """How many lines a file has, for progress."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _from_row(number: int, row: dict[str, Any], where: str) -> LabelPair:
    query_id, doc_id = id_in(row, QUERY_IDS, where), id_in(row, DOCUMENT_IDS, where)
    title = row.get("title")
    if query_id and doc_id and row.get("query") is None and row.get("document") is None:
        query = text = ""  # ids alone: enough for recorded votes
    else:
        query, text = (require_text(row, name, where) for name in ("query", "document"))
    id_ = stable_id(query, text) if text else stable_id("", query_id or "", doc_id or "")
    document = Document(text=text, id=doc_id, title=None if title is None else str(title))
    return LabelPair(id_, number, query, document, query_id, doc_id, row)


def _from_judged(number: int, judged: Qrel) -> LabelPair:
    query_id, doc_id = judged.query, judged.document
    record = {"query_id": query_id, "doc_id": doc_id}
    document = Document(text="", id=doc_id)
    return LabelPair(stable_id("", query_id, doc_id), number, "", document, query_id, doc_id, record)


class _Seen:
    """Ids met so far, in a private temporary database: on disk when there are many, gone when closed."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("CREATE TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("BEGIN")

    def first(self, item: LabelPair | BadLine | None) -> Item | None:
        """The item; Repeated when its pair was there before."""
        if isinstance(item, LabelPair):
            new = self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (item.id,)).rowcount == 1
            return item if new else Repeated(item.line)
        return item

    def __enter__(self) -> _Seen:
        return self

    def __exit__(self, *_: object) -> None:
        with closing(self._db):
            self._db.execute("COMMIT")
