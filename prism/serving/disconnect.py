"""Work for a client lasts no longer than the client does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from anyio import CancelScope
from starlette.requests import ClientDisconnect, Request

_T = TypeVar("_T")


async def until_disconnect(request: Request, work: Awaitable[_T]) -> _T:
    """What `work` gives. Raises ClientDisconnect when the client hangs up first, which cancels the work."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    with CancelScope() as scope:
        watcher = asyncio.create_task(watch())
        try:
            return await work
        finally:
            watcher.cancel()
    raise ClientDisconnect
