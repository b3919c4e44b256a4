"""What went wrong, as a status and an error body; each dialect's clients read errors their own way.

400 a request that makes no sense, 401 no key, 404, 405, 413 too large, 415 not JSON, 422 wrong types, 429 too many
requests, 499 the client hung up, 500 a defect, 503 the model could not compute or the server drains, 504 out of time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from prism.errors import EngineError, InputError, LabelMissing, TooManyTokens
from prism.serving.dialects import Dialect, ErrorOut, spelled
from prism.serving.observability import NAME
from prism.text import clean
from prism.types import Record

INVALID = "invalid_request_error"


class Refused(Exception):
    """A request that is not served. The message is for the caller and quotes no document."""

    def __init__(self, status: int, message: str, kind: str, **headers: str) -> None:
        """`headers` with `_` for `-`: what the client may do about it, such as `Retry_After="1"`."""
        super().__init__(message)
        self.status, self.kind = status, kind
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


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


UNAVAILABLE = "model_unavailable"
TOO_MANY_TOKENS = "max_tokens_exceeded"
"""TypeSafe's name for it: clients that see it in `detail.error_type` send less at once."""
_logger = logging.getLogger(NAME)


class HttpFailure(NamedTuple):
    status: int
    message: str
    kind: str
    headers: dict[str, str]

    def spelled(self, names: Mapping[str, str]) -> HttpFailure:
        """The same, in the words of whoever sent the request."""
        return self._replace(message=spelled(self.message, names)) if self.status < 500 else self

    def body(self, request_id: str, dialect: Dialect) -> dict[str, Any]:
        return error_body(request_id, self.message, self.kind, dialect)

    def response(self, request_id: str, dialect: Dialect) -> JSONResponse:
        return JSONResponse(self.body(request_id, dialect), self.status, headers=self.headers)


def failure(request_id: str, error: Exception) -> HttpFailure:
    """Logs name the kind of an error and its place; its text may quote a document."""
    if isinstance(error, Refused):
        return HttpFailure(error.status, str(error), error.kind, error.headers)
    if isinstance(error, InputError):
        return HttpFailure(400, str(error), TOO_MANY_TOKENS if isinstance(error, TooManyTokens) else INVALID, {})
    if isinstance(error, ClientDisconnect):
        return HttpFailure(499, "the client closed the connection", "cancelled", {})
    if isinstance(error, TimeoutError):
        return HttpFailure(
            504, "the request took too long: send fewer documents, or ask for less evidence", "timeout", {}
        )
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "unknown place"
    fields = {"id": request_id, "error": type(error).__name__, "at": where}
    _logger.error("%s failed: %s at %s", request_id, type(error).__name__, where, extra={"fields": fields})
    if isinstance(error, EngineError) and not isinstance(error, LabelMissing):
        return HttpFailure(503, f"the model could not compute this: {error}", UNAVAILABLE, {"Retry-After": "1"})
    return HttpFailure(500, f"internal error: the server's log has more under {request_id}", "internal_error", {})
