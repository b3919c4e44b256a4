"""The clients that live with cohere 7. Usage: python b.py BASE_URL"""

from __future__ import annotations

import os
import sys
from typing import Any

from cases import DOCUMENTS, KEY, QUERY, run

URL = sys.argv[1]
Scores = list[tuple[int, float | None]]


def cohere_v2(query: str, documents: list[str], key: str) -> Scores:
    import cohere

    client = cohere.ClientV2(key, base_url=URL)
    answer = client.rerank(model="rerank-v5", query=query, documents=documents, max_tokens_per_doc=4096)
    return [(result.index, result.relevance_score) for result in answer.results]


def litellm(provider: str) -> Any:
    bases = {"huggingface": URL, "hosted_vllm": URL, "cohere": URL, "jina_ai": URL, "voyage": URL}

    def ask(query: str, documents: list[str], key: str) -> Scores:
        import litellm as sdk

        sdk.suppress_debug_info = True
        answer = sdk.rerank(
            model=f"{provider}/any", query=query, documents=documents, api_key=key, api_base=bases[provider], top_n=3
        )
        return [(row["index"], row["relevance_score"]) for row in answer.results]

    return ask


def voyageai(query: str, documents: list[str], key: str) -> Scores:
    import voyageai as sdk

    answer = sdk.Client(api_key=key, base_url=f"{URL}/v1").rerank(query, documents, model="rerank-2", top_k=3)
    assert answer.total_tokens > 0
    return [(result.index, result.relevance_score) for result in answer.results]


def _nodes(documents: list[str]) -> list[Any]:
    from llama_index.core.schema import NodeWithScore, TextNode

    return [NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(documents)]


def llama_index_jina(query: str, documents: list[str], key: str) -> Scores:
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    ranker = JinaRerank(top_n=3, base_url=f"{URL}/v1", api_key=key)
    kept = ranker.postprocess_nodes(_nodes(documents), query_str=query)
    return [(int(one.node.node_id), one.score) for one in kept]


def llama_index_tei(query: str, documents: list[str], key: str) -> Scores:
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    ranker = TextEmbeddingInference(base_url=URL, top_n=3, auth_token=f"Bearer {key}")
    kept = ranker.postprocess_nodes(_nodes(documents), query_str=query)
    return [(int(one.node.node_id), one.score) for one in kept]


def haystack_jina(query: str, documents: list[str], key: str) -> Scores:
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.jina import JinaRanker

    ranker = JinaRanker(api_key=Secret.from_token(key), base_url=f"{URL}/v1/rerank")
    sent = [Document(content=text, id=str(i)) for i, text in enumerate(documents)]
    return [(int(one.id), one.score) for one in ranker.run(query, sent)["documents"]]


def rerankers(provider: str) -> Any:
    def ask(query: str, documents: list[str], key: str) -> Scores:
        from rerankers import Reranker

        ranker = Reranker("any", model_type=provider, api_key=key, url=f"{URL}/v1/rerank")
        answer = ranker.rank(query=query, docs=documents, doc_ids=list(range(len(documents))))
        return [(result.doc_id, result.score) for result in answer.results]

    return ask


def cohere_spans() -> list[Any]:
    """Context compression as Cohere defines it."""
    import cohere

    client = cohere.ClientV2(KEY, base_url=URL)
    spans: Any = {"mode": "enabled", "threshold": 0.5, "max_spans": 1}
    answer = client.rerank(model="rerank-v5", query=QUERY, documents=DOCUMENTS, relevant_spans=spans)
    best = answer.results[0]
    text = DOCUMENTS[best.index]
    return [text[span.start : span.end] for span in best.relevant_spans or []]


def litellm_documents() -> list[Any]:
    """A document comes back as an object, whichever provider is spoken."""
    import litellm as sdk

    answer = sdk.rerank(
        model="hosted_vllm/any", query=QUERY, documents=DOCUMENTS, api_key=KEY, api_base=URL, return_documents=True
    )
    return [row["document"]["text"] for row in answer.results]


os.environ.update(HAYSTACK_TELEMETRY_ENABLED="False", DO_NOT_TRACK="1", LITELLM_LOCAL_MODEL_COST_MAP="True")
run(
    {
        "cohere 7": cohere_v2,
        **{f"litellm {name}": litellm(name) for name in ("cohere", "hosted_vllm", "jina_ai", "voyage", "huggingface")},
        "voyageai 0.5": voyageai,
        "llama-index jinaai": llama_index_jina,
        "llama-index tei": llama_index_tei,
        "haystack jina": haystack_jina,
        **{f"rerankers {name}": rerankers(name) for name in ("cohere", "jina", "voyage", "text-embeddings-inference")},
    },
    {"cohere 7 relevant_spans": cohere_spans, "litellm hosted_vllm documents": litellm_documents},
)
