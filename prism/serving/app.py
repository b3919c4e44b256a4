"""The HTTP endpoint: `POST /v1/rerank`, `GET /v1/models`, `GET /health`.

    body -> read_request (size, JSON, types) -> Reranker.arerank, until the client hangs up -> schema.response

400 a request that makes no sense, 404, 405, 413 too large, 415 not JSON, 422 wrong types, 500 a defect, 503 the model
could not compute. All have the same body. No text of a request reaches a log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from anyio import CancelScope, to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from prism import __version__
from prism.errors import EngineError, InputError, LabelMissing
from prism.reranker import Reranker
from prism.serving.schema import ErrorBody, RerankRequest, RerankResponse, error_body, request_schema, response
from prism.types import first_problem

MAX_DOCUMENTS = 1000
MAX_BODY_BYTES = 64 * 2**20
_INVALID = "invalid_request_error"
_KINDS = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 503: "model_unavailable"}

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


def create_app(
    reranker: Reranker, *, max_documents: int = MAX_DOCUMENTS, max_body_bytes: int = MAX_BODY_BYTES
) -> FastAPI:
    """The app around a loaded reranker, which it closes when it shuts down."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await reranker.aclose()

    app = FastAPI(title="Prism", version=__version__, lifespan=lifespan)
    app.add_exception_handler(HTTPException, _on_http_exception)

    rerank = _rerank_endpoint(reranker, max_documents, max_body_bytes)
    errors: dict[int | str, dict[str, Any]] = {code: {"model": ErrorBody} for code in (400, 413, 415, 422, 500, 503)}
    body = {"required": True, "content": {"application/json": {"schema": request_schema()}}}
    for path in ("/v1/rerank", "/rerank", "/v2/rerank"):
        app.post(
            path,
            response_model=RerankResponse,
            responses=errors,
            openapi_extra={"requestBody": body},
            include_in_schema=path == "/v1/rerank",
            summary="Judge documents for a query",
        )(rerank)

    @app.get("/v1/models", summary="The loaded model")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": reranker.name, "object": "model", "owned_by": "prism"}]}

    @app.get("/health", summary="Whether the server answers")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": reranker.name, "version": __version__}

    return app


def _rerank_endpoint(
    reranker: Reranker, max_documents: int, max_body_bytes: int
) -> Callable[[Request], Awaitable[JSONResponse]]:
    async def rerank(request: Request) -> JSONResponse:
        request_id = f"rerank-{uuid.uuid4().hex}"
        try:
            body = await _read_body(request, max_body_bytes)
            asked = await to_thread.run_sync(_parse, body, max_documents)
            work = reranker.arerank(asked.query, asked.texts(), **asked.options())
            result = await _until_disconnect(request, work)
            return JSONResponse(await to_thread.run_sync(response, request_id, asked, result))
        except ClientDisconnect:
            return JSONResponse(error_body(request_id, "the client closed the connection", "cancelled"), 499)
        except Exception as error:  # noqa: BLE001  # outermost boundary: whatever it is, the client gets our error body
            return _failure(request_id, error)

    return rerank


class _Refused(Exception):
    """A request that is refused before it is read to the end."""

    def __init__(self, status: int, message: str, kind: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """The body, refused as soon as it is too large, whatever its Content-Length says."""
    media_type = request.headers.get("content-type", "nothing").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        # Also what keeps web pages from posting here: a browser sends JSON across origins only after asking.
        message = f"expected Content-Type: application/json, got {media_type[:80]}"
        raise _Refused(415, message, "unsupported_media_type")
    parts, size = [], 0
    async for chunk in request.stream():
        parts.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise _Refused(413, f"the body is over {max_bytes:,} bytes: send fewer or shorter documents", "too_large")
    return b"".join(parts)


def _parse(body: bytes, max_documents: int) -> RerankRequest:
    try:
        request = RerankRequest.model_validate(json.loads(body))
    except RecursionError as error:
        raise InputError("the body is nested too deeply: expected {query, documents}") from error
    except ValidationError as error:
        raise _Refused(422, first_problem(error), _INVALID) from error
    except ValueError as error:  # not JSON, not UTF-8, or a number with thousands of digits
        raise InputError(f"the body is not JSON: {error}") from error
    if not request.documents:
        raise InputError("documents is empty: send at least one")
    if len(request.documents) > max_documents:
        raise InputError(f"too many documents: got {len(request.documents)}, at most {max_documents} in one request")
    return request


async def _until_disconnect(request: Request, work: Awaitable[_T]) -> _T:
    """What `work` gives. Raises ClientDisconnect when the client hangs up first, which cancels the work."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    with CancelScope() as scope:
        watcher = asyncio.create_task(watch())
        try:
            return await work
        finally:
            watcher.cancel()
    raise ClientDisconnect


def _failure(request_id: str, error: Exception) -> JSONResponse:
    """The answer to a failed request. Logs name the kind of error and its place; its text may quote a document."""
    if isinstance(error, _Refused):
        return JSONResponse(error_body(request_id, str(error), error.kind), error.status)
    if isinstance(error, InputError):
        return JSONResponse(error_body(request_id, str(error), _INVALID), 400)
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "unknown place"
    _logger.error("%s failed: %s at %s", request_id, type(error).__name__, where)
    if isinstance(error, EngineError) and not isinstance(error, LabelMissing):
        message = f"the model could not compute this: {error}"
        return JSONResponse(error_body(request_id, message, _KINDS[503]), 503, headers={"Retry-After": "1"})
    message = f"internal error: the server's log has more under {request_id}"
    return JSONResponse(error_body(request_id, message, "internal_error"), 500)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Paths and methods that do not exist."""
    if not isinstance(error, HTTPException):
        raise error
    message = f"{request.method} {request.url.path}: {error.detail}; the endpoint is POST /v1/rerank"
    kind = _KINDS.get(error.status_code, _INVALID)
    body = error_body(f"error-{uuid.uuid4().hex}", message, kind)
    return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))
