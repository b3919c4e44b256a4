"""Rows without padding: one after another in a single sequence, where each attends to itself alone.

A padded batch computes the longest row's tokens for every row, and has another shape each time. A packed one computes
no token more than there are, or, where shapes are to be few (`Shapes`), is filled up to one of a few sizes, so that
compiled layers are made once for each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from prism.engines.prefix import can_attend_apart, flash

PACKED = "prism_packed"
"""`attend_packed`, for transformers' `set_attn_implementation`."""
_KINDS = frozenset({"llama", "qwen2", "qwen3"})
"""Models whose layers hand the keywords of a pass on to attention, and look at neighbours nowhere else: a
convolution or a recurrent state would carry one row into the next."""


def can_pack(config: Any) -> bool:
    """Whether packed rows do not see each other in a model of this configuration: plain attention in every layer."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)
    return config.model_type in _KINDS and kinds == {"full_attention"} and not sliding


class Shapes(NamedTuple):
    """What a packed batch may look like, so that there are few of them."""

    tokens: tuple[int, ...]
    """Growing."""
    tokens_per_row: int = 64
    """There are as many rows as if each had so many; more only where there must be."""
    least_rows: int = 64
    longest: int = 2048
    """Tokens of a row at most."""

    def take(self, rows: Sequence[Sequence[int]]) -> bool:
        """Whether these rows can be filled up to one of them."""
        return sum(map(len, rows)) <= self.tokens[-1] and max(map(len, rows)) <= self.longest


class Packed(NamedTuple):
    """T tokens of R rows, those that only fill up included."""

    ids: Tensor
    """[1, T]."""
    positions: Tensor
    """[1, T]: each token's place in its row."""
    ends: Tensor
    """[R + 1], int32: 0, and where each row ends."""
    longest: int
    """No row has more tokens."""
    last: Tensor
    """[B]: where the last token of each given row is."""


def pack(
    rows: Sequence[Sequence[int]], pad_id: int, first: int = 0, shapes: Shapes | None = None, multiple: int = 1
) -> Packed:
    """Rows of ids, none empty, whose positions begin at `first`. Filled up by rows of padding: to the next of the
    `shapes`, which must take them, else to a `multiple` of tokens."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    last = lengths.cumsum() - 1
    longest = int(lengths.max())
    if shapes is None:
        lengths = np.append(lengths, -lengths.sum() % multiple)
        longest = max(longest, int(lengths[-1]))
    else:
        lengths, longest = _filled(lengths, shapes), shapes.longest
    ends = np.concatenate([[0], lengths.cumsum()])
    ids = np.full(ends[-1], pad_id, dtype=np.int64)
    ids[: last[-1] + 1] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    positions = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths) + first
    return Packed(
        torch.from_numpy(ids)[None],
        torch.from_numpy(positions)[None],
        torch.from_numpy(ends.astype(np.int32)),
        longest,
        torch.from_numpy(last),
    )


def _filled(lengths: np.ndarray[Any, Any], shapes: Shapes) -> np.ndarray[Any, Any]:
    """Rows of padding behind the others, and empty rows behind those."""
    total = int(lengths.sum())
    size = next(size for size in shapes.tokens if size >= total)
    padding = [shapes.longest] * ((size - total) // shapes.longest) + [(size - total) % shapes.longest]
    rows = max(shapes.least_rows, size // shapes.tokens_per_row, power_of_two(len(lengths) + len(padding)))
    return np.concatenate([lengths, padding, np.zeros(rows - len(lengths) - len(padding))]).astype(np.int64)


def power_of_two(number: int) -> int:
    """The smallest that is not smaller."""
    return 1 << (number - 1).bit_length()


def attend_packed(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    ends_R1: Tensor,
    longest: int,
    by_kernel: bool | None = None,
    prefix: Sequence[Any] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row to itself, and to a common prefix that all rows go on from, if there is one.

    `by_kernel`: what `knows_rows` says; None: it is asked, which a compiler cannot. `prefix`: the layers of its cache;
    put together with the rows' own as `attend_apart` does. `query` [1, heads, T, D], `key` and `value` [1, key heads,
    T, D] -> [1, T, heads, D].
    """
    if by_kernel is None:
        by_kernel = knows_rows(query.device, query.dtype, query.shape[-1])
    if by_kernel:
        own, own_lse = _by_kernel(query, key, value, ends_R1, longest, scaling, dropout)
    else:
        own, own_lse = _one_by_one(query, key, value, ends_R1, scaling, dropout)
    if prefix is None:
        return own.transpose(1, 2), None
    shared = prefix[module.layer_idx]
    past, past_lse = flash(query, shared.keys, shared.values, False, scaling)
    weight = torch.sigmoid(past_lse - own_lse).unsqueeze(-1).to(own.dtype)
    return torch.lerp(own, past, weight).transpose(1, 2), None


def knows_rows(device: torch.device, dtype: torch.dtype, head: int) -> bool:
    """Whether torch's flash attention takes rows of different lengths there, with heads of so many numbers."""
    return device.type == "cuda" and can_attend_apart(device, dtype, head)


def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, ends_R1: Tensor, longest: int, scale: float | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """Attention [1, heads, T, D] and the log-sum-exps of its scores [1, heads, T]."""
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        *rows, ends_R1, ends_R1, longest, longest, dropout, True, False, scale=scale
    )
    return out.transpose(0, 1)[None], lse[None]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch gives it no type
def _one_by_one(
    query: Tensor, key: Tensor, value: Tensor, ends_R1: Tensor, scale: float | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """As `_by_kernel`; log-sum-exps on a CPU only, and without dropout: a prefix is not read apart elsewhere."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    parts = []
    for start, end in itertools.pairwise(ends_R1.tolist()):
        if end > start:
            q, k, v = (tensor[:, :, start:end] for tensor in (query, key, value))
            if query.device.type == "cpu" and not dropout:
                parts.append(flash(q, k, v, True, scale))
            else:
                out = scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scale)
                parts.append((out, out.new_empty(0)))
    return torch.cat([out for out, _ in parts], dim=2), torch.cat([lse for _, lse in parts], dim=-1)


AttentionInterface.register(PACKED, attend_packed)
