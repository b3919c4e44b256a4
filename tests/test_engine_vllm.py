"""The vLLM engine against real vLLM on the CPU: scores, texts, the prefix cache, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from vllm_support import SMALL, VLLM_WARNINGS, alive, children, eventually, needs_vllm

from prism.backends import open_engine, read_vllm_options
from prism.checkpoint import Checkpoint
from prism.engines.base import LabelLogits, ScoreOutput, WriteRequest
from prism.engines.rounding import looks_rounded
from prism.engines.row import shared_length
from prism.engines.vllm import VllmEngine, _config, _plain_attention, die_with_parent, exact_head
from prism.engines.vllm_cpu import GUARD, cache_bytes, cpu_threading
from prism.errors import DocumentError, EngineError, InputError, LabelMissing
from prism.types import Document

pytestmark = [pytest.mark.filterwarnings(line) for line in VLLM_WARNINGS]
CHECKPOINT = Checkpoint.load("mini")
TEMPLATE = CHECKPOINT.template
YES, NO = TEMPLATE.label_ids
QUERY = (
    "How are access keys rotated without an outage, and who has to be told before the first of them is deleted? " * 3
)
DOCUMENTS = (
    "Create a second key, switch every client to it, then delete the first key.",
    "A dashboard shows panels in rows. Each panel runs one or more queries, and rows can be folded.",
    "Keys are rotated every 90 days. Tell the owner of each client a week before.",
    "The borrow checker compares scopes to determine whether all borrows of a value are valid.",
)
PROMPTS = [TEMPLATE.render(QUERY, Document(text=f"{text} ({at})")).ids for at, text in enumerate(DOCUMENTS * 3)]
SHARED = shared_length(PROMPTS)
LONG = [5 + at % 90 for at in range(1900)]


def make(**options: Any) -> VllmEngine:
    options = {"stop_strings": TEMPLATE.stop_strings, "dtype": "float32", "options": SMALL} | options
    return VllmEngine(CHECKPOINT.path, label_ids=(YES, NO), stop_ids=TEMPLATE.stop_ids, **options)


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    made = make()
    yield made
    asyncio.run(made.aclose())


@pytest.fixture(scope="module")
def reference() -> Any:
    """The same checkpoint in the transformers engine."""
    return open_engine("hf", CHECKPOINT, dtype="float32", device="cpu")


def margins(output: ScoreOutput) -> list[float]:
    """l_yes - l_no: engines return log-probabilities or logits, a constant apart."""
    return [labels.yes - labels.no for labels in output.labels if isinstance(labels, LabelLogits)]


async def texts(engine: Any, requests: Sequence[WriteRequest]) -> list[tuple[str, str | None, int]]:
    written: list[tuple[str, str | None, int]] = [("", None, 0)] * len(requests)
    async for piece in engine.write(requests):
        text, finish, tokens = written[piece.index]
        written[piece.index] = (text + piece.text, piece.finish or finish, tokens + piece.tokens)
    return written


@needs_vllm
def test_scores_equal_transformers_and_the_shared_prefix_is_computed_once(engine, reference):
    output = asyncio.run(engine.score(PROMPTS))
    expected = asyncio.run(reference.score(PROMPTS))
    assert margins(output) == pytest.approx(margins(expected), abs=1e-3)
    assert SHARED >= 64
    more = [TEMPLATE.render(QUERY, Document(text=f"Note {at}: nothing of that kind.")).ids for at in range(10)]
    again = asyncio.run(engine.score(more))
    # whole blocks of 32 of what instruction and query take are found computed
    assert again.cached_tokens >= SHARED // 32 * 32 * len(more) // 2
    assert margins(asyncio.run(engine.score(PROMPTS))) == pytest.approx(margins(output), abs=1e-4)


@needs_vllm
def test_a_score_is_the_same_in_any_order_and_company(engine):
    known = margins(asyncio.run(engine.score(PROMPTS)))
    order = [7, 2, 11, 0, 5]
    other = margins(asyncio.run(engine.score([PROMPTS[at] for at in order])))
    alone = margins(asyncio.run(engine.score([PROMPTS[3]])))
    score = [1 / (1 + math.exp(-margin)) for margin in known]
    assert [1 / (1 + math.exp(-margin)) for margin in other] == pytest.approx([score[at] for at in order], abs=1e-6)
    assert 1 / (1 + math.exp(-alone[0])) == pytest.approx(score[3], abs=1e-6)


@needs_vllm
def test_in_bfloat16_logits_are_not_rounded():
    """Rounded to bfloat16, logits between 8 and 32 are multiples of 1/16 or 1/8: many documents share a score."""
    made = make(dtype="bfloat16")
    prompts = [TEMPLATE.render(f"{QUERY} {at}", Document(text=f"{DOCUMENTS[at % 4]} ({at})")).ids for at in range(48)]
    output = asyncio.run(made.score(prompts))
    asyncio.run(made.aclose())
    assert not looks_rounded(output.labels)
    assert len({round(margin, 4) for margin in margins(output)}) > 40


@needs_vllm
def test_an_impossible_prompt_is_that_documents_error_alone(engine):
    output = asyncio.run(engine.score([[], PROMPTS[0], [5] * 2048]))
    empty, fine, long = output.labels
    assert isinstance(empty, DocumentError)
    assert isinstance(fine, LabelLogits)
    assert isinstance(long, DocumentError)
    assert "2048 tokens" in str(long)


@needs_vllm
def test_texts_equal_transformers(engine, reference):
    requests = [WriteRequest([*ids, YES], 24) for ids in PROMPTS[:4]]
    assert asyncio.run(texts(engine, requests)) == asyncio.run(texts(reference, requests))


@needs_vllm
def test_a_stop_string_ends_the_text_and_stays_in_it():
    request = WriteRequest([*PROMPTS[0], YES], 64)
    made = make(stop_strings=("contribution>",))
    try:
        text, finish, _ = asyncio.run(texts(made, [request]))[0]
    finally:
        asyncio.run(made.aclose())
    assert (text, finish) == ("\n<contribution>", "stop")


@needs_vllm
def test_a_text_ends_with_the_context(engine):
    near = [5 + index % 90 for index in range(2040)]
    (text, finish, tokens), (nothing, ended, none) = asyncio.run(
        texts(engine, [WriteRequest(near, 100), WriteRequest([*near, *near[:8]], 100)])
    )
    assert (finish, ended) == ("length", "length")
    assert 0 < tokens <= 8
    assert (nothing, none) == ("", 0)
    assert text
    with pytest.raises(InputError, match="write request 0"):
        asyncio.run(texts(engine, [WriteRequest([], 4)]))


@needs_vllm
def test_leaving_aborts_the_requests(engine):
    async def leave() -> None:
        async for _ in engine.write([WriteRequest([*ids, YES], 1500) for ids in PROMPTS]):
            break  # the client went away

    async def cancel() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.score([[*LONG, at] for at in range(40)]), 0.05)

    for way in (leave, cancel):
        asyncio.run(way())
        assert eventually(lambda: engine._llm.get_num_unfinished_requests() == 0)
    assert len(asyncio.run(engine.score(PROMPTS)).labels) == len(PROMPTS)


@needs_vllm
def test_when_vllm_dies_calls_fail_and_the_next_starts_it_again():
    made = make()
    before = margins(asyncio.run(made.score(PROMPTS)))

    async def kill() -> None:
        await asyncio.sleep(0.2)
        for pid in engine_processes(made):
            os.kill(pid, signal.SIGKILL)

    async def killed() -> None:
        await asyncio.gather(made.score([[*LONG, at] for at in range(100)]), kill())

    with pytest.raises(EngineError, match="died"):
        asyncio.run(killed())
    assert margins(asyncio.run(made.score(PROMPTS))) == pytest.approx(before, abs=1e-4)
    started = engine_processes(made)
    assert started
    asyncio.run(made.aclose())
    asyncio.run(made.aclose())
    assert eventually(lambda: not alive(started))
    with pytest.raises(EngineError, match="closed"):
        asyncio.run(made.score(PROMPTS))


@needs_vllm
@pytest.mark.parametrize("layout", [{}, {"distributed_executor_backend": "mp"}], ids=["default", "worker apart"])
def test_no_process_survives_a_killed_parent(tmp_path, layout):
    """SIGKILL gives the parent no chance to clean up: its children must notice by themselves."""
    script = tmp_path / "holder.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import time
            from pathlib import Path
            from prism.engines.vllm import VllmEngine

            if __name__ == "__main__":
                engine = VllmEngine(
                    Path({str(CHECKPOINT.path)!r}),
                    label_ids=({YES}, {NO}),
                    stop_ids=[2],
                    stop_strings=[],
                    options={SMALL | layout!r},
                )
                print("ready", flush=True)
                time.sleep(600)
            """
        )
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        lines = iter(parent.stdout.readline, "")
        assert any(line.strip() == "ready" for line in lines)
        started = children(parent.pid)
        assert len(started) >= 1 + len(layout), "vLLM has a core process, and a worker in it or apart"
        parent.kill()
    assert eventually(lambda: not alive(started))


@needs_vllm
def test_vllm_that_does_not_start_says_why():
    with pytest.raises(EngineError, match="does not start"):
        make(options={**SMALL, "max_model_len": 10**7})
    with pytest.raises(InputError, match="AsyncEngineArgs is called 'tensor_paralel_size': did you mean 'tensor_par"):
        make(options={"tensor_paralel_size": 1})


class Silent:
    """Something like `AsyncLLM` that answers without log-probabilities."""

    class model_config:  # noqa: N801
        max_model_len = 100

    errored = False
    output_handler = None

    def __init__(self, logprobs: Any, reason: str = "length") -> None:
        self.logprobs, self.reason = logprobs, reason

    async def generate(self, prompt: Any, sampling: Any, request_id: str) -> Any:
        written = type(
            "Written", (), {"logprobs": self.logprobs, "finish_reason": self.reason, "token_ids": [1], "text": "a"}
        )
        yield type("Output", (), {"outputs": [written], "finished": True, "num_cached_tokens": None})

    def get_num_unfinished_requests(self) -> int:
        return 0

    def shutdown(self) -> None: ...


@needs_vllm
@pytest.mark.parametrize("logprobs", [None, [], [{YES: type("L", (), {"logprob": -1.0})}]])
def test_a_missing_label_raises(logprobs):
    made = make(start=lambda _: Silent(logprobs))
    with pytest.raises(LabelMissing, match="label token"):
        asyncio.run(made.score([[1, 2]]))
    asyncio.run(made.aclose())


@needs_vllm
def test_broken_numbers_and_broken_texts_raise():
    nan = type("L", (), {"logprob": float("nan")})
    made = make(start=lambda _: Silent([{YES: nan, NO: nan}], reason="abort"))
    with pytest.raises(EngineError, match="finite"):
        asyncio.run(made.score([[1, 2]]))
    with pytest.raises(EngineError, match="abort"):
        asyncio.run(texts(made, [WriteRequest([1, 2], 4)]))
    asyncio.run(made.aclose())


def test_vllms_settings_come_from_the_command_line():
    given = ["tensor_parallel_size=2", "enforce_eager=true", "quantization=fp8", 'hf_overrides={"a": 1}']
    expected = {"tensor_parallel_size": 2, "enforce_eager": True, "quantization": "fp8", "hf_overrides": {"a": 1}}
    assert read_vllm_options("vllm", given) == {"options": expected}
    assert read_vllm_options("hf", []) is None
    for engine, option, words in (
        ("hf", "a=1", "need engine 'vllm'"),
        ("vllm", "a", "NAME=VALUE"),
        ("vllm", "a b=1", "NAME=VALUE"),
    ):
        with pytest.raises(InputError, match=words):
            read_vllm_options(engine, [option])


def test_logits_are_in_float32_unless_the_user_or_the_weights_say_otherwise():
    config = {"model_type": "llama"}
    assert exact_head(config, {}) == {"hf_overrides": {"head_dtype": "float32"}}
    assert exact_head(config, {"hf_overrides": {"a": 1}}) == {"hf_overrides": {"head_dtype": "float32", "a": 1}}
    model = {"head_dtype": "model"}
    assert exact_head(config, {"hf_overrides": model}) == {"hf_overrides": model}
    assert exact_head(config, {"quantization": "fp8"}) == {}
    assert exact_head({"quantization_config": {"bits": 4}}, {"hf_overrides": {"a": 1}}) == {}


def test_only_plain_attention_speculates(tmp_path):
    config = tmp_path / "config.json"
    for text, plain in (
        ('{"model_type": "qwen3"}', True),
        ('{"layer_types": ["full_attention", "full_attention"]}', True),
        ('{"text_config": {"layer_types": ["linear_attention", "full_attention"]}}', False),
        ('{"use_sliding_window": true}', False),
    ):
        config.write_text(text)
        assert _plain_attention(_config(tmp_path)) is plain


def test_memory_on_a_cpu_is_asked_for_by_need():
    """By hand: 2 x 4 layers x 2 heads x 64 values x 2 bytes = 2 KiB a token; twice 2**20 tokens are 4 GiB."""
    shape = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512}
    config = {**shape, "max_position_embeddings": 2**20}
    arguments = {"dtype": "bfloat16", "max_model_len": None}
    assert cache_bytes(arguments, config) == 4 * 2**30
    assert cache_bytes({**arguments, "max_model_len": 2048}, config) == 2**30


@pytest.mark.parametrize("fails", [False, True], ids=["started", "not started"])
def test_the_hosts_environment_stays_as_it_was(fails, monkeypatch):
    """vLLM's processes read it when they start; a child that this process starts later must not."""
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    before, seen = dict(os.environ), {}

    def start(_: Any) -> Silent:
        seen.update(os.environ)
        os.environ.update({"LD_PRELOAD": "/lib/libiomp5.so", "OMP_NUM_THREADS": "1", "SET_BY_VLLM": "1"})
        if fails:
            raise EngineError("vLLM does not start")
        return Silent(None)

    if fails:
        with pytest.raises(EngineError, match="does not start"):
            make(start=start)
    else:
        asyncio.run(make(start=start).aclose())
    assert dict(os.environ) == before
    expected = {GUARD: "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "DEBUG"}  # the last is the user's
    assert {name: seen[name] for name in expected} == expected


def test_threads_on_a_cpu_are_set_up_unless_the_user_did(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert cpu_threading({}) == {"VLLM_CPU_OMP_THREADS_BIND": "0,1"}
    library = tmp_path / "lib" / "libiomp5.so"
    library.parent.mkdir()
    library.touch()
    assert cpu_threading({"VLLM_CPU_OMP_THREADS_BIND": "0"}) == {"LD_PRELOAD": str(library)}
    other = {"VLLM_CPU_OMP_THREADS_BIND": "0", "LD_PRELOAD": "/compiled/malloc.so"}
    assert cpu_threading(other) == {"LD_PRELOAD": f"/compiled/malloc.so:{library}"}
    assert cpu_threading({**other, "LD_PRELOAD": "/lib/libgomp-1.so"}) == {}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert cpu_threading({"LD_PRELOAD": "/lib/libomp.so"}) == {}


def test_the_guard_leaves_other_processes_alone():
    """In a process that multiprocessing did not start there is no parent to follow."""
    threads = len(os.listdir("/proc/self/task"))
    die_with_parent()
    assert len(os.listdir("/proc/self/task")) == threads


def engine_processes(engine: VllmEngine) -> set[int]:
    manager = engine._llm.engine_core.resources.engine_manager
    cores = {process.pid for process in manager.processes}
    return cores | {child for core in cores for child in children(core)}
