"""An account at a provider, and what it still allows: requests and tokens a minute, pauses it asked for, and money."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from decimal import Decimal
from typing import Literal, Protocol
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from prism.llm.money import Budget
from prism.types import Record, Usage


class Provider(Record):
    """One account at one API."""

    base_url: str
    """Up to and including `/v1`, or what stands in its place; `/chat/completions` is appended."""
    key_env: str | None = None
    """Environment variable that holds the key; None for a server that asks for none."""
    concurrency: int = Field(default=8, ge=1)
    """Requests under way at once: also how many answers a sudden death can cost."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """Counted as estimated before sending: a quarter of the bytes, and all the tokens that may be written."""
    budget_usd: Decimal | None = Field(default=None, ge=0)
    """Hard stop for all runs into one output directory; None: no limit."""
    timeout_s: float = Field(default=120.0, gt=0)
    """From sending to the last byte."""
    max_attempts: int = Field(default=6, ge=1)
    backoff_s: float = Field(default=1.0, gt=0)
    """Longest first wait; doubled with each attempt, drawn at random below that."""
    max_wait_s: float = Field(default=120.0, gt=0)
    """Longest wait between attempts. A server that asks for more stops the run here."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    @field_validator("base_url")
    @classmethod
    def _address(cls, url: str) -> str:
        return plain_address(url)


def plain_address(url: str) -> str:
    """The address without a slash at its end. Raises ValueError when it is none, or holds a key."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected an address such as https://api.example.com/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a key does not belong in the address: name its environment variable in key_env")
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's, for itself alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Allowance(Protocol):
    """Shared by all that ask one provider: its limits are the account's."""

    async def turn(self, estimate: Usage) -> None:
        """Wait until a request of this size may go."""
        ...

    def pause(self, seconds: float) -> None:
        """Nothing goes for so long."""
        ...

    async def set_aside(self, most_usd: Decimal) -> None:
        """Wait until `most_usd` fits into the budget beside what is under way. Raises OverBudget when it never will."""
        ...

    def settle(self, most_usd: Decimal, paid_usd: Decimal) -> None:
        """Replace what was set aside by what was paid."""
        ...


class Account:
    """The allowance of one provider, kept in this process; it belongs to one event loop."""

    def __init__(self, provider: Provider, spent_usd: Decimal = Decimal(0)) -> None:
        """`spent_usd` counts against the budget: what earlier runs paid."""
        from aiolimiter import AsyncLimiter

        requests, tokens = provider.requests_per_minute, provider.tokens_per_minute
        self.provider = provider
        self.budget = Budget(provider.budget_usd, spent_usd)
        self._tokens_a_minute = tokens
        self._tokens = AsyncLimiter(tokens, 60) if tokens else None
        self._requests: AsyncLimiter | None = None
        if requests:  # smooth: at most one second's worth at once
            self._requests = AsyncLimiter(requests / 60, 1) if requests >= 60 else AsyncLimiter(1, 60 / requests)
        self._not_before = -math.inf

    async def turn(self, estimate: Usage) -> None:
        if self._requests:
            await self._requests.acquire()
        if self._tokens and self._tokens_a_minute:
            await self._tokens.acquire(min(estimate.prompt_tokens + estimate.written_tokens, self._tokens_a_minute))
        while (wait_s := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)

    def pause(self, seconds: float) -> None:
        self._not_before = max(self._not_before, time.monotonic() + seconds)

    async def set_aside(self, most_usd: Decimal) -> None:
        await self.budget.set_aside(most_usd)

    def settle(self, most_usd: Decimal, paid_usd: Decimal) -> None:
        self.budget.settle(most_usd, paid_usd)
