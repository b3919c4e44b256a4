"""Reading what an OpenAI-compatible server sends back: an answer, or the right failure.

Providers agree on the happy path and on little else: an empty account is 402 at one, 429 `insufficient_quota` at
another, 400 "credit balance is too low" at a third. Here each becomes the failure it is.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Protocol

from prism.labeling.failures import (
    KeyRefused,
    OutOfCredit,
    RateLimited,
    Rejected,
    Stop,
    Unavailable,
    Undelivered,
    WrongEndpoint,
)
from prism.result import printable
from prism.types import Usage

_NO_CREDIT = re.compile(r"insufficient[ _](quota|balance|funds|credit)|credit balance|billing|arrears", re.IGNORECASE)
_BAD_KEY = re.compile(r"api[ _-]?key (not valid|is invalid|not found)|invalid[ _]api[ _-]?key", re.IGNORECASE)
_FILTERED = re.compile(r"content[_ ]?filter|content[_ ]policy|data_inspection_failed", re.IGNORECASE)
_NO_MODEL = re.compile(r"model[_ ]not[_ ]found|model .{0,80}(does not|doesn't) exist|unknown model", re.IGNORECASE)


class _Limits(Protocol):
    """The part of a provider's settings needed here."""

    @property
    def key_env(self) -> str | None: ...
    @property
    def max_wait_s(self) -> float: ...


class Reply(NamedTuple):
    """A complete answer, as the server sent it."""

    text: str
    finish: str
    usage: Usage | None
    """None when the server did not count."""
    problem: str | None = None
    """refused, empty or cut_off: nothing in it to read."""


def read_reply(name: str, body: bytes, provider: _Limits) -> Reply:
    """Raises Unavailable when the body is not a whole JSON object, or what its `error` says."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise Unavailable("cut_body", f"{name}: the answer is not whole JSON ({len(body)} bytes)", paid=True)
    if data.get("error"):  # some gateways say so under status 200
        code = data["error"].get("code") if isinstance(data["error"], dict) else None
        raise read_error(name, code if isinstance(code, int) else 500, {}, body, provider)
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    text, finish = without_key(_text(message.get("content")), provider), str(choice.get("finish_reason") or "stop")
    reply = Reply(text, finish, _usage(data.get("usage")))
    if message.get("refusal") or finish == "content_filter":
        return reply._replace(problem="refused")
    if not text.strip():
        return reply._replace(problem="cut_off" if finish == "length" else "empty")
    return reply


def _text(content: object) -> str:
    """A string, or the texts of a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return ""


def _usage(counts: object) -> Usage | None:
    """Token counts. Where the total says more than prompt and completion, the rest was written unseen and is billed."""
    if not isinstance(counts, dict):
        return None
    prompt, written = _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))
    if prompt is None:
        return None
    total = _count(counts.get("total_tokens")) or 0
    details = counts.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    cached = cached or _count(counts.get("prompt_cache_hit_tokens")) or 0
    return Usage(prompt_tokens=prompt, cached_tokens=cached, written_tokens=max(written or 0, total - prompt))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def read_error(
    name: str, status: int, headers: Mapping[str, str], body: bytes, provider: _Limits
) -> Stop | Undelivered:
    """The failure behind an HTTP status."""
    said = _message(body, provider)
    because = f": {said}" if said else ""
    variable = provider.key_env or "no variable (the panel names none in key_env)"
    if status in (401, 403) or (status == 400 and _BAD_KEY.search(said)):
        return KeyRefused(
            f"{name} refused the key ({status}): check what is in {variable}, and what it may use{because}"
        )
    if status == 402 or (status in (400, 429) and _NO_CREDIT.search(said)):
        return OutOfCredit(f"{name}: the account is out of credit ({status}): top it up and run again{because}")
    if status in (404, 405) or 300 <= status < 400 or (status == 400 and _NO_MODEL.search(said)):
        return WrongEndpoint(f"{name}: no such address or model ({status}): check base_url and model{because}")
    if status in (408, 409, 425, 429) or status >= 500:
        return _passing(name, status, _retry_after(headers), because, provider)
    if _FILTERED.search(said):
        return Filtered(f"{name} will not read this pair ({status}){because}")
    return Rejected(f"{name} rejected the request ({status}){because}")


class Filtered(Rejected):
    """The provider's filter refused the texts before the model saw them: an answer, and not charged."""


def _passing(
    name: str, status: int, retry_after_s: float | None, because: str, provider: _Limits
) -> RateLimited | Unavailable:
    if retry_after_s is not None and retry_after_s > provider.max_wait_s:
        return RateLimited(
            f"{name} asks to wait {retry_after_s:,.0f} s: run the same command again after that{because}"
        )
    kind = "rate_limited" if status == 429 else "server_error"
    return Unavailable(kind, f"{name} answered {status}{because}", retry_after_s=retry_after_s)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `Retry-After` (RFC 9110, section 10.2.3: seconds or a date) or `Retry-After-Ms`."""
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        seconds = float(milliseconds) / 1000 if milliseconds else float(value or "nan")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value or "").timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _message(body: bytes, provider: _Limits) -> str:
    """What the server says, in one short line without the key."""
    try:
        data: Any = json.loads(body)
    except (ValueError, RecursionError):
        data = body.decode("utf-8", "replace")
    while isinstance(data, list) and data:  # one provider wraps its errors in a list
        data = data[0]
    error = data.get("error", data) if isinstance(data, dict) else data
    if isinstance(error, dict):
        parts = (error.get(name) for name in ("message", "code", "type", "status"))
        error = " ".join(str(part) for part in parts if part)
    said = " ".join(printable(str(error)).split())
    return without_key(said, provider)[:200]


def without_key(text: str, provider: _Limits) -> str:
    """The text, should a server echo the key it was sent."""
    key = os.environ.get(provider.key_env or "", "").strip()
    return text.replace(key, "…") if key else text
