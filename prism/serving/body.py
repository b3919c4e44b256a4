"""From the bytes of a request to a `RerankRequest`, or to the reason why not."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Mapping
from contextlib import suppress

from anyio import move_on_after, to_thread
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from prism.errors import InputError
from prism.records import first_problem
from prism.serving.dialects import Dialect, common_names, recognise, spelled
from prism.serving.http_errors import INVALID, Refused
from prism.serving.schema import RerankRequest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_PEEK_BYTES = 2**18
_PEEK_S = 1.0
_GZIP, _ZLIB, _DEFLATE = 31, 15, -15
"""zlib's numbers for the formats."""
_ENCODINGS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB, "zstd": None}
_ZSTD_OPTIONS: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: 23}
"""A frame may ask for gigabytes to be unpacked into; decoders need allow no more than 8 MiB (RFC 8878, 3.1.1.1.2)."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, unpacked; refused as soon as it is too large, whatever its Content-Length says."""
    media_type = request.headers.get("content-type", "nothing").partition(";")[0].strip().lower()
    if media_type not in ("application/json", "text/json") and not media_type.endswith("+json"):
        # Also what keeps web pages from posting here: a browser sends JSON across origins only after asking.
        message = f"expected Content-Type: application/json, got {media_type[:80]}"
        raise Refused(415, message, "unsupported_media_type")
    listed = ",".join(request.headers.getlist("content-encoding")).lower().split(",")
    encodings = [name.strip() for name in listed if name.strip() not in ("", "identity")]
    if encodings and (len(encodings) > 1 or encodings[0] not in _ENCODINGS):
        message = f"expected Content-Encoding: gzip, deflate, zstd or none, got {', '.join(encodings)[:80]}"
        raise Refused(415, message, "unsupported_encoding", Accept_Encoding="gzip, deflate, zstd, identity")
    parts, size = [], 0
    async for chunk in request.stream():
        parts.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
    packed = b"".join(parts)
    return await to_thread.run_sync(unpack, packed, encodings[0], max_bytes) if encodings else packed


def unpack(packed: bytes, encoding: str, max_bytes: int) -> bytes:
    """What `encoding` (gzip, deflate, zstd) packed. No more than `max_bytes` are ever held, whatever they would become.

    Raises Refused (413) for more, InputError for what is not packed so.
    """
    format_ = _ENCODINGS[encoding]
    if format_ == _ZLIB and not (packed[:1] and packed[0] & 0x0F == 8 and int.from_bytes(packed[:2], "big") % 31 == 0):
        format_ = _DEFLATE  # some clients leave the header out
    unpacker = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS) if format_ is None else zlib.decompressobj(format_)
    try:
        body = unpacker.decompress(packed, max_bytes + 1)
    except (zlib.error, zstd.ZstdError) as error:
        raise InputError(f"the body is not {encoding}, which its Content-Encoding says: {error}") from error
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    if not unpacker.eof or unpacker.unused_data:
        raise InputError(f"the body is not one whole {encoding} stream: send it again")
    return body


def _too_large(max_bytes: int) -> Refused:
    return Refused(413, f"the body is over {max_bytes:,} bytes: send fewer or shorter documents", "too_large")


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
    except UnicodeDecodeError as error:
        raise InputError(f"the body is not JSON in UTF-8: {error.reason} at byte {error.start}") from error
    except ValueError as error:  # not JSON, or a number with thousands of digits
        raise InputError(f"the body is not JSON: {error}") from error


def read_request(body: object, max_documents: int, *, zero_is_all: bool = True) -> tuple[RerankRequest, dict[str, str]]:
    """The request, and what it called our options, for its errors. `zero_is_all`: what `top_n: 0` means.

    Raises Refused (422) for wrong types, InputError for a number of documents that cannot be served.
    """
    common, names = common_names(body)
    request = validated(common, names)
    request.refuse_contradictions()
    check_count(request.documents, max_documents, names)
    if request.top_n == 0 and zero_is_all and "top_n" not in names:
        request.top_n = None
    return request, spellings(request, names)


def spellings(request: RerankRequest, names: Mapping[str, str]) -> dict[str, str]:
    """What was sent for each of `Reranker`'s options that this request called otherwise."""
    return {ours: spelled(sent, names) for ours, sent in request.spellings().items()} | dict(names)


def validated(body: object, names: Mapping[str, str]) -> RerankRequest:
    """Raises Refused (422) in the words of the sender."""
    try:
        return RerankRequest.model_validate(body)
    except ValidationError as error:
        raise Refused(422, spelled(first_problem(error, body), names), INVALID) from error


def check_count(documents: list[object], max_documents: int, names: Mapping[str, str]) -> None:
    """Raises InputError for a number of documents that cannot be served."""
    what = names.get("documents", "documents")
    if not documents:
        raise InputError(f"{what} is empty: send at least one")
    if len(documents) > max_documents:
        raise InputError(f"too many {what}: got {len(documents)}, at most {max_documents} in one request")
