"""Linear layers that multiply in fewer bits than float32, for CPUs; everything between them is float32.

bfloat16: only what is multiplied is rounded. In a model that is bfloat16 throughout the residual stream loses small
updates, and scores stray several times as far from float32.

int8: one scale per token for the inputs, one per output for the weights. Two things keep scores close to float32. A
few inputs of a layer are many times larger than all others, and always the same ones: beside them the others would keep
two or three bits. Those columns are multiplied as they are (Dettmers et al. 2022, "LLM.int8()"). Inputs that are uneven
even so, those of the projections back from the wide layers, are written as two integers, the second for what the first
leaves:

    x = s * (a + b / 254)        y[t] = s[t] * (a[t] @ Q + b[t] @ Q / 254) * scale + x[t, columns] @ W[columns]

Both are learnt by reading a few prompts once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_LEVELS = 127
_EXACT_SHARE = 18
"""Of so many inputs one is multiplied in float32."""
_UNEVEN = 6.5
"""A token's largest input over the root of their mean square; of normal numbers it is 3 to 4."""
_ROWS = 1024
"""Rows computed at once: sums of 32 bits stay in the caches."""
_TINY = 1e-12


class Bf16Linear(nn.Module):
    """A linear layer whose products are bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight.detach().bfloat16()
        self.bias = None if linear.bias is None else linear.bias.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.bfloat16(), self.weight, self.bias).float()


class _Int8Group:
    """Linear layers that read the same input, as one product."""

    def __init__(self, linears: Sequence[nn.Linear], inputs_TK: Tensor) -> None:
        self._widths = [linear.out_features for linear in linears]
        weight_NK = torch.cat([linear.weight.detach().float() for linear in linears])
        K = weight_NK.shape[1]
        self._columns = inputs_TK.abs().amax(0).topk(max(1, K // _EXACT_SHARE)).indices.sort().values
        self._others_K = torch.ones(K).index_fill_(0, self._columns, 0.0)
        self._exact_CN = weight_NK[:, self._columns].T.contiguous()
        weight_NK = weight_NK * self._others_K
        self._scale_N = weight_NK.abs().amax(1).clamp_(min=_TINY) / _LEVELS
        self._quantized_KN = (weight_NK / self._scale_N[:, None]).round_().to(torch.int8).T
        self._twice = _crest(inputs_TK * self._others_K) > _UNEVEN
        self._last: tuple[Tensor, tuple[Tensor, ...]] | None = None
        self._given = 0

    def product(self, x: Tensor, member: int) -> Tensor:
        """What the layer at `member` gives for `x`; computed for all members when the first of them asks."""
        if self._last is None or self._last[0] is not x:
            self._last, self._given = (x, torch.split(self._compute(x), self._widths, -1)), 0
        out = self._last[1][member]
        self._given += 1
        if self._given == len(self._widths):
            self._last = None  # nothing is held longer than needed
        return out

    def _compute(self, x: Tensor) -> Tensor:
        x_TK = x.reshape(-1, x.shape[-1])
        out_TN = x_TK.new_empty(len(x_TK), len(self._scale_N))
        for start in range(0, len(x_TK), _ROWS):
            self._multiply(x_TK[start : start + _ROWS], out_TN[start : start + _ROWS])
        return out_TN.view(*x.shape[:-1], -1)

    def _multiply(self, x_TK: Tensor, out_TN: Tensor) -> None:
        scaled_TK = x_TK * self._others_K
        scale_T1 = scaled_TK.abs().amax(1, keepdim=True).clamp_(min=_TINY).div_(_LEVELS)
        whole_TK = scaled_TK.div_(scale_T1).round()
        out_TN.copy_(torch._int_mm(whole_TK.to(torch.int8), self._quantized_KN))
        if self._twice:
            part_TK = scaled_TK.sub_(whole_TK).mul_(2 * _LEVELS).round_()
            out_TN.add_(torch._int_mm(part_TK.to(torch.int8), self._quantized_KN), alpha=0.5 / _LEVELS)
        out_TN.mul_(scale_T1).mul_(self._scale_N)
        out_TN.addmm_(x_TK.index_select(1, self._columns), self._exact_CN)


class Int8Linear(nn.Module):
    """One layer of a group."""

    def __init__(self, group: _Int8Group, member: int, bias: Tensor | None) -> None:
        super().__init__()
        self._group, self._member = group, member
        self.bias = None if bias is None else bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        out = self._group.product(x, self._member)
        return out if self.bias is None else out + self.bias


@torch.inference_mode()
def arrange(model: Any, dtype: torch.dtype, prompts: Sequence[Sequence[int]]) -> None:
    """On a CPU: the linear layers of the model's body multiply in `dtype`, all else becomes float32. In place.

    `prompts`: token ids that int8 reads to learn what the inputs of the layers are like. Other devices and float32 stay
    as they are.
    """
    if model.device.type != "cpu" or dtype not in (torch.bfloat16, torch.int8):
        return
    body = model.get_decoder()
    linears = {name: module for name, module in body.named_modules() if isinstance(module, nn.Linear)}
    swaps = _integers(body, linears, prompts) if dtype is torch.int8 else _bfloat16s(linears)
    for name, swap in swaps.items():
        body.set_submodule(name, swap)
    model.float()


def _bfloat16s(linears: dict[str, nn.Linear]) -> dict[str, nn.Module]:
    return {name: Bf16Linear(linear) for name, linear in linears.items()}


def _integers(body: Any, linears: dict[str, nn.Linear], prompts: Sequence[Sequence[int]]) -> dict[str, nn.Module]:
    """Layers that were not reached by any prompt stay as they are."""
    swaps: dict[str, nn.Module] = {}
    for names, inputs_TK in _observed(body, linears, prompts):
        group = _Int8Group([linears[name] for name in names], inputs_TK)
        swaps |= {name: Int8Linear(group, member, linears[name].bias) for member, name in enumerate(names)}
    return swaps


def _observed(
    body: Any, linears: dict[str, nn.Linear], prompts: Sequence[Sequence[int]]
) -> list[tuple[list[str], Tensor]]:
    """Names of layers that are given the very same tensor, and all rows [T, K] they were given."""
    given: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Callable[[Any, tuple[Tensor]], None]:
        return lambda _, args: given.setdefault(name, []).append(args[0])

    hooks = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears.items()]
    try:
        for ids in prompts:
            body(input_ids=torch.tensor([list(ids)]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    together: dict[tuple[int, ...], list[str]] = {}
    for name, inputs in given.items():
        together.setdefault(tuple(map(id, inputs)), []).append(name)
    return [
        (names, torch.cat([x.reshape(-1, x.shape[-1]) for x in given[names[0]]]).float()) for names in together.values()
    ]


def _crest(inputs_TK: Tensor) -> float:
    """Mean over tokens of the largest input over the root of their mean square."""
    return float((inputs_TK.abs().amax(1) / inputs_TK.square().mean(1).sqrt().clamp_(min=_TINY)).mean())
