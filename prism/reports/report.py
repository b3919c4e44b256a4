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
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prism.errors import InputError
from prism.outputs import write_text
from prism.reports.blocks import Chart, Content, Section, one_line, plain
from prism.reports.markdown import markdown
from prism.reports.page import darkened, draw_svg, render_html
from prism.version import __version__

_SECRET = re.compile(r"--[\w-]*(key|secret|password|auth|token)$", re.IGNORECASE)


class Report:
    """Title, how it was made, and sections; written by `write`."""

    def __init__(self, title: str, *, command: str, versions: Mapping[str, str]) -> None:
        self.title = one_line(title)
        self.command = one_line(command)
        self.versions = {name: one_line(number) for name, number in versions.items()}
        self.date = datetime.now(UTC).isoformat(timespec="seconds")
        self.summary = ""
        self.sections: list[Section] = []

    def lead(self, text: str) -> None:
        """What the report says, in a sentence or two under the title."""
        self.summary = one_line(text)

    def section(self, title: str) -> Section:
        """Starts a section; fill it with `text`, `table`, `figure`, `note`, `warn` and `code`."""
        section = Section(one_line(title), self.command)
        self.sections.append(section)
        return section

    def write(self, out: Path, data: Mapping[str, Any]) -> Path:
        """Write all files into `out`, made if need be; returns the path of `report.html`.

        `data` is the body of `report.json`: records, numpy numbers and arrays are fine; NaN becomes null. Raises
        InputError when `out` cannot be written, or two figures share a name; DataError when the disk is full.
        """
        charts = [block for section in self.sections for block in section.blocks if isinstance(block, Chart)]
        names = [chart.name for chart in charts]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"two figures are named {twice!r}: give each its own name")
        light = {chart.name: draw_svg(chart) for chart in charts}
        drawn = {name: (svg, darkened(svg)) for name, svg in light.items()}
        made = {"title": self.title, "command": self.command, "versions": self.versions, "date": self.date}
        files = {f"figures/{name}.svg": svg for name, svg in light.items()}
        content = Content(self.title, self.summary, tuple(self.sections), self.command, self.versions, self.date)
        files["report.html"] = render_html(content, drawn)
        files["report.md"] = "\n".join(markdown(content)) + "\n"
        files["report.json"] = json.dumps(plain({**made, **data}), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        for name, text in files.items():
            write_text(out / name, text)
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
