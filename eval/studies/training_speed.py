"""Our trainer timed beside plain loops; what `eval/training_speed.py` runs."""

from __future__ import annotations

import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
import transformers
import typer

from prism.training.batches import collator
from prism.training.dataset import IGNORED, Row, as_dataset
from prism.training.distill import DistillTrainer
from prism.training.dry_run import training_flops
from prism.training.recipe import Data, Losses, Model, Recipe, Schedule
from prism.training.setup import arguments, arrange

LABELS = (17, 18)
SFT_ONLY, BOTH = "trainer, SFT only", "trainer, SFT and distillation"
Train = Callable[[Any, list[Row]], None]


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


TRL_STEPS = 4
"""Batches a step in TRL's way: it cannot cut them by tokens, and long rows must fit together."""
# hidden, MLP, layers, heads, key heads, head size, vocabulary: 10 million parameters, and those of Qwen/Qwen3-0.6B
# and Qwen/Qwen3-4B.
SHAPES: dict[Size, tuple[int, ...]] = {
    Size.TINY: (64, 128, 2, 2, 2, 64, 512),
    Size.SMALLEST: (320, 896, 4, 5, 5, 64, 16384),
    Size.SMALL: (1024, 3072, 28, 16, 8, 128, 151936),
    Size.LARGE: (2560, 9728, 36, 32, 8, 128, 151936),
}


class Line(NamedTuple):
    """One way to train, measured."""

    way: str
    tokens_per_s: float
    ratio: float
    """Against the first way."""
    flops_per_s: float
    """6 N T / time (4 N T for frozen weights), recomputation not counted: over the peak of the device it is the MFU."""
    memory_gib: float | None
    """Peak on the GPU."""


class Measured(NamedTuple):
    """All ways of one setting."""

    lines: list[Line]
    costs: list[float]
    """What distillation costs over plain SFT, round by round."""


def device_name() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_label() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def random_model(size: Size, dtype: torch.dtype, attention: str) -> Any:
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
    with torch.device(device_name()):
        model = transformers.Qwen3ForCausalLM(config).to(dtype)
    model.set_attn_implementation(attention)
    return model


def random_rows(records: int, vocabulary: int, shortest: int, longest: int) -> list[Row]:
    """Half of them end after the label, half go on to write a fifth of the prompt's length."""
    rng = random.Random(11)
    made = []
    for number in range(records):
        prompt = [rng.randrange(32, vocabulary) for _ in range(rng.randint(shortest, longest))]
        yes = number % 2 == 0
        written = [rng.randrange(32, vocabulary) for _ in range(len(prompt) // 5 if yes else 1)]
        ids = [*prompt, LABELS[0] if yes else LABELS[1], *written]
        weights = np.array([0.0] + [1.0] * len(written), dtype=np.float32)
        made.append(Row(np.array(ids, dtype=np.int32), len(prompt), 0.9 if yes else 0.1, number, weights))
    return made


def reference_loop(step: int) -> Train:
    """One record at a time, full logits, AdamW every `step` records."""

    def run(model: Any, rows: list[Row]) -> None:
        device = device_name()
        free = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(free, lr=1e-5, weight_decay=0.01)
        model.train()
        for number, row in enumerate(rows, 1):
            logits = model(torch.tensor(row.input_ids, device=device)[None].long(), use_cache=False).logits[0]
            targets = torch.tensor(row.labels[1:], device=device).long()
            sft = F.cross_entropy(logits[:-1].float(), targets, ignore_index=IGNORED)
            yes, no = logits[row.label_position - 1, list(LABELS)].float()
            loss = sft + 20.0 * ((yes - no).sigmoid() - row.teacher_score) ** 2
            (loss / step).backward()
            if number % step == 0:
                torch.nn.utils.clip_grad_norm_(free, 1.0)
                optimizer.step()
                optimizer.zero_grad()

    return run


def trl_way(recipe: Recipe, tokenizer: Any) -> Train:
    """One epoch of TRL's `SFTTrainer` as it comes: its collator, its loss, its optimizer, rows in random order."""

    def run(model: Any, rows: list[Row]) -> None:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        schedule = recipe.schedule
        with tempfile.TemporaryDirectory() as folder:
            settings = SFTConfig(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=max(1, schedule.batch_size // TRL_STEPS),
                gradient_accumulation_steps=min(schedule.batch_size, TRL_STEPS),
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
                use_cpu=device_name() == "cpu",
                dataloader_pin_memory=device_name() == "cuda",
            )
            made = [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]
            trainer = SFTTrainer(
                model=model, args=settings, train_dataset=Dataset.from_list(made), processing_class=tokenizer
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()

    return run


def trainer_way(recipe: Recipe, tokenizer: Any) -> Train:
    """One epoch of the real trainer."""

    def run(model: Any, rows: list[Row]) -> None:
        schedule = recipe.schedule
        placed = arrange(recipe, rows)
        with tempfile.TemporaryDirectory() as folder:
            settings = arguments(recipe, Path(folder))
            settings.save_strategy = "no"
            trainer = DistillTrainer(
                label_ids=LABELS,
                weights=recipe.losses,
                settings=recipe,
                model=model,
                args=settings,
                data_collator=collator(0, packed=schedule.packing, grouped=schedule.tokens_per_batch is not None),
                train_dataset=as_dataset(rows, placed),
                processing_class=tokenizer,
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()

    return run


def blank_tokenizer() -> Any:
    """The trainer wants one; nothing is tokenized."""
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")


def ways(schedule: Schedule, packing: bool) -> Iterator[tuple[str, torch.dtype, Train]]:
    """The published loop first: the others are compared with it."""
    dtype = torch.bfloat16 if schedule.bf16 else torch.float32
    tokenizer = blank_tokenizer()
    published = dtype if device_name() == "cuda" else torch.float32
    common: dict[str, Any] = {"name": "speed", "model": Model(base="random"), "data": Data(files=(Path("random"),))}
    plain = Recipe(**common, losses=Losses(distill=0.0, sft=1.0), schedule=schedule)
    both = Recipe(**common, losses=Losses(), schedule=schedule)
    yield (
        f"published loop: one record at a time, full logits, {_short(published)}",
        published,
        reference_loop(schedule.batch_size),
    )
    if published is not dtype:
        yield f"the same, {_short(dtype)}", dtype, reference_loop(schedule.batch_size)
    yield f"TRL's SFTTrainer, SFT only, {_short(dtype)}", dtype, trl_way(plain, tokenizer)
    yield SFT_ONLY, dtype, trainer_way(plain, tokenizer)
    yield BOTH, dtype, trainer_way(both, tokenizer)
    if packing:
        packed = both.model_copy(update={"schedule": schedule.model_copy(update={"packing": True})})
        yield f"{BOTH}, packed", dtype, trainer_way(packed, tokenizer)


def _short(dtype: torch.dtype) -> str:
    return "bf16" if dtype is torch.bfloat16 else "fp32"


def timed(train: Train, model: Any, rows: list[Row]) -> float:
    start = time.perf_counter()
    train(model, rows)
    if device_name() == "cuda":
        next(model.parameters()).flatten()[0].item()  # waits for the device
    return time.perf_counter() - start


def measure(
    chosen: list[tuple[str, torch.dtype, Train]],
    make: Callable[[torch.dtype], Any],
    rows: list[Row],
    repeats: int,
) -> Measured:
    """Each way in turn, on a model of its own; the first round warms up and does not count."""
    tokens = sum(len(row.input_ids) for row in rows)
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in chosen}
    memory: dict[str, float] = {}
    flops = 0.0
    for repeat in range(repeats + 1):
        for name, dtype, train in chosen:
            model = make(dtype)
            flops = training_flops(model, tokens)
            if device_name() == "cuda":
                torch.cuda.reset_peak_memory_stats()
            took = timed(train, model, rows)
            if device_name() == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
            if repeat:
                seconds[name].append(took)
                typer.echo(f"{name}: {tokens / took:,.0f} tokens/s", err=True)
            del model
            gc.collect()
            torch.cuda.empty_cache()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = medians[chosen[0][0]]
    lines = [Line(n, tokens / s, first / s, flops / s, memory.get(n)) for n, s in medians.items()]
    return Measured(lines, [both / plain - 1 for both, plain in zip(seconds[BOTH], seconds[SFT_ONLY], strict=True)])


def markdown(setting: str, found: Measured, peak_tflops: float | None) -> str:
    rows = []
    for line in found.lines:
        share = "" if peak_tflops is None else f"{line.flops_per_s / peak_tflops / 1e12:.1%}"
        memory = "" if line.memory_gib is None else f"{line.memory_gib:.1f}"
        rows.append(
            f"| {line.way} | {line.tokens_per_s:,.0f} | {line.ratio:.2f}x | {line.flops_per_s / 1e12:.3f}"
            f" | {share} | {memory} |"
        )
    head = ["| way | real tokens/s | ratio | TFLOP/s | MFU | peak GiB |", "|---|---:|---:|---:|---:|---:|"]
    last = (
        f"The distillation term costs {statistics.median(found.costs):.1%} over plain SFT (median; by round"
        f" {', '.join(f'{cost:.1%}' for cost in found.costs)})."
    )
    return "\n".join([f"## {setting}", "", *head, *rows, "", last, ""])
