"""The sections of `eval/serving_speed.py`: what was measured, kept as JSON and shown as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from prism.outputs import write_text

Section = Literal["scoring", "endpoint", "two-phase", "writing", "others"]
SECTIONS: tuple[Section, ...] = ("scoring", "endpoint", "two-phase", "writing", "others")


class Line(NamedTuple):
    """One row: a median; `ratio` is what `target` speaks about."""

    section: str
    name: str
    value: float
    unit: str
    ratio: float | None = None
    target: str = ""
    least: float | None = None
    most: float | None = None

    def over(self, values: Sequence[float]) -> Line:
        """With the spread of what it is the median of."""
        return self._replace(least=min(values), most=max(values))


class Measured(NamedTuple):
    """A section: every ratio in it is of one run."""

    command: str
    setting: str
    lines: Sequence[Line]


def read_sections(path: Path) -> dict[str, Measured]:
    """Sections measured before; none when `path` is no such file."""
    if not path.is_file():
        return {}
    stored = json.loads(path.read_bytes()).get("sections", {})
    return {
        name: Measured(section["command"], section["setting"], [Line(**line) for line in section["lines"]])
        for name, section in stored.items()
    }


def write_sections(out: Path, sections: Mapping[str, Measured]) -> None:
    stored = {
        name: {"command": found.command, "setting": found.setting, "lines": [line._asdict() for line in found.lines]}
        for name, found in sections.items()
    }
    write_text(out.with_suffix(".json"), json.dumps({"sections": stored}, indent=2) + "\n")
    write_text(out.with_suffix(".md"), markdown(sections))


def markdown(sections: Mapping[str, Measured]) -> str:
    text = ["# Serving speed", ""]
    for name in SECTIONS:
        if name in sections:
            command, setting, lines = sections[name]
            rows = [
                f"| {line.name} | {line.value:.3g} {line.unit} | {_spread(line)} | {_ratio(line)} | {line.target} |"
                for line in lines
            ]
            head = [f"## {name}", "", "| what | median | least to most | ratio | target |", "|---|---:|---:|---:|---|"]
            text += [*head, *rows, "", f"{setting}. Command: `{command}`", ""]
    return "\n".join(text)


def _ratio(line: Line) -> str:
    return "" if line.ratio is None else f"{line.ratio:.2f}"


def _spread(line: Line) -> str:
    return "" if line.least is None or line.most is None else f"{line.least:.3g} to {line.most:.3g}"
