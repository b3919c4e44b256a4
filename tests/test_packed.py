"""Rows in one sequence without padding, compiled too, against plain forward passes of each alone."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hf_engine import NO, VOCABULARY, YES, make_engine
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen2ForCausalLM, Qwen3Config
from transformers.cache_utils import DynamicLayer

from prism.engines.base import LabelLogits
from prism.engines.decode import LanguageModel
from prism.engines.packed import Shapes, attend_packed, can_pack, pack
from prism.engines.passes import PackedPass, Prefix
from prism.errors import DocumentError, EngineError

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def tiny_qwen2() -> Any:
    """With biases, as Qwen2.5 has them."""
    torch.manual_seed(5)
    return Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=True)).eval()


@pytest.fixture(params=["tiny_qwen3", "tiny_qwen2"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def prompts_of(seed: int, prefix: int, lengths: Sequence[int]) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    shared = [rng.randrange(3, VOCABULARY) for _ in range(prefix)]
    return [tuple(shared + [rng.randrange(3, VOCABULARY) for _ in range(length)]) for length in lengths]


@torch.inference_mode()
def alone(model: Any, ids: Sequence[int]) -> tuple[float, float]:
    logits = model(torch.tensor([ids])).logits[0, -1]
    return logits[YES].item(), logits[NO].item()


# -- the batch


def test_packed_rows_by_hand() -> None:
    batch = pack([[7, 8, 9], [4]], pad_id=0, first=10)
    assert batch.ids.tolist() == [[7, 8, 9, 4]]
    assert batch.positions.tolist() == [[10, 11, 12, 10]]
    assert batch.ends.tolist() == [0, 3, 4, 4]  # nothing to fill up
    assert batch.ends.dtype is torch.int32  # as the kernel wants it
    assert batch.last.tolist() == [2, 3]
    assert batch.longest == 3


def test_filled_up_to_a_multiple_by_hand() -> None:
    batch = pack([[7], [4]], pad_id=0, multiple=5)
    assert batch.ids.tolist() == [[7, 4, 0, 0, 0]]
    assert batch.ends.tolist() == [0, 1, 2, 5]
    assert batch.positions.tolist() == [[0, 0, 0, 1, 2]]
    assert batch.last.tolist() == [0, 1]
    assert batch.longest == 3


def test_filled_up_by_hand() -> None:
    """Four tokens in a batch of sixteen: a row of eight and one of four fill it up, four rows are empty."""
    shapes = Shapes((16,), tokens_per_row=2, least_rows=1, longest=8)
    batch = pack([[7, 8, 9], [4]], pad_id=0, shapes=shapes)
    assert batch.ids.tolist() == [[7, 8, 9, 4, *[0] * 12]]
    assert batch.ends.tolist() == [0, 3, 4, 12, 16, 16, 16, 16, 16]
    assert batch.positions.tolist() == [[0, 1, 2, 0, *range(8), *range(4)]]
    assert batch.last.tolist() == [2, 3]
    assert batch.longest == 8


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.lists(st.integers(1, 400), min_size=1, max_size=3))
def test_rows_stay_what_they_are_however_they_are_filled_up(lengths: list[int], sizes: list[int]) -> None:
    rows = prompts_of(0, 0, lengths)
    shapes = Shapes(tuple(sorted(sizes)), tokens_per_row=8, least_rows=4, longest=32)
    fits = sum(lengths) <= max(sizes) and max(lengths) <= 32
    assert shapes.take(rows) is fits
    for batch in (pack(rows, 0), pack(rows, 0, shapes=shapes if fits else None, multiple=8)):
        ends = batch.ends.tolist()
        found = [tuple(batch.ids[0, a:b].tolist()) for a, b in pairwise(ends)]
        assert found[: len(rows)] == rows
        assert [int(batch.ids[0, at]) for at in batch.last] == [row[-1] for row in rows]
        assert max(b - a for a, b in pairwise(ends)) <= batch.longest
        assert ends == sorted(ends)
        assert ends[-1] == batch.ids.shape[1] == batch.positions.shape[1]
    total = sum(lengths)
    assert ends[-1] == (min(size for size in sizes if size >= total) if fits else -(-total // 8) * 8)


# -- attention


@pytest.mark.parametrize("past", [0, 21], ids=["alone", "after a prefix"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_attends_to_itself_alone(dtype: torch.dtype, past: int) -> None:
    torch.manual_seed(4)
    D, ends = 16, [0, 5, 5, 6, 30]  # one row is empty
    query = torch.randn(1, 4, 30, D, dtype=dtype)
    key, value = torch.randn(2, 1, 2, 30, D, dtype=dtype)  # two query heads to a key head
    filled = DynamicLayer()
    filled.update(torch.randn(1, 2, past, D, dtype=dtype), torch.randn(1, 2, past, D, dtype=dtype))
    found, _ = attend_packed(
        SimpleNamespace(layer_idx=1),
        query,
        key,
        value,
        None,
        ends_R1=torch.tensor(ends, dtype=torch.int32),
        longest=24,
        by_kernel=False,
        prefix=[None, filled] if past else None,
        scaling=0.3,
    )
    for start, end in ((0, 5), (5, 6), (6, 30)):
        keys = torch.cat([filled.keys, key[:, :, start:end]], dim=2)
        values = torch.cat([filled.values, value[:, :, start:end]], dim=2)
        mask = torch.ones(end - start, past + end - start, dtype=torch.bool).tril(past)
        expected = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, start:end], keys, values, attn_mask=mask, scale=0.3, enable_gqa=True
        )
        tolerance = 1e-6 if dtype is torch.float32 else 2e-2
        assert torch.allclose(found[:, start:end].transpose(1, 2), expected, atol=tolerance)


# -- scores


@pytest.mark.parametrize(
    "options",
    [{}, {"share_prefix": False}, {"share_prefix": True}, {"max_batch_tokens": 150}],
    ids=["by default", "no prefix", "prefix", "small batches"],
)
def test_packed_scores_are_those_of_each_prompt_alone(model: Any, options: dict[str, Any]) -> None:
    prompts = prompts_of(1, 50, [3, 90, 1, 17, 64, 65, 130])
    found = asyncio.run(make_engine(model, packed=True, **options).score(prompts))
    for ids, label in zip(prompts, found.labels, strict=True):
        assert label == pytest.approx(alone(model, ids), abs=3e-5)
    assert found.cached_tokens == (0 if options == {"share_prefix": False} else 50 * 6)
    assert model.config._attn_implementation == "sdpa"


def test_compiled_scores_are_those_of_each_prompt_alone_and_shapes_are_few(model: Any) -> None:
    """Six sizes are made at the start; batches of any lengths after that make none anew, and longer ones need none."""
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    one = made = 0
    with torch.inference_mode(), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        compiler = functools.partial(torch.compile, backend=counter, dynamic=False)
        PackedPass(LanguageModel(model, 0), 32, compiler)  # a single size
        one = counter.frame_count
        way = PackedPass(LanguageModel(model, 0), 1024, compiler)
        made = counter.frame_count
        assert made == 6 * one > 0  # 1,024 tokens, half of them and so on to 32, which was there
        head_2H = model.get_output_embeddings().weight[[YES, NO]]
        for seed, lengths in enumerate([[3], [9, 4, 1], [40] * 5, [1, 300, 2], [200, 90, 300, 57], [700, 600]]):
            prompts = prompts_of(seed, 0, lengths)
            logits = way(prompts, Prefix(0, None)) @ head_2H.T
            for ids, found in zip(prompts, logits.tolist(), strict=True):
                assert found == pytest.approx(alone(model, ids), abs=3e-5)
        assert counter.frame_count == made


def test_what_is_compiled_at_the_start_serves_a_number_of_threads_too(
    tiny_qwen2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda layer, **options: compiler(layer, backend=counter, **options))
    engine = make_engine(tiny_qwen2, compiled=True, max_batch_tokens=64, threads=torch.get_num_threads() + 1)
    made = counter.frame_count
    prompts = prompts_of(1, 0, [20, 30])
    labels = asyncio.run(engine.score(prompts)).labels
    assert labels[0] == pytest.approx(alone(tiny_qwen2, prompts[0]), abs=3e-5)
    assert counter.frame_count == made > 0


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, in its compiler
def test_the_compiler_itself_makes_layers_that_score_the_same(model: Any) -> None:
    prompts = prompts_of(1, 50, [3, 90, 1, 17, 64, 65, 130])
    found = asyncio.run(make_engine(model, compiled=True, max_batch_tokens=1024).score(prompts))
    assert found.cached_tokens == 0
    for ids, label in zip(prompts, found.labels, strict=True):
        assert label == pytest.approx(alone(model, ids), abs=3e-5)


def test_memory_that_runs_out_halves_a_packed_batch(tiny_qwen3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    body = tiny_qwen3.get_decoder()

    def narrow(*_: Any, **inputs: Any) -> Any:
        if inputs["input_ids"].shape[1] > 100:
            raise torch.OutOfMemoryError("not enough memory")
        return type(body).forward(body, **inputs)

    monkeypatch.setattr(body, "forward", narrow)
    prompts = prompts_of(6, 0, [30, 60, 20, 101, 9])
    labels = asyncio.run(make_engine(tiny_qwen3, packed=True).score(prompts)).labels
    monkeypatch.undo()
    assert isinstance(labels[3], DocumentError)
    assert "101 tokens does not fit in memory" in str(labels[3])
    for at in (0, 1, 2, 4):
        assert isinstance(labels[at], LabelLogits)
        assert labels[at] == pytest.approx(alone(tiny_qwen3, prompts[at]), abs=3e-5)


# -- where it cannot be


@pytest.mark.parametrize(
    ("config", "can"),
    [
        (Qwen3Config(), True),
        (LlamaConfig(), True),
        (Qwen2Config(), True),
        (Qwen2Config(use_sliding_window=True, max_window_layers=2), False),
        (MistralConfig(sliding_window=None), False),
    ],
    ids=["Qwen3", "Llama", "Qwen2", "Qwen2 with a window", "no model that was looked at"],
)
def test_what_can_be_packed(config: Any, can: bool) -> None:
    assert can_pack(config) is can


@pytest.mark.parametrize("option", ["packed", "compiled"])
def test_a_model_whose_rows_would_see_each_other_is_refused(tiny_qwen35: Any, option: str) -> None:
    with pytest.raises(EngineError, match="rows packed together would see each other in qwen3_5"):
        make_engine(tiny_qwen35, **{option: True})


def test_a_compiler_that_does_not_work_is_told_in_one_line(tiny_qwen3: Any) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no C compiler")

    torch._dynamo.reset()
    with pytest.raises(EngineError, match=r"^torch.compile does not work here .*no C compiler.*leave `compiled` off"):
        PackedPass(LanguageModel(tiny_qwen3, 0), 512, functools.partial(torch.compile, backend=broken))
