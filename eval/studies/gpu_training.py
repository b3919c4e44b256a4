"""The section `training` of `eval/gpu_check.py`: the trainer by a bare loop on the same batches; gradients; waits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, Qwen3ForCausalLM

from prism.engines.prefix import attends_by
from prism.training.batches import collator
from prism.training.distill import unwrapped
from prism.training.model import adapted, attention_of
from prism.training.recipe import Data, Lora, Losses, Model, Recipe, Schedule
from prism.training.rows import Rows
from studies import gpu, gpu_models
from studies.training_ways import by_bare_loop, by_trainer, loss_of, random_rows


def recipe_of(tiny: bool, losses: Losses) -> Recipe:
    """Steps of 128 records, batches of 49,152 tokens."""
    schedule = Schedule(
        batch_size=8 if tiny else 128,
        tokens_per_batch=512 if tiny else 49_152,
        bf16=gpu_models.device().type == "cuda",
        log_steps=10_000,
    )
    data = Data(files=(Path("random"),))
    return Recipe(name="check", model=Model(base="random"), data=data, losses=losses, schedule=schedule)


def gradients(config: Any, state: Any, recipe: Recipe, made: Rows, dtype: torch.dtype, where: torch.device) -> Any:
    """All gradients of one batch, in a row, on the CPU in fp32."""
    model = gpu_models.made(Qwen3ForCausalLM, config, dtype, where)
    model.load_state_dict(state)
    loss_of(model, recipe, collator(0)(list(made)), where).backward()
    return torch.cat([p.grad.flatten().float().cpu() for p in model.parameters()])


def _check_gradients(task: gpu.Task, recipe: Recipe) -> None:
    config = gpu_models.tiny_qwen3()
    made, cpu = random_rows(8, config.vocab_size, 40, 80), torch.device("cpu")
    state = gpu_models.made(Qwen3ForCausalLM, config, torch.float32, cpu).state_dict()
    truth = gradients(config, state, recipe, made, torch.float32, cpu)
    for dtype, most in ((torch.float32, 1e-3), (torch.bfloat16, 0.1)):
        found = gradients(config, state, recipe, made, dtype, gpu_models.device())
        gap = float((found - truth).norm() / truth.norm())
        task.row(f"gradients, {dtype}", relative_difference=gap, within=gap < most)


def _count_waits(task: gpu.Task, recipe: Recipe) -> None:
    """How often a batch, there and back, makes this process wait for the GPU, and where; on a CPU there is none."""
    config, where = gpu_models.tiny_qwen3(), gpu_models.device()
    model = gpu_models.made(Qwen3ForCausalLM, config, gpu_models.dtype_here(), where)
    batch = collator(0)(list(random_rows(8, config.vocab_size, 40, 80)))
    loss_of(model, recipe, batch, where).backward()
    if where.type != "cuda":
        return task.row("waits in a batch", waits=None, where="no GPU")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            loss_of(model, recipe, batch, where).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [f"{Path(one.filename).name}:{one.lineno}" for one in found if "synchronizing" in str(one.message)]
    return task.row("waits in a batch", waits=len(waits), where=", ".join(waits))


def _packed(model: Any, recipe: Recipe, rows: Rows) -> None:
    schedule = recipe.schedule.model_copy(update={"packing": True})
    with attends_by(unwrapped(model).config, attention_of(schedule)):
        by_trainer(model, recipe.model_copy(update={"schedule": schedule}), rows)


def training(task: gpu.Task) -> None:
    """Tokens a second of LoRA training on mini's architecture, and gradients against fp32 on the CPU."""
    both, plain = recipe_of(task.tiny, Losses()), recipe_of(task.tiny, Losses(distill=0.0, sft=1.0))
    task.tried("gradients", partial(_check_gradients, task, both))
    task.tried("waits in a batch", partial(_count_waits, task, both))
    made = random_rows(*((16, 600, 20, 40) if task.tiny else (1024, 49152, 170, 370)))
    first = Rows.of([made[number] for number in range(both.schedule.batch_size)])
    tokens = int(made.lengths.sum())
    model = adapted(
        gpu_models.made(LlamaForCausalLM, gpu_models.llama(task.tiny), gpu_models.dtype_here(), gpu_models.device()),
        Lora(rank=32),
    )
    every = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    flops = tokens * (4 * every + 2 * trained)  # frozen weights need no gradients of their own
    for way in (by_bare_loop, by_trainer):
        task.tried(f"warm-up: {way.__name__}", partial(way, model, both, first))

    def figures(_: str, seconds: float, __: Any) -> gpu.Figures:
        peak = gpu.peak_tflops()
        mfu = None if peak is None else flops / seconds / 1e12 / peak
        return {"tokens_per_s": tokens / seconds, "tflops": flops / seconds / 1e12, "mfu": mfu}

    ways: dict[str, Callable[[], Any]] = {
        "135M LoRA: bare loop": partial(by_bare_loop, model, both, made),
        "135M LoRA: trainer": partial(by_trainer, model, both, made),
        "135M LoRA: trainer, SFT only": partial(by_trainer, model, plain, made),
        "135M LoRA: trainer, packed": partial(_packed, model, both, made),
    }
    gpu.in_turns(task, ways, figures)
