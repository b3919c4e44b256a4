"""Same, contradicting, new among the passages of one answer: Python, the context, HTTP and its stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fakes import FakeEngine
from http_endpoint import Server

from prism.comparing import MAX_COMPARED
from prism.errors import InputError
from prism.options import MAX_AGAINST_CHARS
from prism.reranker import Reranker
from prism.template import PRISM, Template
from prism.types import Place, SameEvidence

QUERY = "when did the old harbour freeze?"
FROZE = "The old harbour of the town froze in 1963"
BEST = f"p=0.9\n{FROZE}. It rarely does."
AGAIN = "p=0.8\nthe old harbour of the town froze in 1963. Ships waited."
OTHERWISE = "😀 p=0.7\nThe old harbour of the town froze in 1968. It was cold."
NEW = "p=0.6\nCopper conducts electricity. So does silver."
BAD = "p=0.2 Nothing to see. Move on."


@pytest.fixture(scope="module")
def reranker(tiny_tokenizer: Any) -> Iterator[Reranker]:
    template = Template(PRISM, tiny_tokenizer)
    with Reranker(template, FakeEngine(template), name="fake") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def client(tiny_tokenizer: Any) -> Iterator[httpx.Client]:
    template = Template(PRISM, tiny_tokenizer)
    with Server(Reranker(template, FakeEngine(template), name="fake"), request_timeout_s=5.0) as client:
        yield client


DOCUMENTS: list[Any] = [{"id": "new", "text": NEW}, {"id": "a", "text": BEST}, AGAIN, {"id": "c", "text": OTHERWISE}]


def test_duplicates_are_told_by_evidence_and_nothing_is_hidden(reranker: Reranker) -> None:
    result = reranker.rerank(QUERY, DOCUMENTS)
    assert [judgment.index for judgment in result] == [1, 2, 3, 0]
    assert result.same == (SameEvidence(indices=(1, 2), ids=("a", None)),)
    assert [judgment.also for judgment in result] == [("document=2",), (), (), ()]
    assert [judgment.same_as for judgment in result] == [None, 1, None, None]
    assert all(judgment.evidence for judgment in result)


def test_one_slot_of_the_context_names_all(reranker: Reranker) -> None:
    context = reranker.rerank(QUERY, DOCUMENTS).context()
    assert context.startswith('[1] id="a" also="document=2"\n')
    assert [line.split()[0] for line in context.splitlines() if line.startswith("[")] == ["[1]", "[3]", "[4]"]


def test_a_shorter_duplicate_fills_the_slot_where_the_best_does_not_fit(reranker: Reranker) -> None:
    long = {"text": f"p=0.9\n{FROZE}, and the ice of the town was thick", "id": "long"}
    result = reranker.rerank(QUERY, [long, AGAIN])
    assert result[1].same_as == 0

    def count(text: str) -> int:
        return 100 if "thick" in text else 10

    made = result.fit_context(max_tokens=50, count=count)
    assert made.documents == (1,)
    assert [(out.index, out.reason) for out in made.left_out] == [(0, "budget")]
    assert [(out.index, out.reason) for out in result.fit_context().left_out] == [(1, "same")]


def test_conflicts_have_spans_of_the_documents_as_sent(reranker: Reranker) -> None:
    result = reranker.rerank(QUERY, DOCUMENTS)
    first, second = result.conflicts
    start = BEST.index(FROZE)
    place = Place(index=1, id="a", start=start, end=start + len(FROZE) + 1, value="1963")
    assert (first.kind, first.left) == ("date", place)
    assert OTHERWISE[first.right.start : first.right.end] == "The old harbour of the town froze in 1968."
    assert (first.right.index, first.right.id, first.right.value) == (3, "c", "1968")
    assert (second.left.index, second.right.index) == (2, 3)
    assert 'conflict: date: "1963" in a [6, 48), "1968" in c [8, 50)' in str(result)
    assert "<b>conflict</b>: date: &quot;1963&quot; in a" in result._repr_html_()


def test_without_checks_no_span_is_known_and_none_is_told(reranker: Reranker) -> None:
    result = reranker.rerank(QUERY, DOCUMENTS, check=False)
    assert result.conflicts == ()
    assert [group.indices for group in result.same] == [(1, 2)]


def test_what_is_held_already_comes_last_of_its_verdict(reranker: Reranker) -> None:
    held = ["Something else altogether.", f"{FROZE}."]
    result = reranker.rerank(QUERY, [*DOCUMENTS, BAD], against=held)
    assert [(judgment.index, judgment.held) for judgment in result] == [(3, None), (0, None), (1, 1), (2, 1), (4, None)]
    assert result[2].evidence
    (conflict, *_) = (each for each in result.conflicts if each.right.against)
    assert (conflict.left.index, conflict.right) == (3, Place(index=1, against=True, start=0, end=42, value="1963"))
    assert "adds nothing to against[1]" in str(result)


def test_a_document_that_is_held_whole_does_not_take_a_place(reranker: Reranker) -> None:
    result = reranker.rerank(QUERY, [BEST, NEW], against=[BEST], top_n=1, evidence=False)
    assert [judgment.index for judgment in result] == [1]


@pytest.mark.parametrize(
    ("against", "problem"),
    [
        ("one text", "against must be a list of evidence texts, got str"),
        ([None], "against[0] must be a string, got null"),
        (["x" * MAX_AGAINST_CHARS, "y"], "against has 100,001 characters in 2 texts, at most 100,000 in 500: send the"),
    ],
)
def test_what_cannot_be_held_is_said_in_one_line(reranker: Reranker, against: Any, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        reranker.rerank(QUERY, [BEST], against=against)
    assert str(caught.value).startswith(problem)
    assert "\n" not in str(caught.value)


def test_more_than_the_best_fifty_are_not_compared_and_that_is_said(reranker: Reranker) -> None:
    result = reranker.rerank(QUERY, [BEST] * (MAX_COMPARED + 3))
    assert result.same[0].indices == tuple(range(MAX_COMPARED))
    assert "evidence of the best 50 of 53 documents was compared" in result.warnings


def test_http_tells_them_and_leaves_out_what_is_not_there(client: httpx.Client) -> None:
    body = {"query": QUERY, "documents": [*DOCUMENTS, BAD], "against": [f"{FROZE}."], "evidence": True}
    answer = client.post("/v1/rerank", json=body).json()
    by_index = {result["index"]: result for result in answer["results"]}
    assert answer["same"] == [{"indices": [1, 2], "ids": ["a", None]}]
    assert (by_index[1]["held"], by_index[1]["also"], by_index[2]["same_as"]) == (0, ["document=2"], 1)
    assert answer["conflicts"][0]["kind"] == "date"
    plain = client.post("/v1/rerank", json={"query": QUERY, "documents": [NEW, BAD], "evidence": True}).json()
    assert not {"same", "conflicts"} & plain.keys()
    assert not {"also", "same_as", "held"} & plain["results"][0].keys()


def test_http_refuses_what_it_cannot_hold(client: httpx.Client) -> None:
    response = client.post("/v1/rerank", json={"query": QUERY, "documents": [NEW], "against": ["x" * 1_000_000]})
    assert response.status_code == 400
    assert response.json()["message"].startswith("against has 1,000,000 characters in 1 texts")
    assert client.post("/v1/rerank", json={"query": QUERY, "documents": [NEW], "against": "x"}).status_code == 422


def test_a_stream_tells_the_final_order(client: httpx.Client) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS, "against": [f"{FROZE}."], "evidence": True, "stream": True}
    blocks = client.post("/v1/rerank", json=body).text.split("\n\n")[:-1]
    names = [block.split("\n")[0] for block in blocks]
    assert names[-3:] == ["event: comparison", "event: usage", "event: done"]
    told = json.loads(blocks[-3].split("\n")[1].removeprefix("data: "))
    assert told["order"] == [3, 0, 1, 2]
    assert told["same"] == [{"indices": [1, 2], "ids": ["a", None]}]
    assert told["results"][1] == {"index": 2, "also": [], "same_as": 1, "held": 0}
