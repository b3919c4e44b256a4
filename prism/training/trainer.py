"""recipe -> checkpoint: data, model, TRL's `SFTTrainer` with the distillation term, save.

train(recipe) : load_recipe -> template -> rows -> model -> DistillTrainer.train (resumable) -> Checkpoint.save
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from prism.checkpoint import Checkpoint
from prism.errors import RecipeError
from prism.template import Template
from prism.training.batches import collator
from prism.training.distill import DistillTrainer
from prism.training.evaluate import Assessment, DevSet, assess, read_dev
from prism.training.model import make_model, merged
from prism.training.progress import Reporter
from prism.training.recipe import Recipe, dump_recipe, load_recipe
from prism.training.report import write_report
from prism.training.setup import (
    Opened,
    Rows,
    arguments,
    arrange,
    is_main,
    make_rows,
    open_template,
    say,
)


def train(
    recipe_path: Path, *, overrides: list[str] | None = None, resume: bool = True, output: Path | None = None
) -> Path:
    """Run a recipe to its end and return the folder of the finished checkpoint.

    Everything goes under the recipe's output folder: `data/` (records), `state/` (resumable training states),
    `evaluation/` (what was measured on the way), `checkpoint/` (the result), `report/` and `log.json`. With `resume`, a
    run that was interrupted continues from its last state, on the same batches, to the same weights. Raises RecipeError
    or DataError before any weight loads when the input is wrong.
    """
    recipe = load_recipe(recipe_path, overrides)
    folder = output or recipe.folder
    settings = arguments(recipe, folder)
    started = time.time()
    with settings.main_process_first(local=False, desc="data"):  # what one process made, the others read
        if is_main():
            _guard(recipe, folder, resume)
        opened = open_template(recipe, folder)
        made = make_rows(recipe, folder, opened.template)
        dev = read_dev(recipe, folder)
    with Reporter(Console()) as reporter:
        trainer = _trainer(recipe, folder, settings, opened, made, dev, reporter)
        state = _last_state(folder) if resume else None
        if dev is not None and state is None:
            before = _assess(folder, dev, opened.template, trainer.model, 0)
            say(f"before training: {', '.join(f'{name} {value:.4f}' for name, value in before.items())}")
        trainer.train(resume_from_checkpoint=state)
    return _finish(recipe, folder, trainer, opened, made, time.time() - started)


def _trainer(
    recipe: Recipe,
    folder: Path,
    settings: Any,
    opened: Opened,
    made: Rows,
    dev: DevSet | None,
    reporter: Reporter,
) -> DistillTrainer:
    from datasets import Dataset
    from transformers import EarlyStoppingCallback, PrinterCallback

    arranged = arrange(recipe, made.rows, settings.world_size)
    patience = recipe.evaluation.patience if recipe.evaluation else None
    tokenizer = opened.template.tokenizer
    schedule = recipe.schedule
    grouped = schedule.tokens_per_batch is not None
    model = make_model(recipe, opened.template, opened.base, (row.input_ids for row in made.rows))
    say(_size(model))
    trainer = DistillTrainer(
        label_ids=opened.template.label_ids,
        weights=recipe.losses,
        settings=recipe,
        assess=None if dev is None else partial(_assess, folder, dev, opened.template),
        model=model,
        args=settings,
        data_collator=collator(tokenizer.pad_token_id, packed=schedule.packing, grouped=grouped),
        train_dataset=Dataset.from_list([{**made.rows[index]._asdict(), "batch": batch} for index, batch in arranged]),
        # Trainer wants to see one; what is measured goes through `assess`.
        eval_dataset=None if dev is None else Dataset.from_list([{"query": e.query} for e in dev.examples]),
        callbacks=[reporter, *([EarlyStoppingCallback(patience)] if patience else [])],
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _size(model: Any) -> str:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{sum(p.numel() for p in model.parameters()):,} parameters, {trained:,} of them trained"


def _assess(folder: Path, dev: DevSet, template: Template, model: Any, step: int) -> dict[str, float]:
    found = assess(model, template, dev, step)
    if is_main():
        found.write(folder / "evaluation")
    return found.measures


def _finish(recipe: Recipe, folder: Path, trainer: DistillTrainer, opened: Opened, made: Rows, seconds: float) -> Path:
    best = trainer.state.best_model_checkpoint
    log = {
        "seconds_this_call": round(seconds),
        "steps": trainer.state.global_step,
        "records": len(made.rows),
        "dropped": made.drops.counts,
        "best_step": trainer.state.best_global_step if best else None,
        "history": trainer.state.log_history,
    }
    result = folder / "checkpoint"
    whole = _whole(recipe, trainer, opened)
    if not is_main():
        return result
    text = dump_recipe(recipe)
    plain = merged(whole, recipe, opened.base)
    Checkpoint.save(result, model=plain, template=opened.template, name=recipe.name, recipe=text)
    (folder / "log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    page = write_report(folder, recipe, log, Assessment.read_all(folder / "evaluation"))
    say(f"wrote {result}{f', the best of those measured ({Path(best).name}),' if best else ''} and {page}")
    return result


def _whole(recipe: Recipe, trainer: DistillTrainer, opened: Opened) -> Any:
    """The trained model with all its weights in this process; what sharded processes hold is put together."""
    if not trainer.is_fsdp_enabled:
        return trainer.model
    weights = trainer.accelerator.get_state_dict(trainer.model)  # all processes take part, the first one gets it
    if not is_main():
        return None
    model = make_model(recipe, opened.template, opened.base)
    model.load_state_dict(weights)
    return model


def _guard(recipe: Recipe, folder: Path, resume: bool) -> None:
    """A folder belongs to one recipe: states of another must not be continued."""
    stored = folder / "recipe.yaml"
    if resume and stored.is_file() and _last_state(folder) and not _same(stored, recipe):
        raise RecipeError(
            f"{folder} holds a run of a different recipe: pass --fresh to start over, or --output elsewhere"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        for old in (folder / "evaluation").glob("step-*.json"):
            old.unlink()
    stored.write_text(dump_recipe(recipe), encoding="utf-8")


def _same(stored: Path, recipe: Recipe) -> bool:
    """Compared as read: settings that an older version did not have yet count as their defaults."""
    try:
        return load_recipe(stored) == recipe
    except RecipeError:
        return False


def _last_state(folder: Path) -> str | None:
    states = folder.glob("state/checkpoint-*/trainer_state.json")  # written last: its presence means a whole state
    steps = sorted(int(path.parent.name.rpartition("-")[2]) for path in states)
    return str(folder / "state" / f"checkpoint-{steps[-1]}") if steps else None
