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


class Thrown(Exception):
    """An error of a script in the page."""


class Browser:
    """One open window."""

    def __init__(self, client: httpx.Client, session: str) -> None:
        self._client, self._session = client, session

    def _send(self, command: str, body: dict[str, Any] | None = None) -> Any:
        path = f"/session/{self._session}/{command}"
        answer = self._client.get(path) if body is None else self._client.post(path, json=body)
        return answer.raise_for_status().json()["value"]

    def open(self, page: Path | str) -> None:
        """A file, or an address."""
        self._send("url", {"url": page.resolve().as_uri() if isinstance(page, Path) else page})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns in the page; a promise is waited for. Raises Thrown with what it throws."""
        try:
            return self._send("execute/sync", {"script": script, "args": arguments})
        except httpx.HTTPStatusError as error:
            raise Thrown(error.response.json()["value"]["message"]) from error

    def press(self, selector: str) -> None:
        """A click in the middle of the first element, where a person could click."""
        self._send(f"element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Keys into an element; the codes of WebDriver stand for those without a character."""
        self._send(f"element/{self._find(selector)}/value", {"text": text})

    def keys(self, *codes: str) -> None:
        """Keys to wherever the focus is, all held down together."""
        actions = [{"type": "keyDown", "value": code} for code in codes]
        actions += [{"type": "keyUp", "value": code} for code in reversed(codes)]
        self._send("actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def devtools(self, command: str, **parameters: Any) -> Any:
        """Chromium's own protocol."""
        return self._send("goog/cdp/execute", {"cmd": command, "params": parameters})

    def console(self) -> list[str]:
        """What was complained about since the last call: broken policies, failed loads, errors."""
        return [entry["message"] for entry in self._send("se/log", {"type": "browser"})]

    def _find(self, selector: str) -> str:
        found: dict[str, str] = self._send("element", {"using": "css selector", "value": selector})
        return next(iter(found.values()))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._send("screenshot")))


@contextmanager
def browser(width: int | None = None, height: int = 800) -> Iterator[Browser]:
    """A window `width` CSS pixels wide, as a phone has it; without a width a desktop's, which `devtools` may resize."""
    assert DRIVER, MISSING
    assert CHROMIUM, MISSING
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    options: dict[str, Any] = {
        "binary": CHROMIUM,
        "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"],
    }
    if width is not None:
        metrics = {"width": width, "height": height, "pixelRatio": 1.0, "touch": False}
        options["mobileEmulation"] = {"deviceMetrics": metrics}
    chrome = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    wanted = {"capabilities": {"alwaysMatch": chrome}}
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
