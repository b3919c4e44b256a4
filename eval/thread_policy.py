"""How long ten short documents take, alone and beside one busy process, with each policy for the threads of a CPU.

    python eval/thread_policy.py --checkpoint mini --out eval/results/thread_policy

Policies take turns, each in a process of its own; first alone, then while another process computes without a pause.
"spinning" is GNU OpenMP's own default, which the engine leaves alone where GOMP_SPINCOUNT is set.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from prism import devices
from prism.outputs import write_text
from prism.reports.report import command_line, versions
from studies.engine_ways import Setting, work
from studies.turns import Turns, Way, ratio

TOKENS, DOCUMENTS = 70, 10
SPINNING = {"GOMP_SPINCOUNT": "300000"}
"""What GNU OpenMP takes where nothing is set."""


def ten_short_documents(checkpoint: str, threads: int) -> Callable[[], object]:
    """Ten prompts of 70 tokens, of which 40 are shared."""
    with devices.threads(1):  # a second team of threads, the loading thread's, would cut the spinning by itself
        asked = work(Setting(checkpoint, DOCUMENTS, 1, 1), "auto")
    asked = asked._replace(setting=asked.setting._replace(threads=threads))
    engine = asked.engine()
    prompts = [[*asked.prompts[0][:40], *ids[-(TOKENS - 40) :]] for ids in asked.prompts]
    return lambda: len(asyncio.run(engine.score(prompts)).labels)


@contextmanager
def busy() -> Iterator[None]:
    """Beside one process that computes without a pause."""
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


def row(way: Way, calls: slice, reference: Way) -> dict[str, Any]:
    """`calls`: which of the times count."""
    taken, other = (Way(one.name, times_s=one.times_s[calls]) for one in (way, reference))
    return {
        "policy": way.name,
        "median_s": taken.median_s,
        "worst_s": taken.worst_s,
        "median_ratio": ratio(other.median_s, taken.median_s),
        "worst_ratio": ratio(other.worst_s, taken.worst_s),
        "error": way.error,
    }


def markdown(record: dict[str, Any]) -> str:
    lines = ["# Threads of a CPU beside a busy process", "", record["setting"], ""]
    lines += [
        "| | policy | median s | worst s | median, times faster | worst, times faster |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for place in ("alone", "busy"):
        for one in record[place]:
            figures = [one[name] for name in ("median_s", "worst_s", "median_ratio", "worst_ratio")]
            cells = ["-" if value is None else f"{value:.3f}" for value in figures]
            lines.append(f"| {place} | {one['policy']} | {' | '.join(cells)} |{one['error'] or ''}")
    return "\n".join([*lines, "", f"`{record['command']}`", ""])


def main(
    checkpoint: Annotated[str, typer.Option(help="mini, a checkpoint's directory, or `random`.")] = "random",
    calls: Annotated[int, typer.Option(min=1, help="Calls a policy, alone and beside the other process.")] = 30,
    out: Annotated[Path | None, typer.Option(help="Write PATH.json and PATH.md too.")] = None,
) -> None:
    """Ten short documents alone and beside a busy process, with each way of waiting: median and worst call."""
    cores = devices.cpu_threads()
    record: dict[str, Any] = {
        "command": command_line(),
        "setting": f"{DOCUMENTS} documents of {TOKENS} tokens, {checkpoint}, {cores} processors, {calls} calls each;"
        f" times faster than the first policy; {', '.join(map(' '.join, versions('torch').items()))}",
        "alone": [],
        "busy": [],
    }
    policies = {
        f"{cores} threads, spinning": partial(ten_short_documents, checkpoint, cores),
        f"{cores} threads, short waits (the default)": partial(ten_short_documents, checkpoint, cores),
        "1 thread": partial(ten_short_documents, checkpoint, 1),
    }
    with Turns(policies, {next(iter(policies)): SPINNING}) as turns:

        def keep(place: str, counted: slice) -> None:
            record[place] = [row(way, counted, turns.ways[0]) for way in turns.ways]
            if out:
                write_text(out.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
                write_text(out.with_suffix(".md"), markdown(record))

        turns.rounds(calls, lambda: keep("alone", slice(0, calls)))
        with busy():
            turns.rounds(calls, lambda: keep("busy", slice(calls, None)))
    typer.echo(markdown(record))


if __name__ == "__main__":
    typer.run(main)
