"""What starting costs: fresh processes, in turns, from a bare interpreter to the first answer of `prism rerank`.

    python eval/startup.py --out eval/results/startup        # some minutes

The peers answer the same two documents with mini's weights, exported: `CrossEncoder.predict`, and transformers alone
(one forward pass). Processor time says more than the clock where other processes compute.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from prism.devices import cpu_threads
from prism.export import export
from prism.reports.report import Report, command_line, versions

QUERY, DOCUMENTS = "capital of France", ("Paris is the capital of France.", "Bread is made from flour.")
PRISM = (sys.executable, "-m", "prism")
CROSS_ENCODER = f"""
import sys
from sentence_transformers import CrossEncoder
print(CrossEncoder(sys.argv[1], device="cpu").predict([({QUERY!r}, text) for text in {DOCUMENTS!r}]))
"""
TRANSFORMERS = f"""
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = (kind.from_pretrained(sys.argv[1]) for kind in (AutoTokenizer, AutoModelForCausalLM))
with torch.inference_mode():
    prompts = tokenizer([{QUERY!r} + text for text in {DOCUMENTS!r}], return_tensors="pt", padding=True)
    print(model(**prompts).logits[0, -1])
"""
PEER, LIMIT_S = "CrossEncoder, same weights, two scores", 300


class Cost(NamedTuple):
    """Of one process: on the clock, and of all its threads."""

    clock_s: float
    processor_s: float


def ended(*command: str) -> None:
    """Runs it. Raises CalledProcessError when it fails, TimeoutExpired when it takes too long."""
    subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S)


def served() -> None:
    """`prism serve` until it says that a request would be answered; then it is ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([*PRISM, "serve", "--port", str(port)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + LIMIT_S
    try:
        while server.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return
            time.sleep(0.02)
        raise RuntimeError(f"prism serve is not ready: exit code {server.poll()}")
    finally:
        server.kill()
        server.wait()


def ways(folder: Path) -> dict[str, Callable[[], None]]:
    """By name. `folder` takes documents and exported weights."""
    documents = folder / "documents.jsonl"
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    weights = str(export("mini", folder / "mini", "sentence-transformers"))
    python = partial(ended, sys.executable, "-c")
    rerank = partial(ended, *PRISM, "rerank", QUERY, str(documents))
    return {
        "bare interpreter": partial(python, "pass"),
        "import prism": partial(python, "import prism"),
        "prism --help": partial(ended, *PRISM, "--help"),
        "import torch": partial(python, "import torch"),
        "import torch and transformers' Llama": partial(
            python, "from transformers import AutoTokenizer, LlamaForCausalLM"
        ),
        "prism rerank --no-evidence": partial(rerank, "--no-evidence"),
        "prism rerank, to its answer": rerank,
        "prism serve, until it is ready": served,
        PEER: partial(python, CROSS_ENCODER, weights),
        "transformers, same weights, one pass": partial(python, TRANSFORMERS, weights),
    }


def cost(way: Callable[[], None]) -> Cost:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    way()
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def reported(found: Mapping[str, list[Cost]], rounds: int, load: float) -> Report:
    packages = versions("torch", "transformers", "sentence-transformers")
    report = Report("Start-up", command=command_line(), versions=packages)
    report.lead(f"{rounds} fresh processes each, in turns, on {cpu_threads()} processors; load before: {load:.1f}.")
    names = ("", "median s", "least", "most", "processor s", "times as long as CrossEncoder")
    peer, rows = median_s(found[PEER]), []
    for name, costs in found.items():
        clock, used = [one.clock_s for one in costs], statistics.median(one.processor_s for one in costs)
        rows.append((name, median_s(costs), min(clock), max(clock), used, median_s(costs) / peer))
    report.section("From start to end of the process").table(names, rows, digits=2)
    return report


def median_s(costs: list[Cost]) -> float:
    return statistics.median(one.clock_s for one in costs)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Processes each.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder for the report.")] = None,
) -> None:
    """Seconds of fresh processes until the first answer, beside their imports, in turns; one round fills the caches."""
    load = os.getloadavg()[0]
    found: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory() as folder:
        measured = ways(Path(folder))
        for turn in range(rounds + 1):
            for name, way in measured.items():
                taken = cost(way)
                typer.echo(f"{turn}: {name}: {taken.clock_s:.2f} s, processor {taken.processor_s:.2f} s", err=True)
                found[name] = [*found.get(name, ()), taken] if turn else []
    report = reported(found, rounds, load)
    if out:
        report.write(out, {"seconds": {name: [one._asdict() for one in costs] for name, costs in found.items()}})
    for name, costs in found.items():
        typer.echo(f"{name}: {median_s(costs):.2f} s")


if __name__ == "__main__":
    typer.run(main)
