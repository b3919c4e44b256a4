"""Ways to train a random model on random rows, which `eval/training_speed.py` and `eval/gpu_check.py` compare.

    by_reference   the loop that published reranker recipes show: one record at a time, logits over the whole sequence
    by_trl         TRL's plain `SFTTrainer`: its collator, its loss, its optimizer, rows in random order
    by_bare_loop   our batches, loss and optimizer in a loop with nothing around them
    by_trainer     `DistillTrainer`, as `prism train` runs it

Every way trains a model on rows for one epoch: way(model, recipe, rows).
"""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
import transformers

from prism.training.batches import steps_of
from prism.training.distill import DistillTrainer, body, body_inputs, loss_terms, output_rows
from prism.training.dry_run import training_flops
from prism.training.model import adapted, attention_of
from prism.training.optimizer import build_optimizer
from prism.training.recipe import Lora, Recipe
from prism.training.rows import IGNORED, Row, Rows
from prism.training.setup import arguments
from studies import gpu_models

Train = Callable[[Any, Recipe, Rows], None]
TRL_BATCHES = 4
"""Batches a step in TRL's way: it cannot cut them by tokens, and long rows must fit together."""


class Size(StrEnum):
    """Shapes of random models."""

    TINY = "tiny"
    SMALLEST = "10m"
    SMALL = "0.6b"
    LARGE = "4b"


class Kind(StrEnum):
    """What is trained."""

    FULL = "full"
    LORA = "lora"


# hidden, MLP, layers, heads, key heads, head size, vocabulary: 10 million parameters, and those of Qwen/Qwen3-0.6B
# and Qwen/Qwen3-4B.
SHAPES: dict[Size, tuple[int, ...]] = {
    Size.TINY: (64, 128, 2, 2, 2, 64, 512),
    Size.SMALLEST: (320, 896, 4, 5, 5, 64, 16384),
    Size.SMALL: (1024, 3072, 28, 16, 8, 128, 151936),
    Size.LARGE: (2560, 9728, 36, 32, 8, 128, 151936),
}


def random_model(size: Size, kind: Kind, dtype: torch.dtype, attention: str) -> Any:
    hidden, mlp, layers, heads, key_heads, head, vocabulary = SHAPES[size]
    config = transformers.Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head,
        max_position_embeddings=16_384,
        tie_word_embeddings=True,
    )
    torch.manual_seed(7)
    with torch.device(gpu_models.device()):
        model = transformers.Qwen3ForCausalLM(config).to(dtype)
    model.set_attn_implementation(attention)
    return adapted(model, Lora()) if kind is Kind.LORA else model


def random_rows(records: int, vocabulary: int, shortest: int, longest: int) -> Rows:
    """Half of them end after the label, half go on to write a fifth of the prompt's length."""
    rng = random.Random(11)
    made = []
    for number in range(records):
        prompt = [rng.randrange(gpu_models.FIRST_ID, vocabulary) for _ in range(rng.randint(shortest, longest))]
        yes = number % 2 == 0
        written = [rng.randrange(gpu_models.FIRST_ID, vocabulary) for _ in range(len(prompt) // 5 if yes else 1)]
        ids = np.array([*prompt, gpu_models.LABELS[0 if yes else 1], *written], dtype=np.int32)
        weights = np.array([0.0] + [1.0] * len(written), dtype=np.float32)
        made.append(Row(ids, len(prompt), 0.9 if yes else 0.1, number, weights))
    return Rows.of(made)


def blank_tokenizer() -> Any:
    """Trainers want one; nothing is tokenized."""
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")


# --- ways ------------------------------------------------------------------------------------------------------------


def by_reference(model: Any, recipe: Recipe, rows: Rows) -> None:
    device, step = gpu_models.device(), recipe.schedule.batch_size
    free = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=1e-5, weight_decay=0.01)
    model.train()
    for number, row in enumerate(rows, 1):
        logits = model(torch.tensor(row.input_ids, device=device)[None].long(), use_cache=False).logits[0]
        targets = torch.tensor(row.labels[1:], device=device).long()
        sft = F.cross_entropy(logits[:-1].float(), targets, ignore_index=IGNORED)
        yes, no = logits[row.label_position - 1, list(gpu_models.LABELS)].float()
        loss = sft + 20.0 * ((yes - no).sigmoid() - row.teacher_score) ** 2
        (loss / step).backward()
        if number % step == 0:
            torch.nn.utils.clip_grad_norm_(free, 1.0)
            optimizer.step()
            optimizer.zero_grad()


def by_trl(model: Any, recipe: Recipe, rows: Rows) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    schedule = recipe.schedule
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=max(1, schedule.batch_size // TRL_BATCHES),
            gradient_accumulation_steps=min(schedule.batch_size, TRL_BATCHES),
            learning_rate=1e-5,
            weight_decay=0.01,
            bf16=False,
            gradient_checkpointing=schedule.gradient_checkpointing,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            save_strategy="no",
            report_to="none",
            logging_steps=10_000,
            disable_tqdm=True,
            use_cpu=gpu_models.device().type == "cpu",
            dataloader_pin_memory=gpu_models.device().type == "cuda",
        )
        made = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
        trainer = SFTTrainer(model=model, args=settings, train_dataset=made, processing_class=blank_tokenizer())
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


def by_bare_loop(model: Any, recipe: Recipe, rows: Rows) -> None:
    if recipe.schedule.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    free = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(model, recipe.optimizer)
    model.train()
    steps = steps_of(recipe, rows, pad_id=0)
    for number in range(len(steps)):
        item = steps[number]
        for batch in item["batches"]:
            loss_of(model, recipe, batch, gpu_models.device(), item["totals"]).backward()
        torch.nn.utils.clip_grad_norm_(free, recipe.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


def loss_of(
    model: Any, recipe: Recipe, batch: dict[str, Any], where: torch.device, totals: dict[str, float] | None = None
) -> Any:
    """The recipe's loss of one batch, as its share of a step that counts `totals`; None: the batch is the step."""
    inputs = {k: v.to(where, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    hidden_BTH = body(model)(**body_inputs(model, inputs), use_cache=False).last_hidden_state
    terms = loss_terms(hidden_BTH, output_rows(model), inputs, _labels(where), recipe.losses)
    share = {name: batch["counts"][name] / totals[name] if totals and totals[name] else 1.0 for name in terms}
    return sum(share[name] * getattr(recipe.losses, name) * term for name, term in terms.items())


@cache
def _labels(where: torch.device) -> torch.Tensor:
    return torch.tensor(gpu_models.LABELS, device=where)


def by_trainer(model: Any, recipe: Recipe, rows: Rows) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments(recipe, Path(folder))
        settings.save_strategy = "no"
        trainer = DistillTrainer(
            steps=steps_of(recipe, rows, pad_id=0),
            label_ids=gpu_models.LABELS,
            weights=recipe.losses,
            settings=recipe,
            model=model,
            args=settings,
            processing_class=blank_tokenizer(),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


# --- measured --------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """What all ways of a comparison train."""

    size: Size
    kind: Kind
    records: int
    shortest: int
    longest: int
    threads: int
    """0: torch's own choice."""


class Ran(NamedTuple):
    """One epoch."""

    seconds: float
    tokens: int
    flops: float
    """6 N T (4 N T for frozen weights), recomputation not counted."""
    memory_gib: float | None
    """Peak on the GPU."""


def prepare(setting: Setting, train: Train, recipe: Recipe, dtype: torch.dtype) -> Callable[[], Ran]:
    """In a process of its own: rows once, a new model for every turn, gone before the next way's."""
    if setting.threads:
        torch.set_num_threads(setting.threads)
    rows = random_rows(setting.records, SHAPES[setting.size][-1], setting.shortest, setting.longest)

    def run() -> Ran:
        model = random_model(setting.size, setting.kind, dtype, attention_of(recipe.schedule))
        tokens = int(rows.lengths.sum())
        flops, on_card = training_flops(model, tokens), gpu_models.device().type == "cuda"
        if on_card:
            torch.cuda.reset_peak_memory_stats()
        gpu_models.finish()
        start = time.perf_counter()
        train(model, recipe, rows)
        gpu_models.finish()
        seconds = time.perf_counter() - start
        memory = torch.cuda.max_memory_allocated() / 2**30 if on_card else None
        del model
        gc.collect()
        torch.cuda.empty_cache()
        return Ran(seconds, tokens, flops, memory)

    return run
