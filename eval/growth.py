"""How cost and memory grow: documents, tokens, held texts, clients at once, lines of a corpus.

    python eval/growth.py --out eval/results/growth          # some minutes
    python eval/growth.py --only documents --most 1000

Each point in a process of its own, on a tiny random model: the curves are of the code around a model. The power is that
of the size between the last two points: 1 is linear; memory is the peak above what stood before the request.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure
from rich.console import Console

from prism.reports.report import Report, command_line, versions
from studies.growth import CURVES, LINEAR, Curve, Point, growth, measure, random_checkpoint

Found = dict[str, list[Point]]
COLUMNS = ("size", "seconds", "each, ms", "peak MiB above before")


def draw(figure: Figure, found: Found) -> None:
    """Time an item, and memory, against the size, both logarithmic."""
    left, right = figure.subplots(1, 2)
    for name, points in found.items():
        points = measured(points)
        sizes = [point.size for point in points]
        left.plot(sizes, [point.seconds / point.size * 1000 for point in points], marker="o", label=name)
        right.plot(sizes, [max(point.peak_mib, 0.1) for point in points], marker="o", label=name)
    for axes, title in ((left, "ms an item"), (right, "peak MiB above before")):
        axes.set(xscale="log", yscale="log", title=title, xlabel="size")
    left.legend(fontsize="small")


def measured(points: list[Point]) -> list[Point]:
    return [point for point in points if point.error is None]


def power_of(curve: Curve, points: list[Point]) -> str:
    power = growth(points)
    if power is None:
        return "-"
    more = f" ({curve.expected})" if curve.expected else " (more than linear)"
    return f"{power:.2f}{more if power > LINEAR else ''}"


def reported(found: Found) -> Report:
    report = Report("Growth", command=command_line(), versions=versions("torch", "transformers"))
    curves = [(curve, points) for curve in CURVES if (points := measured(found.get(curve.name, [])))]
    report.lead("Time and memory against size; power 1 is linear. A tiny random model stands in for a real one.")
    section = report.section("Curves")
    section.table(
        ("what grows", "from", "to", "power of the time at the end", "peak MiB at the end"),
        [(c.name, p[0].size, f"{p[-1].size} {c.unit}", power_of(c, p), p[-1].peak_mib) for c, p in curves],
        digits=1,
    )
    alt = "Time an item and peak memory against size, one line for each thing that grows."
    section.figure("growth", lambda figure: draw(figure, found), alt=alt, size=(9.6, 4.2))
    for curve in CURVES:
        if curve.name in found:
            rows = [(p.size, p.seconds, p.seconds / p.size * 1000, p.peak_mib) for p in measured(found[curve.name])]
            shown = report.section(f"{curve.name}, in {curve.unit}")
            shown.table(COLUMNS, rows, digits=3)
            for point in found[curve.name]:
                if point.error:
                    shown.warn(f"{point.size} {curve.unit}: {point.error}")
    return report


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"This alone: {', '.join(c.name for c in CURVES)}.")] = None,
    most: Annotated[int, typer.Option(min=1, help="No size above it.")] = 10_000_000,
    out: Annotated[Path | None, typer.Option(help="Folder for the report, written anew after every point.")] = None,
) -> None:
    """How time an item and peak memory grow with documents, tokens, clients and corpus lines; smallest sizes first."""
    if not Path("/proc/self/clear_refs").exists():
        raise typer.BadParameter("peak memory is read from /proc: this needs Linux")
    if unknown := set(only or ()) - {curve.name for curve in CURVES}:
        raise typer.BadParameter(f"no {', '.join(sorted(unknown))}: expected {', '.join(c.name for c in CURVES)}")
    console, found = Console(stderr=True), Found()
    with tempfile.TemporaryDirectory() as folder:
        model = random_checkpoint(Path(folder, "model"))
        for curve in CURVES:
            if only and curve.name not in only:
                continue
            for point in measure(curve, model, most):
                found.setdefault(curve.name, []).append(point)
                said = point.error or f"{point.seconds:.3f} s, {point.peak_mib:.0f} MiB"
                console.print(f"{curve.name}: {point.size} {curve.unit}: {said}")
                if out:
                    reported(found).write(out, _data(found))
    for name, points in found.items():
        sys.stdout.write(f"{name}: {power_of(next(c for c in CURVES if c.name == name), points)}\n")


def _data(found: Found) -> dict[str, Any]:
    return {"curves": {name: [point._asdict() for point in points] for name, points in found.items()}}


if __name__ == "__main__":
    typer.run(main)
