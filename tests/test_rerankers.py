"""Rerankers that are not ours: cross-encoders, and services over real HTTP (our own endpoint, and scripted servers)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine
from test_serving import Server
from transformers import BertConfig, BertForSequenceClassification

from prism.errors import CheckpointError, EngineError, InputError
from prism.evaluation.reranking import Task, rerank
from prism.reranker import Reranker
from prism.template import PRISM, Template
from prism.types import Document
from studies.rerankers import CrossEncoderReranker
from studies.services import ServiceReranker
from studies.specs import Spec, parse_fields, parse_spec

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = tuple(Document(id=f"d{i}", text=f"p=0.{p} Text {i}.") for i, p in enumerate((2, 9, 5)))
ORDER = ["d1", "d2", "d0"]


# --- names -----------------------------------------------------------------------------------------------------------


def test_specs() -> None:
    assert parse_spec("mini") == Spec("prism", "mini", None)
    assert parse_spec("org/name").system == "name"
    assert parse_spec("cross-encoder:models/minilm/") == Spec("cross-encoder", "models/minilm/", None)
    assert parse_spec("cross-encoder:models/minilm/").system == "minilm"
    assert parse_spec("cohere:rerank-v3.5") == Spec("cohere", "rerank-v3.5", None)
    assert parse_spec("jina:m@http://localhost:1/v1/rerank") == Spec("jina", "m", "http://localhost:1/v1/rerank")
    for text in ("jina:", "jina:m@localhost", "cohere:@http://x"):
        with pytest.raises(InputError, match="--model"):
            parse_spec(text)


def test_a_key_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match="environment") as error:
        parse_spec("jina:m@http://me:s3cret@host/v1/rerank")
    assert "s3cret" not in str(error.value)


def test_fields() -> None:
    assert parse_fields('{"evidence": false}') == {"evidence": False}
    for text in ("[]", "{", "1"):
        with pytest.raises(InputError, match="--api-fields"):
            parse_fields(text)


# --- cross-encoders --------------------------------------------------------------------------------------------------


def cross_encoder(folder: Path, tokenizer: Any, labels: int) -> Path:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=labels,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_cross_encoder(tiny_tokenizer: Any, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    path = cross_encoder(tmp_path / "one", tiny_tokenizer, labels=1)
    reranker = CrossEncoderReranker(str(path), batch_size=2)
    [done] = rerank([Task(id="q", query="when", documents=DOCUMENTS)], reranker)
    pairs = [("when", document.text) for document in DOCUMENTS]
    expected = CrossEncoder(str(path)).predict(pairs, show_progress_bar=False)
    assert dict(done.ranked) == pytest.approx({f"d{i}": float(score) for i, score in enumerate(expected)}, abs=1e-6)
    assert done.tokens == sum(len(tiny_tokenizer(q, d)["input_ids"]) for q, d in pairs)


def test_a_classifier_is_no_reranker(tiny_tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gives 3 numbers a pair"):
        CrossEncoderReranker(str(cross_encoder(tmp_path / "three", tiny_tokenizer, labels=3)))
    with pytest.raises(CheckpointError, match="cannot load the cross-encoder"):
        CrossEncoderReranker(str(tmp_path / "nothing-here"))


def test_weights_that_could_run_code_are_not_loaded(tiny_tokenizer: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    path = cross_encoder(tmp_path / "pickled", tiny_tokenizer, labels=1)
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    assert CrossEncoderReranker(str(path))
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors weights") as caught:
        CrossEncoderReranker(str(path))
    assert "\n" not in str(caught.value)


# --- our own endpoint ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "path"), [("cohere", "/v2/rerank"), ("jina", "/v1/rerank")])
def test_a_prism_endpoint_ranks_as_prism_does(kind: str, path: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    engine = FakeEngine(Template(PRISM, tiny_tokenizer))
    server = Server(Reranker(engine.template, engine, name="fake"))
    with server:
        spec = parse_spec(f"{kind}:fake@{server.url}{path}")
        service = ServiceReranker(spec, tmp_path / "kept.sqlite", fields={"evidence": False}, environment={})
        for _ in range(2):
            [done] = rerank([Task(id="q", query="when", documents=DOCUMENTS)], service)
            assert dict(done.ranked) == pytest.approx({"d0": 0.2, "d1": 0.9, "d2": 0.5}, abs=1e-6)
            assert [id_ for id_, _ in done.ranked] == ORDER
            assert done.tokens > 0
            assert done.requests == 1
        service.close()
    assert [call[0] for call in engine.calls].count("score") == 1  # the second answer was kept


# --- scripted servers ------------------------------------------------------------------------------------------------

Answer = tuple[int, dict[str, str], Any]


class Scripted:
    """A real HTTP server that answers as `answer(body, number of the request)` says and keeps what it was asked."""

    def __init__(self, answer: Callable[[Any, int], Answer]) -> None:
        self.asked: list[tuple[dict[str, str], Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((dict(self.headers.items()), body))
                status, headers, said = answer(body, len(outer.asked))
                content = said.encode() if isinstance(said, str) else json.dumps(said).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/rerank"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def good(body: Any, _: int = 0) -> Answer:
    """Scores are the `p=` of the documents, in the dialect of whoever asks."""
    scores = [float(text[2:5]) for text in body["documents"]]
    results = [{"index": i, "relevance_score": score} for i, score in enumerate(scores)]
    field = "data" if "top_k" in body else "results"
    return 200, {}, {field: results, "usage": {"total_tokens": 30}}


Ask = Callable[..., Any]


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """Asks a server in the dialect `kind`; returns the finished task and the waits in between."""
    services = []

    def go(server: Scripted, kind: str = "voyage", key: str = "k3y", query: str = "when") -> Any:
        waits: list[float] = []
        names = {f"{kind.upper()}_API_KEY": key}
        service = ServiceReranker(
            parse_spec(f"{kind}:m@{server.url}"), tmp_path / "kept.sqlite", environment=names, sleep=waits.append
        )
        services.append(service)
        [done] = rerank([Task(id="q", query=query, documents=DOCUMENTS)], service)
        return done, waits

    yield go
    for service in services:
        service.close()


def test_dialects(ask: Ask) -> None:
    texts = [document.text for document in DOCUMENTS]
    expected = {
        "cohere": {"top_n": 3},
        "jina": {"top_n": 3, "return_documents": False},
        "voyage": {"top_k": 3, "return_documents": False},
    }
    for kind, fields in expected.items():
        with Scripted(good) as server:
            done, _ = ask(server, kind)
        headers, body = server.asked[0]
        assert body == {"model": "m", "query": "when", "documents": texts, **fields}
        assert headers["Authorization"] == "Bearer k3y"
        assert [id_ for id_, _ in done.ranked] == ORDER
        assert (done.tokens, done.requests) == (30, 1)


def test_cohere_bills_search_units(ask: Ask) -> None:
    def answer(body: Any, _: int) -> Answer:
        status, headers, said = good(body)
        return status, headers, {**said, "usage": None, "meta": {"billed_units": {"search_units": 2}}}

    with Scripted(answer) as server:
        done, _ = ask(server, "cohere")
    assert (done.tokens, done.requests) == (0, 2)


def test_answers_are_kept_with_their_time_and_without_the_key(ask: Ask, tmp_path: Path) -> None:
    with Scripted(good) as server:
        first, _ = ask(server)
        second, _ = ask(server)
        assert second == first  # seconds too
        ask(server, query="another")
        assert len(server.asked) == 2
    assert b"k3y" not in (tmp_path / "kept.sqlite").read_bytes()


def test_a_busy_service_is_asked_again(ask: Ask) -> None:
    def answer(body: Any, number: int) -> Answer:
        busy = {
            1: (429, {"Retry-After": "7"}, "slow down"),
            2: (503, {}, ""),
            3: (429, {}, {"error": {"retryDelay": "9s"}}),
        }
        return busy.get(number) or good(body)

    with Scripted(answer) as server:
        done, waits = ask(server)
    assert [id_ for id_, _ in done.ranked] == ORDER
    assert (waits[0], waits[2]) == (7, 9)  # as asked, in headers or body
    assert 1 <= waits[1] <= 2  # 0.5 x 2 and up to a second of jitter


def test_a_service_that_asks_to_wait_for_long_ends_it(ask: Ask) -> None:
    with (
        Scripted(lambda body, number: (429, {"Retry-After": "9999"}, "")) as server,
        pytest.raises(InputError, match=r"asks to wait 9,999 s: run the same command again after that"),
    ):
        ask(server)
    assert len(server.asked) == 1


def test_a_service_that_stays_busy_ends_it(ask: Ask) -> None:
    with (
        Scripted(lambda body, number: (500, {}, "")) as server,
        pytest.raises(EngineError, match=r"no answer in 6 attempts.*answered 500"),
    ):
        ask(server)
    assert len(server.asked) == 6


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((401, {}, "who are you, k3y?"), InputError, "VOYAGE_API_KEY"),
        ((404, {}, "no \x1b model"), InputError, r"no such address or model \(404\)"),
        ((200, {}, "<html>"), EngineError, "not answer in JSON"),
        ((200, {}, {"results": []}), EngineError, "not answer as voyage does"),
        ((200, {}, [1]), EngineError, "not answer as voyage does"),
        ((200, {}, {"data": [{"index": 3, "relevance_score": 1}]}), EngineError, "index 3 of 3 documents"),
        ((200, {}, {"data": [{"index": 0, "relevance_score": 1}] * 2}), EngineError, "a document comes twice"),
        ((200, {}, '{"data": [{"index": 0, "relevance_score": NaN}]}'), EngineError, "score nan"),
    ],
)
def test_what_is_no_answer_is_an_error_and_not_kept(
    ask: Ask, answer: Answer, error: type[Exception], message: str
) -> None:
    with Scripted(lambda body, number: answer) as server:
        with pytest.raises(error, match=message) as raised:
            ask(server)
        assert "k3y" not in str(raised.value)
        assert "\x1b" not in str(raised.value)
        with pytest.raises(error):
            ask(server)
    assert len(server.asked) == 2


def test_documents_the_service_leaves_out_or_refuses_fail_alone(ask: Ask) -> None:
    results = [{"index": 1, "relevance_score": 0.5}, {"index": 0, "error": {"message": "too\x1b long"}}]
    with Scripted(lambda body, number: (200, {}, {"data": results})) as server:
        done, _ = ask(server)
    assert [id_ for id_, _ in done.ranked] == ["d1", "d0", "d2"]
    assert done.failures == {"d0": "{'message': 'too\\x1b long'}", "d2": "not returned by the reranker"}


def test_services_need_a_key_and_take_no_instruction(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="COHERE_API_KEY"):
        ServiceReranker(parse_spec("cohere:m"), tmp_path / "x.sqlite", environment={})
    service = ServiceReranker(parse_spec("jina:m@http://localhost:1/"), tmp_path / "x.sqlite", environment={})
    with pytest.raises(InputError, match="takes no instruction"):
        service.rerank("q", DOCUMENTS, instruction="find")
    service.close()


DRIVER = """
import sys
from pathlib import Path
from studies.specs import parse_spec
from studies.services import ServiceReranker
from prism.types import Document

service = ServiceReranker(parse_spec(f"jina:m@{sys.argv[1]}"), Path(sys.argv[2]), environment={})
for i in range(20):
    print(service.rerank(f"query {i}", [Document(id="d", text="p=0.5")]).judgments[0].score, flush=True)
service.close()
"""


def test_nothing_is_paid_for_twice_after_kill_dash_9(tmp_path: Path) -> None:
    def slow(body: Any, number: int) -> Answer:
        time.sleep(0.05)
        return good(body)

    with Scripted(slow) as server:
        words = [sys.executable, "-c", DRIVER, server.url, str(tmp_path / "kept.sqlite")]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'eval'}"}
        killed = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        assert killed.stdout is not None
        finished = [killed.stdout.readline() for _ in range(6)]
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=60)
        assert finished == ["0.5\n"] * 6
        again = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=environment, timeout=120, check=True)
        assert again.stdout.split() == ["0.5"] * 20
        queries = [body["query"] for _, body in server.asked]
    assert set(queries) == {f"query {i}" for i in range(20)}
    assert all(queries.count(f"query {i}") == 1 for i in range(6))
    assert len(queries) <= 21  # at most the one that was under way is asked again
