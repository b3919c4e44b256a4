"""`prism rerank`: the fields of a query from the command line, and what a dry run says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from prism.errors import DataError
from prism.files.lines import open_bytes, read_text_file
from prism.preflight import Preflight
from prism.text import printable


def read_fields(question: str, reason: str | None, conversation: Path | None) -> str | dict[str, Any]:
    """The query as `Reranker` takes it: a text where it has one field. Raises DataError for a file that is no text."""
    if reason is None and conversation is None:
        return question
    return {"question": question, "reason": reason, "conversation": conversation and _read(conversation)}


def _read(path: Path) -> Any:
    with open_bytes(path) as stream:
        text = read_text_file(stream, str(path))
    if path.suffix != ".json":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON, expected an array of {{role, content}}: {error}") from error


def print_preflight(found: Preflight, *, as_json: bool) -> None:
    """A dry run, for people or for programs."""
    typer.echo(found.model_dump_json(indent=2) if as_json else "\n".join(map(printable, _lines(found))))


def _lines(found: Preflight) -> Iterator[str]:
    seconds = "" if found.judging_seconds is None else f", about {found.judging_seconds:.1f} s"
    yield f"judging {found.documents} documents: {found.prompt_tokens:,} prompt tokens{seconds}"
    most = found.evidence_prompt_tokens or found.written_tokens
    kind = "prompt" if found.evidence_prompt_tokens else "written"
    seconds = "" if found.evidence_seconds is None else f", about {found.evidence_seconds:.1f} s"
    yield f"evidence: at most {most:,} {kind} tokens{seconds}" if most else "evidence: none"
    for cut in found.cut:
        start, read, total = cut.truncation.start, cut.truncation.read_chars, cut.truncation.total_chars
        name = cut.id or f"documents[{cut.index}]"
        yield f"cut: {name}: characters {start:,} to {start + read:,} of {total:,} are read"
    for problem in found.errors:
        yield f"error: {problem.id or f'documents[{problem.index}]'}: {problem.error}"
    for warning in found.warnings:
        yield f"warning: {warning}"
