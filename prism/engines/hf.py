"""The transformers engine: scores by one forward pass per prompt over a shared prefix, writes by greedy decoding."""

from __future__ import annotations

import functools
import itertools
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
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
from prism.engines.prefix import can_attend_apart, prefix_cache, reads_prefix_apart
from prism.engines.row import shared_length
from prism.errors import DocumentError, EngineError

_WIDTHS = 32
"""Batches are as wide as a multiple of this: matrix kernels are made once for every shape, which takes longer than a
few positions more."""


class _Prefix(NamedTuple):
    tokens: int
    cache: Any | None
    apart: bool = False
    """Read where it is; else put in front of every row."""


_Part = tuple[list[tuple[int, ...]], Tensor | DocumentError]
"""Prompts, and their label logits [B, 2] on the device, or why there are none."""


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
        max_batch_tokens: int | None = None,
        speculate: bool | None = None,
        share_prefix: bool | None = None,
        threads: int | None = None,
    ) -> None:
        """`label_ids`: (yes, no). `max_batch_tokens`: rows times tokens held at once, prefix and answer included;
        None: on a GPU what half of its free memory holds, at most 131,072 (see `prism.engines.budget`).

        `share_prefix`: compute what all prompts begin with once; None: where that pays (`budget.prefix_pays`). On a GPU
        True also reads it in place, by flash attention, which no GPU has run yet: `make gpu-check` compares both.
        `speculate`: draft tokens from the text's own past; None: wherever the model can take a wrong draft back.
        `threads`: of the CPU, while this engine computes; None: the processors this process is given.
        """
        self._model: LanguageModel | None = LanguageModel(model, pad_id)
        if speculate and not self._model.slotted:
            raise EngineError(
                f"speculation needs plain attention layers under sdpa or eager, got {self._model.config.model_type} "
                f"with {self._model.attention}; leave `speculate` at None"
            )
        head = self._model.head
        self._label_rows_2H: Tensor = head.weight[list(label_ids)].detach().float()
        bias = getattr(head, "bias", None)
        self._label_bias_2: Tensor | float = 0.0 if bias is None else bias[list(label_ids)].detach().float()
        on_cpu = self._model.device.type == "cpu"
        shape = self._model.config, self._model.dtype, self._model.device
        self._max_batch_tokens = max_batch_tokens or score_tokens(*shape)
        self._share_prefix = share_prefix
        self._decoder = functools.partial(
            Decoder,
            stop_ids=stop_ids,
            stop_strings=stop_strings,
            decode=decode,
            max_batch_tokens=max_batch_tokens or write_tokens(*shape),
            speculate=self._model.slotted if speculate is None else speculate,
        )
        self._threads = threads or devices.cpu_threads()
        self._short_waits = devices.short_waits() if on_cpu and self._threads > 1 else None
        self._worker = ModelThread("prism-hf")

    # -- the protocol

    async def score(self, prompts: Sequence[Sequence[int]]) -> ScoreOutput:
        """See `Engine.score`. A prompt that is empty, too long or too large for the memory answers a DocumentError."""
        return await self._worker.run(functools.partial(self._score, [tuple(ids) for ids in prompts]))

    def write(self, requests: Sequence[WriteRequest]) -> AsyncGenerator[WritePiece, None]:
        """See `Engine.write`. A stop string is the last thing in `text`; a stop id is not in it."""
        require_prompts(requests)
        return self._worker.stream(functools.partial(self._write, list(requests)))

    async def aclose(self) -> None:
        """Stop the work under way, wait for the worker to leave, free the model. Calling twice is harmless."""
        self._model = None
        await self._worker.aclose()

    # -- on the worker thread

    def _live(self) -> LanguageModel:
        if self._model is None:
            raise EngineError("the engine was closed while this call waited for its turn")
        return self._model

    @torch.inference_mode()
    def _write(self, requests: list[WriteRequest], check: Check, emit: Emit) -> None:
        with devices.threads(self._threads):
            for piece in self._decoder(self._live()).write(requests, check):
                emit(piece)

    @torch.inference_mode()
    def _score(self, prompts: list[tuple[int, ...]], check: Check) -> ScoreOutput:
        """Equal prompts are computed once."""
        model = self._live()
        known: dict[tuple[int, ...], LabelLogits | DocumentError] = {}
        fitting: dict[tuple[int, ...], None] = {}
        for ids in prompts:
            if problem := unscorable(ids, model.context):
                known[ids] = problem
            else:
                fitting[ids] = None
        on_card = model.device.type == "cuda"
        with devices.threads(self._threads):
            prefix = self._fill_prefix(model, list(fitting))
            parts = [
                part
                for batch in self._batches(list(fitting), prefix.tokens if on_card and prefix.apart else 0)
                for part in self._score_batch(model, batch, prefix, check)
            ]
            known |= _read(parts)
        labels = [known[ids] for ids in prompts]
        refuse_nan(labels, f"{model.dtype} overflows: try float32")
        asked = sum(len(ids) for ids in prompts if ids in fitting)
        computed = prefix.tokens + sum(len(ids) - prefix.tokens for ids in fitting)
        return ScoreOutput(labels, cached_tokens=asked - computed if fitting else 0)

    def _fill_prefix(self, model: LanguageModel, prompts: list[tuple[int, ...]]) -> _Prefix:
        shared = shared_length(prompts) if model.layer_kinds <= {DynamicLayer, LinearAttentionLayer} else 0
        on_card = model.device.type != "cpu"
        apart = model.slotted and model.attention == "sdpa" and not (on_card and self._share_prefix is None)
        apart = apart and can_attend_apart(model.device, model.dtype, head_size(model.config))
        cost = CPU_PREFIX if model.device.type == "cpu" else APART_PREFIX if apart else JOINED_PREFIX
        pays = prefix_pays(shared, [len(ids) for ids in prompts], cost)
        if not shared or not (pays if self._share_prefix is None else self._share_prefix):
            return _Prefix(0, None)
        cache = DynamicCache(config=model.config)
        try:
            model.hidden(pad([prompts[0][:shared]], model.pad_id, model.device), cache=cache)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return _Prefix(0, None)
        return _Prefix(shared, cache, apart)

    def _batches(self, prompts: list[tuple[int, ...]], free: int) -> Iterator[list[tuple[int, ...]]]:
        """Longest first, so that the rows of a batch need little padding. `free`: tokens of each that take nothing."""
        batch: list[tuple[int, ...]] = []
        for ids in sorted(prompts, key=len, reverse=True):
            if batch and (len(batch[0]) - free) * (len(batch) + 1) > self._max_batch_tokens:
                yield batch
                batch = []
            batch.append(ids)
        if batch:
            yield batch

    def _score_batch(
        self, model: LanguageModel, prompts: list[tuple[int, ...]], prefix: _Prefix, check: Check
    ) -> list[_Part]:
        """Halves the batch when memory runs out, down to single prompts. Does not wait for the device."""
        check()
        try:
            return [(prompts, self._label_logits(model, prompts, prefix))]
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        if len(prompts) == 1:
            problem = f"a prompt of {len(prompts[0])} tokens does not fit in memory; shorten the document"
            return [(prompts, DocumentError(problem))]
        middle = len(prompts) // 2
        return [
            *self._score_batch(model, prompts[:middle], prefix, check),
            *self._score_batch(model, prompts[middle:], prefix, check),
        ]

    def _label_logits(self, model: LanguageModel, prompts: list[tuple[int, ...]], prefix: _Prefix) -> Tensor:
        """[B, 2]. Right-padding without a mask is exact: in a causal model nothing after a row's last token reaches it.

        Only the last token of a row is multiplied with the labels, in fp32.
        """
        ids, last = padded([ids[prefix.tokens :] for ids in prompts], model.pad_id, _WIDTHS)
        ids_BT, last_B = sent(ids, model.device), sent(last, model.device)
        hidden_BTH = _after_prefix(model, ids_BT, prefix)
        last_BH = hidden_BTH[torch.arange(len(prompts), device=model.device), last_B].float()
        return last_BH @ self._label_rows_2H.T + self._label_bias_2


def padded(rows: Sequence[Sequence[int]], pad_id: int, multiple: int) -> tuple[Tensor, Tensor]:
    """Ragged ids -> [B, T], padded on the right, T a multiple of `multiple`; and the place of each row's last, [B]."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    width = -(-int(lengths.max()) // multiple) * multiple
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    ids[np.arange(width) < lengths[:, None]] = np.fromiter(
        itertools.chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum())
    )
    return torch.from_numpy(ids), torch.from_numpy(lengths - 1)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU without waiting until it is there."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _read(parts: Sequence[_Part]) -> dict[tuple[int, ...], LabelLogits | DocumentError]:
    """What was found for each prompt. The only place where scoring waits for the device."""
    known: dict[tuple[int, ...], LabelLogits | DocumentError] = {}
    computed = [(prompts, found) for prompts, found in parts if isinstance(found, Tensor)]
    for prompts, found in parts:
        if isinstance(found, DocumentError):
            known |= dict.fromkeys(prompts, found)
    if computed:
        logits = torch.cat([found for _, found in computed]).tolist()
        asked = itertools.chain.from_iterable(prompts for prompts, _ in computed)
        known |= {ids: LabelLogits(yes, no) for ids, (yes, no) in zip(asked, logits, strict=True)}
    return known


def _after_prefix(model: LanguageModel, ids_BT: Tensor, prefix: _Prefix) -> Tensor:
    """Hidden states [B, T, H] of rows that go on after the prefix, if there is one."""
    if prefix.cache is None:
        return model.hidden(ids_BT)
    cache = prefix_cache(prefix.cache, len(ids_BT), joined=not prefix.apart)
    if not prefix.apart:
        return model.hidden(ids_BT, cache=cache)
    with reads_prefix_apart(model.config):
        return model.hidden(ids_BT, cache=cache, prefix=cache.layers)
