"""Contexts over HTTP: every form, budgets, tokenizers that the server names, streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeEngine
from http_endpoint import Server

from prism.errors import InputError
from prism.reranker import Reranker
from prism.serving.app import create_app
from prism.serving.limits import Limits
from prism.template import PRISM, Template

QUERY = "when does the harbour freeze?"
GOOD = {"id": "lindau", "text": "p=0.9 The harbour froze in 1963. It rarely does."}
FAIR = "p=0.7 Copper conducts electricity. So does silver."
BAD = "p=0.2 Nothing to see. Move on."


@pytest.fixture(scope="module")
def reranker(tiny_tokenizer: Any) -> Reranker:
    engine = FakeEngine(Template(PRISM, tiny_tokenizer))
    return Reranker(engine.template, engine, name="fake")


@pytest.fixture(scope="module")
def client(reranker: Reranker, tiny_checkpoint: Path) -> Iterator[httpx.Client]:
    with Server(reranker, tokenizers=(str(tiny_checkpoint),)) as client:
        yield client


def post(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/rerank", json={"query": QUERY, "documents": [BAD, GOOD, FAIR], **body})


@pytest.mark.parametrize("form", ["text", "xml", "json", "anthropic"])
def test_every_form_is_what_the_library_makes(client: httpx.Client, reranker: Reranker, form: Any) -> None:
    expected = reranker.rerank(QUERY, [BAD, GOOD, FAIR]).fit_context(form)
    assert len(expected.documents) == 2
    assert post(client, context_format=form).json()["context"] == expected.model_dump(mode="json")


def test_only_who_asks_gets_one(client: httpx.Client) -> None:
    assert "context" not in post(client).json()
    assert "context" not in post(client, context_format=" ", context_tokens=None).json()
    voyage = post(client, context_format="text", top_k=3).json()
    assert voyage["context"]["documents"] == [1, 2]


def test_budgets(client: httpx.Client, tiny_checkpoint: Path) -> None:
    whole = post(client, context_format="text").json()["context"]
    one = post(client, context_tokens=whole["tokens"] - 1).json()["context"]
    assert one["documents"] == [1]
    assert one["left_out"] == [{"index": 2, "id": None, "reason": "budget", "tokens": one["left_out"][0]["tokens"]}]
    none = post(client, context_tokens=1).json()["context"]
    assert (none["content"], none["documents"]) == ("", [])
    assert none["problem"].startswith("a budget of 1 tokens holds none of 2 sources: ")
    named = post(client, context_tokens="900", context_tokenizer=str(tiny_checkpoint)).json()["context"]
    assert named["tokens"] == whole["tokens"]  # the same tokenizer under its name


def test_what_cannot_be_asked(client: httpx.Client) -> None:
    for status, words, body in (
        (400, "no context_tokenizer '/etc/passwd' here: expected '", {"context_tokenizer": "/etc/passwd"}),
        (400, "context_tokens must be at least 1, got 0", {"context_tokens": 0}),
        (422, "context_format", {"context_format": "yaml"}),
        (400, "no place for a context", {"texts": ["a"], "documents": None}),
    ):
        response = post(client, **{"context_format": "text", **body})
        assert response.status_code == status
        assert words in response.json()["message"]


def test_a_stream_ends_with_it(client: httpx.Client) -> None:
    whole = post(client, context_format="xml").json()
    events = [block.split("\n") for block in post(client, context_format="xml", stream=True).text.split("\n\n")[:-1]]
    assert [name for name, _ in events[-3:]] == ["event: context", "event: usage", "event: done"]
    assert json.loads(events[-3][1].removeprefix("data: ")) == whole["context"]


def test_a_tokenizer_that_is_not_there_is_found_at_the_start(reranker: Reranker, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        create_app(reranker, Limits(tokenizers=(str(tmp_path),)))
