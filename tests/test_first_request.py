"""Every block of serve/FIRST_REQUEST.md, run against a server with nano."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_endpoint import Server

from prism.reranker import Reranker

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "serve" / "FIRST_REQUEST.md").read_text(encoding="utf-8")
PLACE = "http://127.0.0.1:8000"
BEST = "To rotate an access key"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = Server(Reranker.load("nano"))
    with server:
        yield server.url


def block(title: str, language: str) -> str:
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found, title
    return found[1]


def test_curl(url: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl")
    command = block("curl", "bash").replace(PLACE, url)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    body = json.loads(done.stdout)
    assert body["results"][0]["index"] == 1
    assert body["model"] == "nano"


@pytest.mark.exhaustive
@pytest.mark.parametrize("title", ["cohere", "LangChain", "LlamaIndex"])
def test_python(url: str, title: str, tmp_path: Path) -> None:
    python = ROOT / ".venv-clients-a" / "bin" / "python"
    if not (python.parents[1] / ".done").exists():
        pytest.skip("no .venv-clients-a: run make clients")
    script = tmp_path / "first.py"
    script.write_text(block(title, "python").replace(PLACE, url), encoding="utf-8")
    done = subprocess.run([python, script], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    best, *rest = done.stdout.splitlines()
    assert BEST in best or best.startswith("1 "), done.stdout
    assert rest
