"""The bytes and headers of `/` and `/docs`; what the playground does in a browser is in test_playground*.py."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeEngine
from http_endpoint import Server

from prism.demo import DOCUMENTS, QUERIES
from prism.reranker import Reranker
from prism.serving.limits import Keys, Limits
from prism.serving.pages import playground
from prism.serving.reference import kind
from prism.template import PRISM, Template

QUERY = "when does the harbour freeze?"
GOOD = "p=0.9 The harbour froze in 1963. It rarely does."


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: Any) -> FakeEngine:
    return FakeEngine(Template(PRISM, tiny_tokenizer))


@pytest.fixture(scope="module")
def client(engine: FakeEngine) -> Iterator[httpx.Client]:
    with Server(Reranker(engine.template, engine, name="fake </script> model")) as client:
        yield client


def directives(response: httpx.Response) -> dict[str, str]:
    policy = response.headers["content-security-policy"]
    return {name: value for name, _, value in (part.partition(" ") for part in policy.split("; "))}


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_may_run_what_stands_in_it_and_nothing_else(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    allowed = directives(response)
    assert allowed["default-src"] == allowed["base-uri"] == allowed["form-action"] == "'none'"
    assert allowed["frame-ancestors"] == "'none'"
    assert allowed["connect-src"] == "'self'"
    assert (allowed["require-trusted-types-for"], allowed["trusted-types"]) == ("'script'", "'none'")
    assert "unsafe" not in response.headers["content-security-policy"]
    for tag in ("script", "style"):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
        assert allowed[f"{tag}-src"] == (" ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_needs_nothing_from_elsewhere(client: httpx.Client, path: str) -> None:
    text = client.get(path).text
    urls = {url for url in re.findall(r"""(?:https?:)?//[\w.-]+\.\w+[^\s"'<)]*""", text) if "127.0.0.1" not in url}
    assert urls == set()
    for linked in re.findall(r"""(?:src|href)=["']([^"']*)""", text):
        assert linked.startswith(("#", "data:")) or client.get(linked).status_code == 200, linked
    assert not re.search(r"""<[^>]*\s(?:on\w+|style)\s*=""", text), "no handlers and no styles in attributes"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)
    assert "@import" not in text


def test_head_options_and_other_methods(client: httpx.Client) -> None:
    for path in ("/", "/docs"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(get.content))
        asked = client.options(path)
        assert (asked.status_code, asked.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
        refused = client.post(path, json={"query": QUERY, "documents": [GOOD]})
        assert refused.status_code == 405
        assert "POST /v1/rerank" in refused.json()["message"]
    assert client.get("/redoc").status_code == 404
    assert {"/", "/docs"}.isdisjoint(client.get("/openapi.json").json()["paths"])


def config_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="config">(.*?)</script>', text, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def test_the_page_knows_its_server(client: httpx.Client) -> None:
    config = config_of(client.get("/").text)
    assert config["model"] == "fake </script> model", "and cannot be ended by a name"
    assert (config["threshold"], config["evidence"], config["key"]) == (0.5, True, False)
    assert config["sample"]["queries"] == list(QUERIES)
    assert [document["text"] for document in config["sample"]["documents"]] == [document.text for document in DOCUMENTS]


def test_whoever_has_no_key_may_read_the_page_and_ask_nothing(engine: FakeEngine) -> None:
    with Server(Reranker(engine.template, engine, name="fake"), keys=Keys(["sesame"])) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert config_of(page.text)["key"] is True
        assert "sesame" not in page.text
        assert client.post("/v1/rerank", json={"query": QUERY, "documents": [GOOD]}).status_code == 401


def test_a_threshold_of_the_models_own(engine: FakeEngine) -> None:
    reranker = Reranker(engine.template, engine, name="fake", threshold=0.3)
    config = config_of(bytes(playground(reranker, Limits(evidence=False), keyed=False).body).decode())
    assert (config["threshold"], config["evidence"]) == (0.3, False)


def test_the_reference_has_every_operation_and_field(client: httpx.Client) -> None:
    text = client.get("/docs").text
    described = client.get("/openapi.json").json()
    for path, item in described["paths"].items():
        for method, operation in item.items():
            assert f'id="{method}-{path}"' in text
            sent = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            assert all(f"<code>{name}</code>" in text for name in sent.get("properties", ()))
    for name, model in described["components"]["schemas"].items():
        assert f'id="model-{name}"' in text
        assert all(f"<code>{field}</code>" in text for field in model.get("properties", ()))
    assert "<code>evidence.top_n</code><span>integer (at least 0), also as text, or null</span>" in text
    assert "Scores from here on mean yes." in text, "fields say what they mean"
    assert "<code>query</code>" in text
    assert "<b>required</b>" in text


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "integer", "minimum": 1}, "integer (at least 1)"),
        (
            {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "null"}]},
            "number (at least 0, at most 1), or null",
        ),
        ({"anyOf": [{"type": "boolean"}, {"enum": ["true", 1]}, {"type": "null"}]}, "boolean, also as text, or null"),
        ({"type": "array", "items": {"$ref": "#/components/schemas/A"}}, 'list of <a href="#model-A">A</a>'),
        ({"enum": ["yes", "<no>"]}, "&quot;yes&quot; or &quot;&lt;no&gt;&quot;"),
        ({"const": 3}, "3"),
        ({}, "anything"),
    ],
)
def test_kinds_of_values(schema: dict[str, Any], said: str) -> None:
    assert kind(schema) == said


def test_the_page_is_package_data() -> None:
    root = Path(__file__).parents[1]
    data = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    assert any(path in data["prism"] for path in ("serving/playground.html", "serving/*.html"))
    assert (root / "prism/serving/playground.html").is_file()
