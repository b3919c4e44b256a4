"""A real browser for pages: Chromium through its own driver, spoken to over WebDriver's JSON."""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

DRIVER, CHROMIUM = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
MISSING = "needs chromium and chromedriver (Debian: apt install chromium chromium-driver)"


class Browser:
    """One open window."""

    def __init__(self, client: httpx.Client, session: str) -> None:
        self._client, self._session = client, session

    def _send(self, command: str, body: dict[str, Any] | None = None) -> Any:
        path = f"/session/{self._session}/{command}"
        answer = self._client.get(path) if body is None else self._client.post(path, json=body)
        return answer.raise_for_status().json()["value"]

    def open(self, page: Path) -> None:
        self._send("url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> Any:
        """What a script returns in the page."""
        return self._send("execute/sync", {"script": script, "args": []})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._send("screenshot")))


@contextmanager
def browser(width: int, height: int = 800) -> Iterator[Browser]:
    """A window `width` CSS pixels wide, as a phone has it."""
    assert DRIVER, MISSING
    assert CHROMIUM, MISSING
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    options = {
        "binary": CHROMIUM,
        "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"],
        "mobileEmulation": {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 1.0, "touch": False}},
    }
    wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            _wait(client)
            session = client.post("/session", json=wanted).raise_for_status().json()["value"]["sessionId"]
            yield Browser(client, session)
            client.delete(f"/session/{session}")
    finally:
        process.terminate()
        process.wait(10)


def _wait(client: httpx.Client, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if client.get("/status").json()["value"]["ready"]:
                return
        except httpx.ConnectError:
            if time.monotonic() > end:
                raise
        time.sleep(0.1)
