"""Training on two processes gives what training on one gives."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_trainer import PRELOADED, ROOT, finish, recipe, weights  # noqa: F401  (a fixture)

from prism.training.trainer import train

EXACT = ["schedule.bf16=false", "optimizer.eps=1e-3"]  # nothing that blows up last bits


def free_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def by_hand(recipe: Path, output: Path, overrides: list[str]) -> None:  # noqa: F811
    """Two processes as torchrun starts them, with everything imported already."""
    port = free_port()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    both = [
        context.Process(target=_one_of_two, args=(rank, port, str(recipe), str(output), overrides)) for rank in (0, 1)
    ]
    for process in both:
        process.start()
    for process in both:
        finish(process)


def _one_of_two(rank: int, port: str, recipe: str, output: str, overrides: list[str]) -> None:  # noqa: F811
    torch.set_num_threads(1)
    numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ.update({**numbers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
    train(Path(recipe), overrides=overrides, output=Path(output))


def by_torchrun(recipe: Path, output: Path, overrides: list[str]) -> None:  # noqa: F811
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    command += ["-m", "prism", "train", str(recipe), "--output", str(output)]
    for override in overrides:
        command += ["--set", override]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def assert_alike(alone: Path, two: Path) -> None:
    one, other = weights(alone / "checkpoint"), weights(two / "checkpoint")
    assert one.keys() == other.keys()
    # Sums in another order; the checkpoint is rounded to bf16, where a last bit may differ.
    assert all(torch.allclose(one[name].float(), other[name].float(), atol=1e-4, rtol=2**-7) for name in one)
    logs = [json.loads((run / "log.json").read_text())["history"] for run in (alone, two)]
    for first, second in zip(*logs, strict=True):
        for term in ("distill", "sft", "tokens"):
            if term in first or term in second:
                assert first[term] == pytest.approx(second[term], rel=1e-4)


@pytest.mark.slow
def test_two_processes_train_what_one_does(recipe, tmp_path):  # noqa: F811
    """By a budget of tokens: batches of unequal sizes, dealt out to both."""
    common = [*EXACT, "schedule.max_steps=4", "schedule.save_steps=4", "schedule.tokens_per_batch=400"]
    train(recipe, overrides=[*common, "schedule.batch_size=8"], output=tmp_path / "alone")
    by_hand(recipe, tmp_path / "two", [*common, "schedule.batch_size=4"])
    assert_alike(tmp_path / "alone", tmp_path / "two")


@pytest.mark.exhaustive
def test_torchrun_accumulates_what_one_process_does(recipe, tmp_path):  # noqa: F811
    common = [*EXACT, "schedule.max_steps=4", "schedule.save_steps=4", "schedule.batch_size=2"]
    train(recipe, overrides=[*common, "schedule.accumulation=4"], output=tmp_path / "alone")
    by_torchrun(recipe, tmp_path / "two", [*common, "schedule.accumulation=2"])
    assert_alike(tmp_path / "alone", tmp_path / "two")
