"""What happens within a training step: nothing is looked up on the device, processes make the same batches."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from copy import deepcopy
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_batches import rows_for
from test_trainer import (  # noqa: F401  (a fixture)
    finish,
    kill_after,
    recipe,
    run_command,
    same,
    trainer_for,
    weights,
)
from torch.utils._python_dispatch import TorchDispatchMode

from prism.template import PRISM, Template
from prism.training.batches import StepItem, Steps, collator
from prism.training.distill import loss_terms
from prism.training.optimizer import build_optimizer
from prism.training.recipe import TERMS, Losses, Optimizer, load_recipe
from prism.training.rows import Rows
from prism.training.setup import arguments
from prism.training.trainer import train

WAITS = ("nonzero", "_local_scalar_dense", "item", "_unique2", "unique_dim", "masked_select", "equal", "is_nonzero")
"""What a device must have computed before its process can go on: the shape or the value of the result is needed."""


FOREIGN = "find_packed_sequence_indices"
"""transformers' masking_utils.py: without a mask it looks at the positions, once in a forward pass, whether rows are
packed; not with an attention that it makes no masks for."""


class Unwaiting(TorchDispatchMode):
    """Fails where a GPU's process would wait for it, except in transformers' own search for packed rows."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        assert name not in WAITS or within(FOREIGN), f"{name} waits for the device"
        places = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        assert all(place is None or place.dtype is torch.int64 for place in places), f"{name} counts a mask"
        return func(*args, **(kwargs or {}))


def within(function: str) -> bool:
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != function:
        frame = frame.f_back
    return frame is not None


def mixed_rows(tiny_tokenizer) -> Rows:
    return Rows.of(rows_for(Template(PRISM, tiny_tokenizer)))


@pytest.mark.parametrize("packed", [False, True])
def test_losses_never_wait_for_the_device(tiny_tokenizer, packed):
    """All terms, forwards and backwards, over rows with and without a teacher."""
    batch = collator(0, packed=packed)(list(mixed_rows(tiny_tokenizer)))
    hidden = torch.randn(*batch["input_ids"].shape, 16, requires_grad=True)
    head = torch.randn(len(tiny_tokenizer), 16, requires_grad=True)
    labels = torch.tensor(Template(PRISM, tiny_tokenizer).label_ids)
    with Unwaiting():
        terms = loss_terms(hidden, head, batch, labels, Losses(**dict.fromkeys(TERMS, 1.0)))
        torch.stack(list(terms.values())).sum().backward()
    assert terms.keys() == set(TERMS)
    assert all(term.item() > 0 for term in terms.values())
    assert hidden.grad.abs().sum() > 0


def test_a_training_step_never_waits_for_the_device(tiny_tokenizer, tiny_qwen3, tmp_path):
    """Two batches, forwards and backwards, and the norm of the gradients; AdamW reads its step, which is no GPU's."""
    model = deepcopy(tiny_qwen3).to(torch.bfloat16).train()
    trainer = trainer_for(tiny_tokenizer, model, tmp_path, Losses(**dict.fromkeys(TERMS, 1.0)))
    optimizer = trainer.create_optimizer()
    cut = [np.arange(3), np.arange(3, 8)]
    steps = Steps(mixed_rows(tiny_tokenizer), np.arange(8), share=8, cut=lambda some, least: cut, collate=collator(0))
    item, before = steps[0], [p.detach().clone() for p in model.parameters()]
    with Unwaiting():
        samples, totals = trainer.get_batch_samples(iter([item]), 1, torch.device("cpu"))
        trainer.training_step(model, samples[0], totals)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert any(not torch.equal(old, p) for old, p in zip(before, model.parameters(), strict=True))


def test_a_wait_is_found():
    """What the check is for: each of these made every batch wait once."""
    values, chosen = torch.randn(4), torch.tensor([True, False, True, True])
    for waiting in (
        lambda: values[chosen],
        lambda: values.masked_select(chosen),
        lambda: values.sum().item(),
        lambda: bool(chosen.any()),
        lambda: torch.unique(values),
        lambda: chosen.nonzero(),
    ):
        with pytest.raises(AssertionError), Unwaiting():
            waiting()


# --- optimizer -------------------------------------------------------------------------------------------------------


def test_copies_in_one_call_are_the_copies_one_by_one(tiny_qwen3):
    """Three steps of bf16 weights beside AdamW on fp32 copies, written out: equal to the last bit."""
    settings = Optimizer(lr=1e-3, weight_decay=0.0)
    torch.manual_seed(2)
    model, plain = deepcopy(tiny_qwen3).to(torch.bfloat16), deepcopy(tiny_qwen3).to(torch.bfloat16)
    optimizer = build_optimizer(model, settings)
    masters = [p.detach().float().requires_grad_() for p in plain.parameters()]
    inner = torch.optim.AdamW(masters, lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=0.0)
    for step in range(3):
        for number, (one, two) in enumerate(zip(model.parameters(), plain.parameters(), strict=True)):
            gradient = None if number == step else torch.randn_like(one)  # one has none, another each time
            one.grad = gradient
            two.grad = None if gradient is None else gradient.clone()
        optimizer.step()
        assert all(master.grad is None for parameter, master in optimizer.masters)
        optimizer.zero_grad()
        assert all(parameter.grad is None for parameter in model.parameters())
        for parameter, master in zip(plain.parameters(), masters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
        inner.step()
        with torch.no_grad():
            for parameter, master in zip(plain.parameters(), masters, strict=True):
                parameter.copy_(master)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), plain.parameters(), strict=True))
    assert optimizer.inner.defaults["fused"] is None  # only where all weights are on a GPU


# --- processes that make batches -------------------------------------------------------------------------------------


def test_an_item_travels_without_files(tiny_tokenizer):
    """Tensors that go through a queue take a file each on both sides; a step has hundreds."""
    rows = mixed_rows(tiny_tokenizer)
    cut = [np.array([number]) for number in range(8)]
    (item,) = Steps(rows, np.arange(8), share=8, cut=lambda some, least: cut, collate=collator(0))
    before = len(os.listdir("/proc/self/fd"))
    found = ForkingPickler.loads(ForkingPickler.dumps(item))
    assert len(os.listdir("/proc/self/fd")) == before
    assert isinstance(found, StepItem)
    assert found["totals"] == item["totals"]
    assert len(found["batches"]) == 8
    for one, two in zip(found["batches"], item["batches"], strict=True):
        assert one.keys() == two.keys()
        assert one["counts"] == two["counts"]
        tensors = [name for name, value in two.items() if isinstance(value, torch.Tensor)]
        assert {"input_ids", "target_places", "target_weights", "teacher_scores"} <= set(tensors)
        assert all(torch.equal(one[name], two[name]) and one[name].dtype is two[name].dtype for name in tensors)


def test_processes_that_make_batches_change_nothing(recipe, tmp_path):  # noqa: F811
    """Over two epochs and with dropout, which shares its random numbers with the loader: losses and weights."""
    dropping = "model.lora={rank: 4, alpha: 8, dropout: 0.5}"
    for loaders in (0, 2):
        asked = [dropping, "schedule.max_steps=24", "schedule.log_steps=1", f"schedule.loaders={loaders}"]
        train(recipe, overrides=asked, output=tmp_path / f"{loaders}")
        assert multiprocessing.active_children() == []
    logs = [json.loads((tmp_path / f"{loaders}/log.json").read_text())["history"] for loaders in (0, 2)]
    losses = [[(point["step"], point["loss"]) for point in history if "loss" in point] for history in logs]
    assert len(losses[0]) == 24
    assert losses[0] == losses[1]
    assert same(*(weights(tmp_path / f"{loaders}/checkpoint") for loaders in (0, 2)))


def test_as_many_processes_make_batches_as_asked_for(recipe, tmp_path):  # noqa: F811
    found = [
        arguments(load_recipe(recipe, [f"schedule.loaders={asked}"]), tmp_path).dataloader_num_workers
        for asked in ("null", 0, 3)
    ]
    assert found == [0, 0, 3]  # by itself none on a CPU


def children_of(process: int) -> set[int]:
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == process and fields[0] != "Z":
            found.add(int(status.parent.name))
    return found


@pytest.mark.slow
def test_kill_9_ends_the_processes_and_resumes_to_the_same_weights(recipe, tmp_path):  # noqa: F811
    """Killed with two processes that make batches, in the middle of an epoch; compared with a run that had none."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(run_command(recipe, whole))
    settings = yaml.safe_load(recipe.read_text())
    settings["schedule"]["loaders"] = 2
    loading = tmp_path / "loading.yaml"
    loading.write_text(yaml.safe_dump(settings))
    process = run_command(loading, broken)
    children: set[int] = set()
    deadline = time.monotonic() + 300
    while len(children) < 2 or not list(broken.glob("state/checkpoint-*/trainer_state.json")):
        assert process.is_alive()
        assert time.monotonic() < deadline
        children = children_of(process.pid) or children
        time.sleep(0.01)
    kill_after(process, broken, 1)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "processes outlived the run that was killed"
        time.sleep(0.1)
    finish(run_command(loading, broken))
    assert same(weights(whole / "checkpoint"), weights(broken / "checkpoint"))
