"""Comma-separated tables under a header: a cell in quotation marks may hold commas, line ends, and quotation marks."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prism.errors import DataError
from prism.files.lines import byte_lines, not_utf8, open_bytes

if TYPE_CHECKING:
    from _csv import Reader


class Table(NamedTuple):
    """A table at its first row."""

    columns: tuple[str, ...]
    rows: Iterator[tuple[str, dict[str, str]]]
    """(`file:line` of the row's last line, column -> cell)."""


def read_table(path: Path, needed: Sequence[str], expected: str | None = None) -> Table:
    """A table with at least the `needed` columns. Raises DataError with file and line; so do the rows.

    `expected` says in messages what the columns may be; by default the needed ones.
    """
    expected = f"comma-separated {expected or ', '.join(needed)}"
    reader = csv.reader(_lines(path), strict=True)
    columns = tuple(name.strip() for name in next(_checked(reader, path), []))
    missing = next((name for name in needed if name not in columns), None)
    if missing is not None:
        got = ", ".join(columns)[:120] or "nothing"
        raise DataError(f"{path}:1: no column {missing!r}: expected {expected}, got {got}")
    return Table(columns, _rows(reader, columns, path))


def _rows(reader: Reader, columns: Sequence[str], path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for cells in _checked(reader, path):
        if not cells:  # a blank line
            continue
        where = f"{path}:{reader.line_num}"
        if len(cells) != len(columns):
            raise DataError(f"{where}: expected {len(columns)} comma-separated values, got {len(cells)}: fix the line")
        yield where, dict(zip(columns, cells, strict=True))


def _checked(reader: Reader, path: Path) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a comma-separated table: {error}: fix the line") from error


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends: one inside quotation marks belongs to the cell."""
    with open_bytes(path) as stream:
        for number, line in byte_lines(stream, str(path)):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(line, f"{path}:{number}") from error
            yield text.removeprefix("\ufeff") if number == 1 else text
