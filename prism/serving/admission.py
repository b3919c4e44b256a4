"""A bounded number of requests at a time. All that are let in take turns at the engine (`prism.engines.turns`)."""

from __future__ import annotations

import time
from collections.abc import Callable

from prism.serving.refusal import Refused

_WEIGHT = 0.2
_LONGEST_WAIT_S = 60


class Admission:
    """Counts the requests under way and refuses what would be too many, or comes while the server drains."""

    def __init__(self, max_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.open = 0
        self.draining = False
        self._max = max_requests
        self._clock = clock
        self._mean_s = 1.0

    def enter(self) -> Callable[[], None]:
        """Takes a place and returns what gives it back. Raises Refused, 429 or 503, with a time to wait."""
        if self.draining:
            message = "the server is shutting down: send the request to another"
            raise Refused(503, message, "shutting_down", Retry_After="1")
        if self.open >= self._max:
            message = f"{self.open} requests are under way, which is the limit: try again later"
            raise Refused(429, message, "too_many_requests", Retry_After=str(self.retry_after_s()))
        self.open += 1
        entered, left = self._clock(), False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                self.open -= 1
                self._mean_s += _WEIGHT * (self._clock() - entered - self._mean_s)

        return leave

    def retry_after_s(self) -> int:
        """When a place is likely to be free: the requests under way end within about their mean time."""
        return min(_LONGEST_WAIT_S, max(1, round(self._mean_s)))
