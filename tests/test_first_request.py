"""Every block of serve/FIRST_REQUEST.md, and those of README.md that need a server, run against one with mini."""

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
README = (ROOT / "README.md").read_text(encoding="utf-8")
PLACE = "http://127.0.0.1:8000"
BEST = "To rotate an access key"


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
    body = json.loads(done.stdout)
    assert body["results"][0]["index"] == 1
    assert body["model"] == "mini"


def test_curl_of_the_readme(url: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl")
    (command,) = [line for line in README.splitlines() if line.startswith("curl ")]
    done = subprocess.run(["bash", "-c", command.replace(PLACE, url)], capture_output=True, text=True, check=True)
    assert [result["outcome"] for result in json.loads(done.stdout)["results"]]


@pytest.mark.exhaustive
@pytest.mark.parametrize("library", ["cohere", "langchain_cohere", "llama_index"])
def test_python_of_the_readme(url: str, library: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (code,) = [text for text in blocks if re.search(rf"^(import|from) {library}\b", text, re.MULTILINE)]
    done = run_with_clients(code.replace(PLACE, url), tmp_path)
    assert "score" in done or re.search(r"^\d 0\.\d+ ", done, re.MULTILINE), done


@pytest.mark.exhaustive
@pytest.mark.parametrize("title", ["cohere", "LangChain", "LlamaIndex"])
def test_python(url: str, title: str, tmp_path: Path) -> None:
    shown = run_with_clients(block(title, "python").replace(PLACE, url), tmp_path)
    best, *rest = shown.splitlines()
    assert BEST in best or best.startswith("1 "), shown
    assert rest
