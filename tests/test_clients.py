"""The real client libraries, in environments of their own (`make clients`), each calling a running server."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine
from http_endpoint import Server

from prism.reranker import Reranker
from prism.serving.limits import Keys
from prism.template import PRISM, Template

ROOT = Path(__file__).parents[1]
HERE = ROOT / "tests" / "clients"
pytestmark = [pytest.mark.exhaustive, pytest.mark.slow, pytest.mark.timeout(1800)]  # cold imports of a hundred packages

OF_A = (
    "cohere 5, v2",
    "cohere 5, v1",
    "langchain-cohere",
    "langchain-cohere, documents",
    "llama-index cohere",
    "haystack cohere",
    "voyageai 0.3",
    "langchain-voyageai",
    "openai, raw post",
)
OF_B = (
    "cohere 7",
    "litellm cohere",
    "litellm hosted_vllm",
    "litellm jina_ai",
    "litellm voyage",
    "litellm huggingface",
    "voyageai 0.5",
    "llama-index jinaai",
    "llama-index tei",
    "haystack jina",
    "rerankers cohere",
    "rerankers jina",
    "rerankers voyage",
    "rerankers text-embeddings-inference",
)
# They rerank through typed questions. jev-reranker looks into no body of an error, and finds a blank query itself.
OF_DECISIONS = (
    "hev-rerank",
    "hev-rerank, objects, a call each",
    "jev-reranker listwise",
    "jev-reranker pointwise",
    "jev-reranker relevance",
    "jev-reranker relevance, pointwise",
    "decisions-reranker",
    "llama-index jev, noul",
    "llama-index jev, score",
)
# These look at no status: whatever a failed request answers, they find no scores in it and raise what Python raises.
SILENT = {"llama-index tei", *(name for name in OF_B if name.startswith("rerankers"))}


@pytest.fixture(scope="module")
def server(tiny_tokenizer: Any) -> Iterator[str]:
    engine = FakeEngine(Template(PRISM, tiny_tokenizer))
    server = Server(Reranker(engine.template, engine, name="fake"), keys=Keys(["secret-key"]))
    with server:
        yield server.url


def answers_of(environment: str, url: str) -> dict[str, dict[str, Any]]:
    python = ROOT / f".venv-clients-{environment}" / "bin" / "python"
    if not python.with_name("python").exists() or not (python.parents[1] / ".done").exists():
        pytest.skip(f"no .venv-clients-{environment}: run make clients")
    script = HERE / f"{environment}.py"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    done = subprocess.run(
        [python, str(script), url], capture_output=True, text=True, check=False, cwd=HERE, env=clean, timeout=1700
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout[done.stdout.index("{") :])
    return answers


@pytest.fixture(scope="module")
def answers_a(server: str) -> dict[str, dict[str, Any]]:
    return answers_of("a", server)


@pytest.fixture(scope="module")
def answers_b(server: str) -> dict[str, dict[str, Any]]:
    return answers_of("b", server)


@pytest.fixture(scope="module")
def answers_decisions(tiny_tokenizer: Any) -> Iterator[dict[str, Any]]:
    engine = FakeEngine(Template(PRISM, tiny_tokenizer))
    server = Server(Reranker(engine.template, engine, name="fake"), keys=Keys(["secret-key"]), max_tokens=5_000)
    with server:
        yield answers_of("decisions", server.url)


def check(name: str, answers: dict[str, Any]) -> None:
    """The ranking of a good request; a blank document spares the others; our words, or at least an error, for a bad."""
    scores = dict(answers["good"])
    assert list(scores) == [1, 0]
    assert (scores[1], scores[0]) == (pytest.approx(0.9), pytest.approx(0.2))
    with_blank = answers["blank document"]
    assert [index for index, _ in with_blank][:2] == [1, 0]
    assert with_blank[0][1] == pytest.approx(0.9)
    for case, words in (("blank query", "query is blank"), ("wrong key", "no valid API key")):
        assert answers[case]["raised"], case
        if name not in SILENT:
            assert words in answers[case]["message"], answers[case]
            assert answers[case]["raised"] not in {"KeyError", "TypeError", "AttributeError"}


@pytest.mark.parametrize("name", OF_A)
def test_clients_that_need_cohere_5(answers_a: dict[str, Any], name: str) -> None:
    check(name, answers_a[name])


@pytest.mark.parametrize("name", OF_B)
def test_clients_that_live_with_cohere_7(answers_b: dict[str, Any], name: str) -> None:
    check(name, answers_b[name])


@pytest.mark.parametrize("name", OF_DECISIONS)
def test_clients_of_typed_questions(answers_decisions: dict[str, Any], name: str) -> None:
    answers = answers_decisions[name]
    scale = 3 if name.endswith("score") else 1  # levels 0 to 3
    assert answers["good"] == [[1, pytest.approx(0.9 * scale)], [0, pytest.approx(0.2 * scale)]]
    assert answers["blank document"] == [*answers["good"], [2, 0.0]], "a passage without text answers no query"
    own = {"blank query": "query must be a nonempty string", "wrong key": "HTTP 401"}
    words = own if name.startswith("jev") else {"blank query": "is blank", "wrong key": "no valid API key"}
    for case, told in words.items():
        assert told in answers[case]["message"], answers[case]


def test_what_clients_of_typed_questions_see(answers_decisions: dict[str, Any]) -> None:
    assert answers_decisions["jev-reranker pairwise"]["good"]["message"] == "TypeSafe request failed with HTTP 400."
    assert answers_decisions["jev-reranker splits"]["answer"] == list(reversed(range(20)))
    scores, best, how, legend, answered, model = answers_decisions["typesafe-sdk"]["answer"]
    assert (scores, best, how) == (pytest.approx(0.9), "a", pytest.approx(0.4))
    assert (legend, answered, model) == ("fully", ["a", "best", "how"], "fake")
    kind, probability, best, how, refused, reason = answers_decisions["openai"]["answer"]
    assert (kind, probability) == ("AnswerAnswerResourcePredicate", pytest.approx(0.9))
    assert (best, how, refused) == ("a", pytest.approx(0.4), "refusal")
    assert reason == "it is about 2 passages, and this model judges one at a time"


def test_what_else_clients_see(answers_a: dict[str, Any], answers_b: dict[str, Any]) -> None:
    evidence = "p=0.9 The harbour froze in 1963."
    assert answers_a["openai lists the model"]["answer"] == ["fake"]
    assert answers_a["cohere 5 sees evidence"]["answer"] == [evidence, "It helps.", "yes"]
    assert answers_a["cohere 5 asks with options"]["answer"] == [True, False]
    assert answers_b["cohere 7 relevant_spans"]["answer"] == [evidence]
    assert answers_b["litellm hosted_vllm documents"]["answer"][0].startswith("p=0.9")


def test_every_client_is_pinned() -> None:
    for path in HERE.glob("requirements-*.txt"):
        lines = path.read_text(encoding="utf-8").splitlines()
        loose = [line for line in lines if line and not line.startswith("#") and not re.search(r"==[\w.]+$", line)]
        assert loose == []
