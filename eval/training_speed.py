"""How fast the trainer trains, against the published reference loop, and what the distillation term costs.

    python eval/training_speed.py                                    nano's size
    python eval/training_speed.py --size 4b --lora --packing --attention flash_attention_2 --peak-tflops 989    on a GPU
    python eval/training_speed.py --out eval/results/training_speed

The reference loop is the one published reranker recipes show: a batch of one, in the order of the data, logits over the
whole sequence, a step of AdamW every eight records. Records are random ids of the lengths in question; real tokens are
counted, padding is not. A GPU is used where there is one. All ways take turns, so that a machine that slows down slows
all of them; medians count.
"""

from __future__ import annotations

import gc
import json
import math
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
import transformers
import typer

from prism.training.dataset import IGNORED, Row, collator, order
from prism.training.distill import DistillTrainer
from prism.training.dry_run import training_flops
from prism.training.recipe import Data, Lora, Losses, Model, Recipe, Schedule
from prism.training.setup import adapted, arguments

EFFECTIVE_BATCH = 8
LABELS = (17, 18)
Train = Callable[[Any, list[Row]], None]
Size = Literal["tiny", "nano", "0.6b", "4b"]
# hidden, MLP, layers, heads, key heads, head size, vocabulary: nano's recipe, and the configurations of Qwen/Qwen3-0.6B
# and Qwen/Qwen3-4B.
SHAPES: dict[Size, tuple[int, ...]] = {
    "tiny": (64, 128, 2, 2, 2, 64, 512),
    "nano": (320, 896, 4, 5, 5, 64, 16384),
    "0.6b": (1024, 3072, 28, 16, 8, 128, 151936),
    "4b": (2560, 9728, 36, 32, 8, 128, 151936),
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


def device_name() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


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
        labels = [IGNORED] * (len(prompt) + 1) + written
        made.append(Row(ids, labels, [IGNORED] * len(ids), len(prompt), 0.9 if yes else 0.1, number))
    return made


def reference_loop(model: Any, rows: list[Row]) -> None:
    """One record at a time, full logits, AdamW every `EFFECTIVE_BATCH` records."""
    device = device_name()
    free = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=1e-5, weight_decay=0.01)
    model.train()
    for number, row in enumerate(rows, 1):
        logits = model(torch.tensor([row.input_ids], device=device), use_cache=False).logits[0]
        targets = torch.tensor(row.labels[1:], device=device)
        sft = F.cross_entropy(logits[:-1].float(), targets, ignore_index=IGNORED)
        yes, no = logits[row.label_position - 1, list(LABELS)].float()
        loss = sft + 20.0 * ((yes - no).sigmoid() - row.teacher_score) ** 2
        (loss / EFFECTIVE_BATCH).backward()
        if number % EFFECTIVE_BATCH == 0:
            torch.nn.utils.clip_grad_norm_(free, 1.0)
            optimizer.step()
            optimizer.zero_grad()


def trainer_way(recipe: Recipe, tokenizer: Any) -> Train:
    """One epoch of the real trainer."""

    def run(model: Any, rows: list[Row]) -> None:
        from datasets import Dataset

        schedule = recipe.schedule
        arranged = order(
            [len(row.input_ids) for row in rows], schedule.batch_size, schedule.accumulation, shuffle=True, seed=1
        )
        with tempfile.TemporaryDirectory() as folder:
            settings = arguments(recipe, Path(folder))
            settings.save_strategy = "no"
            settings.disable_tqdm = True
            DistillTrainer(
                label_ids=LABELS,
                weights=recipe.losses,
                settings=recipe,
                model=model,
                args=settings,
                data_collator=collator(0, packed=schedule.packing),
                train_dataset=Dataset.from_list([rows[index]._asdict() for index in arranged]),
                processing_class=tokenizer,
            ).train()

    return run


def blank_tokenizer() -> Any:
    """The trainer wants one; nothing is tokenized."""
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")


def ways(
    batch_size: int, half: bool, attention: Literal["sdpa", "eager", "flash_attention_2"], packing: bool, twice: bool
) -> Iterator[tuple[str, torch.dtype, Train]]:
    dtype = torch.bfloat16 if half else torch.float32
    tokenizer = blank_tokenizer()
    published = dtype if device_name() == "cuda" else torch.float32
    yield "published loop: one record at a time, full logits", published, reference_loop
    schedule = Schedule(
        batch_size=batch_size,
        accumulation=max(1, EFFECTIVE_BATCH // batch_size),
        bf16=half,
        attention=attention,
        gradient_checkpointing=twice,
        log_steps=10_000,
    )
    common: dict[str, Any] = {"name": "speed", "model": Model(base="random"), "data": Data(files=(Path("random"),))}
    for name, losses, packed in (
        ("trainer, SFT only", Losses(distill=0.0, sft=1.0), False),
        ("trainer, SFT and distillation", Losses(), False),
        *([("trainer, SFT and distillation, packed", Losses(), True)] if packing else []),
    ):
        recipe = Recipe(**common, losses=losses, schedule=schedule.model_copy(update={"packing": packed}))
        yield name, dtype, trainer_way(recipe, tokenizer)


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
) -> list[Line]:
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
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = medians[chosen[0][0]]
    return [Line(n, tokens / s, first / s, flops / s, memory.get(n)) for n, s in medians.items()]


def markdown(setting: str, lines: list[Line], peak_tflops: float | None) -> str:
    rows = []
    for line in lines:
        share = "" if peak_tflops is None else f"{line.flops_per_s / peak_tflops / 1e12:.1%}"
        memory = "" if line.memory_gib is None else f"{line.memory_gib:.1f}"
        rows.append(
            f"| {line.way} | {line.tokens_per_s:,.0f} | {line.ratio:.2f}x | {line.flops_per_s / 1e12:.3f}"
            f" | {share} | {memory} |"
        )
    by_name = {line.way: line.tokens_per_s for line in lines}
    cost = by_name["trainer, SFT only"] / by_name["trainer, SFT and distillation"] - 1
    head = ["| way | real tokens/s | ratio | TFLOP/s | MFU | peak GiB |", "|---|---:|---:|---:|---:|---:|"]
    last = f"The distillation term costs {cost:.1%} over plain SFT."
    return "\n".join(["# Speed of training", "", setting, "", *head, *rows, "", last, ""])


def main(
    size: Annotated[Size, typer.Option(help="Shape of the random model.")] = "nano",
    lora: Annotated[bool, typer.Option("--lora", help="Train adapters of rank 64 only.")] = False,
    records: Annotated[int, typer.Option(min=8, help="Records per run.")] = 96,
    shortest: Annotated[int, typer.Option(min=8, help="Shortest prompt, tokens.")] = 170,
    longest: Annotated[int, typer.Option(min=8, help="Longest prompt, tokens.")] = 370,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at once in the trainer.")] = 8,
    attention: Annotated[Literal["sdpa", "eager", "flash_attention_2"], typer.Option(help="Attention.")] = "eager",
    bf16: Annotated[
        bool, typer.Option(help="bf16 weights in the trainer; the published loop has them on GPUs.")
    ] = True,
    packing: Annotated[bool, typer.Option("--packing", help="Measure packed rows too.")] = False,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Compute activations twice.")] = False,
    peak_tflops: Annotated[float | None, typer.Option(help="The device's peak, for the MFU: 989 for an H100.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds after one to warm up.")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's own choice.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write PATH.json and PATH.md too.")] = None,
) -> None:
    """Measure all ways in one run."""
    if threads:
        torch.set_num_threads(threads)
    rows = random_rows(records - records % EFFECTIVE_BATCH, SHAPES[size][-1], shortest, longest)
    chosen = list(ways(batch_size, bf16, attention, packing, checkpointing))

    def make(dtype: torch.dtype) -> Any:
        model = random_model(size, dtype, attention)
        return adapted(model, Lora()) if lora else model

    lines = measure(chosen, make, rows, repeats)
    setting = (
        f"{size}, {'LoRA' if lora else 'full'}, {device_name()}, {len(rows)} records of {shortest} to"
        f" {math.ceil(longest * 1.2)} tokens, {attention}, {torch.get_num_threads()} threads, torch"
        f" {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, median of {repeats}"
    )
    text = markdown(setting, lines, peak_tflops)
    typer.echo(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        record = {"setting": setting, "lines": [line._asdict() for line in lines]}
        out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        out.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
