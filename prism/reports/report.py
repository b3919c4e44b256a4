"""Reports of evaluation scripts: one HTML file that needs no network, the same in Markdown, and the figures as JSON.

    report = Report("BEIR: ranking", command=command_line(), versions=versions("ir-measures", "torch"))
    report.lead("nDCG@10 of four rerankers over the first 100 candidates of BM25.")

    section = report.section("SciFact")
    section.warn("Only the first 50 queries: the intervals are wide.")
    section.text("Every query in the qrels counts, answered or not.")
    section.table(
        ["model", "nDCG@10", "ms / query"],
        [["bm25", 0.6758, 2.1], ["mini", 0.7012, 340.0]],
        caption="Quality and latency",
        digits={"ms / query": 0},               # floats have 4 decimals unless said otherwise
        best={"nDCG@10": "max", "ms / query": "min"},
    )

    def draw(figure: Figure) -> None:            # matplotlib's default colours change with the page
        axes = figure.subplots()
        axes.bar(["bm25", "mini"], [0.6758, 0.7012])
        axes.set_ylabel("nDCG@10")

    section.figure("ndcg", draw, alt="Bars: bm25 0.676, mini 0.701.", caption="nDCG@10 by model")
    section.code("q1 Q0 d7 1 3 bm25", caption="A line of the run")
    report.write(Path("eval/results/beir_qa"), {"datasets": {"scifact": {"bm25": {"nDCG@10": 0.6758}}}})

`write` makes `report.html`, `report.md`, `report.json` and, for the Markdown, `figures/<name>.svg`, each whole or not
at all. `report.json` is what was passed to it plus title, command, versions and date. All text is shown as text:
whatever markup a document brings is escaped.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from prism.errors import InputError
from prism.text import printable
from prism.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | bool | None
"""One table cell. None and NaN are shown as a dash; a column of numbers only is aligned to the right."""
Draw = Callable[["Figure"], None]
"""Draws on an empty figure with matplotlib's default colours, which are those of the page. Formulas are off."""

DIGITS = 4
"""Decimals of a float in a table."""
_SECRET = re.compile(r"--[\w-]*(key|secret|password|auth|token)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Text:
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


Block = Text | Code | Table | Chart


@dataclass(slots=True)
class Section:
    """A heading and what stands under it, in the order it was added."""

    title: str
    command: str
    blocks: list[Block] = field(default_factory=list)

    def text(self, text: str) -> None:
        """A paragraph."""
        self.blocks.append(Text(_one_line(text)))

    def note(self, text: str) -> None:
        """Something to keep in mind while reading."""
        self.blocks.append(Text(_one_line(text), "note"))

    def warn(self, text: str) -> None:
        """Something without which the figures would be misread."""
        self.blocks.append(Text(_one_line(text), "warn"))

    def code(self, text: str, caption: str = "") -> None:
        """A command, a record, a prompt: line breaks stay."""
        self.blocks.append(Code(printable(text), _one_line(caption)))

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
        self.blocks.append(_table(tuple(columns), [tuple(row) for row in rows], _one_line(caption), digits, best or {}))

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
        self.blocks.append(Chart(name, draw, _one_line(alt), _one_line(caption), _one_line(words), size))


class Report:
    """Title, how it was made, and sections; written by `write`."""

    def __init__(self, title: str, *, command: str, versions: Mapping[str, str]) -> None:
        self.title = _one_line(title)
        self.command = _one_line(command)
        self.versions = {name: _one_line(number) for name, number in versions.items()}
        self.date = datetime.now(UTC).isoformat(timespec="seconds")
        self.summary = ""
        self.sections: list[Section] = []

    def lead(self, text: str) -> None:
        """What the report says, in a sentence or two under the title."""
        self.summary = _one_line(text)

    def section(self, title: str) -> Section:
        """Starts a section; fill it with `text`, `table`, `figure`, `note`, `warn` and `code`."""
        section = Section(_one_line(title), self.command)
        self.sections.append(section)
        return section

    def write(self, out: Path, data: Mapping[str, Any]) -> Path:
        """Write all files into `out`, made if need be; returns the path of `report.html`.

        `data` is the body of `report.json`: records, numpy numbers and arrays are fine; NaN becomes null. Raises
        InputError when `out` cannot be written, or two figures share a name.
        """
        from prism.reports.page import darkened, draw_svg, render_html

        charts = [block for section in self.sections for block in section.blocks if isinstance(block, Chart)]
        names = [chart.name for chart in charts]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"two figures are named {twice!r}: give each its own name")
        light = {chart.name: draw_svg(chart) for chart in charts}
        drawn = {name: (svg, darkened(svg)) for name, svg in light.items()}
        made = {"title": self.title, "command": self.command, "versions": self.versions, "date": self.date}
        files = {f"figures/{name}.svg": svg for name, svg in light.items()}
        files["report.html"] = render_html(self, drawn)
        files["report.md"] = "\n".join(_markdown(self)) + "\n"
        files["report.json"] = json.dumps(plain({**made, **data}), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            for name, text in files.items():
                write_whole(out / name, text)
        except OSError as error:
            raise InputError(f"cannot write the report into {out} ({error.strerror}): choose another --out") from error
        return out / "report.html"


# --- what was run ----------------------------------------------------------------------------------------------------


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command this program was started with, fit for a report: no path of this machine, no key."""
    given = sys.argv if arguments is None else arguments
    installed = bool(given) and Path(given[0]).name == "prism"
    words, secret = (["prism"] if installed else ["python"]), False
    for word in given[1:] if installed else given:
        name, equals, value = word.partition("=")
        if secret:
            words.append("***")
        elif equals and name.startswith("-"):
            words.append(f"{name}={'***' if _SECRET.match(name) else shown(value)}")
        else:
            words.append(shown(word))
        secret = not equals and bool(_SECRET.match(word))
    return shlex.join(words)


def shown(path: str | Path) -> str:
    """A path as given if relative, relative to here if near, else its last part; one behind `kind:` likewise."""
    kind, colon, rest = str(path).partition(":")
    if colon and kind.isascii() and kind.replace("-", "").isalpha() and Path(rest).is_absolute() and rest[:2] != "//":
        return f"{kind}:{shown(rest)}"
    if not Path(path).is_absolute():
        return str(path)
    near = Path(path).is_relative_to(Path.cwd().parent) and Path.cwd().parent != Path(Path.cwd().anchor)
    return os.path.relpath(path) if near else Path(path).name


def versions(*distributions: str) -> dict[str, str]:
    """Python, Prism, and those of the named distributions that are installed."""
    found = {"python": sys.version.split()[0], "prism": __version__}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_whole(path: Path, text: str) -> None:
    """All or nothing: a reader never sees half a file. Folders are made; lone surrogates become question marks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(text.encode("utf-8", errors="replace"))
    part.replace(path)


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
        columns=tuple(_one_line(name) for name in columns),
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


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


# --- Markdown --------------------------------------------------------------------------------------------------------


def _markdown(report: Report) -> Iterable[str]:
    yield from (f"# {_inert(report.title)}", "")
    if report.summary:
        yield from (_inert(report.summary), "")
    for section in report.sections:
        yield from (f"## {_inert(section.title)}", "")
        for block in section.blocks:
            yield from _markdown_block(block)
            yield ""
    yield from ("## How this was made", "", *_fenced(report.command), "")
    names = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    yield f"{report.date}; {_inert(names)}."


def _markdown_block(block: Block) -> Iterable[str]:
    match block:
        case Text(text, "text"):
            yield _inert(text)
        case Text(text, kind):
            yield f"> **{'Warning' if kind == 'warn' else 'Note'}:** {_inert(text)}"
        case Code(text, caption):
            yield from (*_caption(caption), *_fenced(text))
        case Table():
            yield from (*_caption(block.caption), *_markdown_table(block))
        case Chart():
            yield from (f"![{_inert(block.alt)}](figures/{block.name}.svg)", "")
            yield f"{_inert(block.caption)} (`{block.command.replace('`', chr(39))}`)".strip()


def _caption(caption: str) -> Iterable[str]:
    return (f"**{_inert(caption)}**", "") if caption else ()


def _markdown_table(table: Table) -> Iterable[str]:
    yield "| " + " | ".join(_inert(name) for name in table.columns) + " |"
    yield "|" + "".join("---:|" if numeric else "---|" for numeric in table.numeric)
    for row, cells in enumerate(table.rows):
        texts = [_inert(" ".join(cell.split())) for cell in cells]
        shown = [f"**{text}**" if (row, column) in table.best else text for column, text in enumerate(texts)]
        yield "| " + " | ".join(shown) + " |"


def _fenced(text: str) -> Iterable[str]:
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return (fence, text, fence)


def _inert(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no link, no heading, no cell border."""
    escaped = re.sub(r"([\\`*\[\]<>|~])", r"\\\1", text)
    escaped = re.sub(r"^([#+=-])", r"\\\1", escaped)
    return re.sub(r"^(\d+)([.)])(?=\s)", r"\1\\\2", escaped)
