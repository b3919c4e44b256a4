"""What a recipe would cost, and whether its data will do, before any weight is read.

Counts are exact: they come from the tokenizer and from the model's shape. Memory and time are estimates from below,
with their assumptions in the report.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from prism.template import Template
from prism.training.batches import steps_of
from prism.training.dataset import QaBuilder, make_rows
from prism.training.evaluate import read_dev
from prism.training.model import adapted, adapter_folder
from prism.training.recipe import Recipe, load_recipe
from prism.training.rows import Rows
from prism.training.setup import open_template
from prism.types import Record

if TYPE_CHECKING:
    from rich.table import Table

MATMUL_SHARE = 0.4
"""Share of a large matrix product's speed that training is assumed to reach."""
NF4_BITS = 4.127
"""Bits a weight takes as 4-bit NormalFloat with doubly quantized scales (Dettmers et al. 2023, "QLoRA", section 3)."""
_GIB = 2**30
_MATMUL_SIDE = {"cuda": 8192, "cpu": 1024}


class Plan(Record):
    """What `prism train --dry-run` reports."""

    recipe: str
    records: int
    dropped: dict[str, int]
    distilled: int
    """Records with a teacher score that counts."""
    tokens_per_epoch: int
    padded_tokens_per_epoch: int
    """What is computed, padding included."""
    target_tokens_per_epoch: int
    """Tokens of the written parts and labels whose cross-entropy counts."""
    median_tokens: int
    longest_tokens: int
    longest_batch_tokens: int
    dev_records: int
    epochs: float
    effective_batch: int
    """Records in an optimizer step of one process."""
    steps: int
    parameters: int
    trained_parameters: int
    dtype: str
    weights_gib: float
    gradients_gib: float
    optimizer_gib: float
    activations_gib: float
    """Of the largest batch: what its layers keep for the backward pass (`activation_bytes`)."""
    flops: float
    """Of the whole training."""
    matmul_tflops: float
    """Measured here, in the training's dtype."""
    hours: float
    assumptions: tuple[str, ...]

    @property
    def memory_gib(self) -> float:
        return self.weights_gib + self.gradients_gib + self.optimizer_gib + self.activations_gib


def dry_run(
    recipe_path: Path,
    *,
    overrides: list[str] | None = None,
    output: Path | None = None,
    build: QaBuilder | None = None,
) -> Plan:
    """Check a recipe and its data and estimate what it needs; reads the tokenizer and the configuration only.

    Records that a recipe makes of question-passage sets are made for real by `build`, where training will find them.
    Raises what training would: RecipeError, DataError, CheckpointError, TemplateError.
    """
    recipe = load_recipe(recipe_path, overrides)
    folder = output or recipe.folder
    template, config = _open(recipe)
    rows, drops = make_rows(recipe, folder, template, build)
    dev = read_dev(recipe, folder)
    model = _shape(recipe, config)
    batches = _batches(recipe, rows)
    schedule = recipe.schedule
    steps = schedule.max_steps if schedule.max_steps > 0 else math.ceil(len(batches) * schedule.epochs)
    epochs = steps / len(batches)
    padded = sum(map(sum, batches))
    largest = max(map(max, batches))
    dtype = recipe.dtype
    flops = training_flops(model, padded * epochs, checkpointing=schedule.gradient_checkpointing)
    rate = measured_flops(dtype)
    return Plan(
        recipe=recipe.name,
        dropped=dict(drops.counts),
        **_counts(rows),
        padded_tokens_per_epoch=padded,
        longest_batch_tokens=largest,
        dev_records=0 if dev is None else len(dev.examples),
        epochs=epochs,
        effective_batch=schedule.batch_size * schedule.accumulation,
        steps=steps,
        parameters=_count(model),
        trained_parameters=_count(model, trained=True),
        dtype=str(dtype).removeprefix("torch."),
        **_memory(recipe, model, config, largest),
        flops=flops,
        matmul_tflops=rate / 1e12,
        hours=flops / (MATMUL_SHARE * rate) / 3600,
        assumptions=_assumptions(recipe),
    )


def _counts(rows: Rows) -> dict[str, Any]:
    return {
        "records": len(rows),
        "distilled": int(np.count_nonzero(~np.isnan(rows.teacher_scores))),
        "tokens_per_epoch": int(rows.lengths.sum(dtype=np.int64)),
        "target_tokens_per_epoch": rows.targets,
        "median_tokens": round(float(np.median(rows.lengths))),
        "longest_tokens": int(rows.lengths.max()),
    }


def _assumptions(recipe: Recipe) -> tuple[str, ...]:
    frozen = "; 4 for weights that LoRA leaves frozen" if recipe.model.lora else ""
    again = ", plus 2 for computing activations twice" if recipe.schedule.gradient_checkpointing else ""
    return (
        f"arithmetic: 6 floating-point operations per trained weight and token{frozen}{again} (Kaplan et al. 2020,"
        " section 2.1), embeddings not counted; attention over long sequences comes on top",
        f"time: {MATMUL_SHARE:.0%} of the speed of a large matrix product on this machine, one process; reading data,"
        " evaluation and saving come on top",
        "memory: what layers keep is counted (Korthikanti et al. 2022, section 4.1); logits of what is learnt, buffers"
        " of kernels, the program itself and fragmentation come on top",
    )


# --- without weights -------------------------------------------------------------------------------------------------


def _open(recipe: Recipe) -> tuple[Template, Any]:
    """Template and configuration of the base; the weights of one on the hub are not downloaded for a look."""
    from transformers import AutoConfig

    opened = open_template(recipe, weights=False)
    config = AutoConfig.from_pretrained(opened.base.path, trust_remote_code=recipe.model.trust_remote_code)
    return opened.template, config


def _shape(recipe: Recipe, config: Any) -> Any:
    """The model on the meta device: names and shapes without numbers."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=recipe.model.trust_remote_code)
        lora = recipe.model.lora
        if lora is None:
            return model
        if lora.start is not None:
            adapter_folder(lora.start)
        return adapted(model, lora.model_copy(update={"start": None}))


def _batches(recipe: Recipe, rows: Rows) -> list[list[int]]:
    """Tokens computed in each batch of an epoch, padding included; the batches of each optimizer step together."""

    def computed(lengths: NDArray[np.int32]) -> int:
        return int(lengths.sum() if recipe.schedule.packing else lengths.max() * len(lengths))

    steps = steps_of(recipe, rows, pad_id=0)
    return [[computed(rows.lengths[batch]) for batch in steps.batches(step)] for step in range(len(steps))]


# --- estimates -------------------------------------------------------------------------------------------------------


def training_flops(model: Any, tokens: float, *, checkpointing: bool = False) -> float:
    """Floating-point operations of training on so many tokens: 6 N_trained T + 4 N_frozen T.

    N without embeddings. Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1: 2 N for
    the forward pass and twice as much for the backward pass. Frozen weights need half of that backward pass: gradients
    of their inputs, not of themselves. With `checkpointing` the forward pass is done twice: 2 N more.
    """
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    inside = [p for p in model.parameters() if id(p) not in embedded]
    trained = sum(p.numel() for p in inside if p.requires_grad)
    every = sum(p.numel() for p in inside)
    return float(tokens * (6 * trained + 4 * (every - trained) + (2 * every if checkpointing else 0)))


def _memory(recipe: Recipe, model: Any, config: Any, batch_tokens: int) -> dict[str, Any]:
    width = 2 if recipe.dtype is torch.bfloat16 else 4
    lora = recipe.model.lora
    trained = _count(model, trained=True)
    frozen = _count(model) - trained
    packed = _projections(model) if lora is not None and lora.quantize else 0
    own = width if lora is None else 4  # adapters are fp32
    states = 8 if own == 4 else 12  # AdamW's two fp32 moments, and an fp32 copy of bf16 weights
    shape = config.get_text_config()
    return {
        "weights_gib": (packed * NF4_BITS / 8 + (frozen - packed) * width + trained * own) / _GIB,
        "gradients_gib": trained * own / _GIB,
        "optimizer_gib": trained * states / _GIB,
        "activations_gib": batch_tokens * _kept_by_all(recipe, shape, width) / _GIB,
    }


def _kept_by_all(recipe: Recipe, shape: Any, width: int) -> float:
    """Bytes a token that all layers keep; with checkpointing their inputs, and one layer's rest at a time."""
    layer = activation_bytes(shape, width, lora=recipe.model.lora is not None)
    layers, inputs = int(shape.num_hidden_layers), int(shape.hidden_size) * width
    return inputs * layers + layer if recipe.schedule.gradient_checkpointing else layer * layers


def activation_bytes(shape: Any, width: int, *, lora: bool) -> int:
    """Bytes a token that one layer keeps for its backward pass, as transformers computes Llama and Qwen layers.

    By counting (in elements; h hidden, m intermediate, a of all query heads): both norms keep their input in fp32 and,
    where their weights are trained, what they make of it; attention keeps queries, keys and values repeated for every
    head, and its result; SwiGLU three of m. The projections keep their inputs, of which attention's result is there
    already; an adapter beside bf16 weights keeps a copy of each in its own fp32. Liger's kernels keep less; norms of
    queries and keys (Qwen3), statistics, the mask of padded rows and what an adapter makes in its rank come on top. The
    way of counting is that of Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
    section 4.1; scores of attention are not kept by sdpa and flash attention. A layer without `intermediate_size`
    (GPT-2) is taken for one of 4 h, as theirs are.
    """
    h = int(shape.hidden_size)
    m = int(getattr(shape, "intermediate_size", None) or 4 * h)
    heads = int(shape.num_attention_heads)
    a = heads * int(getattr(shape, "head_dim", None) or h // heads)
    norms = 2 * h * (4 if lora else 4 + width)
    inputs = (5 * h + a + m) * 4 if lora and width < 4 else (2 * h + m) * width
    return norms + (4 * a + 3 * m) * width + inputs


def _projections(model: Any) -> int:
    """Frozen weights of linear layers without the output layer: what is kept in four bits."""
    head = model.get_output_embeddings()
    linear = (module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head)
    return sum(module.weight.numel() for module in linear if not module.weight.requires_grad)


def _count(model: Any, *, trained: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def measured_flops(dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Floating-point operations a second of a large matrix product on the training's device; the best of several."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = _MATMUL_SIDE[device]
    left = torch.ones(side, side, dtype=dtype, device=device)
    best, until = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < until or best == math.inf:
        start = time.perf_counter()
        (left @ left)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2.0 * side**3 / best


# --- shown -----------------------------------------------------------------------------------------------------------


def plan_table(plan: Plan) -> Table:
    """The plan for a terminal; names of records are shown as text, whatever they hold."""
    from rich.table import Table
    from rich.text import Text

    from prism.text import printable

    table = Table(title=f"{plan.recipe}: dry run", show_header=False, title_justify="left")
    padding = 1 - plan.tokens_per_epoch / plan.padded_tokens_per_epoch
    lines = {
        "records": f"{plan.records:,}, {plan.distilled:,} of them with a teacher score; {plan.dev_records:,} held out",
        "tokens an epoch": f"{plan.tokens_per_epoch:,}, of which {plan.target_tokens_per_epoch:,} targets;"
        f" {padding:.1%} padding",
        "tokens a record": f"median {plan.median_tokens:,}, longest {plan.longest_tokens:,}",
        "steps": f"{plan.steps:,} of {plan.effective_batch} records, {plan.epochs:.2f} epochs",
        "parameters": f"{plan.parameters:,}, {plan.trained_parameters:,} of them trained ({plan.dtype})",
        "memory, about": f"{plan.memory_gib:.2f} GiB: weights {plan.weights_gib:.2f},"
        f" gradients {plan.gradients_gib:.2f}, optimizer {plan.optimizer_gib:.2f},"
        f" activations {plan.activations_gib:.2f}",
        "arithmetic": f"{plan.flops:.3g} floating-point operations",
        "time, estimated": f"{plan.hours:.2f} hours at {MATMUL_SHARE:.0%} of {plan.matmul_tflops:.2f} TFLOP/s",
    }
    for name, value in lines.items():
        table.add_row(name, value)
    for reason, count in plan.dropped.items():
        table.add_row("dropped", Text(printable(f"{count:,}: {reason}")))
    for assumption in plan.assumptions:
        table.add_row("assumed", assumption)
    return table
