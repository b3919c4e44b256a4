"""What the tests against real vLLM share: checkpoints it can serve, pairs in four languages, a server process."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from prism.checkpoint import Checkpoint
from prism.template import PRISM, Template
from prism.types import Document

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not in this environment: `make vllm` runs these tests in the one that has it",
)
# vLLM's and torch's own warnings are not ours to fix.
VLLM_WARNINGS = [
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::UserWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::ResourceWarning",
]
SMALL = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 28, "max_num_seqs": 32, "max_model_len": 2048}
"""Starts in seconds and leaves memory to the others."""

SENTENCES = {
    "en": (
        "The harbour at Lindau freezes only in very cold winters, most recently in 1963.",
        "Copper conducts electricity better than iron, and silver better than both of them.",
        "Create a second key, switch every client to it, and delete the first one.",
    ),
    "de": (
        "Der Hafen von Lindau friert nur in sehr kalten Wintern zu, zuletzt im Jahr 1963.",
        "Kupfer leitet Strom besser als Eisen, und Silber besser als beide.",
    ),
    "zh": ("铜的导电性比铁好，而银比两者都好。", "林道的港口只在非常寒冷的冬天结冰，最近一次是在1963年。"),
    "ru": (
        "Медь проводит электричество лучше, чем железо, а серебро лучше, чем оба.",
        "Гавань в Линдау замерзает только в очень холодные зимы, в последний раз в 1963 году.",
    ),
}
QUERIES = {
    "en": "when did the harbour freeze",
    "de": "Wann fror der Hafen zu?",
    "zh": "哪种金属导电最好？",
    "ru": "что лучше проводит ток",
}


def serveable_qwen3(vocabulary: int) -> Any:
    """A random Qwen3 whose heads have a size vLLM's CPU attention knows (32 and up); scores spread over (0, 1)."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.15,
    )
    torch.manual_seed(20260103)
    return Qwen3ForCausalLM(config).eval()


def save_float32(path: Path, model: Any, tokenizer: Any, name: str = "tiny") -> Path:
    """A checkpoint in float32, so that no engine rounds weights that another does not."""
    Checkpoint.save(path, model=model, template=Template(PRISM, tokenizer), name=name)
    model.float().save_pretrained(path, safe_serialization=True)
    return path


def pairs(template: Template, count: int, most_tokens: int) -> list[tuple[str, Document, list[int]]]:
    """(query, document, prompt ids): lengths from the shortest there is to `most_tokens`, four languages in turn."""
    rng = random.Random(5)
    made = []
    for index in range(count):
        language = list(SENTENCES)[index % len(SENTENCES)]
        wanted = 3 + (most_tokens - 3) * index // (count - 1)
        text = rng.choice(SENTENCES[language])
        while len(template.render(QUERIES[language], Document(text=text), max_tokens=10**6).ids) < wanted:
            text += " " + rng.choice(SENTENCES[language])
        if index < len(SENTENCES):
            text = text[:2]
        prompt = template.render(QUERIES[language], Document(text=text), max_tokens=most_tokens)
        read = text[: prompt.truncation.read_chars] if prompt.truncation else text
        made.append((QUERIES[language], Document(text=read), prompt.ids))
    return made


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def vllm_server(model: Path, log: Path, *arguments: str, ready_s: float = 300) -> Iterator[str]:
    """A real vLLM server process; yields its base URL without /v1. Its whole process group ends with the block."""
    port = free_port()
    environment = {
        **os.environ,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--max-model-len", "2048"]
    command += ["--kv-cache-memory-bytes", str(1 << 28), "--max-num-seqs", "32", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}", process, log, ready_s)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path, ready_s: float) -> None:
    until = time.monotonic() + ready_s
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        time.sleep(0.2)
    raise AssertionError(f"vLLM's server did not start:\n{log.read_text(errors='replace')[-4000:]}")


def children(pid: int) -> set[int]:
    """Every process under `pid`, from /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def alive(pids: Sequence[int] | set[int]) -> set[int]:
    """Those of `pids` that still run; a zombie does not."""
    running = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                running.add(pid)
    return running


def eventually(holds: Callable[[], bool], within_s: float = 60) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.05)
    return holds()
