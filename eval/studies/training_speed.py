"""What `eval/training_speed.py` compares, and how it is told."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prism.training.recipe import Data, Losses, Model, Recipe, Schedule
from studies import training_ways as ways
from studies.training_ways import Ran, Setting
from studies.turns import Prepare, Way, ratio

BARE, SFT_ONLY, BOTH = "bare loop", "trainer, SFT only", "trainer, SFT and distillation"
Rounds = dict[str, list[Ran]]


def prepared(setting: Setting, schedule: Schedule, packing: bool) -> dict[str, Prepare]:
    """By name; the published loop first: the others are compared with it."""
    dtype = torch.bfloat16 if schedule.bf16 else torch.float32
    published = dtype if torch.cuda.is_available() else torch.float32
    common: dict[str, Any] = {"name": "speed", "model": Model(base="random"), "data": Data(files=(Path("random"),))}
    plain = Recipe(**common, losses=Losses(distill=0.0, sft=1.0), schedule=schedule)
    both = Recipe(**common, losses=Losses(), schedule=schedule)
    packed = both.model_copy(update={"schedule": schedule.model_copy(update={"packing": True})})
    found: dict[str, tuple[ways.Train, Recipe, torch.dtype]] = {
        f"published loop, {_short(published)}": (ways.by_reference, both, published),
        f"published loop, {_short(dtype)}": (ways.by_reference, both, dtype),
        f"TRL's SFTTrainer, SFT only, {_short(dtype)}": (ways.by_trl, plain, dtype),
        BARE: (ways.by_bare_loop, both, dtype),
        BOTH: (ways.by_trainer, both, dtype),
        SFT_ONLY: (ways.by_trainer, plain, dtype),
    }
    if packing:
        found |= {f"{name}, packed": (found[name][0], packed, dtype) for name in (BARE, BOTH)}
    return {name: partial(ways.prepare, setting, *how) for name, how in found.items()}


def _short(dtype: torch.dtype) -> str:
    return "bf16" if dtype is torch.bfloat16 else "fp32"


def lines(measured: list[Way], rounds: Rounds, peak_tflops: float | None) -> list[dict[str, Any]]:
    """A row for each way; what could not be measured is None. `ratio`: to the first way."""
    seconds = {way.name: _median([ran.seconds for ran in rounds[way.name]]) for way in measured}
    found = []
    for way in measured:
        ran, took = next(reversed(rounds[way.name]), None), seconds[way.name]
        rate = ran.flops / took / 1e12 if ran and took else None
        found.append(
            {
                "way": way.name,
                "tokens_per_s": ran.tokens / took if ran and took else None,
                "ratio": ratio(seconds[measured[0].name], took),
                "tflops": rate,
                "mfu": rate / peak_tflops if rate and peak_tflops else None,
                "peak_gib": ran.memory_gib if ran else None,
                "error": way.error,
            }
        )
    return found


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def shares(rounds: Rounds, name: str, reference: str) -> list[float]:
    """Speed of one way as a share of another's, round by round."""
    return [other.seconds / own.seconds for own, other in zip(rounds[name], rounds[reference], strict=False)]


def markdown(setting: str, rows: list[dict[str, Any]], rounds: Rounds) -> str:
    def cell(value: float | None, text: str, unit: str = "") -> str:
        return "-" if value is None else format(value, text) + unit

    said = [
        f"| {row['way']} | {cell(row['tokens_per_s'], ',.0f')} | {cell(row['ratio'], '.2f', 'x')}"
        f" | {cell(row['tflops'], '.3f')} | {cell(row['mfu'], '.1%')} | {cell(row['peak_gib'], '.1f')}"
        f" | {'failed: ' + row['error'] if row['error'] else ''} |"
        for row in rows
    ]
    head = ["| way | real tokens/s | ratio | TFLOP/s | MFU | peak GiB | |", "|---|---:|---:|---:|---:|---:|---|"]
    compared = [
        f"{BOTH}: {statistics.median(found):.2f}x of {what} (by round {', '.join(f'{share:.2f}' for share in found)})."
        for what, found in ((f"the {BARE}", shares(rounds, BOTH, BARE)), (SFT_ONLY, shares(rounds, BOTH, SFT_ONLY)))
        if found
    ]
    return "\n".join([f"## {setting}", "", *head, *said, "", *compared, ""])
