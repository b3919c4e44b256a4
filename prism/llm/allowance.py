"""What one account at a provider still allows: requests and tokens a minute, pauses it asked for, and money."""

from __future__ import annotations

import asyncio
import math
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Protocol

from prism.llm.money import Budget
from prism.types import Usage

if TYPE_CHECKING:
    from prism.llm.chat import Provider


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
