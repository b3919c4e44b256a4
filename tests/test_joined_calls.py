"""Several callers of engine `hf` at once: one batch for all that wait, the same answers as alone."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hf_engine import VOCABULARY, make_engine

from prism.engines.base import LabelLogits, ScoreOutput
from prism.engines.hf import HfEngine
from prism.errors import EngineError

POISON = 77


class Watched:
    """A model whose first pass waits to be let go, that notes tokens of each pass, and gives NaN where 77 is read."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.passes: list[int] = []
        self.began, self.go = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def get_decoder(self) -> Any:
        return self._body

    def _body(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        self.passes.append(int((input_ids != 0).sum()))
        self.began.set()
        assert self.go.wait(60)
        out = self._model.get_decoder()(input_ids=input_ids, **inputs)
        if (input_ids == POISON).any():
            out.last_hidden_state[:] = float("nan")
        return out


@pytest.fixture
def watched(tiny_qwen3: Any) -> Watched:
    return Watched(tiny_qwen3)


def prompts_of(seed: int, lengths: Sequence[int], poison: bool = False) -> list[list[int]]:
    rng = random.Random(seed)
    made = [[rng.randrange(100, VOCABULARY) for _ in range(length)] for length in lengths]
    return [[*made[0], POISON], *made[1:]] if poison else made


def alone(model: Any, prompts: Sequence[Sequence[int]]) -> list[Any]:
    return list(asyncio.run(make_engine(model, share_prefix=False).score(prompts)).labels)


async def at_once(
    engine: HfEngine, watched: Watched, calls: Sequence[list[list[int]]], cancel: int | None = None
) -> list[ScoreOutput | BaseException]:
    """All answers; the first call is computing while the others come. `cancel`: this one is given up meanwhile."""
    tasks = [asyncio.create_task(engine.score(calls[0]))]
    await asyncio.to_thread(watched.began.wait, 60)
    tasks += [asyncio.create_task(engine.score(prompts)) for prompts in calls[1:]]
    await asyncio.sleep(0.05)
    if cancel is not None:
        tasks[cancel].cancel()
        await asyncio.sleep(0)
    watched.go.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


def run(engine: HfEngine, watched: Watched, calls: Sequence[list[list[int]]], cancel: int | None = None) -> list[Any]:
    return asyncio.run(at_once(engine, watched, calls, cancel))


def test_what_waits_is_one_batch_with_the_answers_of_each_alone(tiny_qwen3: Any, watched: Watched) -> None:
    calls = [prompts_of(1, [9]), prompts_of(2, [30, 4]), prompts_of(3, [12, 12, 7]), prompts_of(4, [3])]
    found = run(make_engine(watched, share_prefix=False, join_calls=True), watched, calls)
    assert watched.passes == [9, 30 + 4 + 12 + 12 + 7 + 3]
    for output, prompts in zip(found, calls, strict=True):
        for one, other in zip(output.labels, alone(tiny_qwen3, prompts), strict=True):
            assert one == pytest.approx(other, abs=1e-5)
        assert output.cached_tokens == 0


def test_on_a_cpu_callers_take_turns(watched: Watched) -> None:
    calls = [prompts_of(1, [9]), prompts_of(2, [30, 4]), prompts_of(4, [3])]
    run(make_engine(watched, share_prefix=False), watched, calls)
    assert watched.passes == [9, 34, 3]


def test_no_more_is_joined_than_a_batch_holds(watched: Watched) -> None:
    calls = [prompts_of(seed, [length]) for seed, length in enumerate([9, 40, 50, 30, 20])]
    run(make_engine(watched, share_prefix=False, join_calls=True, max_batch_tokens=100), watched, calls)
    assert watched.passes == [9, 40 + 50, 30 + 20]


def test_a_prompt_that_fails_fails_alone(tiny_qwen3: Any, watched: Watched) -> None:
    calls = [prompts_of(1, [9]), prompts_of(2, [30]), prompts_of(3, [8], poison=True), prompts_of(4, [5])]
    found = run(make_engine(watched, share_prefix=False, join_calls=True), watched, calls)
    assert isinstance(found[2], EngineError)
    for at in (0, 1, 3):
        assert found[at].labels[0] == pytest.approx(alone(tiny_qwen3, calls[at])[0], abs=1e-5)


@pytest.mark.parametrize("cancelled", [0, 1, 2])
def test_a_caller_that_gives_up_takes_nothing_from_the_others(
    tiny_qwen3: Any, watched: Watched, cancelled: int
) -> None:
    calls = [prompts_of(1, [9]), prompts_of(2, [30]), prompts_of(3, [8]), prompts_of(4, [5])]
    found = run(make_engine(watched, share_prefix=False, join_calls=True), watched, calls, cancelled)
    assert isinstance(found[cancelled], asyncio.CancelledError)
    for at in {0, 1, 2, 3} - {cancelled}:
        (label,) = found[at].labels
        assert isinstance(label, LabelLogits)
        assert label == pytest.approx(alone(tiny_qwen3, calls[at])[0], abs=1e-5)


def test_nothing_is_left_waiting_after_all_were_answered(watched: Watched) -> None:
    engine = make_engine(watched, share_prefix=False, join_calls=True)
    run(engine, watched, [prompts_of(1, [9]), prompts_of(2, [30]), prompts_of(3, [8], poison=True)], cancel=1)
    again = asyncio.run(engine.score(prompts_of(5, [6])))
    assert isinstance(again.labels[0], LabelLogits)
    assert not engine._waiting
