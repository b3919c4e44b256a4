from __future__ import annotations

import asyncio
import json
import logging
import math
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes import TEXT_TOKENS, FakeEngine
from http_endpoint import Server

from prism.answering import Answering
from prism.engines.base import LabelLogits, ScoreOutput, WritePiece, WriteRequest
from prism.engines.turns import TakingTurns, Turn, in_turns, on_scored, urgency
from prism.errors import EngineError, InputError
from prism.reranker import Reranker
from prism.scoring import Calibration
from prism.serving.app import create_app
from prism.serving.http_errors import Refused
from prism.serving.limits import Admission, Keys
from prism.serving.observability import JsonLines
from prism.template import PRISM, Template

QUERY = "when does the harbour freeze?"
GOOD = "p=0.9 The harbour froze in 1963. It rarely does."
BAD = "p=0.2 Nothing to see. Move on."
BODY = {"query": QUERY, "documents": [GOOD, BAD]}


@pytest.fixture
def engine(tiny_tokenizer: Any) -> FakeEngine:
    return FakeEngine(Template(PRISM, tiny_tokenizer))


def served(engine: FakeEngine, **limits: Any) -> Server:
    return Server(Reranker(engine.template, engine, name="fake"), **limits)


# --- the queue -------------------------------------------------------------------------------------------------------


def test_one_too_many_is_told_when_to_come_back(engine: FakeEngine) -> None:
    server = served(engine, max_requests=2)
    with server as client:
        engine.hold = asyncio.Event()
        threads = [threading.Thread(target=client.post, args=("/v1/rerank",), kwargs={"json": BODY}) for _ in range(2)]
        for thread in threads:
            thread.start()
        while len(engine.calls) < 2:  # both are seated
            time.sleep(0.01)
        refused = client.post("/v1/rerank", json=BODY)
        voyage = client.post("/v1/rerank", json={**BODY, "top_k": None})
        figures = client.get("/metrics").text
        assert client.get("/health").status_code == 200
        hold, engine.hold = engine.hold, None
        server.call_soon(hold.set)
        for thread in threads:
            thread.join()
        assert client.post("/v1/rerank", json=BODY).status_code == 200
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "too_many_requests"
    assert set(voyage.json()) == {"detail", "message"}
    assert "prism_requests_open 2.0" in figures
    assert 'prism_requests_total{dialect="common",status="429"} 1.0' in figures


def test_places_are_given_back_once() -> None:
    now = [0.0]
    admission = Admission(1, clock=lambda: now[0])
    place, other = admission.enter(), admission.enter()
    place.claim(0)
    with pytest.raises(Refused, match="1 requests are under way"):
        other.claim(0)
    other.leave()
    now[0] = 101.0
    place.leave()
    place.leave()
    assert admission.open == 0
    assert admission.retry_after_s() == 21  # 1 s to begin with; 1 + 0.2 * (101 - 1)
    admission.draining = True
    with pytest.raises(Refused, match="shutting down"):
        admission.enter()


def test_the_least_urgent_and_latest_is_given_up_first() -> None:
    admission = Admission(3)
    places = [admission.enter() for _ in range(4)]
    for place, priority in zip(places, (5, 9, 9), strict=False):
        place.claim(priority)
    places[3].claim(7)
    assert [place.given_up for place in places] == [False, False, True, False]
    urgent, equal, kept = (admission.enter() for _ in range(3))
    urgent.claim(-1)
    assert places[1].given_up
    with pytest.raises(Refused, match="3 requests are under way"):
        equal.claim(7)  # of 5, 7 and -1 none is less urgent
    places[3].keep()
    kept.claim(0)
    assert (places[0].given_up, places[3].given_up) == (True, False), "what has begun to answer keeps its place"


def test_the_door_is_narrow() -> None:
    admission = Admission(1)
    for _ in range(9):
        admission.enter()
    with pytest.raises(Refused, match="1 requests are under way"):
        admission.enter()


def test_a_more_urgent_request_takes_the_place_of_another(engine: FakeEngine) -> None:
    server = served(engine, max_requests=1)
    with server as client, ThreadPoolExecutor(1) as pool:
        engine.hold = asyncio.Event()
        engine.cancelled = 0
        slow = pool.submit(client.post, "/v1/rerank", json={**BODY, "priority": 3})
        while not engine.calls:
            time.sleep(0.01)
        refused = client.post("/v1/rerank", json={**BODY, "priority": "3"})
        assert (refused.status_code, refused.json()["message"][:24]) == (429, "1 requests are under way")
        hold, engine.hold = engine.hold, None
        urgent = client.post("/v1/rerank", json=BODY)
        assert urgent.status_code == 200
        lost = slow.result(timeout=20)
        assert lost.status_code == 429
        assert lost.json()["message"] == "given up for a more urgent request: try again later"
        assert "Retry-After" in lost.headers
        assert (engine.cancelled, hold.is_set()) == (1, False)


def test_turns_go_to_the_most_urgent_first(engine: FakeEngine) -> None:
    async def order() -> list[int]:
        turn, done = Turn(), list[int]()

        async def take(number: int) -> None:
            urgency.set(number)
            async with turn:
                done.append(number)
                await asyncio.sleep(0)

        async with turn:
            tasks = [asyncio.create_task(take(number)) for number in (5, 0, 9, -1, 0)]
            await asyncio.sleep(0)
            tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with turn:  # nobody holds it
            return done

    assert asyncio.run(asyncio.wait_for(order(), 5)) == [-1, 0, 0, 5]


def test_a_turn_handed_to_one_who_leaves_goes_on_to_the_next() -> None:
    async def last() -> str:
        turn = Turn()
        await turn.__aenter__()

        async def take(name: str) -> str:
            async with turn:
                return name

        first, second = asyncio.create_task(take("first")), asyncio.create_task(take("second"))
        await asyncio.sleep(0)
        await turn.__aexit__()  # to the first, which is cancelled before it runs
        first.cancel()
        return await second

    assert asyncio.run(asyncio.wait_for(last(), 5)) == "second"


def test_a_request_that_takes_too_long_is_given_up(engine: FakeEngine) -> None:
    server = served(engine, request_timeout_s=1.0)
    with server as client:
        engine.hold = asyncio.Event()
        late = client.post("/v1/rerank", json=BODY)
        streamed = client.post("/v1/rerank", json={**BODY, "stream": True}).text
        engine.hold = None
        assert late.status_code == 504
        assert late.json()["error"]["type"] == "timeout"
        assert '"timeout"' in streamed
        while server.app.state.admission.open:
            time.sleep(0.01)


# --- fairness --------------------------------------------------------------------------------------------------------


class Recorder:
    """An engine that notes what it is given, one call at a time."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.busy = 0

    async def score(self, prompts: Sequence[Sequence[int]]) -> ScoreOutput:
        assert self.busy == 0, "two at once"
        self.busy += 1
        await asyncio.sleep(0)
        self.seen.append([prompt[0] for prompt in prompts])
        self.busy -= 1
        return ScoreOutput([LabelLogits(prompt[0], 0.0) for prompt in prompts], cached_tokens=1)

    async def write(self, requests: Sequence[WriteRequest]) -> Any:
        self.seen.append([request.ids[0] for request in requests])
        for index, request in enumerate(requests):
            yield WritePiece(index, str(request.ids[0]), 1, "stop")

    async def aclose(self) -> None:
        self.seen.append([])


def test_a_small_call_waits_for_a_chunk_of_a_large_one_not_for_all_of_it() -> None:
    async def main() -> None:
        engine = Recorder()
        turns = TakingTurns(engine, chunk_tokens=10)
        large = asyncio.create_task(turns.score([[n] * 5 for n in range(20)]))
        await asyncio.sleep(0)
        small = asyncio.create_task(turns.score([[99] * 5]))
        output = await large
        await small
        assert [label.yes for label in output.labels if isinstance(label, LabelLogits)] == list(range(20))
        assert output.cached_tokens == 10
        assert all(len(chunk) <= 2 for chunk in engine.seen)
        assert engine.seen.index([99]) <= 2

    anyio.run(main)


@pytest.mark.parametrize("alone", [True, False])
def test_the_app_has_requests_take_turns_where_the_engine_says_so(alone: bool, tiny_tokenizer: Any) -> None:
    """It is the engine that knows, not the command line: who makes the app in Python has turns too."""

    class Told(Recorder):
        one_at_a_time = alone

    async def main() -> None:
        engine = Told()
        reranker = Reranker(Template(PRISM, tiny_tokenizer), engine, name="told")
        create_app(reranker)
        await reranker.arerank("q", ["word " * 400] * 100, evidence=False)
        tokens = [len(chunk) for chunk in engine.seen]
        assert (len(tokens) > 1) is alone
        assert sum(tokens) == 100

    anyio.run(main)


def test_turns_are_not_taken_twice() -> None:
    class Alone(Recorder):
        one_at_a_time = True

    once = in_turns(Alone())
    assert isinstance(once, TakingTurns)
    assert in_turns(once) is once
    batching = Recorder()
    assert in_turns(batching) is batching


def test_each_call_hears_how_far_it_is_itself() -> None:
    async def main() -> None:
        turns, heard = TakingTurns(Recorder(), chunk_tokens=10), dict[str, list[tuple[int, int]]]()

        async def call(name: str, prompts: int) -> None:
            async def hear(scored: int, all_prompts: int) -> None:
                heard.setdefault(name, []).append((scored, all_prompts))

            on_scored.set(hear)
            await turns.score([[n] * 5 for n in range(prompts)])

        await asyncio.gather(call("large", 6), call("small", 3), call("at once", 2))
        assert heard == {"large": [(2, 6), (4, 6)], "small": [(2, 3)]}
        assert on_scored.get() is None

    anyio.run(main)


def test_turns_for_writing_and_for_what_fits_at_once() -> None:
    async def main() -> None:
        engine = Recorder()
        turns = TakingTurns(engine, chunk_tokens=100, chunk_texts=2)
        pieces = [piece async for piece in turns.write([WriteRequest([n], 5) for n in range(5)])]
        assert [(piece.index, piece.text) for piece in pieces] == [(n, str(n)) for n in range(5)]
        assert engine.seen == [[0, 1], [2, 3], [4]]
        await turns.score([[7], [8, 8]])
        assert engine.seen[-1] == [7, 8], "left as it is"
        assert (await turns.score([])).labels == []
        await turns.aclose()
        assert engine.seen[-1] == []

    anyio.run(main)


def test_a_call_that_is_cancelled_while_it_waits_leaves_the_turn_to_others() -> None:
    async def main() -> None:
        engine = Recorder()
        turns = TakingTurns(engine, chunk_tokens=1)
        first = asyncio.create_task(turns.score([[1], [2], [3]]))
        second = asyncio.create_task(turns.score([[8], [9]]))
        await asyncio.sleep(0)
        second.cancel()
        await first
        assert not engine.busy
        assert [1] in engine.seen
        assert (await turns.score([[4]])).labels == [LabelLogits(4, 0.0)]

    anyio.run(main)


# --- an engine that fails --------------------------------------------------------------------------------------------


def test_a_crash_is_503_until_the_engine_is_back(engine: FakeEngine) -> None:
    with served(engine) as client:
        assert client.get("/ready").status_code == 200
        engine.fails = EngineError("the engine died")
        assert client.post("/v1/rerank", json=BODY).status_code == 503
        not_ready = client.get("/ready")
        engine.fails = None
        assert (not_ready.status_code, not_ready.headers["retry-after"]) == (503, "1")
        assert client.get("/ready").status_code == 200, "it is tried again"
        assert client.post("/v1/rerank", json=BODY).status_code == 200
        assert "prism_engine_errors_total 1.0" in client.get("/metrics").text


def test_one_bad_document_never_fails_the_request(engine: FakeEngine) -> None:
    documents = ["", "refuse", "nan", GOOD, "\x00", "\ud800", "p=0.8 ramble. x"]
    with served(engine) as client:
        body = json.dumps({"query": QUERY, "documents": documents}).encode()
        response = client.post("/v1/rerank", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200
    assert {result["index"] for result in response.json()["results"] if "error" in result} == {0, 1, 2}


# --- keys ------------------------------------------------------------------------------------------------------------


def test_without_a_key_nothing_is_served_but_the_state(engine: FakeEngine) -> None:
    with Server(Reranker(engine.template, engine, name="fake"), keys=Keys(["one", "two"])) as client:
        for header in ({}, {"Authorization": "Bearer three"}, {"Authorization": "Basic one"}, {"Authorization": "one"}):
            refused = client.post("/v1/rerank", json=BODY, headers=header)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert client.get("/v1/models", headers=header).status_code == 401
        for header in ({"Authorization": "Bearer two"}, {"Authorization": "bearer one"}):
            assert client.post("/v1/rerank", json=BODY, headers=header).status_code == 200
            assert client.get("/v1/models", headers=header).status_code == 200
        for path in ("/health", "/ready", "/metrics"):
            assert client.get(path).status_code == 200
    assert engine.calls.count(("score", 2)) == 2


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\n\n alpha \nbeta\n", encoding="utf-8")
    keys = Keys.read(path, {"PRISM_API_KEYS": "gamma, delta"})
    for key in ("alpha", "beta", "gamma", "delta"):
        keys.require({"authorization": f"Bearer {key}"})
    for key in ("", "# ours", "alph"):
        with pytest.raises(Refused):
            keys.require({"authorization": f"Bearer {key}"})
    path.write_bytes("\ufeffalpha\r\n\ufeffbeta\r\n".encode())  # as Windows saves it, twice
    for key in ("alpha", "beta"):
        Keys.read(path, {}).require({"authorization": f"Bearer {key}"})
    for encoding in ("utf-16", "utf-16-le"):  # as PowerShell saves it
        path.write_bytes("alpha\n".encode(encoding))
        with pytest.raises(InputError, match="save it as UTF-8"):
            Keys.read(path, {})
    assert not Keys.read(None, {})
    assert "alpha" not in repr(vars(keys))
    path.write_text("# none\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no API key"):
        Keys.read(path, {})
    with pytest.raises(InputError, match="cannot read the API keys"):
        Keys.read(tmp_path / "missing", {})


# --- figures and logs ------------------------------------------------------------------------------------------------


def test_figures(engine: FakeEngine) -> None:
    with served(engine) as client:
        client.post("/v1/rerank", json={**BODY, "documents": [GOOD, BAD, ""]})
        client.post("/v1/rerank", json={"query": "", "texts": ["x"]})
        text = client.get("/metrics").text
    for line in (
        'prism_requests_total{dialect="common",status="200"} 1.0',
        'prism_requests_total{dialect="tei",status="400"} 1.0',
        'prism_documents_total{verdict="yes"} 1.0',
        'prism_documents_total{verdict="no"} 1.0',
        'prism_documents_total{verdict="error"} 1.0',
        "prism_cached_tokens_total 7.0",
        f"prism_written_tokens_total {TEXT_TOKENS}.0",
        'prism_phase_seconds_count{phase="rank"} 1.0',
        'prism_phase_seconds_count{phase="write"} 1.0',
        'prism_phase_seconds_count{phase="total"} 2.0',
    ):
        assert line in text, text
    count = engine.template.tokenizer
    saved = len(count.encode(GOOD)) - len(count.encode("p=0.9 The harbour froze in 1963."))
    assert f"prism_tokens_saved_total {saved}.0" in text
    assert "harbour" not in text


def test_logs_have_sizes_and_times_but_no_text(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), served(engine) as client:
        answer = client.post("/v1/rerank", json=BODY, headers={"Authorization": "Bearer top-secret"}).json()
    [record] = [record for record in caplog.records if record.getMessage() == "rerank"]
    line = JsonLines().format(record)
    told = json.loads(line)
    assert (told["id"], told["status"], told["documents"], told["level"]) == (answer["id"], 200, 2, "info")
    assert {"read_ms", "rank_ms", "write_ms", "total_ms", "prompt_tokens", "written_tokens"} <= set(told)
    assert "harbour" not in line
    assert "secret" not in line


def test_what_is_answerable_is_told_by_a_calibrated_model(engine: FakeEngine) -> None:
    knots = ((0.0, 0.0), (0.8, 0.4), (1.0, 0.8))
    calibration = Calibration(method="isotonic", prior=0.3, pairs=100, knots=knots)
    with Server(Reranker(engine.template, engine, name="fake", calibration=calibration)) as client:
        found = client.post("/v1/rerank", json={**BODY, "top_n": 1}).json()["meta"]
        nothing = client.post("/v1/rerank", json={"query": QUERY, "documents": [""]}).json()["meta"]
        refused = client.post("/v1/rerank", json={**BODY, "answer_risk": 0.1})
    assert found["answerable"] == pytest.approx(0.6)  # half way between the knots at 0.8 and 1.0
    assert (found["sufficient"], "reason" in found) == (True, False)
    assert not {"answerable", "reason", "sufficient"} & set(nothing)
    assert refused.status_code == 400
    assert "cannot promise an answer_risk of 0.1: it promises none" in refused.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
@pytest.mark.parametrize("renamed", ["top_n", "top_k"])
def test_why_nothing_answers_is_told_in_every_dialect_with_room(engine: FakeEngine, path: str, renamed: str) -> None:
    same = Calibration(method="isotonic", prior=0.3, pairs=100, knots=((0.0, 0.0), (1.0, 1.0)))
    answering = Answering(weights={"best": 1.0}, intercept=-3.0, prior=0.5, sets=100)
    fits: Any = {"calibration": same, "answering": answering, "score_version": "abc+def"}
    body = {"query": QUERY, "documents": [GOOD, BAD], renamed: 1, "evidence": True, "score_version": "old"}
    with Server(Reranker(engine.template, engine, name="fake", **fits)) as client:
        told = client.post(path, json=body).json()["meta"]
        listed = client.post(path, json={"query": QUERY, "texts": [GOOD], "score_version": "old"})
        events = client.post(path, json={**body, "stream": True}).text
    # Log-odds of 0.9 less 3: 9 / e^3.
    assert told["answerable"] == pytest.approx(9 / (9 + math.e**3))
    assert (told["reason"], told["sufficient"], told["score_version"]) == ("related_only", False, "abc+def")
    assert [warning[:50] for warning in told["warnings"]] == ["the thresholds were chosen for scores of version o"]
    assert "scores of version old" in listed.headers["X-Prism-Warnings"]
    if renamed == "top_n":
        assert '"reason": "related_only", "sufficient": false' in events.partition("event: usage")[2]


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sigterm_lets_the_request_under_way_finish(tiny_checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--model", str(tiny_checkpoint), "--template", "prism", "--no-self-test"]
    command = [sys.executable, "-m", "prism.cli", "serve", *options, "--dtype", "float32", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
        try:
            while True:
                assert process.poll() is None
                try:
                    if client.get("/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            body = {"query": QUERY, "documents": [GOOD * 20] * 900, "threshold": 0, "evidence": {"top_n": 4}}
            answers: list[httpx.Response] = []
            thread = threading.Thread(target=lambda: answers.append(client.post("/v1/rerank", json=body)))
            thread.start()
            while "prism_requests_open 1.0" not in httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=300).text:
                assert thread.is_alive(), "the request was over before it could be seen"
            process.send_signal(signal.SIGTERM)
            thread.join()
            _, log = process.communicate(timeout=120)
        finally:
            process.kill()
    assert answers[0].status_code == 200
    assert len(answers[0].json()["results"]) == 900
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines if line["event"] == "rerank"] == [200]
    assert "harbour" not in log
