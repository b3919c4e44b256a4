"""`PrismRanker` inside Haystack's own pipelines."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration_support import BAD, BEST, DEAD, FACTS, FAIR, GOOD, QUERY, TEXTS, expected, serving, tiny

pytest.importorskip("haystack", reason="no Haystack here: run make frameworks")
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.core.errors import DeserializationError, PipelineRuntimeError
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret

from prism.errors import InputError
from prism.integrations.haystack import PrismRanker
from prism.llm.failures import KeyRefused, Unavailable, WrongEndpoint

TRUSTED = ["prism.integrations.haystack"]


@pytest.fixture
def documents() -> list[Document]:
    return [Document(id=f"d{i}", content=text, meta={"source": f"{i}.txt"}) for i, text in enumerate(TEXTS)]


@pytest.fixture
def url(tiny_tokenizer: Any) -> Iterator[str]:
    with serving(tiny_tokenizer) as url:
        yield url


def pipeline(documents: list[Document], ranker: PrismRanker) -> Pipeline:
    """BM25 finds all documents, the ranker has the last word."""
    store = InMemoryDocumentStore()
    store.write_documents(documents)
    made = Pipeline()
    made.add_component("retriever", InMemoryBM25Retriever(document_store=store))
    made.add_component("ranker", ranker)
    made.connect("retriever.documents", "ranker.documents")
    return made


def sent(query: str = QUERY, **more: Any) -> dict[str, Any]:
    return {"retriever": {"query": query}, "ranker": {"query": query, **more}}


def test_a_pipeline(documents: list[Document], url: str) -> None:
    made = pipeline(documents, PrismRanker(url=url))
    for answer in (made.run(sent()), asyncio.run(made.run_async(sent()))):
        best, fair = answer["ranker"]["documents"]
        assert [(one.id, one.content) for one in (best, fair)] == [("d1", GOOD), ("d2", FAIR)]
        assert best.score == best.meta["prism"]["score"] == pytest.approx(0.9)
        assert {name: best.meta["prism"][name] for name in FACTS} == FACTS
        assert best.meta["source"] == "1.txt"
        assert Document.from_dict(best.to_dict()) == best


def test_documents_are_never_changed(documents: list[Document], url: str) -> None:
    before = copy.deepcopy(documents)
    ranker = PrismRanker(url=url, content="evidence", only_yes=False)
    found = ranker.run(QUERY, documents)["documents"]
    assert [one.content for one in found] == [BEST, "p=0.6 Lindau has a harbour.", BAD]
    assert documents == before


def test_top_k(documents: list[Document], url: str) -> None:
    """Set up, and overruled by a call."""
    made = pipeline(documents, PrismRanker(url=url, top_k=1))
    assert [one.id for one in made.run(sent())["ranker"]["documents"]] == ["d1"]
    assert [one.id for one in made.run(sent(top_k=2))["ranker"]["documents"]] == ["d1", "d2"]


def test_a_model_in_this_process(documents: list[Document], tiny_checkpoint: Path) -> None:
    ranker = PrismRanker(**tiny(tiny_checkpoint))
    ranker.warm_up()
    ranker.warm_up()
    made = pipeline(documents, ranker)
    found = made.run(sent())["ranker"]["documents"]
    again = asyncio.run(made.run_async(sent()))["ranker"]["documents"]
    made.close()
    assert found == again
    scores = {text: (score, evidence) for text, score, evidence in expected(tiny_checkpoint)}
    for one in found:
        score, evidence = scores[one.content]
        assert (one.score, one.meta["prism"]["evidence"]) == (pytest.approx(score, abs=1e-3), evidence)


def test_a_saved_pipeline(documents: list[Document], url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PRISM_KEY", "secret-key")
    key = Secret.from_env_var("MY_PRISM_KEY")
    made = Pipeline()
    made.add_component("ranker", PrismRanker(url=url, api_key=key, top_k=1, content="evidence"))
    saved = made.dumps()
    assert "secret-key" not in saved
    assert "MY_PRISM_KEY" in saved
    again = Pipeline.loads(saved, allowed_modules=TRUSTED)
    assert again.to_dict() == made.to_dict()
    assert Pipeline.from_dict(made.to_dict(), allowed_modules=TRUSTED).to_dict() == made.to_dict()
    (found,) = again.run({"ranker": {"query": QUERY, "documents": documents}})["ranker"]["documents"]
    assert found.content == BEST
    with pytest.raises(DeserializationError, match=r"prism\.integrations\.haystack"):
        Pipeline.loads(saved)


def test_a_key_in_plain_text_is_not_saved() -> None:
    with pytest.raises(ValueError, match="token-based secret"):
        PrismRanker(url="http://127.0.0.1:8000", api_key=Secret.from_token("secret-key")).to_dict()


def test_what_cannot_be_judged(documents: list[Document], url: str) -> None:
    """Documents without text spoil no other."""
    documents = [Document(id="none", content=None), Document(id="blank", content=" "), *documents]
    assert [one.id for one in PrismRanker(url=url).run(QUERY, documents)["documents"]] == ["d1", "d2"]
    found = PrismRanker(url=url, only_yes=False, content="evidence").run(QUERY, documents)["documents"]
    assert [one.id for one in found] == ["d1", "d2", "d0", "none", "blank"]
    assert (found[3].score, found[3].content) == (None, None)
    assert found[3].meta["prism"]["error"] == "text must be a string, got null"


def test_no_documents(url: str) -> None:
    assert PrismRanker(url=url).run(QUERY, []) == {"documents": []}
    assert asyncio.run(PrismRanker(url=url).run_async(QUERY, [])) == {"documents": []}
    assert pipeline([], PrismRanker(url=url)).run(sent())["ranker"]["documents"] == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"top_k": 0}, "PrismRanker: top_k: Input should be greater than or equal to 1, got 0"),
        ({"url": "localhost"}, "expected an address"),
        ({"url": "http://localhost", "model": "mini"}, "expected one of url, reranker and model"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        PrismRanker(**settings)
    assert "\n" not in str(caught.value)


def test_servers_that_do_not_answer(documents: list[Document], tiny_tokenizer: Any) -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9/v1/rerank gave no answer in 1 attempts"):
        PrismRanker(**DEAD).run(QUERY, documents)
    with pytest.raises(PipelineRuntimeError, match="gave no answer in 1 attempts"):
        pipeline(documents, PrismRanker(**DEAD)).run(sent())
    with pytest.raises(PipelineRuntimeError, match="gave no answer in 1 attempts"):
        asyncio.run(pipeline(documents, PrismRanker(**DEAD)).run_async(sent()))
    with serving(tiny_tokenizer, "right-key") as url:
        with pytest.raises(WrongEndpoint, match="check url"):
            PrismRanker(url=f"{url}/nowhere").run(QUERY, documents)
        with pytest.raises(KeyRefused, match="PRISM_API_KEY"):
            PrismRanker(url=url).run(QUERY, documents)
        key = Secret.from_token("right-key")
        assert len(PrismRanker(url=url, api_key=key).run(QUERY, documents)["documents"]) == 2
    assert "PRISM_API_KEY" not in os.environ
