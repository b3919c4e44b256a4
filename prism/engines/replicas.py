"""Several servers of one model: the least loaded is asked, a dead one is left alone until it answers again."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from prism.errors import EngineError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBE_S = 2.0
"""How long a dead server is left alone before it is asked again whether it lives."""
_BUSY = {429, 503}
_BROKEN = {500, 502, 504}
_BUSY_WAITS_S = (0.2, 0.5, 1.0, 2.0, 4.0)

_logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Replica:
    """One server."""

    url: str
    model: str = ""
    owner: str = ""
    """Who made the server, as it says itself: vllm, sglang, llamacpp."""
    context: float = math.inf
    """Tokens it reads, as it says itself."""
    load: int = 0
    """Prompts it is working on for us."""
    asked: int = 0
    """When it was last asked, in requests; servers with equal load take turns."""
    alive: bool = True


class Replicas:
    """The servers behind the remote engine. Lives on one event loop."""

    def __init__(
        self,
        base_urls: Sequence[str],
        *,
        model: str | None,
        api_key: str | None,
        timeout_s: float,
        transport: httpx.AsyncBaseTransport | None = None,
        probe_s: float = PROBE_S,
    ) -> None:
        self._replicas = [Replica(_checked(url)) for url in dict.fromkeys(base_urls)]
        if not self._replicas:
            raise InputError("no base URL: say where the servers are, such as http://127.0.0.1:8001/v1")
        self._model = model
        self._probe_s = probe_s
        self._turns = itertools.count(1)
        self._probes: dict[Replica, asyncio.Task[None]] = {}
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=min(5.0, timeout_s)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            transport=transport,
        )

    def __len__(self) -> int:
        return len(self._replicas)

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas)

    @property
    def context(self) -> float:
        """Tokens that every server reads."""
        return min(replica.context for replica in self._replicas)

    async def start(self) -> None:
        """Ask every server for its model. Raises EngineError when none answers, or one serves something else."""
        problems = await asyncio.gather(*(self._greet(replica) for replica in self._replicas))
        for replica, problem in zip(self._replicas, problems, strict=True):
            if problem:
                self._bury(replica, problem)
        if all(problems):
            raise EngineError(f"no server answers: {problems[0]}; start one, or correct the base URL")

    async def _greet(self, replica: Replica) -> str | None:
        """Learn what a server serves; what is wrong with it, if anything."""
        try:
            response = await self._client.get(f"{replica.url}/models")
            if response.status_code != 200:
                return f"{replica.url}/models answered {response.status_code}"
            listed = [entry for entry in response.json()["data"] if isinstance(entry, Mapping)]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            return f"{replica.url}: {_reason(error)}"
        names = [str(entry.get("id")) for entry in listed]
        if not names or (self._model and self._model not in names):
            raise EngineError(f"{replica.url} serves {', '.join(names) or 'nothing'}, expected {self._model}")
        chosen = listed[names.index(self._model) if self._model else 0]
        replica.model, replica.owner = str(chosen["id"]), str(chosen.get("owned_by", "")).lower()
        meta = chosen.get("meta")
        context = chosen.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, Mapping) else None)
        replica.context = context if isinstance(context, int) else math.inf
        return None

    def choose(self, but: Collection[Replica] = ()) -> Replica:
        """The living server with the least to do. Raises EngineError when there is none."""
        able = [replica for replica in self._replicas if replica.alive and replica not in but]
        if not able:
            raise EngineError(f"none of {len(self._replicas)} servers answers: see that they run; then try again")
        chosen = min(able, key=lambda replica: (replica.load, replica.asked))
        chosen.asked = next(self._turns)
        return chosen

    async def post(self, body: Mapping[str, Any], *, weight: int) -> Mapping[str, Any]:
        """The answer of whichever server gives one; busy ones are asked again after a pause."""
        failed: set[Replica] = set()
        busy = 0
        while True:
            replica = self.choose(failed)
            try:
                with _loaded(replica, weight):
                    response = await self._client.post(
                        f"{replica.url}/completions", json={"model": replica.model, **body}
                    )
            except httpx.HTTPError as error:
                self._bury(replica, _reason(error))
                failed.add(replica)
                continue
            if response.status_code in _BUSY and busy < len(_BUSY_WAITS_S):
                await asyncio.sleep(_BUSY_WAITS_S[busy])
                busy += 1
            elif response.status_code in _BROKEN:
                self._bury(replica, f"it answered {response.status_code}")
                failed.add(replica)
            else:
                return _read(replica, response)

    async def stream(self, replica: Replica, body: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any]]:
        """The events of one streamed completion. Raises ConnectionError when the server breaks off."""
        whole = {"model": replica.model, "stream": True, **body}
        try:
            with _loaded(replica, 1):
                for pause_s in (*_BUSY_WAITS_S, None):
                    async with self._client.stream("POST", f"{replica.url}/completions", json=whole) as response:
                        if response.status_code not in _BUSY or pause_s is None:
                            async for event in _events(replica, response):
                                yield event
                            return
                    await asyncio.sleep(pause_s)
        except httpx.HTTPError as error:
            self._bury(replica, _reason(error))
            raise ConnectionError(f"{replica.url}: {_reason(error)}") from error

    def _bury(self, replica: Replica, reason: str) -> None:
        if replica not in self._probes:
            _logger.warning("%s is not used until it answers again: %s", replica.url, reason)
            replica.alive = False
            self._probes[replica] = asyncio.create_task(self._probe(replica))

    async def _probe(self, replica: Replica) -> None:
        while not replica.alive:
            await asyncio.sleep(self._probe_s)
            try:
                problem = await self._greet(replica)
            except EngineError as error:
                problem = str(error)
            replica.alive = problem is None
        _logger.warning("%s answers again", replica.url)
        del self._probes[replica]

    async def aclose(self) -> None:
        for probe in self._probes.values():
            probe.cancel()
        await self._client.aclose()


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InputError(f"{url!r} is not an address: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(f"{url!r} is not an address: expected something like http://127.0.0.1:8001/v1")
    return url.rstrip("/")


@contextmanager
def _loaded(replica: Replica, weight: int) -> Iterator[None]:
    replica.load += weight
    try:
        yield
    finally:
        replica.load -= weight


def _read(replica: Replica, response: httpx.Response) -> Mapping[str, Any]:
    if response.status_code != 200:
        said = " ".join(response.text.split())[:300]
        raise EngineError(f"{replica.url} answered {response.status_code}: {said}")
    try:
        answer = response.json()
    except ValueError as error:
        raise EngineError(f"{replica.url} did not answer JSON: is this an OpenAI-compatible server?") from error
    if not isinstance(answer, Mapping):
        raise EngineError(f"{replica.url} answered a {type(answer).__name__}, expected an object")
    return answer


async def _events(replica: Replica, response: httpx.Response) -> AsyncIterator[Mapping[str, Any]]:
    """Server-sent events, each a JSON object; `[DONE]` is none."""
    if response.status_code in _BROKEN:
        raise httpx.RemoteProtocolError(f"it answered {response.status_code}")
    if response.status_code != 200:
        await response.aread()
        _read(replica, response)
    async for line in response.aiter_lines():
        event = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if event and event != "[DONE]":
            yield _event(replica, event)


def _event(replica: Replica, event: str) -> Mapping[str, Any]:
    try:
        answer = json.loads(event)
    except ValueError as error:
        raise EngineError(f"{replica.url} streamed something other than JSON") from error
    if not isinstance(answer, Mapping) or "error" in answer:
        raise EngineError(f"{replica.url} broke off a text: {event[:300]}")
    return answer


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
