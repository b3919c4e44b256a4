"""One question to a JSON API over HTTP: asked again while the server is busy, and every failure of a named kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from prism.errors import in_one_line
from prism.llm.classify import Caller, read_error, without_key
from prism.llm.failures import Stop, Unavailable, Undelivered, WrongEndpoint

if TYPE_CHECKING:
    import httpx
    import tenacity
    from aiolimiter import AsyncLimiter

T = TypeVar("T")


class Address(NamedTuple):
    """Where to ask, and with how much patience."""

    url: str
    key: str | None
    """Never shown, not even where a server repeats it."""
    variable: str = "the key's environment variable"
    attempts: int = 6
    longest_wait_s: float = 60.0
    check: str = "--url and --model"
    again: frozenset[str] | None = None
    """Which kinds of passing trouble (`Unavailable.kind`) are worth another attempt; None: all."""

    @property
    def caller(self) -> Caller:
        return Caller(self.url, self.key or "", self.variable, self.longest_wait_s, self.check)


async def ask(
    send: Callable[[], Awaitable[httpx.Response]],
    read: Callable[[Any], T],
    address: Address,
    limiter: AsyncLimiter | None = None,
) -> T:
    """`read` of the answer's JSON; every attempt of `send` waits for `limiter`.

    An answer that is not JSON, or that `read` fails on (ValueError, KeyError, TypeError, AttributeError), is asked for
    again: half an answer is a passing trouble. Raises Rejected, Unavailable (after `attempts`) or Stop.
    """
    import tenacity

    async def once() -> T:
        import httpx

        try:
            async with limiter or nullcontext():
                response = await send()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise unsent(error, address) from error
        return answer_of(response, read, address)

    try:
        return await tenacity.AsyncRetrying(**retrying(address))(once)
    except Unavailable as error:
        raise given_up(error, address) from error


def ask_now(
    send: Callable[[], httpx.Response],
    read: Callable[[Any], T],
    address: Address,
    sleep: Callable[[float], None],
) -> T:
    """As `ask`, in this thread."""
    import tenacity

    def once() -> T:
        import httpx

        try:
            response = send()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise unsent(error, address) from error
        return answer_of(response, read, address)

    try:
        return tenacity.Retrying(sleep=sleep, **retrying(address))(once)
    except Unavailable as error:
        raise given_up(error, address) from error


def retrying(address: Address) -> dict[str, Any]:
    """What tenacity is told: passing troubles are tried again, after as long as the server asks for."""
    import tenacity

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Unavailable) and error.retry_after_s is not None:
            return error.retry_after_s
        return float(tenacity.wait_exponential_jitter(multiplier=0.5, max=address.longest_wait_s)(state))

    return {
        "retry": tenacity.retry_if_exception(lambda error: isinstance(error, Unavailable) and _passes(error, address)),
        "stop": tenacity.stop_after_attempt(address.attempts),
        "wait": wait,
        "reraise": True,
    }


def unsent(error: Exception, address: Address) -> Stop | Undelivered:
    """What an error of the transport is."""
    import httpx

    why = in_one_line(error, 200)
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return WrongEndpoint(f"{address.url}: not an address: {why}")
    connecting = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    kind = "timeout" if isinstance(error, httpx.TimeoutException) and not connecting else "connection"
    return Unavailable(kind, f"{type(error).__name__} {why}".strip(), paid=not connecting)


def answer_of(response: httpx.Response, read: Callable[[Any], T], address: Address) -> T:
    """What `read` makes of an answer. Raises what the answer is instead of one."""
    if response.status_code != 200:
        raise read_error(address.caller, response.status_code, response.headers, response.content)
    try:
        return read(response.json())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = without_key(f"{type(error).__name__} {error}"[:200], address.key or "")
        raise Unavailable("cut_body", f"an answer of another shape than this API's: {what}", paid=True) from error


def given_up(error: Unavailable, address: Address) -> Unavailable:
    """The last failure of all attempts."""
    if not _passes(error, address):
        return error
    message = f"{address.url} gave no answer in {address.attempts} attempts, last: {error}"
    return Unavailable(error.kind, message, paid=error.paid)


def _passes(error: Unavailable, address: Address) -> bool:
    return address.again is None or error.kind in address.again
