"""What an HTTP answer that is none means: wait, out of credit, wrong key, this text is refused, or try again.

Providers agree on the happy path and on little else: an empty account is 402 at one, 429 `insufficient_quota` at
another, 400 "credit balance is too low" at a third, and the same words stand in messages about a limit a minute, or in
a text that is echoed. Codes are believed; words make a failure of the account only suspected (`Stop.sure`).
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from prism.llm.failures import (
    Filtered,
    KeyRefused,
    OutOfCredit,
    RateLimited,
    Rejected,
    Stop,
    Unavailable,
    Undelivered,
    WrongEndpoint,
)
from prism.text import printable

_NO_CREDIT_CODE = re.compile(
    r"insufficient_(user_)?(quota|balance|funds|credits?)|billing_(hard_limit_reached|not_active)|arrearage|"
    r"credit_balance_too_low|payment_required",
    re.IGNORECASE,
)
_NO_CREDIT = re.compile(
    r"insufficient[ _](quota|balance|funds|credit)|credit balance|billing|arrears|out of credit|"
    r"exceeded your .{0,20}quota",
    re.IGNORECASE,
)
_BY_THE_MINUTE = re.compile(
    r"per[ _-]?(second|minute|hour)|\b[rt]p[msh]\b|rate[ _-]?limit|too many requests|throttl|allocated quota|retry in|"
    r"try again",
    re.IGNORECASE,
)
_BAD_KEY_CODE = re.compile(r"(invalid|incorrect|missing)_?(api_?)?key|api_?key_?(invalid|not_?valid)", re.IGNORECASE)
_BAD_KEY = re.compile(
    r"api[ _-]?key (not valid|is invalid|not found)|(invalid|incorrect)[ _]api[ _-]?key", re.IGNORECASE
)
_ABOUT_KEY = re.compile(
    r"\bkey\b|\btoken is\b|authenti|authori[sz]|permission|\baccess to\b|subscription|account|country|region",
    re.IGNORECASE,
)
_FILTERED = re.compile(
    r"content[_ ]?(filter|policy|management)|data_inspection_failed|moderation|flagged|safety|usage polic",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(r"model[_ ]not[_ ]found|model .{0,80}(does not|doesn't) exist|unknown model", re.IGNORECASE)
_TAG = re.compile(r"<(script|style)\b.*?</\1>|<[^>]{0,300}>", re.DOTALL | re.IGNORECASE)


class Caller(NamedTuple):
    """Who was asked, as far as messages about it go."""

    name: str
    """What it is called in messages."""
    key: str = ""
    """Never shown, not even where a server repeats it."""
    variable: str = "no variable (none is named)"
    """Where the key comes from."""
    max_wait_s: float = 120.0
    """Whoever asks to wait longer stops the run."""
    check: str = "base_url and model"
    """What to look at when there is no such address."""


class Said(NamedTuple):
    """What a server says about an error."""

    text: str
    """One short line, without the key."""
    codes: str
    """Its codes, types and statuses, which no echo of a text gets into."""
    structured: bool
    """False for a page, which says nothing about keys or money."""


def read_error(caller: Caller, status: int, headers: Mapping[str, str], body: bytes) -> Stop | Undelivered:
    """The failure behind an HTTP status."""
    said = read_message(body, caller)
    name, because = caller.name, f": {said.text}" if said.text else ""
    words = f"{said.text} {said.codes}" if said.structured else ""
    wait_s = asked_wait_s(headers, body)
    if status == 401 or (status in (400, 403) and _BAD_KEY_CODE.search(said.codes)):
        return _key_refused(caller, status, because, sure=True)
    if status == 402 or (status in (400, 403) and _NO_CREDIT_CODE.search(said.codes)):
        return _no_credit(caller, status, because, sure=True)
    broke, sure = _NO_CREDIT.search(words), bool(_NO_CREDIT_CODE.search(said.codes))
    if status == 429 and wait_s is None and (sure or broke) and not _BY_THE_MINUTE.search(words):
        return _no_credit(caller, status, because, sure=sure)
    if status in (404, 405) or 300 <= status < 400:
        return WrongEndpoint(f"{name}: no such address or model ({status}): check {caller.check}{because}")
    if status in (408, 409, 425, 429) or status >= 500:
        return _passing(caller, status, wait_s, because)
    if _FILTERED.search(words):
        return Filtered(f"{name} will not read this text ({status}){because}")
    if status == 400 and broke:
        return _no_credit(caller, status, because, sure=False)
    if status == 400 and _NO_MODEL.search(words):
        return WrongEndpoint(f"{name}: no such model ({status}): check {caller.check}{because}", sure=False)
    if (status == 403 and _ABOUT_KEY.search(words)) or (status == 400 and _BAD_KEY.search(words)):
        return _key_refused(caller, status, because, sure=False)
    return Rejected(f"{name} rejected the request ({status}){because}")


def _key_refused(caller: Caller, status: int, because: str, *, sure: bool) -> KeyRefused:
    hint = f"check what is in {caller.variable}, and what it may use"
    return KeyRefused(f"{caller.name} refused the key ({status}): {hint}{because}", sure=sure)


def _no_credit(caller: Caller, status: int, because: str, *, sure: bool) -> OutOfCredit:
    hint = "top it up and run again"
    return OutOfCredit(f"{caller.name}: the account is out of credit ({status}): {hint}{because}", sure=sure)


def _passing(caller: Caller, status: int, wait_s: float | None, because: str) -> RateLimited | Unavailable:
    if wait_s is not None and wait_s > caller.max_wait_s:
        return RateLimited(
            f"{caller.name} asks to wait {wait_s:,.0f} s: run the same command again after that{because}"
        )
    kind = "rate_limited" if status == 429 else "server_error"
    return Unavailable(kind, f"{caller.name} answered {status}{because}", retry_after_s=wait_s)


# --- how long to wait ------------------------------------------------------------------------------------------------

_UNIT = r"milliseconds?|ms|minutes?|mins?|m|hours?|hrs?|h|seconds?|secs?|s"
_STEP = re.compile(rf"(\d+(?:\.\d+)?)\s*({_UNIT})(?![a-z])", re.IGNORECASE)
_DURATION = re.compile(rf"\s*(?:\d+(?:\.\d+)?\s*(?:{_UNIT})(?![a-z])[\s,]*)+", re.IGNORECASE)
_AGAIN = re.compile(rf"(?:try again|retry|retrying|wait)\s+(?:in|after|for)?({_DURATION.pattern})", re.IGNORECASE)
_RESETS = ("x-ratelimit-reset", "ratelimit-reset", "x-rate-limit-reset")
_UNITS = {"ms": 0.001, "h": 3600.0, "m": 60.0, "s": 1.0}


def asked_wait_s(headers: Mapping[str, str], body: bytes) -> float | None:
    """Seconds that a server asks to wait, None where it does not say.

    From `Retry-After-Ms`; `Retry-After` (RFC 9110, section 10.2.3: seconds or a date); the body (Google's `retryDelay`,
    `retry_after`, "try again in 1m2.5s"); last from `x-ratelimit-reset*`, of which those count whose `remaining` is 0.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    if (seconds := _plain_number(lower.get("retry-after-ms"))) is not None:
        return max(0.0, seconds / 1000)
    if (seconds := _moment(lower.get("retry-after"))) is not None:
        return seconds
    if (seconds := _said_wait(body)) is not None:
        return seconds
    return _reset(lower)


def _said_wait(body: bytes) -> float | None:
    try:
        data: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    for name, value in _fields(data):
        if name in ("retrydelay", "retry_after", "retryafter", "retry_after_seconds"):
            seconds = _moment(str(value))
            if seconds is not None:
                return seconds
        if name == "message" and isinstance(value, str) and (found := _AGAIN.search(value)):
            seconds = _duration(found[1])
            if seconds is not None:
                return seconds
    return None


def _fields(data: Any, depth: int = 6) -> Iterator[tuple[str, Any]]:
    """Every named value in a body, from the outside in."""
    if depth and isinstance(data, Mapping):
        for name, value in data.items():
            yield str(name).lower(), value
        for value in data.values():
            yield from _fields(value, depth - 1)
    elif depth and isinstance(data, list):
        for value in data:
            yield from _fields(value, depth - 1)


def _reset(headers: Mapping[str, str]) -> float | None:
    found: dict[str, float] = {}
    for name, value in headers.items():
        stem = next((stem for stem in _RESETS if name.startswith(stem)), None)
        anthropic = re.fullmatch(r"anthropic-ratelimit-(.+)-reset", name)
        if stem is None and anthropic is None:
            continue
        what = anthropic[1] if anthropic else name.removeprefix(stem or "").strip("-")
        if (seconds := _moment(value)) is not None:
            found[what] = seconds
    used_up = [seconds for what, seconds in found.items() if _remaining(headers, what) == 0]
    return max(used_up) if used_up else min(found.values(), default=None)


def _remaining(headers: Mapping[str, str], what: str) -> float | None:
    for stem in ("x-ratelimit-remaining", "ratelimit-remaining", "x-rate-limit-remaining"):
        if (value := headers.get(f"{stem}-{what}" if what else stem)) is not None:
            return _plain_number(value)
    return _plain_number(headers.get(f"anthropic-ratelimit-{what}-remaining"))


def _moment(text: str | None) -> float | None:
    """Seconds from now: a number of them, `6m0s`, a date, or seconds or milliseconds since 1970."""
    if text is None or not text.strip():
        return None
    number = _plain_number(text)
    if number is not None:
        if number > 1e9:  # since 1970
            number = (number / 1000 if number > 1e11 else number) - time.time()
        return max(0.0, number)
    if (seconds := _duration(text)) is not None:
        return seconds
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            return max(0.0, parse(text.strip()).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            continue
    return None


def _plain_number(text: str | None) -> float | None:
    try:
        number = float(text or "nan")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _duration(text: str) -> float | None:
    """`1h2m3.5s`, `250ms`, `7 seconds`."""
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _UNITS[_unit(unit.lower())] for number, unit in _STEP.findall(text))


def _unit(unit: str) -> str:
    return "ms" if unit == "ms" or unit.startswith("milli") else unit[0]


# --- what a server says ----------------------------------------------------------------------------------------------


def read_message(body: bytes, caller: Caller) -> Said:
    """What the server says, in one short line without the key."""
    try:
        data: Any = json.loads(body)
        structured = True
    except (ValueError, RecursionError):
        data = _TAG.sub(" ", body.decode("utf-8", "replace"))
        structured = data == body.decode("utf-8", "replace")
    while isinstance(data, list) and data:  # one provider wraps its errors in a list
        data = data[0]
    error = data.get("error", data) if isinstance(data, dict) else data
    codes: list[str] = []
    if isinstance(error, dict):
        outer = data if isinstance(data, dict) else {}
        codes = [str(part[name]) for part in (error, outer) for name in ("code", "type", "status") if part.get(name)]
        message = next((error[name] for name in ("message", "detail", "error") if error.get(name)), "")
        error = " ".join(str(part) for part in dict.fromkeys([message, *codes]) if part) or error
    said = " ".join(printable(str(error)).split())
    return Said(without_key(said, caller.key)[:200], " ".join(codes)[:200], structured)


def without_key(text: str, key: str) -> str:
    """The text, should a server echo the key it was sent."""
    return text.replace(key, "…") if key else text
