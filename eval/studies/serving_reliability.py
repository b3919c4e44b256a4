"""Servers under nonsense, hostile texts, crashes and clients that leave; what `eval/serving_reliability.py` runs."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import json
import os
import random
import re
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import httpx
from rich.progress import track

from studies.hostile import Hostile, hostile_documents
from studies.server_process import Running, command_of, cpu_s, descendants, prism_serve, server

Section = Literal["openapi", "hostile", "crash", "leaving"]
SECTIONS: tuple[Section, ...] = ("openapi", "hostile", "crash", "leaving")
QUERY = "How do I rotate access keys?"
ORDINARY = (
    "To rotate an access key, create a second key, update every client, then delete the old key.",
    "A dashboard shows panels in rows. Each panel runs one or more queries.",
    "Access keys belong to a user. A user can have two of them at a time.",
    "The borrow checker compares scopes to determine whether all borrows of a value are valid.",
)
SAME = 1e-5
"""Scores in float32 move by less when a batch is padded otherwise."""
SAME_IN_VLLM = 1e-3
"""What engines must agree to; vLLM batches whatever is there."""


class Figure(NamedTuple):
    """One row; `must` says what it has to be, `met` whether it is (True where nothing has to be)."""

    name: str
    value: float | int | str
    must: str = ""
    met: bool = True


def zero(name: str, value: int) -> Figure:
    return Figure(name, value, "0", value == 0)


# --- nonsense: every request the schema allows, and what it does not --------------------------------------------------


def openapi(url: str, cases: int) -> list[Figure]:
    """Half the cases keep to the schema, half break it; answers must keep to it always, and none may be a 5xx."""
    import schemathesis

    described = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses: collections.Counter[int] = collections.Counter()
    broken: list[str] = []
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    for path, mode in itertools.product(("/v1/rerank", "/v1/systemone", "/v1/decisions"), modes):
        for status, failures in _made_up(described[path]["POST"], mode, max(1, cases // 6)):
            statuses[status] += 1
            broken += failures
    for path in ("/v1/models", "/health", "/ready", "/metrics"):
        response = described[path]["GET"].Case().call()
        statuses[response.status_code] += 1
    return [
        Figure("cases", sum(statuses.values())),
        *(Figure(f"answers {status}", count) for status, count in sorted(statuses.items())),
        zero("answers 5xx", sum(count for status, count in statuses.items() if status >= 500)),
        zero("answers unlike the published schema", len(broken)),
        *(Figure("such an answer", text[:300]) for text in broken[:3]),
    ]


def _made_up(operation: Any, mode: Any, cases: int) -> list[tuple[int, list[str]]]:
    """Per case the status of the answer, and what of it is unlike the published schema."""
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    must = [
        not_a_server_error,
        checks.response_schema_conformance,
        checks.content_type_conformance,
        checks.status_code_conformance,
    ]
    seen: list[tuple[int, list[str]]] = []
    progress = iter(track(itertools.repeat(None), f"requests made up, {mode.value}", total=cases))

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        next(progress)
        response = case.call(timeout=600)
        broken: list[str] = []
        try:
            case.validate_response(response, checks=must)
        except* Exception as failures:  # noqa: BLE001  # schemathesis raises a group of its own failures
            broken.extend(str(failure) for failure in failures.exceptions)
        seen.append((response.status_code, broken))

    ask()
    return seen


# --- hostile documents -----------------------------------------------------------------------------------------------


def hostile(url: str, documents: Sequence[Hostile]) -> list[Figure]:
    """Each goes beside four ordinary documents, whose scores must stay; then all of them in requests of twenty."""
    problems: list[str] = []
    largest = 0.0
    with httpx.Client(base_url=url, timeout=600) as http:
        expected = dict(_scores(http, ORDINARY)[1])
        for number, one in enumerate(track(documents, "hostile documents", transient=True)):
            status, found = _scores(http, [*ORDINARY, one.text])
            largest = max(largest, *(_moved(found, expected)))
            if status != 200 or len(found) != len(ORDINARY) + 1 or max(_moved(found, expected)) > SAME:
                problems.append(f"document {number} ({one.kind}): status {status}, {len(found)} results")
        for start in range(0, len(documents), 20):
            status, found = _scores(http, [*ORDINARY, *(one.text for one in documents[start : start + 20])])
            largest = max(largest, *(_moved(found, expected)))
            if status != 200 or max(_moved(found, expected)) > SAME:
                problems.append(f"documents {start} to {start + 19} together: status {status}")
        raw = [_raw(http, bytes_) for bytes_ in (b"\xff\xfe", b"\xc3\x28", b"\xf0\x9f", b"\xc0\xaf")]
    kinds = collections.Counter(one.kind for one in documents)
    return [
        Figure("documents", len(documents)),
        *(Figure(f"of them {kind}", count) for kind, count in kinds.items()),
        zero("requests with a wrong answer or a moved score", len(problems)),
        Figure("largest move of another document's score", largest, f"<= {SAME:.0e}", largest <= SAME),
        zero("bodies that are no UTF-8 and not answered 400", sum(status != 400 for status in raw)),
        *(Figure("problem", text) for text in problems[:5]),
    ]


def _scores(http: httpx.Client, documents: Sequence[str]) -> tuple[int, dict[int, float | None]]:
    body = json.dumps({"query": QUERY, "documents": documents, "evidence": {"top_n": 1, "max_tokens": 64}})
    response = http.post("/v1/rerank", content=body.encode(), headers={"Content-Type": "application/json"})
    results = response.json().get("results", []) if response.status_code == 200 else []
    return response.status_code, {result["index"]: result["relevance_score"] for result in results}


def _moved(found: dict[int, float | None], expected: dict[int, float | None]) -> list[float]:
    return [abs((found.get(at) or 0.0) - (expected.get(at) or 0.0)) for at in range(len(ORDINARY))]


def _raw(http: httpx.Client, bytes_: bytes) -> int:
    body = b'{"query": "q", "documents": ["' + bytes_ + b'"]}'
    return http.post("/v1/rerank", content=body, headers={"Content-Type": "application/json"}).status_code


# --- an engine that is killed ----------------------------------------------------------------------------------------


class Tally:
    """What the clients saw while engines died."""

    def __init__(self) -> None:
        self.sent = self.right = self.refused = 0
        self.wrong: list[str] = []
        self.others: collections.Counter[str] = collections.Counter()
        self.last_right_at = 0.0


def killed_processes(pid: int) -> set[int]:
    """SIGKILL to everything under a server but multiprocessing's own helper."""
    engine = {child for child in descendants(pid) if "resource_tracker" not in command_of(child)}
    for child in engine:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return engine


async def crash(url: str, kill: Callable[[], object], kills: int, clients: int = 4) -> list[Figure]:
    """`clients` ask without pause, each question until it is answered; `kill` strikes whenever all are being served.

    Every answer is compared with what an undisturbed server said about the same documents.
    """
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        pool = [f"{text} Note {number}." for number in range(25) for text in ORDINARY]
        calm = (await http.post("/v1/rerank", json={"query": QUERY, "documents": pool, "evidence": False})).json()
        expected = {result["index"]: result["relevance_score"] for result in calm["results"]}
        tally, stop, recoveries = Tally(), asyncio.Event(), []
        asking = [asyncio.create_task(_ask(http, pool, expected, seed, tally, stop)) for seed in range(clients)]
        for _ in range(kills):
            await _answered(tally, 2 * clients)
            kill()
            begin = time.monotonic()
            await _answered(tally, 1, after=begin)
            recoveries.append(tally.last_right_at - begin)
        await _answered(tally, 2 * clients)
        stop.set()
        await asyncio.gather(*asking)
        ready = (await http.get("/ready")).status_code
    return [
        Figure("kills", kills),
        Figure("requests sent", tally.sent),
        Figure("answered right", tally.right),
        zero("answered wrong", len(tally.wrong)),
        zero("never answered", tally.sent - tally.right - len(tally.wrong)),
        Figure("times a client was told 503 and asked again", tally.refused),
        zero("other answers", sum(tally.others.values())),
        Figure("median time from a kill to the next right answer, s", round(statistics.median(recoveries), 1)),
        Figure("/ready afterwards", ready, "200", ready == 200),
        *(Figure("problem", text) for text in [*tally.wrong[:3], *map(str, tally.others)]),
    ]


async def _answered(tally: Tally, more: int, after: float = 0.0) -> None:
    """Waits for so many more right answers, the last of them after a moment. Raises TimeoutError after ten minutes."""
    wanted = tally.right + more
    async with asyncio.timeout(600):
        while tally.right < wanted or tally.last_right_at <= after:
            await asyncio.sleep(0.02)


async def _ask(
    http: httpx.AsyncClient, pool: list[str], expected: dict[int, float], seed: int, tally: Tally, stop: asyncio.Event
) -> None:
    rng = random.Random(seed)
    while not stop.is_set():
        chosen = rng.sample(range(len(pool)), 20)
        body = {"query": QUERY, "documents": [pool[at] for at in chosen], "evidence": {"top_n": 1, "max_tokens": 40}}
        tally.sent += 1
        response = await _until_answered(http, body, tally)
        found = {chosen[result["index"]]: result["relevance_score"] for result in response.json()["results"]}
        if set(found) == set(chosen) and all(abs(found[at] - expected[at]) <= SAME_IN_VLLM for at in chosen):
            tally.right += 1
            tally.last_right_at = time.monotonic()
        else:
            tally.wrong.append(f"client {seed}: {found}")


async def _until_answered(http: httpx.AsyncClient, body: dict[str, Any], tally: Tally) -> httpx.Response:
    """The 200 to a request; 503 says when to come back, anything else is counted and tried again."""
    while True:
        try:
            response = await http.post("/v1/rerank", json=body)
        except httpx.HTTPError as error:
            tally.others[type(error).__name__] += 1
            await asyncio.sleep(0.5)
            continue
        if response.status_code == 200:
            return response
        if response.status_code == 503:
            tally.refused += 1
        else:
            tally.others[str(response.status_code)] += 1
        await asyncio.sleep(float(response.headers.get("Retry-After", 0.5)))


# --- clients that leave ----------------------------------------------------------------------------------------------


def leaving(url: str, pids: Callable[[], set[int]], times: int, documents: int = 1000) -> list[Figure]:
    """A large request is left at a random moment, every second time while it streams; then the server must be idle."""
    rng = random.Random(7)
    texts = [f"{text} {number}." for number in range(documents // len(ORDINARY)) for text in ORDINARY]
    body = {"query": QUERY, "documents": texts, "evidence": {"top_n": 10}}
    freed, small = [], []
    with httpx.Client(base_url=url, timeout=600) as http:
        begin = time.monotonic()
        http.post("/v1/rerank", json=body).raise_for_status()
        whole_s = time.monotonic() - begin
        for turn in track(range(times), "clients that leave", transient=True):
            _leave(url, {**body, "stream": turn % 2 == 1}, rng.uniform(0.2, 0.7) * whole_s)
            begin = time.monotonic()
            while _open_requests(http):
                time.sleep(0.01)
            freed.append(time.monotonic() - begin)
            http.post("/v1/rerank", json={"query": QUERY, "documents": list(ORDINARY), "evidence": False})
            small.append(time.monotonic() - begin)
        time.sleep(1)
        before = cpu_s(pids())
        time.sleep(2)
        busy = (cpu_s(pids()) - before) / 2
        left = _open_requests(http)
    most = whole_s / 2
    return [
        Figure("clients that left", times),
        Figure("time of the request when waited for, s", round(whole_s, 2)),
        Figure("place free after, median s", round(statistics.median(freed), 3)),
        Figure(
            "a small request answered after, longest s", round(max(small), 2), f"< {most:.2f} (half)", max(small) < most
        ),
        zero("places still held", left),
        Figure("processors busy when all have left", round(busy, 2), "< 0.2", busy < 0.2),
    ]


def _leave(url: str, body: dict[str, Any], after_s: float) -> None:
    with contextlib.suppress(httpx.TimeoutException), httpx.Client(base_url=url, timeout=after_s) as http:
        if not body["stream"]:
            http.post("/v1/rerank", json=body)
            return
        until = time.monotonic() + after_s
        with http.stream("POST", "/v1/rerank", json=body) as response:
            for _ in response.iter_lines():
                if time.monotonic() > until:
                    return


def _open_requests(http: httpx.Client) -> int:
    found = re.search(r"^prism_requests_open (\S+)$", http.get("/metrics").text, re.MULTILINE)
    return int(float(found[1])) if found else 0


# --- the report ------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    model: str
    cases: int
    documents: int
    kills: int
    leaves: int

    def command(self, *options: str) -> list[str]:
        return prism_serve("--model", self.model, "--dtype", "float32", *options)

    def figures(self, section: Section) -> list[Figure]:
        engine = ("--engine", "vllm", "--engine-option", "enforce_eager=true") if section == "crash" else ()
        with server(self.command(*engine)) as running:
            return self._measured(section, running)

    def _measured(self, section: Section, running: Running) -> list[Figure]:
        url, pid = running
        if section == "openapi":
            return openapi(url, self.cases)
        if section == "hostile":
            from prism.checkpoint import Checkpoint

            tokens = Checkpoint.load(self.model).tokenizer.all_special_tokens
            return hostile(url, hostile_documents(self.documents, ORDINARY, tokens))
        if section == "crash":
            return asyncio.run(crash(url, lambda: killed_processes(pid), self.kills))
        return leaving(url, lambda: {pid, *descendants(pid)}, self.leaves)


def markdown(record: dict[str, Any]) -> str:
    lines = ["# Serving reliability", "", f"`prism serve --model {record['model']} --dtype float32`", ""]
    for name, section in record["sections"].items():
        lines += [f"## {name}", "", section["setting"], "", "| what | seen | must be |", "|---|---:|---|"]
        for figure in section["figures"]:
            shown = str(figure["value"]).replace("|", "\\|").replace("\n", " ")
            must = figure["must"] + ("" if figure["met"] else " **not met**")
            lines.append(f"| {figure['name']} | {shown} | {must} |")
        lines.append("")
    return "\n".join(lines)
