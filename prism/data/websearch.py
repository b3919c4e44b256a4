"""Documents from the web for open queries: Exa, Tavily, Brave and SearXNG behind one interface.

Every hit keeps its address, the date the engine gives it, and when it was found: what the web said is only true with a
date. Answers are kept in a ledger, so the same query is not searched, or paid for, twice.
"""

from __future__ import annotations

import html
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prism.errors import InputError
from prism.files.jsonl import Drops, Line, Row
from prism.files.ledger import Ledger
from prism.llm.asking import Question, answer_key
from prism.llm.failures import Evidence, Stop, Undelivered
from prism.llm.http import Address, ask
from prism.text import clean, stable_id

if TYPE_CHECKING:
    import httpx
    from aiolimiter import AsyncLimiter

Engine = Literal["exa", "tavily", "brave", "searxng"]

_DEFAULTS: dict[Engine, tuple[str | None, str | None]] = {
    "exa": ("https://api.exa.ai/search", "EXA_API_KEY"),
    "tavily": ("https://api.tavily.com/search", "TAVILY_API_KEY"),
    "brave": ("https://api.search.brave.com/res/v1/web/search", "BRAVE_SEARCH_API_KEY"),
    "searxng": (None, None),
}
_TAG = re.compile(r"<[^>]{0,200}>")


class Hit(NamedTuple):
    """One page found."""

    url: str
    title: str
    text: str
    published: str | None
    """As the engine gives it; None where it does not."""


@dataclass(frozen=True, slots=True)
class WebSearch:
    """One search engine."""

    engine: Engine
    url: str
    key: str | None
    results: int = 10
    max_chars: int = 4_000
    """Of each page's text."""
    attempts: int = 6
    longest_wait_s: float = 60.0
    evidence: Evidence = field(default_factory=Evidence, compare=False)

    @classmethod
    def from_environment(
        cls,
        engine: Engine,
        url: str | None = None,
        key_env: str | None = None,
        *,
        results: int = 10,
        max_chars: int = 4_000,
    ) -> WebSearch:
        """The key is read from `key_env`, by default the engine's usual variable. SearXNG needs an address, no key."""
        default_url, default_env = _DEFAULTS[engine]
        if url is None and default_url is None:
            raise InputError(
                f"{engine} has no address of its own: pass --url with your instance, such as http://host:8080"
            )
        name = key_env or default_env
        key = os.environ.get(name) if name else None
        if key is None and (key_env or (url is None and name)):
            raise InputError(f"no key in the environment: set {name}, or name another variable with --key-env")
        address = url or default_url or ""
        if engine == "searxng" and not address.rstrip("/").endswith("/search"):
            address = address.rstrip("/") + "/search"
        return cls(engine, address, key, results, max_chars)

    def question(self, query: str) -> Question:
        """What the store files an answer under."""
        return Question(answer_key("search", self.engine, self.url, query, self.results, self.max_chars), query)

    async def search(
        self, client: httpx.AsyncClient, query: str, limiter: AsyncLimiter | None = None
    ) -> dict[str, Any]:
        """Hits for a query, best first, with the time, as JSON has them. Raises Rejected, Unavailable or Stop."""
        asked_at = time.monotonic()
        try:
            hits = await self._hits(client, query, limiter)
        except (Undelivered, Stop) as error:

            async def try_harmless() -> Exception | None:
                try:
                    await self._hits(client, "water", limiter)
                except (Undelivered, Stop) as refused:
                    return refused
                return None

            raise await self.evidence.believed(error, asked_at, try_harmless) from error
        self.evidence.answered()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return {"retrieved_at": now, "hits": [hit._asdict() for hit in hits]}

    async def _hits(self, client: httpx.AsyncClient, query: str, limiter: AsyncLimiter | None) -> list[Hit]:
        address = Address(self.url, self.key, attempts=self.attempts, longest_wait_s=self.longest_wait_s)
        return await ask(lambda: self._send(client, query), self._read, address, limiter)

    async def _send(self, client: httpx.AsyncClient, query: str) -> httpx.Response:
        if self.engine == "exa":
            contents = {"text": {"maxCharacters": self.max_chars}}
            body: dict[str, Any] = {"query": query, "numResults": self.results, "contents": contents}
            return await client.post(self.url, json=body, headers={"x-api-key": self.key or ""})
        if self.engine == "tavily":
            body = {"query": query, "max_results": self.results, "include_raw_content": "text"}
            return await client.post(self.url, json=body, headers={"Authorization": f"Bearer {self.key}"})
        if self.engine == "brave":
            asked: dict[str, str | int] = {"q": query[:400], "count": min(self.results, 20), "extra_snippets": "true"}
            headers = {"X-Subscription-Token": self.key or "", "Accept": "application/json"}
            return await client.get(self.url, params=asked, headers=headers)
        return await client.get(self.url, params={"q": query, "format": "json"})

    def _read(self, body: Any) -> list[Hit]:
        found = body["web"]["results"] if self.engine == "brave" and "web" in body else body.get("results", [])
        read = (_HITS[self.engine](result) for result in found[: self.results])
        return [hit._replace(text=hit.text[: self.max_chars]) for hit in read if hit.url and hit.text.strip()]


def _exa(result: Mapping[str, Any]) -> Hit:
    return Hit(result["url"], result.get("title") or "", result.get("text") or "", result.get("publishedDate"))


def _tavily(result: Mapping[str, Any]) -> Hit:
    text = result.get("raw_content") or result.get("content") or ""
    return Hit(result["url"], result.get("title") or "", text, result.get("published_date"))


def _brave(result: Mapping[str, Any]) -> Hit:
    texts = [result.get("description") or "", *(result.get("extra_snippets") or ())]
    title = _plain(result.get("title") or "")
    return Hit(result["url"], title, "\n".join(_plain(text) for text in texts if text), result.get("page_age"))


def _searxng(result: Mapping[str, Any]) -> Hit:
    return Hit(result["url"], result.get("title") or "", result.get("content") or "", result.get("publishedDate"))


_HITS = {"exa": _exa, "tavily": _tavily, "brave": _brave, "searxng": _searxng}


def _plain(text: str) -> str:
    """Snippets come as HTML: tags off, entities read."""
    return html.unescape(_TAG.sub("", text))


def found_rows(
    lines: Iterable[Line], search: WebSearch, store: Ledger, failures: Mapping[str, str], drops: Drops
) -> Iterator[Row]:
    """One row per query and page, with `url`, `published` and `retrieved_at`; the same text counts once per query."""
    for place, row in lines:
        query = row["query"]
        key = search.question(query).key
        answer = store.get(key)
        if answer is None:
            drops.add(failures.get(key, "not searched"), place)
            continue
        rows = [_row(row, hit, rank, search, answer) for rank, hit in enumerate(answer["hits"], 1)]
        if not rows:
            drops.add("nothing found", place)
        seen: set[str] = set()
        for found in rows:
            if found["id"] not in seen:
                seen.add(found["id"])
                yield found


def _row(row: Row, hit: Mapping[str, Any], rank: int, search: WebSearch, answer: Mapping[str, Any]) -> Row:
    text, title = clean(str(hit["text"])).strip(), clean(str(hit["title"])).strip()
    found = {
        "id": stable_id(row["query"], text),
        "query": row["query"],
        "query_id": row.get("query_id") or stable_id(row["query"]),
        "document": text,
        "title": title or None,
        "doc_id": hit["url"],
        "url": hit["url"],
        "published": hit["published"],
        "retrieved_at": answer["retrieved_at"],
        "rank": rank,
        "source": f"web/{search.engine}",
        "language": row.get("language"),
    }
    return {name: value for name, value in found.items() if value is not None}


def questions(lines: Iterable[Line], search: WebSearch) -> Iterator[Question]:
    """The distinct queries of a file."""
    return (search.question(row["query"]) for _, row in lines)
