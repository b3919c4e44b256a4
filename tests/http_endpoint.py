"""A real server on a free port, in a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import uvicorn

from prism.reranker import Reranker
from prism.serving.app import create_app
from prism.serving.keys import Keys
from prism.serving.limits import Limits
from prism.serving.tracing import Trace


class Server:
    """`with Server(reranker) as client:`; `url` is for other clients, `app` for what the test asks of the inside."""

    def __init__(self, reranker: Reranker, keys: Keys | None = None, trace: Trace | None = None, **limits: Any) -> None:
        self.app = create_app(reranker, Limits(**limits), keys=keys, trace=trace)
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning", lifespan="on", ws="none"))
        # With its protocol named asyncio switches Nagle's algorithm off, which costs 40 ms a request.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def call_soon(self, call: Callable[[], object]) -> None:
        """Runs `call` on the server's event loop."""
        self._loop.call_soon_threadsafe(call)

    def _run(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[self._socket])

        asyncio.run(main())

    def __enter__(self) -> httpx.Client:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self._client = httpx.Client(base_url=self.url, timeout=30)
        return self._client

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
