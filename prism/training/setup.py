"""What a recipe asks for, before any record is read: the template, and the arguments of the trainer."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from prism.checkpoint import Checkpoint
from prism.devices import usable_cpus
from prism.engines.packed import can_pack
from prism.errors import RecipeError
from prism.merge import is_adapter
from prism.template import Template, TemplateSpec
from prism.training.recipe import Recipe

if TYPE_CHECKING:
    from trl import SFTConfig

_LONGEST_WAIT_S = 6 * 3600
"""Processes wait for each other so long: for the first one, while it makes and tokenizes records."""


class Opened(NamedTuple):
    """Everything about the model but its weights."""

    template: Template
    base: Checkpoint


def open_template(recipe: Recipe, *, weights: bool = True) -> Opened:
    """Tokenizer and template; no weights are read, nor without `weights` downloaded."""
    model = recipe.model
    base = Checkpoint.load(
        model.base, template=model.template, trust_remote_code=model.trust_remote_code, weights=weights
    )
    _refuse_packing(recipe, base.path / "config.json")
    if recipe.model.lora is not None and recipe.model.lora.save == "adapter" and base.home and is_adapter(base.home):
        raise RecipeError(
            f"model.lora.save: {recipe.model.base} is an adapter itself, and adapters do not stack: set it to merged"
        )
    return Opened(Template(_limited(base.template.spec, recipe), base.tokenizer), base)


def _refuse_packing(recipe: Recipe, config: Path) -> None:
    """Raises RecipeError where packed rows would see each other."""
    shape = SimpleNamespace(**json.loads(config.read_bytes()))
    if recipe.schedule.packing and not can_pack(shape):
        raise RecipeError(
            f"schedule.packing: rows packed together would leak into each other in this {shape.model_type} model, whose"
            " layers are not all plain attention: set it to false (rows are grouped by length then)"
        )


def _limited(spec: TemplateSpec, recipe: Recipe) -> TemplateSpec:
    """The template with the recipe's limits; whatever its prompt asks for, what is trained can be taught to write."""
    limits = {name: getattr(recipe.model, name) for name in ("max_prompt_tokens", "max_written_tokens")}
    said = {name: limit for name, limit in limits.items() if limit is not None}
    return spec.model_copy(update={"writes": True, **said})


# --- arguments -------------------------------------------------------------------------------------------------------


def arguments(recipe: Recipe, folder: Path) -> SFTConfig:
    """The trainer's arguments. Raises RecipeError for a `report_to` that is not installed."""
    from trl import SFTConfig

    _refuse_sharding(recipe)
    schedule, optimizer = recipe.schedule, recipe.optimizer
    on_cpu = not torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(folder / "state"),
        num_train_epochs=schedule.epochs,
        max_steps=schedule.max_steps,
        per_device_train_batch_size=1,  # an item of `Steps`: all that a process does in a step
        gradient_accumulation_steps=1,
        gradient_checkpointing=schedule.gradient_checkpointing,
        max_grad_norm=optimizer.max_grad_norm,
        learning_rate=optimizer.lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": optimizer.min_lr_share},
        warmup_steps=optimizer.warmup_steps,
        bf16=False,  # no autocast: the model itself is bf16, the optimizer keeps fp32 copies
        use_cpu=on_cpu,
        ddp_timeout=_LONGEST_WAIT_S,
        ddp_backend="gloo" if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        train_sampling_strategy="sequential",  # `steps_of` has decided
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
        accelerator_config={"non_blocking": not on_cpu},  # batches are on their way while the one before is computed
        **_loader_arguments(schedule.loaders, on_cpu),
        **_evaluation_arguments(recipe),
    )


def _loader_arguments(loaders: int | None, on_cpu: bool) -> dict[str, Any]:
    """Processes are forked, so rows that are mapped into memory cost nothing to hand over; none without a fork to trust
    (macOS, Windows).

    They live for an epoch: kept alive, they would draw fewer random numbers from the one generator than no processes
    or a resumed run do.
    """
    wanted = (0 if on_cpu else min(2, usable_cpus())) if loaders is None else loaders
    if not wanted or sys.platform != "linux":
        return {}
    return {"dataloader_num_workers": wanted, "dataloader_multiprocessing_context": "fork"}


def _refuse_sharding(recipe: Recipe) -> None:
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() not in ("1", "true"):
        return
    if recipe.dtype is not torch.float32:
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
