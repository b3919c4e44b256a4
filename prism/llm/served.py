"""A model of this machine as a client like any other: its server starts at the first question and ends with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from anyio import to_thread

from prism.errors import CheckpointError, EngineError, InputError, in_one_line
from prism.llm.allowance import Provider
from prism.llm.chat import ChatClient, ChatRequest, Completion, Messages
from prism.llm.failures import Broken, Stop, Undelivered
from prism.llm.local_server import LocalServer

_DYING_S = 3.0
"""A server that does not take a connection, or breaks one, is mostly ending: so long until that is seen."""
_POLL_S = 0.02


class ServedClient(ChatClient):
    """Where nothing is asked, nothing is looked for, verified or started."""

    def __init__(self, provider: Provider, make: Callable[[], LocalServer], *, name: str) -> None:
        """`make`: the server, not started; it may raise CheckpointError or InputError for what it needs.

        What `provider` says counts, except for its address.
        """
        super().__init__(provider, name=name)
        self._make = make
        self._starting = asyncio.Lock()
        self._server: LocalServer | None = None
        self._broken: Broken | None = None

    async def complete(self, messages: Messages, **options: Any) -> Completion:
        """As ChatClient; and Broken when the server does not come up, or as soon as it is gone."""
        async with self._starting:
            if self._broken:
                raise self._broken
            if self._server is None:
                await self._start()
        return await super().complete(messages, **options)

    async def _start(self) -> None:
        try:
            self._broken = Broken("its server was never started to the end")  # a start may be given up half-way
            self._server = await to_thread.run_sync(self._make)
            await to_thread.run_sync(self._server.start, abandon_on_cancel=True)
        except (CheckpointError, EngineError, InputError, OSError) as error:
            self._broken = Broken(in_one_line(error))
            raise self._broken from None
        self._broken = None
        self.provider = self.provider.model_copy(update={"base_url": self._server.url})

    async def _attempt(self, request: ChatRequest) -> Completion:
        """No second attempt at a server that is gone."""
        try:
            return await super()._attempt(request)
        except (Stop, Undelivered) as error:
            problem = await self._gone(_DYING_S if error.kind == "connection" else 0.0)
            if problem is None:
                raise
            self._broken = Broken(f"{problem}; what it answered is kept, and the same command goes on")
            raise self._broken from None

    async def _gone(self, within_s: float) -> str | None:
        """How the server ended; None when it still lives after so long."""
        until = time.monotonic() + within_s
        while self._server:
            if (problem := self._server.gone()) or time.monotonic() >= until:
                return problem
            await asyncio.sleep(_POLL_S)
        return None

    async def aclose(self) -> None:
        """Ends the server, too."""
        await super().aclose()
        if self._server:
            await to_thread.run_sync(self._server.end)
