"""Reading what a caller sends: the right types, or an InputError that names the place."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Set
from typing import Any, NamedTuple

import yaml

from prism.errors import InputError
from prism.text import clean, require_languages
from prism.types import Document

_FIELDS = frozenset(Document.model_fields)


class Candidate(NamedTuple):
    """A document as it was sent."""

    document: Document
    problem: str | None = None
    """Why it cannot be read, which is its own error; then its text is empty."""


def read_documents(documents: object) -> tuple[list[Candidate], list[str]]:
    """Documents and warnings about fields nobody reads. Raises InputError where there is no list of them at all."""
    if isinstance(documents, str | bytes | Mapping | Document | Set) or not isinstance(documents, Iterable):
        raise InputError(f"documents must be a list of texts or of {{text, id, title}}, got {type(documents).__name__}")
    documents = list(documents)
    read = [_read_document(document) for document in documents]
    mappings = (document for document in documents if isinstance(document, Mapping) and "text" in document)
    unread = sorted({clean(str(key))[:40] for document in mappings for key in document if key not in _FIELDS})
    shown = ", ".join(unread[:10]) + (", …" if len(unread) > 10 else "")
    return read, [f"ignored document fields: {shown}"] if unread else []


def _read_document(document: object) -> Candidate:
    """Id and title are cleaned because they are echoed; the text stays as sent, offsets point into it.

    One document in a thousand without a text must not cost the others their answer. It keeps what of id and title can
    be read.
    """
    if isinstance(document, str):
        return Candidate(Document(text=document))
    if not isinstance(document, Document | Mapping):
        return Candidate(Document(text=""), f"expected a text or {{text, id, title}}, got {kind_of(document)}")
    fields = dict(document)
    if (text := yaml_text(fields)) is not None:
        fields["text"] = text
    id_ = fields.get("id")
    if (isinstance(id_, int) and not isinstance(id_, bool)) or (isinstance(id_, float) and id_.is_integer()):
        fields["id"] = str(int(id_))  # a database key
    kinds = (("text", str), ("id", str | None), ("title", str | None))
    wrong = [
        f"{name} must be a string, got {kind_of(fields[name]) if name in fields else 'nothing'}"
        for name, kind in kinds
        if not isinstance(fields.get(name), kind)
    ]
    known = {name: clean(fields[name]) for name in ("id", "title") if isinstance(fields.get(name), str)}
    return Candidate(Document(text="" if wrong else fields["text"], **known), wrong[0] if wrong else None)


def yaml_text(fields: Mapping[Any, Any]) -> str | None:
    """What an object without `text` is read as: its fields but id and title, as YAML. None where it has a text, nothing
    to read, or no end to its depth.

    As Cohere's guide has structured documents sent (`yaml.dump(document, sort_keys=False)`), with letters as they are
    and lines unbroken.
    """
    own = {name: value for name, value in fields.items() if name not in _FIELDS}
    if "text" in fields or not own:
        return None
    try:
        return yaml.safe_dump(own, sort_keys=False, allow_unicode=True, width=sys.maxsize)
    except (yaml.YAMLError, RecursionError):
        return None  # a value YAML has no word for


def kind_of(value: object) -> str:
    """What something is, as JSON calls it where JSON has it."""
    kinds = ((bool, "a boolean"), (int | float, "a number"), (Mapping, "an object"), (list | tuple, "an array"))
    if value is None:
        return "null"
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)


def read_text(name: str, value: object, wanted: str = "say what to look for") -> str:
    if not isinstance(value, str):
        raise InputError(f"{name} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{name} is blank: {wanted}")
    return clean(value)


def read_count(name: str, value: object, least: int | None = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name} must be a whole number, got {type(value).__name__}")
    if least is not None and value < least:
        raise InputError(f"{name} must be at least {least}, got {value}")
    return value


def read_thresholds(thresholds: Mapping[str, float]) -> dict[str, float]:
    """By language. Raises InputError for one that no query is told to be in, and for what is no fraction."""
    try:
        require_languages(thresholds)
    except ValueError as error:
        raise InputError(f"thresholds: {error}") from None
    return {language: read_fraction(f"threshold of {language}", at) for language, at in thresholds.items()}


def read_fraction(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"{name} must be a number, got {type(value).__name__}")
    if not 0.0 <= value <= 1.0:
        raise InputError(f"{name} must lie between 0 and 1, got {value}")
    return float(value)
