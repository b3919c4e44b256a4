"""docs/how-to/integrations.md: its examples print what the page shows, in process and with a server's URL."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from http_endpoint import Server

from prism.integrations.adapter import Adapter
from prism.reranker import Reranker

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "how-to" / "integrations.md").read_text(encoding="utf-8")
SCORE = re.compile(r"^(0\.\d\d) ", re.MULTILINE)
FRAMEWORKS = [
    pytest.param(title, marks=pytest.mark.skipif(not find_spec(package), reason="not here: run make frameworks"))
    for title, package in {
        "LangChain": "langchain_classic",
        "LlamaIndex": "llama_index",
        "Haystack": "haystack",
    }.items()
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = Server(Reranker.load("mini"))
    with server:
        yield server.url


def example(title: str) -> tuple[str, str]:
    """The section's code, and what it prints."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    found = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", section, re.DOTALL)
    assert found, title
    return found[1], found[2]


def check(code: str, shown: str, folder: Path) -> None:
    script = folder / "example.py"
    script.write_text(code, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HAYSTACK_TELEMETRY_ENABLED": "False", "DO_NOT_TRACK": "1"}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, timeout=300, env=env, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert SCORE.sub("", done.stdout) == SCORE.sub("", shown)
    # bf16 moves a score by up to 0.02 against fp32; which of the two runs depends on the processor
    got, expected = ([float(found) for found in SCORE.findall(text)] for text in (done.stdout, shown))
    assert got == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("title", FRAMEWORKS)
def test_an_example(title: str, tmp_path: Path) -> None:
    check(*example(title), tmp_path)


@pytest.mark.parametrize("title", FRAMEWORKS)
def test_an_example_with_a_server(title: str, url: str, tmp_path: Path) -> None:
    code, shown = example(title)
    asked = re.sub(r"(?<=\b)(Prism\w+)\(content=", rf'\1(url="{url}", content=', code)
    assert asked != code
    check(asked, shown, tmp_path)


def test_every_setting_is_on_the_page() -> None:
    table = PAGE.split("\n## Settings\n")[1].split("\n## ")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == {*Adapter.model_fields, "top_k"}


def test_what_was_tried_is_what_is_pinned() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    pins = (ROOT / "tests" / "clients" / "requirements-frameworks.txt").read_text(encoding="utf-8").splitlines()
    rows = re.findall(r'"/path/to/prism\[([\w-]+)\]"` \| ([\w-]+) ([\d.]+) \|', PAGE)
    assert len(rows) == len(FRAMEWORKS)
    for extra, package, tried in rows:
        assert f"{package}=={tried}" in pins
        assert any(requirement.startswith(f"{package}>=") for requirement in extras[extra])
