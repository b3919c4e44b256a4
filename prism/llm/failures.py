"""What can go wrong between a question and its answer, sorted by what to do about it.

ChatError
├── Stop               nothing more can be asked here; answers so far are safe and the same command goes on later
│   ├── KeyRefused     the key is missing, wrong, or may not use this model
│   ├── OutOfCredit    the account is empty
│   ├── OverBudget     the next request could exceed the budget
│   ├── RateLimited    the provider asks to wait longer than we are willing to
│   ├── WrongEndpoint  no such address or model
│   └── Broken         request after request failed
├── Undelivered        no answer to this one question; asked again by the next run
│   ├── Unavailable    time-outs, server errors, cut-off bodies, rate limits: after all attempts
│   └── Rejected       the provider will not take this request (too long, say)
└── BadAnswer          an answer came and was paid for, but says nothing: refused, empty or cut off
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import ClassVar

import anyio

from prism.errors import ChatError
from prism.types import Usage


class Stop(ChatError):
    """Nothing more can be asked of this provider in this run."""

    kind: ClassVar[str] = "stopped"

    def __init__(self, message: str, *, sure: bool = True) -> None:
        super().__init__(message)
        self.sure = sure
        """False where a refusal of one text may read the same: ask something harmless before believing it."""


class KeyRefused(Stop):
    kind = "key_refused"


class OutOfCredit(Stop):
    kind = "out_of_credit"


class OverBudget(Stop):
    kind = "over_budget"


class RateLimited(Stop):
    kind = "rate_limited"


class WrongEndpoint(Stop):
    kind = "wrong_endpoint"


class Broken(Stop):
    kind = "broken"


class Undelivered(ChatError):
    """One question got no answer."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Unavailable(Undelivered):
    """A passing trouble; `kind` is timeout, connection, server_error, rate_limited or cut_body."""

    def __init__(self, kind: str, message: str, *, retry_after_s: float | None = None, paid: bool = False) -> None:
        super().__init__(kind, message)
        self.retry_after_s = retry_after_s
        """What the server asked for."""
        self.paid = paid
        """The request may have been answered, and charged, without the answer reaching us."""


class Rejected(Undelivered):
    def __init__(self, message: str) -> None:
        super().__init__("rejected", message)


class Filtered(Rejected):
    """The provider's filter refused the texts before the model saw them: not charged."""

    def __init__(self, message: str) -> None:
        Undelivered.__init__(self, "refused", message)


class BadAnswer(ChatError):
    """A paid answer without content; `kind` is refused, empty or cut_off."""

    def __init__(self, kind: str, message: str, *, usage: Usage, cost_usd: Decimal) -> None:
        super().__init__(message)
        self.kind = kind
        self.usage = usage
        self.cost_usd = cost_usd


class Evidence:
    """Whether a refusal is about the account or about one text: asking something harmless tells.

    A refusal that reads like one of the account (key, credit, address) is tried at once, unless it can mean nothing
    else and nothing was ever answered; texts refused one after another are tried every third time.
    """

    _IN_A_ROW = 3

    def __init__(self) -> None:
        self._answered_at: float | None = None
        self._refused = 0
        self._doubting = anyio.Lock()

    def answered(self) -> None:
        """Something was."""
        self._answered_at = time.monotonic()
        self._refused = 0

    async def believed(
        self,
        error: Stop | Undelivered,
        asked_at: float,
        try_harmless: Callable[[], Awaitable[Exception | None]],
        *,
        single: bool = True,
    ) -> Stop | Undelivered:
        """What a refusal is in the end; whoever else doubts meanwhile waits.

        `asked_at`: `time.monotonic()` when it was asked. `try_harmless` asks something nobody refuses and returns how
        that failed, None when it was answered. `single`: one text was asked about; of several, the one that is refused
        is yet to be found.
        """
        async with self._doubting:
            doubted = (single or isinstance(error, Stop)) and self.doubts(error, asked_at)
            return self.verdict(error, await try_harmless() if doubted else None, doubted)

    def doubts(self, error: Stop | Undelivered, asked_at: float) -> bool:
        """Whether something harmless should be asked now. `asked_at`: `time.monotonic()` when this was."""
        since = self._answered_at is not None and self._answered_at >= asked_at  # another text was answered meanwhile
        if isinstance(error, KeyRefused | OutOfCredit | WrongEndpoint):
            return not since and not (error.sure and self._answered_at is None)
        if isinstance(error, Rejected) and not since:
            self._refused += 1
            return self._refused % self._IN_A_ROW == 0
        return False

    def verdict(self, error: Stop | Undelivered, harmless: Exception | None, asked: bool) -> Stop | Undelivered:
        """What the refusal is in the end. `asked`: whether something harmless was; `harmless`: how that failed."""
        account = isinstance(error, KeyRefused | OutOfCredit | WrongEndpoint)
        if not asked:
            if account and isinstance(error, Stop) and not (error.sure and self._answered_at is None):
                return Rejected(str(error))
            return error
        if harmless is None:
            self.answered()
            return Rejected(str(error)) if account else error
        if isinstance(harmless, Stop | Rejected):
            return error if isinstance(error, Stop) else Broken(f"even a harmless question is refused: {error}")
        return Rejected(str(error)) if account else error
