"""Reading what a caller sends: the right types, or an InputError that names the place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from prism.errors import InputError
from prism.types import Document, clean

_FIELDS = frozenset(Document.model_fields)


def read_documents(documents: object) -> tuple[list[Document], list[str]]:
    """Documents and warnings about fields nobody reads. Raises InputError naming the index."""
    if isinstance(documents, str | bytes | Mapping | Document | Set) or not isinstance(documents, Iterable):
        raise InputError(f"documents must be a list of texts or of {{text, id, title}}, got {type(documents).__name__}")
    documents = list(documents)
    read = [_read_document(index, document) for index, document in enumerate(documents)]
    mappings = (document for document in documents if isinstance(document, Mapping))
    unread = sorted({clean(str(key))[:40] for document in mappings for key in document if key not in _FIELDS})
    shown = ", ".join(unread[:10]) + (", …" if len(unread) > 10 else "")
    return read, [f"ignored document fields: {shown}"] if unread else []


def _read_document(index: int, document: object) -> Document:
    """Id and title are cleaned because they are echoed; the text stays as sent, offsets point into it."""
    if isinstance(document, str):
        return Document(text=document)
    fields = dict(document) if isinstance(document, Document | Mapping) else None
    if fields is None:
        raise InputError(f"documents[{index}] must be a text or {{text, id, title}}, got {type(document).__name__}")
    if isinstance(fields.get("id"), int):  # a database key
        fields["id"] = str(fields["id"])
    for name, kinds in (("text", str), ("id", str | None), ("title", str | None)):
        if not isinstance(fields.get(name), kinds):
            got = type(fields[name]).__name__ if name in fields else "nothing"
            raise InputError(f"documents[{index}].{name} must be a string, got {got}")
    id_, title = fields.get("id"), fields.get("title")
    return Document(text=fields["text"], id=id_ and clean(id_), title=title and clean(title))


def read_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{name} is blank: say what to look for")
    return clean(value)


def read_count(name: str, value: object, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name} must be a whole number, got {type(value).__name__}")
    if value < least:
        raise InputError(f"{name} must be at least {least}, got {value}")
    return value


def read_fraction(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"{name} must be a number, got {type(value).__name__}")
    if not 0.0 <= value <= 1.0:
        raise InputError(f"{name} must lie between 0 and 1, got {value}")
    return float(value)
