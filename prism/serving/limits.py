"""What one server takes on."""

from __future__ import annotations

from pydantic import Field

from prism.types import EvidenceChoice, Record


class Limits(Record):
    """Requests past a limit are refused with 400, 413, 429 or 504; none of them harms the others."""

    max_documents: int = Field(default=1000, ge=1)
    """Documents in one request."""
    max_body_bytes: int = Field(default=64 * 2**20, ge=1)
    max_tokens: int = Field(default=4_000_000, ge=1)
    """Prompt tokens of one request."""
    max_requests: int = Field(default=64, ge=1)
    """Requests under way or waiting; the next is answered 429."""
    request_timeout_s: float = Field(default=300.0, gt=0)
    tokenizers: tuple[str, ...] = ()
    """Which tokenizers requests may name for the budget of a context; their names are what `named_tokenizer` takes."""
    evidence: EvidenceChoice | bool = True
    """Whether there is evidence, and where it comes from, when a request does not say."""
