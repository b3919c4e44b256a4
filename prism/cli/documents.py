"""Documents from files and from standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from prism.errors import DataError

if TYPE_CHECKING:
    from prism.types import Document


def read_sources(sources: Sequence[str]) -> Iterator[Document]:
    from prism.files.jsonl import read_objects
    from prism.files.lines import is_json, open_bytes, read_text_file
    from prism.types import Document

    for source in sources:
        if source == "-":
            yield from _read_standard_input()
        elif is_json(source):
            yield from (_document(place, row) for _, place, row in read_objects(Path(source)))
        else:
            with open_bytes(Path(source)) as stream:
                yield Document(text=read_text_file(stream, source), id=source)


def _read_standard_input() -> Iterator[Document]:
    """Read like a JSON file if it begins like one, else one document a line; blank lines are skipped."""
    from io import BufferedReader, BytesIO

    from prism.files.jsonl import objects_of
    from prism.files.lines import byte_lines, decode, unpacked
    from prism.types import Document

    if sys.stdin.isatty():
        typer.echo("reading documents from standard input, one a line; end with Ctrl-D", err=True)
    name = "standard input"
    stream = unpacked(BufferedReader(BytesIO(sys.stdin.buffer.read())))
    lines = list(byte_lines(stream, name))
    content = b"".join(line for _, line in lines)
    if _is_json(content):
        yield from (_document(place, row) for _, place, row in objects_of(BytesIO(content), name))
        return
    for number, line in lines:
        text = decode(line, f"{name}:{number}")
        if text.strip():
            yield Document(text=text, id=f"line {number}")


def _is_json(content: bytes) -> bool:
    """Whether the first line is an object, or the whole is an array of objects."""
    head = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    first = head.split(b"\n", 1)[0]
    try:
        value = json.loads(first if head.startswith(b"{") and first.strip() != b"{" else head)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _document(place: str, row: dict[str, Any] | DataError) -> Document:
    from prism.files.ids import DOCUMENT_IDS, id_in
    from prism.types import Document

    if isinstance(row, DataError):
        raise row
    name = next((name for name in ("text", "document", "contents") if name in row), None)
    if name is None:
        raise DataError(f"{place}: expected text, document or contents, got {', '.join(row)[:80] or 'nothing'}")
    text = row[name]
    if not isinstance(text, str):
        raise DataError(f"{place}: expected a string in {name}, got {json.dumps(text)[:80]}")
    title = row.get("title")
    id_ = id_in(row, ("id", *DOCUMENT_IDS, "_id"), place)
    return Document(text=text, id=place if id_ is None else id_, title=None if title is None else str(title))
