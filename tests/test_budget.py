"""How many tokens are computed at once, and when a shared prefix is worth a pass of its own."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3Config

from prism.engines.budget import (
    APART_PREFIX,
    CPU_PREFIX,
    JOINED_PREFIX,
    fitting,
    kept_bytes,
    pass_bytes,
    prefix_pays,
    score_tokens,
    write_tokens,
)

SMALL = Qwen3Config(
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
)
"""Qwen3-0.6B."""


def test_on_a_cpu_a_shared_prefix_always_pays() -> None:
    assert prefix_pays(16, [17, 400], CPU_PREFIX)


@pytest.mark.parametrize("cost", [APART_PREFIX, JOINED_PREFIX])
def test_on_a_gpu_a_long_prefix_pays_for_many_documents(cost: object) -> None:
    # Saved 250 * 99 = 24,750; own 160 * 100 = 16,000, half of that and 4,096 are 12,096.
    assert prefix_pays(250, [410] * 100, cost)  # type: ignore[arg-type]


def test_on_a_gpu_a_short_prefix_pays_where_it_is_read_in_place() -> None:
    lengths = [386] * 1500  # saved 60 * 1,499 = 89,940 of 489,000 own: 15 % are 73,350, half are 244,500
    assert prefix_pays(60, lengths, APART_PREFIX)
    assert not prefix_pays(60, lengths, JOINED_PREFIX)
    assert not prefix_pays(30, lengths, APART_PREFIX)  # 44,970 against 4,096 + 80,100


def test_on_a_gpu_few_documents_are_not_worth_a_pass() -> None:
    assert not prefix_pays(250, [410] * 10, APART_PREFIX)  # saved 2,250, the prefix's own pass costs 4,096


def test_memory_of_a_token() -> None:
    # 2 bytes of 6 * 3,072 + 8 * 1,024 + 12 * 2,048; keys and values of 28 layers, 8 heads of 128
    assert pass_bytes(SMALL, torch.bfloat16) == 2 * (18_432 + 8_192 + 24_576)
    assert kept_bytes(SMALL, torch.bfloat16) == 2 * 2 * 28 * 8 * 128
    assert pass_bytes(SMALL, torch.float32) == 2 * pass_bytes(SMALL, torch.bfloat16)


@pytest.mark.parametrize(("free", "tokens"), [(0, 2048), (10_000_000, 10_000), (10**12, 65_536)])
def test_tokens_fit_between_bounds(free: int, tokens: int) -> None:
    assert fitting(free, 1000, 65_536) == tokens


def test_a_cpu_scores_in_small_batches() -> None:
    assert score_tokens(SMALL, torch.float32, torch.device("cpu")) == 8_192
    assert write_tokens(SMALL, torch.float32, torch.device("cpu")) == 16_384
