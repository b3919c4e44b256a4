"""How fast Prism serves: its engines, its endpoint, its two phases, and what users would pick on the same weights.

    make .venv-vllm/.done                                                        # vLLM's CPU build, once
    .venv-vllm/bin/python eval/serving_speed.py --out eval/results/serving_speed/cpu
    .venv-vllm/bin/python eval/serving_speed.py --only scoring --only two-phase  # some of the table
    python eval/serving_speed.py --profile gpu --model /models/4b --out eval/results/serving_speed/gpu

The figures mean something as ratios within one run. Every repetition asks about new documents, so that no cache holds
an answer. What needs vLLM, or `--infinity-url` (infinity-emb on the classifier export), is left out without it. How
cost grows with what is asked: `eval/growth.py`.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from prism.reports.report import command_line
from studies.serving_sections import SECTIONS, Line, Measured, markdown, read_sections, write_sections
from studies.serving_speed import PROFILES, Bench, endpoint, others, scoring, two_phase, writing


def main(
    model: Annotated[str, typer.Option(help="mini, or a checkpoint directory.")] = "mini",
    profile: Annotated[
        Literal["cpu", "gpu"], typer.Option(help="How much is asked, and where CrossEncoder runs.")
    ] = "cpu",
    documents: Annotated[int | None, typer.Option(min=2, help="Documents a request; default: the profile's.")] = None,
    clients: Annotated[int | None, typer.Option(min=1, help="Clients of the endpoint; default: the profile's.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs per figure after one to warm up; the median counts.")] = 3,
    eager: Annotated[bool, typer.Option(help="Start vLLM without compiling: sooner, a little slower.")] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"Measure this alone: {', '.join(SECTIONS)}.")] = None,
    infinity_url: Annotated[str | None, typer.Option(help="A running infinity-emb on the classifier export.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write PATH.json and PATH.md after every section; others stay.")
    ] = None,
) -> None:
    """Documents a second of engines, endpoints, vLLM, CrossEncoder and infinity-emb on the same weights, in one run."""
    for name in only or ():
        if name not in SECTIONS:
            raise typer.BadParameter(f"no section {name!r}: expected {', '.join(SECTIONS)}")
    asked = PROFILES[profile]
    asked = asked._replace(documents=documents or asked.documents, clients=clients or asked.clients)
    bench = Bench(model, asked, repeats, eager)
    setting = (
        f"`{model}`, {asked.documents} documents a request, {asked.clients} clients, "
        f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, "
        f"vLLM {'in' if bench.has_vllm else 'not in'} this environment{', eager' if eager else ''}, median of {repeats}"
        f" (scoring, two-phase: {3 * repeats})"
    )
    measured: dict[str, Callable[[], Awaitable[list[Line]]]] = {
        "scoring": lambda: scoring(bench),
        "endpoint": lambda: endpoint(bench),
        "two-phase": lambda: two_phase(bench),
        "writing": lambda: writing(bench),
        "others": lambda: others(bench, infinity_url),
    }
    sections = read_sections(out.with_suffix(".json")) if out else {}
    for name in only or SECTIONS:
        found: list[Line] = asyncio.run(measured[name]())  # type: ignore[arg-type]
        for line in found:
            typer.echo(f"{line.section}: {line.name}: {line.value:.3g} {line.unit}", err=True)
        sections[name] = Measured(command_line(), setting, found)
        if out:
            write_sections(out, sections)
    typer.echo(markdown(sections))


if __name__ == "__main__":
    typer.run(main)
