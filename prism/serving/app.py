"""The HTTP endpoint: `POST /v1/rerank`, `/v1/score`, `/v1/systemone`, `/v1/decisions` and what stands around them.

`create_app` is the app around a loaded reranker; `prism serve` runs it. Who sends what is in `dialects`, one request in
`endpoint`, what can go wrong in `failures`, what people look at in `pages`. No text of a request and no key reaches a
log.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from prism.reranker import Reranker
from prism.serving.body import peek
from prism.serving.decisions import DecisionRequest, DecisionResponse
from prism.serving.dialects import WARNINGS, Dialect, RerankResponse, TeiItem
from prism.serving.endpoint import COHERE, Endpoint
from prism.serving.http_errors import (
    INVALID,
    ErrorBody,
    Refused,
    SystemOneErrorBody,
    TeiErrorBody,
    VoyageErrorBody,
    error_body,
    failure,
)
from prism.serving.limits import Admission, Keys, Limits
from prism.serving.observability import CONTENT_TYPE, Metrics, Trace
from prism.serving.pages import add_pages
from prism.serving.schema import inlined_schema, request_schema
from prism.serving.score import ScoreResponse, score_schema
from prism.serving.stream import EVENT_SCHEMA
from prism.serving.systemone import SystemOneRequest, SystemOneResponse
from prism.version import __version__

_KINDS = {404: "not_found", 405: "method_not_allowed"}
AnyError = ErrorBody | VoyageErrorBody | TeiErrorBody | SystemOneErrorBody
Answered = Callable[[Request], Awaitable[Response]]
_ERRORS = (400, 401, 413, 415, 422, 429, 500, 503, 504)


def create_app(
    reranker: Reranker, limits: Limits | None = None, *, keys: Keys | None = None, trace: Trace | None = None
) -> FastAPI:
    """The app around a loaded reranker, which it closes when it shuts down. Requests take turns at its engine where
    that does one thing at a time.

    `trace` is told of every request when it is over (`prism.serving.observability`).
    `app.state.admission` counts the requests under way; setting its `draining` refuses new ones.
    Raises InputError for limits that the model cannot keep: written evidence where it writes none.
    """
    limits, keys = limits or Limits(), keys or Keys()
    if limits.evidence == "written":
        reranker.template.require_texts()
    reranker.take_turns()
    admission = Admission(limits.max_requests)
    metrics = Metrics(lambda: admission.open)
    endpoint = Endpoint(reranker, limits, keys, admission, metrics, trace)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await reranker.aclose()

    app = FastAPI(
        title="Prism",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's load scripts from other servers: see `pages`
        redoc_url=None,
    )
    app.state.admission = admission
    app.add_middleware(Tidy)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Refused, _on_refusal)
    _add_rerank(app, endpoint)
    _add_score(app, endpoint)
    _add_questions(app, endpoint)
    _add_status(app, reranker, endpoint, keys, metrics)
    _add_info(app, reranker, limits, keys)
    add_pages(app, reranker, limits, keys)
    return app


class Tidy:
    """What clients get wrong about addresses is put right here: `/v1/rerank/`, `//v1/rerank`, and HEAD for GET.

    Nobody is redirected: many clients do not repeat a POST elsewhere, and behind a proxy's prefix the address is wrong.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = re.sub("/{2,}", "/", scope["path"])
            scope = {**scope, "path": path.rstrip("/") or "/"}
            if scope["method"] == "HEAD":  # the server sends no body for it
                scope["method"] = "GET"
        await self._app(scope, receive, send)


def _add_rerank(app: FastAPI, endpoint: Endpoint) -> None:
    said = {"description": "Text Embeddings Inference: JSON array of warnings", "schema": {"type": "string"}}
    ranked = {"content": {"text/event-stream": {"schema": EVENT_SCHEMA}}, "headers": {WARNINGS: said}}
    for path in ("/v1/rerank", "/rerank", COHERE):
        app.post(
            path,
            response_model=RerankResponse | list[TeiItem],
            responses={**_errors(), 200: ranked},
            openapi_extra=_reads(request_schema()),
            include_in_schema=path == "/v1/rerank",
            summary="Judge documents for a query",
        )(endpoint.rerank)


def _add_score(app: FastAPI, endpoint: Endpoint) -> None:
    for path in ("/v1/score", "/score"):
        app.post(
            path,
            response_model=ScoreResponse,
            responses=_errors(),
            openapi_extra=_reads(score_schema()),
            include_in_schema=path == "/v1/score",
            summary="Scores only, in the order sent: vLLM's",
        )(endpoint.score)


def _add_questions(app: FastAPI, endpoint: Endpoint) -> None:
    def add(name: str, answer: Answered, request: type[BaseModel], response: type[BaseModel], vendor: str) -> None:
        for path in (f"/v1/{name}", f"/{name}"):
            app.post(
                path,
                response_model=response,
                responses=_errors(),
                openapi_extra=_reads(inlined_schema(request)),
                include_in_schema=path.startswith("/v1/"),
                summary=f"Typed questions: {vendor}",
            )(answer)

    add("systemone", endpoint.system_one, SystemOneRequest, SystemOneResponse, "TypeSafe's System One (Jev)")
    add("decisions", endpoint.decisions, DecisionRequest, DecisionResponse, "OpenAI's Decisions API")


def _errors() -> dict[int | str, dict[str, Any]]:
    return {code: {"model": AnyError} for code in _ERRORS}


def _reads(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _add_status(app: FastAPI, reranker: Reranker, endpoint: Endpoint, keys: Keys, metrics: Metrics) -> None:
    @app.get("/v1/models", summary="The loaded model")
    async def models(request: Request) -> dict[str, Any]:
        keys.require(request.headers)
        described = "a reranker: judges whether a passage answers a query"
        return {
            "object": "list",
            "data": [{"id": reranker.name, "object": "model", "owned_by": "prism"}],
            "models": [{"name": reranker.name, "description": described, "release_date": "unknown"}],  # TypeSafe's
        }

    @app.get("/health", summary="Whether the server answers")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": reranker.name, "version": __version__}

    @app.get("/ready", summary="Whether a request sent now would be served", responses={503: {"model": ErrorBody}})
    async def ready() -> dict[str, str]:
        if not await endpoint.ready():
            raise Refused(
                503, "not ready: the server is shutting down, or the model fails", "not_ready", Retry_After="1"
            )
        return {"status": "ready"}

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def figures() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _add_info(app: FastAPI, reranker: Reranker, limits: Limits, keys: Keys) -> None:
    @app.get("/info", summary="What the clients of Text Embeddings Inference ask a server first")
    async def info(request: Request) -> dict[str, Any]:
        keys.require(request.headers)
        labels = {"no": 0, "yes": 1}
        return {
            "model_id": reranker.name,
            "model_sha": None,
            "model_dtype": "unknown",
            "model_type": {
                "reranker": {"id2label": {str(n): label for label, n in labels.items()}, "label2id": labels}
            },
            "max_concurrent_requests": limits.max_requests,
            "max_input_length": reranker.template.spec.max_prompt_tokens,
            "max_batch_tokens": limits.max_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": limits.max_documents,
            "auto_truncate": True,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }


async def _on_refusal(_: Request, error: Exception) -> JSONResponse:
    request_id = f"error-{uuid.uuid4().hex}"
    return failure(request_id, error).response(request_id, Dialect.COMMON)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Paths and methods that do not exist; and OPTIONS, which says what does."""
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    if allowed := headers.get("Allow"):
        headers["Allow"] = ", ".join([allowed, *(["HEAD"] if allowed == "GET" else []), "OPTIONS"])
        if request.method == "OPTIONS":  # without a word about other origins: web pages may not post here
            return Response(status_code=204, headers=headers)
    dialect = await peek(request) if request.method == "POST" else Dialect.COMMON
    message = f"{request.method} {request.url.path}: {error.detail}; the endpoint is POST /v1/rerank"
    kind = _KINDS.get(error.status_code, INVALID)
    body = error_body(f"error-{uuid.uuid4().hex}", message, kind, dialect)
    return JSONResponse(body, error.status_code, headers=headers)
