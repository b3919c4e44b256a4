"""Spans of served requests, as OpenTelemetry's own exporter for tests receives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fakes import TEXT_TOKENS, FakeEngine
from http_endpoint import Server
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from prism.errors import EngineError, InputError
from prism.reranker import Reranker
from prism.serving.observability import exporter, spans
from prism.template import PRISM, Template

BODY = {"query": "when does the harbour freeze?", "documents": ["p=0.9 The harbour froze in 1963. Yes.", "p=0.2 No."]}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def engine(tiny_tokenizer: Any) -> FakeEngine:
    return FakeEngine(Template(PRISM, tiny_tokenizer))


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def client(engine: FakeEngine, exported: InMemorySpanExporter) -> Iterator[httpx.Client]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    reranker = Reranker(engine.template, engine, name="fake")
    with Server(reranker, trace=spans(provider.get_tracer("test"))) as client:
        yield client


def test_a_request_is_a_span_with_its_phases_under_the_callers(
    client: httpx.Client, exported: InMemorySpanExporter
) -> None:
    client.post("/v1/rerank", json=BODY, headers=CALLER).raise_for_status()
    *phases, whole = sorted(exported.get_finished_spans(), key=lambda span: span.name == "rerank")
    assert (f"{whole.context.trace_id:032x}", f"{whole.parent.span_id:016x}") == (TRACE, PARENT)  # type: ignore[union-attr]
    assert whole.attributes is not None
    told = {name: whole.attributes[name] for name in ("http.response.status_code", "prism.documents", "prism.dialect")}
    assert told == {"http.response.status_code": 200, "prism.documents": 2, "prism.dialect": "common"}
    assert whole.attributes["prism.written_tokens"] == TEXT_TOKENS
    assert [span.name for span in phases] == ["read", "rank", "write"]
    assert {span.parent.span_id for span in phases} == {whole.context.span_id}  # type: ignore[union-attr]
    times = [time for span in phases for time in (span.start_time, span.end_time)]
    assert times == sorted(times)  # type: ignore[type-var]
    assert whole.start_time <= times[0]  # type: ignore[operator]
    assert times[-1] <= whole.end_time  # type: ignore[operator]
    assert "harbour" not in str([span.to_json() for span in exported.get_finished_spans()])


def test_streams_and_failures_are_spans_too(
    client: httpx.Client, engine: FakeEngine, exported: InMemorySpanExporter
) -> None:
    assert client.post("/v1/rerank", json={**BODY, "stream": True}).text.endswith("\n\n")
    engine.fails = EngineError("the engine died")
    assert client.post("/v1/rerank", json=BODY).status_code == 503
    assert client.post("/v1/rerank", json={**BODY, "documents": []}).status_code == 400
    found = [span for span in exported.get_finished_spans() if span.name == "rerank"]
    statuses = [(span.attributes or {})["http.response.status_code"] for span in found]
    assert statuses == [200, 503, 400]
    assert [span.status.is_ok for span in found] == [True, False, True]
    assert all(span.parent is None for span in found)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter", None)
    with pytest.raises(InputError, match=r"prism-reranker\[otel\]"):
        exporter()
