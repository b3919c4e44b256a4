"""Start a new model with two circuits it would otherwise have to discover: copying, and noticing what was asked for.

Small models find the first by themselves, but only after some millions of tokens (Olsson et al. 2022, "In-context
Learning and Induction Heads"); wired in, both work before the first step and training refines them. All of it is
initial values: every weight stays free.

    embedding   content in one half of the dimensions; a constant; marks on the tokens that open a prompt and a document
    layer 0     previous-token heads write the previous token's content into the other half;
                one head tells every position after the document's mark that it is in the document
    layer 1     heads look for positions whose previous token is the current one (nothing found: the first token) and
                copy what stands there; one head notes when that place is before the document: a word of the query
    layer 2     one head averages these notes over the document, one collects what matched
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROPE_THETA = 1e6
"""Slow rotations: equal tokens find each other hundreds of positions apart."""

# Dimensions of the residual stream with a meaning of their own.
_ONE, _IN_DOCUMENT, _ASKED, _DOCUMENT_MARK, _FIRST_MARK, _ASKED_MEAN = range(6)
_RESERVED = 8
_ONE_VALUE, _MARK_VALUE = 4.0, 8.0
_LOGIT_SCALE = 0.1

# Rotary pairs by speed, for heads of 64: the fastest tell neighbours apart, the slowest do not turn at all.
_FAST, _CONTENT, _STILL = slice(0, 4), slice(12, 30), slice(30, 32)


def wire(model: Any, *, first_id: int, mark_id: int, label_ids: tuple[int, int]) -> None:
    """Set the initial values of a Qwen3 with heads of 64 and at least three layers and five heads, in place.

    `first_id`: the token every prompt begins with. `mark_id`: the token that announces the document. `label_ids`: (yes,
    no).
    """
    hidden, heads = model.config.hidden_size, model.config.num_attention_heads
    width = (hidden - _RESERVED) // 2
    content, before = slice(_RESERVED, _RESERVED + width), slice(hidden - width, hidden)
    with torch.no_grad():
        _embed(model, content, first_id, mark_id, label_ids)
        layers = [layer.self_attn for layer in model.model.layers]
        carrying = [slice(64 * h, 64 * (h + 1)) for h in range(heads - 1)]
        flag = slice(64 * (heads - 1), 64 * heads)
        _wire_previous(layers[0], carrying, flag, content, before)
        _wire_copying(layers[1], carrying, flag, content, before)
        _wire_asked(layers[2], slice(0, 64), slice(64, 128), content, before)


def _embed(model: Any, content: slice, first_id: int, mark_id: int, label_ids: tuple[int, int]) -> None:
    table = model.model.embed_tokens.weight
    table.normal_(0.0, 0.02)
    table[:, content] = torch.randn(len(table), content.stop - content.start)
    table[:, :_RESERVED] = 0.0
    table[:, _ONE] = _ONE_VALUE
    table[mark_id, _DOCUMENT_MARK] = table[first_id, _FIRST_MARK] = _MARK_VALUE
    table[label_ids[0], _ASKED_MEAN], table[label_ids[1], _ASKED_MEAN] = 2.0, -2.0
    model.model.norm.weight.fill_(_LOGIT_SCALE)


def _wire_previous(attention: Any, carrying: list[slice], flag: slice, content: slice, before: slice) -> None:
    offset = _pairs(_FAST)
    _silence(attention, [*carrying, flag])
    for rows, carried in zip(carrying, _shares(content, len(carrying)), strict=True):
        attention.q_proj.weight[rows, _ONE] = offset
        attention.k_proj.weight[rows, _ONE] = rotated(offset, 1.0)
        attention.v_proj.weight[rows, content] = carried
        attention.o_proj.weight[before, rows] = 0.72 * carried.T  # about the content's own size
    attention.q_proj.weight[flag, _ONE] = _pairs(_CONTENT)
    attention.k_proj.weight[flag, _DOCUMENT_MARK] = _pairs(_CONTENT)
    attention.v_proj.weight[flag.start, _DOCUMENT_MARK] = 1.0
    attention.o_proj.weight[_IN_DOCUMENT, flag.start] = 0.425
    attention.q_norm.weight.fill_(4.0)


def _wire_copying(attention: Any, carrying: list[slice], flag: slice, content: slice, before: slice) -> None:
    _silence(attention, [*carrying, flag])
    width = content.stop - content.start
    for rows in [*carrying, flag]:
        compared = _pairs(_CONTENT)[:, None] * orthonormal(64, width)
        attention.q_proj.weight[rows, content] = compared
        attention.k_proj.weight[rows, before] = compared
        # Where nothing is found, the first token takes the attention: its keys lie in pairs of their own.
        attention.q_proj.weight[rows, _ONE] = 0.54 * _pairs(_STILL)
        attention.k_proj.weight[rows, _FIRST_MARK] = 4.0 * _pairs(_STILL)
    for rows, carried in zip(carrying, _shares(content, len(carrying)), strict=True):
        attention.v_proj.weight[rows, content] = carried
        attention.o_proj.weight[content, rows] = 3.0 * carried.T
    for dimension, weight in ((_ONE, 1.0), (_IN_DOCUMENT, -1.0), (_FIRST_MARK, -0.5)):
        attention.v_proj.weight[flag.start, dimension] = weight
    attention.o_proj.weight[_ASKED, flag.start] = 1.0
    attention.q_norm.weight.fill_(4.0)


def _wire_asked(attention: Any, mean: slice, collect: slice, content: slice, before: slice) -> None:
    _silence(attention, [mean, collect])
    attention.q_proj.weight[mean, _ONE] = _pairs(_CONTENT)
    attention.k_proj.weight[mean, _IN_DOCUMENT] = _pairs(_CONTENT)
    attention.v_proj.weight[mean.start, _ASKED] = 1.0
    attention.o_proj.weight[_ASKED_MEAN, mean.start] = 4.0
    attention.q_proj.weight[collect, _ONE] = _pairs(_CONTENT) + 3.0 * _pairs(_STILL)
    attention.k_proj.weight[collect, _IN_DOCUMENT] = _pairs(_CONTENT)
    attention.k_proj.weight[collect, _ASKED] = 3.0 * _pairs(_STILL)
    carried = orthonormal(64, content.stop - content.start)
    attention.v_proj.weight[collect, content] = carried
    attention.o_proj.weight[before, collect] = carried.T
    attention.q_norm.weight.fill_(3.0)


def _silence(attention: Any, heads: list[slice]) -> None:
    """Heads without their random values."""
    for rows in heads:
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[rows] = 0.0
        attention.o_proj.weight[:, rows] = 0.0


def _shares(content: slice, heads: int) -> list[Tensor]:
    """One orthonormal basis of the content dimensions, dealt out to heads of 64; late heads may get fewer rows."""
    width = content.stop - content.start
    basis = torch.zeros(heads * 64, width)
    basis[: min(width, heads * 64)] = orthonormal(width, width)[: heads * 64]
    return [basis[64 * head : 64 * (head + 1)] for head in range(heads)]


def _pairs(chosen: slice) -> Tensor:
    """A head vector of ones on both halves of the chosen rotary pairs (pairs are i and i + 32)."""
    vector = torch.zeros(64)
    vector[chosen] = vector[slice(32 + chosen.start, 32 + chosen.stop)] = 1.0
    return vector


def orthonormal(rows: int, columns: int) -> Tensor:
    """Random orthonormal rows [rows, columns]."""
    q: Tensor = torch.linalg.qr(torch.randn(columns, rows))[0]
    return q.T


def rotated(vector: Tensor, offset: float) -> Tensor:
    """A head vector as rotary embedding turns it over `offset` positions."""
    angles = offset * ROPE_THETA ** (-torch.arange(32) / 32)
    first, second = vector[:32], vector[32:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin])
