"""The HTTP endpoint: `POST /v1/rerank` and what stands around it.

`create_app` is the app around a loaded reranker; `prism serve` runs it. Who sends what is in `dialects`, one request in
`endpoint`, what can go wrong in `failures`. No text of a request and no key reaches a log.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from prism import __version__
from prism.reranker import Reranker
from prism.serving.admission import Admission
from prism.serving.dialects import Dialect, error_body
from prism.serving.endpoint import Endpoint
from prism.serving.failures import failure
from prism.serving.keys import Keys
from prism.serving.limits import Limits
from prism.serving.metrics import CONTENT_TYPE, Metrics
from prism.serving.refusal import INVALID, Refused
from prism.serving.schema import (
    ErrorBody,
    RerankResponse,
    TeiErrorBody,
    TeiItem,
    VoyageErrorBody,
    request_schema,
)
from prism.serving.stream import EVENT_SCHEMA
from prism.serving.tracing import Trace

_KINDS = {404: "not_found", 405: "method_not_allowed"}
AnyError = ErrorBody | VoyageErrorBody | TeiErrorBody
_ERRORS = (400, 401, 413, 415, 422, 429, 500, 503, 504)


def create_app(
    reranker: Reranker, limits: Limits | None = None, *, keys: Keys | None = None, trace: Trace | None = None
) -> FastAPI:
    """The app around a loaded reranker, which it closes when it shuts down.

    `trace` is told of every request when it is over (`prism.serving.tracing`).
    `app.state.admission` counts the requests under way; setting its `draining` refuses new ones.
    """
    limits, keys = limits or Limits(), keys or Keys()
    admission = Admission(limits.max_requests)
    metrics = Metrics(lambda: admission.open)
    endpoint = Endpoint(reranker, limits, keys, admission, metrics, trace)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await reranker.aclose()

    app = FastAPI(title="Prism", version=__version__, lifespan=lifespan)
    app.state.admission = admission
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Refused, _on_refusal)
    _add_rerank(app, endpoint)
    _add_status(app, reranker, endpoint, keys, metrics)
    return app


def _add_rerank(app: FastAPI, endpoint: Endpoint) -> None:
    errors: dict[int | str, dict[str, Any]] = {code: {"model": AnyError} for code in _ERRORS}
    errors[200] = {"content": {"text/event-stream": {"schema": EVENT_SCHEMA}}}
    body = {"required": True, "content": {"application/json": {"schema": request_schema()}}}

    async def rerank(request: Request) -> Response:
        return await endpoint(request)

    for path in ("/v1/rerank", "/rerank", "/v2/rerank"):
        app.post(
            path,
            response_model=RerankResponse | list[TeiItem],
            responses=errors,
            openapi_extra={"requestBody": body},
            include_in_schema=path == "/v1/rerank",
            summary="Judge documents for a query",
        )(rerank)


def _add_status(app: FastAPI, reranker: Reranker, endpoint: Endpoint, keys: Keys, metrics: Metrics) -> None:
    @app.get("/v1/models", summary="The loaded model")
    async def models(request: Request) -> dict[str, Any]:
        keys.require(request.headers)
        return {"object": "list", "data": [{"id": reranker.name, "object": "model", "owned_by": "prism"}]}

    @app.get("/health", summary="Whether the server answers")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": reranker.name, "version": __version__}

    @app.get("/ready", summary="Whether a request sent now would be served", responses={503: {"model": ErrorBody}})
    async def ready() -> dict[str, str]:
        if not await endpoint.ready():
            raise Refused(503, "not ready: the server is shutting down, or the model fails", "not_ready", 1)
        return {"status": "ready"}

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def figures() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)


async def _on_refusal(_: Request, error: Exception) -> JSONResponse:
    request_id = f"error-{uuid.uuid4().hex}"
    return failure(request_id, error).response(request_id, Dialect.COMMON)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Paths and methods that do not exist."""
    if not isinstance(error, HTTPException):
        raise error
    message = f"{request.method} {request.url.path}: {error.detail}; the endpoint is POST /v1/rerank"
    kind = _KINDS.get(error.status_code, INVALID)
    body = error_body(f"error-{uuid.uuid4().hex}", message, kind)
    return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))
