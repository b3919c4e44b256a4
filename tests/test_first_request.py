"""Every block of serve/FIRST_REQUEST.md, run against a server with mini."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_endpoint import Server

from prism.reranker import Reranker

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "serve" / "FIRST_REQUEST.md").read_text(encoding="utf-8")
PLACE = "http://127.0.0.1:8000"
BEST = "The warranty covers"
EVIDENCE = "The warranty covers defects for two years from the date of purchase."


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = Server(Reranker.load("mini"))
    with server:
        yield server.url


def block(title: str, language: str) -> str:
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found, title
    return found[1]


def run_with_clients(code: str, folder: Path) -> str:
    """What a program prints in the environment of the clients."""
    python = ROOT / ".venv-clients-a" / "bin" / "python"
    if not (python.parents[1] / ".done").exists():
        pytest.skip("no .venv-clients-a: run make clients")
    script = folder / "first.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run([python, script], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_curl(url: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl")
    command = block("curl", "bash").replace(PLACE, url)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    body: dict[str, Any] = json.loads(done.stdout)
    best = body["results"][0]
    assert (best["index"], best["verdict"], best["outcome"]) == (1, "yes", "complete")
    assert best["evidence"] == EVIDENCE
    assert "two years" in best["contribution"]
    assert best["relevance_score"] > 0.9
    assert all(other["relevance_score"] < 0.5 for other in body["results"][1:])
    assert body["model"] == "mini"


@pytest.mark.exhaustive
@pytest.mark.parametrize("title", ["cohere", "LangChain", "LlamaIndex"])
def test_python(url: str, title: str, tmp_path: Path) -> None:
    shown = run_with_clients(block(title, "python").replace(PLACE, url), tmp_path)
    best, *rest = shown.splitlines()
    assert BEST in best or best.startswith("1 "), shown
    assert rest
