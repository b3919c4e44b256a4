"""`prism rerank --context`: what its options say, and how a context is printed."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import typer

from prism.context import ContextFormat, PromptContext, named_tokenizer, why_empty
from prism.errors import InputError
from prism.inputs import read_count
from prism.text import printable
from prism.types import EvidenceChoice

if TYPE_CHECKING:
    from prism.result import RerankResult


def context_options(
    tokens: int | None, format: ContextFormat | None, tokenizer: str | None, evidence: EvidenceChoice | bool = True
) -> dict[str, Any] | None:
    """Arguments of `RerankResult.fit_context`; None when no context is asked for. Raises InputError."""
    if evidence is False and (tokens is not None or format is not None):
        raise InputError("--no-evidence leaves nothing for a context: leave it or --context out")
    if tokens is None and format is None:
        if tokenizer is not None:
            raise InputError("--context-tokenizer counts the tokens of a context: add --context or --context-format")
        return None
    if tokens is not None:
        read_count("--context", tokens)
    counted = {} if tokenizer is None else {"count": named_tokenizer(tokenizer)}
    return {"format": format or "text", "max_tokens": tokens, **counted}


def print_context(result: RerankResult, context: PromptContext) -> None:
    if context.problem:
        raise InputError(f"{context.problem}: raise --context")
    if isinstance(context.content, str):
        typer.echo(printable(context.content), nl=False)
    else:
        typer.echo(as_json_text(context.content))
    if not context.content:
        ways = (
            "--evidence, --evidence-tokens" if any(judgment.verdict == "yes" for judgment in result) else "--threshold"
        )
        typer.echo(f"no evidence to print: {why_empty(result.judgments)}: see {ways}", err=True)


def as_json_text(value: object) -> str:
    """JSON in which characters that could steer a terminal are escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return re.sub("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]", lambda match: f"\\u{ord(match[0]):04x}", text)
