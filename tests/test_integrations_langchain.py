"""`PrismCompressor` inside LangChain's own retrievers and runnables."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration_support import BAD, BEST, DEAD, FACTS, FAIR, GOOD, QUERY, TEXTS, expected, fake, serving, tiny

pytest.importorskip("langchain_classic", reason="no LangChain here: run make frameworks")
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from prism.errors import InputError
from prism.integrations.langchain import PrismCompressor
from prism.llm.failures import KeyRefused, Unavailable, WrongEndpoint


class Fixed(BaseRetriever):
    """Answers every query with the same documents."""

    documents: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return self.documents


@pytest.fixture
def documents() -> list[Document]:
    return [Document(text, id=f"d{i}", metadata={"source": f"{i}.txt", "tags": ["a"]}) for i, text in enumerate(TEXTS)]


@pytest.fixture(params=["process", "http"])
def place(request: pytest.FixtureRequest, tiny_tokenizer: Any) -> Iterator[dict[str, Any]]:
    if request.param == "process":
        with fake(tiny_tokenizer) as reranker:
            yield {"reranker": reranker}
    else:
        with serving(tiny_tokenizer) as url:
            yield {"url": url}


def retriever(documents: list[Document], **settings: Any) -> ContextualCompressionRetriever:
    return ContextualCompressionRetriever(
        base_compressor=PrismCompressor(**settings), base_retriever=Fixed(documents=documents)
    )


def test_a_compression_retriever(documents: list[Document], place: dict[str, Any]) -> None:
    before = copy.deepcopy(documents)
    chain = retriever(documents, **place)
    for found in (chain.invoke(QUERY), asyncio.run(chain.ainvoke(QUERY))):
        assert [(one.id, one.page_content) for one in found] == [("d1", GOOD), ("d2", FAIR)]
        metadata = found[0].metadata
        assert (metadata["source"], metadata["tags"]) == ("1.txt", ["a"])
        assert metadata["relevance_score"] == metadata["prism"]["score"] == pytest.approx(0.9)
        assert {name: metadata["prism"][name] for name in FACTS} == FACTS
    assert documents == before


def test_batches(documents: list[Document], place: dict[str, Any]) -> None:
    """Both kinds, with calls side by side."""
    chain = retriever(documents, **place, top_n=1)
    queries = [f"{QUERY} {number}" for number in range(6)]
    for found in (chain.batch(queries), asyncio.run(chain.abatch(queries))):
        assert [[one.page_content for one in answer] for answer in found] == [[GOOD]] * 6


def test_a_chain(documents: list[Document], place: dict[str, Any]) -> None:
    """The evidence in place of the documents, on its way into a prompt."""
    compress = retriever(documents, **place, content="evidence")
    join = RunnableLambda(lambda found: "\n".join(one.page_content for one in found))
    chain = RunnablePassthrough.assign(context=(lambda sent: sent["question"]) | compress | join)
    answer = chain.invoke({"question": QUERY})
    assert answer["context"] == f"{BEST}\np=0.6 Lindau has a harbour."
    assert asyncio.run(chain.ainvoke({"question": QUERY})) == answer


def test_what_cannot_be_judged(documents: list[Document], place: dict[str, Any]) -> None:
    """A document without text spoils no other."""
    documents.insert(0, Document("", id="empty"))
    assert [one.id for one in retriever(documents, **place).invoke(QUERY)] == ["d1", "d2"]
    found = retriever(documents, **place, only_yes=False).invoke(QUERY)
    assert [one.id for one in found] == ["d1", "d2", "d0", "empty"]
    assert found[2].page_content == BAD
    assert found[3].metadata["relevance_score"] is None
    assert "blank" in found[3].metadata["prism"]["error"]


def test_no_documents(place: dict[str, Any]) -> None:
    assert retriever([], **place).invoke(QUERY) == []
    compressor = PrismCompressor(**place)
    assert compressor.compress_documents([], QUERY) == []
    assert asyncio.run(compressor.acompress_documents([], QUERY)) == []


def test_a_model_in_this_process(documents: list[Document], tiny_checkpoint: Path) -> None:
    compressor = PrismCompressor(**tiny(tiny_checkpoint), content="evidence")
    found = compressor.compress_documents(documents, QUERY)
    again = asyncio.run(compressor.acompress_documents(documents, QUERY))
    compressor.close()
    assert found == again
    for one, (text, score, evidence) in zip(found, expected(tiny_checkpoint), strict=True):
        assert (one.metadata["relevance_score"], one.page_content) == (pytest.approx(score, abs=1e-3), evidence or text)
        assert one.metadata["prism"]["evidence_source"] == "quoted"


def test_servers_that_do_not_answer(documents: list[Document], tiny_tokenizer: Any) -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9/v1/rerank gave no answer in 1 attempts"):
        retriever(documents, **DEAD).invoke(QUERY)
    with pytest.raises(Unavailable, match="gave no answer"):
        asyncio.run(retriever(documents, **DEAD).ainvoke(QUERY))
    with serving(tiny_tokenizer, "right-key") as url:
        with pytest.raises(WrongEndpoint, match="check url"):
            retriever(documents, url=f"{url}/nowhere").invoke(QUERY)
        with pytest.raises(KeyRefused, match="check what is in api_key or PRISM_API_KEY"):
            retriever(documents, url=url).invoke(QUERY)
        assert len(retriever(documents, url=url, api_key="right-key").invoke(QUERY)) == 2


def test_a_blank_query(documents: list[Document], tiny_tokenizer: Any) -> None:
    with fake(tiny_tokenizer) as reranker, pytest.raises(InputError, match="query is blank"):
        retriever(documents, reranker=reranker).invoke("  ")
