"""`PrismPostprocessor` inside LlamaIndex's own query engines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration_support import BAD, BEST, DEAD, FACTS, FAIR, GOOD, QUERY, TEXTS, expected, fake, serving, tiny

pytest.importorskip("llama_index.core", reason="no LlamaIndex here: run make frameworks")
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import MetadataMode, Node, NodeRelationship, NodeWithScore, QueryBundle, TextNode

from prism.errors import InputError
from prism.integrations.llama_index import PrismPostprocessor
from prism.llm.failures import KeyRefused, Unavailable, WrongEndpoint


class Fixed(BaseRetriever):
    """Answers every query with the same nodes."""

    def __init__(self, nodes: list[NodeWithScore]) -> None:
        super().__init__()
        self._nodes = nodes

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    """Of both kinds that hold text."""
    first = TextNode(text=BAD, id_="n0", metadata={"source": "0.txt"})
    second = Node.from_dict(
        {"text_resource": {"text": GOOD}, "id_": "n1", "metadata": {"source": "1.txt"}, "class_name": "Node"}
    )
    second.relationships[NodeRelationship.PREVIOUS] = first.as_related_node_info()
    third = TextNode(text=FAIR, id_="n2", excluded_llm_metadata_keys=["source"], metadata={"source": "2.txt"})
    return [NodeWithScore(node=node, score=0.5) for node in (first, second, third)]


@pytest.fixture(params=["process", "http"])
def place(request: pytest.FixtureRequest, tiny_tokenizer: Any) -> Iterator[dict[str, Any]]:
    if request.param == "process":
        with fake(tiny_tokenizer) as reranker:
            yield {"reranker": reranker}
    else:
        with serving(tiny_tokenizer) as url:
            yield {"url": url}


def engine(nodes: list[NodeWithScore], *postprocessors: Any) -> RetrieverQueryEngine:
    return RetrieverQueryEngine.from_args(Fixed(nodes), llm=MockLLM(), node_postprocessors=[*postprocessors])


def test_a_query_engine(nodes: list[NodeWithScore], place: dict[str, Any]) -> None:
    before = [node.model_dump() for node in nodes]
    query_engine = engine(nodes, PrismPostprocessor(**place))
    for response in (query_engine.query(QUERY), asyncio.run(query_engine.aquery(QUERY))):
        best, fair = response.source_nodes
        assert [(node.node_id, node.get_content()) for node in (best, fair)] == [("n1", GOOD), ("n2", FAIR)]
        assert best.score == best.metadata["prism"]["score"] == pytest.approx(0.9)
        assert {name: best.metadata["prism"][name] for name in FACTS} == FACTS
        assert best.metadata["source"] == "1.txt"
        assert best.node.prev_node.node_id == "n0"
        # MockLLM answers with its prompt: the documents are in it, what Prism says about them is not
        assert GOOD in str(response)
        assert "source: 1.txt" in str(response)
        assert "contribution" not in str(response)
    assert fair.node.excluded_llm_metadata_keys == ["source", "prism"]
    assert "prism" not in best.node.get_content(MetadataMode.EMBED)
    assert [node.model_dump() for node in nodes] == before


def test_evidence_goes_into_the_prompt(nodes: list[NodeWithScore], place: dict[str, Any]) -> None:
    before = [node.model_dump() for node in nodes]
    response = engine(nodes, PrismPostprocessor(**place, content="evidence", top_n=1)).query(QUERY)
    (best,) = response.source_nodes
    assert (best.get_content(), best.node_id) == (BEST, "n1")
    assert BEST in str(response)
    assert "It rarely does" not in str(response)
    assert [node.model_dump() for node in nodes] == before


def test_beside_another_postprocessor(nodes: list[NodeWithScore], place: dict[str, Any]) -> None:
    cutoff = SimilarityPostprocessor(similarity_cutoff=0.7)
    response = engine(nodes, PrismPostprocessor(**place, only_yes=False), cutoff).query(QUERY)
    assert [node.node_id for node in response.source_nodes] == ["n1"]


def test_what_cannot_be_judged(nodes: list[NodeWithScore], place: dict[str, Any]) -> None:
    """Nodes without text spoil no other."""
    nodes = [NodeWithScore(node=Node(id_="image")), NodeWithScore(node=TextNode(text=" ", id_="blank")), *nodes]
    found = PrismPostprocessor(**place).postprocess_nodes(nodes, query_str=QUERY)
    assert [node.node_id for node in found] == ["n1", "n2"]
    found = PrismPostprocessor(**place, only_yes=False, content="evidence").postprocess_nodes(nodes, query_str=QUERY)
    assert [node.node_id for node in found] == ["n1", "n2", "n0", "image", "blank"]
    assert found[3].score is None
    assert "blank" in found[3].metadata["prism"]["error"]
    assert found[3].node.text_resource is None


def test_no_nodes(place: dict[str, Any]) -> None:
    postprocessor = PrismPostprocessor(**place)
    assert postprocessor.postprocess_nodes([], query_str=QUERY) == []
    assert asyncio.run(postprocessor.apostprocess_nodes([])) == []
    assert engine([], postprocessor).query(QUERY).source_nodes == []


def test_no_query(nodes: list[NodeWithScore], place: dict[str, Any]) -> None:
    postprocessor = PrismPostprocessor(**place)
    with pytest.raises(InputError, match="pass query_str or query_bundle"):
        postprocessor.postprocess_nodes(nodes)
    with pytest.raises(InputError, match="pass query_str or query_bundle"):
        asyncio.run(postprocessor.apostprocess_nodes(nodes))


def test_a_model_in_this_process(tiny_checkpoint: Path) -> None:
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    postprocessor = PrismPostprocessor(**tiny(tiny_checkpoint))
    found = engine(nodes, postprocessor).query(QUERY).source_nodes
    postprocessor.close()
    for node, (text, score, evidence) in zip(found, expected(tiny_checkpoint), strict=True):
        assert (node.text, node.score) == (text, pytest.approx(score, abs=1e-3))
        assert node.metadata["prism"]["evidence"] == evidence


def test_settings_as_a_dictionary() -> None:
    """LlamaIndex's way to save a component: without the key."""
    postprocessor = PrismPostprocessor(url="http://127.0.0.1:8000", api_key="secret-key", top_n=3)
    saved = postprocessor.to_json()
    assert "secret-key" not in saved
    again = PrismPostprocessor.from_json(saved)
    assert (again.url, again.top_n, again.class_name()) == ("http://127.0.0.1:8000", 3, "PrismPostprocessor")


def test_servers_that_do_not_answer(nodes: list[NodeWithScore], tiny_tokenizer: Any) -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9/v1/rerank gave no answer in 1 attempts"):
        engine(nodes, PrismPostprocessor(**DEAD)).query(QUERY)
    with pytest.raises(Unavailable, match="gave no answer"):
        asyncio.run(engine(nodes, PrismPostprocessor(**DEAD)).aquery(QUERY))
    with serving(tiny_tokenizer, "right-key") as url:
        with pytest.raises(WrongEndpoint, match="check url"):
            engine(nodes, PrismPostprocessor(url=f"{url}/nowhere")).query(QUERY)
        with pytest.raises(KeyRefused, match="check what is in api_key or PRISM_API_KEY"):
            engine(nodes, PrismPostprocessor(url=url)).query(QUERY)
        found = engine(nodes, PrismPostprocessor(url=url, api_key="right-key")).query(QUERY).source_nodes
        assert len(found) == 2
