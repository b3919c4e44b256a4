"""Training records as JSONL: one pair a line, UTF-8 (DESIGN: data records)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from prism.errors import DataError
from prism.files.jsonl import read_objects, with_names, write_rows
from prism.types import Example


def read_examples(path: Path) -> Iterator[Example]:
    """Stream a training file. Raises DataError naming file and line at the first malformed record."""
    if not path.is_file():
        raise DataError(f"no training file {path}: check `data.files` in the recipe")
    for _, place, row in read_objects(path):
        if isinstance(row, DataError):
            raise row
        try:
            yield Example.model_validate(with_names(row, place))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"]) or "record"
            raise DataError(f"{place}: {where}: {problem['msg']}") from error


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write a whole file atomically (a crash leaves the old one or none); returns the number of records."""
    return write_rows(path, (example.model_dump(mode="json", exclude_none=True) for example in examples)).records
