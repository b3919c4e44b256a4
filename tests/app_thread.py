"""Any ASGI application, really served: uvicorn on a free port, in a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any, Literal

import uvicorn


class AppThread:
    """Serves `app` between `start` and `stop`; `url` is its bare address, known before."""

    def __init__(
        self, app: Any, *, log_level: str = "warning", lifespan: Literal["auto", "on", "off"] = "auto"
    ) -> None:
        self._server = uvicorn.Server(uvicorn.Config(app, log_level=log_level, lifespan=lifespan, ws="none"))
        # With its protocol named asyncio switches Nagle's algorithm off, which costs 40 ms a request.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.loop: asyncio.AbstractEventLoop | None = None

    def _run(self) -> None:
        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[self._socket])

        asyncio.run(main())

    def start(self) -> None:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
