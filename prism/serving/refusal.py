"""Refusing a request: one exception that knows its HTTP status."""

from __future__ import annotations

INVALID = "invalid_request_error"


class Refused(Exception):
    """A request that is not served. The message is for the caller and quotes no document."""

    def __init__(self, status: int, message: str, kind: str, **headers: str) -> None:
        """`headers` with `_` for `-`: what the client may do about it, such as `Retry_After="1"`."""
        super().__init__(message)
        self.status, self.kind = status, kind
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
