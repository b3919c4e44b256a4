"""Training records as JSONL: one pair a line, UTF-8 (DESIGN: data records)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from prism.errors import DataError
from prism.types import Example


def read_examples(path: Path) -> Iterator[Example]:
    """Stream a training file. Raises DataError naming file and line at the first malformed record."""
    if not path.is_file():
        raise DataError(f"no training file {path}: check `data.files` in the recipe")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _parse(line, path, number)


def _parse(line: str, path: Path, number: int) -> Example:
    try:
        return Example.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "record"
        raise DataError(f"{path}:{number}: {where}: {problem['msg']}") from error


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write a whole file atomically (a crash leaves the old one or none); returns the number of records."""
    count = 0
    part = path.with_suffix(path.suffix + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w", encoding="utf-8") as out:
        for example in examples:
            record = example.model_dump(exclude_none=True)
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)
    return count
