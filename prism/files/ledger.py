"""Append-only files of finished work, a line each: whatever kills the program costs at most the line under way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from prism.errors import DataError

T = TypeVar("T")


def read_ledger(
    path: Path, read: Callable[[bytes], T], *, what: str, cure: str, say: Callable[[str], None]
) -> Iterator[T]:
    """What `read` makes of each line (ValueError, KeyError, TypeError: it is none of ours); nothing without a file.

    A last line that was cut off is dropped from the file, and `say` hears of it; any other bad one raises DataError
    with file and line, naming `what` it should be and the `cure`.
    """
    content = path.read_bytes() if path.is_file() else b""
    start = 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("cut off")
            value = read(line)
        except (ValueError, KeyError, TypeError) as error:  # pydantic's own is a ValueError
            if start + len(line) < len(content):
                raise DataError(f"{path}:{number}: not {what}: {cure}") from error
            os.truncate(path, start)
            say(f"dropped line {number} of {path.name}: it was cut off; it is done again")
            return
        yield value
        start += len(line)


def append_line(path: Path, line: str) -> None:
    """One write, on disk when this returns. Raises DataError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}: what is in it is kept; run again") from error
