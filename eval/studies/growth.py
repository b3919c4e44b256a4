"""How cost and memory grow with what is asked; what `eval/growth.py` runs.

Every point is measured in a process of its own, after a small request that warms it up. The model is a random Llama of
two layers with mini's tokenizer: what grows is the code around it, and a large model would only hide that.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from prism import Reranker
from prism.checkpoint import Checkpoint
from prism.evidence import check
from prism.files.beir import load_beir
from prism.parallel import end_with_parent
from studies.engine_ways import QUERY, SENTENCES
from studies.server_process import prism_serve, server
from studies.turns import one_line

CONTEXT_TOKENS = 32_768
_TOKENS_A_SENTENCE = 21
_DOCUMENTS_A_QUERY = 10
LINEAR = 1.15
"""A time that grows with a larger power of the size than this is more than linear."""

Work = Callable[[], object]


class Ready(NamedTuple):
    """Loaded: makes the work of a size; what is asked is made up before the clock runs."""

    work: Callable[[int], Work]
    process: int | str = "self"
    """Whose memory counts."""


class Point(NamedTuple):
    """One size: wall time of the work, and the peak of resident memory above what stood before it."""

    size: int
    seconds: float = 0.0
    peak_mib: float = 0.0
    error: str | None = None
    """Why this size was not measured."""


class Curve(NamedTuple):
    """What grows, in which sizes, and how the work is made."""

    name: str
    unit: str
    """Of a size."""
    sizes: tuple[int, ...]
    ready: Callable[[Path], AbstractContextManager[Ready]]
    """Given the folder with the model."""
    expected: str = ""
    """What may take more than linear time in it."""


def growth(points: Sequence[Point]) -> float | None:
    """The power of the size by which the time grows at the end: 1 is linear, 2 quadratic.

    Between the last two of three sizes and more, each less the smallest: what every call costs anyway is no growth.
    """
    known = [point for point in points if point.error is None]
    if len(known) < 3:
        return None
    first, before, last = known[0], *known[-2:]
    more = last.seconds - first.seconds, before.seconds - first.seconds
    if min(more) <= 0:
        return None  # what grew is less than what the clock wavers
    return math.log(more[0] / more[1]) / math.log((last.size - first.size) / (before.size - first.size))


def measure(curve: Curve, model: Path, most: int) -> Iterator[Point]:
    """Points of sizes up to `most`, smallest first."""
    for size in curve.sizes:
        if size <= most:
            with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as process:
                found = process.submit(_point, curve, model, size)
                error = one_line(found.exception())
                yield found.result() if error is None else Point(size, error=error)
                if error:
                    return  # larger sizes fail likewise


def _point(curve: Curve, model: Path, size: int) -> Point:
    with curve.ready(model) as ready:
        ready.work(curve.sizes[0])()
        work = ready.work(size)
        before = _memory_mib(ready.process, "VmRSS")
        Path(f"/proc/{ready.process}/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        return Point(size, seconds, max(0.0, _memory_mib(ready.process, "VmHWM") - before))


def _memory_mib(process: int | str, field: str) -> float:
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def random_checkpoint(folder: Path) -> Path:
    """Two random layers behind mini's tokenizer; reads 32,768 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = Checkpoint.load("mini").tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
    )
    torch.manual_seed(7)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _text(sentences: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(SENTENCES) for _ in range(sentences))


def _texts(count: int, first: int = 0) -> list[str]:
    return [_text(4, first + seed) for seed in range(count)]


@contextmanager
def _reranker(model: Path) -> Iterator[Reranker]:
    with Reranker.load(str(model), template="prism", self_test=False, dtype="float32") as reranker:
        yield reranker


@contextmanager
def documents(model: Path, **asked: Any) -> Iterator[Ready]:
    """So many documents of some 80 tokens in one request."""
    with _reranker(model) as reranker:
        yield Ready(lambda size: partial(reranker.rerank, QUERY, _texts(size), **asked))


@contextmanager
def tokens(model: Path, **asked: Any) -> Iterator[Ready]:
    """One document of so many tokens."""
    with _reranker(model) as reranker:
        yield Ready(
            lambda size: partial(
                reranker.rerank, QUERY, [_text(max(1, size // _TOKENS_A_SENTENCE))], evidence=False, **asked
            )
        )


@contextmanager
def held(model: Path) -> Iterator[Ready]:
    """Ten documents with quoted evidence, compared with so many texts that are held already."""
    with _reranker(model) as reranker:
        yield Ready(lambda size: partial(reranker.rerank, QUERY, _texts(10), **QUOTED, against=_texts(size, first=10)))


@contextmanager
def checked(_: Path) -> Iterator[Ready]:
    """A written text of two sentences, checked against a document of so many characters."""
    yield Ready(lambda size: partial(check, _text(2, 1), _text(size // 60)[:size], query=QUERY))


@contextmanager
def queries(model: Path) -> Iterator[Ready]:
    """So many clients at once ask `prism serve`, each about ten documents."""

    def ask(url: str, together: threading.Barrier, client: int) -> None:
        body = {"query": QUERY, "documents": _texts(_DOCUMENTS_A_QUERY, client * 10), "evidence": False}
        with httpx.Client(timeout=600) as http:
            together.wait()
            http.post(f"{url}/v1/rerank", json=body).raise_for_status()

    def all_ask(url: str, size: int) -> None:
        with ThreadPoolExecutor(size) as clients:
            list(clients.map(partial(ask, url, threading.Barrier(size)), range(size)))

    with server(prism_serve("--model", str(model), "--template", "prism", "--no-self-test")) as running:
        yield Ready(lambda size: partial(all_ask, running.url, size), running.pid)


@contextmanager
def corpus(folder: Path) -> Iterator[Ready]:
    """A BEIR set of so many corpus lines: opened, and a thousand documents read."""

    def opened(root: Path, lines: int) -> int:
        data = load_beir(root.name, root)
        return sum(len(data.document(f"d{number}").text) for number in range(0, lines, max(1, lines // 1000)))

    def work(size: int) -> Work:
        return partial(opened, _beir_set(Path(tempfile.mkdtemp(dir=folder)), size), size)

    yield Ready(work)


def _beir_set(root: Path, lines: int) -> Path:
    (root / "qrels").mkdir()
    with (root / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for number in range(lines):
            row = {"_id": f"d{number}", "title": "", "text": SENTENCES[number % len(SENTENCES)]}
            file.write(json.dumps(row) + "\n")
    (root / "queries.jsonl").write_text('{"_id": "q", "text": "when?"}\n', encoding="utf-8")
    (root / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\n", encoding="utf-8")
    return root


QUOTED: dict[str, Any] = {"evidence": "quoted", "threshold": 0.0}
_UNREAD: dict[str, Any] = {"evidence": False}
_WHOLE = {"max_prompt_tokens": CONTEXT_TOKENS}

CURVES = (
    Curve("documents", "documents", (10, 100, 1_000, 10_000), partial(documents, **_UNREAD)),
    Curve("quoted evidence", "documents", (10, 100, 1_000), partial(documents, **QUOTED)),
    Curve(
        "long document",
        "tokens",
        (100, 1_000, 10_000, 30_000),
        partial(tokens, max_prompt_tokens=CONTEXT_TOKENS),
        "attention",
    ),
    Curve("windows", "tokens", (100, 1_000, 10_000, 30_000), partial(tokens, on_long_document="window")),
    Curve("evidence held", "texts", (10, 90, 270), held),
    Curve("check of a text", "characters", (1_000, 10_000, 100_000), checked),
    Curve("queries at once", "clients", (1, 4, 16, 64), queries),
    Curve("corpus", "lines", (10_000, 100_000, 1_000_000, 10_000_000), corpus),
)
