"""What Prometheus reads at `/metrics`. Every app has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from prism.result import RerankResult
from prism.types import Judgment

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
