"""Engines and the endpoint timed beside others; what `eval/serving_speed.py` runs."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import httpx

from prism.backends import open_engine
from prism.checkpoint import Checkpoint
from prism.engines.base import Engine, WriteRequest
from prism.engines.vllm_cpu import cpu_threading
from prism.export import export
from prism.reranker import Reranker
from prism.types import Document
from studies.server_process import Running, prism_serve, server
from studies.serving_sections import Line

T = TypeVar("T")
_PLAIN_VLLM, _INFINITY = "plain vLLM, classifier, /rerank", "infinity-emb"
_SETTLE_S = 1.5
"""Before every measurement: idle workers of vLLM keep a core busy for a second after the one before."""
QUERY = "Why did the bridge over the river have to be closed, and when was it opened to traffic again?"
SENTENCES = (
    "The bridge over the river was closed in March after inspectors found cracks in two of its main girders.",
    "Traffic was led over the northern bypass, which added about eleven minutes to the way into town.",
    "On 9 November the bridge was opened again, at first for cars and bicycles only.",
    "Potatoes are planted when the soil has reached eight degrees and the nights are free of frost.",
    "The museum shows tools of the rope makers, among them a wheel with four hundred hooks.",
    "The new timetable brings a train every half hour, with the last one leaving at ten past midnight.",
)


class Profile(NamedTuple):
    """How much is asked of a kind of machine."""

    documents: int
    clients: int
    encoder_device: str
    encoder_batch: int


PROFILES = {"cpu": Profile(100, 8, "cpu", 32), "gpu": Profile(200, 32, "cuda", 128)}


class Bench:
    """What every section needs: the checkpoint, made-up documents, and how often to measure."""

    def __init__(self, model: str, profile: Profile, repeats: int, eager: bool) -> None:
        self.model, self.profile, self.repeats = model, profile, repeats
        self.count, self.clients = profile.documents, profile.clients
        self.checkpoint = Checkpoint.load(model)
        self.has_vllm = importlib.util.find_spec("vllm") is not None
        self.engine_names: tuple[Literal["hf", "vllm"], ...] = ("hf", "vllm") if self.has_vllm else ("hf",)
        self.vllm_options = {"options": {"enforce_eager": True}} if eager else {}
        self.eager = eager
        self._rng = random.Random(11)

    def documents(self, count: int | None = None) -> list[str]:
        """Documents never asked about before, about as long as a passage."""
        numbers = (self._rng.randrange(10**6) for _ in range(count or self.count))
        return [
            f"Note {number}. {' '.join(self._rng.sample(SENTENCES, self._rng.randint(3, 6)))}" for number in numbers
        ]

    def prompts(self, count: int | None = None) -> list[list[int]]:
        return self.rendered(self.documents(count))

    def rendered(self, documents: Sequence[str]) -> list[list[int]]:
        return [self.checkpoint.template.render(QUERY, Document(text=text)).ids for text in documents]

    def engine(self, name: Literal["hf", "vllm"], **options: Any) -> Engine:
        return open_engine(name, self.checkpoint, options={**(self.vllm_options if name == "vllm" else {}), **options})

    async def in_turn(
        self, works: Mapping[str, Callable[[T], Awaitable[object]]], fresh: Callable[[], T], times: int = 1
    ) -> dict[str, list[float]]:
        """Wall times of each, after one round to warm up. They take turns: a machine's speed wanders.

        `fresh` makes what a round asks about, outside the time; `times`: so many times `repeats` rounds.
        """
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(times * self.repeats + 1):
            asked = fresh()
            for name, work in works.items():
                await asyncio.sleep(_SETTLE_S)
                begin = time.perf_counter()
                await work(asked)
                seconds[name].append(time.perf_counter() - begin)
        return {name: found[1:] for name, found in seconds.items()}


@contextlib.asynccontextmanager
async def opened(engine: Engine) -> AsyncIterator[Engine]:
    try:
        yield engine
    finally:
        await engine.aclose()


async def scoring(bench: Bench) -> list[Line]:
    hits: dict[str, float] = {}
    async with contextlib.AsyncExitStack() as stack:
        engines = {name: await stack.enter_async_context(opened(bench.engine(name))) for name in bench.engine_names}
        seconds = await bench.in_turn({name: engine.score for name, engine in engines.items()}, bench.prompts, 3)
        for name, engine in engines.items():
            prompts = bench.prompts()
            hits[name] = 100 * (await engine.score(prompts)).cached_tokens / sum(map(len, prompts))
    lines = [rate("scoring", f"{name} engine", bench.count, taken) for name, taken in seconds.items()]
    lines = [lines[0], *(beside(line, lines[0], "to hf") for line in lines[1:])]
    return lines + [
        Line("scoring", f"{name} engine, prompt tokens not computed again", hit, "%") for name, hit in hits.items()
    ]


async def writing(bench: Bench) -> list[Line]:
    """Tokens a second of sixteen texts at once, plain and with n-gram drafts, of the same prompts."""
    yes_id = bench.checkpoint.template.yes_id
    lines = []
    for name in bench.engine_names:
        async with (
            opened(bench.engine(name, speculate=False)) as plain,
            opened(bench.engine(name, speculate=None)) as drafting,
        ):
            rates: dict[str, list[float]] = {"plain": [], "n-gram": []}
            for _ in range(bench.repeats + 1):
                prompts = bench.prompts(16)
                for way, engine in (("plain", plain), ("n-gram", drafting)):
                    await asyncio.sleep(_SETTLE_S)
                    rates[way].append(await _tokens_per_s(engine, prompts, yes_id))
        slow, fast = (
            Line("writing", f"{name} engine, {way}", statistics.median(found[1:]), "tokens/s").over(found[1:])
            for way, found in rates.items()
        )
        lines += [slow, beside(fast, slow, ">= 1.5 x plain")]
    return lines


async def _tokens_per_s(engine: Engine, prompts: Sequence[list[int]], yes_id: int) -> float:
    begin = time.perf_counter()
    tokens = 0
    async for piece in engine.write([WriteRequest([*ids, yes_id], 128) for ids in prompts]):
        tokens += piece.tokens
    return tokens / (time.perf_counter() - begin)


async def two_phase(bench: Bench) -> list[Line]:
    """Ranking with evidence for five, against score only (in turn), and against scoring and writing one by one."""
    firsts: list[float] = []
    async with opened(bench.engine("hf")) as engine:
        reranker = Reranker(bench.checkpoint.template, engine, name=bench.checkpoint.name, threshold=0.0)

        async def streamed(documents: list[str]) -> None:
            begin = time.perf_counter()
            stream = reranker.astream(QUERY, documents, evidence_top_n=5)
            async with contextlib.aclosing(stream) as events:
                await anext(events)
                firsts.append(time.perf_counter() - begin)
                async for _ in events:
                    pass

        ways = {
            "score only": lambda documents: reranker.arerank(QUERY, documents, evidence=False),
            "whole": streamed,
        }
        seconds = await bench.in_turn(ways, bench.documents, 3)
    reference = Line("two-phase", "document by document", await _document_by_document(bench), "s")
    score_only, first, whole = (
        Line("two-phase", name, statistics.median(found), "s").over(found)
        for name, found in (
            ("score only", seconds["score only"]),
            ("first event, evidence for 5", firsts[1:]),
            ("whole answer", seconds["whole"]),
        )
    )
    return [
        score_only,
        beside(first, score_only, "<= 1.1 x score only"),
        reference,
        whole._replace(ratio=reference.value / whole.value, target=">= 5 x faster than that"),
    ]


async def _document_by_document(bench: Bench) -> float:
    """The published reference way: one document after the other; a yes goes on to its texts on the same cache."""
    import torch

    model = bench.checkpoint.load_model()
    template = bench.checkpoint.template
    prompts = bench.prompts()
    begin = time.perf_counter()
    with torch.inference_mode():
        for ids in prompts:
            read = model(torch.tensor([ids], device=model.device), use_cache=True, logits_to_keep=1)
            yes, no = read.logits[0, -1, [template.yes_id, template.no_id]].tolist()
            if yes > no:  # the label is not left to `generate`: of all tokens, a model may like a third one best
                ids_1T = torch.tensor([[*ids, template.yes_id]], device=model.device)
                model.generate(
                    ids_1T,
                    attention_mask=torch.ones_like(ids_1T),
                    past_key_values=read.past_key_values,
                    do_sample=False,
                    max_new_tokens=template.spec.max_written_tokens,
                    eos_token_id=sorted(template.stop_ids),
                    pad_token_id=min(template.stop_ids),
                    stop_strings=list(template.stop_strings),
                    tokenizer=bench.checkpoint.tokenizer,
                )
    return time.perf_counter() - begin


def rate(section: str, name: str, documents: int, seconds: Sequence[float]) -> Line:
    """Documents a second."""
    rates = [documents / taken for taken in seconds]
    return Line(section, name, statistics.median(rates), "documents/s").over(rates)


def beside(line: Line, other: Line, target: str) -> Line:
    return line._replace(ratio=line.value / other.value, target=target)


# --- over HTTP -------------------------------------------------------------------------------------------------------


def serve_command(bench: Bench, engine: str, *options: str) -> list[str]:
    eager = ("--engine-option", "enforce_eager=true") if engine == "vllm" and bench.eager else ()
    return prism_serve("--engine", engine, "--model", bench.model, *eager, *options)


async def endpoint(bench: Bench) -> list[Line]:
    """The endpoint against its own engine, with the same number of callers at once."""
    lines = []
    for name in bench.engine_names:
        with server(serve_command(bench, name)) as running:
            async with (
                opened(bench.engine(name)) as engine,
                httpx.AsyncClient(base_url=running.url, timeout=600) as http,
            ):
                seconds = await bench.in_turn(_callers(engine, http), lambda: _asked_by_clients(bench))
        count = bench.clients * bench.count
        alone = rate("endpoint", f"{name} engine, {bench.clients} callers", count, seconds["engine"])
        served = rate("endpoint", f"HTTP over {name}", count, seconds["http"])
        lines += [alone, beside(served, alone, ">= 0.9 x its engine")]
    return lines


class Asked(NamedTuple):
    """One request: what HTTP is sent, and the same rendered for the engine, which is another process's."""

    documents: list[str]
    prompts: list[list[int]]


def _asked_by_clients(bench: Bench) -> list[Asked]:
    texts = [bench.documents() for _ in range(bench.clients)]
    return [Asked(documents, bench.rendered(documents)) for documents in texts]


def _callers(engine: Engine, http: httpx.AsyncClient) -> dict[str, Callable[[list[Asked]], Awaitable[object]]]:
    post = _poster(http, "/v1/rerank", {"evidence": False})
    return {
        "engine": lambda clients: asyncio.gather(*(engine.score(asked.prompts) for asked in clients)),
        "http": lambda clients: asyncio.gather(*(post(asked.documents) for asked in clients)),
    }


async def others(bench: Bench, infinity_url: str | None) -> list[Line]:
    """What users would pick on the same weights, score only, one client."""
    own = {name: f"Prism's endpoint over {name}" for name in bench.engine_names}
    encoder_name = f"CrossEncoder, batches of {bench.profile.encoder_batch}"
    targets = {
        encoder_name: ">= 2 x it",
        _PLAIN_VLLM: ">= 1 x it",
        _INFINITY: "faster than it",
    }
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=600))
        served = {name: stack.enter_context(server(serve_command(bench, name))) for name in bench.engine_names}
        ways = {
            own[name]: _poster(http, f"{running.url}/v1/rerank", {"evidence": False})
            for name, running in served.items()
        }
        path = export(bench.model, Path(folder, "st"), "sentence-transformers")
        ways[encoder_name] = _cross_encoder(bench, path)
        if bench.has_vllm:
            path = export(bench.model, Path(folder, "classifier"), "sequence-classification")
            plain = stack.enter_context(_plain_vllm(bench, path))
            ways[_PLAIN_VLLM] = _poster(http, f"{plain.url}/rerank", {})
        if infinity_url:
            ways[_INFINITY] = _poster(http, f"{infinity_url}/rerank", {"model": "infinity"})
        seconds = await bench.in_turn(ways, bench.documents)
    lines = {name: rate("others", name, bench.count, taken) for name, taken in seconds.items()}
    best = max(lines[name].value for name in own.values())
    return [
        line if name in own.values() else line._replace(ratio=best / line.value, target=targets[name])
        for name, line in lines.items()
    ]


def _poster(http: httpx.AsyncClient, url: str, extra: dict[str, Any]) -> Callable[[list[str]], Awaitable[object]]:
    async def ask(documents: list[str]) -> None:
        (await http.post(url, json={"query": QUERY, "documents": documents, **extra})).raise_for_status()

    return ask


def _plain_vllm(bench: Bench, path: Path) -> contextlib.AbstractContextManager[Running]:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(path)]
    command += ["--runner", "pooling", "--chat-template", str(path / "score_template.jinja")]
    command += ["--enforce-eager"] if bench.eager else []
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        **cpu_threading(os.environ),
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; left open, it takes what is free at that moment
    }
    return server(command, ready="/health", environment=environment)


def _cross_encoder(bench: Bench, path: Path) -> Callable[[list[str]], Awaitable[object]]:
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(str(path), device=bench.profile.encoder_device)

    async def predict(documents: list[str]) -> None:
        pairs = [(QUERY, text) for text in documents]
        encoder.predict(pairs, batch_size=bench.profile.encoder_batch, show_progress_bar=False)

    return predict
