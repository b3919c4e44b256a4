"""From the bytes of a request to a `RerankRequest`, or to the reason why not."""

from __future__ import annotations

import json
from contextlib import suppress

from anyio import move_on_after
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from prism.errors import InputError
from prism.serving.dialects import Dialect, common_names, recognise
from prism.serving.refusal import INVALID, Refused
from prism.serving.schema import DocumentIn, RerankRequest
from prism.types import first_problem

_PEEK_BYTES = 2**18
_PEEK_S = 1.0


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, refused as soon as it is too large, whatever its Content-Length says."""
    media_type = request.headers.get("content-type", "nothing").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        # Also what keeps web pages from posting here: a browser sends JSON across origins only after asking.
        message = f"expected Content-Type: application/json, got {media_type[:80]}"
        raise Refused(415, message, "unsupported_media_type")
    parts, size = [], 0
    async for chunk in request.stream():
        parts.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise Refused(413, f"the body is over {max_bytes:,} bytes: send fewer or shorter documents", "too_large")
    return b"".join(parts)


async def peek(request: Request) -> Dialect:
    """The dialect of a request that is refused unread, as far as a small body tells: each client has its own errors."""
    dialect = Dialect.COMMON
    with move_on_after(_PEEK_S), suppress(Refused, InputError, ClientDisconnect):
        dialect = recognise(parse_json(await read_body(request, _PEEK_BYTES)))
    return dialect


def parse_json(body: bytes) -> object:
    """Raises InputError when the body is not JSON."""
    try:
        return json.loads(body)
    except RecursionError as error:
        raise InputError("the body is nested too deeply: expected {query, documents}") from error
    except ValueError as error:  # not JSON, not UTF-8, or a number with thousands of digits
        raise InputError(f"the body is not JSON: {error}") from error


def read_request(body: object, max_documents: int) -> RerankRequest:
    """Raises Refused (422) for wrong types, InputError for a number of documents that cannot be served."""
    try:
        request = RerankRequest.model_validate(common_names(body))
    except ValidationError as error:
        raise Refused(422, first_problem(error), INVALID) from error
    if not request.documents:
        raise InputError("documents is empty: send at least one")
    if len(request.documents) > max_documents:
        raise InputError(f"too many documents: got {len(request.documents)}, at most {max_documents} in one request")
    for index, sent in enumerate(request.documents):
        if isinstance(sent, DocumentIn) and sent.text is None and not request.rank_fields:
            raise Refused(422, f"documents.{index}.text: expected a string, or rank_fields that name others", INVALID)
    return request
