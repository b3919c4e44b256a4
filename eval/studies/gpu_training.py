"""The section `training` of `eval/gpu_check.py`: our trainer beside a bare loop on the same batches, and gradients."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import LlamaForCausalLM, Qwen3ForCausalLM

from prism.training.batches import collator
from prism.training.dataset import Row, as_dataset
from prism.training.distill import DistillTrainer, body, loss_terms, output_rows
from prism.training.model import adapted
from prism.training.recipe import Data, Lora, Losses, Model, Recipe, Schedule
from prism.training.setup import arguments, arrange
from studies import gpu


def rows(count: int, vocabulary: int, own: tuple[int, int]) -> list[Row]:
    """Half of them end after the label, half go on to write a fifth of the prompt's length."""
    rng = random.Random(11)
    found = []
    for number in range(count):
        prompt = [rng.randrange(gpu.FIRST_ID, vocabulary) for _ in range(rng.randint(*own))]
        yes = number % 2 == 0
        after = [rng.randrange(gpu.FIRST_ID, vocabulary) for _ in range(len(prompt) // 5 if yes else 1)]
        ids = np.array([*prompt, gpu.LABELS[0 if yes else 1], *after], dtype=np.int32)
        weights = np.array([0.0] + [1.0] * len(after), dtype=np.float32)
        found.append(Row(ids, len(prompt), 0.9 if yes else 0.1, number, weights))
    return found


def recipe_of(tiny: bool, losses: Losses) -> Recipe:
    """Steps of 128 records, batches of 49,152 tokens."""
    schedule = Schedule(
        batch_size=8 if tiny else 128,
        tokens_per_batch=512 if tiny else 49_152,
        bf16=gpu.device().type == "cuda",
        log_steps=10_000,
    )
    data = Data(files=(Path("random"),))
    return Recipe(name="check", model=Model(base="random"), data=data, losses=losses, schedule=schedule)


def by_trainer(model: Any, recipe: Recipe, made: list[Row]) -> None:
    """One epoch of the real trainer."""
    schedule = recipe.schedule
    blank = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=blank, pad_token="<pad>", eos_token="<end>")
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments(recipe, Path(folder))
        settings.save_strategy = "no"
        trainer = DistillTrainer(
            label_ids=gpu.LABELS,
            weights=recipe.losses,
            settings=recipe,
            model=model,
            args=settings,
            data_collator=collator(0, packed=schedule.packing, grouped=True),
            train_dataset=as_dataset(made, arrange(recipe, made)),
            processing_class=tokenizer,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


def by_bare_loop(model: Any, recipe: Recipe, made: list[Row]) -> None:
    """The same batches and losses with nothing around them; torch's fused AdamW."""
    where, on_card = gpu.device(), gpu.device().type == "cuda"
    free = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=1e-5, weight_decay=0.01, fused=on_card)
    collate, placed = collator(0), arrange(recipe, made)
    share = recipe.schedule.batch_size
    model.train()
    for start in range(0, len(placed), share):
        step = sorted(placed[start : start + share], key=lambda one: one.batch)
        batches = [[as_dict(made[one.row]) for one in part] for _, part in groupby(step, key=lambda one: one.batch)]
        for batch in map(collate, batches):
            loss = loss_of(model, recipe, batch, where)
            (loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(free, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def as_dict(row: Row) -> dict[str, Any]:
    return row._asdict()


def loss_of(model: Any, recipe: Recipe, batch: dict[str, Any], where: torch.device) -> Any:
    """The recipe's loss of one batch."""
    inputs = {k: v.to(where, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    hidden_BTH = body(model)(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state
    terms = loss_terms(hidden_BTH, output_rows(model), inputs, list(gpu.LABELS), recipe.losses)
    return sum(getattr(recipe.losses, name) * term for name, term in terms.items())


def gradients(config: Any, state: Any, recipe: Recipe, made: list[Row], dtype: torch.dtype, where: torch.device) -> Any:
    """All gradients of one batch, in a row, on the CPU in fp32."""
    model = gpu.made(Qwen3ForCausalLM, config, dtype, where)
    model.load_state_dict(state)
    loss_of(model, recipe, collator(0)([as_dict(row) for row in made]), where).backward()
    return torch.cat([p.grad.flatten().float().cpu() for p in model.parameters()])


def _check_gradients(task: gpu.Task, recipe: Recipe) -> None:
    config = gpu.tiny_qwen3()
    made, cpu = rows(8, config.vocab_size, (40, 80)), torch.device("cpu")
    state = gpu.made(Qwen3ForCausalLM, config, torch.float32, cpu).state_dict()
    truth = gradients(config, state, recipe, made, torch.float32, cpu)
    for dtype, most in ((torch.float32, 1e-3), (torch.bfloat16, 0.1)):
        found = gradients(config, state, recipe, made, dtype, gpu.device())
        gap = float((found - truth).norm() / truth.norm())
        task.row(f"gradients, {dtype}", relative_difference=gap, within=gap < most)


def training(task: gpu.Task) -> None:
    """Tokens a second of LoRA training on mini's architecture, and gradients against fp32 on the CPU."""
    both, plain = recipe_of(task.tiny, Losses()), recipe_of(task.tiny, Losses(distill=0.0, sft=1.0))
    task.tried("gradients", partial(_check_gradients, task, both))
    made = rows(16 if task.tiny else 1024, 600 if task.tiny else 49152, (20, 40) if task.tiny else (170, 370))
    tokens = sum(len(row.input_ids) for row in made)
    model = adapted(gpu.made(LlamaForCausalLM, gpu.llama(task.tiny), gpu.dtype_here(), gpu.device()), Lora(rank=32))
    every = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    flops = tokens * (4 * every + 2 * trained)  # frozen weights need no gradients of their own
    for way in (by_bare_loop, by_trainer):
        task.tried(f"warm-up: {way.__name__}", partial(way, model, both, made[: both.schedule.batch_size]))

    def figures(_: str, seconds: float, __: Any) -> gpu.Figures:
        peak = gpu.peak_tflops()
        mfu = None if peak is None else flops / seconds / 1e12 / peak
        return {"tokens_per_s": tokens / seconds, "tflops": flops / seconds / 1e12, "mfu": mfu}

    ways: dict[str, Callable[[], Any]] = {
        "135M LoRA: bare loop": partial(by_bare_loop, model, both, made),
        "135M LoRA: trainer": partial(by_trainer, model, both, made),
        "135M LoRA: trainer, SFT only": partial(by_trainer, model, plain, made),
    }
    gpu.in_turns(task, ways, figures)
