"""What an operator sees: logs as JSON lines, metrics for Prometheus, spans for OpenTelemetry; no text and no key.

Logs name sizes, times and kinds of errors. Every app has a registry of metrics of its own, read at `/metrics`. Spans
are made when a request is over, with the times it noted, so that nothing of OpenTelemetry is in its way: one for each
request and one for each of its phases, under the caller's own.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from prism.errors import InputError
from prism.result import RerankResult
from prism.types import Judgment

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


NAME = "prism.serving"


class JsonLines(logging.Formatter):
    """`time, level, event` and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps(line | getattr(record, "fields", {}), ensure_ascii=True)


def configure() -> None:
    """Everything the server and uvicorn log goes to standard error, one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in (NAME, "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """Latency by phase, load, and what the work cost and saved. No text of a request is in any label."""

    def __init__(self, requests_open: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("prism_requests", "Rerank requests answered.", "status", "dialect")
        self.phase_s = Histogram(
            "prism_phase_seconds",
            "Time by phase: read (body), rank (render and score), write (contribution and evidence), total.",
            ["phase"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        Gauge("prism_requests_open", "Rerank requests under way or waiting.", registry=self._registry).set_function(
            requests_open
        )
        self._documents = self._counter("prism_documents", "Documents returned.", "verdict")
        self._prompt = self._counter("prism_prompt_tokens", "Prompt tokens asked for.")
        self._cached = self._counter("prism_cached_tokens", "Prompt tokens not computed again: a prefix was shared.")
        self._written = self._counter("prism_written_tokens", "Tokens of contributions and evidence.")
        self._saved = self._counter(
            "prism_tokens_saved", "Tokens a reader of the evidence is spared: the document's less the evidence's."
        )
        self.engine_errors = self._counter("prism_engine_errors", "Requests the model could not compute.")

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, registry=self._registry)

    def count(self, result: RerankResult, tokens_saved: int) -> None:
        """One answered request."""
        for judgment in result:
            self._documents.labels(judgment.verdict or "error").inc()
        self._prompt.inc(result.usage.prompt_tokens)
        self._cached.inc(result.usage.cached_tokens)
        self._written.inc(result.usage.written_tokens)
        self._saved.inc(tokens_saved)

    def text(self) -> bytes:
        return generate_latest(self._registry)


def tokens_saved(judgment: Judgment, document: str, count: Callable[[str], int]) -> int:
    """Tokens of what the model read of the document less those of its evidence; 0 without evidence."""
    if not judgment.evidence:
        return 0
    cut = judgment.truncation
    read = document[cut.start : cut.start + cut.read_chars] if cut else document
    return max(0, count(read) - count(judgment.evidence))


_SERVER_ERROR = 500


class Phase(NamedTuple):
    """Times are nanoseconds since 1970."""

    name: str
    began_ns: int
    ended_ns: int


class Served(NamedTuple):
    """A request that is over."""

    whole: Phase
    phases: list[Phase]
    status: int
    fields: Mapping[str, Any]
    headers: Mapping[str, str]


Trace = Callable[[Served], None]


def spans(tracer: Tracer) -> Trace:
    """Tells `tracer` of every request that is over."""
    from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()

    def tell(served: Served) -> None:
        span = tracer.start_span(
            served.whole.name,
            context=propagator.extract(served.headers),
            kind=SpanKind.SERVER,
            attributes={f"prism.{name}": value for name, value in served.fields.items()},
            start_time=served.whole.began_ns,
        )
        span.set_attribute("http.response.status_code", served.status)
        if served.status >= _SERVER_ERROR:
            span.set_status(Status(StatusCode.ERROR))
        within = set_span_in_context(span)
        for phase in served.phases:
            tracer.start_span(phase.name, context=within, start_time=phase.began_ns).end(phase.ended_ns)
        span.end(served.whole.ended_ns)

    return tell


def exporter() -> Trace:
    """Sends spans by OTLP over HTTP to where `OTEL_EXPORTER_OTLP_ENDPOINT` and its kin say.

    Raises InputError when OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise InputError(f'traces need {error.name}: run pip install "prism-reranker[otel]"') from error
    named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "prism"}
    provider = TracerProvider(resource=Resource.create(named))  # it flushes when the process ends
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return spans(provider.get_tracer("prism.serving"))
