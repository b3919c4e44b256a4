"""Rows that begin alike, computed once: their common prefix is a cache that all rows read."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import repeat_kv

APART = "prism_shared_prefix"
"""`attend_apart`, for transformers' `_attn_implementation`."""


class PrefixLayer(DynamicLayer):  # type: ignore[misc]
    """One attention layer's keys and values of the prefix; keeps nothing of the rows."""

    def __init__(self, filled: Any, joined: bool) -> None:
        """`joined`: the prefix is put before every row's own; else attention reads it from here."""
        super().__init__()
        self.keys, self.values, self.is_initialized = filled.keys, filled.values, True
        self._joined = joined

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self._joined:
            return key_states, value_states
        B = key_states.shape[0]
        keys = torch.cat([self.keys.expand(B, -1, -1, -1), key_states], dim=2)
        return keys, torch.cat([self.values.expand(B, -1, -1, -1), value_states], dim=2)


def prefix_cache(filled: Any, rows: int, joined: bool) -> Cache:
    """A cache for `rows` rows that begin with the prefix of a filled one-row cache, which stays as it is."""
    layers = []
    for layer in filled.layers:
        if type(layer) is DynamicLayer:
            layers.append(PrefixLayer(layer, joined))
        else:  # a recurrent state is updated in place
            own = copy.deepcopy(layer)
            own.reorder_cache(torch.zeros(rows, dtype=torch.long, device=layer.device))
            layers.append(own)
    return Cache(layers=layers)


@contextmanager
def attends_by(config: Any, name: str) -> Iterator[None]:
    """Inside, the model of `config` attends in another way than it was loaded with."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def attend_apart(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prefix: list[PrefixLayer],
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention to the prefix, all rows at once, and causal attention to the row itself, put together by their
    log-sum-exps: exact, with neither copies of the prefix nor a mask (Juravsky et al. 2024, "Hydragen", section 3.1).

    `query` [B, heads, T, D], `key` and `value` [B, key heads, T, D], rows padded on the right -> [B, T, heads, D].
    """
    B, heads, T, D = query.shape
    shared = prefix[module.layer_idx]
    rows = query.transpose(1, 2).reshape(1, B * T, heads, D).transpose(1, 2)
    past, past_lse = flash(rows, shared.keys, shared.values, False, scaling)
    own, own_lse = flash(query, key, value, True, scaling)
    weight = torch.sigmoid(past_lse.reshape(heads, B, T).transpose(0, 1) - own_lse).unsqueeze(-1).to(own.dtype)
    mixed = torch.lerp(own, past.transpose(1, 2).reshape(B, T, heads, D).transpose(1, 2), weight)
    return mixed.transpose(1, 2), None


def flash(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    """Attention [B, heads, T, D] and the log-sum-exps of its scores [B, heads, T]."""
    if query.device.type == "cuda":  # knows groups of heads that share keys
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, causal, False, scale=scale
        )
        return out, lse
    groups = query.shape[1] // key.shape[1]
    found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, repeat_kv(key, groups), repeat_kv(value, groups), 0.0, causal, scale=scale
    )
    return found


def can_attend_apart(device: torch.device, dtype: torch.dtype, head: int) -> bool:
    """Whether torch has attention with log-sum-exps for such a device and heads of so many numbers."""
    if device.type == "cpu":
        return True
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    fits = dtype in (torch.float16, torch.bfloat16) and head % 8 == 0 and head <= 256
    return fits and torch.cuda.get_device_capability(device) >= (8, 0)


AttentionInterface.register(APART, attend_apart)
