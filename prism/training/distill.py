"""TRL's `SFTTrainer` with Prism's loss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from trl import SFTTrainer

from prism.engines.packed import PACKED
from prism.training.batches import Steps
from prism.training.losses import (
    listwise_kl,
    logit_mse,
    margin_mse,
    score_cross_entropy,
    score_mse,
    token_cross_entropy,
)
from prism.training.optimizer import TimedCosine, build_optimizer
from prism.training.recipe import TERMS, Losses, Recipe
from prism.training.rows import IGNORED

Assess = Callable[[Any, int], dict[str, float]]
"""(model, step) -> measures by name."""
_POINTWISE = {"distill": score_mse, "distill_ce": score_cross_entropy, "distill_logit": logit_mse}
_BY_QUERY = {"margin": margin_mse, "listwise": listwise_kl}


class DistillTrainer(SFTTrainer):  # type: ignore[misc]  # trl ships no types
    """TRL's `SFTTrainer` with Prism's loss: distillation on the label logits, cross-entropy on the written part.

    `SFTTrainer` reads its loss from a fused head, and asking it for outputs runs a second pass without gradient: a term
    on those logits trains nothing, silently. So the last hidden states are caught by a hook on the body in the one
    forward pass, and all terms are computed from the rows of the output embedding they need, before that pass returns:
    weights that are sharded over processes are whole only until then.
    """

    def __init__(
        self,
        *,
        steps: Steps,
        label_ids: tuple[int, int],
        weights: Losses,
        settings: Recipe,
        assess: Assess | None = None,
        **kwargs: Any,
    ) -> None:
        """`steps`: what is trained on. `assess` measures the model whenever the arguments ask for an evaluation."""
        from datasets import Dataset

        self._label_ids = torch.tensor(label_ids, device=kwargs["args"].device)
        self._weights = weights
        self._recipe = settings
        self._assess = assess
        self._hidden: Tensor | None = None
        self._pending: tuple[dict[str, Any], dict[str, float] | None] | None = None
        self._terms: defaultdict[str, Tensor | float] = defaultdict(float)
        trained = [(p, p.data) for p in kwargs["model"].parameters() if p.requires_grad]
        shown = Dataset.from_dict({"labels": [[IGNORED]]})  # `SFTTrainer` takes none but its own kind
        super().__init__(
            train_dataset=shown, eval_dataset=None if assess is None else shown, data_collator=_alone, **kwargs
        )
        self.train_dataset = steps
        for parameter, data in trained:
            if parameter.dtype is not data.dtype:  # adapters beside four bits, which `SFTTrainer` rounds to bf16
                parameter.data = data.to(parameter.device)
        self._parameters: int = self.model.num_parameters(exclude_embeddings=True)
        # Trainer then hands the totals of a whole optimizer step on, and leaves the division to us.
        self.model_accepts_loss_kwargs = True
        body(self.model).register_forward_hook(self._catch)
        self.model.register_forward_hook(self._finish)

    def _catch(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if self._pending is not None:
            self._hidden = output.last_hidden_state

    def _finish(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        """Puts the loss into the outputs: what wraps the model (DDP, FSDP) prepares its backward pass by them."""
        if self._pending is None or self._hidden is None:
            return output
        (inputs, totals), self._pending = self._pending, None
        hidden_BTH, self._hidden = self._hidden, None
        terms = loss_terms(hidden_BTH, output_rows(self.model), inputs, self._label_ids, self._weights)
        shares = self._shares(inputs, totals)
        counted = {name: shares[name] * term for name, term in terms.items()}
        output.loss = sum(getattr(self._weights, name) * term for name, term in counted.items())
        for name, term in counted.items():
            self._terms[name] += term.detach()
        self._terms["tokens"] += inputs["counts"]["tokens"]
        return output

    def _shares(self, inputs: dict[str, Any], totals: dict[str, float] | None) -> dict[str, float]:
        """What a batch counts in its optimizer step, by term. Processes average their gradients."""
        if totals is None:
            return dict.fromkeys(TERMS, 1.0)
        own, processes = inputs["counts"], self.accelerator.num_processes
        return {name: processes * own[name] / totals[name] if totals[name] else 0.0 for name in TERMS}

    def num_examples(self, dataloader: Any) -> int:
        return len(self.train_dataset.rows)

    def get_total_train_batch_size(self, args: Any) -> int:
        return int(self.train_dataset.step_size)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The items of an optimizer step, and how many rows, pairs, queries and targets all processes have in it."""
        samples = list(islice(epoch_iterator, num_batches))
        self._terms["steps"] += 1
        return samples, {name: sum(sample["totals"][name] for sample in samples) for name in TERMS}

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The batches that the rows of a step were cut into; the gradients of processes are joined once."""
        *first, last = inputs["batches"]
        loss = torch.zeros((), device=self.args.device)
        for batch in (*first, last):
            with nullcontext() if batch is last else self.accelerator.no_sync(model):
                loss = loss + super().training_step(model, batch, num_items_in_batch)
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As Trainer counts them; it walks through the whole model for every batch."""
        places = sum(int(batch["input_ids"].numel()) for batch in inputs["batches"])
        return 6 * self._parameters * places

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        if self.optimizer is None:  # type: ignore[has-type]  # Trainer's constructor has set it
            self.optimizer = build_optimizer(model or self.model, self._recipe.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Trainer's own, unless the recipe gives a time: then one that looks at the clock."""
        seconds = self._recipe.schedule.max_seconds
        if seconds is None or self.lr_scheduler is not None:  # type: ignore[has-type]
            return super().create_scheduler(num_training_steps, optimizer)
        optimizer = optimizer or self.optimizer
        timed = TimedCosine(self._recipe.optimizer, num_training_steps, seconds)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [timed] * len(optimizer.param_groups))
        self.add_callback(_TimeLimit(timed))
        return self.lr_scheduler

    def restore(self, state: str) -> None:
        """Weights and figures of a run that had ended when `state` was saved; trains nothing.

        Trainer itself would take a step before it looks whether there are any left.
        """
        from transformers import TrainerState
        from transformers.trainer_utils import align_special_tokens

        align_special_tokens(self.model, self.processing_class)  # as Trainer does when it begins
        self.state = TrainerState.load_from_json(str(Path(state) / "trainer_state.json"))
        self._load_from_checkpoint(state)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Weighted sum of the recipe's terms over one batch, as its share of the optimizer step.

        Means are over the whole step, however its rows fall into batches and processes: `num_items_in_batch` holds what
        each term counts in the step. None: the batch is the step.
        """
        self._pending = inputs, num_items_in_batch
        outputs = model(**body_inputs(self.model, inputs), use_cache=False, logits_to_keep=1)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """`assess` instead of a loss over rows. Draws no random numbers: training goes on as if it had not been."""
        assert self._assess is not None  # asked for by the arguments, which come from the same recipe
        measures = self._assess(self.model, self.state.global_step)
        found = {f"eval_{name}": value for name, value in measures.items()}
        self.log(found)
        control = self.control  # type: ignore[has-type]  # Trainer's constructor has set it
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, found)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds each term's mean since the last report, unweighted."""
        if not self._terms or any(name.startswith("eval_") for name in logs):
            return super().log(logs, start_time)  # type: ignore[no-any-return]
        sums = {name: float(value) for name, value in self._terms.items()}
        self._terms.clear()
        return super().log({**logs, **self._averaged(sums)}, start_time)  # type: ignore[no-any-return]

    def _averaged(self, sums: dict[str, float]) -> dict[str, float]:
        """Sums since the last report, as means over the steps and all processes; tokens as their sum."""
        steps, processes = sums.pop("steps"), self.accelerator.num_processes
        if processes > 1:
            own = torch.tensor(list(sums.values()), device=self.accelerator.device, dtype=torch.float64)
            sums = dict(zip(sums, self.accelerator.reduce(own, "mean").tolist(), strict=True))
        tokens = sums.pop("tokens") * processes
        return {**{name: value / steps for name, value in sums.items()}, "tokens": tokens}


def _alone(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The loader hands items over in lists of one."""
    (item,) = items
    return item


class _TimeLimit(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Ends training, with a state to resume from, when the recipe's time is over."""

    def __init__(self, clock: TimedCosine) -> None:
        self._clock = clock

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._clock.over:
            control.should_training_stop = control.should_save = control.should_log = True


def loss_terms(
    hidden_BTH: Tensor, head_VH: Tensor, inputs: dict[str, Tensor], label_ids: Tensor, weights: Losses
) -> dict[str, Tensor]:
    """The unweighted terms of one batch that count at all, each a differentiable scalar.

    `inputs` is what `batches.collator` makes, `label_ids` a tensor [2] of (yes, no) on the device of the rest.
    """
    wanted = {name for name in TERMS if getattr(weights, name) > 0}
    places = [inputs["score_places"], inputs["target_places"]] if "sft" in wanted else [inputs["score_places"]]
    # One gather for all: its gradient is as large as the hidden states.
    picked_KH = hidden_BTH.flatten(0, 1).index_select(0, torch.cat(places))
    score_hidden_DH, target_hidden_NH = torch.tensor_split(picked_KH, [len(places[0])])
    terms: dict[str, Tensor] = {}
    if wanted != {"sft"}:
        student = score_hidden_DH.float() @ head_VH[label_ids].float().T
        teacher, query = inputs["teacher_scores"], inputs["queries"]
        terms |= {name: loss(student, teacher) for name, loss in _POINTWISE.items() if name in wanted}
        terms |= {name: loss(student, teacher, query) for name, loss in _BY_QUERY.items() if name in wanted}
    if "sft" in wanted:
        terms["sft"] = token_cross_entropy(target_hidden_NH, head_VH, inputs["target_ids"], inputs["target_weights"])
    return terms


def body_inputs(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """What the model is given of a batch. No mask: rows are padded on the right, where a causal model's real positions
    never look, or packed, where each attends to itself alone."""
    inputs = {"input_ids": batch["input_ids"]}
    if "ends" not in batch:
        return inputs
    inputs["position_ids"] = batch["position_ids"]
    if unwrapped(model).config._attn_implementation == PACKED:
        inputs |= {"ends_R1": batch["ends"], "longest": batch["longest"]}
    return inputs


def body(model: Any) -> nn.Module:
    """The module whose output is the last hidden state, under whatever wraps it (LoRA)."""
    return unwrapped(model).base_model  # type: ignore[no-any-return]


def unwrapped(model: Any) -> Any:
    """The causal language model, under whatever wraps it (LoRA); its adapters stay at work."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def output_rows(model: Any) -> Tensor:
    """The output embedding [V, H]."""
    return model.get_output_embeddings().weight  # type: ignore[no-any-return]
