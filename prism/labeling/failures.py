"""What can go wrong between a question and its answer, sorted by what to do about it.

ChatError
├── Stop               nothing more can be asked here; votes so far are safe and the same command goes on later
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

from decimal import Decimal
from typing import ClassVar

from prism.errors import ChatError
from prism.types import Usage


class Stop(ChatError):
    """Nothing more can be asked of this provider in this run."""

    kind: ClassVar[str] = "stopped"


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


class BadAnswer(ChatError):
    """A paid answer without content; `kind` is refused, empty or cut_off."""

    def __init__(self, kind: str, message: str, *, usage: Usage, cost_usd: Decimal) -> None:
        super().__init__(message)
        self.kind = kind
        self.usage = usage
        self.cost_usd = cost_usd
