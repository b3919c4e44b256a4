"""Pages of docs/: examples print what the page shows, and the tutorial for a laptop is followed line by line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SCORE = re.compile(r"(?<![\d.])0\.\d+")
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
PRINTED = re.compile(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", re.DOTALL | re.MULTILINE)
LAPTOP = DOCS / "tutorials" / "laptop.md"


class Block(NamedTuple):
    """A fenced block."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*parts) for parts in FENCE.findall(page.read_text(encoding="utf-8"))]


def examples(page: Path) -> list[tuple[str, str]]:
    """Programs of a page that are followed at once by what they print."""
    found: list[tuple[str, str]] = PRINTED.findall(page.read_text(encoding="utf-8"))
    return found


PAGES = [path for path in sorted(DOCS.rglob("*.md")) if path.name != "integrations.md" and path != LAPTOP]
EXAMPLES = [
    pytest.param(*example, id=f"{page.relative_to(DOCS).as_posix()}:{place}")
    for page in PAGES
    for place, example in enumerate(examples(page), start=1)
]


def shell(command: str, folder: Path) -> str:
    """What a command prints where `prism` and `python` are those of this environment and this checkout."""
    bin_folder = folder.parent / "bin"
    bin_folder.mkdir(exist_ok=True)
    for name, arguments in {"python": "", "prism": " -m prism"}.items():
        script = bin_folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "COLUMNS": "110"}
    env |= {"NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        ["bash", "-euc", command], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def same(got: str, shown: str) -> None:
    """Equal but for spaces at the ends of lines and for scores, which 16-bit arithmetic moves by up to 0.02."""
    plain = [re.sub(r" +$", "", SCORE.sub("0", text), flags=re.MULTILINE).strip("\n") for text in (got, shown)]
    assert plain[0] == plain[1]
    scores = [[float(found) for found in SCORE.findall(text)] for text in (got, shown)]
    assert scores[0] == pytest.approx(scores[1], abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "shown"), EXAMPLES)
def test_an_example_prints_what_is_shown(code: str, shown: str, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "example.py").write_text(code, encoding="utf-8")
    same(shell("python example.py", folder), shown)


@pytest.mark.slow
def test_the_tutorial_for_a_laptop(tmp_path: Path) -> None:
    """All but setting up, the host's configuration and the browser."""
    home = tmp_path / "home"
    home.mkdir()
    setup, *rest = blocks(LAPTOP)
    assert "prism pull mini" in setup.text
    shown: Iterator[Block] = iter(rest)
    ran = 0
    for block in shown:
        if block.title:
            (home / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            shell(block.text, home)
        elif block.language == "bash" and "--open" not in block.text:
            same(shell(block.text, home), next(shown).text)
            ran += 1
    assert ran == 4
