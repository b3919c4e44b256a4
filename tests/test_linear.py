"""Linear layers in fewer bits: by hand on small numbers, and against float32 on a model whose inputs are uneven."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hf_engine import VOCABULARY, make_engine
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from prism.devices import choose_dtype
from prism.engines.base import LabelLogits, WriteRequest
from prism.engines.linear import Bf16Linear, Int8Linear, arrange
from prism.errors import InputError


def can_int8() -> bool:
    try:
        choose_dtype("cpu", "int8")
    except InputError:
        return False
    return True


int8 = pytest.mark.skipif(not can_int8(), reason="this CPU does not multiply bytes natively")
BOTH = [pytest.param(torch.int8, marks=int8), torch.bfloat16]


def uneven_model() -> Any:
    """Four layers, and two residual channels twenty times as large as the others, as in pretrained models."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=144,
        intermediate_size=360,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.14,
    )
    torch.manual_seed(20260104)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, [17, 90]] += 3.0
    return model


def random_prompts(seed: int, prefix: int, lengths: Sequence[int]) -> list[list[int]]:
    rng = random.Random(seed)
    shared = [rng.randrange(3, VOCABULARY) for _ in range(prefix)]
    return [shared + [rng.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


def scores(model: Any, prompts: Sequence[Sequence[int]], **options: Any) -> list[float]:
    labels = asyncio.run(make_engine(model, **options).score(prompts)).labels
    assert all(isinstance(label, LabelLogits) for label in labels)
    return [1 / (1 + math.exp(label.no - label.yes)) for label in labels]  # type: ignore[union-attr]


def arranged(dtype: torch.dtype) -> Any:
    model = uneven_model()
    arrange(model, dtype, random_prompts(1, 0, [40, 40]))
    return model


@pytest.mark.parametrize("dtype", BOTH)
def test_scores_stay_near_float32(dtype: torch.dtype) -> None:
    prompts = random_prompts(2, 60, [random.Random(3).randint(5, 90) for _ in range(60)])
    expected = scores(uneven_model(), prompts)
    assert max(expected) - min(expected) > 0.1  # scores that differ, or nothing would be shown
    found = scores(arranged(dtype), prompts)
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 0.02


class Layers(nn.Module):
    """A body of two linear layers that read the same input, and the model around it."""

    def __init__(self, inputs_TK: Tensor) -> None:
        super().__init__()
        K = inputs_TK.shape[1]
        self.first, self.second = nn.Linear(K, 5), nn.Linear(K, 3, bias=False)
        self.inputs_TK, self.device = inputs_TK, torch.device("cpu")

    def get_decoder(self) -> Layers:
        return self

    def forward(self, input_ids: Tensor, use_cache: bool) -> None:
        self.first(self.inputs_TK)
        self.second(self.inputs_TK)


@int8
@pytest.mark.parametrize("uneven", [False, True], ids=["even beside large columns", "uneven"])
def test_large_inputs_cost_little(uneven: bool) -> None:
    """Per-token scales alone would lose the small inputs beside two columns a hundred times as large."""
    torch.manual_seed(8)
    x = torch.randn(60, 144)
    if uneven:  # another large input in every row
        x[torch.arange(60), torch.randint(0, 144, (60,))] *= 30
    x[:, [17, 90]] *= 100
    layers = Layers(x)
    expected = layers.first(x)
    scale_T1 = x.abs().amax(1, keepdim=True) / 127
    naive = (layers.first((x / scale_T1).round() * scale_T1) - expected).norm()
    arrange(layers, torch.int8, [[1]])
    with torch.inference_mode():
        assert (layers.first(x) - expected).norm() < 0.1 * naive


def whole(seed: int, rows: int, columns: int) -> Tensor:
    """Whole numbers up to 126, and 127 in the last columns."""
    numbers = torch.randint(-126, 127, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()
    numbers[:, -5:] = 127.0
    return numbers


@int8
def test_bytes_are_multiplied_exactly() -> None:
    """Inputs and weights that are whole numbers up to 127 have a scale of one, so nothing is rounded."""
    x, other = whole(9, 20, 36), whole(10, 4, 36)
    layers = Layers(x)
    for layer, seed in ((layers.first, 1), (layers.second, 2)):
        layer.weight.data = whole(seed, layer.out_features, 36)
    layers.first.bias.data = torch.arange(5.0)
    first, second, for_other = layers.first(x), layers.second(x), layers.first(other)
    arrange(layers, torch.int8, [[1]])
    assert isinstance(layers.first, Int8Linear)
    with torch.inference_mode():
        assert torch.equal(layers.second(x), second)  # in any order
        assert torch.equal(layers.first(x), first)
        assert torch.equal(layers.first(other), for_other)  # and before all have asked for this input
        assert torch.equal(layers.second(x), second)


@pytest.mark.parametrize("dtype", BOTH)
def test_neither_batch_nor_order_decide(dtype: torch.dtype) -> None:
    """Up to a number that is rounded the other way now and then: sums in float32 depend on the shape of a batch."""
    model = arranged(dtype)
    prompts = random_prompts(5, 40, [20, 75, 31, 8, 60])
    together = scores(model, prompts)
    assert scores(model, prompts[::-1]) == pytest.approx(together[::-1], abs=5e-3)
    assert scores(model, prompts, max_batch_tokens=1) == pytest.approx(together, abs=5e-3)
    for ids, one in zip(prompts, together, strict=True):
        assert scores(model, [ids]) == pytest.approx([one], abs=5e-3)


@pytest.mark.parametrize("dtype", BOTH)
def test_texts_are_written(dtype: torch.dtype) -> None:
    async def texts(model: Any) -> list[str]:
        written = [""] * 3
        requests = [WriteRequest(ids, 12) for ids in random_prompts(6, 30, [4, 30, 11])]
        async for piece in make_engine(model).write(requests):
            written[piece.index] += piece.text
        return written

    plain, found = asyncio.run(texts(uneven_model())), asyncio.run(texts(arranged(dtype)))
    assert [text[0] for text in found] == [text[0] for text in plain]
    assert all(len(text) == 12 for text in found)


def test_only_linear_layers_change() -> None:
    model = arranged(torch.bfloat16)
    kinds = {type(module).__name__ for module in model.modules()}
    assert Bf16Linear.__name__ in kinds
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.dtype is torch.float32
    assert isinstance(model.lm_head, nn.Linear)


def test_float32_stays_as_it_is() -> None:
    model = uneven_model()
    before = {name: type(module) for name, module in model.named_modules()}
    arrange(model, torch.float32, [])
    assert {name: type(module) for name, module in model.named_modules()} == before
