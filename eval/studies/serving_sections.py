"""The sections of `eval/serving_speed.py`: what was measured, kept as JSON and shown as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from prism.outputs import write_text

Section = Literal["scoring", "endpoint", "two-phase", "writing", "others", "growth"]
SECTIONS: tuple[Section, ...] = ("scoring", "endpoint", "two-phase", "writing", "others", "growth")


class Line(NamedTuple):
    """One row; `ratio` is what `target` speaks about."""

    section: str
    name: str
    value: float
    unit: str
    ratio: float | None = None
    target: str = ""


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
                f"| {line.name} | {line.value:.3g} {line.unit} | {'' if line.ratio is None else f'{line.ratio:.2f}'} |"
                f" {line.target} |"
                for line in lines
            ]
            head = [f"## {name}", "", "| what | figure | ratio | target |", "|---|---:|---:|---|"]
            text += [*head, *rows, "", f"{setting}. Command: `{command}`", ""]
    return "\n".join(text)
