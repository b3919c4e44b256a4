"""AdamW on fp32 copies of the weights it trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prism.training.recipe import Optimizer as Settings


class MasterAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization") for weights of any dtype.

    It works on fp32 copies of the model's parameters: updates too small for a bf16 weight still add up. Without that, a
    pure bf16 run stops learning once its learning rate has decayed.
    """

    def __init__(self, masters: list[tuple[Tensor, Tensor]], inner: torch.optim.AdamW) -> None:
        self.masters = masters
        """Pairs of (model parameter, its fp32 copy); both the same tensor where the model is fp32 anyway."""
        self.inner = inner
        super().__init__(inner.param_groups, {})
        self.param_groups = inner.param_groups  # not copies: a scheduler that sets `lr` here sets it there

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("closures are not supported: call backward first, then step()")
        copied = [(parameter, master) for parameter, master in self.masters if master is not parameter]
        moved = [(parameter.grad, master) for parameter, master in copied if parameter.grad is not None]
        if moved:
            gradients = [torch.empty_like(master) for _, master in moved]
            torch._foreach_copy_(gradients, [gradient for gradient, _ in moved])
            for gradient, (_, master) in zip(gradients, moved, strict=True):
                master.grad = gradient
        self.inner.step()
        if copied:
            torch._foreach_copy_([parameter for parameter, _ in copied], [master for _, master in copied])
        for _, master in copied:
            master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter, master in self.masters:
            parameter.grad = master.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "adamw": self.inner.state_dict(),
            "masters": [master.detach() for parameter, master in self.masters if master is not parameter],
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict["adamw"])
        copies = (master for parameter, master in self.masters if master is not parameter)
        for master, stored in zip(copies, state_dict["masters"], strict=True):
            master.copy_(stored)
        self.param_groups = self.inner.param_groups


def _master(parameter: Tensor) -> Tensor:
    return parameter if parameter.dtype is torch.float32 else parameter.detach().float().requires_grad_()


def build_optimizer(model: nn.Module, settings: Settings) -> MasterAdamW:
    """The recipe's optimizer. Vectors (norms, biases) and embeddings get no weight decay."""
    trained = [(name, p, _master(p)) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [m for name, _, m in trained if m.ndim == 2 and "embed" not in name and "lm_head" not in name]
    inside = {id(master) for master in decayed}
    groups: list[dict[str, Any]] = [
        {"params": [m for _, _, m in trained if id(m) not in inside], "weight_decay": 0.0},
        {"params": decayed, "weight_decay": settings.weight_decay},
    ]
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=all(master.is_cuda for _, _, master in trained) or None,
    )
    return MasterAdamW([(parameter, master) for _, parameter, master in trained], adamw)


class TimedCosine:
    """Share of the peak learning rate by step: linear warm-up, then a cosine over the time or the steps, whichever run
    out sooner, down to `floor`.

    The time spent is part of a saved state: a run that was killed goes on with what was left.
    """

    __slots__ = ("__dict__", "_since")  # a scheduler saves what is in `__dict__`; another process has another clock

    def __init__(
        self, settings: Settings, steps: int, seconds: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._since = now, now()
        self.spent_s, self.seconds, self.steps = 0.0, seconds, steps
        self.warmup, self.floor = settings.warmup_steps, settings.min_lr_share

    def __call__(self, step: int) -> float:
        now, last = self._since
        self._since = now, now()
        self.spent_s += self._since[1] - last
        if step < self.warmup:
            return (step + 1.0) / self.warmup
        done = max((step - self.warmup) / max(1, self.steps - self.warmup), self.spent_s / self.seconds)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    @property
    def over(self) -> bool:
        """Whether the time was up at the last step."""
        return self.spent_s >= self.seconds
