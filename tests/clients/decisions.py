"""The clients that rerank through typed questions. Usage: python decisions.py BASE_URL"""

from __future__ import annotations

import os
import sys
from typing import Any

from cases import BAD, GOOD, KEY, QUERY, run

URL = sys.argv[1]
os.environ["TYPESAFE_BASE_URL"] = URL
Scores = list[tuple[int, float | None]]


def hev_rerank(query: str, documents: list[str], key: str) -> Scores:
    from hev_rerank import rerank

    os.environ["TYPESAFE_API_KEY"] = key
    return [(hit.index, hit.score) for hit in rerank(query, documents)]


def hev_rerank_objects(query: str, documents: list[str], key: str) -> Scores:
    from hev_rerank import rerank

    os.environ["TYPESAFE_API_KEY"] = key
    sent = [{"title": "", "text": text, "url": "x"} for text in documents]
    return [(hit.index, hit.score) for hit in rerank(query, sent, max_docs_per_call=1)]


def jev(mode: str, method: str = "rerank") -> Any:
    def ask(query: str, documents: list[str], key: str) -> Scores:
        from jev_reranker import JevReranker

        ranker = JevReranker(mode=mode, api_key=key, dotenv_path=None, endpoint=f"{URL}/v1/systemone", max_retries=1)
        results = getattr(ranker, method)(query, documents, threshold=0.0)["results"]
        return [(result["document_index"], result["score"]) for result in results]

    return ask


def jev_split() -> list[int]:
    """More than the server takes at once: it says so in a way that the client splits the request."""
    from jev_reranker import JevReranker

    ranker = JevReranker(api_key=KEY, dotenv_path=None, endpoint=f"{URL}/v1/systemone", max_retries=0)
    documents = [f"p=0.{n + 10} " + "w " * 400 for n in range(20)]
    answer = ranker.rerank(QUERY, documents, detail=True)
    assert answer["detail"]["usage"]["max_tokens_errors"] > 0
    return [result["document_index"] for result in answer["results"]]


def decisions_reranker(query: str, documents: list[str], key: str) -> Scores:
    from decisions_reranker import DecisionsReranker, Document
    from openai import OpenAI

    client = OpenAI(api_key=key, base_url=f"{URL}/v1", max_retries=0)
    sent = [Document(id=str(index), text=text) for index, text in enumerate(documents)]
    return [(int(one.id), one.score) for one in DecisionsReranker(client).rerank(query, sent)]


def llama_index(mode: Any) -> Any:
    def ask(query: str, documents: list[str], key: str) -> Scores:
        from llama_index.core.schema import NodeWithScore, TextNode
        from llama_index.postprocessor.jev import JevRerank

        ranker = JevRerank(api_key=key, mode=mode, raise_on_error=True, timeout_s=60)
        nodes = [NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(documents)]
        return [(int(one.node.node_id), one.score) for one in ranker.postprocess_nodes(nodes, query_str=query)]

    return ask


def typesafe() -> Any:
    """Every kind of question, as the SDK's own types."""
    from typesafe_sdk import Choice, Noul, Score, TypeSafeClient

    state = {"query": QUERY, "documents": {"a": GOOD, "b": BAD}}
    questions = {
        "a": Noul(instructions="Does `documents.a` answer `query`?"),
        "best": Choice(instructions="Which answers `query`?", criteria={"a": None, "b": None}),
        "how": Score(instructions="How well does `documents.b` answer `query`?", criteria=["not", "partly", "fully"]),
        "both": Noul(instructions="Do `documents.a` and `documents.b` answer `query`?"),
    }
    with TypeSafeClient(api_key=KEY) as client:
        answer = client.system_one(state=state, questions=questions)
        [model] = client.models.list().models
    assert answer.request_id.startswith("rerank-")
    assert answer.usage.input_tokens
    best, how = answer.choices["best"], answer.scores["how"]
    return [answer.nouls["a"].noul, best.choice, how.score, how.legend[2], sorted(answer.answers), model.name]


def openai_decisions() -> Any:
    """Every kind of question, as the SDK's own types."""
    from openai import OpenAI

    data: Any = {"query": QUERY, "documents": {"a": GOOD, "b": BAD}}
    questions: Any = [
        {"type": "predicate", "name": "a", "instructions": "Does `documents.a` answer `query`?"},
        {"type": "choice", "instructions": "Which answers `query`?", "choices": [{"value": "a"}, {"value": "b"}]},
        {
            "type": "score",
            "instructions": "How well does `documents.b` answer `query`?",
            "levels": [{"label": label} for label in ("not", "partly", "fully")],
        },
        {"type": "predicate", "instructions": "Do `documents.a` and `documents.b` answer `query`?"},
    ]
    client = OpenAI(api_key=KEY, base_url=f"{URL}/v1")
    said: Any = [{"role": "user", "content": [{"type": "input_json", "data": data}]}]
    answer = client.decisions.create(model="gpt-6-luna", input=said, questions=questions)
    assert answer._request_id.startswith("rerank-")
    assert answer.usage.total_tokens
    a, best, how, both = answer.answers
    return [type(a).__name__, a.probability, best.choice, how.score, both.type, both.reason]


run(
    {
        "hev-rerank": hev_rerank,
        "hev-rerank, objects, a call each": hev_rerank_objects,
        "jev-reranker listwise": jev("listwise"),
        "jev-reranker pointwise": jev("pointwise"),
        "jev-reranker relevance": jev("listwise", "relevance_rerank"),
        "jev-reranker relevance, pointwise": jev("pointwise", "relevance_rerank"),
        "jev-reranker pairwise": jev("pairwise"),
        "decisions-reranker": decisions_reranker,
        "llama-index jev, noul": llama_index("noul"),
        "llama-index jev, score": llama_index("score"),
    },
    {"jev-reranker splits": jev_split, "typesafe-sdk": typesafe, "openai": openai_decisions},
)
