"""Muon for the matrices inside the layers, AdamW for embeddings and vectors, behind one optimizer interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prism.training.recipe import Optimizer as Settings


class Combined(Optimizer):
    """Several optimizers over disjoint parameters that step together; schedulers see all their groups.

    They work on fp32 copies of the model's parameters: updates too small for a bf16 weight still add up. Without that,
    a pure bf16 run stops learning once its learning rate has decayed.
    """

    def __init__(self, masters: list[tuple[Tensor, Tensor]], parts: list[Optimizer]) -> None:
        self.masters = masters
        """Pairs of (model parameter, its fp32 copy); both the same tensor where the model is fp32 anyway."""
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        # The same dictionaries, not copies: a scheduler that sets `lr` here sets it in the parts.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("closures are not supported: call backward first, then step()")
        for parameter, master in self.masters:
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
        for part in self.parts:
            part.step()
        for parameter, master in self.masters:
            if master is not parameter:
                parameter.copy_(master)
                master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        held = (parameter for group in self.param_groups for parameter in group["params"])
        for parameter in (*(parameter for parameter, _ in self.masters), *held):
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "parts": [part.state_dict() for part in self.parts],
            "masters": [master.detach() for parameter, master in self.masters if master is not parameter],
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        copies = (master for parameter, master in self.masters if master is not parameter)
        for master, stored in zip(copies, state_dict["masters"], strict=True):
            master.copy_(stored)
        self._share()


def _master(parameter: Tensor) -> Tensor:
    return parameter if parameter.dtype is torch.float32 else parameter.detach().float().requires_grad_()


def build_optimizer(model: nn.Module, settings: Settings) -> Combined:
    """The recipe's optimizer. Vectors (norms, biases) and embeddings get no weight decay."""
    masters: list[tuple[Tensor, Tensor]] = [(p, _master(p)) for p in model.parameters() if p.requires_grad]
    copy_of = {id(p): master for p, master in masters}
    trained = [(name, copy_of[id(p)]) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    inside = {id(p) for p in matrices}
    rest = [p for _, p in trained if id(p) not in inside]
    shared: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
    parts: list[Optimizer] = []
    if rest:
        wide, vectors = [p for p in rest if p.ndim >= 2], [p for p in rest if p.ndim < 2]
        groups: list[dict[str, Any]] = [{"params": wide}] if wide else []
        groups += [{"params": vectors, "lr": settings.vector_lr or settings.lr}] if vectors else []
        parts.append(torch.optim.AdamW(groups, weight_decay=0.0, **shared))
    if matrices and settings.name == "muon":
        # Muon: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
        parts.append(torch.optim.Muon(matrices, lr=settings.muon_lr, weight_decay=settings.weight_decay))
    elif matrices:
        parts.append(torch.optim.AdamW(matrices, weight_decay=settings.weight_decay, **shared))
    return Combined(masters, parts)
