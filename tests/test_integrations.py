"""What the integrations share: the same findings in process and over HTTP, and what goes wrong in one line."""

from __future__ import annotations

import asyncio
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine
from http_endpoint import Server
from http_server import HttpServer, Reply, Request
from pydantic import ValidationError

from prism.errors import EngineError, InputError
from prism.integrations.adapter import KEY, Adapter, FrameworkDocument, JudgedDocument
from prism.llm.failures import KeyRefused, Rejected, Unavailable, WrongEndpoint
from prism.reranker import Reranker
from prism.serving.limits import Keys
from prism.template import PRISM, Template

ROOT = Path(__file__).parents[1]
QUERY = "when does the harbour freeze?"
BAD = "p=0.2 Nothing to see. Move on."
GOOD = "p=0.9 The harbour froze in 1963. It rarely does."
FAIR = "p=0.6 Lindau has a harbour. It is old."
PASSAGES = [
    FrameworkDocument(BAD, {}),
    FrameworkDocument(GOOD, {"title": "Lindau"}),
    FrameworkDocument(None, {}),
    FrameworkDocument(FAIR, {"title": 7}),
]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)


@pytest.fixture
def engine(tiny_tokenizer: Any) -> FakeEngine:
    return FakeEngine(Template(PRISM, tiny_tokenizer))


@pytest.fixture
def reranker(engine: FakeEngine) -> Iterator[Reranker]:
    with Reranker(engine.template, engine, name="fake") as reranker:
        yield reranker


@pytest.fixture
def url(engine: FakeEngine) -> Iterator[str]:
    server = Server(Reranker(engine.template, engine, name="fake"))
    with server:
        yield server.url


@pytest.fixture(params=["process, sync", "process, async", "http, sync", "http, async"])
def ask(request: pytest.FixtureRequest, reranker: Reranker, url: str) -> Callable[..., list[JudgedDocument]]:
    """`rank` of an adapter with these settings, each way there is."""

    def rank(passages: list[FrameworkDocument] = PASSAGES, query: str = QUERY, **settings: Any) -> list[JudgedDocument]:
        place: dict[str, Any] = {"url": url} if "http" in request.param else {"reranker": reranker}
        adapter = Adapter(**place, **settings)
        if "async" in request.param:
            return asyncio.run(adapter.arank(query, passages))
        return adapter.rank(query, passages)

    return rank


def test_yes_comes_back_best_first_with_evidence(ask: Callable[..., list[JudgedDocument]]) -> None:
    best, fair = ask()
    assert (best.index, fair.index) == (1, 3)
    assert (best.score, fair.score) == (pytest.approx(0.9), pytest.approx(0.6))
    assert (best.verdict, best.outcome, best.evidence_source) == ("yes", "complete", "written")
    assert (best.contribution, best.evidence) == ("It helps.", "p=0.9 The harbour froze in 1963.")
    (span,) = best.spans
    assert GOOD[span.start : span.end] == best.evidence
    assert (best.support, best.broken, best.truncation, best.error) == (1.0, (), None, None)


def test_everything_comes_back_if_asked_for(ask: Callable[..., list[JudgedDocument]], caplog: Any) -> None:
    found = ask(only_yes=False)
    assert [finding.index for finding in found] == [1, 3, 0, 2]
    assert [finding.verdict for finding in found] == ["yes", "yes", "no", None]
    assert found[-1].score is None
    assert found[-1].error == "text must be a string, got null"
    assert "1 of 4 documents could not be judged, document 2: text must be a string, got null" in caplog.text


@pytest.mark.parametrize(
    ("settings", "indices"),
    [
        ({"top_n": 1}, [1]),
        ({"threshold": 0.7}, [1]),
        ({"threshold": 0.1}, [1, 3, 0]),
        ({"threshold": 0.95}, []),
    ],
)
def test_how_many(ask: Callable[..., list[JudgedDocument]], settings: dict[str, Any], indices: list[int]) -> None:
    assert [finding.index for finding in ask(**settings)] == indices


@pytest.mark.parametrize(
    ("settings", "sources"),
    [
        ({"evidence": False}, [None, None]),
        ({"evidence": True}, ["written", "written"]),
        ({"evidence": "quoted"}, ["quoted", "quoted"]),
        ({"evidence_top_n": 1}, ["written", None]),
    ],
)
def test_evidence(ask: Callable[..., list[JudgedDocument]], settings: dict[str, Any], sources: list[Any]) -> None:
    found = ask(**settings)
    assert [finding.evidence_source for finding in found] == sources
    assert [bool(finding.evidence) for finding in found] == [source is not None for source in sources]


def test_what_the_model_reads(ask: Callable[..., list[JudgedDocument]], engine: FakeEngine) -> None:
    """The instruction, and titles that are texts."""
    ask(instruction="about winters")
    prompts = [engine.template.decode(list(request.ids)) for request in engine.requests]
    assert all("about winters" in prompt for prompt in prompts)
    assert [f"Document: Lindau\n{GOOD}" in prompt for prompt in prompts] == [True, False]
    assert f"Document: {FAIR}" in prompts[1]
    engine.requests.clear()
    ask(title_key=None)
    prompts = [engine.template.decode(list(request.ids)) for request in engine.requests]
    assert [f"Document: {text}" in prompt for text, prompt in zip((GOOD, FAIR), prompts, strict=True)] == [True, True]


def test_a_long_document_is_refused_if_asked_for(ask: Callable[..., list[JudgedDocument]]) -> None:
    with pytest.raises((InputError, Rejected), match="long"):
        ask([FrameworkDocument("harbour " * 20_000, {})], on_long_document="refuse")


def test_nothing_asks_nobody() -> None:
    adapter = Adapter(url="http://127.0.0.1:9")
    assert adapter.rank(QUERY, []) == []
    assert asyncio.run(adapter.arank(QUERY, [])) == []


def test_a_blank_query_is_refused(ask: Callable[..., list[JudgedDocument]]) -> None:
    with pytest.raises((InputError, Rejected), match="query is blank"):
        ask(query=" ")


def test_an_engine_that_fails(ask: Callable[..., list[JudgedDocument]], engine: FakeEngine) -> None:
    engine.fails = EngineError("out of memory")
    with pytest.raises(EngineError, match="out of memory"):
        ask(attempts=1)


# --- what comes back -------------------------------------------------------------------------------------------------


def test_what_metadata_says(reranker: Reranker) -> None:
    adapter = Adapter(reranker=reranker, content="evidence", only_yes=False)
    best, failed = adapter.rank(QUERY, [FrameworkDocument(GOOD, {}), FrameworkDocument(" ", {})])
    told = adapter.metadata_of(best)
    assert set(told) == {
        *("score", "verdict", "outcome", "contribution", "evidence", "evidence_source", "spans", "support"),
        *("unsupported", "broken", "truncation", "error", "content"),
    }
    assert told["spans"] == [{"start": 0, "end": 32, "support": 1.0}]
    assert (told["outcome"], told["unsupported"], told["content"]) == ("complete", [], "evidence")
    assert adapter.text_of(best, GOOD) == "p=0.9 The harbour froze in 1963."
    assert (adapter.text_of(failed, " "), adapter.metadata_of(failed)["content"]) == (" ", "document")
    assert Adapter(reranker=reranker).text_of(best, GOOD) == GOOD


ITEM = {
    "index": 0,
    "relevance_score": 0.9,
    "verdict": "yes",
    "outcome": "malformed",
    "contribution": None,
    "evidence": "In 1964, aaaa aaaa aaaa.",
    "evidence_source": "written",
    "relevant_spans": [{"start": 3, "end": 5, "score": 0.5}],
    "support": 0.25,
    "unsupported": [{"kind": "number", "text": "1964"}],
    "broken": ["aaaa aaaa aaaa"],
    "truncation": {"read_chars": 10, "total_chars": 20},
    "a field of a later version": 1,
}


def answering(*items: Any, **more: Any) -> HttpServer:
    return HttpServer(lambda _: Reply({"results": list(items), "meta": {"warnings": []}, **more}))


def test_broken_evidence_never_stands_for_a_document(caplog: Any) -> None:
    with answering(ITEM, meta={"warnings": ["answered by 'mini'"]}) as server:
        adapter = Adapter(url=server.url, content="evidence")
        (finding,) = adapter.rank(QUERY, [FrameworkDocument(GOOD, {})])
    assert adapter.text_of(finding, GOOD) == GOOD
    told = adapter.metadata_of(finding)
    assert (told["unsupported"], told["broken"]) == ([{"kind": "number", "text": "1964"}], ["aaaa aaaa aaaa"])
    assert (told["spans"], told["support"]) == ([{"start": 3, "end": 5, "support": 0.5}], 0.25)
    assert (told["truncation"], told["content"]) == ({"read_chars": 10, "total_chars": 20, "start": 0}, "document")
    assert "answered by 'mini'" in caplog.text


# --- servers that are none -------------------------------------------------------------------------------------------


def ask_for_one(adapter: Adapter, sync: bool) -> list[JudgedDocument]:
    passages = [FrameworkDocument(GOOD, {})]
    return adapter.rank(QUERY, passages) if sync else asyncio.run(adapter.arank(QUERY, passages))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([ITEM | {"index": 1}], "expected results about documents 0 to 0, each at most once"),
        ([ITEM, ITEM], "each at most once"),
        ([{"index": 0, "relevance_score": 0.9}], "KeyError"),  # any other rerank server
        ([ITEM | {"verdict": "maybe"}], "verdict: Input should be 'yes' or 'no', got 'maybe'"),
        ([3], "expected an array of objects in results"),
    ],
)
@pytest.mark.parametrize("sync", [True, False])
def test_an_answer_that_is_none_of_prism(answer: list[Any], says: str, sync: bool) -> None:
    with answering(*answer) as server, pytest.raises(Unavailable, match="an answer of another shape") as caught:
        ask_for_one(Adapter(url=server.url, attempts=1), sync)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_busy_is_asked_again() -> None:
    def answer(_: Request) -> Reply:
        if len(server.requests) == 1:
            return Reply({"message": "draining"}, 503, {"Retry-After": "0"})
        return Reply({"results": [ITEM], "meta": {"warnings": []}})

    with HttpServer(answer) as server:
        (finding,) = Adapter(url=f"{server.url}/v1/", attempts=2).rank(QUERY, [FrameworkDocument(GOOD, {})])
        assert finding.score == 0.9
        assert [request.path for request in server.requests] == ["/v1/rerank"] * 2


def test_what_a_server_is_sent() -> None:
    settings = {"evidence": "quoted", "evidence_tokens": 90, "evidence_top_n": 2, "instruction": "winters", "top_n": 4}
    with answering(ITEM) as server:
        adapter = Adapter(url=server.url, api_key="right-key", threshold=0.3, on_long_document="window", **settings)
        adapter.rank(
            QUERY,
            [FrameworkDocument(GOOD, {"title": " ", "id": 7}), FrameworkDocument(BAD, {"title": "Lindau"})],
            top_n=1,
        )
        (request,) = server.requests
    assert request.headers["authorization"] == "Bearer right-key"
    assert request.body == {
        "query": QUERY,
        "documents": [{"text": GOOD}, {"text": BAD, "title": "Lindau"}],
        "top_n": 1,
        "threshold": 0.3,
        "instruction": "winters",
        "evidence": {"source": "quoted", "max_tokens": 90, "top_n": 2},
        "on_long_document": "window",
    }


@pytest.mark.parametrize("sync", [True, False])
def test_a_dead_server(sync: bool) -> None:
    with socket.socket() as taken:  # bound, never listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unavailable, match=rf"^{url}/v1/rerank gave no answer in 2 attempts, last: ConnectError"):
            ask_for_one(Adapter(url=url, attempts=2), sync)


@pytest.mark.parametrize("sync", [True, False])
def test_a_silent_server(sync: bool) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        adapter = Adapter(url=f"http://127.0.0.1:{silent.getsockname()[1]}", attempts=1, timeout_s=0.2)
        began = time.monotonic()
        with pytest.raises(Unavailable, match="ReadTimeout"):
            ask_for_one(adapter, sync)
        assert time.monotonic() - began < 4  # less than any default


def test_a_wrong_address(url: str) -> None:
    with pytest.raises(WrongEndpoint, match=r"no such address or model \(404\): check url"):
        Adapter(url=f"{url}/api/v7").rank(QUERY, PASSAGES)


def test_keys(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(Reranker(engine.template, engine, name="fake"), keys=Keys(["right-key"]))
    with server:
        with pytest.raises(KeyRefused, match=f"refused the key .401.: check what is in api_key or {KEY}"):
            Adapter(url=server.url).rank(QUERY, PASSAGES)
        with pytest.raises(KeyRefused) as caught:
            Adapter(url=server.url, api_key="wrong-key").rank(QUERY, PASSAGES)
        assert "wrong-key" not in str(caught.value)
        assert len(Adapter(url=server.url, api_key="right-key").rank(QUERY, PASSAGES)) == 2
        monkeypatch.setenv(KEY, "right-key")
        assert len(Adapter(url=server.url).rank(QUERY, PASSAGES)) == 2


# --- settings and lifetime -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"url": "localhost:8000"}, "expected an address"),
        ({"url": "http://key@localhost"}, "a key does not belong in the address"),
        ({"url": "http://localhost", "model": "mini"}, "expected one of url, reranker and model"),
        ({"url": "http://localhost", "load_options": {"device": "cpu"}}, "got url and model"),
        ({"reranker": "mini"}, "reranker must be a prism.Reranker, got str"),
        ({"top_n": 0}, "greater than or equal to 1"),
        ({"threshold": 1.5}, "less than or equal to 1"),
        ({"evidence": "some"}, "written"),
        ({"topn": 3}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says) as caught:
        Adapter(**settings, api_key="secret-key")
    assert "secret-key" not in str(caught.value)


def test_settings_travel_without_key_and_model(tiny_checkpoint: Path) -> None:
    adapter = Adapter(
        model=str(tiny_checkpoint), load_options={"template": "prism", "self_test": False}, api_key="secret-key"
    )
    first = adapter.warm_up()
    assert adapter.warm_up() is first
    again = pickle.loads(pickle.dumps(adapter))  # noqa: S301  # our own
    assert again.model_dump() == adapter.model_dump()
    assert again.warm_up() is not first
    assert "secret-key" not in f"{adapter!r} {adapter.model_dump_json()}"
    found = adapter.rank(QUERY, PASSAGES, top_n=2)
    adapter.close()
    adapter.close()
    assert adapter.warm_up() is not first
    assert adapter.rank(QUERY, PASSAGES, top_n=2) == found
    adapter.close()
    again.close()


def test_a_reranker_that_was_given_stays_open(reranker: Reranker, engine: FakeEngine) -> None:
    Adapter(reranker=reranker).close()
    assert engine.closed == 0


# --- imports ---------------------------------------------------------------------------------------------------------


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_settings_load_no_model_and_no_framework() -> None:
    heavy = {"torch", "transformers", "langchain_core", "llama_index", "haystack", "httpx"}
    done = run(f"import sys, prism.integrations.adapter; sys.exit(','.join({heavy} & set(sys.modules)) or 0)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index", "llama-index"),
        ("haystack", "haystack", "haystack"),
    ],
)
def test_a_framework_that_is_not_there(module: str, package: str, extra: str) -> None:
    done = run(f"import sys; sys.modules[{package!r}] = None; import prism.integrations.{module}")
    says = done.stderr.splitlines()[-1]
    assert says.startswith(f"ImportError: prism.integrations.{module} needs {package}"), done.stderr
    assert says.endswith(f'run pip install "prism-reranker[{extra}]"')
