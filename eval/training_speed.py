"""How fast the trainer trains, against the published reference loop and TRL's own, and what distillation costs.

    python eval/training_speed.py --out eval/results/training_speed        the size of 10 million parameters, on a CPU
    python eval/training_speed.py --size 0.6b --size 4b --train full --train lora --packing --checkpointing \\
        --shortest 500 --longest 4000 --batch-size 32 --tokens-per-batch 16384 --attention flash_attention_2 \\
        --peak-tflops 989 --out eval/results/training_speed_gpu            real sizes, random weights, on an H100

The reference loop is the one published reranker recipes show: a batch of one, in the order of the data, logits over the
whole sequence, a step of AdamW every so many records. TRL's own is its plain `SFTTrainer`, which knows no scores.
Records are random ids of the lengths in question; real tokens are counted, padding is not. A GPU is used where there is
one. All ways take turns, so that a machine that slows down slows all of them; medians count.
"""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import transformers
import typer

from prism.reports.report import command_line, write_whole
from prism.training.model import adapted
from prism.training.recipe import Lora, Schedule
from studies.training_speed import SHAPES, Kind, Size, device_label, markdown, measure, random_model, random_rows, ways


def main(
    size: Annotated[list[Size] | None, typer.Option(help="Shape of the random model; several may be given.")] = None,
    train: Annotated[list[Kind] | None, typer.Option(help="Every weight, or adapters of rank 64; or both.")] = None,
    records: Annotated[int, typer.Option(min=8, help="Records per run.")] = 96,
    shortest: Annotated[int, typer.Option(min=8, help="Shortest prompt, tokens.")] = 170,
    longest: Annotated[int, typer.Option(min=8, help="Longest prompt, tokens.")] = 370,
    batch_size: Annotated[int, typer.Option(min=1, help="Records of an optimizer step.")] = 8,
    tokens_per_batch: Annotated[int, typer.Option(min=64, help="The trainer's budget for one batch.")] = 2048,
    attention: Annotated[Literal["sdpa", "eager", "flash_attention_2"], typer.Option(help="Attention.")] = "eager",
    bf16: Annotated[
        bool, typer.Option(help="bf16 weights in the trainer; the published loop has them on GPUs.")
    ] = True,
    packing: Annotated[bool, typer.Option("--packing", help="Measure packed rows too.")] = False,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Compute activations twice.")] = False,
    peak_tflops: Annotated[float | None, typer.Option(help="The device's peak, for the MFU: 989 for an H100.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds after one to warm up.")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's own choice.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json and report.md.")] = None,
) -> None:
    """Measure all ways in one run, for every size and kind of training asked for."""
    if threads:
        torch.set_num_threads(threads)
    schedule = Schedule(
        batch_size=batch_size,
        tokens_per_batch=tokens_per_batch,
        bf16=bf16,
        attention=attention,
        gradient_checkpointing=checkpointing,
        log_steps=10_000,
    )
    texts, body = ["# Speed of training", ""], []
    for shape in size or [Size.SMALLEST]:
        for kind in train or [Kind.FULL]:
            rows = random_rows(records - records % batch_size, SHAPES[shape][-1], shortest, longest)

            def make(dtype: torch.dtype, shape: Size = shape, kind: Kind = kind) -> Any:
                model = random_model(shape, dtype, attention)
                return adapted(model, Lora()) if kind is Kind.LORA else model

            found = measure(list(ways(schedule, packing)), make, rows, repeats)
            setting = (
                f"{shape}, {kind}: {device_label()}, {len(rows)} records of {shortest} to {math.ceil(longest * 1.2)}"
                f" tokens, {batch_size} a step, {attention}, {torch.get_num_threads()} threads, median of {repeats}"
            )
            texts.append(markdown(setting, found, peak_tflops))
            body.append({"setting": setting, "costs": found.costs, "lines": [line._asdict() for line in found.lines]})
            typer.echo(texts[-1])
    if out:
        made = f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}"
        texts.append(f"{made}. Command: `{command_line()}`\n")
        record = {"command": command_line(), "versions": made, "runs": body}
        write_whole(out / "report.json", json.dumps(record, indent=2) + "\n")
        write_whole(out / "report.md", "\n".join(texts))


if __name__ == "__main__":
    typer.run(main)
