"""Load on a running endpoint: so many clients at once, each sending one request after the other.

    prism serve --port 8000 &
    python serve/load.py --url http://127.0.0.1:8000 --clients 8 --documents 100 --seconds 30

Prints documents a second, the latency of requests, and what came back other than 200. Texts are made up by the script.
"""

from __future__ import annotations

import asyncio
import collections
import os
import random
import statistics
import time
from typing import Annotated

import httpx
import typer

WORDS = ("harbour", "winter", "key", "rotate", "server", "copper", "index", "panel", "the", "of", "to", "and", "after")


class Tally:
    """What the clients saw."""

    def __init__(self) -> None:
        self.latencies_s: list[float] = []
        self.other: collections.Counter[str] = collections.Counter()
        self.documents = 0


def made_up(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)) + "."


async def client(
    http: httpx.AsyncClient, tally: Tally, rng: random.Random, body_of: dict[str, object], until: float
) -> None:
    """One client, with at least one request: when it is told to come later, it does."""
    documents, words = int(str(body_of["documents"])), int(str(body_of["words"]))
    again = True
    while again:
        body = {
            "query": made_up(rng, 8),
            "documents": [made_up(rng, words) for _ in range(documents)],
            "evidence": body_of["evidence"],
        }
        begin = time.perf_counter()
        try:
            answer = await http.post("/v1/rerank", json=body)
        except httpx.HTTPError as error:
            tally.other[type(error).__name__] += 1
            again = time.perf_counter() < until
            continue
        again = time.perf_counter() < until
        if answer.status_code == 200:
            tally.latencies_s.append(time.perf_counter() - begin)
            tally.documents += documents
            continue
        tally.other[str(answer.status_code)] += 1
        if answer.status_code in (429, 503):
            await asyncio.sleep(float(answer.headers.get("retry-after", 1)))


async def run(
    url: str, key: str | None, clients: int, seconds: float, body_of: dict[str, object]
) -> tuple[Tally, float]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    tally = Tally()
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=300) as http:
        begin = time.perf_counter()
        await asyncio.gather(
            *(client(http, tally, random.Random(seed), body_of, begin + seconds) for seed in range(clients))
        )
    return tally, time.perf_counter() - begin


def main(
    url: Annotated[str, typer.Option(help="The endpoint, without /v1.")] = "http://127.0.0.1:8000",
    clients: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 8,
    documents: Annotated[int, typer.Option(min=1, help="Documents a request.")] = 100,
    words: Annotated[int, typer.Option(min=1, help="Words a document.")] = 80,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long new requests are sent.")] = 30,
    evidence: Annotated[bool, typer.Option(help="Ask for evidence too.")] = False,
) -> None:
    """Send load and print what came back. The key is read from PRISM_API_KEY."""
    body_of: dict[str, object] = {"documents": documents, "words": words, "evidence": evidence}
    tally, took_s = asyncio.run(run(url, os.environ.get("PRISM_API_KEY"), clients, seconds, body_of))
    typer.echo(f"{len(tally.latencies_s)} requests, {tally.documents / took_s:.1f} documents/s in {took_s:.1f} s")
    if len(tally.latencies_s) >= 2:
        cuts = statistics.quantiles(tally.latencies_s, n=100)
        typer.echo("latency: " + ", ".join(f"p{at} {cuts[at - 1]:.2f} s" for at in (50, 90, 99)))
    typer.echo("other answers: " + (", ".join(f"{kind} x {n}" for kind, n in tally.other.items()) or "none"))


if __name__ == "__main__":
    typer.run(main)
