"""recipe -> dataset -> trainer -> checkpoint, each step in a file of its own, which the run does not come back to.

train : load_recipe -> open_template -> make_rows -> steps_of -> make_model -> DistillTrainer -> package
        recipe.py      setup.py         dataset.py   batches.py  model.py      distill.py        packaging.py
"""

from __future__ import annotations

import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from prism.checkpoint import CONFIG_NAME
from prism.errors import RecipeError
from prism.outputs import write_text
from prism.template import Template
from prism.training.batches import Steps, steps_of
from prism.training.dataset import QaBuilder, Tokenized, make_rows
from prism.training.distill import DistillTrainer
from prism.training.evaluate import Assessment, DevSet, assess, read_dev
from prism.training.model import make_model
from prism.training.packaging import package
from prism.training.progress import Reporter, is_main, say
from prism.training.recipe import TERMS, Recipe, dump_recipe, load_recipe
from prism.training.run_report import write_training_report
from prism.training.setup import Opened, arguments, open_template

LOG_NAME = "log.json"


def train(
    recipe_path: Path,
    *,
    overrides: list[str] | None = None,
    resume: bool = True,
    output: Path | None = None,
    build: QaBuilder | None = None,
) -> Path:
    """Run a recipe to its end and return the folder of the finished checkpoint.

    Everything goes under the recipe's output folder: `data/` (records), `rows/` (the same tokenized), `state/`
    (resumable training states), `evaluation/` (what was measured on the way), `checkpoint/` (the result), `report/`,
    `log.json`. With `resume`, an interrupted run continues from its last state, on the same batches, to the same
    weights; a finished one stays as it is. `build` makes what `data.qa` asks for. Raises RecipeError or DataError for
    bad input before any weight loads.
    """
    recipe = load_recipe(recipe_path, overrides)
    folder = output or recipe.folder
    if resume and _finished(recipe, folder):
        say(f"{folder / 'checkpoint'} is finished: nothing was trained. --fresh trains it again, --output elsewhere")
        return folder / "checkpoint"
    settings = arguments(recipe, folder)
    started = time.time()
    with settings.main_process_first(local=False, desc="data"):  # what one process made, the others read
        if is_main():
            _guard(recipe, folder, resume)
        opened = open_template(recipe)
        made = make_rows(recipe, folder, opened.template, build)
        dev = read_dev(recipe, folder)
    steps = steps_of(recipe, made.rows, opened.template.pad_id, settings.world_size)
    with Reporter(Console()) as reporter:
        trainer = _trainer(recipe, folder, settings, opened, steps, dev, reporter)
        state = _last_state(folder) if resume else None
        if dev is not None and state is None:
            _tell_before(_assess(folder, dev, opened.template, trainer.model, 0))
        if state is not None and _ended(state):
            trainer.restore(state)
        else:
            trainer.train(resume_from_checkpoint=state)
    return _finish(recipe, folder, trainer, opened, made, time.time() - started)


# --- before -----------------------------------------------------------------------------------------------------------


def _finished(recipe: Recipe, folder: Path) -> bool:
    """Whether the folder holds the end of this very run: the log is written last."""
    made = (folder / LOG_NAME, folder / "checkpoint" / CONFIG_NAME)
    return all(path.is_file() for path in made) and _same(folder / "recipe.yaml", recipe)


def _guard(recipe: Recipe, folder: Path, resume: bool) -> None:
    """A folder belongs to one recipe: states of another must not be continued."""
    stored = folder / "recipe.yaml"
    if resume and stored.is_file() and _last_state(folder) and not _same(stored, recipe):
        raise RecipeError(
            f"{folder} holds a run of a different recipe: pass --fresh to start over, or --output elsewhere"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOG_NAME).unlink(missing_ok=True)  # until this run has one, it is not finished
    if not resume:  # a state of another run that stayed would be taken for one of this run
        for old in ("evaluation", "state"):
            shutil.rmtree(folder / old, ignore_errors=True)
    write_text(stored, dump_recipe(recipe))


def _same(stored: Path, recipe: Recipe) -> bool:
    """Compared as read: settings that an older version did not have yet count as their defaults."""
    try:
        return load_recipe(stored) == recipe
    except RecipeError:
        return False


# --- training ---------------------------------------------------------------------------------------------------------


def _trainer(
    recipe: Recipe,
    folder: Path,
    settings: Any,
    opened: Opened,
    steps: Steps,
    dev: DevSet | None,
    reporter: Reporter,
) -> DistillTrainer:
    from transformers import EarlyStoppingCallback, PrinterCallback

    patience = recipe.evaluation.patience if recipe.evaluation else None
    model = make_model(recipe, opened.base)
    say(_size(model))
    trainer = DistillTrainer(
        steps=steps,
        label_ids=opened.template.label_ids,
        weights=recipe.losses,
        settings=recipe,
        assess=None if dev is None else partial(_assess, folder, dev, opened.template),
        model=model,
        args=settings,
        callbacks=[reporter, *([EarlyStoppingCallback(patience)] if patience else [])],
        processing_class=opened.template.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _tell_before(measures: dict[str, float]) -> None:
    say(f"before training: {', '.join(f'{name} {value:.4f}' for name, value in measures.items())}")


def _size(model: Any) -> str:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{sum(p.numel() for p in model.parameters()):,} parameters, {trained:,} of them trained"


def _assess(folder: Path, dev: DevSet, template: Template, model: Any, step: int) -> dict[str, float]:
    found = assess(model, template, dev, step)
    if is_main():
        found.write(folder / "evaluation")
    return found.measures


def _last_state(folder: Path) -> str | None:
    states = folder.glob("state/checkpoint-*/trainer_state.json")  # written last: its presence means a whole state
    steps = sorted(int(path.parent.name.rpartition("-")[2]) for path in states)
    return str(folder / "state" / f"checkpoint-{steps[-1]}") if steps else None


def _ended(state: str) -> bool:
    """Whether training was over when a state was saved: all steps done, or stopped early."""
    saved = json.loads((Path(state) / "trainer_state.json").read_bytes())
    control = saved.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    return bool(saved["global_step"] >= saved["max_steps"] or control.get("should_training_stop"))


# --- after ------------------------------------------------------------------------------------------------------------


def _finish(
    recipe: Recipe, folder: Path, trainer: DistillTrainer, opened: Opened, made: Tokenized, seconds: float
) -> Path:
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
    package(result, whole, recipe, opened.base, opened.template, _figures(log))
    page = write_training_report(folder, recipe, log, Assessment.read_all(folder / "evaluation"))
    write_text(folder / LOG_NAME, json.dumps(log, indent=1) + "\n")
    say(f"wrote {result}{f', the best of those measured ({Path(best).name}),' if best else ''} and {page}")
    return result


def _whole(recipe: Recipe, trainer: DistillTrainer, opened: Opened) -> Any:
    """The trained model with all its weights in this process; what sharded processes hold is put together."""
    if not trainer.is_fsdp_enabled:
        return trainer.model
    weights = trainer.accelerator.get_state_dict(trainer.model)  # all processes take part, the first one gets it
    if not is_main():
        return None
    model = make_model(recipe, opened.base)
    model.load_state_dict(weights)
    return model


def _figures(log: dict[str, Any]) -> list[str]:
    """How a run went, for its card."""
    reported = [point for point in log["history"] if "loss" in point]
    if not reported:
        return [f"{log['records']:,} records"]
    first, last = reported[0], reported[-1]
    terms = [f"{name} {first[name]:.4g} -> {last[name]:.4g}" for name in ("loss", *TERMS) if name in last]
    return [f"{log['steps']:,} steps over {log['records']:,} records; {', '.join(terms)}"]
