"""Training records as JSONL: one pair a line, UTF-8 (DESIGN: data records)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from prism.errors import DataError
from prism.files.jsonl import Row, parse_row, unparsed, with_names, write_rows
from prism.files.lines import open_bytes
from prism.types import Example

Unparsed = tuple[str, bytes | Row | DataError]
"""A record as it lies in its file: `file:line`, and its line; of an array, the object or what is wrong with it."""


def read_examples(path: Path) -> Iterator[Example]:
    """Stream a training file. Raises DataError naming file and line at the first malformed record."""
    return map(parse_example, read_unparsed(path))


def read_unparsed(path: Path) -> Iterator[Unparsed]:
    """The records of a training file, for `parse_example`, which another process may do. Raises DataError."""
    with open_examples(path) as stream:
        for _, place, found in unparsed(stream, str(path)):
            yield place, found


@contextmanager
def open_examples(path: Path) -> Iterator[BinaryIO]:
    """A training file as bytes, unpacked. Raises DataError when there is none."""
    if not path.is_file():
        raise DataError(f"no training file {path}: check `data.files` in the recipe")
    with open_bytes(path) as stream:
        yield stream


def parse_example(record: Unparsed) -> Example:
    """Raises DataError naming file and line when the record is malformed."""
    place, found = record
    if isinstance(found, DataError):
        raise found
    row = parse_row(found, place) if isinstance(found, bytes) else found
    try:
        return Example.model_validate(with_names(row, place))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "record"
        raise DataError(f"{place}: {where}: {problem['msg']}") from error


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write a whole file atomically (a crash leaves the old one or none); returns the number of records."""
    return write_rows(path, (example.model_dump(mode="json", exclude_none=True) for example in examples)).records
