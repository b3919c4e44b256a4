"""The vLLM engine: vLLM's own processes hold the model, `AsyncLLM` talks to them from this one.

Scoring asks for one token and the log-probabilities of the two labels; vLLM's prefix cache computes the shared prefix
once. Writing streams greedy text with stop strings and, where every layer is plain attention, n-gram speculation.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from prism.engines.base import (
    Emit,
    LabelLogits,
    ScoreOutput,
    WritePiece,
    WriteRequest,
    require_prompts,
    unscorable,
)
from prism.engines.loop import LoopThread, gathered
from prism.engines.settings import EngineOptions, refuse_unknown
from prism.engines.vllm_cpu import GUARD, cpu_settings, cpu_threading, own_environment
from prism.errors import DocumentError, EngineError, LabelMissing, in_one_line
from prism.parallel import end_with_parent

IN_FLIGHT = 256
"""Prompts of one call that vLLM holds at once: a call of thousands does not bury a small one behind it."""
_SPECULATION = {"method": "ngram", "num_speculative_tokens": 8, "prompt_lookup_max": 4, "prompt_lookup_min": 2}


class VllmOptions(EngineOptions):
    speculate: bool | None = None
    """N-gram drafts; None: where every layer is plain attention."""
    options: dict[str, Any] | None = None
    """Fields of vLLM's `AsyncEngineArgs`, such as `tensor_parallel_size`; they win over what the engine sets."""


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
        Raises EngineError when vLLM does not start, InputError for a field that it has not.
        """
        self._label_ids = label_ids
        self._stop_ids = frozenset(stop_ids)
        self._stop_strings = list(stop_strings)
        config = _config(path)
        if speculate is None:
            speculate = _plain_attention(config)
        # vLLM 0.32 dies of `logprob_token_ids` in a batch with drafts (V1 model runner, rejection_sampler.py). With all
        # other tokens masked, the two most likely ones are the labels, and their difference is the same.
        self._choice = "allowed_token_ids" if speculate else "logprob_token_ids"
        self._arguments = _arguments(path, dtype, context, speculate) | dict(options or {})
        self._arguments |= exact_head(config, self._arguments)
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

    def write(self, requests: Sequence[WriteRequest]) -> AsyncGenerator[WritePiece, None]:
        """See `Engine.write`. A stop string is the last thing in `text`; a stop token is not in it."""
        require_prompts(requests)
        return self._loop.stream(partial(self._write, list(requests)))

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
                with own_environment():
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
        answers = await gathered([partial(self._score_one, llm, ids, context) for ids in prompts], IN_FLIGHT)
        return ScoreOutput([labels for labels, _ in answers], sum(cached for _, cached in answers))

    async def _score_one(self, llm: Any, ids: list[int], context: int) -> tuple[LabelLogits | DocumentError, int]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if problem := unscorable(ids, context - 1, "vLLM"):  # it wants room for the token it samples
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

    async def _write(self, requests: list[WriteRequest], emit: Emit) -> None:
        llm = await self._live()
        context: int = llm.model_config.max_model_len
        jobs = [partial(self._write_one, llm, index, request, context, emit) for index, request in enumerate(requests)]
        await gathered(jobs, IN_FLIGHT)

    async def _write_one(self, llm: Any, index: int, request: WriteRequest, context: int, emit: Emit) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        limit = min(request.max_tokens, context - len(request.ids))
        if limit <= 0:
            emit(WritePiece(index, "", 0, "length"))
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
                emit(self._read_piece(index, output))

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


def _arguments(path: Path, dtype: str, context: int | None, speculate: bool) -> dict[str, Any]:
    """Fields of `AsyncEngineArgs`."""
    return {
        "model": str(path),
        "dtype": dtype,
        "max_model_len": context,
        "enable_prefix_caching": True,
        "speculative_config": dict(_SPECULATION) if speculate else None,
        "logprobs_mode": "processed_logprobs" if speculate else "raw_logprobs",
        "generation_config": "vllm",  # the checkpoint's own sampling defaults do not apply: greedy always
        "disable_log_stats": True,
    }


def _start(arguments: Mapping[str, Any]) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    refuse_unknown("field of vLLM's AsyncEngineArgs", arguments, [field.name for field in fields(AsyncEngineArgs)])
    defaults: dict[str, Any] = {}
    if current_platform.is_cpu():
        config = _config(Path(arguments["model"]))
        os.environ.update(cpu_threading(os.environ))
        defaults = cpu_settings(arguments, config, plain_attention=_plain_attention(config))
    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**{**defaults, **arguments}))
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise EngineError(
            f"vLLM does not start with {arguments['model']}: {in_one_line(error)}; its log has more"
        ) from error


def _config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_bytes())
    return {**config, **config.get("text_config", {})}


def exact_head(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What makes vLLM compute logits in float32: rounded to bfloat16, a hundred documents share a few dozen scores.

    vLLM multiplies a quantized output layer in its own way only. What the user has set stays.
    """
    given = arguments.get("hf_overrides") or {}
    if not isinstance(given, Mapping) or arguments.get("quantization") or "quantization_config" in config:
        return {}
    return {"hf_overrides": {"head_dtype": "float32", **given}}


def _plain_attention(config: Mapping[str, Any]) -> bool:
    """Whether every layer keeps plain keys and values, so that a rejected draft can be taken back."""
    kinds = set(config.get("layer_types") or ["full_attention"])
    return kinds == {"full_attention"} and not config.get("use_sliding_window", False)


def die_with_parent() -> None:
    """vLLM's hook for plugins, called in each of its processes: those an engine of ours started do not outlive it.

    vLLM's workers watch its core process, but the core does not watch whoever started it.
    """
    if GUARD in os.environ:
        end_with_parent()
