"""How much is computed at once: tokens of a batch, by device, by free memory, and whether a shared prefix pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

BATCH_TOKENS, CPU_SCORE_TOKENS = 16_384, 8_192
"""Where nothing is known about the memory; and for scoring on a CPU, where more falls out of the caches."""
CARD_SCORE_TOKENS, CARD_WRITE_TOKENS = 131_072, 65_536
"""More tokens at once make no card faster."""
_SCORE_SHARE, _WRITE_SHARE = 0.5, 0.3
"""Of the free memory; texts being written are copied when their memory grows."""


class PrefixCost(NamedTuple):
    """What reading a shared prefix from one place costs, in computed tokens."""

    each: float
    """For each token of the rows' own."""
    once: int
    """For the prefix's own pass, however short: its kernels are started one by one."""


CPU_PREFIX, APART_PREFIX, JOINED_PREFIX = PrefixCost(0.0, 0), PrefixCost(0.15, 4096), PrefixCost(0.5, 4096)
"""On a CPU copies are few and kernels start at once. On a GPU: two attentions that are put together pass over memory
again; a prefix copied in front of every row also needs a mask, with which the fast kernels do not run."""


def prefix_pays(shared: int, lengths: Sequence[int], cost: PrefixCost) -> bool:
    """Whether to compute the first `shared` tokens of prompts of these lengths once, instead of in every prompt."""
    own = sum(lengths) - shared * len(lengths)
    return shared * (len(lengths) - 1) > cost.once + cost.each * own


def score_tokens(config: Any, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens of a batch to score."""
    if device.type != "cuda":
        return CPU_SCORE_TOKENS if device.type == "cpu" else BATCH_TOKENS
    return fitting(_SCORE_SHARE * free_bytes(device), pass_bytes(config, dtype), CARD_SCORE_TOKENS)


def write_tokens(config: Any, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens of texts, prompts included, that are written at once."""
    if device.type != "cuda":
        return BATCH_TOKENS
    return fitting(_WRITE_SHARE * free_bytes(device), kept_bytes(config, dtype), CARD_WRITE_TOKENS)


def fitting(free: float, each: int, most: int) -> int:
    """How many tokens of `each` bytes go into `free` bytes: at least 2,048 (less would never end), at most `most`."""
    return max(2048, min(most, int(free) // each))


def free_bytes(device: torch.device) -> int:
    """What the card has left, and what this process holds of it without using it."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def head_size(config: Any) -> int:
    """Numbers in an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def pass_bytes(config: Any, dtype: torch.dtype) -> int:
    """What one token takes while it passes through a layer, from above: MLP, residuals in fp32, attention."""
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    attention = config.num_attention_heads * head_size(config)
    return int(dtype.itemsize * (6 * inner + 8 * config.hidden_size + 12 * attention))


def kept_bytes(config: Any, dtype: torch.dtype) -> int:
    """What one token leaves behind for later ones: keys and values of all layers."""
    return int(2 * dtype.itemsize * config.num_hidden_layers * config.num_key_value_heads * head_size(config))
