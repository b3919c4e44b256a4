from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fakes import TEXT_TOKENS, FakeEngine
from http_endpoint import Server

from prism.errors import EngineError
from prism.reranker import Reranker
from prism.serving.stream import encode
from prism.template import PRISM, Template

QUERY = "when does the harbour freeze?"
GOOD = "p=0.9 The harbour froze in 1963. It rarely does."
FAIR = "p=0.7 Copper conducts electricity. So does silver."
BAD = "p=0.2 Nothing to see. Move on."


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: Any) -> FakeEngine:
    return FakeEngine(Template(PRISM, tiny_tokenizer))


@pytest.fixture(scope="module")
def server(engine: FakeEngine) -> Server:
    return Server(Reranker(engine.template, engine, name="fake"), request_timeout_s=5.0)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server as client:
        yield client


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        found.append((name[7:], json.loads(data[6:])))
    return found


def stream(client: httpx.Client, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    response = client.post(
        "/v1/rerank", json={"query": QUERY, "documents": [BAD, GOOD, FAIR, ""], "stream": True, **body}
    )
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    return events_of(response.text)


def test_the_ranking_then_texts_then_usage_then_done(client: httpx.Client) -> None:
    events = stream(client, return_documents=True)
    names = [name for name, _ in events]
    assert names[0] == "ranking"
    assert names[-2:] == ["usage", "done"]
    assert sorted(names[1:-2]) == ["contribution", "contribution", "evidence", "evidence"]
    ranking = events[0][1]
    assert [result["index"] for result in ranking["results"]] == [1, 2, 0, 3]
    assert [result["outcome"] for result in ranking["results"]] == ["not_written"] * 4
    assert ranking["results"][0]["document"] == {"text": GOOD}
    assert ranking["results"][3]["error"]["type"] == "invalid_document"
    assert ranking["usage"]["written_tokens"] == 0
    assert ("contribution", {"index": 1, "contribution": "It helps."}) in events
    for index in (1, 2):
        told = [name for name, data in events if data.get("index") == index]
        assert told == ["contribution", "evidence"], "a contribution does not wait for its evidence"
    assert events[-2][1]["usage"]["written_tokens"] == 2 * TEXT_TOKENS
    assert events[-1][1] == {"id": ranking["id"]}


def test_a_stream_says_what_an_answer_says(client: httpx.Client) -> None:
    body = {"query": QUERY, "documents": [BAD, GOOD, FAIR, ""]}
    whole = client.post("/v1/rerank", json=body).json()
    told = {data["index"]: data for name, data in stream(client) if name == "evidence"}
    for result in whole["results"]:
        assert result["evidence"] is None or told[result["index"]] == result
    assert {result["index"] for result in whole["results"] if result["evidence"]} == set(told)


def test_quotes_have_no_contribution(client: httpx.Client) -> None:
    events = stream(client, evidence="quoted")
    assert [name for name, _ in events] == ["ranking", "evidence", "evidence", "usage", "done"]
    assert [data["evidence_source"] for name, data in events if name == "evidence"] == ["quoted", "quoted"]
    assert events[-2][1]["usage"]["written_tokens"] == 0
    assert events[-2][1]["usage"]["prompt_tokens"] > events[0][1]["usage"]["prompt_tokens"]


def test_scores_only(client: httpx.Client) -> None:
    assert [name for name, _ in stream(client, evidence=False)] == ["ranking", "usage", "done"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"documents": []}, 400, "documents is empty"),
        ({"query": " "}, 400, "query is blank"),
        ({"top_n": -1}, 400, "top_n must be at least 1, got -1"),
        ({"threshold": 2}, 400, "threshold must lie"),
        ({"max_prompt_tokens": 3}, 400, "leave no room"),
        ({"documents": [GOOD * 20], "max_prompt_tokens": 130, "truncate": False}, 400, "truncate: false allows no cut"),
        ({"top_n": "some"}, 422, "top_n"),
    ],
)
def test_bad_input_is_refused_before_the_stream(
    client: httpx.Client, server: Server, body: dict[str, Any], status: int, words: str
) -> None:
    sent = {"query": QUERY, "documents": [GOOD, BAD], **body}
    refused = client.post("/v1/rerank", json={**sent, "stream": True})
    assert (refused.status_code, refused.headers["content-type"]) == (status, "application/json")
    assert words in refused.json()["message"]
    assert refused.json()["message"] == client.post("/v1/rerank", json=sent).json()["message"]
    assert server.app.state.admission.open == 0


def test_a_model_that_fails_before_the_ranking_is_no_stream_either(client: httpx.Client, engine: FakeEngine) -> None:
    engine.fails = EngineError("out of memory")
    try:
        failed = client.post("/v1/rerank", json={"query": QUERY, "documents": [GOOD], "stream": True})
    finally:
        engine.fails = None
    assert (failed.status_code, failed.json()["error"]["type"]) == (503, "model_unavailable")


def test_a_failure_is_the_last_event(client: httpx.Client, engine: FakeEngine) -> None:
    events = stream(client, documents=[GOOD, f"{FAIR} break"])
    assert [name for name, _ in events] == ["ranking", "error"]
    assert events[-1][1]["error"]["type"] == "model_unavailable"
    assert stream(client)[-1][0] == "done"


def test_hanging_up_frees_the_work_and_the_place(client: httpx.Client, server: Server, engine: FakeEngine) -> None:
    engine.hold, engine.cancelled = asyncio.Event(), 0
    body = {"query": QUERY, "documents": [GOOD], "stream": True}
    try:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/rerank", json=body, timeout=httpx.Timeout(30, read=0.5))
        deadline = time.monotonic() + 20
        while not (engine.cancelled and server.app.state.admission.open == 0) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        engine.hold = None
    assert (engine.cancelled, server.app.state.admission.open) == (1, 0)


def test_no_text_can_forge_an_event() -> None:
    text = "\n\nevent: done\ndata: {}\r\n\u2028\x85"
    encoded = encode("evidence", {"evidence": text}).decode()
    assert encoded.isascii()
    [(name, data)] = events_of(encoded)
    assert (name, data) == ("evidence", {"evidence": text})
