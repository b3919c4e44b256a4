"""Reading what a caller sends: the right types, or an InputError that names the place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal, NamedTuple, TypedDict, get_args

from prism.errors import InputError
from prism.text import clean
from prism.types import Document, EvidenceChoice, EvidenceSource

_FIELDS = frozenset(Document.model_fields)

MAX_AGAINST, MAX_AGAINST_CHARS = 500, 100_000
OnLongDocument = Literal["truncate", "window", "refuse"]


class Candidate(NamedTuple):
    """A document as it was sent."""

    document: Document
    problem: str | None = None
    """Why it cannot be read, which is its own error; then its text is empty."""


class Options(TypedDict, total=False):
    """What `Reranker.rerank`, `arerank` and `astream` take besides query and documents."""

    instruction: str | None
    top_n: int | None
    threshold: float | None
    evidence: EvidenceChoice | bool
    evidence_tokens: int | None
    evidence_top_n: int | None
    evidence_threshold: float | None
    check: bool
    max_prompt_tokens: int | None
    max_document_tokens: int | None
    max_total_tokens: int | None
    on_long_document: OnLongDocument
    against: Sequence[str] | None
    answer_risk: float | None
    score_version: str | None


class Call(NamedTuple):
    """`Options`, read."""

    instruction: str | None
    top_n: int | None
    threshold: float
    evidence: EvidenceSource | None
    evidence_tokens: int | None
    evidence_top_n: int | None
    evidence_threshold: float
    check: bool
    max_prompt_tokens: int | None
    max_document_tokens: int | None
    max_total_tokens: int | None
    on_long_document: OnLongDocument
    against: tuple[str, ...]
    answer_risk: float | None
    score_version: str | None


def read_options(default_threshold: float, preferred: EvidenceSource, options: Mapping[str, Any]) -> Call:
    """`preferred`: what `auto` evidence is.

    Raises InputError naming the option that is wrong, TypeError for an option there is not.
    """
    if unknown := sorted(set(options) - set(Call._fields)):
        raise TypeError(f"no option {unknown[0]!r}: expected {', '.join(Call._fields)}")
    instruction, on_long = options.get("instruction"), options.get("on_long_document", "truncate")
    version = options.get("score_version")
    if on_long not in get_args(OnLongDocument):
        raise InputError(f"on_long_document must be 'truncate', 'window' or 'refuse', got {str(on_long)[:40]!r}")
    threshold = _fraction_or(default_threshold, "threshold", options)
    return Call(
        instruction=None if instruction is None else read_text("instruction", instruction),
        top_n=_count_or_none("top_n", options),
        threshold=threshold,
        evidence=_read_evidence(options.get("evidence"), preferred),
        evidence_tokens=_count_or_none("evidence_tokens", options, least=0),
        evidence_top_n=_count_or_none("evidence_top_n", options, least=0),
        evidence_threshold=max(threshold, _fraction_or(threshold, "evidence_threshold", options)),
        check=bool(options.get("check", True)),
        max_prompt_tokens=_count_or_none("max_prompt_tokens", options),
        max_document_tokens=_count_or_none("max_document_tokens", options),
        max_total_tokens=_count_or_none("max_total_tokens", options),
        on_long_document=on_long,
        against=_read_against(options.get("against")),
        answer_risk=None
        if options.get("answer_risk") is None
        else read_fraction("answer_risk", options["answer_risk"]),
        score_version=None if version is None else read_text("score_version", version),
    )


def _read_against(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str | bytes | Mapping | Set) or not isinstance(value, Iterable):
        raise InputError(f"against must be a list of evidence texts, got {_kind(value)}")
    texts = tuple(value)
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"against[{at}] must be a string, got {_kind(text)}")
    if (total := sum(map(len, texts))) > MAX_AGAINST_CHARS or len(texts) > MAX_AGAINST:
        raise InputError(
            f"against has {total:,} characters in {len(texts):,} texts, at most {MAX_AGAINST_CHARS:,} in"
            f" {MAX_AGAINST:,}: send the evidence that is held, not its documents"
        )
    return tuple(map(clean, texts))


def _read_evidence(value: object, preferred: EvidenceSource) -> EvidenceSource | None:
    if value is False:
        return None
    if value is None or value is True or value == "auto":
        return preferred
    if value == "written" or value == "quoted":
        return value
    raise InputError(f"evidence must be true, false, 'written', 'quoted' or 'auto', got {str(value)[:40]!r}")


def _count_or_none(name: str, options: Mapping[str, Any], least: int = 1) -> int | None:
    value = options.get(name)
    return None if value is None else read_count(name, value, least)


def _fraction_or(default: float, name: str, options: Mapping[str, Any]) -> float:
    value = options.get(name)
    return default if value is None else read_fraction(name, value)


def read_documents(documents: object) -> tuple[list[Candidate], list[str]]:
    """Documents and warnings about fields nobody reads. Raises InputError where there is no list of them at all."""
    if isinstance(documents, str | bytes | Mapping | Document | Set) or not isinstance(documents, Iterable):
        raise InputError(f"documents must be a list of texts or of {{text, id, title}}, got {type(documents).__name__}")
    documents = list(documents)
    read = [_read_document(document) for document in documents]
    mappings = (document for document in documents if isinstance(document, Mapping))
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
        return Candidate(Document(text=""), f"expected a text or {{text, id, title}}, got {_kind(document)}")
    fields = dict(document)
    id_ = fields.get("id")
    if (isinstance(id_, int) and not isinstance(id_, bool)) or (isinstance(id_, float) and id_.is_integer()):
        fields["id"] = str(int(id_))  # a database key
    kinds = (("text", str), ("id", str | None), ("title", str | None))
    wrong = [
        f"{name} must be a string, got {_kind(fields[name]) if name in fields else 'nothing'}"
        for name, kind in kinds
        if not isinstance(fields.get(name), kind)
    ]
    known = {name: clean(fields[name]) for name in ("id", "title") if isinstance(fields.get(name), str)}
    return Candidate(Document(text="" if wrong else fields["text"], **known), wrong[0] if wrong else None)


def _kind(value: object) -> str:
    """What something is, as JSON calls it where JSON has it."""
    kinds = ((bool, "a boolean"), (int | float, "a number"), (Mapping, "an object"), (list | tuple, "an array"))
    if value is None:
        return "null"
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)


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
