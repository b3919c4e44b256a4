"""What a failed request answers: each dialect's clients read errors their own way."""

from __future__ import annotations

from typing import Any

from prism.serving.dialects import Dialect, ErrorOut
from prism.text import clean
from prism.types import Record


class ErrorBody(Record):
    """One body for the clients of every dialect but three."""

    id: str
    message: str
    detail: str
    error: ErrorOut


class VoyageErrorBody(Record):
    """What Voyage's clients read of an error."""

    detail: str
    message: str


class SystemOneDetail(Record):
    error_type: str
    message: str


class SystemOneErrorBody(Record):
    """What TypeSafe's clients read of an error."""

    id: str
    message: str
    detail: SystemOneDetail
    error: ErrorOut


class TeiErrorBody(Record):
    """What the clients of Text Embeddings Inference read of an error."""

    error: str
    error_type: str
    message: str
    detail: str
    id: str


def error_body(request_id: str, message: str, kind: str, dialect: Dialect = Dialect.COMMON) -> dict[str, Any]:
    """What a failed request answers."""
    text = clean(message)
    if dialect is Dialect.VOYAGE:
        return {"detail": text, "message": text}
    if dialect is Dialect.TEI:
        return {"error": text, "error_type": kind, "message": text, "detail": text, "id": request_id}
    if dialect is Dialect.SYSTEM_ONE:
        detail, error = SystemOneDetail(error_type=kind, message=text), ErrorOut(message=text, type=kind)
        return SystemOneErrorBody(id=request_id, message=text, detail=detail, error=error).model_dump()
    return ErrorBody(id=request_id, message=text, detail=text, error=ErrorOut(message=text, type=kind)).model_dump()
