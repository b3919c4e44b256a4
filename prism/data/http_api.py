"""One question to a JSON API over HTTP: asked again while the server is busy, and every failure of a named kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from prism.errors import EngineError

if TYPE_CHECKING:
    import httpx
    import tenacity
    from aiolimiter import AsyncLimiter

T = TypeVar("T")

_FATAL = {401: "the key is missing or wrong", 402: "the account is out of credit", 403: "the key may not do this"}
_REQUEST_WRONG = {400, 413, 414, 422}


class Refused(EngineError):
    """The API will not answer this request however often it is asked."""


class Unanswered(EngineError):
    """The API stayed busy or silent for as long as we asked: whether it billed us is not known."""


class Stopped(EngineError):
    """The API will not answer any request: wrong key, no credit, unknown model or address."""


class _Busy(Exception):
    """Worth asking again, after `wait_s` if the server named a time."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Address(NamedTuple):
    """Where to ask, and with how much patience."""

    url: str
    key: str | None
    """Never shown, not even where a server repeats it."""
    attempts: int = 6
    longest_wait_s: float = 60.0


async def ask(
    send: Callable[[], Awaitable[httpx.Response]],
    read: Callable[[Any], T],
    address: Address,
    limiter: AsyncLimiter | None = None,
) -> T:
    """`read` of the answer's JSON; every attempt of `send` waits for `limiter`.

    An answer that is not JSON, or that `read` fails on (ValueError, KeyError, TypeError, AttributeError), counts as
    busy: half an answer is a passing trouble. Raises Refused, Unanswered (after `attempts`) or Stopped.
    """
    import tenacity

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(_Busy),
        stop=tenacity.stop_after_attempt(address.attempts),
        wait=lambda state: _wait(state, address.longest_wait_s),
    )
    try:
        return await retrying(_once, send, read, address, limiter)
    except tenacity.RetryError as error:
        last = error.last_attempt.exception()
        raise Unanswered(f"{address.url} gave no answer in {address.attempts} attempts, last: {last}") from last


def _wait(state: tenacity.RetryCallState, longest_s: float) -> float:
    """What `Retry-After` says, else exponential backoff with jitter; never longer than `longest_s`."""
    import tenacity

    error = state.outcome.exception() if state.outcome else None
    asked = error.wait_s if isinstance(error, _Busy) else None
    backoff = tenacity.wait_exponential_jitter(multiplier=0.5, max=longest_s)(state)
    return min(backoff if asked is None else asked, longest_s)


async def _once(
    send: Callable[[], Awaitable[httpx.Response]],
    read: Callable[[Any], T],
    address: Address,
    limiter: AsyncLimiter | None,
) -> T:
    import httpx

    try:
        async with limiter or nullcontext():
            response = await send()
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise Stopped(f"{address.url}: not an address: {error}") from error
    except httpx.HTTPError as error:
        raise _Busy(f"{type(error).__name__} {error}".strip()) from error
    _check_status(response, address)
    try:
        return read(response.json())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Busy(f"an answer of another shape than this API's: {type(error).__name__} {error}") from error


def _check_status(response: httpx.Response, address: Address) -> None:
    status = response.status_code
    if status == 200:
        return
    said = f"{status} {_message(response)}".strip()
    said = said.replace(address.key, "<key>") if address.key else said
    if status in _FATAL:
        raise Stopped(f"{address.url}: {_FATAL[status]} ({said})")
    if status in _REQUEST_WRONG:
        raise Refused(said)
    if status in {408, 425, 429} or status >= 500:
        raise _Busy(said, _seconds(response.headers.get("retry-after")))
    raise Stopped(f"{address.url} answered {said}: check --url and --model")


def _message(response: httpx.Response) -> str:
    """What the server says about an error, short."""
    try:
        body = response.json()
    except ValueError:
        return response.text[:200]
    names = (name for name in ("message", "detail", "error") if isinstance(body, Mapping) and name in body)
    name = next(names, None)
    return str(body if name is None else body[name])[:200]


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None  # a date: rare, and backoff does as well
