"""Requests as each dialect's clients send them, asked of the endpoint with mini."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi.testclient import TestClient

from prism.reranker import Reranker
from prism.serving.app import create_app

QUERY = "How long is the warranty?"
SHIPPING = "Orders over 50 euros ship free of charge within the European Union."
WARRANTY = "The warranty covers defects for two years from the date of purchase. Keep the bill."


class Example(NamedTuple):
    """One request."""

    path: str
    note: str
    """What to see in it."""
    body: Mapping[str, Any]
    language: str = "json"
    """What the answer is written in."""
    status: int = 200


EXAMPLES: Mapping[str, Example] = {
    "Prism": Example(
        "/v1/rerank",
        "Verdict, contribution, evidence with its spans, and what was checked; `context` for a prompt if asked for.",
        {
            "query": QUERY,
            "documents": [
                {"id": "shipping", "text": SHIPPING},
                {"id": "warranty", "title": "Warranty", "text": WARRANTY},
            ],
            "top_n": 1,
            "evidence": {"max_tokens": 200},
            "context_format": "xml",
        },
    ),
    "Prism, evidence quoted": Example(
        "/v1/rerank",
        "Sentences of the document, word for word. Every yes/no reranker can; there is no contribution.",
        {"query": QUERY, "documents": [WARRANTY], "evidence": "quoted"},
    ),
    "Prism, streamed": Example(
        "/v1/rerank",
        "Server-sent events: the ranking, evidence as it is found, usage, done. Add `-N` to curl.",
        {"query": QUERY, "documents": [SHIPPING, WARRANTY], "stream": True},
        "text",
    ),
    "Cohere": Example(
        "/v2/rerank",
        "`relevant_spans` answers Rerank 5's Context Focus: stretches that back the evidence, best first.",
        {
            "model": "rerank-v5.0-fast",
            "query": QUERY,
            "documents": [SHIPPING, WARRANTY],
            "top_n": 1,
            "max_tokens_per_doc": 4096,
            "relevant_spans": {"mode": "enabled", "max_spans": 2},
        },
    ),
    "Jina": Example(
        "/v1/rerank",
        "The query may be an object; documents come back as objects.",
        {
            "model": "jina-reranker-v3.5",
            "query": {"text": QUERY},
            "documents": [{"text": SHIPPING}, {"text": WARRANTY}],
            "top_n": 1,
            "return_documents": True,
        },
    ),
    "Voyage": Example(
        "/v1/rerank",
        "Known by `top_k` or `truncation`. Its clients read `data`; nothing is written unless the request asks.",
        {
            "model": "rerank-2.5",
            "query": QUERY,
            "documents": [SHIPPING, WARRANTY],
            "top_k": 1,
            "return_documents": True,
            "truncation": True,
        },
    ),
    "vLLM, rerank": Example(
        "/rerank",
        "`truncate_prompt_tokens: -1` means as many as the model reads, `use_activation: false` log-odds.",
        {"model": "mini", "query": QUERY, "documents": [SHIPPING, WARRANTY], "top_n": 0, "truncate_prompt_tokens": -1},
    ),
    "vLLM, score": Example(
        "/v1/score",
        "Scores only, in the order sent.",
        {"model": "mini", "text_1": QUERY, "text_2": [SHIPPING, WARRANTY]},
    ),
    "Text Embeddings Inference": Example(
        "/rerank",
        "Known by `texts`. The answer is a bare array; warnings stand in the header `X-Prism-Warnings`.",
        {"query": QUERY, "texts": [SHIPPING, WARRANTY], "return_text": True, "raw_scores": False},
    ),
    "TypeSafe's System One (Jev)": Example(
        "/v1/systemone",
        "A noul is the score of the pair; what it means is in [Typed questions](../how-to/decisions.md).",
        {
            "model": "jev-latest",
            "state": {"query": QUERY, "documents": {"shipping": SHIPPING, "warranty": WARRANTY}},
            "questions": {
                name: {"type": "noul", "instructions": f"Does `documents.{name}` answer `query`?"}
                for name in ("shipping", "warranty")
            },
        },
    ),
    "OpenAI's Decisions": Example(
        "/v1/decisions",
        "A predicate is the same number.",
        {
            "model": "mini",
            "input": WARRANTY,
            "questions": [{"type": "predicate", "name": "warranty", "instructions": QUERY}],
        },
    ),
    "What a call would take": Example(
        "/v1/rerank",
        "`dry_run` computes nothing: tokens, time and cuts, before the call is made.",
        {"query": QUERY, "documents": [SHIPPING, WARRANTY], "dry_run": True},
    ),
    "An error": Example(
        "/v1/rerank",
        "One body for all dialects but Voyage's and TEI's; the message says what to do.",
        {"query": "", "documents": [WARRANTY]},
        status=400,
    ),
}


def asked(examples: Mapping[str, Example]) -> tuple[dict[str, Any], dict[str, tuple[Example, str]]]:
    """The OpenAPI schema of the endpoint, and each example with its answer. Raises ValueError at another status."""
    answers = {}
    with TestClient(create_app(Reranker.load("mini", device="cpu"))) as client:
        for title, example in examples.items():
            answer = client.post(example.path, json=example.body)
            text = answer.text.strip()
            if answer.status_code != example.status:
                raise ValueError(f"{title}: expected {example.status}, got {answer.status_code} {text}")
            if example.language == "json":
                text = json.dumps(answer.json(), ensure_ascii=False, indent=2)
            answers[title] = (example, text)
        return client.get("/openapi.json").json(), answers
