"""The MCP server, asked by the SDK's own client: over stdio, over streamable HTTP, in both ages of the protocol."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pytest
from app_thread import AppThread
from fakes import FakeEngine
from mcp import Client, StdioServerParameters
from mcp_types import CallToolResult
from typer.main import get_command

from prism import cli
from prism.errors import CheckpointError, EngineError
from prism.mcp_server.folder import Folder
from prism.mcp_server.server import create_server
from prism.reranker import Reranker
from prism.template import PRISM, Template

ROOT = Path(__file__).parents[1]
QUERY = "when does the harbour freeze?"
GOOD = "p=0.9 The harbour froze in 1963. It rarely does."
FAIR = "p=0.7 Copper conducts electricity. So does silver."
BAD = "p=0.2 Nothing to see. Move on."


class McpHttp:
    """The server over streamable HTTP on a free port, in a thread."""

    def __init__(self, reranker: Future[Reranker], folder: Folder | None) -> None:
        app = create_server(reranker, folder).streamable_http_app(host="127.0.0.1")
        self._served = AppThread(app)
        self.url = f"{self._served.url}/mcp"

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        assert self._served.loop is not None
        return self._served.loop

    def __enter__(self) -> McpHttp:
        self._served.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._served.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    (root / "notes").mkdir()
    (root / "notes" / "lindau.md").write_text(GOOD, encoding="utf-8")
    (root / "notes" / "metals.txt").write_text(FAIR, encoding="utf-8")
    (root / "notes" / "photo.png").write_bytes(b"\x89PNG\0\0")
    return root


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: Any) -> FakeEngine:
    return FakeEngine(Template(PRISM, tiny_tokenizer))


@pytest.fixture(scope="module")
def server(engine: FakeEngine, folder: Path) -> Iterator[McpHttp]:
    loaded: Future[Reranker] = Future()
    loaded.set_result(Reranker(engine.template, engine, name="fake"))
    with McpHttp(loaded, Folder(folder)) as server:
        yield server


@pytest.fixture(params=["auto", "legacy"])
def mode(request: pytest.FixtureRequest) -> str:
    """The protocol of 2026 and the handshake of the years before."""
    return str(request.param)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def limited() -> Any:
        return await asyncio.wait_for(work, 120)

    return asyncio.run(limited())


def ask(url: str, tool: str, mode: str = "auto", **arguments: Any) -> CallToolResult:
    async def work() -> CallToolResult:
        async with Client(url, mode=mode) as client:
            return await client.call_tool(tool, {"query": QUERY, **arguments})

    answer = run(work())
    assert isinstance(answer, CallToolResult)
    return answer


def said(answer: CallToolResult) -> str:
    return "\n".join(block.text for block in answer.content if block.type == "text")


def structured(answer: CallToolResult) -> Any:
    assert not answer.is_error, said(answer)
    return answer.structured_content


def test_what_a_client_is_told(server: McpHttp, mode: str) -> None:
    async def work() -> Any:
        async with Client(server.url, mode=mode) as client:
            return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in run(work())}
    assert set(tools) == {"rerank", "read_evidence"}
    for tool in tools.values():
        assert tool.input_schema["required"] == ["query"]
        assert "ctx" not in tool.input_schema["properties"]
        assert tool.annotations.read_only_hint
        assert tool.description
    assert set(tools["rerank"].output_schema["required"]) >= {"documents", "skipped", "warnings"}
    assert set(tools["read_evidence"].output_schema["required"]) >= {"sources", "left_out", "tokens"}


def test_rerank(server: McpHttp, mode: str) -> None:
    documents = [BAD, {"text": GOOD, "id": "lindau", "title": "Lindau"}, " "]
    answer = ask(server.url, "rerank", mode, documents=documents, paths=["notes/metals.txt"])
    made = structured(answer)
    assert [(one["rank"], one["index"], one["id"], one["verdict"]) for one in made["documents"]] == [
        (1, 1, "lindau", "yes"),
        (2, 3, "notes/metals.txt", "yes"),
        (3, 0, None, "no"),
        (4, 2, None, None),
    ]
    assert made["documents"][0]["score"] == pytest.approx(0.9)
    assert "blank" in made["documents"][3]["error"]
    assert said(answer).split("\n")[:3] == [
        "[1] 0.900 yes Lindau · lindau",
        "[2] 0.700 yes notes/metals.txt",
        "[3] 0.200 no document 0",
    ]


def test_read_evidence(server: McpHttp, mode: str) -> None:
    answer = ask(server.url, "read_evidence", mode, documents=[BAD], paths=["notes"])
    made = structured(answer)
    assert [(one["source"], one["id"]) for one in made["sources"]] == [(1, "notes/lindau.md"), (2, "notes/metals.txt")]
    first = made["sources"][0]
    assert first["evidence"] == "p=0.9 The harbour froze in 1963."
    assert [GOOD[span["start"] : span["end"]] for span in first["spans"]] == [first["evidence"]]
    assert made["irrelevant"] == 1
    assert made["skipped"] == [{"path": "notes/photo.png", "reason": "is binary: expected text"}]
    text, notes = (block.text for block in answer.content)
    assert text.startswith('[1] id="notes/lindau.md"\nContribution: It helps.\n> p=0.9 The harbour froze in 1963.\n')
    assert notes == "skipped: notes/photo.png (is binary: expected text)"


def test_budgets(server: McpHttp, engine: FakeEngine) -> None:
    whole = structured(ask(server.url, "read_evidence", documents=[GOOD, FAIR]))
    assert len(whole["sources"]) == 2
    answer = ask(server.url, "read_evidence", documents=[GOOD, FAIR], max_tokens=whole["tokens"] - 1)
    made = structured(answer)
    assert [one["index"] for one in made["sources"]] == [0]
    assert [(one["index"], one["reason"]) for one in made["left_out"]] == [(1, "budget")]
    assert f"left out: document 1 (budget, {made['left_out'][0]['tokens']} tokens)" in said(answer)
    text = answer.content[0].text
    assert engine.template.count(text) == made["tokens"] < whole["tokens"]
    small = ask(server.url, "read_evidence", documents=[GOOD, FAIR], max_tokens=5)
    assert small.is_error
    assert "holds none of" in said(small)
    assert "raise max_tokens" in said(small)


def test_nothing_relevant_is_no_error(server: McpHttp) -> None:
    answer = ask(server.url, "read_evidence", documents=[BAD])
    assert structured(answer)["sources"] == []
    assert said(answer) == "no evidence: none of 1 documents got a yes (the best score is 0.200)"


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("nothing to judge", {}),
        ("query is blank", {"query": " ", "documents": ["a"]}),
        ("threshold: Input should be less than or equal to 1, got '2'", {"documents": ["a"], "threshold": 2}),
        ("documents.0.text: Field required", {"documents": [{"title": "no text"}]}),
        ("max_tokens: Input should be greater than or equal to 1", {"documents": ["a"], "max_tokens": 0}),
        ("leads out of the root", {"paths": ["../secret.txt"]}),
        ("leads out of the root", {"paths": ["/etc/passwd"]}),
        ("is binary", {"paths": ["notes/photo.png"]}),
        ("is not there", {"paths": ["notes/none.txt"]}),
    ],
)
def test_what_is_wrong_with_a_call_is_a_tool_error(
    server: McpHttp, mode: str, words: str, arguments: dict[str, Any]
) -> None:
    answer = ask(server.url, "read_evidence", mode, **arguments)
    assert answer.is_error
    assert words in said(answer)
    assert "\n" not in said(answer)


def test_a_model_that_fails_and_one_that_does_not_load(server: McpHttp, engine: FakeEngine) -> None:
    engine.fails = EngineError("the device is gone")
    try:
        answer = ask(server.url, "rerank", documents=[GOOD])
    finally:
        engine.fails = None
    assert answer.is_error
    assert "the device is gone" in said(answer)
    unloaded: Future[Reranker] = Future()
    unloaded.set_exception(CheckpointError("no checkpoint 'x'"))
    with McpHttp(unloaded, None) as other:
        answer = ask(other.url, "rerank", documents=[GOOD])
        assert answer.is_error
        assert "no checkpoint 'x'" in said(answer)
        assert "start it with --root" in said(ask(other.url, "rerank", paths=["a"]))


def test_progress(server: McpHttp, mode: str) -> None:
    told: list[tuple[float, float | None, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total, message))

    async def work() -> Any:
        async with Client(server.url, mode=mode) as client:
            arguments = {"query": QUERY, "documents": [BAD, GOOD, FAIR]}
            return await client.call_tool("read_evidence", arguments, progress_callback=note)

    structured(run(work()))
    assert [(progress, total) for progress, total, _ in told] == [(0, 3), (3, 5), (4, 5), (5, 5)]
    assert told[1][2] == "ranked 3 documents, 2 with a yes"


def test_a_cancelled_call_stops_the_model(server: McpHttp, engine: FakeEngine, mode: str) -> None:
    engine.hold, before, scored = asyncio.Event(), engine.cancelled, len(engine.calls)

    async def work() -> Any:
        async with Client(server.url, mode=mode) as client:
            call = asyncio.create_task(client.call_tool("rerank", {"query": QUERY, "documents": [GOOD]}))
            while len(engine.calls) == scored:
                await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            while engine.cancelled == before:
                await asyncio.sleep(0.01)
            engine.hold = None
            return await client.call_tool("rerank", {"query": QUERY, "documents": [GOOD]})

    try:
        assert structured(run(work()))["documents"][0]["verdict"] == "yes"
    finally:
        engine.hold = None
    assert engine.cancelled == before + 1


def test_pages_of_other_sites_are_refused(server: McpHttp) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    headers = {"Accept": "application/json, text/event-stream"}
    for more, status in (({"Host": "evil.example"}, 421), ({"Origin": "http://evil.example"}, 403)):
        assert httpx.post(server.url, json=body, headers=headers | more).status_code == status


def test_the_configurations_of_the_docs_start_the_command() -> None:
    page = (ROOT / "docs" / "how-to" / "mcp.md").read_text(encoding="utf-8")
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    servers = [block.get("mcpServers", block.get("servers"))["prism"] for block in blocks]
    commands = [[server["command"], *server["args"]] for server in servers if "command" in server]
    commands += [
        shlex.split(line)[shlex.split(line).index("--") + 1 :] for line in re.findall(r"claude mcp add .*", page)
    ]
    assert len(commands) == 5
    for program, *arguments in commands:
        assert program.endswith("/bin/prism")
        assert arguments[0] == "mcp"
        group = get_command(cli.app)
        _, command, rest = group.resolve_command(group.make_context("prism", [], resilient_parsing=True), arguments)
        assert command.make_context("mcp", rest).params["root"] is not None
    assert [server["url"] for server in servers if "url" in server] == ["http://127.0.0.1:8765/mcp"]


# --- the command, with a real model ----------------------------------------------------------------------------------


def command(tiny_checkpoint: Path, folder: Path, *more: str) -> list[str]:
    options = ["--model", str(tiny_checkpoint), "--template", "prism", "--dtype", "float32", "--no-self-test"]
    return ["-m", "prism", "mcp", "--root", str(folder), "--evidence", "quoted", *options, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


async def use(client: Client) -> None:
    """Both tools, in good and in bad; a call given up; and a call after it."""
    arguments: dict[str, Any] = {"query": QUERY, "paths": ["notes"], "threshold": 0}
    ranked = await client.call_tool("rerank", arguments)
    assert not ranked.is_error, said(ranked)
    assert {one["id"] for one in ranked.structured_content["documents"]} == {"notes/lindau.md", "notes/metals.txt"}
    read = await client.call_tool("read_evidence", arguments)
    assert not read.is_error, said(read)
    for source in read.structured_content["sources"]:
        assert source["evidence"]
        assert source["evidence"] in {"lindau": GOOD, "metals": FAIR}[source["id"][6:12]]
    assert (await client.call_tool("rerank", {"query": QUERY, "paths": ["../x"]})).is_error
    told: list[float] = []
    going = asyncio.Event()

    async def note(progress: float, *_: object) -> None:
        told.append(progress)
        if progress:
            going.set()

    long = {"query": QUERY, "documents": [f"{n} {GOOD * 40}" for n in range(400)]}
    call = asyncio.create_task(client.call_tool("rerank", long, progress_callback=note))
    await going.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert told[0] == 0 < told[1] < 400, "progress is told while documents are scored"
    assert not (await client.call_tool("rerank", arguments)).is_error


@pytest.mark.slow
def test_over_stdio(tiny_checkpoint: Path, folder: Path, mode: str) -> None:
    parameters = StdioServerParameters(
        command=sys.executable, args=command(tiny_checkpoint, folder), env=environment(), cwd=ROOT
    )

    async def work() -> None:
        async with Client(parameters, mode=mode) as client:
            await use(client)

    run(work())


@pytest.mark.slow
def test_over_http(tiny_checkpoint: Path, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = command(tiny_checkpoint, folder, "--transport", "http", "--port", str(port))
    process = subprocess.Popen(
        [sys.executable, *arguments], env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)

        async def work() -> None:
            async with Client(f"http://127.0.0.1:{port}/mcp") as client:
                await use(client)

        run(work())
    finally:
        process.terminate()
        out, _ = process.communicate(timeout=30)
    assert out == b""
