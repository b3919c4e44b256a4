"""The vLLM engine: vLLM's own processes hold the model, `AsyncLLM` talks to them from this one.

Scoring asks for one token and the log-probabilities of the two labels; vLLM's prefix cache computes the shared prefix
once. Writing streams greedy text with stop strings and, where every layer is plain attention, n-gram speculation.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from prism.engines.base import LabelLogits, ScoreOutput, WritePiece, WriteRequest
from prism.engines.loop import LoopThread
from prism.errors import DocumentError, EngineError, InputError, LabelMissing
from prism.parallel import end_with_parent

IN_FLIGHT = 256
"""Prompts of one call that vLLM holds at once: a call of thousands does not bury a small one behind it."""
_SPECULATION = {"method": "ngram", "num_speculative_tokens": 8, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
_CPU_BLOCK_TOKENS = 32
"""The CPU's own default of 128 is longer than instruction and query together, so that nothing would be shared."""
_CPU_STEP_TOKENS = 8192
"""The CPU's own default of 2048 is a dozen passages: half as many documents a second on two cores."""
_FEW_CORES = 4
_ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""Apart from its worker, vLLM's core waits for it busily: on two cores a third of the documents a second."""
_PARALLEL = ("tensor", "pipeline", "data")
_OPENMP = ("libgomp", "libiomp", "libomp")
_GUARD = "PRISM_VLLM_GUARD"


class VllmEngine:
    """Scores and writes with a checkpoint directory that vLLM can serve.

    vLLM starts its processes anew from the main module, so a script that makes an engine keeps its work under
    `if __name__ == "__main__":`. If they die, calls fail with EngineError and the next call starts them again.
    """

    def __init__(
        self,
        path: Path,
        *,
        label_ids: tuple[int, int],
        stop_ids: Collection[int],
        stop_strings: Collection[str],
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        context: int | None = None,
        speculate: bool | None = None,
        options: Mapping[str, Any] | None = None,
        start: Callable[[Mapping[str, Any]], Any] | None = None,
    ) -> None:
        """Starts vLLM and waits until it is ready: seconds to minutes.

        `label_ids`: (yes, no). `context`: tokens of the longest prompt and its text, for which vLLM must find memory at
        once; None: all the model reads. `speculate`: n-gram drafts; None: where every layer is plain attention.
        `options`: fields of vLLM's `AsyncEngineArgs`, such as `tensor_parallel_size`; they win over what is set here.
        `start`: makes something like `AsyncLLM` of all those fields; None: vLLM does.
        Raises EngineError when vLLM does not start.
        """
        self._label_ids = label_ids
        self._stop_ids = frozenset(stop_ids)
        self._stop_strings = list(stop_strings)
        if speculate is None:
            speculate = _plain_attention(path)
        # vLLM 0.32 dies of `logprob_token_ids` in a batch with drafts (V1 model runner, rejection_sampler.py). With all
        # other tokens masked, the two most likely ones are the labels, and their difference is the same.
        self._choice = "allowed_token_ids" if speculate else "logprob_token_ids"
        self._arguments = {
            "model": str(path),
            "dtype": dtype,
            "max_model_len": context,
            "enable_prefix_caching": True,
            "speculative_config": dict(_SPECULATION) if speculate else None,
            "logprobs_mode": "processed_logprobs" if speculate else "raw_logprobs",
            "generation_config": "vllm",  # the checkpoint's own sampling defaults do not apply: greedy always
            "disable_log_stats": True,
            **(options or {}),
        }
        self._arguments |= exact_head(path, self._arguments)
        self._start = start or _start
        self._llm: Any = None
        self._starting = asyncio.Lock()
        self._loop = LoopThread("prism-vllm")
        try:
            self._loop.run_blocking(self._live)
        except BaseException:
            self._loop.close()
            raise

    # -- the protocol

    async def score(self, prompts: Sequence[Sequence[int]]) -> ScoreOutput:
        """See `Engine.score`. A prompt that is empty or too long answers a DocumentError."""
        return await self._loop.run(partial(self._score, [list(ids) for ids in prompts]))

    async def write(self, requests: Sequence[WriteRequest]) -> AsyncIterator[WritePiece]:
        """See `Engine.write`. A stop string is the last thing in `text`; a stop token is not in it."""
        for index, request in enumerate(requests):
            if not request.ids:
                raise InputError(f"write request {index} has an empty prompt; render it with the template first")
        async for piece in self._loop.stream(partial(self._write, list(requests))):
            yield piece

    async def aclose(self) -> None:
        """Stop the work under way and vLLM's processes. Calling twice is harmless."""
        with suppress(EngineError):  # it is closed already
            await self._loop.run(self._shutdown)
        await asyncio.to_thread(self._loop.close)

    # -- on the engine's own loop

    async def _live(self) -> Any:
        """vLLM, started if it is not running: for the first time, or after its processes died."""
        async with self._starting:
            if self._llm is not None and self._llm.errored:
                await self._shutdown()
            if self._llm is None:
                self._llm = self._start(self._arguments)
            return self._llm

    async def _shutdown(self) -> None:
        llm, self._llm = self._llm, None
        if llm is None:
            return
        idle = not llm.errored and llm.get_num_unfinished_requests() == 0
        if idle and (handler := llm.output_handler) is not None:
            handler.cancel()  # else it may read its processes' end as their death, and log that
        await asyncio.to_thread(llm.shutdown)

    async def _score(self, prompts: list[list[int]]) -> ScoreOutput:
        llm = await self._live()
        context: int = llm.model_config.max_model_len
        answers = await _gather([partial(self._score_one, llm, ids, context) for ids in prompts])
        return ScoreOutput([labels for labels, _ in answers], sum(cached for _, cached in answers))

    async def _score_one(self, llm: Any, ids: list[int], context: int) -> tuple[LabelLogits | DocumentError, int]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if problem := _problem(ids, context):
            return problem, 0
        sampling = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprobs=len(self._label_ids),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **{self._choice: list(self._label_ids)},
        )
        final = None
        async with aclosing(self._generate(llm, ids, sampling)) as outputs:
            async for output in outputs:
                final = output
        if final is None:
            raise EngineError("vLLM ended a request without an answer: try again")
        return self._read_labels(final), final.num_cached_tokens or 0

    def _read_labels(self, output: Any) -> LabelLogits:
        returned = (output.outputs[0].logprobs or [{}])[0] if output.outputs else {}
        missing = [label for label in self._label_ids if label not in returned]
        if missing:
            raise LabelMissing(
                f"vLLM returned no log-probability of label token {missing[0]}, only of {sorted(returned)[:8]}:"
                " logprob_token_ids needs vLLM 0.31 or newer"
            )
        labels = LabelLogits(*(float(returned[label].logprob) for label in self._label_ids))
        if not all(map(math.isfinite, labels)):
            raise EngineError(
                f"vLLM computed label log-probabilities yes={labels.yes}, no={labels.no}, expected finite numbers;"
                " the weights are broken or the dtype overflows: try float32"
            )
        return labels

    async def _write(self, requests: list[WriteRequest]) -> AsyncIterator[WritePiece]:
        llm = await self._live()
        context: int = llm.model_config.max_model_len
        pieces: asyncio.Queue[WritePiece | None] = asyncio.Queue()
        jobs = [
            partial(self._write_one, llm, index, request, context, pieces) for index, request in enumerate(requests)
        ]
        work = asyncio.create_task(_gather(jobs))
        work.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)  # its requests are aborted before we go

    async def _write_one(
        self, llm: Any, index: int, request: WriteRequest, context: int, pieces: asyncio.Queue[WritePiece | None]
    ) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        limit = min(request.max_tokens, context - len(request.ids))
        if limit <= 0:
            pieces.put_nowait(WritePiece(index, "", 0, "length"))
            return
        sampling = SamplingParams(
            max_tokens=limit,
            temperature=0.0,
            stop=self._stop_strings,
            include_stop_str_in_output=True,
            stop_token_ids=sorted(self._stop_ids),
            skip_special_tokens=True,
            output_kind=RequestOutputKind.DELTA,
        )
        async with aclosing(self._generate(llm, list(request.ids), sampling)) as outputs:
            async for output in outputs:
                pieces.put_nowait(self._read_piece(index, output))

    def _read_piece(self, index: int, output: Any) -> WritePiece:
        written = output.outputs[0]
        reason = written.finish_reason
        if reason not in (None, "stop", "length"):
            raise EngineError(f"vLLM ended a text with {reason!r}, expected stop or length: try again")
        ended = reason == "stop" and len(written.token_ids) > 0 and written.token_ids[-1] in self._stop_ids
        return WritePiece(index, written.text, len(written.token_ids) - ended, reason)

    async def _generate(self, llm: Any, ids: list[int], sampling: Any) -> AsyncGenerator[Any]:
        """vLLM's outputs for one prompt. Leaving early aborts the request in vLLM."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        outputs = llm.generate({"type": "token", "prompt_token_ids": ids}, sampling, uuid.uuid4().hex)
        try:
            async for output in outputs:
                yield output
        except EngineDeadError as error:
            raise EngineError(
                "vLLM's processes died: its log has the reason; the next call starts them anew"
            ) from error
        except (EngineGenerateError, ValueError) as error:
            raise EngineError(f"vLLM refused a prompt of {len(ids)} tokens: {error}") from error
        finally:
            await outputs.aclose()


def _start(arguments: Mapping[str, Any]) -> Any:
    _set_environment()
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    defaults: dict[str, Any] = {}
    if current_platform.is_cpu():
        os.environ.update(cpu_threading(os.environ))
        defaults["max_num_batched_tokens"] = _CPU_STEP_TOKENS
        if 0 < len(_cores()) <= _FEW_CORES and not any(arguments.get(f"{way}_parallel_size") for way in _PARALLEL):
            defaults["distributed_executor_backend"] = _ONE_PROCESS
        if _plain_attention(Path(arguments["model"])):
            defaults["block_size"] = _CPU_BLOCK_TOKENS
        if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            defaults["kv_cache_memory_bytes"] = _cpu_cache_bytes(arguments)
    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**{**defaults, **arguments}))
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EngineError(f"vLLM does not start with {arguments['model']}: {reason}; its log has more") from error


def _set_environment() -> None:
    """Read by vLLM when it is imported and when its processes start; what the user has set stays."""
    os.environ[_GUARD] = "1"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


def cpu_threading(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment of vLLM's processes on a CPU; what the user has set stays.

    All of few cores: vLLM leaves one to its scheduler, here too much of the machine. Intel's OpenMP where it is
    installed: with GNU's, the many short parallel sections of n-gram drafts cost up to a third of the time.
    """
    added = {}
    cores = _cores()
    if 0 < len(cores) <= _FEW_CORES and "VLLM_CPU_OMP_THREADS_BIND" not in environment:
        added["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    loaded = [entry for entry in environment.get("LD_PRELOAD", "").split(":") if entry]
    library = Path(sys.prefix, "lib", "libiomp5.so")  # where the package intel-openmp puts it
    if library.is_file() and not any(Path(entry).name.startswith(_OPENMP) for entry in loaded):
        added["LD_PRELOAD"] = ":".join([*loaded, str(library)])
    return added


def _cores() -> list[int]:
    """Those this process may run on; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


async def _gather(jobs: Sequence[Any]) -> list[Any]:
    """What the jobs return, `IN_FLIGHT` of them at a time. When one fails or the caller leaves, the others stop."""
    room = asyncio.Semaphore(IN_FLIGHT)

    async def one(job: Any) -> Any:
        async with room:
            return await job()

    tasks = [asyncio.create_task(one(job)) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_bytes())
    return {**config, **config.get("text_config", {})}


def _cpu_cache_bytes(arguments: Mapping[str, Any]) -> int:
    """Room for two of the longest sequences, at least 1 GiB. Left alone, vLLM takes nine tenths of all memory."""
    config = _config(Path(arguments["model"]))
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    values = 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * size
    context = arguments["max_model_len"] or config["max_position_embeddings"]
    return int(max(1 << 30, 2 * context * values * (4 if arguments["dtype"] == "float32" else 2)))


def exact_head(path: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What makes vLLM compute logits in float32: rounded to bfloat16, a hundred documents share a few dozen scores.

    vLLM multiplies a quantized output layer in its own way only. What the user has set stays.
    """
    given = arguments.get("hf_overrides") or {}
    if not isinstance(given, Mapping) or arguments.get("quantization") or "quantization_config" in _config(path):
        return {}
    return {"hf_overrides": {"head_dtype": "float32", **given}}


def _plain_attention(path: Path) -> bool:
    """Whether every layer keeps plain keys and values, so that a rejected draft can be taken back."""
    config = _config(path)
    kinds = set(config.get("layer_types") or ["full_attention"])
    return kinds == {"full_attention"} and not config.get("use_sliding_window", False)


def _problem(ids: Sequence[int], context: int) -> DocumentError | None:
    if not ids:
        return DocumentError("the prompt is empty, expected at least one token; render it with the template first")
    if len(ids) >= context:  # vLLM wants room for the token it samples
        return DocumentError(
            f"the prompt has {len(ids)} tokens, vLLM reads at most {context - 1}; shorten the document"
        )
    return None


def die_with_parent() -> None:
    """vLLM's hook for plugins, called in each of its processes: those an engine of ours started do not outlive it.

    vLLM's workers watch its core process, but the core does not watch whoever started it.
    """
    if _GUARD in os.environ:
        end_with_parent()
