"""A report as one HTML page: light and dark, no script, nothing loaded from anywhere."""

from __future__ import annotations

import io
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from prism.reports.blocks import Block, Chart, Code, Content, Paragraph, Section, Table
from prism.reports.style import DARK, LIGHT, STYLE
from prism.text import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Should any text ever escape its escaping, the browser still runs and loads nothing."""
_LONG = 240
"""Characters from which a cell gets a height limit and scrolls."""
_SENTENCE = 40
"""Characters from which a cell keeps a width that can be read on a small screen."""


def render_html(report: Content, drawn: Mapping[str, tuple[str, str]]) -> str:
    """The page; `drawn` has each figure's SVG for light and for dark pages."""
    return clean("\n".join(_page(report, drawn)) + "\n")


def draw_svg(chart: Chart) -> str:
    """The figure as SVG in the colours of a light page; the same input gives the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {**_settings(LIGHT), "svg.hashsalt": chart.name}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=chart.size, layout="constrained")
        chart.draw(figure)
        _plain_logarithms(figure)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue().decode("utf-8")


def darkened(svg: str) -> str:
    """The same figure for a dark page: each colour of the light one replaced by its counterpart."""
    pairs = dict(zip(_colours(LIGHT), _colours(DARK), strict=True))
    return re.sub("|".join(pairs), lambda found: pairs[found.group()], svg)


def _colours(scheme: Mapping[str, Any]) -> list[str]:
    return [scheme["paper"], scheme["ink"], scheme["quiet"], scheme["rule"], *scheme["series"]]


def _plain_logarithms(figure: Figure) -> None:
    """Logarithmic axes say 1, 2, 5, 10: their usual labels are formulas, which are off."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
                axis.set_minor_formatter(NullFormatter())


def _settings(colours: Mapping[str, Any]) -> dict[str, Any]:
    from cycler import cycler

    ink, quiet, paper = colours["ink"], colours["quiet"], colours["paper"]
    return {
        "figure.facecolor": paper,
        "savefig.facecolor": paper,
        "axes.facecolor": paper,
        "axes.edgecolor": quiet,
        "axes.labelcolor": ink,
        "axes.titlecolor": ink,
        "axes.titlesize": "medium",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=colours["series"]),
        "grid.color": colours["rule"],
        "grid.linewidth": 0.7,
        "text.color": ink,
        "text.parse_math": False,  # a dollar sign is money
        "xtick.color": quiet,
        "ytick.color": quiet,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "legend.frameon": False,
        "lines.color": ink,
        "lines.linewidth": 1.8,
        "patch.edgecolor": paper,
        "font.size": 10,
        "hatch.color": ink,
        "boxplot.boxprops.color": quiet,
        "boxplot.whiskerprops.color": quiet,
        "boxplot.capprops.color": quiet,
        "boxplot.flierprops.markeredgecolor": quiet,
        "svg.fonttype": "path",
    }


# --- page ------------------------------------------------------------------------------------------------------------


def _page(report: Content, drawn: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="color-scheme" content="light dark">'
    yield f"<title>{escape(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>"
    yield f"<header><h1>{escape(report.title)}</h1>"
    if report.summary:
        yield f'<p class="lead">{escape(report.summary)}</p>'
    prism = escape(report.versions.get("prism", ""))
    yield f'<p class="made">{escape(report.date.replace("T", " ")[:16])} UTC · prism {prism}</p>'
    yield "</header>"
    if len(report.sections) > 2:
        links = (f'<li><a href="#s{i}">{escape(s.title)}</a></li>' for i, s in enumerate(report.sections))
        yield f'<nav aria-label="Contents"><ol>{"".join(links)}</ol></nav>'
    for number, section in enumerate(report.sections):
        yield from _section(f"s{number}", section, drawn, prism)
    yield '<section aria-labelledby="made"><h2 id="made">How this was made</h2>'
    yield _scrolling(f"<pre><code>{escape(report.command)}</code></pre>", "command")
    yield "<dl>" + "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in report.versions.items())
    yield "</dl></section>\n</main>\n</body>\n</html>"


def _section(anchor: str, section: Section, drawn: Mapping[str, tuple[str, str]], prism: str) -> Iterator[str]:
    yield f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(section.title)}</h2>'
    for block in section.blocks:
        yield from _block(block, drawn, prism)
    yield "</section>"


def _block(block: Block, drawn: Mapping[str, tuple[str, str]], prism: str) -> Iterable[str]:
    match block:
        case Paragraph(text, "text"):
            yield f"<p>{escape(text)}</p>"
        case Paragraph(text, kind):
            name = "Warning" if kind == "warn" else "Note"
            yield f'<aside class="{kind}" role="note"><strong>{name}.</strong> {escape(text)}</aside>'
        case Code(text, caption):
            yield f"<p class=caption>{escape(caption)}</p>" if caption else ""
            yield _scrolling(f"<pre><code>{escape(text)}</code></pre>", caption or "code")
        case Table():
            yield _scrolling(_table(block), block.caption or "table")
        case Chart():
            light, dark = (_uri(svg) for svg in drawn[block.name])
            width, height = (round(100 * inches) for inches in block.size)
            yield f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            yield f'<img src="{light}" alt="{escape(block.alt)}" width="{width}" height="{height}"></picture>'
            made = f"<code>{escape(block.command)}</code>, prism {escape(prism)}"
            yield f"<figcaption>{escape(block.caption)}<small>{made}</small></figcaption></figure>"


def _scrolling(inner: str, name: str) -> str:
    """Wide content scrolls by itself, also with the keyboard."""
    return f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">{inner}</div>'


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_classes(table.numeric[i], False)}>{escape(name)}</th>'
        for i, name in enumerate(table.columns)
    )
    body = "".join(f"<tr>{_row(table, number)}</tr>\n" for number in range(len(table.rows)))
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _row(table: Table, number: int) -> str:
    cells = []
    for column, text in enumerate(table.rows[number]):
        tag, scope = ("th", ' scope="row"') if column == 0 else ("td", "")
        inner = escape(text)
        if len(text) > _LONG:
            inner = f'<div class="long" tabindex="0">{inner}</div>'
        wide = column > 0 and len(text) > _SENTENCE
        classes = _classes(table.numeric[column], (number, column) in table.best, wide)
        cells.append(f"<{tag}{scope}{classes}>{inner}</{tag}>")
    return "".join(cells)


def _classes(numeric: bool, best: bool, wide: bool = False) -> str:
    names = [name for name, there in (("number", numeric), ("best", best), ("wide", wide)) if there]
    return f' class="{" ".join(names)}"' if names else ""


def _uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + b64encode(svg.encode()).decode()
