"""The playground as a person meets it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from browser import Browser


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
