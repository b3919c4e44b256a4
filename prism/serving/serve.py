"""Running the app until a signal ends it: what is under way is finished first."""

from __future__ import annotations

import logging
import socket
import threading
import webbrowser
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from prism.serving import observability


class DrainingServer(uvicorn.Server):
    """On the first signal `/ready` turns to 503 and new requests are refused; after `drain_delay_s` the server stops
    listening, finishes what is under way and leaves. A second signal skips the delay, a third the finishing."""

    def __init__(
        self,
        app: FastAPI,
        config: uvicorn.Config,
        drain_delay_s: float,
        ready: Callable[[str], object] | None = None,
    ) -> None:
        """`ready` is told the server's address once it listens, in a thread of its own."""
        super().__init__(config)
        self._admission, self._drain_delay_s, self._ready = app.state.admission, drain_delay_s, ready
        self._timer: threading.Timer | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See the class; called by uvicorn, after which it listens."""
        await super().startup(sockets)
        if self._ready and self.started:
            host, port, *_ = self.servers[0].sockets[0].getsockname()
            threading.Thread(target=self._ready, args=(address(host, port),), daemon=True).start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See the class; called by the signal handler."""
        if self._timer:
            self._timer.cancel()
        if self._admission.draining or not self._drain_delay_s:
            self._admission.draining = True
            super().handle_exit(sig, frame)
            return
        self._admission.draining = True
        self._timer = threading.Timer(self._drain_delay_s, super().handle_exit, (sig, frame))
        self._timer.daemon = True
        self._timer.start()


def address(host: str, port: int) -> str:
    """Where a browser on this machine finds what listens there: "any address" is none to go to."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def open_browser(url: str) -> None:
    """Opens `url`; where there is no browser, says where to go."""
    if not webbrowser.open(url):
        logging.getLogger(observability.NAME).warning("no browser to open: go to %s", url)


def run(
    app: FastAPI,
    *,
    host: str,
    port: int,
    drain_delay_s: float,
    finish_within_s: float,
    ready: Callable[[str], object] | None = None,
) -> None:
    """Serves until a signal; requests still under way after `finish_within_s` are cut off. `ready`: see the server."""
    observability.configure()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # our own line for every request says more
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=max(1, round(finish_within_s)),
    )
    DrainingServer(app, config, drain_delay_s, ready).run()
