"""Refusing a request: one exception that knows its HTTP status."""

from __future__ import annotations

INVALID = "invalid_request_error"


class Refused(Exception):
    """A request that is not served. The message is for the caller and quotes no document."""

    def __init__(self, status: int, message: str, kind: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.retry_after_s = status, kind, retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        found = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
