"""Examines a built site: `python docs/tools/check_site.py site` prints what is wrong, one line each, with exit code 1.

Every link inside the site leads to a file and, with a fragment, to an element of it; nothing is loaded from elsewhere;
no list was left as text (Markdown on GitHub needs no blank line before a list, the site's does).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

_LOADS = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src")}
_LOST_LIST = re.compile(r"<p>[^<]*(?:<(?!/?p>)[^<]*)*\n(?:[-*]|\d+\.) ")


class Link(NamedTuple):
    """One address in a page."""

    line: int
    url: str
    loaded: bool
    """Whether a browser fetches it to show the page."""


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[Link] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif name in ("href", "src"):
                canonical = tag == "link" and dict(attrs).get("rel") == "canonical"
                loaded = (tag, name) in _LOADS and not canonical
                self.links.append(Link(self.getpos()[0], value, loaded))


@cache
def _read(page: Path) -> _Reader:
    reader = _Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader


def problems(site: Path) -> Iterator[str]:
    """What is wrong, one line each, page by page."""
    pages = sorted(page for page in site.rglob("*.html") if page != site / "404.html")  # servers show that one
    if not pages:
        yield f"{site}: no pages: build the site first (make docs)"
    for page in pages:
        name = page.relative_to(site)
        for link in _read(page).links:
            wrong = _wrong(link, page, site)
            if wrong:
                yield f"{name}:{link.line}: {link.url}: {wrong}"
        if _LOST_LIST.search(page.read_text(encoding="utf-8")):
            yield f"{name}: a list without a blank line before it"


def _wrong(link: Link, page: Path, site: Path) -> str | None:
    url = urlsplit(link.url)
    if url.scheme in ("http", "https") or url.netloc:
        return "loaded from elsewhere: keep a copy in docs/assets" if link.loaded else None
    if url.scheme or not (url.path or url.fragment):
        return None
    if url.path.startswith("/"):
        return "begins with /, which leads nowhere from file://"
    target = (page.parent / unquote(url.path)).resolve() if url.path else page
    if not target.is_file():
        return "leads to no file"
    if site.resolve() not in target.resolve().parents:
        return "leads out of the site"
    if url.fragment and target.suffix == ".html" and not _anchored(unquote(url.fragment), target):
        return "no element has this id"
    return None


def _anchored(fragment: str, page: Path) -> bool:
    return fragment in _read(page).anchors or fragment.startswith(":~:")


if __name__ == "__main__":
    found = list(problems(Path(sys.argv[1])))
    print("\n".join(found) or f"{sys.argv[1]}: every link leads somewhere, and nothing is loaded from elsewhere")
    sys.exit(bool(found))
