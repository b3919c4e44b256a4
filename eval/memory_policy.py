"""What keeping freed memory in the process is worth on a CPU: scoring beside the C library's own way with memory.

    python eval/memory_policy.py --checkpoint mini --out eval/results/memory_policy/mini

Both ways take turns, each in a process of its own. "Given back" is what the engine leaves alone where a variable of
malloc's is set. Processor time is counted too: it does not grow when something else takes a processor.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from prism import devices
from prism.outputs import write_text
from prism.reports.report import command_line, versions
from studies.engine_ways import Setting, work
from studies.turns import Turns, Way, ratio

KEPT, GIVEN_BACK = "kept (the default)", "given back"
OWN_WAY = {GIVEN_BACK: {"GLIBC_TUNABLES": ""}}


class Spent(NamedTuple):
    """Of one call."""

    processor_s: float
    faults: int
    """Pages that the system had to clear."""
    peak_mb: float
    """Of the process so far."""


def scoring(checkpoint: str, documents: int) -> Callable[[], Spent]:
    asked = work(Setting(checkpoint, documents, 1, 1, devices.cpu_threads()), "auto")
    engine = asked.engine()

    def call() -> Spent:
        before = resource.getrusage(resource.RUSAGE_SELF)
        asyncio.run(engine.score(asked.prompts))
        after = resource.getrusage(resource.RUSAGE_SELF)
        taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Spent(taken, after.ru_minflt - before.ru_minflt, after.ru_maxrss / 1024)

    return call


def row(way: Way, spent: list[Spent], reference: Way, its: list[Spent]) -> dict[str, Any]:
    processor, other = (statistics.median(one.processor_s for one in many) for many in (spent, its))
    return {
        "memory": way.name,
        "median_s": way.median_s,
        "processor_s": processor,
        "faults": statistics.median(one.faults for one in spent),
        "peak_mb": spent[-1].peak_mb,
        "times_faster": ratio(reference.median_s, way.median_s),
        "times_less_processor": ratio(other, processor),
    }


def markdown(record: dict[str, Any]) -> str:
    lines = ["# Memory kept or given back", "", record["setting"], ""]
    lines += [
        "| memory | median s | processor s | pages cleared | peak MB | times faster | times less processor time |"
    ]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    for one in record["ways"]:
        lines.append(
            f"| {one['memory']} | {one['median_s']:.2f} | {one['processor_s']:.2f} | {one['faults']:,.0f} |"
            f" {one['peak_mb']:,.0f} | {one['times_faster']:.3f} | {one['times_less_processor']:.3f} |"
        )
    return "\n".join([*lines, "", f"`{record['command']}`", ""])


def main(
    checkpoint: Annotated[str, typer.Option(help="mini, a checkpoint's directory, or `random`.")] = "random",
    documents: Annotated[int, typer.Option(min=1, help="Scored in one call.")] = 48,
    calls: Annotated[int, typer.Option(min=1, help="Calls of each way.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Write PATH.json and PATH.md too.")] = None,
) -> None:
    """Scoring with memory that is kept and given back, in turns: seconds, processor time, pages cleared, peak."""
    ways = {name: partial(scoring, checkpoint, documents) for name in (GIVEN_BACK, KEPT)}
    spent: dict[str, list[Spent]] = {name: [] for name in ways}
    with Turns(ways, OWN_WAY) as turns:
        for _ in range(calls):
            turns.rounds(1)
            for way in turns.ways:
                if way.result is not None:
                    spent[way.name].append(way.result)
        if any(way.error for way in turns.ways):
            raise typer.BadParameter("; ".join(f"{way.name}: {way.error}" for way in turns.ways if way.error))
        first = turns.ways[0]
        record = {
            "command": command_line(),
            "setting": f"{documents} documents, {checkpoint}, {devices.cpu_threads()} processors, {calls} calls each;"
            f" {', '.join(map(' '.join, versions('torch').items()))}",
            "ways": [row(way, spent[way.name], first, spent[first.name]) for way in turns.ways],
        }
    if out:
        write_text(out.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
        write_text(out.with_suffix(".md"), markdown(record))
    typer.echo(markdown(record))


if __name__ == "__main__":
    typer.run(main)
