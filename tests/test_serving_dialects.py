from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fakes import FakeEngine
from http_endpoint import Server

from prism.reranker import Reranker
from prism.template import PRISM, Template

QUERY = "when does the harbour freeze?"
GOOD = "p=0.9 The harbour froze in 1963. It rarely does."
FAIR = "p=0.7 Copper conducts electricity. So does silver."
BAD = "p=0.2 Nothing to see. Move on."
EVIDENCE = "p=0.9 The harbour froze in 1963."


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: Any) -> FakeEngine:
    return FakeEngine(Template(PRISM, tiny_tokenizer))


@pytest.fixture(scope="module")
def client(engine: FakeEngine) -> Iterator[httpx.Client]:
    with Server(Reranker(engine.template, engine, name="fake"), max_documents=20, max_tokens=5000) as client:
        yield client


def post(client: httpx.Client, path: str = "/v1/rerank", **body: Any) -> httpx.Response:
    return client.post(path, json={"query": QUERY, "documents": [BAD, GOOD], **body})


# --- Text Embeddings Inference ---------------------------------------------------------------------------------------


def test_texts_are_answered_with_a_bare_array_of_all(client: httpx.Client, engine: FakeEngine) -> None:
    engine.calls.clear()
    body = {"query": QUERY, "texts": [BAD, GOOD, " "], "truncate": False, "truncation_direction": "Right"}
    first, second, third = client.post("/rerank", json=body).json()
    assert first == {"index": 1, "score": pytest.approx(0.9)}
    assert second == {"index": 0, "score": pytest.approx(0.2)}
    assert (third["index"], third["score"]) == (2, 0.0)
    assert "blank" in third["error"]
    assert engine.calls == [("score", 2)], "its clients would drop what is written"


def test_texts_with_everything(client: httpx.Client) -> None:
    body = {"query": QUERY, "texts": [BAD, GOOD], "return_text": True, "raw_scores": True, "documents": None}
    first = client.post("/rerank", json=body).json()[0]
    assert first == {"index": 1, "score": pytest.approx(math.log(9)), "text": GOOD}


def test_errors_to_texts_are_text(client: httpx.Client) -> None:
    response = client.post("/rerank", json={"query": " ", "texts": [GOOD]})
    assert response.status_code == 400
    assert "query is blank" in response.json()["error"]
    assert response.json()["error_type"] == "invalid_request_error"


# --- Voyage ----------------------------------------------------------------------------------------------------------


def test_top_k_is_top_n_and_data_holds_the_ranking(client: httpx.Client, engine: FakeEngine) -> None:
    engine.calls.clear()
    body = post(client, model="rerank-2", top_k=1, truncation=True, return_documents=True).json()
    assert body["object"] == "list"
    assert body["data"] == [{"index": 1, "relevance_score": pytest.approx(0.9), "document": {"text": GOOD}}]
    assert body["usage"]["total_tokens"] > 0
    assert body["meta"]["warnings"] == ["answered by 'fake': there is no model 'rerank-2' here"]
    assert engine.calls == [("score", 2)], "its clients would drop what is written"


def test_voyage_may_ask_for_evidence(client: httpx.Client) -> None:
    assert post(client, top_k=None, evidence=True).json()["results"][0]["evidence"] == EVIDENCE


def test_voyage_errors_have_no_object(client: httpx.Client) -> None:
    response = post(client, query="", top_k=None)
    assert response.status_code == 400
    assert set(response.json()) == {"detail", "message"}
    wrong = post(client, top_k="three")
    assert (wrong.status_code, set(wrong.json())) == (422, {"detail", "message"})


def test_truncation_false_refuses_what_would_be_cut(client: httpx.Client) -> None:
    long = {"documents": [GOOD, GOOD * 20], "max_prompt_tokens": 130}
    assert post(client, truncation=True, **long).status_code == 200
    response = post(client, truncation=False, **long)
    assert response.status_code == 400
    assert "documents[1]" in response.json()["detail"]
    assert post(client, truncation=False).status_code == 200


def test_everyone_gets_data_too(client: httpx.Client) -> None:
    """LiteLLM speaks Voyage's dialect without a field that tells."""
    body = post(client, documents=[BAD, GOOD, ""]).json()
    assert [(row["index"], row["relevance_score"]) for row in body["data"]] == [
        (1, pytest.approx(0.9)),
        (0, pytest.approx(0.2)),
        (2, 0.0),
    ]
    assert body["object"] == "rerank"


# --- Cohere ----------------------------------------------------------------------------------------------------------


def test_rank_fields_choose_what_is_read(client: httpx.Client) -> None:
    documents = [
        {"title": "p=0.3 Ice", "text": "p=0.9 unread", "body": "p=0.8 The harbour froze. Then not.", "id": 4},
        {"text": "p=0.6 Only text here.", "id": "x"},
        {"title": "T", "text": "p=0.2 Text."},
    ]
    body = post(client, documents=documents, rank_fields=["body"], return_documents=True).json()
    first, *rest = body["results"]
    assert (first["index"], first["id"]) == (0, "4")
    assert first["document"] == {"text": "p=0.8 The harbour froze. Then not."}
    [span] = first["relevant_spans"]
    assert first["document"]["text"][span["start"] : span["end"]] == "p=0.8 The harbour froze."
    assert [result["relevance_score"] for result in rest] == [0.0, 0.0], "they lack the field: their own error"
    both = post(client, documents=documents[:1], rank_fields=["body", "text"], return_documents=True).json()
    assert both["results"][0]["document"]["text"] == "p=0.8 The harbour froze. Then not.\np=0.9 unread"
    assert any("rank_fields" in warning for warning in both["meta"]["warnings"])
    titled = post(client, documents=documents[2:], rank_fields=["title", "text"], return_documents=True).json()
    assert titled["results"][0]["document"]["text"] == "p=0.2 Text."


def test_relevant_spans_as_cohere_defines_them(client: httpx.Client) -> None:
    spans = {"mode": "enabled", "threshold": 0.5, "max_spans": 1}
    [result, _] = post(client, relevant_spans=spans).json()["results"]
    [span] = result["relevant_spans"]
    assert GOOD[span["start"] : span["end"]] == EVIDENCE
    assert post(client, relevant_spans={"mode": "disabled"}).json()["results"][0]["relevant_spans"] == []
    assert post(client, relevant_spans={**spans, "max_spans": 0}).json()["results"][0]["relevant_spans"] == []
    assert post(client, relevant_spans={"mode": "sometimes"}).status_code == 422
    assert post(client, relevant_spans={"mode": "enabled", "threshold": 2}).status_code == 422
    everything = dict.fromkeys(("threshold", "max_spans"))
    assert post(client, relevant_spans={"mode": "enabled", **everything}).json()["results"][0]["relevant_spans"]


def test_tokens_of_a_document_and_of_a_prompt(client: httpx.Client) -> None:
    long = {"documents": ["p=0.9 " + GOOD * 30], "evidence": False}
    plain = post(client, **long).json()
    cut = post(client, max_tokens_per_doc=40, **long).json()
    assert cut["results"][0]["truncation"]["total_chars"] == len(long["documents"][0])  # type: ignore[index]
    assert "truncation" not in plain["results"][0]
    around = post(client, documents=["."], evidence=False).json()["usage"]["prompt_tokens"] - 1
    assert around < cut["usage"]["prompt_tokens"] <= around + 40
    assert post(client, truncate_prompt_tokens=100, **long).json()["usage"]["prompt_tokens"] <= 100
    unlimited = post(client, truncate_prompt_tokens=-1, max_tokens_per_doc=4096, **long).json()
    assert unlimited["usage"] == plain["usage"]


# --- ours ------------------------------------------------------------------------------------------------------------


def test_evidence_settings(client: httpx.Client, engine: FakeEngine) -> None:
    def written(**settings: Any) -> list[int]:
        body = post(client, documents=[GOOD, FAIR, BAD], evidence=settings).json()
        return [result["index"] for result in body["results"] if result["evidence"]]

    assert written() == [0, 1]
    assert written(top_n=1) == [0]
    assert written(top_n=0) == []
    assert written(threshold=0.8) == [0]
    assert written(threshold=0.1) == [0, 1], "a no has nothing to write"
    assert written(max_tokens=10) == []
    assert written(top_n=None, threshold=None, max_tokens=None, checks=None) == [0, 1]
    body = post(client, evidence={"top_n": 1, "colour": "blue"}).json()
    assert body["meta"]["warnings"] == ["ignored fields: evidence.colour"]


def test_checks(client: httpx.Client) -> None:
    def best(checks: Any) -> dict[str, Any]:
        result: dict[str, Any] = post(client, evidence={"checks": checks}).json()["results"][0]
        return {name: result[name] for name in ("relevant_spans", "support", "unsupported")}

    spans = [{"start": 0, "end": len(EVIDENCE), "score": pytest.approx(1.0)}]
    assert best(["spans", "facts"]) == {"relevant_spans": spans, "support": pytest.approx(1.0), "unsupported": []}
    assert best(["spans"]) == {"relevant_spans": spans, "support": pytest.approx(1.0), "unsupported": None}
    assert best(["facts"]) == {"relevant_spans": [], "support": None, "unsupported": []}
    assert best([]) == {"relevant_spans": [], "support": None, "unsupported": None}
    assert post(client, evidence={"checks": ["magic"]}).status_code == 422


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"evidence": {"top_n": -1}}, 400, "evidence_top_n must be at least 0"),
        ({"evidence": {"threshold": 3}}, 400, "evidence_threshold must lie"),
        ({"evidence": {"max_tokens": "many"}}, 422, "max_tokens"),
        ({"on_long_document": "tear"}, 422, "on_long_document"),
        ({"stream": "yes"}, 422, "stream"),
        ({"max_tokens_per_doc": 0}, 400, "max_document_tokens must be at least 1"),
        ({"rank_fields": "text"}, 422, "rank_fields"),
        ({"documents": [GOOD * 40] * 20}, 400, "too many tokens"),
        ({"documents": [{"content": "x"}]}, 422, "documents.0.text"),
    ],
)
def test_bad_settings(client: httpx.Client, body: dict[str, Any], status: int, words: str) -> None:
    response = post(client, **body)
    assert response.status_code == status, response.text
    assert words in response.json()["message"]


def test_long_documents_in_windows(client: httpx.Client) -> None:
    text = "p=0.2 Filler stands here. " * 12 + "p=0.9 The harbour froze in 1963. " + "p=0.2 More filler. " * 12
    sent = {"documents": [text, BAD], "max_prompt_tokens": 140}
    cut = post(client, **sent).json()["results"][0]
    assert (cut["index"], cut["verdict"], "windows" in cut) == (0, "no", False)
    read = post(client, on_long_document="window", **sent).json()["results"][0]
    assert len(read["windows"]) > 1
    assert read["relevance_score"] == max(window["score"] for window in read["windows"])
    assert "truncation" not in read


def test_openapi_names_every_route_and_field(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    assert {"/v1/rerank", "/v1/models", "/health", "/ready", "/metrics"} <= set(described["paths"])
    content = described["paths"]["/v1/rerank"]["post"]["requestBody"]["content"]["application/json"]
    named = set(content["schema"]["properties"])
    assert {"evidence", "relevant_spans", "stream", "on_long_document", "rank_fields", "instruction"} <= named
    assert client.get("/docs").status_code == 200
