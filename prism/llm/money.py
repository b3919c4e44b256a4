"""Prices, exact costs, and a budget that is a hard stop. Money is US dollars as `Decimal`, never a float."""

from __future__ import annotations

import asyncio
from decimal import ROUND_CEILING, Decimal
from typing import Annotated

from pydantic import Field

from prism.llm.failures import OverBudget
from prism.types import Record, Usage

PICO = 10**12
"""Stores keep whole picodollars: the finest price that can be written times one token is one of them."""

PerMillion = Annotated[Decimal, Field(ge=0, decimal_places=6)]


class Price(Record):
    """US dollars per million tokens, as the provider publishes them."""

    input: PerMillion = Decimal(0)
    output: PerMillion = Decimal(0)
    cached_input: PerMillion | None = None
    """Input tokens the provider had cached; default: as `input`."""

    def cost(self, usage: Usage) -> Decimal:
        """Exact: tokens times price, nothing rounded."""
        cached_price = self.input if self.cached_input is None else self.cached_input
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        fresh = usage.prompt_tokens - cached
        return (fresh * self.input + cached * cached_price + usage.written_tokens * self.output) / 10**6


class Budget:
    """What may be spent. Each request sets its highest possible cost aside first, so the limit holds with many at once.

    One budget belongs to one event loop.
    """

    def __init__(self, limit_usd: Decimal | None = None, spent_usd: Decimal = Decimal(0)) -> None:
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self._aside_usd = Decimal(0)
        self._changed = asyncio.Event()

    async def set_aside(self, most_usd: Decimal) -> None:
        """Wait until `most_usd` fits beside what is under way. Raises OverBudget when it never will."""
        while self.limit_usd is not None and self.spent_usd + self._aside_usd + most_usd > self.limit_usd:
            if self.spent_usd + most_usd > self.limit_usd:
                raise OverBudget(
                    f"${self.spent_usd:f} of ${self.limit_usd:f} is spent, and the next request may cost"
                    f" ${most_usd:f}: raise budget_usd and run the same command to go on"
                )
            self._changed.clear()
            await self._changed.wait()
        self._aside_usd += most_usd

    def settle(self, most_usd: Decimal, paid_usd: Decimal) -> None:
        """Replace what was set aside by what was paid."""
        self._aside_usd -= most_usd
        self.spent_usd += paid_usd
        self._changed.set()


def to_pico(usd: Decimal) -> int:
    """Whole picodollars, for storing; a fraction of one rounds up."""
    return int((usd * PICO).to_integral_value(ROUND_CEILING))


def from_pico(pico: int) -> Decimal:
    return Decimal(pico) / PICO
