"""One chat request to a model behind any OpenAI-compatible API: a completion with its exact cost, or a typed failure.

    client = ChatClient(Provider(base_url="https://api.example.com/v1", key_env="EXAMPLE_API_KEY"), name="example")
    completion = await client.complete(messages, model="small", price=Price(input="0.1", output="0.4"), max_tokens=16)

One client serves all that is asked of a provider: its rate limit, its pauses and its budget are shared. Requests are
plain HTTP rather than an SDK's, because every attempt costs money and must be seen: an SDK's own retries would pay
behind our back. Keys are read from the environment when a request is made, and appear in no message.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self
from urllib.parse import urlsplit

from prism.errors import in_one_line
from prism.llm.allowance import Account, Allowance, Provider, is_loopback
from prism.llm.classify import Caller, read_error
from prism.llm.failures import BadAnswer, Evidence, KeyRefused, Stop, Unavailable, Undelivered
from prism.llm.money import Price
from prism.llm.replies import read_reply
from prism.text import clean
from prism.types import Record, Usage

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

Messages = Sequence[Mapping[str, str]]
"""`{"role": ..., "content": ...}`, in order."""

_MAX_BODY_BYTES = 8 * 2**20
_MESSAGE_TOKENS = 16
"""Generous room for what a chat template puts around one message."""
_HARMLESS = ({"role": "user", "content": "Reply with the digit 1 and nothing else."},)
"""Nothing to refuse: whoever refuses this refuses everything."""


class Completion(Record):
    """What a model wrote, and what it cost."""

    text: str
    finish: str
    """`stop`, `length`, or whatever else the provider says."""
    usage: Usage
    cost_usd: Decimal
    counted: bool = True
    """False when the provider sent no token counts and they are estimated."""
    first: Mapping[str, float] | None = None
    """The likeliest first tokens and their log-probabilities: with `logprobs` and `top_logprobs` among the params."""


class CallLog(Protocol):
    """Hears of each attempt, so that money is on record before it is spent."""

    async def sent(self, most_usd: Decimal) -> None:
        """An attempt is about to be sent and may cost this much."""
        ...

    async def failed(self, kind: str, charged_usd: Decimal) -> None:
        """It brought no answer; `charged_usd` is the most it may have cost."""
        ...


class ChatRequest(NamedTuple):
    """One question, as it is sent."""

    model: str
    url: str
    headers: dict[str, str]
    body: bytes
    price: Price
    estimate: Usage
    most_usd: Decimal
    log: CallLog | None
    max_tokens: int
    params: Mapping[str, Any]


class ChatClient:
    """Requests to one provider, within its limits. Belongs to one event loop; close it when done.

    What stopped a model (a refused key, say) holds for the life of the client: what waits is not sent any more.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        name: str = "provider",
        spent_usd: Decimal = Decimal(0),
        allowance: Allowance | None = None,
    ) -> None:
        """`spent_usd` counts against the budget: what earlier runs paid.

        `allowance`: where several clients share the account. It then knows what was spent.
        """
        self.provider = provider
        self.name = name
        self._slots = asyncio.Semaphore(provider.concurrency)
        self._allowance: Allowance = allowance or Account(provider, spent_usd)
        self._http: httpx.AsyncClient | None = None
        self._stopped: dict[str, Stop] = {}
        self._evidence: dict[str, Evidence] = {}

    async def complete(
        self,
        messages: Messages,
        *,
        model: str,
        max_tokens: int,
        price: Price | None = None,
        params: Mapping[str, Any] | None = None,
        log: CallLog | None = None,
    ) -> Completion:
        """Ask once; passing troubles are retried with growing waits, or as long as `Retry-After` says.

        `params` go into the request as they are (`temperature`, `reasoning_effort`, …). Raises Stop (KeyRefused,
        OutOfCredit, OverBudget, RateLimited, WrongEndpoint), Unavailable, Rejected or BadAnswer.
        """
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

        request = self._request(messages, model, max_tokens, price or Price(), params or {}, log)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Unavailable),
            stop=stop_after_attempt(self.provider.max_attempts),
            wait=self._wait,
            reraise=True,
        )
        return await retrying(self._attempt, request)

    def _request(
        self,
        messages: Messages,
        model: str,
        max_tokens: int,
        price: Price,
        params: Mapping[str, Any],
        log: CallLog | None,
    ) -> ChatRequest:
        cleaned = [{name: clean(text) for name, text in message.items()} for message in messages]
        content = {"model": model, "messages": cleaned, self.provider.max_tokens_field: max_tokens, **params}
        most = Usage(prompt_tokens=most_tokens(cleaned), written_tokens=max_tokens)
        return ChatRequest(
            model=model,
            url=f"{self.provider.base_url}/chat/completions",
            headers={"Content-Type": "application/json", **self._authorization()},
            body=json.dumps(content, ensure_ascii=False).encode(),
            price=price,
            estimate=Usage(prompt_tokens=estimate_tokens(cleaned), written_tokens=max_tokens),
            most_usd=price.cost(most),
            log=log,
            max_tokens=max_tokens,
            params=params,
        )

    @property
    def _caller(self) -> Caller:
        variable = self.provider.key_env
        key = os.environ.get(variable, "").strip() if variable else ""
        shown = variable or "no variable (none is named in key_env)"
        return Caller(self.name, key, shown, self.provider.max_wait_s)

    def _authorization(self) -> dict[str, str]:
        variable = self.provider.key_env
        if variable is None:
            return {}
        key = os.environ.get(variable, "").strip()
        if not key:
            raise KeyRefused(f"{self.name}: no key: put it in the environment variable {variable}")
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise KeyRefused(f"{self.name}: what is in {variable} is not a key: spaces or special characters in it")
        return {"Authorization": f"Bearer {key}"}

    async def _attempt(self, request: ChatRequest) -> Completion:
        async with self._slots:
            await self._allowance.turn(request.estimate)
            if request.model in self._stopped:  # questions that waited while another learnt this
                raise self._stopped[request.model]
            await self._allowance.set_aside(request.most_usd)
            paid_usd = request.most_usd  # what counts if we never hear
            try:
                asked_at = time.monotonic()
                if request.log:
                    await request.log.sent(request.most_usd)
                completion = await self._ask(request)
                paid_usd = completion.cost_usd
                return completion
            except BadAnswer as error:
                paid_usd = error.cost_usd
                raise
            except (Undelivered, Stop) as error:
                paid_usd = await self._lost(request, error)
                refusal = error
            finally:
                self._allowance.settle(request.most_usd, paid_usd)
            raise await self._believed(request, refusal, asked_at) from None

    async def _believed(self, request: ChatRequest, refusal: Undelivered | Stop, asked_at: float) -> Undelivered | Stop:
        """What a refusal is: of the account, or of this text alone (see `Evidence`)."""
        evidence = self._evidence.setdefault(request.model, Evidence())
        found = await evidence.believed(refusal, asked_at, partial(self._try_harmless, request))
        if isinstance(found, Stop):
            self._stopped[request.model] = found
        return found

    async def _try_harmless(self, request: ChatRequest) -> Stop | Undelivered | None:
        """Ask something nobody refuses, once. Returns how that failed; None when anything was answered."""
        if request.model in self._stopped:  # somebody else has learnt it meanwhile
            return self._stopped[request.model]
        asked = self._request(_HARMLESS, request.model, request.max_tokens, request.price, request.params, request.log)
        await self._allowance.turn(asked.estimate)
        await self._allowance.set_aside(asked.most_usd)
        paid_usd = asked.most_usd
        try:
            if asked.log:
                await asked.log.sent(asked.most_usd)
            paid_usd = (await self._ask(asked)).cost_usd
        except BadAnswer as error:
            paid_usd = error.cost_usd
        except (Undelivered, Stop) as error:
            paid_usd = await self._lost(asked, error)
            return error
        finally:
            self._allowance.settle(asked.most_usd, paid_usd)
        if asked.log:
            await asked.log.failed("harmless question", paid_usd)
        return None

    async def _lost(self, request: ChatRequest, error: Undelivered | Stop) -> Decimal:
        """Record an attempt that brought nothing; returns the most it may have cost."""
        charged_usd = request.most_usd if isinstance(error, Unavailable) and error.paid else Decimal(0)
        if isinstance(error, Unavailable) and error.retry_after_s is not None:
            self._allowance.pause(error.retry_after_s)
        if request.log:
            await request.log.failed(error.kind, charged_usd)
        return charged_usd

    async def _ask(self, request: ChatRequest) -> Completion:
        status, headers, body = await self._post(request)
        if status != 200:
            raise read_error(self._caller, status, headers, body)
        reply = read_reply(self._caller, body)
        self._evidence.setdefault(request.model, Evidence()).answered()
        usage = reply.usage or Usage(prompt_tokens=request.estimate.prompt_tokens, written_tokens=_estimate(reply.text))
        cost_usd = request.price.cost(usage)
        if reply.problem:
            raise BadAnswer(
                reply.problem, f"{self.name}: the answer is {reply.problem}", usage=usage, cost_usd=cost_usd
            )
        return Completion(
            text=reply.text,
            finish=reply.finish,
            usage=usage,
            cost_usd=cost_usd,
            counted=reply.usage is not None,
            first=reply.first,
        )

    async def _post(self, request: ChatRequest) -> tuple[int, Mapping[str, str], bytes]:
        import httpx

        http = self._open()
        try:
            async with asyncio.timeout(self.provider.timeout_s):
                async with http.stream("POST", request.url, headers=request.headers, content=request.body) as response:
                    body = bytearray()
                    async for piece in response.aiter_bytes():
                        body += piece
                        if len(body) > _MAX_BODY_BYTES:
                            raise Unavailable("cut_body", f"{self.name}: an answer over 8 MiB", paid=True)
                    return response.status_code, response.headers, bytes(body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unavailable("connection", f"{self.name}: cannot connect: {_why(error)}") from None
        except (TimeoutError, httpx.TimeoutException):
            message = f"{self.name}: no whole answer within {self.provider.timeout_s:g} s"
            raise Unavailable("timeout", message, paid=True) from None
        except httpx.HTTPError as error:
            raise Unavailable("connection", f"{self.name}: lost the connection: {_why(error)}", paid=True) from None

    def _open(self) -> httpx.AsyncClient:
        import httpx

        if self._http is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.provider.concurrency)
            timeout = httpx.Timeout(None, connect=min(15.0, self.provider.timeout_s))
            encrypted = self.provider.base_url.startswith("https:")  # certificates take long to load
            # No proxy stands between this machine and itself: it would ask its own.
            here = is_loopback(urlsplit(self.provider.base_url).hostname or "")
            self._http = httpx.AsyncClient(limits=limits, timeout=timeout, verify=encrypted, trust_env=not here)
        return self._http

    def _wait(self, state: RetryCallState) -> float:
        from tenacity import wait_random_exponential

        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Unavailable) and error.retry_after_s is not None:
            return error.retry_after_s
        return wait_random_exponential(multiplier=self.provider.backoff_s, max=self.provider.max_wait_s)(state)

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _estimate(text: str) -> int:
    """About four bytes of UTF-8 make a token, in English and in Chinese alike."""
    return math.ceil(len(text.encode("utf-8", "replace")) / 4)


def estimate_tokens(messages: Messages) -> int:
    """About how many prompt tokens these messages are."""
    return sum(_estimate(message["content"]) + 4 for message in messages)


def most_tokens(messages: Messages) -> int:
    """More prompt tokens than these messages can be: a token is at least one byte."""
    return sum(len(message["content"].encode("utf-8", "replace")) + _MESSAGE_TOKENS for message in messages)


def _why(error: Exception) -> str:
    return in_one_line(error, 200) or type(error).__name__
