"""What the tests of LangChain, LlamaIndex and Haystack share: texts, and both places where Prism can be.

They run in an environment of their own (`make frameworks`), each inside the framework's own objects.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fakes import FakeEngine
from http_endpoint import Server

from prism.integrations.adapter import KEY
from prism.reranker import Reranker
from prism.serving.limits import Keys
from prism.template import PRISM, Template

os.environ.update(HAYSTACK_TELEMETRY_ENABLED="False", DO_NOT_TRACK="1", LANGSMITH_TRACING="false")
os.environ.pop(KEY, None)

QUERY = "when does the harbour freeze?"
BAD = "p=0.2 Nothing to see of the harbour. Move on."
GOOD = "p=0.9 The harbour froze in 1963. It rarely does."
FAIR = "p=0.6 Lindau has a harbour. It is old."
TEXTS = [BAD, GOOD, FAIR]
BEST = "p=0.9 The harbour froze in 1963."
"""What the fake model writes about `GOOD`."""
FACTS = {
    "verdict": "yes",
    "outcome": "complete",
    "contribution": "It helps.",
    "evidence": BEST,
    "spans": [{"start": 0, "end": 32, "support": 1.0}],
    "support": 1.0,
    "unsupported": [],
    "error": None,
}
"""What metadata says about it."""
DEAD = {"url": "http://127.0.0.1:9", "attempts": 1}
"""Nobody listens on the port named discard."""


def fake(tokenizer: Any) -> Reranker:
    engine = FakeEngine(Template(PRISM, tokenizer))
    return Reranker(engine.template, engine, name="fake")


@contextmanager
def serving(tokenizer: Any, *keys: str) -> Iterator[str]:
    """The URL of a Prism server with the fake model."""
    server = Server(fake(tokenizer), keys=Keys(keys))
    with server:
        yield server.url


def tiny(checkpoint: Path) -> dict[str, Any]:
    """Settings for the tiny random model in this process: it says yes to everything, and quotes."""
    return {"model": str(checkpoint), "load_options": {"template": "prism", "self_test": False}, "threshold": 0.0}


def expected(checkpoint: Path) -> list[tuple[str, float | None, str | None]]:
    """Text, score and evidence of the tiny model's ranking, from the library itself."""
    with Reranker.load(str(checkpoint), template="prism", self_test=False) as reranker:
        result = reranker.rerank(QUERY, TEXTS, threshold=0.0)
    return [(TEXTS[judgment.index], judgment.score, judgment.evidence) for judgment in result]
