"""Recipes: one YAML file says everything about one training run. Unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from prism.devices import choose_dtype
from prism.errors import RecipeError
from prism.files.qa_settings import Qa
from prism.files.shipped import read_yaml, shipped
from prism.records import Settings, first_problem

if TYPE_CHECKING:
    import torch


class Lora(Settings):
    """Low-rank adaptation (Hu et al. 2021): small matrices beside the frozen ones, merged into them at the end."""

    rank: int = Field(default=64, ge=1)
    alpha: int = Field(default=128, ge=1)
    """The update counts alpha / rank times."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: str | tuple[str, ...] = "all-linear"
    """Module names; `all-linear`: every projection of attention (full and linear) and MLP, not the output layer."""
    save: Literal["merged", "adapter"] = "merged"
    """What the finished checkpoint holds: the whole model with the adapters folded in, or the adapters alone, in peft's
    files, with the base named: small, and of use only to who has the base."""
    start: str | None = None
    """Adapter to go on from (a folder, or `mini`): of the same base, rank, alpha and targets. Default: a new one."""
    quantize: Literal["nf4"] | None = None
    """Keep the frozen projections in four bits (QLoRA): a third of the memory, slower; where bitsandbytes runs."""


class Model(Settings):
    """What is trained: an existing checkpoint, all of it or adapters beside it."""

    base: str
    """Directory, hub id, or a name that `prism pull` knows."""
    template: str | None = None
    """Built-in name or file; default: the base's own template."""
    max_prompt_tokens: int | None = Field(default=None, ge=16)
    """Where the finished checkpoint cuts documents; default: the template's limit."""
    max_written_tokens: int | None = Field(default=None, ge=8)
    """How much it writes at most for one document; default: the template's limit."""
    trust_remote_code: bool = False
    lora: Lora | None = None
    """Default: every weight is trained."""


class Data(Settings):
    """Where records come from: JSONL files, or question-passage sets that records are made of."""

    files: tuple[Path, ...] = ()
    qa: Qa | None = None
    """Records made by `prism.data.qa`, once per run."""
    max_tokens: int = Field(default=2048, ge=64)
    """Longest training sequence. A record whose target does not fit is dropped, never cut."""

    @model_validator(mode="after")
    def _some(self) -> Data:
        if bool(self.files) == (self.qa is not None):
            raise ValueError("give either `files` or `qa`")
        return self


class PartWeights(Settings):
    """What the cross-entropy of each token counts in the `sft` term, by what the token is there for.

    The term is the weighted mean over the tokens of a step: doubling all weights changes nothing.
    """

    label: float = Field(default=1.0, ge=0.0)
    """`yes` or `no`, where no teacher scores it."""
    contribution: float = Field(default=1.0, ge=0.0)
    evidence: float = Field(default=1.0, ge=0.0)
    tags: float = Field(default=1.0, ge=0.0)
    """The tags around the texts, and the end of the turn."""
    label_with_teacher: bool = False
    """The label counts where a teacher scores it too. It then fights a soft teacher: scores are drawn to 0 and 1."""

    @model_validator(mode="after")
    def _some(self) -> PartWeights:
        if not (self.label or self.contribution or self.evidence or self.tags):
            raise ValueError("every part counts 0: set losses.sft to 0 instead")
        return self


class Losses(Settings):
    """Weights of the terms of the training loss (`prism.training.losses`)."""

    distill: float = Field(default=20.0, ge=0.0)
    """Squared error between score and teacher score."""
    distill_ce: float = Field(default=0.0, ge=0.0)
    """Soft cross-entropy between them: for models that start from nothing."""
    distill_logit: float = Field(default=0.0, ge=0.0)
    """Squared error between their logits."""
    margin: float = Field(default=0.0, ge=0.0)
    """Squared error between differences of logits, over the documents of a query."""
    listwise: float = Field(default=0.0, ge=0.0)
    """Kullback-Leibler divergence between rankings, over the documents of a query."""
    sft: float = Field(default=1.0, ge=0.0)
    """Cross-entropy on the written part, and on the label where no teacher scores it."""
    sft_parts: PartWeights = PartWeights()

    @model_validator(mode="after")
    def _some(self) -> Losses:
        if not any(getattr(self, term) for term in TERMS):
            raise ValueError("every weight is 0: nothing would be trained")
        return self

    @property
    def by_query(self) -> bool:
        """Whether the documents of a query must be trained on together."""
        return self.margin > 0 or self.listwise > 0


TERMS = ("distill", "distill_ce", "distill_logit", "margin", "listwise", "sft")
"""The terms a training loss can have."""


class Optimizer(Settings):
    """AdamW with a cosine schedule."""

    lr: float = Field(default=1e-5, gt=0.0)
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Of matrices; embeddings and vectors (norms, biases) have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0.0)
    warmup_steps: int = Field(default=100, ge=0)
    min_lr_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """The cosine ends at this share of the peak."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)

    @model_validator(mode="after")
    def _shares(self) -> Optimizer:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas are shares of at least 0 and under 1, got {list(self.betas)}")
        return self


class Schedule(Settings):
    """Batches, passes and how often to save."""

    epochs: float = Field(default=1.0, gt=0.0)
    max_steps: int = Field(default=-1, ge=-1)
    """Optimizer steps in all; -1: as many as the epochs take."""
    max_seconds: float | None = Field(default=None, gt=0.0)
    """Training and the cosine end after so many seconds, or with the steps where that is sooner. Where a clock decides,
    two runs are alike and not equal, and so is a resumed one."""
    batch_size: int = Field(default=8, ge=1)
    """Rows of one process computed at once."""
    accumulation: int = Field(default=1, ge=1)
    """So many batches make an optimizer step."""
    tokens_per_batch: int | None = Field(default=None, ge=64)
    """The batch_size x accumulation rows of a step are cut into batches of similar length by this budget instead: rows
    x longest row, or with `packing` the sum of the rows. Changes speed and memory, not the gradient."""
    shuffle: bool = True
    """Off keeps the order of the data; batches are grouped by length either way."""
    save_steps: int = Field(default=200, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    log_steps: int = Field(default=20, ge=1)
    bf16: bool | None = None
    """bf16 weights and arithmetic with fp32 copies in the optimizer; default: where the hardware has it."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Which attention transformers runs; eager trains faster than sdpa on CPUs at a few hundred tokens."""
    gradient_checkpointing: bool = False
    """Computes activations twice instead of keeping them: less memory, a third more arithmetic."""
    packing: bool = False
    """The rows of a batch in one sequence without padding, each attending to itself alone; for models of plain
    attention: Llama, Qwen2, Qwen3. With flash_attention_2 by flash-attn, else by torch's own kernels."""
    workers: int | None = Field(default=None, ge=1)
    """Processes that tokenize the records; default: one for each core, where there are enough records."""
    loaders: int | None = Field(default=None, ge=0)
    """Processes that make batches while others are computed; default: none on a CPU, 2 with a GPU. Changes speed, not
    the result."""
    liger: bool = False
    """Liger's kernels: less memory and faster on GPUs, for the models they know."""
    report_to: tuple[str, ...] = ()
    """Where figures go besides log.json: tensorboard, wandb, mlflow, ... as far as installed."""


class Evaluation(Settings):
    """Measuring the model on held-out pairs while it trains."""

    file: Path | None = None
    """Records with verdicts, as in training; default: the dev.jsonl made along with `data.qa`."""
    every_steps: int = Field(default=200, ge=1)
    queries: int = Field(default=50, ge=1)
    """The first so many of the file."""
    written: int = Field(default=16, ge=0)
    """For so many documents labelled yes the model writes contribution and evidence, which are checked."""
    best_by: Literal["ndcg@10", "auc", "calibration_error"] = "ndcg@10"
    keep_best: bool = True
    """The finished checkpoint is the best one measured, not the last."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations in a row without a better one."""


class Recipe(Settings):
    """A whole training run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    output: Path | None = None
    """Default: `runs/<name>`."""
    seed: int = 17
    model: Model
    data: Data
    losses: Losses = Losses()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    evaluation: Evaluation | None = None
    """Default: none; the last state becomes the checkpoint."""

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.schedule.max_steps == 0:
            raise ValueError("schedule.max_steps: 0 trains nothing: give 1 or more, or -1 for whole epochs")
        if self.losses.by_query and self.schedule.batch_size < 2:
            raise ValueError(
                "losses.margin and losses.listwise compare rows of a batch: schedule.batch_size must be 2 or more"
            )
        measured = self.evaluation
        if measured is None:
            return self
        if measured.file is None and self.data.qa is None:
            raise ValueError("evaluation.file is missing: name a file of records that are not trained on")
        if measured.keep_best and self.schedule.save_steps % measured.every_steps:
            raise ValueError(
                f"evaluation.keep_best needs saved states that were measured: schedule.save_steps"
                f" ({self.schedule.save_steps}) must be a multiple of evaluation.every_steps ({measured.every_steps})"
            )
        return self

    @property
    def folder(self) -> Path:
        return self.output or Path("runs") / self.name

    @property
    def dtype(self) -> torch.dtype:
        """What the model is trained in, on this machine."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        bf16 = self.schedule.bf16
        return choose_dtype(device, "auto" if bf16 is None else "bfloat16" if bf16 else "float32")


_FROM_NOTHING = "models are not trained from nothing any more: name an existing one as model.base"
_ONLY_NEW_MODELS = "it was for models trained from nothing: leave it out"
_REMOVED = {
    "model.scratch": _FROM_NOTHING,
    "model.no_repeat_ngram": _ONLY_NEW_MODELS,
    "model.evidence_quotes": "where evidence comes from is asked for when reranking: leave it out",
    "model.restores_case": _ONLY_NEW_MODELS,
    "data.pairs": "records are made of question-passage sets now: see data.qa in recipes/mini.yaml",
    "data.lm_share": _ONLY_NEW_MODELS,
    "losses.lm": _ONLY_NEW_MODELS,
    "optimizer.name": "AdamW is the only optimizer: leave it out",
    "optimizer.muon_lr": "AdamW is the only optimizer: leave it out",
    "optimizer.vector_lr": _ONLY_NEW_MODELS,
}
"""Keys of older recipes, and what to do instead."""


def _refuse_removed(raw: dict[str, Any], path: Path) -> None:
    for key, advice in _REMOVED.items():
        section, _, name = key.partition(".")
        if isinstance(raw.get(section), dict) and name in raw[section]:
            raise RecipeError(f"{path}: {key} is no key any more: {advice}")


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe, follow its `extends:` (a path relative to it), apply `a.b=c` overrides, validate.

    `recipes/NAME.yaml` is found wherever Prism is installed.

    Raises RecipeError: one line naming the file, the key and what was expected.
    """
    path = shipped(path)
    raw = _read(path, ())
    for override in overrides or ():
        _apply(raw, override)
    _refuse_removed(raw, path)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{path}: {first_problem(error)}") from error


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise RecipeError(f"{path}: `extends` goes round in a circle")
    raw = read_yaml(path, "recipe", "recipes/mini.yaml", RecipeError)
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    return _merge(_read(path.parent / str(parent), (*seen, path.resolve())), raw)


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r}: expected key.path=value, such as optimizer.lr=2e-5")
    *path, last = key.split(".")
    node = raw
    for part in path:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise RecipeError(f"override {override!r}: {part!r} holds a value, not keys")
    node[last] = yaml.safe_load(value)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return str(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
