"""OpenTelemetry spans, for those who ask: one for each request and one for each of its phases, under the caller's own.

Attributes are what the log line says: sizes, times and the status, never a text of a request. Spans are made when the
request is over, with the times it noted, so that nothing of OpenTelemetry is in its way. `Ticket` does not know it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from prism.errors import InputError

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

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
