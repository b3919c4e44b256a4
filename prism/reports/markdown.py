"""A report in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from prism.reports.blocks import Block, Chart, Code, Content, Paragraph, Table


def markdown(report: Content) -> Iterable[str]:
    """Its lines."""
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
        case Paragraph(text, "text"):
            yield _inert(text)
        case Paragraph(text, kind):
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
