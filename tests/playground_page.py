"""The playground as a person meets it: the page in a browser, before a server whose model answers by rule."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest
from browser import Browser
from fakes import FakeEngine
from http_endpoint import Server

from prism.engines.base import WritePiece, WriteRequest
from prism.reranker import Reranker
from prism.template import PRISM, Template

QUERY = "when does the harbour freeze?"
GOOD = "p=0.9 The harbour froze in 1963. It rarely does."
FAIR = "p=0.7 Copper conducts electricity. So does silver."
BAD = "p=0.2 Nothing to see. Move on."


class Page:
    """Fields are filled, buttons pressed, and what is shown is read."""

    def __init__(self, window: Browser, url: str, *, width: int = 1280, dark: bool = False, still: bool = True) -> None:
        self.window = window
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        window.devtools("Emulation.setDeviceMetricsOverride", **size)
        features = {"prefers-color-scheme": "dark" if dark else "light"}
        features["prefers-reduced-motion"] = "reduce" if still else "no-preference"
        media = [{"name": name, "value": value} for name, value in features.items()]
        window.devtools("Emulation.setEmulatedMedia", features=media)
        window.console()
        window.open(url)

    def js(self, script: str, *arguments: Any) -> Any:
        return self.window.run(script, *arguments)

    def text(self, selector: str) -> str:
        """What the first element says, shown or not; nothing when there is none."""
        return str(self.js("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def texts(self, selector: str) -> list[str]:
        return list(self.js("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector))

    def fill(self, name: str, value: str) -> None:
        """As pasted: keys for a megabyte would take minutes."""
        script = "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        self.js(script + "e.dispatchEvent(new Event('input', {bubbles: true}))", name, value)

    def press(self, selector: str) -> None:
        self.window.press(selector)

    def until(self, is_so: Callable[[], object], within_s: float = 30) -> None:
        until = time.monotonic() + within_s
        while not is_so():
            assert time.monotonic() < until, f"not so after {within_s} s; {self.text('#wrong')}"
            time.sleep(0.05)

    def judge(self, query: str, documents: str, within_s: float = 30) -> None:
        """Asks, and waits for the end of the answer."""
        self.fill("query", query)
        self.fill("documents", documents)
        self.press("#judge")
        self.over(within_s)

    def over(self, within_s: float = 30) -> None:
        self.until(lambda: self.text("#judge") == "Judge documents", within_s)


class SlowWriter(FakeEngine):
    """Waits before it writes while `gate` is there and not set; invents a year where the document says `invent`."""

    gate: asyncio.Event | None = None

    async def write(self, requests: Sequence[WriteRequest]) -> AsyncIterator[WritePiece]:
        if self.gate:
            await self.gate.wait()
        async for piece in super().write(requests):
            yield piece

    def _text(self, document: str) -> str:
        written = super()._text(document)
        return written.replace("in 1963", "in 1847") if "invent" in document else written


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: Any) -> SlowWriter:
    return SlowWriter(Template(PRISM, tiny_tokenizer))


@pytest.fixture(scope="module")
def server(engine: FakeEngine) -> Server:
    return Server(
        Reranker(engine.template, engine, name="fake </script> model", thresholds={"zh": 0.933}, score_version="v1"),
        max_documents=20,
    )


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server as client:
        yield client


@pytest.fixture
def page(window: Browser, server: Server, client: httpx.Client) -> Iterator[Page]:
    page = Page(window, server.url)
    yield page
    assert page.window.console() == [], "the console stays silent"
