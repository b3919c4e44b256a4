"""Writing in steps of fixed shapes: the texts of plain `generate`, and steps that can be recorded and replayed."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engine_hf import Wrapped, generate, make_engine, one_character_each, random_prompts, write
from test_training_steps import Unwaiting
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from prism.engines.base import WritePiece, WriteRequest
from prism.engines.decode import Decoder, LanguageModel
from prism.engines.static import FED, MOST_STEPS, Shape, StaticMemory, Step
from prism.errors import EngineError

VOCABULARY, CONTEXT = 600, 1200
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
LENGTHS = (3, 90, 1, 17, 64, 65, 130)


def made(kind: str, **changes: Any) -> Any:
    """Two layers, two query heads to a key head; texts that repeat themselves, and others that do not."""
    config, model = KINDS[kind]
    shape = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
    torch.manual_seed(20260105)
    return model(config(**shape | heads | {"tie_word_embeddings": True, "initializer_range": 0.1} | changes)).eval()


@pytest.fixture(scope="module", params=list(KINDS))
def model(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


@pytest.fixture(scope="module")
def qwen3() -> Any:
    return made("qwen3")


class Tape:
    """Captures as a CUDA graph does: what a step asks of the device is recorded, and replayed without its Python. What
    is not in memory that was there before is made anew; whatever else it took from outside is as it was."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, step: Step) -> Step:
        with _Recorder() as recorder:
            step()
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            known: dict[int, Any] = {}

            def now(one: Any) -> Any:
                return known.get(id(one), one)

            for func, args, kwargs, out in recorder.calls:
                found = func(*tree_map(now, args), **tree_map(now, kwargs))
                known |= {id(a): b for a, b in zip(tree_leaves(out), tree_leaves(found), strict=True)}

        return replay


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class Seen(StaticMemory):
    """Notes the shapes of the steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shapes: list[Shape] = []

    def step(self, shape: Shape, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        self.shapes.append(shape)
        return super().step(shape, rows)


def memory_of(model: Any, most: int = 16_384, capture: Any = None) -> Seen:
    return Seen(LanguageModel(model, 0), most, capture)


@torch.inference_mode()
def texts(
    memory: StaticMemory | None,
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    *,
    check: Callable[[], None] = lambda: None,
    most: int = 16_384,
    **options: Any,
) -> list[str]:
    """What is written after each prompt; with its own growing memory where none is given."""
    options = {"stop_ids": (), "stop_strings": (), "speculate": True} | options
    decoder = Decoder(
        LanguageModel(model, 0), memory=memory, decode=one_character_each, max_batch_tokens=most, **options
    )
    found = [""] * len(prompts)
    for piece in decoder.write([WriteRequest(*one) for one in zip(prompts, max_tokens, strict=True)], check):
        found[piece.index] += piece.text
    return found


def plain(
    model: Any, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int], stop_ids: Sequence[int] = ()
) -> list[str]:
    asked = zip(prompts, max_tokens, strict=True)
    return [one_character_each(generate(model, ids, most, stop_ids)) for ids, most in asked]


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speculate", [True, False], ids=["drafts", "no drafts"])
@pytest.mark.parametrize("prefix", [0, 40], ids=["nothing shared", "shared"])
def test_the_texts_are_those_of_generate_also_when_steps_are_replayed(model: Any, prefix: int, speculate: bool) -> None:
    """Rows end at different steps: by their limits, and by a token that one of them writes."""
    prompts = random_prompts(11, prefix, LENGTHS)
    limits = [20, 7, 36, 1, 30, 36, 12]
    stop = generate(model, prompts[2], 12, ())[11]
    expected = plain(model, prompts, limits, [stop])
    assert len(expected[2]) <= 11
    tape = Tape()
    for memory in (memory_of(model), memory_of(model, capture=tape)):
        assert texts(memory, model, prompts, limits, speculate=speculate, stop_ids={stop}) == expected
        assert {shape.fed for shape in memory.shapes} == (set(FED) if speculate else {1})
    assert tape.replayed == len(memory.shapes) > tape.captured


def test_the_engine_writes_the_same_pieces(model: Any) -> None:
    """Token by token as without, stop strings included."""
    prompts = random_prompts(12, 20, [4, 30, 11])
    stop = plain(model, prompts[1:2], [20])[0][5:7]
    options = {"stop_strings": (stop,), "speculate": False}
    found: list[list[list[WritePiece]]] = []
    for graphs in (True, None):
        engine = make_engine(model, graphs=graphs, **options)
        found.append(write(engine, prompts, 40))
    assert found[0] == found[1]
    assert "".join(piece.text for piece in found[0][1]).endswith(stop)
    assert found[0][1][-1].finish == "stop"
    assert model.config._attn_implementation == "sdpa"


def test_the_context_is_filled_to_its_end(qwen3: Any) -> None:
    """Drafts and what fills up a step reach beyond it, into slots that are nobody's."""
    short = made("qwen3", max_position_embeddings=128)
    prompts = random_prompts(13, 0, [100, 127, 60, 128])
    expected = plain(short, prompts[:3], [28, 1, 68])
    for capture in (None, Tape()):
        memory = memory_of(short, capture=capture)
        assert texts(memory, short, prompts, [500] * 4) == [*expected, ""]
    assert [len(text) for text in expected[:2]] == [28, 1]


def test_long_prompts_are_read_in_chunks(qwen3: Any) -> None:
    prompts = random_prompts(14, 0, [1100, 9, 1024])
    assert texts(memory_of(qwen3), qwen3, prompts, [8] * 3) == plain(qwen3, prompts, [8] * 3)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_what_an_earlier_call_left_does_not_matter(qwen3: Any) -> None:
    """Not even NaN in every slot. The second call has other shapes in the same memory, the third those of the first."""
    memory = memory_of(qwen3, most=8192, capture=Tape())
    calls = [random_prompts(15, 30, [5, 40, 12]), random_prompts(16, 0, [300, 8]), random_prompts(17, 30, [7, 30, 20])]
    for prompts in calls:
        for layer in memory.layers(1, 8192):
            layer.fill_(float("nan"))
        limits = [25] * len(prompts)
        assert texts(memory, qwen3, prompts, limits) == plain(qwen3, prompts, limits)
    assert len({shape.capacity for shape in memory.shapes}) == 2


def test_a_call_that_is_stopped_in_the_middle_leaves_the_engine_in_order(qwen3: Any) -> None:
    memory = memory_of(qwen3, capture=Tape())
    prompts, limits = random_prompts(18, 0, [30, 4, 9, 22, 50]), [40, 12, 33, 40, 25]
    left = iter(range(9))

    def check() -> None:
        if next(left, None) is None:
            raise EngineError("the work was stopped")

    with pytest.raises(EngineError, match="stopped"):
        texts(memory, qwen3, prompts, limits, check=check)
    assert memory.shapes
    assert texts(memory, qwen3, prompts, limits) == plain(qwen3, prompts, limits)


def test_rows_move_only_when_half_of_the_batch_is_enough(qwen3: Any) -> None:
    """Five rows of 3, 5, 5, 9 and 20 tokens, the first from the prompt, one a step: four are left after two steps."""
    memory = memory_of(qwen3)
    prompts = random_prompts(19, 0, [10, 20, 30, 40, 50])
    limits = [5, 3, 20, 5, 9]
    found = texts(memory, qwen3, prompts, limits, speculate=False)
    assert found == plain(qwen3, prompts, limits)
    assert [shape.rows for shape in memory.shapes] == [8] * 2 + [4] * 2 + [2] * 4 + [1] * 11


def test_room_for_rows_by_hand(qwen3: Any) -> None:
    """Twelve tokens of a draft and the one before it may stand behind the last."""
    memory = memory_of(qwen3)
    assert memory.tokens(1, 243) == 256
    assert memory.tokens(1, 244) == 512
    assert memory.tokens(3, 100) == 4 * 256
    assert memory.tokens(4, 1024 - 13) == 4 * 1024
    assert memory.tokens(5, 1025 - 13) == 8 * 1536  # 2,048 / 4 = 512 from here on
    assert memory.tokens(1, 2049 - 13) == 3072


def test_batches_hold_what_fits_with_all_their_room(qwen3: Any) -> None:
    """1,024 tokens are four rows of 256 slots; a row that needs more than all of it makes it larger."""
    memory = memory_of(qwen3, most=1024)
    prompts = random_prompts(20, 0, [5, 30, 9, 2, 14, 21, 1100])
    limits = [20] * 7
    assert texts(memory, qwen3, prompts, limits, most=1024) == plain(qwen3, prompts, limits)
    assert max(shape.rows for shape in memory.shapes) == 4
    assert max(shape.rows * shape.capacity for shape in memory.shapes) == 1536
    assert texts(memory, qwen3, prompts[:3], limits[:3], most=1024) == plain(qwen3, prompts[:3], limits[:3])


def test_closing_the_engine_frees_the_memory(qwen3: Any) -> None:
    engine = make_engine(qwen3, graphs=True)
    write(engine, [[5, 6, 7]], 3)
    memory = weakref.ref(engine._memory)
    assert memory() is not None
    asyncio.run(engine.aclose())
    gc.collect()
    assert memory() is None


# --- steps -----------------------------------------------------------------------------------------------------------

requests = st.lists(st.tuples(st.integers(1, 120), st.integers(1, 24)), min_size=1, max_size=7)


@pytest.fixture(scope="module")
def shared_memory(qwen3: Any) -> tuple[Seen, Tape]:
    tape = Tape()
    return memory_of(qwen3, most=2048, capture=tape), tape


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests, st.integers(0, 1000), st.booleans())
def test_any_calls_one_after_the_other(
    qwen3: Any, shared_memory: tuple[Seen, Tape], asked: list[tuple[int, int]], seed: int, speculate: bool
) -> None:
    """On one memory: as without it, in shapes out of few, each of which is captured once."""
    memory, tape = shared_memory
    prompts = random_prompts(seed, 30 if seed % 2 else 0, [length for length, _ in asked])
    limits = [limit for _, limit in asked]
    own = texts(None, qwen3, prompts, limits, speculate=speculate)
    assert texts(memory, qwen3, prompts, limits, speculate=speculate, most=2048) == own
    shapes = set(memory.shapes)
    assert tape.captured == len(shapes)
    assert shapes <= {Shape(rows, 256, fed, 256) for rows in (1, 2, 4, 8) for fed in FED}


def test_the_step_used_longest_ago_goes_first(qwen3: Any) -> None:
    captured = []
    memory = memory_of(qwen3, capture=lambda step: captured.append(1) or (lambda: None))
    shapes = [Shape(rows, 256, fed, 256) for rows in range(1, 24) for fed in FED][: MOST_STEPS + 1]
    rows_of = {shape: [[0] * (1 + shape.fed)] * shape.rows for shape in shapes}
    for shape in (*shapes[:MOST_STEPS], shapes[0], shapes[MOST_STEPS]):
        memory.step(shape, rows_of[shape])
    assert len(captured) == MOST_STEPS + 1
    memory.step(shapes[0], rows_of[shapes[0]])  # was used again, so the second had to go
    assert len(captured) == MOST_STEPS + 1
    memory.step(shapes[1], rows_of[shapes[1]])
    assert len(captured) == MOST_STEPS + 2


class Probed(Exception):
    """A step has been run as far as this machine can."""


@pytest.mark.parametrize("fed", FED)
def test_a_step_neither_waits_nor_fetches_anything(model: Any, fed: int) -> None:
    """On torch's device without memory, where nothing can be looked up and a tensor of another device stands out."""

    class Elsewhere(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            there = {one.device.type for one in tree_leaves((args, kwargs, out)) if isinstance(one, torch.Tensor)}
            assert there <= {"meta"}, f"{func} works on {there}"
            return out

    def probe(step: Step) -> Step:
        with Elsewhere(), Unwaiting():
            step()
        raise Probed

    memory = memory_of(deepcopy(model).to("meta"), capture=probe)
    with torch.inference_mode():
        rows = memory.batch(3, 100)
        with pytest.raises(Probed):
            rows.step([[7] * fed, [8], [9]], [40, 50, 0])


def test_a_step_leaves_nothing_behind(model: Any) -> None:
    """Memory that graphs share is another's as soon as a step is done."""
    made_in_step: list[weakref.ref[torch.Tensor]] = []

    class Births(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            made_in_step.extend(weakref.ref(one) for one in tree_leaves(out) if isinstance(one, torch.Tensor))
            return out

    def watched(step: Step) -> Step:
        def run() -> None:
            with Births():
                step()

        return run

    memory = memory_of(model, capture=watched)
    assert texts(memory, model, random_prompts(21, 0, [9, 30]), [6, 6])
    gc.collect()
    before = [*memory.layers(1, 256), *model.parameters(), *model.buffers()]
    there = {one.untyped_storage().data_ptr() for one in before}
    left = [one for ref in made_in_step if (one := ref()) is not None]
    kept = [one for one in left if one.untyped_storage().data_ptr() not in there]
    assert len(made_in_step) > 100
    assert all(one.dtype is torch.long and one.ndim == 2 for one in kept), "more than the answers"
    assert len({one.untyped_storage().data_ptr() for one in kept}) <= len(set(memory.shapes))


# --- where it cannot be ----------------------------------------------------------------------------------------------


def test_memory_that_runs_out_halves_the_batch(qwen3: Any) -> None:
    """While the prompts are read, and when a step is captured: then it also may be the second of two errors."""
    prompts, limits = random_prompts(22, 0, [12, 20, 7, 15, 9]), [25] * 5

    def before(rows: int) -> None:
        if rows > 4:
            raise torch.OutOfMemoryError("out of memory")

    narrow = Wrapped(qwen3, before)

    def capture(step: Step) -> Step:
        if memory.shapes[-1].rows > 2:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            finally:
                raise RuntimeError("capture ended in an error")
        return step

    memory = memory_of(narrow, capture=capture)
    assert texts(memory, narrow, prompts, limits) == plain(qwen3, prompts, limits)
    assert {shape.rows for shape in memory.shapes} == {1, 2, 4}


def test_a_capture_that_fails_is_told_in_one_line(qwen3: Any) -> None:
    def capture(step: Step) -> Step:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with DSA")

    with pytest.raises(EngineError, match=r"^a step cannot be captured here \(CUDA error.*DSA\): leave `graphs` off$"):
        texts(memory_of(qwen3, capture=capture), qwen3, [[5, 6]], [4])


def test_what_is_no_number_is_an_engine_error(qwen3: Any) -> None:
    """From the step on: prompts are read before."""
    broken = deepcopy(qwen3)

    def capture(step: Step) -> Step:
        with torch.no_grad():
            broken.model.norm.weight.fill_(float("nan"))
        return step

    with pytest.raises(EngineError, match=r"NaN or infinity in torch\.float32 while writing"):
        texts(memory_of(broken, capture=capture), broken, [[5, 6]], [4])


def test_models_and_devices_that_cannot_are_refused(qwen3: Any, tiny_qwen35: Any) -> None:
    with pytest.raises(EngineError, match=r"got qwen3_5_text with sdpa and .*: leave `graphs` off"):
        make_engine(tiny_qwen35, graphs=True)
    eager = Qwen3ForCausalLM._from_config(deepcopy(qwen3.config), attn_implementation="eager")
    with pytest.raises(EngineError, match="got qwen3 with eager"):
        make_engine(eager, graphs=True)
    moving = made("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0})
    with pytest.raises(EngineError, match="got llama with sdpa and dynamic"):
        make_engine(moving, graphs=True)
    with pytest.raises(EngineError, match="graphs are for CUDA devices, got meta"):
        memory_of(deepcopy(qwen3).to("meta"))
