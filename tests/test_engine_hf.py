"""The transformers engine against plain forward passes and plain `generate`, on tiny random models in float32."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hf_engine import NO, STOP, VOCABULARY, YES, make_engine, one_character_each
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.cache_utils import DynamicLayer

from prism.engines.base import Engine, LabelLogits, ScoreOutput, WritePiece, WriteRequest
from prism.engines.decode import Decoder, LanguageModel, out_of_memory
from prism.engines.hf import HfEngine
from prism.engines.prefix import PrefixLayer, attend_apart
from prism.engines.row import BatchRow, Lookup, TextStream, shared_length
from prism.errors import DocumentError, EngineError, InputError


def random_prompts(seed: int, prefix: int, lengths: Sequence[int]) -> list[list[int]]:
    rng = random.Random(seed)
    shared = [rng.randrange(3, VOCABULARY) for _ in range(prefix)]
    return [shared + [rng.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


def score(model: Any, prompts: Sequence[Sequence[int]], **options: Any) -> ScoreOutput:
    return asyncio.run(make_engine(model, **options).score(prompts))


async def collect(engine: HfEngine, requests: Sequence[WriteRequest]) -> list[list[WritePiece]]:
    pieces: list[list[WritePiece]] = [[] for _ in requests]
    async for piece in engine.write(requests):
        pieces[piece.index].append(piece)
    return pieces


def write(engine: HfEngine, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[WritePiece]]:
    return asyncio.run(collect(engine, [WriteRequest(ids, max_tokens) for ids in prompts]))


def text_of(pieces: Sequence[WritePiece]) -> str:
    return "".join(piece.text for piece in pieces)


@torch.inference_mode()
def full_forward(model: Any, ids: Sequence[int]) -> tuple[float, float]:
    logits = model(torch.tensor([ids])).logits[0, -1]
    return logits[YES].item(), logits[NO].item()


@torch.inference_mode()
def generate(model: Any, ids: Sequence[int], max_tokens: int, stop_ids: Sequence[int] = (STOP,)) -> list[int]:
    """Plain greedy decoding of one prompt, stop ids cut off."""
    written = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=0,
    )[0, len(ids) :].tolist()
    return [token for token in written if token not in stop_ids]


class Wrapped:
    """A model whose body calls `before(rows)` first."""

    def __init__(self, model: Any, before: Callable[[int], None]) -> None:
        self._model, self._before = model, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def get_decoder(self) -> Callable[..., Any]:
        return self._body

    def _body(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        self._before(input_ids.shape[0])
        return self._model.get_decoder()(input_ids=input_ids, **inputs)


def narrow(model: Any, rows: int, error: Callable[[str], RuntimeError] = torch.OutOfMemoryError) -> Wrapped:
    """A model that runs out of memory above `rows` rows."""

    def before(asked: int) -> None:
        if asked > rows:
            raise error("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")

    return Wrapped(model, before)


@pytest.fixture(scope="session")
def looping_qwen3() -> Any:
    """With small random weights and tied embeddings, greedy decoding soon repeats itself."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    torch.manual_seed(20260103)
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(params=["tiny_qwen3", "tiny_qwen35"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


# -- score


@pytest.mark.parametrize(
    ("prefix", "lengths"),
    [
        (50, [3, 90, 1, 17, 64, 65, 130]),
        (0, [40, 7, 1, 23]),
        (15, [5, 9]),
        (200, [4]),
    ],
    ids=["shared", "nothing shared", "too little shared", "one prompt"],
)
@pytest.mark.parametrize("packed", [None, False], ids=["as it comes", "padded"])
def test_score_equals_the_full_forward_pass(model: Any, prefix: int, lengths: list[int], packed: bool | None) -> None:
    prompts = random_prompts(1, prefix, lengths)
    output = score(model, prompts, packed=packed)
    for ids, label in zip(prompts, output.labels, strict=True):
        assert label == pytest.approx(full_forward(model, ids), abs=1e-5)
    # The prefix is computed once, the other len(lengths) - 1 times saved; under 16 tokens or alone it is not shared.
    saved = prefix * (len(lengths) - 1) if prefix >= 16 else 0
    assert output.cached_tokens == saved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_apart_is_attention_over_the_joined_keys(dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    past, T, D = 21, 13, 16
    query = torch.randn(3, 4, T, D, dtype=dtype)
    key, value = torch.randn(2, 3, 2, T, D, dtype=dtype)  # two query heads to a key head
    filled = DynamicLayer()
    filled.update(torch.randn(1, 2, past, D, dtype=dtype), torch.randn(1, 2, past, D, dtype=dtype))
    found, _ = attend_apart(
        SimpleNamespace(layer_idx=1), query, key, value, None, prefix=[None, PrefixLayer(filled, False)], scaling=0.3
    )
    keys, values = PrefixLayer(filled, True).update(key, value)
    mask = torch.ones(T, past + T, dtype=torch.bool).tril(past)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    assert torch.allclose(found.transpose(1, 2), expected, atol=1e-6 if dtype is torch.float32 else 2e-2)


def test_the_model_attends_as_before_after_scoring(tiny_qwen3: Any) -> None:
    before = tiny_qwen3.config._attn_implementation
    score(tiny_qwen3, random_prompts(1, 50, [3, 90]))
    assert tiny_qwen3.config._attn_implementation == before == "sdpa"


def test_score_in_small_batches_keeps_the_callers_order(model: Any) -> None:
    prompts = random_prompts(2, 30, [8, 60, 2, 33, 5])
    whole, split = score(model, prompts), score(model, prompts, max_batch_tokens=100)
    for one, other in zip(whole.labels, split.labels, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert split.labels[1] == pytest.approx(full_forward(model, prompts[1]), abs=1e-5)


def test_a_score_does_not_depend_on_the_other_documents(tiny_qwen3: Any) -> None:
    prompts = random_prompts(3, 40, [20, 75, 31])
    alone = [score(tiny_qwen3, [ids]).labels[0] for ids in prompts]
    for one, other in zip(alone, score(tiny_qwen3, prompts).labels, strict=True):
        assert isinstance(one, LabelLogits)
        assert isinstance(other, LabelLogits)
        assert 1 / (1 + math.exp(one.no - one.yes)) == pytest.approx(1 / (1 + math.exp(other.no - other.yes)), abs=1e-6)


def test_equal_prompts_are_computed_once(model: Any) -> None:
    (ids,) = random_prompts(4, 0, [30])
    output = score(model, [ids, ids, ids])
    assert output.labels[0] == output.labels[1] == output.labels[2]
    assert output.labels[0] == pytest.approx(full_forward(model, ids), abs=1e-5)
    assert output.cached_tokens == 60


def test_a_prompt_that_begins_another_keeps_a_token_of_its_own(model: Any) -> None:
    (ids,) = random_prompts(5, 0, [40])
    for length, label in zip((40, 25), score(model, [ids, ids[:25]]).labels, strict=True):
        assert label == pytest.approx(full_forward(model, ids[:length]), abs=1e-5)


def test_empty_and_overlong_prompts_fail_alone(tiny_qwen3: Any) -> None:
    good = random_prompts(6, 0, [12])[0]
    empty, label, overlong = score(tiny_qwen3, [[], good, [7] * 2049]).labels
    assert isinstance(empty, DocumentError)
    assert "empty" in str(empty)
    assert label == pytest.approx(full_forward(tiny_qwen3, good), abs=1e-5)
    assert isinstance(overlong, DocumentError)
    assert "2049 tokens" in str(overlong)


def test_no_prompts_at_all(tiny_qwen3: Any) -> None:
    assert score(tiny_qwen3, []) == ScoreOutput([], 0)
    assert write(make_engine(tiny_qwen3), [], 5) == []


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_halves_the_batch(model: Any, error: Callable[[str], RuntimeError]) -> None:
    prompts = random_prompts(7, 20, [5, 6, 7, 8, 9, 10, 11])
    for one, other in zip(score(narrow(model, 2, error), prompts).labels, score(model, prompts).labels, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_single_prompt_that_does_not_fit_answers_a_document_error(tiny_qwen3: Any) -> None:
    labels = score(narrow(tiny_qwen3, 0), random_prompts(8, 20, [5, 6])).labels
    assert [type(label) for label in labels] == [DocumentError, DocumentError]
    assert "does not fit in memory" in str(labels[0])


def test_other_runtime_errors_propagate(tiny_qwen3: Any) -> None:
    def before(_: int) -> None:
        raise RuntimeError("expected scalar type Float")

    assert not out_of_memory(RuntimeError("expected scalar type Float"))
    broken = Wrapped(tiny_qwen3, before)
    with pytest.raises(RuntimeError, match="scalar type"):
        score(broken, random_prompts(9, 20, [5, 6]))
    with pytest.raises(RuntimeError, match="scalar type"):
        write(make_engine(broken), [[5, 6]], 5)


def test_nan_is_an_engine_error() -> None:
    config = Qwen3Config(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, head_dim=4)
    config.num_attention_heads = config.num_key_value_heads = 2
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(EngineError, match="prompt 0 has label logits yes=nan"):
        score(model, [[1, 2, 3]])
    with pytest.raises(EngineError, match="NaN"):
        write(make_engine(model), [[1, 2, 3]], 5)


# -- write


@pytest.mark.parametrize("prefix", [0, 40])
def test_writing_equals_generate_one_by_one(model: Any, prefix: int) -> None:
    prompts = random_prompts(11, prefix, [3, 90, 1, 17, 64, 65, 130])
    for ids, pieces in zip(prompts, write(make_engine(model), prompts, 60), strict=True):
        expected = generate(model, ids, 60)
        assert text_of(pieces) == one_character_each(expected)
        assert sum(piece.tokens for piece in pieces) == len(expected)
        assert pieces[-1].finish == ("length" if len(expected) == 60 else "stop")
        assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)


@pytest.mark.parametrize("seed", range(4))
def test_speculation_writes_the_same_in_fewer_steps(looping_qwen3: Any, seed: int) -> None:
    prompts = random_prompts(20 + seed, 30, [5, 40, 12, 77])
    requests = [WriteRequest(ids, 80) for ids in prompts]
    steps = {}
    for speculate in (False, True):
        decoder = Decoder(
            LanguageModel(looping_qwen3, 0),
            stop_ids=(),
            stop_strings=(),
            decode=one_character_each,
            max_batch_tokens=10_000,
            speculate=speculate,
        )
        texts, checks = [""] * len(prompts), count()
        with torch.inference_mode():
            for piece in decoder.write(requests, checks.__next__):
                texts[piece.index] += piece.text
        assert texts == [one_character_each(generate(looping_qwen3, ids, 80, ())) for ids in prompts]
        steps[speculate] = next(checks) - 2  # before prefix and rest of the prompts, then before every step
    assert steps[False] == 79
    assert steps[True] < 60


@pytest.mark.parametrize(
    ("draft", "answers", "taken"),
    [
        ([], [7], [7]),
        ([7, 8], [7, 8, 9], [7, 8, 9]),
        ([7, 8], [7, 5, 9], [7, 5]),
        ([7, 8], [4, 8, 9], [4]),
        ([7], [7, 8, 0, 0], [7, 8]),  # answers behind the draft are padding's
    ],
)
def test_a_draft_is_taken_as_far_as_the_model_agrees(draft: list[int], answers: list[int], taken: list[int]) -> None:
    row = BatchRow(0, [1, 2], 50, TextStream(one_character_each, ()))
    assert row.accept(draft, answers) == taken


def test_writing_under_eager_attention_is_the_same(tiny_qwen3: Any) -> None:
    eager = Qwen3ForCausalLM._from_config(deepcopy(tiny_qwen3.config), attn_implementation="eager").eval()
    eager.load_state_dict(tiny_qwen3.state_dict())
    prompts = random_prompts(12, 20, [4, 30, 11])
    texts = [text_of(pieces) for pieces in write(make_engine(eager), prompts, 30)]
    assert texts == [one_character_each(generate(tiny_qwen3, ids, 30)) for ids in prompts]


def test_long_prompts_are_read_in_chunks(tiny_qwen3: Any) -> None:
    prompts = random_prompts(13, 0, [1100, 9, 1024])
    texts = [text_of(pieces) for pieces in write(make_engine(tiny_qwen3), prompts, 8)]
    assert texts == [one_character_each(generate(tiny_qwen3, ids, 8)) for ids in prompts]


@pytest.mark.parametrize("options", [{"max_batch_tokens": 100}, {}], ids=["small batches", "out of memory"])
def test_writing_in_several_batches(model: Any, options: dict[str, Any]) -> None:
    prompts = random_prompts(14, 20, [5, 30, 9, 2, 14])
    engine = make_engine(model if options else narrow(model, 2), **options)
    texts = [text_of(pieces) for pieces in write(engine, prompts, 20)]
    assert texts == [one_character_each(generate(model, ids, 20)) for ids in prompts]


def test_out_of_memory_midway_goes_on_where_the_text_stood(tiny_qwen3: Any) -> None:
    calls = 0

    def before(rows: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 12 and rows > 1:
            raise torch.OutOfMemoryError("out of memory")

    prompts = random_prompts(15, 0, [12, 20, 7])
    texts = [text_of(pieces) for pieces in write(make_engine(Wrapped(tiny_qwen3, before)), prompts, 25)]
    assert texts == [one_character_each(generate(tiny_qwen3, ids, 25)) for ids in prompts]


def test_a_text_that_never_fits_in_memory_ends_as_cut_off(tiny_qwen3: Any) -> None:
    (pieces,) = write(make_engine(narrow(tiny_qwen3, 0)), [[5, 6, 7]], 5)
    assert pieces == [WritePiece(0, "", 0, "length")]


def test_a_stop_id_ends_the_text_and_is_not_in_it(tiny_qwen3: Any) -> None:
    (ids,) = random_prompts(16, 0, [20])
    expected = generate(tiny_qwen3, ids, 30, ())
    at = next(at for at in range(5, 30) if expected[at] not in expected[:at])
    (pieces,) = write(make_engine(tiny_qwen3, stop_ids={expected[at]}), [ids], 30)
    assert text_of(pieces) == one_character_each(expected[:at])
    assert pieces[-1].finish == "stop"


def test_a_stop_string_ends_the_text_with_itself(tiny_qwen3: Any) -> None:
    (ids,) = random_prompts(17, 0, [20])
    written = one_character_each(generate(tiny_qwen3, ids, 30, ()))
    at = next(at for at in range(6, 30) if written[at] not in written[:at])
    engine = make_engine(tiny_qwen3, stop_ids=(), stop_strings=(written[at - 2 : at + 1], "never"))
    (pieces,) = write(engine, [ids], 30)
    assert text_of(pieces) == written[: at + 1]
    assert pieces[-1].finish == "stop"
    assert sum(piece.tokens for piece in pieces) == at + 1


def test_writing_stops_at_the_context_limit(model: Any) -> None:
    limit = model.config.max_position_embeddings
    prompts = random_prompts(18, 0, [limit - 3, limit])
    almost, full = write(make_engine(model), prompts, 50)
    assert sum(piece.tokens for piece in almost) == 3
    assert almost[-1].finish == "length"
    assert full == [WritePiece(1, "", 0, "length")]


def test_asking_for_no_tokens_or_for_nothing_at_all(tiny_qwen3: Any) -> None:
    assert write(make_engine(tiny_qwen3), [[4, 5]], 0) == [[WritePiece(0, "", 0, "length")]]
    with pytest.raises(InputError, match="request 1 has an empty prompt"):
        write(make_engine(tiny_qwen3), [[4, 5], []], 3)


def test_speculation_is_refused_where_a_draft_cannot_be_taken_back(tiny_qwen35: Any) -> None:
    with pytest.raises(EngineError, match="speculation needs plain attention"):
        make_engine(tiny_qwen35, speculate=True)


# -- text


def test_only_complete_characters_are_streamed(tiny_tokenizer: Any) -> None:
    text = "Grüße, 铜比铁好 🦜 конец </evidence>"
    stream = TextStream(lambda ids: str(tiny_tokenizer.decode(ids)), ())
    pieces = [stream.push(token) for token in tiny_tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces.count("") >= 4  # the parrot is four bytes, none of them in the training text


def bytes_as_tokens(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("offset", range(4))
def test_long_texts_stream_like_they_decode(offset: int) -> None:
    text = "x" * offset + "银🦜ü" * 40
    stream = TextStream(bytes_as_tokens, ())
    assert "".join(stream.push(token) for token in text.encode()) == text


def test_bytes_that_are_no_text_are_passed_on_and_a_broken_end_is_not() -> None:
    stream = TextStream(bytes_as_tokens, ())
    assert "".join(stream.push(token) for token in b"a\xffb\xe9\x93") == "a\ufffdb"


def test_a_run_of_broken_bytes_waits_until_text_follows() -> None:
    """As servers do, so that the end of a cut text does not depend on the engine."""
    stream = TextStream(bytes_as_tokens, ())
    assert "".join(stream.push(token) for token in b"a" + b"\xff" * 50) == "a"
    assert stream.push(ord("b")) == "\ufffd" * 50 + "b"


def test_a_stop_string_is_found_across_tokens_and_nothing_after_it_is_shown() -> None:
    stream = TextStream(lambda ids: "".join(("ab</", "evi", "dence>\nyes")[at] for at in ids), ("</evidence>", "yes"))
    assert [stream.push(0), stream.push(1)] == ["ab</", "evi"]
    assert not stream.stopped
    assert stream.push(2) == "dence>"
    assert stream.stopped


# -- drafts


@pytest.mark.parametrize(
    ("ids", "draft"),
    [
        ([1, 2, 3, 4, 5, 9, 1, 2, 3], [4, 5, 9]),  # three tokens match
        ([7, 2, 3, 4, 8, 2, 3], [4, 8, 2]),  # two
        ([7, 3, 4, 8, 1, 3], [4, 8, 1]),  # one
        ([1, 3, 5, 1, 3, 6, 1, 3], [6, 1, 3]),  # the most recent occurrence
        ([4, 5, 4, 5], [4, 5, 4]),  # a repetition goes on
        ([6, 6], [6, 6, 6]),
        ([1, 2, 3], []),
    ],
)
def test_drafts_continue_what_came_before(ids: list[int], draft: list[int]) -> None:
    assert Lookup().draft(ids, 3) == draft
    grown = Lookup()
    for length in range(1, len(ids)):
        grown.draft(ids[:length], 3)
    assert grown.draft(ids, 3) == draft


def test_shared_length_leaves_a_token_of_every_prompt() -> None:
    same = list(range(40))
    assert shared_length([same, [*same, 1]]) == 39
    assert shared_length([[*same, 1], [*same, 2, 3], [*same, 2, 4]]) == 40
    assert shared_length([[*same[:15], 1], [*same[:15], 2]]) == 0
    assert shared_length([same]) == shared_length([]) == 0


# -- life and death


def slow(model: Any, calls: list[int]) -> Wrapped:
    def before(rows: int) -> None:
        calls.append(rows)
        time.sleep(0.01)

    return Wrapped(model, before)


async def settled(calls: list[int]) -> int:
    """How many forward passes there were, once no more come."""
    await asyncio.sleep(0.15)
    count = len(calls)
    await asyncio.sleep(0.15)
    assert len(calls) == count
    return count


def test_cancelling_a_score_stops_the_work(tiny_qwen3: Any) -> None:
    async def scenario() -> None:
        calls: list[int] = []
        engine = make_engine(slow(tiny_qwen3, calls), max_batch_tokens=1)
        task = asyncio.create_task(engine.score(random_prompts(30, 0, [5] * 400)))
        while len(calls) < 3:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await settled(calls) < 100
        good = random_prompts(31, 0, [5])
        assert len((await engine.score(good)).labels) == 1

    asyncio.run(scenario())


def test_closing_the_generator_early_stops_the_work(tiny_qwen3: Any) -> None:
    async def scenario() -> None:
        calls: list[int] = []
        engine = make_engine(slow(tiny_qwen3, calls), stop_ids=(), speculate=False)
        pieces = engine.write([WriteRequest([5, 6, 7], 1000)])
        await anext(pieces)
        await pieces.aclose()
        assert await settled(calls) < 100

    asyncio.run(scenario())


def test_pieces_come_while_the_text_is_being_written(tiny_qwen3: Any) -> None:
    async def scenario() -> None:
        calls: list[int] = []
        engine = make_engine(slow(tiny_qwen3, calls), stop_ids=(), speculate=False)
        seen = [len(calls) async for _ in engine.write([WriteRequest([5, 6, 7], 30)])]
        assert len(seen) == 30
        assert seen[0] < 15

    asyncio.run(scenario())


def test_closing_ends_the_work_under_way_and_refuses_more(tiny_qwen3: Any) -> None:
    async def scenario() -> None:
        calls: list[int] = []
        engine: Engine = make_engine(slow(tiny_qwen3, calls), max_batch_tokens=1)
        running = asyncio.create_task(engine.score(random_prompts(32, 0, [5] * 400)))
        queued = asyncio.create_task(engine.score(random_prompts(33, 0, [5])))
        while len(calls) < 3:
            await asyncio.sleep(0.005)
        await engine.aclose()
        await engine.aclose()
        for task in (running, queued):
            with pytest.raises(EngineError):
                await task
        with pytest.raises(EngineError, match="closed"):
            await engine.score([[1]])

    asyncio.run(scenario())
