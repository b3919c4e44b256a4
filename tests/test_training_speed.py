"""Ways to train that are compared: the bare loop computes what the trainer does; a way that fails is a row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from prism.training.model import attention_of
from prism.training.recipe import Data, Losses, Model, Optimizer, Recipe, Schedule
from studies import training_ways as ways
from studies.training_speed import BARE, BOTH, SFT_ONLY, Rounds, lines, markdown, shares
from studies.turns import Way

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("packing", [False, True])
def test_the_bare_loop_trains_what_the_trainer_trains(packing):
    """The same weights to the last bit: nothing but the trainer itself is between them."""
    recipe = Recipe(
        name="x",
        model=Model(base="x"),
        data=Data(files=(Path("x"),)),
        losses=Losses(),
        # One step at the peak: after it the trainer's cosine would set in.
        optimizer=Optimizer(lr=1e-3, warmup_steps=0),
        schedule=Schedule(batch_size=8, tokens_per_batch=200, bf16=False, attention="eager", packing=packing),
    )
    rows = ways.random_rows(8, 512, 20, 60)
    start = ways.random_model(ways.Size.TINY, ways.Kind.FULL, torch.float32, "eager").state_dict()
    found = []
    for way in (ways.by_bare_loop, ways.by_trainer):
        attention = attention_of(recipe.schedule)
        model = ways.random_model(ways.Size.TINY, ways.Kind.FULL, torch.float32, attention)
        way(model, recipe, rows)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in start)
    assert any(not torch.equal(found[0][name], start[name]) for name in start)


def test_what_was_measured_is_told_and_what_failed_is_a_row():
    measured = [Way("published loop", error="OutOfMemoryError: 140 GB"), Way(BARE), Way(BOTH), Way(SFT_ONLY)]
    rounds: Rounds = defaultdict(list)
    for name, seconds in ((BARE, (1.0, 2.0, 4.0)), (BOTH, (1.25, 2.0, 5.0)), (SFT_ONLY, (1.0, 2.0, 4.0))):
        rounds[name] = [ways.Ran(took, 1000, 3e12, None) for took in seconds]
    rows = lines(measured, rounds, peak_tflops=10.0)
    assert rows[0] == {
        "way": "published loop",
        **dict.fromkeys(("tokens_per_s", "ratio", "tflops", "mfu", "peak_gib")),
        "error": "OutOfMemoryError: 140 GB",
    }
    # 1,000 tokens and 3 TFLOP in two seconds, the median; a tenth of 10 TFLOP/s is 1.
    assert (rows[1]["tokens_per_s"], rows[1]["tflops"], rows[1]["mfu"]) == (500.0, 1.5, 0.15)
    assert shares(rounds, BOTH, BARE) == [0.8, 1.0, 0.8]
    page = markdown("tiny", rows, rounds)
    assert "| published loop | - | - | - | - | - | failed: OutOfMemoryError: 140 GB |" in page
    assert f"{BOTH}: 0.80x of the bare loop (by round 0.80, 1.00, 0.80)." in page


@pytest.mark.exhaustive
def test_the_command_measures_every_way(tmp_path):
    command = [sys.executable, "eval/training_speed.py", "--size", "tiny", "--records", "16", "--repeats", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--packing", "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ((_, run),) = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["runs"].items()
    assert [row["error"] for row in run["lines"]] == [None] * 8
    assert all(row["tokens_per_s"] > 0 for row in run["lines"])
