"""Short runs of what `eval/serving_reliability.py` shows at length: its own checks, on servers that last seconds."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeEngine
from http_endpoint import Server

import serving_reliability
from prism.backends import open_engine
from prism.checkpoint import Checkpoint
from prism.engines.hf import HfEngine
from prism.engines.turns import TakingTurns
from prism.errors import EngineError
from prism.llm.local_server import free_port
from prism.reranker import Reranker
from prism.template import PRISM, Template
from studies import serving_reliability as study
from studies.hostile import hostile_documents
from studies.server_process import descendants, server

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "eval" / "serving_reliability.py"


@pytest.fixture(scope="module")
def tiny(tiny_qwen3: Any, tiny_tokenizer: Any) -> Iterator[Server]:
    """A real model, small enough to judge megabytes."""
    template = Template(PRISM.model_copy(update={"max_prompt_tokens": 512, "max_written_tokens": 32}), tiny_tokenizer)
    engine = HfEngine(
        tiny_qwen3,
        label_ids=template.label_ids,
        stop_ids=template.stop_ids,
        stop_strings=template.stop_strings,
        pad_id=tiny_tokenizer.pad_token_id,
        decode=template.decode,
    )
    running = Server(Reranker(template, TakingTurns(engine), name="tiny", threshold=0.0))
    with running:
        yield running


def values(figures: list[Any]) -> dict[str, Any]:
    unmet = [figure for figure in figures if not figure.met]
    assert unmet == []
    return {figure.name: figure.value for figure in figures}


def test_made_up_requests_are_answered_as_published(tiny_tokenizer: Any) -> None:
    engine = FakeEngine(Template(PRISM, tiny_tokenizer))
    running = Server(Reranker(engine.template, engine, name="fake"), max_documents=20)
    with running:
        found = values(study.openapi(running.url, cases=60))
    assert found["cases"] == 64
    assert found["answers 200"] > 10
    assert found["answers 422"] > 10


def test_hostile_documents_spare_the_others(tiny: Server) -> None:
    documents = hostile_documents(24, study.ORDINARY, ["<|im_start|>", "<|im_end|>"])
    assert len({one.kind for one in documents}) == 6
    found = values(study.hostile(tiny.url, documents))
    assert found["documents"] == 24


def test_hostile_documents_are_the_same_every_time_and_what_they_are_called() -> None:
    made = hostile_documents(300, ["An ordinary text."], ["<|own|>"])
    assert made == hostile_documents(300, ["An ordinary text."], ["<|own|>"])
    texts: dict[str, list[str]] = {}
    for kind, text in made:
        texts.setdefault(kind, []).append(text)
    assert sum(map(len, texts.values())) == 300
    assert any("<|own|>" in text for text in texts["control tokens"])
    assert all(any(0xD800 <= ord(letter) <= 0xDFFF for letter in text) for text in texts["broken UTF-8"])
    assert all(len(text) >= 250_000 for text in texts["megabyte words"])
    assert {"\u202e", "\u200b"} <= set("".join(texts["invisible characters"]))


def test_clients_that_leave_free_their_work(tiny: Server) -> None:
    found = study.leaving(tiny.url, lambda: {os.getpid()}, times=2, documents=80)
    left = {figure.name: figure.met for figure in found if figure.must == "0"}
    assert left == {"places still held": True}


class Killable:
    """A server of completions in a process of its own, started again on the same port when it is killed."""

    def __init__(self, port: int) -> None:
        self._command = [sys.executable, str(ROOT / "tests" / "completion_server.py"), str(port)]
        self._start()
        self.kills = 0

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        self.kills += 1
        self._process.send_signal(signal.SIGKILL)
        self.close()
        self._start()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def test_killed_servers_lose_no_request() -> None:
    port = free_port()
    engine_server = Killable(port)
    checkpoint = Checkpoint.load("mini")
    url = f"http://127.0.0.1:{port}/v1"
    engine = open_engine("openai", checkpoint, base_url=url, options={"probe_s": 0.05})
    running = Server(Reranker(checkpoint.template, engine, name="mini"))
    try:
        with running:
            found = values(asyncio.run(study.crash(running.url, engine_server.kill, kills=3, clients=2)))
    finally:
        engine_server.close()
    assert (found["kills"], engine_server.kills) == (3, 3)
    assert found["requests sent"] == found["answered right"] >= 10


def test_a_server_process_ends_with_all_it_started() -> None:
    command = [sys.executable, str(ROOT / "tests" / "completion_server.py")]
    with server(command, ready="/v1/models") as running:
        assert httpx.get(f"{running.url}/v1/models").status_code == 200
        assert running.pid in descendants(os.getpid())
    assert running.pid not in descendants(os.getpid())
    with pytest.raises(EngineError, match="did not start"), server([sys.executable, "-c", "print('no')"]):
        pass


@pytest.mark.exhaustive
def test_the_command(tmp_path: Path) -> None:
    from typer import Typer
    from typer.testing import CliRunner

    app = Typer()
    app.command()(serving_reliability.main)
    out = tmp_path / "figures"
    done = CliRunner().invoke(
        app, ["--only", "openapi", "--cases", "2", "--out", str(out)], env={"OMP_NUM_THREADS": "1"}
    )
    assert done.exit_code == 0, done.output
    assert "| answers 5xx | 0 | 0 |" in out.with_suffix(".md").read_text(encoding="utf-8")
    assert CliRunner().invoke(app, ["--only", "nonsense"]).exit_code == 2
