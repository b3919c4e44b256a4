"""What a recipe asks for, made: template, rows in training order, and the arguments of the trainer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from rich.console import Console

from prism.checkpoint import Checkpoint
from prism.errors import DataError, RecipeError
from prism.files.examples import read_examples
from prism.files.qa_settings import Qa
from prism.merge import is_adapter
from prism.template import Template, TemplateSpec
from prism.training.batches import deal, filled, numbered, order, order_by_query
from prism.training.dataset import Drops, Row, rows
from prism.training.model import training_dtype
from prism.training.recipe import Recipe
from prism.types import Example

if TYPE_CHECKING:
    from trl import SFTConfig

PACKABLE = frozenset({"qwen3"})
"""Models in which packed rows do not see each other; Qwen3.5's linear attention carries its state across them."""
_CONSOLE = Console(stderr=True)


def say(text: str) -> None:
    """A line of progress, once however many processes train."""
    if is_main():
        _CONSOLE.print(text, highlight=False, markup=False)


def is_main() -> bool:
    """Whether this process is the one that writes files (torchrun and accelerate number them)."""
    return os.environ.get("RANK", "0") == "0"


class Opened(NamedTuple):
    """Everything about the model but its weights."""

    template: Template
    base: Checkpoint


class Rows(NamedTuple):
    """Tokenized rows in the order of the records."""

    rows: list[Row]
    drops: Drops

    @property
    def lengths(self) -> list[int]:
        return [len(row.input_ids) for row in self.rows]


def open_template(recipe: Recipe) -> Opened:
    """Tokenizer and template; no weights are read."""
    base = Checkpoint.load(
        recipe.model.base, template=recipe.model.template, trust_remote_code=recipe.model.trust_remote_code
    )
    refuse_packing(recipe, base.path / "config.json")
    if recipe.model.lora is not None and recipe.model.lora.save == "adapter" and base.home and is_adapter(base.home):
        raise RecipeError(
            f"model.lora.save: {recipe.model.base} is an adapter itself, and adapters do not stack: set it to merged"
        )
    return Opened(Template(limited(base.template.spec, recipe), base.tokenizer), base)


def refuse_packing(recipe: Recipe, config: Path) -> None:
    """Raises RecipeError where packed rows would see each other."""
    kind = json.loads(config.read_bytes()).get("model_type")
    if recipe.schedule.packing and kind not in PACKABLE:
        raise RecipeError(
            f"schedule.packing: rows packed together would leak into each other in a {kind} model; it is exact for"
            f" {', '.join(sorted(PACKABLE))} only: set it to false (rows are grouped by length then)"
        )


def limited(spec: TemplateSpec, recipe: Recipe) -> TemplateSpec:
    """The template with the recipe's limits."""
    limits = {name: getattr(recipe.model, name) for name in ("max_prompt_tokens", "max_written_tokens")}
    return spec.model_copy(update={name: limit for name, limit in limits.items() if limit is not None})


# --- data ------------------------------------------------------------------------------------------------------------


class QaBuilder(Protocol):
    """Makes the records of a recipe's `data.qa` in a folder, once: `prism.data.qa.build`."""

    def __call__(self, settings: Qa, folder: Path, seed: int, say: Callable[[str], None], /) -> object: ...


def records(recipe: Recipe, folder: Path, build: QaBuilder | None) -> Iterator[Example]:
    """Training records; those made of question-passage sets are made once per run, by `build`."""
    if recipe.data.qa is not None:
        if build is None:
            raise RecipeError("data.qa: nobody makes its records: pass build=prism.data.qa.build, as prism train does")
        build(recipe.data.qa, folder / "data", recipe.seed, say)
        yield from read_examples(folder / "data" / "train.jsonl")
    for path in recipe.data.files:
        yield from read_examples(path)


def make_rows(recipe: Recipe, folder: Path, template: Template, build: QaBuilder | None = None) -> Rows:
    """Tokenize all records. Raises DataError at a malformed one, or when none is left."""
    drops = Drops()
    data = recipe.data
    made = list(
        rows(
            records(recipe, folder, build),
            template,
            max_tokens=data.max_tokens,
            drops=drops,
            part_weights=recipe.losses.sft_parts,
            workers=recipe.schedule.workers,
        )
    )
    for reason, count in drops.counts.items():
        say(f"dropped {count:,} records: {reason}")
    for line in drops.named:
        say(f"  {line}")
    if not made:
        raise DataError("no training records are left: see the reasons above")
    found = Rows(made, drops)
    say(f"{len(made):,} records, {sum(found.lengths):,} tokens an epoch, longest {max(found.lengths):,}")
    return found


class Placed(NamedTuple):
    """A row's place in the training order."""

    row: int
    """Its index among the rows."""
    batch: int
    """Number of its batch within its process's optimizer step; 0 where batches are cut by rows."""


def arrange(recipe: Recipe, made: Sequence[Row], processes: int = 1) -> list[Placed]:
    """Training order. Raises DataError when a loss that compares documents would never see two of one query."""
    schedule, by_query = recipe.schedule, recipe.losses.by_query
    lengths = [len(row.input_ids) for row in made]
    if by_query:
        arranged = order_by_query([row.query for row in made], shuffle=schedule.shuffle, seed=recipe.seed)
        _require_groups(recipe, [made[index] for index in arranged])
    else:
        batches = schedule.accumulation * processes
        arranged = order(lengths, schedule.batch_size, batches, shuffle=schedule.shuffle, seed=recipe.seed)
    if schedule.tokens_per_batch is None:
        return [Placed(index, 0) for index in arranged]
    share = schedule.batch_size * schedule.accumulation
    if processes > 1:
        arranged = filled(arranged, share * processes)
        arranged = arranged if by_query else deal(arranged, share, processes)
    numbers = numbered(
        [lengths[index] for index in arranged],
        share,
        processes,
        schedule.tokens_per_batch,
        packed=schedule.packing,
        units=[made[index].query for index in arranged] if by_query else None,
    )
    return [Placed(index, number) for index, number in zip(arranged, numbers, strict=True)]


def _require_groups(recipe: Recipe, arranged: Sequence[Row]) -> None:
    schedule = recipe.schedule
    size = schedule.batch_size * (schedule.accumulation if schedule.tokens_per_batch else 1)
    for start in range(0, len(arranged), size):
        queries = [row.query for row in arranged[start : start + size] if row.teacher_score == row.teacher_score]
        if len(set(queries)) < len(queries):
            return
    raise DataError(
        "losses.margin and losses.listwise compare documents of one query, and no query has two records with a"
        " teacher_score: give more documents a query, or set these weights to 0"
    )


# --- arguments -------------------------------------------------------------------------------------------------------


def arguments(recipe: Recipe, folder: Path) -> SFTConfig:
    """The trainer's arguments. Raises RecipeError for a `report_to` that is not installed."""
    from trl import SFTConfig

    _refuse_sharding(recipe)
    schedule, optimizer = recipe.schedule, recipe.optimizer
    on_cpu = not torch.cuda.is_available()
    whole = schedule.tokens_per_batch is not None  # a step's rows come at once, and `DistillTrainer` takes them apart
    return SFTConfig(
        output_dir=str(folder / "state"),
        num_train_epochs=schedule.epochs,
        max_steps=schedule.max_steps,
        per_device_train_batch_size=schedule.batch_size * (schedule.accumulation if whole else 1),
        gradient_accumulation_steps=1 if whole else schedule.accumulation,
        gradient_checkpointing=schedule.gradient_checkpointing,
        max_grad_norm=optimizer.max_grad_norm,
        learning_rate=optimizer.lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": optimizer.min_lr_share},
        warmup_steps=optimizer.warmup_steps,
        bf16=False,  # no autocast: the model itself is bf16, the optimizer keeps fp32 copies
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        train_sampling_strategy="sequential",  # `arrange` has decided
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        packing=False,  # TRL's own; ours is in the collator
        max_length=None,
        save_steps=schedule.save_steps,
        save_total_limit=schedule.keep_checkpoints,
        logging_steps=schedule.log_steps,
        logging_nan_inf_filter=False,
        disable_tqdm=True,  # `Reporter` shows more
        report_to=_reporters(schedule.report_to),
        seed=recipe.seed,
        data_seed=recipe.seed,
        dataloader_pin_memory=not on_cpu,
        **_evaluation_arguments(recipe),
    )


def _refuse_sharding(recipe: Recipe) -> None:
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() not in ("1", "true"):
        return
    if training_dtype(recipe) is not torch.float32:
        raise RecipeError("FSDP keeps fp32 weights itself: set schedule.bf16=false, and mixed_precision in its profile")
    if recipe.evaluation is not None:
        raise RecipeError("measuring while training needs whole weights, FSDP shares them out: set evaluation=null")
    if recipe.model.lora is not None and recipe.model.lora.quantize:
        raise RecipeError("FSDP cannot share weights of four bits out: set model.lora.quantize=null, or use DDP")


def _evaluation_arguments(recipe: Recipe) -> dict[str, Any]:
    measured = recipe.evaluation
    if measured is None:
        return {}
    return {
        "eval_strategy": "steps",
        "eval_steps": measured.every_steps,
        "load_best_model_at_end": measured.keep_best,
        "metric_for_best_model": measured.best_by,
        "greater_is_better": measured.best_by != "calibration_error",
        "restore_callback_states_from_checkpoint": True,  # a resumed run has the patience it had
    }


def _reporters(names: tuple[str, ...]) -> list[str] | str:
    from transformers.integrations import get_available_reporting_integrations

    there = get_available_reporting_integrations()
    if missing := [name for name in names if name not in there]:
        raise RecipeError(
            f"schedule.report_to: {missing[0]} is not installed or not known; installed are"
            f" {', '.join(there) or 'none'}: install it, or leave it out"
        )
    return list(names) or "none"
