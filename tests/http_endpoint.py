"""A real server on a free port, in a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from app_thread import AppThread

from prism.reranker import Reranker
from prism.serving.app import create_app
from prism.serving.limits import Keys, Limits
from prism.serving.observability import Trace


class Server:
    """`with Server(reranker) as client:`; `url` is for other clients, `app` for what the test asks of the inside."""

    def __init__(self, reranker: Reranker, keys: Keys | None = None, trace: Trace | None = None, **limits: Any) -> None:
        self.app = create_app(reranker, Limits(**limits), keys=keys, trace=trace)
        self._served = AppThread(self.app, lifespan="on")
        self.url = self._served.url

    def call_soon(self, call: Callable[[], object]) -> None:
        """Runs `call` on the server's event loop."""
        assert self._served.loop is not None
        self._served.loop.call_soon_threadsafe(call)

    def __enter__(self) -> httpx.Client:
        self._served.start()
        self._client = httpx.Client(base_url=self.url, timeout=30)
        return self._client

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._served.stop()
