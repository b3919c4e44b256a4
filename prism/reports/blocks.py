"""What a report is made of: paragraphs, tables, figures and code, in sections."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from prism.errors import InputError
from prism.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | bool | None
"""One table cell. None and NaN are shown as a dash; a column of numbers only is aligned to the right."""
Draw = Callable[["Figure"], None]
"""Draws on an empty figure with matplotlib's default colours, which are those of the page. Formulas are off."""

DIGITS = 4
"""Decimals of a float in a table."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph; `kind` warn and note stand out."""

    text: str
    kind: Literal["text", "note", "warn"] = "text"


@dataclass(frozen=True, slots=True)
class Code:
    """Text shown as it is, in one font width."""

    text: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Formatted cells, row by row; the first column names the row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    """Per column: nothing but numbers."""
    best: frozenset[tuple[int, int]]
    """(row, column) of the cells to stress."""
    caption: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure, with what it shows in words and the command that made it."""

    name: str
    draw: Draw
    alt: str
    caption: str
    command: str
    size: tuple[float, float]
    """Inches, at 100 pixels each."""


Block = Paragraph | Code | Table | Chart


@dataclass(slots=True)
class Section:
    """A heading and what stands under it, in the order it was added."""

    title: str
    command: str
    blocks: list[Block] = field(default_factory=list)

    def text(self, text: str) -> None:
        """A paragraph."""
        self.blocks.append(Paragraph(one_line(text)))

    def note(self, text: str) -> None:
        """Something to keep in mind while reading."""
        self.blocks.append(Paragraph(one_line(text), "note"))

    def warn(self, text: str) -> None:
        """Something without which the figures would be misread."""
        self.blocks.append(Paragraph(one_line(text), "warn"))

    def code(self, text: str, caption: str = "") -> None:
        """A command, a record, a prompt: line breaks stay."""
        self.blocks.append(Code(printable(text), one_line(caption)))

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[Cell]],
        *,
        caption: str = "",
        digits: Mapping[str, int] | int = DIGITS,
        best: Mapping[str, Literal["max", "min"]] | None = None,
    ) -> None:
        """A table whose first column names the rows.

        `digits`: decimals of floats, for all columns or by column. `best`: columns whose largest or smallest number is
        stressed. Raises InputError for a row of another length than `columns`, or a name in neither.
        """
        self.blocks.append(_table(tuple(columns), [tuple(row) for row in rows], one_line(caption), digits, best or {}))

    def figure(
        self,
        name: str,
        draw: Draw,
        *,
        alt: str,
        caption: str = "",
        command: str | None = None,
        size: tuple[float, float] = (7.6, 4.2),
    ) -> None:
        """A figure drawn with matplotlib.

        `name` is its file name, unique in the report. `alt` says in words what can be seen; it may not be empty.
        `command` is named under the figure; the report's own by default.
        """
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise InputError(f"figure name {name!r}: expected letters, digits, dots, dashes: it becomes a file name")
        if not alt.strip():
            raise InputError(f"figure {name!r} has no alt text: say in words what it shows")
        words = self.command if command is None else command
        self.blocks.append(Chart(name, draw, one_line(alt), one_line(caption), one_line(words), size))


@dataclass(frozen=True, slots=True)
class Content:
    """A whole report: title, what it says, how it was made, and its sections."""

    title: str
    summary: str
    sections: tuple[Section, ...]
    command: str
    versions: Mapping[str, str]
    date: str


# --- cells and values ------------------------------------------------------------------------------------------------


def _table(
    columns: tuple[str, ...],
    rows: Sequence[tuple[Cell, ...]],
    caption: str,
    digits: Mapping[str, int] | int,
    best: Mapping[str, Literal["max", "min"]],
) -> Table:
    for number, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            raise InputError(f"row {number} of table {caption!r} has {len(row)} cells, expected {len(columns)}")
    named = {*best, *(digits if isinstance(digits, Mapping) else ())}
    if strange := sorted(named - set(columns)):
        raise InputError(f"table {caption!r} has no column {strange[0]!r}: expected one of {', '.join(columns)}")
    decimals = [digits.get(name, DIGITS) if isinstance(digits, Mapping) else digits for name in columns]
    values = [[_number(row[index]) for row in rows] for index in range(len(columns))]
    stressed = set()
    for name, which in best.items():
        index = columns.index(name)
        there = [value for value in values[index] if value is not None]
        top = (max if which == "max" else min)(there, default=math.nan)
        stressed |= {(row, index) for row, value in enumerate(values[index]) if value == top}
    return Table(
        columns=tuple(one_line(name) for name in columns),
        rows=tuple(tuple(_shown_cell(cell, decimals[i]) for i, cell in enumerate(row)) for row in rows),
        numeric=tuple(_is_numeric([row[index] for row in rows]) for index in range(len(columns))),
        best=frozenset(stressed),
        caption=caption,
    )


def _number(cell: Cell) -> float | None:
    value = plain(cell)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _is_numeric(cells: Sequence[Cell]) -> bool:
    """Nothing but numbers and gaps, and at least one number."""
    return any(_number(cell) is not None for cell in cells) and all(
        _number(cell) is not None or plain(cell) is None for cell in cells
    )


def _shown_cell(cell: Cell, decimals: int) -> str:
    value = plain(cell)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.{decimals}f}"
    return printable(str(value))


def plain(value: Any) -> Any:
    """What JSON can hold: records as objects, numpy arrays as lists, NaN and infinity as null."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def one_line(text: str) -> str:
    """Without line ends, and without characters that steer."""
    return " ".join(printable(text).split())
