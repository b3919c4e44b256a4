"""recipe -> checkpoint: data, model, TRL's `SFTTrainer` with the distillation term, save.

train(recipe) : load_recipe -> records -> rows -> model -> DistillTrainer.train (resumable) -> Checkpoint.save
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from trl import SFTConfig, SFTTrainer

from prism.checkpoint import Checkpoint
from prism.data.build import build
from prism.data.records import read_examples
from prism.engines.hf import choose_dtype
from prism.errors import DataError, RecipeError
from prism.template import Template, TemplateSpec, load_spec
from prism.training.dataset import IGNORED, Drops, collator, order, order_by_query, rows
from prism.training.losses import (
    listwise_kl,
    logit_mse,
    margin_mse,
    score_cross_entropy,
    score_mse,
    token_cross_entropy,
)
from prism.training.optimizer import build_optimizer
from prism.training.recipe import Lora, Losses, Recipe, dump_recipe, load_recipe
from prism.training.scratch import new_model, train_tokenizer
from prism.types import Example

_CONSOLE = Console(stderr=True)


class DistillTrainer(SFTTrainer):  # type: ignore[misc]  # trl ships no types
    """TRL's `SFTTrainer` with Prism's loss: distillation on the label logits, cross-entropy on the written part.

    `SFTTrainer` reads its loss from a fused head, and asking it for outputs runs a second pass without gradient: a term
    on those logits trains nothing, silently. So the last hidden states are caught by a hook on the body in the one
    forward pass, and both terms are computed from the rows of the output embedding they need.
    """

    def __init__(self, *, label_ids: tuple[int, int], weights: Losses, settings: Recipe, **kwargs: Any) -> None:
        self._label_ids = list(label_ids)
        self._weights = weights
        self._recipe = settings
        self._hidden: Tensor | None = None
        self._terms: defaultdict[str, list[float]] = defaultdict(list)
        super().__init__(**kwargs)
        # Trainer then counts the targets of a whole optimizer step for us, and leaves the division to us.
        self.model_accepts_loss_kwargs = True
        body(self.model).register_forward_hook(self._catch)

    def _catch(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        if self.optimizer is None:  # type: ignore[has-type]  # Trainer's constructor has set it
            self.optimizer = build_optimizer(model or self.model, self._recipe.optimizer)
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Weighted sum of the recipe's terms over one batch, as its share of the optimizer step.

        Means are over the whole step, however its rows fall into batches: row terms by equal batch sizes, the written
        part by `num_items_in_batch`, the number of its targets in the step.
        """
        outputs = model(
            # No mask: rows are padded on the right, where a causal model's real positions never look.
            input_ids=inputs["input_ids"],
            use_cache=False,
            logits_to_keep=1,
        )
        hidden_BTH, self._hidden = self._hidden, None
        assert hidden_BTH is not None  # the hook ran in this very forward
        terms = loss_terms(hidden_BTH, output_rows(self.model), inputs, self._label_ids)
        batches = getattr(self, "current_gradient_accumulation_steps", 1)  # set by Trainer once a step begins
        shares = dict.fromkeys(terms, 1.0 / batches if self.model.training else 1.0)
        if num_items_in_batch is not None:
            shares["sft"] = int((inputs["labels"] != IGNORED).sum()) / max(1, int(num_items_in_batch))
        loss = sum(getattr(self._weights, name) * shares[name] * term for name, term in terms.items())
        for name, term in terms.items():
            self._terms[name].append(term.item())
        self._terms["tokens"].append(float(inputs["attention_mask"].sum()))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds each term's mean since the last report, unweighted."""
        terms = {name: sum(values) / len(values) for name, values in self._terms.items() if name != "tokens" and values}
        tokens = sum(self._terms["tokens"])
        self._terms.clear()
        super().log({**logs, **terms, **({"tokens": tokens} if terms else {})}, start_time)


def loss_terms(
    hidden_BTH: Tensor, head_VH: Tensor, inputs: dict[str, Tensor], label_ids: list[int]
) -> dict[str, Tensor]:
    """The unweighted terms of one batch, each a differentiable scalar."""
    teacher_B = inputs["teacher_scores"]
    rows_B = torch.arange(len(teacher_B), device=teacher_B.device)
    distilled = ~teacher_B.isnan()
    score_hidden_BH = hidden_BTH[rows_B, inputs["score_positions"]]
    label_logits_B2 = score_hidden_BH.float() @ head_VH[label_ids].float().T
    student, teacher, query = label_logits_B2[distilled], teacher_B[distilled], inputs["queries"][distilled]
    terms = {
        "distill": score_mse(student, teacher),
        "distill_ce": score_cross_entropy(student, teacher),
        "distill_logit": logit_mse(student, teacher),
        "margin": margin_mse(student, teacher, query),
        "listwise": listwise_kl(student, teacher, query),
    }
    for name, key in (("sft", "labels"), ("lm", "lm_labels")):
        targets_BT = inputs[key][:, 1:]
        wanted = targets_BT != IGNORED
        terms[name] = token_cross_entropy(hidden_BTH[:, :-1][wanted], head_VH, targets_BT[wanted])
    return terms


def body(model: Any) -> nn.Module:
    """The module whose output is the last hidden state, under whatever wraps it (LoRA)."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.base_model  # type: ignore[no-any-return]


def output_rows(model: Any) -> Tensor:
    """The output embedding [V, H]."""
    return model.get_output_embeddings().weight  # type: ignore[no-any-return]


# --- the run ---------------------------------------------------------------------------------------------------------


def train(
    recipe_path: Path, *, overrides: list[str] | None = None, resume: bool = True, output: Path | None = None
) -> Path:
    """Run a recipe to its end and return the folder of the finished checkpoint.

    Everything goes under the recipe's output folder: `data/` (records), `state/` (resumable training states),
    `checkpoint/` (the result). With `resume`, a run that was interrupted continues from its last state, on the same
    batches, to the same weights. Raises RecipeError or DataError before any weight loads when the input is wrong.
    """
    recipe = load_recipe(recipe_path, overrides)
    folder = output or recipe.folder
    _guard(recipe, folder, resume)
    started = time.time()
    tokenizer, model, template = _model(recipe, folder)
    dataset, drops = _dataset(recipe, folder, template)
    trainer = DistillTrainer(
        label_ids=template.label_ids,
        weights=recipe.losses,
        settings=recipe,
        model=model,
        args=_arguments(recipe, folder),
        data_collator=collator(tokenizer.pad_token_id),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=_last_state(folder) if resume else None)
    seconds = time.time() - started
    log = {
        "seconds_this_call": round(seconds),
        "steps": trainer.state.global_step,
        "records": len(dataset),
        "dropped": drops.counts,
        "history": trainer.state.log_history,
    }
    result = folder / "checkpoint"
    Checkpoint.save(result, model=_merged(trainer.model), template=template, name=recipe.name, recipe=dump_recipe(recipe))
    (folder / "log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    _CONSOLE.print(f"wrote {result}", highlight=False, markup=False)
    return result


def _guard(recipe: Recipe, folder: Path, resume: bool) -> None:
    """A folder belongs to one recipe: states of another must not be continued."""
    stored = folder / "recipe.yaml"
    text = dump_recipe(recipe)
    if resume and stored.is_file() and stored.read_text(encoding="utf-8") != text and _last_state(folder):
        raise RecipeError(
            f"{folder} holds a run of a different recipe: pass --fresh to start over, or --output elsewhere"
        )
    folder.mkdir(parents=True, exist_ok=True)
    stored.write_text(text, encoding="utf-8")


def _last_state(folder: Path) -> str | None:
    states = folder.glob("state/checkpoint-*/trainer_state.json")  # written last: its presence means a whole state
    steps = sorted(int(path.parent.name.rpartition("-")[2]) for path in states)
    return str(folder / "state" / f"checkpoint-{steps[-1]}") if steps else None


def _records(recipe: Recipe, folder: Path) -> Iterator[Example]:
    if recipe.data.pairs is not None:
        build(recipe.data.pairs, folder / "data", recipe.seed, _say)
        yield from read_examples(folder / "data" / "train.jsonl")
    for path in recipe.data.files:
        yield from read_examples(path)


def _say(text: str) -> None:
    _CONSOLE.print(text, highlight=False, markup=False)


def _model(recipe: Recipe, folder: Path) -> tuple[Any, Any, Template]:
    from transformers import set_seed

    set_seed(recipe.seed)
    if recipe.model.base is not None:
        base = Checkpoint.load(
            recipe.model.base, template=recipe.model.template, trust_remote_code=recipe.model.trust_remote_code
        )
        model = base.load_model(dtype="float32").to(_dtype(recipe))
        model.set_attn_implementation(recipe.schedule.attention)
        if recipe.model.lora is not None:
            model = _adapted(model, recipe.model.lora)
        return base.tokenizer, model, Template(_limited(base.template.spec, recipe), base.tokenizer)
    assert recipe.model.scratch is not None  # the recipe's validator saw to it
    spec = _limited(load_spec(recipe.model.template or "prism"), recipe)
    tokenizer = _tokenizer(recipe, folder, spec)
    template = Template(spec, tokenizer)
    model = new_model(recipe.model.scratch, template).to(_dtype(recipe))
    model.set_attn_implementation(recipe.schedule.attention)
    _say(f"new model: {sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tokenizer):,}")
    return tokenizer, model, template


def _adapted(model: Any, lora: Lora) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise RecipeError(f"model.lora.targets {lora.targets!r}: {error}") from error


def _merged(model: Any) -> Any:
    """The plain model: adapters are folded into their weights in fp32, where nothing of them is rounded away."""
    return model.float().merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _limited(spec: TemplateSpec, recipe: Recipe) -> TemplateSpec:
    limits = {name: getattr(recipe.model, name) for name in ("max_prompt_tokens", "max_written_tokens")}
    return spec.model_copy(update={name: limit for name, limit in limits.items() if limit is not None})


def _dtype(recipe: Recipe) -> torch.dtype:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if recipe.schedule.bf16 is None:
        return choose_dtype(device, "auto")
    return torch.bfloat16 if recipe.schedule.bf16 else torch.float32


def _tokenizer(recipe: Recipe, folder: Path, spec: TemplateSpec) -> Any:
    """Trained once per run, so that a resumed run has the same one."""
    from transformers import AutoTokenizer

    path = folder / "tokenizer"
    if not (path / "tokenizer.json").is_file():
        assert recipe.model.scratch is not None
        texts = (f"{e.query}\n{e.title or ''}\n{e.document}" for e in _records(recipe, folder) if e.verdict == "yes")
        train_tokenizer(texts, spec, recipe.model.scratch.vocab_size).save_pretrained(path)
    return AutoTokenizer.from_pretrained(path)


def _dataset(recipe: Recipe, folder: Path, template: Template) -> tuple[Any, Drops]:
    from datasets import Dataset

    drops = Drops()
    data = recipe.data
    made = rows(
        _records(recipe, folder),
        template,
        max_tokens=data.max_tokens,
        lm_share=data.lm_share,
        seed=recipe.seed,
        drops=drops,
    )
    table = [row._asdict() for row in made]
    for reason, count in drops.counts.items():
        _say(f"dropped {count:,} records: {reason}")
    for line in drops.named:
        _say(f"  {line}")
    if not table:
        raise DataError("no training records are left: see the reasons above")
    lengths = [len(row["input_ids"]) for row in table]
    _say(f"{len(table):,} records, {sum(lengths):,} tokens an epoch, longest {max(lengths):,}")
    schedule = recipe.schedule
    if recipe.losses.by_query:
        arranged = order_by_query([row["query"] for row in table], shuffle=schedule.shuffle, seed=recipe.seed)
    else:
        arranged = order(
            lengths, schedule.batch_size, schedule.accumulation, shuffle=schedule.shuffle, seed=recipe.seed
        )
    return Dataset.from_list([table[i] for i in arranged]), drops


def _arguments(recipe: Recipe, folder: Path) -> SFTConfig:
    schedule, optimizer = recipe.schedule, recipe.optimizer
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return SFTConfig(
        output_dir=str(folder / "state"),
        num_train_epochs=schedule.epochs,
        max_steps=schedule.max_steps,
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.accumulation,
        gradient_checkpointing=schedule.gradient_checkpointing,
        max_grad_norm=optimizer.max_grad_norm,
        learning_rate=optimizer.lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": optimizer.min_lr_share},
        warmup_steps=optimizer.warmup_steps,
        bf16=False,  # no autocast: the model itself is bf16, the optimizer keeps fp32 copies
        use_cpu=device == "cpu",
        train_sampling_strategy="sequential",  # `dataset.order` has decided
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        packing=False,
        max_length=None,
        save_steps=schedule.save_steps,
        save_total_limit=schedule.keep_checkpoints,
        logging_steps=schedule.log_steps,
        logging_nan_inf_filter=False,
        report_to="none",
        seed=recipe.seed,
        data_seed=recipe.seed,
        dataloader_pin_memory=device == "cuda",
    )
