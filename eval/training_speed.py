"""How fast the trainer trains: against the published loop, TRL's own and a bare loop, and what distillation costs.

    python eval/training_speed.py --out eval/results/training_speed        the size of 10 million parameters, on a CPU
    python eval/training_speed.py --size 0.6b --size 4b --train full --train lora --packing --checkpointing \\
        --shortest 500 --longest 4000 --batch-size 32 --tokens-per-batch 16384 --attention flash_attention_2 \\
        --peak-tflops 989 --out eval/results/training_speed_gpu            real sizes, random weights, on an H100

The ways are those of `eval/studies/training_ways.py`. The bare loop computes the same batches with the same kernels and
no trainer around them: what the trainer takes over it is its own. Records are random ids of the lengths in question;
real tokens are counted, padding is not. A GPU is used where there is one. Ways take turns, each in a process of its
own, so that a machine that slows down slows all of them; medians count. A way that fails is a row with its error, and
the report is written anew after every round.
"""

from __future__ import annotations

import math
import platform
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from prism.files.jsonl import dumps
from prism.outputs import write_text
from prism.reports.report import command_line, versions
from prism.training.recipe import Schedule
from studies.training_speed import Rounds, lines, markdown, prepared
from studies.training_ways import Kind, Setting, Size
from studies.turns import Turns


def main(
    size: Annotated[list[Size] | None, typer.Option(help="Shape of the random model; several may be given.")] = None,
    train: Annotated[list[Kind] | None, typer.Option(help="Every weight, or adapters of rank 64; or both.")] = None,
    records: Annotated[int, typer.Option(min=8, help="Records per run.")] = 96,
    shortest: Annotated[int, typer.Option(min=8, help="Shortest prompt, tokens.")] = 170,
    longest: Annotated[int, typer.Option(min=8, help="Longest prompt, tokens.")] = 370,
    batch_size: Annotated[int, typer.Option(min=1, help="Records of an optimizer step.")] = 8,
    tokens_per_batch: Annotated[int, typer.Option(min=64, help="The trainer's budget for one batch.")] = 2048,
    attention: Annotated[Literal["sdpa", "eager", "flash_attention_2"], typer.Option(help="Attention.")] = "eager",
    bf16: Annotated[bool, typer.Option(help="bf16 weights; the published loop has them too on GPUs.")] = True,
    packing: Annotated[bool, typer.Option("--packing", help="Measure packed rows too.")] = False,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Compute activations twice.")] = False,
    peak_tflops: Annotated[float | None, typer.Option(help="The device's peak, for the MFU: 989 for an H100.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds after one to warm up.")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's own choice.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json and report.md.")] = None,
) -> None:
    """Measure all ways in one run, for every size and kind of training asked for."""
    schedule = Schedule(
        batch_size=batch_size,
        tokens_per_batch=tokens_per_batch,
        bf16=bf16,
        attention=attention,
        gradient_checkpointing=checkpointing,
        log_steps=10_000,
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {threads or 'torch’s'} threads"
    texts: dict[str, str] = {}
    runs: dict[str, dict[str, Any]] = {}
    for shape in size or [Size.SMALLEST]:
        for kind in train or [Kind.FULL]:
            setting = Setting(shape, kind, records - records % batch_size, shortest, longest, threads)
            title = (
                f"{shape}, {kind}: {device}, {setting.records} records of {shortest} to {math.ceil(longest * 1.2)}"
                f" tokens, {batch_size} a step, {attention}, median of {repeats}"
            )
            rounds: Rounds = defaultdict(list)
            with Turns(prepared(setting, schedule, packing)) as turns:

                def keep(title: str = title, rounds: Rounds = rounds, turns: Turns = turns) -> None:
                    for way in turns.ways:
                        if way.error is None:
                            rounds[way.name].append(way.result)
                    rows = lines(turns.ways, rounds, peak_tflops)
                    texts[title] = markdown(title, rows, rounds)
                    runs[title] = {"lines": rows, "seconds": {n: [ran.seconds for ran in r] for n, r in rounds.items()}}
                    if out:
                        _write(out, texts, runs)

                turns.rounds(repeats, keep)
            typer.echo(texts[title])


def _write(out: Path, texts: dict[str, str], runs: dict[str, Any]) -> None:
    made = f"{', '.join(f'{name} {text}' for name, text in versions('torch', 'transformers').items())}"
    made += f", {platform.machine()}. Command: `{command_line()}`"
    write_text(out / "report.json", dumps({"made": made, "runs": runs}, indent=2) + "\n")
    write_text(out / "report.md", "\n".join(["# Speed of training", "", *texts.values(), made, ""]))


if __name__ == "__main__":
    typer.run(main)
