"""Reading what a caller sends: the right types, or an InputError that names the place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any, Literal, NamedTuple, TypedDict, get_args

from prism.errors import InputError
from prism.text import clean
from prism.types import Document

_FIELDS = frozenset(Document.model_fields)

OnLongDocument = Literal["truncate", "window"]


class Options(TypedDict, total=False):
    """What `Reranker.rerank`, `arerank` and `astream` take besides query and documents."""

    instruction: str | None
    top_n: int | None
    threshold: float | None
    evidence: bool
    evidence_tokens: int | None
    evidence_top_n: int | None
    evidence_threshold: float | None
    check: bool
    max_prompt_tokens: int | None
    max_document_tokens: int | None
    max_total_tokens: int | None
    on_long_document: OnLongDocument


class Call(NamedTuple):
    """`Options`, read."""

    instruction: str | None
    top_n: int | None
    threshold: float
    evidence: bool
    evidence_tokens: int | None
    evidence_top_n: int | None
    evidence_threshold: float
    check: bool
    max_prompt_tokens: int | None
    max_document_tokens: int | None
    max_total_tokens: int | None
    on_long_document: OnLongDocument


def read_options(default_threshold: float, options: Mapping[str, Any]) -> Call:
    """Raises InputError naming the option that is wrong, TypeError for an option there is not."""
    if unknown := sorted(set(options) - set(Call._fields)):
        raise TypeError(f"no option {unknown[0]!r}: expected {', '.join(Call._fields)}")
    instruction, on_long = options.get("instruction"), options.get("on_long_document", "truncate")
    if on_long not in get_args(OnLongDocument):
        raise InputError(f"on_long_document must be 'truncate' or 'window', got {str(on_long)[:40]!r}")
    threshold = _fraction_or(default_threshold, "threshold", options)
    return Call(
        instruction=None if instruction is None else read_text("instruction", instruction),
        top_n=_count_or_none("top_n", options),
        threshold=threshold,
        evidence=bool(options.get("evidence", True)),
        evidence_tokens=_count_or_none("evidence_tokens", options, least=0),
        evidence_top_n=_count_or_none("evidence_top_n", options, least=0),
        evidence_threshold=max(threshold, _fraction_or(threshold, "evidence_threshold", options)),
        check=bool(options.get("check", True)),
        max_prompt_tokens=_count_or_none("max_prompt_tokens", options),
        max_document_tokens=_count_or_none("max_document_tokens", options),
        max_total_tokens=_count_or_none("max_total_tokens", options),
        on_long_document=on_long,
    )


def _count_or_none(name: str, options: Mapping[str, Any], least: int = 1) -> int | None:
    value = options.get(name)
    return None if value is None else read_count(name, value, least)


def _fraction_or(default: float, name: str, options: Mapping[str, Any]) -> float:
    value = options.get(name)
    return default if value is None else read_fraction(name, value)


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
