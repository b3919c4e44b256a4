"""The transformers engine: scores by one forward pass per prompt over a shared prefix, writes by greedy decoding."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionLayer

from prism import devices
from prism.engines.base import (
    Emit,
    LabelLogits,
    ScoreOutput,
    WritePiece,
    WriteRequest,
    refuse_nan,
    require_prompts,
    unscorable,
)
from prism.engines.budget import (
    APART_PREFIX,
    CPU_PREFIX,
    JOINED_PREFIX,
    head_size,
    prefix_pays,
    score_tokens,
    write_tokens,
)
from prism.engines.decode import Decoder, LanguageModel, out_of_memory, pad
from prism.engines.model_thread import Check, ModelThread
from prism.engines.passes import PackedPass, PaddedPass, Pass, Prefix, Prompt, packable
from prism.engines.prefix import can_attend_apart
from prism.engines.row import shared_length
from prism.engines.settings import EngineOptions
from prism.engines.static import StaticMemory
from prism.errors import DocumentError, EngineError

_Known = dict[Prompt, LabelLogits | DocumentError]
_Part = tuple[list[Prompt], Tensor | DocumentError]
"""Prompts, and their label logits [B, 2] on the device, or why there are none."""


class _Call:
    """What one caller asks."""

    def __init__(self, prompts: list[Prompt]) -> None:
        self.prompts = prompts
        self.found: ScoreOutput | None = None
        self.wanted = True
        """Still waited for."""


class HfOptions(EngineOptions):
    """None: as the engine finds best for the model and the machine."""

    max_batch_tokens: int | None = Field(default=None, ge=1)
    """Rows times tokens held at once, prefix and answer included; None: on a GPU what half of its free memory holds, at
    most 131,072 (see `prism.engines.budget`)."""
    speculate: bool | None = None
    """Draft tokens from the text's own past; None: wherever the model can take a wrong draft back."""
    share_prefix: bool | None = None
    """Compute what all prompts begin with once; None: where that pays (`budget.prefix_pays`). On a GPU True also reads
    it in place, by flash attention, which no GPU has run yet: `make gpu-check` compares both."""
    packed: bool | None = None
    """Score rows one after another instead of padded to the longest; None: on a CPU, wherever the model can
    (`packed.can_pack`). On GPUs this and `compiled` wait for a first run, by `make gpu-check`."""
    compiled: bool = False
    """Packed, with layers made for this machine by torch.compile, minutes at the start; no prefix is shared then."""
    graphs: bool | None = None
    """Write in steps of fixed shapes, which a GPU replays as CUDA graphs (see `prism.engines.static`); a CPU computes
    them one by one, which gains it nothing. None: off, until a card has run it."""
    join_calls: bool | None = None
    """Score what waits from several callers in one batch, as far as it fits into one; None: on GPUs, which 50 documents
    do not fill. A prefix is then what the prompts of all of them share."""
    threads: int | None = Field(default=None, ge=1)
    """Of the CPU, while this engine computes; None: the processors this process is given."""

    @model_validator(mode="after")
    def _one_way(self) -> HfOptions:
        if self.compiled and self.packed is False:
            raise ValueError("compiled=True packs rows, packed=False does not: leave one of them out")
        if self.compiled and self.share_prefix:
            raise ValueError("compiled=True shares no prefix, share_prefix=True does: leave one of them out")
        return self


class HfEngine:
    """Scores and writes with a transformers causal language model that is already on its device and in its dtype."""

    one_at_a_time = True

    def __init__(
        self,
        model: Any,
        *,
        label_ids: tuple[int, int],
        stop_ids: Collection[int],
        stop_strings: Collection[str],
        pad_id: int,
        decode: Callable[[list[int]], str],
        options: HfOptions = HfOptions(),  # noqa: B008  # frozen
    ) -> None:
        """`label_ids`: (yes, no). Raises EngineError for options that this model or machine cannot do."""
        self._model: LanguageModel | None = LanguageModel(model, pad_id)
        if options.speculate and not self._model.slotted:
            raise EngineError(
                f"speculation needs plain attention layers under sdpa or eager, got {self._model.config.model_type} "
                f"with {self._model.attention}; leave `speculate` at None"
            )
        self._label_rows_2H, self._label_bias_2 = _label_rows(self._model.head, label_ids)
        shape = self._model.config, self._model.dtype, self._model.device
        on_cpu = self._model.device.type == "cpu"
        self._keeps_memory = on_cpu and devices.keep_memory()
        self._max_batch_tokens = options.max_batch_tokens or score_tokens(*shape)
        self._share_prefix = options.share_prefix
        self._threads = options.threads or devices.cpu_threads()
        packed = on_cpu and packable(self._model) if options.packed is None else options.packed
        with devices.threads(self._threads):  # compiled layers are made for a number of threads, too
            self._pass: Pass | None = _way(self._model, self._max_batch_tokens, packed, options.compiled)
        writes_tokens = options.max_batch_tokens or write_tokens(*shape)
        self._memory = StaticMemory(self._model, writes_tokens) if options.graphs else None
        self._decoder = functools.partial(
            Decoder,
            stop_ids=stop_ids,
            stop_strings=stop_strings,
            decode=decode,
            max_batch_tokens=writes_tokens,
            speculate=self._model.slotted if options.speculate is None else options.speculate,
        )
        self._join_calls = self._model.device.type == "cuda" if options.join_calls is None else options.join_calls
        self._waiting: deque[_Call] = deque()
        self._short_waits = devices.short_waits() if on_cpu and self._threads > 1 else None
        self._worker = ModelThread("prism-hf")

    # -- the protocol

    async def score(self, prompts: Sequence[Sequence[int]]) -> ScoreOutput:
        """See `Engine.score`. A prompt that is empty, too long or too large for the memory answers a DocumentError."""
        call = _Call([tuple(ids) for ids in prompts])
        self._waiting.append(call)
        try:
            return await self._worker.run(functools.partial(self._answer, call))
        finally:
            call.wanted = False

    def write(self, requests: Sequence[WriteRequest]) -> AsyncGenerator[WritePiece, None]:
        """See `Engine.write`. A stop string is the last thing in `text`; a stop id is not in it."""
        require_prompts(requests)
        return self._worker.stream(functools.partial(self._write, list(requests)))

    async def aclose(self) -> None:
        """Stop the work under way, wait for the worker to leave, free the model. Calling twice is harmless."""
        self._model = self._pass = self._memory = None
        await self._worker.aclose()
        if self._keeps_memory:
            devices.give_memory_back()

    # -- on the worker thread

    def _live(self) -> tuple[LanguageModel, Pass]:
        if self._model is None or self._pass is None:
            raise EngineError("the engine was closed while this call waited for its turn")
        return self._model, self._pass

    @torch.inference_mode()
    def _write(self, requests: list[WriteRequest], check: Check, emit: Emit) -> None:
        with devices.threads(self._threads):
            for piece in self._decoder(self._live()[0], memory=self._memory).write(requests, check):
                emit(piece)

    def _answer(self, call: _Call, check: Check) -> ScoreOutput:
        """What this call asks, unless an earlier one answered it along with its own."""
        if call.found is None:
            others = self._others(call)
            try:
                self._score([call, *others], check)
            except EngineError:  # of one of them, or this one is not wanted any more: the others come to their turn
                self._waiting.extend(others)
                if not others:
                    raise
                self._score([call], check)
        assert call.found is not None  # `_score` has set it
        return call.found

    def _others(self, call: _Call) -> list[_Call]:
        """Calls that wait and fit into a batch with this one; they are on the list no longer, nor is this one."""
        taken: list[_Call] = []
        tokens = sum(map(len, call.prompts))
        while self._waiting:
            other = self._waiting[0]
            tokens += sum(map(len, other.prompts)) if other is not call else 0
            if other.wanted and other is not call and not (self._join_calls and tokens <= self._max_batch_tokens):
                break
            self._waiting.popleft()
            if other.wanted and other is not call:
                taken.append(other)
        return taken

    def _score(self, calls: list[_Call], check: Check) -> None:
        prompts = [ids for call in calls for ids in call.prompts]
        known, prefix_tokens = self._known(prompts, check)
        for call in calls:
            call.found = _output(call.prompts, known, prefix_tokens)

    @torch.inference_mode()
    def _known(self, prompts: list[Prompt], check: Check) -> tuple[_Known, int]:
        """What is found for each prompt, and how many tokens all began with. Equal prompts are computed once."""
        model, way = self._live()
        known: _Known = {}
        fitting: dict[Prompt, None] = {}
        for ids in prompts:
            if problem := unscorable(ids, model.context):
                known[ids] = problem
            else:
                fitting[ids] = None
        with devices.threads(self._threads):
            prefix = self._fill_prefix(model, way, list(fitting))
            free = prefix.tokens if prefix.apart and model.device.type == "cuda" else 0
            parts = [
                part
                for batch in way.batches(fitting, free, self._max_batch_tokens)
                for part in self._score_batch(way, batch, prefix, check)
            ]
            known |= _read(parts)
        refuse_nan(list(known.values()), f"{model.dtype} overflows: try float32")
        return known, prefix.tokens

    def _fill_prefix(self, model: LanguageModel, way: Pass, prompts: list[Prompt]) -> Prefix:
        shared = shared_length(prompts) if model.layer_kinds <= {DynamicLayer, LinearAttentionLayer} else 0
        on_card = model.device.type != "cpu"
        apart = model.slotted and model.attention == "sdpa" and not (on_card and self._share_prefix is None)
        apart = apart and can_attend_apart(model.device, model.dtype, head_size(model.config))
        cost = CPU_PREFIX if model.device.type == "cpu" else APART_PREFIX if apart else JOINED_PREFIX
        pays = prefix_pays(shared, [len(ids) for ids in prompts], cost)
        wanted = pays if self._share_prefix is None else self._share_prefix
        if not shared or not wanted or not way.reads_prefix(apart):
            return Prefix(0, None)
        cache = DynamicCache(config=model.config)
        try:
            model.hidden(pad([prompts[0][:shared]], model.pad_id, model.device), cache=cache)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return Prefix(0, None)
        return Prefix(shared, cache, apart)

    def _score_batch(self, way: Pass, prompts: list[Prompt], prefix: Prefix, check: Check) -> list[_Part]:
        """Halves the batch when memory runs out, down to single prompts. Does not wait for the device."""
        check()
        try:
            return [(prompts, self._label_logits(way(prompts, prefix)))]
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        if len(prompts) == 1:
            problem = f"a prompt of {len(prompts[0])} tokens does not fit in memory; shorten the document"
            return [(prompts, DocumentError(problem))]
        middle = len(prompts) // 2
        return [
            *self._score_batch(way, prompts[:middle], prefix, check),
            *self._score_batch(way, prompts[middle:], prefix, check),
        ]

    def _label_logits(self, last_BH: Tensor) -> Tensor:
        """[B, 2]: the last token of each row is multiplied with the labels only, in fp32."""
        return last_BH.float() @ self._label_rows_2H.T + self._label_bias_2


def _label_rows(head: Any, label_ids: tuple[int, int]) -> tuple[Tensor, Tensor | float]:
    """Of the output layer, in fp32: [2, H], and its bias [2]."""
    bias = getattr(head, "bias", None)
    rows_2H: Tensor = head.weight[list(label_ids)].detach().float()
    return rows_2H, 0.0 if bias is None else bias[list(label_ids)].detach().float()


def _way(model: LanguageModel, most: int, packed: bool, compiled: bool) -> Pass:
    """How prompts go through the model. `most`: tokens of a batch."""
    if compiled:
        return PackedPass(model, most, functools.partial(torch.compile, dynamic=False))
    return PackedPass(model, most) if packed else PaddedPass(model)


def _output(prompts: list[Prompt], known: _Known, prefix_tokens: int) -> ScoreOutput:
    """What one caller gets; tokens that he shared with other callers' prompts count as computed for him."""
    scored = [ids for ids in prompts if isinstance(known[ids], LabelLogits)]
    computed = prefix_tokens + sum(len(ids) - prefix_tokens for ids in set(scored))
    return ScoreOutput([known[ids] for ids in prompts], sum(map(len, scored)) - computed if scored else 0)


def _read(parts: Sequence[_Part]) -> _Known:
    """What was found for each prompt. The only place where scoring waits for the device."""
    known: _Known = {}
    computed = [(prompts, found) for prompts, found in parts if isinstance(found, Tensor)]
    for prompts, found in parts:
        if isinstance(found, DocumentError):
            known |= dict.fromkeys(prompts, found)
    if computed:
        logits = torch.cat([found for _, found in computed]).tolist()
        asked = itertools.chain.from_iterable(prompts for prompts, _ in computed)
        known |= {ids: LabelLogits(yes, no) for ids, (yes, no) in zip(asked, logits, strict=True)}
    return known
