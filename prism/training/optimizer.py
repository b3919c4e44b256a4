"""Muon for the matrices inside the layers, AdamW for embeddings and vectors, behind one optimizer interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from prism.training.recipe import Optimizer as Settings


class Combined(Optimizer):
    """Several optimizers over disjoint parameters that step together; schedulers see all their groups."""

    def __init__(self, parts: list[Optimizer]) -> None:
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
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()


def build_optimizer(model: nn.Module, settings: Settings) -> Optimizer:
    """The recipe's optimizer. Vectors (norms, biases) and embeddings get no weight decay."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    inside = {id(p) for p in matrices}
    rest = [p for _, p in trained if id(p) not in inside]
    if settings.name == "muon":
        # Muon: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
        muon = torch.optim.Muon(matrices, lr=settings.muon_lr, weight_decay=settings.weight_decay)
        adamw = torch.optim.AdamW(rest, lr=settings.lr, betas=settings.betas, weight_decay=0.0)
        return Combined([muon, adamw])
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=settings.betas)
