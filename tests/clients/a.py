"""The clients that need cohere 5. Usage: python a.py BASE_URL"""

from __future__ import annotations

import os
import sys
from typing import Any

from cases import BAD, DOCUMENTS, GOOD, KEY, QUERY, run

URL = sys.argv[1]
Scores = list[tuple[int, float | None]]


def cohere_v2(query: str, documents: list[str], key: str) -> Scores:
    import cohere

    client = cohere.ClientV2(key, base_url=URL)
    answer = client.rerank(model="rerank-v3.5", query=query, documents=documents, top_n=3)
    return [(result.index, result.relevance_score) for result in answer.results]


def cohere_v1(query: str, documents: list[str], key: str) -> Scores:
    import cohere

    client = cohere.Client(key, base_url=URL)
    sent: Any = [{"text": text, "source": "test"} for text in documents]
    answer = client.rerank(
        model="rerank-v3.5", query=query, documents=sent, rank_fields=["text"], return_documents=True
    )
    assert all(result.document.text == documents[result.index] for result in answer.results)
    return [(result.index, result.relevance_score) for result in answer.results]


def langchain_cohere(query: str, documents: list[str], key: str) -> Scores:
    from langchain_cohere import CohereRerank

    compressor = CohereRerank(model="rerank-v3.5", cohere_api_key=key, base_url=URL, top_n=3)
    return [(row["index"], row["relevance_score"]) for row in compressor.rerank(documents, query)]


def langchain_cohere_documents(query: str, documents: list[str], key: str) -> Scores:
    from langchain_cohere import CohereRerank
    from langchain_core.documents import Document

    compressor = CohereRerank(model="rerank-v3.5", cohere_api_key=key, base_url=URL, top_n=3)
    kept = compressor.compress_documents([Document(text) for text in documents], query)
    return [(documents.index(one.page_content), one.metadata["relevance_score"]) for one in kept]


def llama_index_cohere(query: str, documents: list[str], key: str) -> Scores:
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    ranker = CohereRerank(top_n=3, model="rerank-v3.5", api_key=key, base_url=URL, max_retries=1)
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(documents)]
    return [(int(one.node.node_id), one.score) for one in ranker.postprocess_nodes(nodes, query_str=query)]


def haystack_cohere(query: str, documents: list[str], key: str) -> Scores:
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.cohere import CohereRanker

    ranker = CohereRanker(model="rerank-v3.5", api_key=Secret.from_token(key), api_base_url=URL)
    sent = [Document(content=text, id=str(i)) for i, text in enumerate(documents)]
    return [(int(one.id), one.score) for one in ranker.run(query, sent)["documents"]]


def voyageai(query: str, documents: list[str], key: str) -> Scores:
    import voyageai as sdk

    answer = sdk.Client(api_key=key, base_url=f"{URL}/v1").rerank(query, documents, model="rerank-2")
    assert answer.total_tokens > 0
    assert all(result.document == documents[result.index] for result in answer.results)
    return [(result.index, result.relevance_score) for result in answer.results]


def langchain_voyageai(query: str, documents: list[str], key: str) -> Scores:
    from langchain_core.documents import Document
    from langchain_voyageai import VoyageAIRerank

    compressor = VoyageAIRerank(model="rerank-2", api_key=key, base_url=f"{URL}/v1")
    kept = compressor.compress_documents([Document(text) for text in documents], query)
    return [(documents.index(one.page_content), one.metadata["relevance_score"]) for one in kept]


def openai_raw(query: str, documents: list[str], key: str) -> Scores:
    import openai

    client = openai.OpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=0)
    answer: Any = client.post("/rerank", body={"query": query, "documents": documents}, cast_to=object)
    return [(row["index"], row["relevance_score"]) for row in answer["results"]]


def openai_models() -> list[str]:
    import openai

    return [model.id for model in openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY).models.list()]


def cohere_sees_evidence() -> list[Any]:
    """Fields Cohere does not have reach the caller of its SDK."""
    import cohere

    client = cohere.ClientV2(KEY, base_url=URL)
    answer = client.rerank(model="any", query=QUERY, documents=DOCUMENTS)
    best: Any = answer.results[0]
    return [best.evidence, best.contribution, best.verdict]


def cohere_asks_with_options() -> list[Any]:
    import cohere

    client = cohere.ClientV2(KEY, base_url=URL)
    more = {"additional_body_parameters": {"evidence": {"top_n": 1}, "threshold": 0.1}}
    answer = client.rerank(model="any", query=QUERY, documents=DOCUMENTS, top_n=2, request_options=more)
    return [getattr(result, "evidence", None) is not None for result in answer.results]


os.environ.update(HAYSTACK_TELEMETRY_ENABLED="False", DO_NOT_TRACK="1")
assert DOCUMENTS == [BAD, GOOD]
run(
    {
        "cohere 5, v2": cohere_v2,
        "cohere 5, v1": cohere_v1,
        "langchain-cohere": langchain_cohere,
        "langchain-cohere, documents": langchain_cohere_documents,
        "llama-index cohere": llama_index_cohere,
        "haystack cohere": haystack_cohere,
        "voyageai 0.3": voyageai,
        "langchain-voyageai": langchain_voyageai,
        "openai, raw post": openai_raw,
    },
    {
        "openai lists the model": openai_models,
        "cohere 5 sees evidence": cohere_sees_evidence,
        "cohere 5 asks with options": cohere_asks_with_options,
    },
)
