"""Batched greedy decoding with prompt-lookup speculation: token for token what greedy decoding one by one writes.

A model whose layers all keep plain keys and values decodes *slotted*: the token at position p lives in cache slot p, so
a rejected draft is simply overwritten and rows of different lengths need no padding in the cache. Any other model
(linear attention, sliding windows) decodes *padded*, one token a step, because its state cannot be taken back.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from prism.engines.base import WritePiece, WriteRequest
from prism.engines.model_thread import Check
from prism.engines.row import BatchRow, BatchState, TextStream, shared_length, write_batch
from prism.errors import EngineError

_PREFILL_TOKENS = 1024
"""Columns of a prompt computed at once: bounds the attention mask and the activations."""
_GROW_SLOTS = 256

_logger = logging.getLogger(__name__)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device or the CPU allocator ran out of memory."""
    message = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "can't allocate memory" in message
        or "not enough memory" in message
    )


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device, *, left: bool = False, multiple: int = 1
) -> Tensor:
    """Ragged ids -> [B, T], T a multiple of `multiple`."""
    width = -(-max(map(len, rows)) // multiple) * multiple
    fill = ([pad_id] * (width - len(row)) for row in rows)
    padded = [[*gap, *row] if left else [*row, *gap] for row, gap in zip(rows, fill, strict=True)]
    return torch.tensor(padded, dtype=torch.long, device=device)


class LanguageModel:
    """The parts of a transformers causal model that decoding needs."""

    def __init__(self, model: Any, pad_id: int) -> None:
        self.body = model.get_decoder()
        self.head = model.get_output_embeddings()
        self.config = model.config.get_text_config(decoder=True)
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.pad_id = pad_id
        self.context: int = self.config.max_position_embeddings
        self.attention: str = self.config._attn_implementation
        self.layer_kinds = {type(layer) for layer in DynamicCache(config=self.config).layers}
        # its name from transformers 5.24 on; the old one goes with 5.40
        renamed = "cache" in inspect.signature(model.forward).parameters
        self._cache_argument = "cache" if renamed else "past_key_values"

    @property
    def slotted(self) -> bool:
        """Every layer keeps plain keys and values, and attention takes a mask of our own."""
        return self.layer_kinds == {DynamicLayer} and self.attention in ("sdpa", "eager")

    def hidden(self, ids_BT: Tensor, *, cache: Any = None, **inputs: Any) -> Tensor:
        """Last hidden states [B, T, H]; keys and values are read from `cache`, if there is one, and added to it."""
        if cache is not None:
            inputs[self._cache_argument] = cache
        hidden_BTH: Tensor = self.body(input_ids=ids_BT, use_cache=cache is not None, **inputs).last_hidden_state
        return hidden_BTH

    def next_tokens(self, hidden_BTH: Tensor) -> Tensor:
        """[B, T]: the most likely next token after each position; -1 after NaN or infinity. Does not wait."""
        best_BT: Tensor = self.head(hidden_BTH).argmax(-1)
        return best_BT.masked_fill_(~torch.isfinite(hidden_BTH).all(-1), -1)

    def known(self, best: list[list[int]]) -> list[list[int]]:
        """Next tokens as they come from the device. Raises EngineError where one of them is -1."""
        if min(map(min, best)) < 0:
            raise EngineError(f"the model computed NaN or infinity in {self.dtype} while writing; try float32")
        return best

    def best(self, hidden_BTH: Tensor) -> list[list[int]]:
        """By row and position: the most likely next token. Waits for the device, once."""
        return self.known(self.next_tokens(hidden_BTH).tolist())


Read = Callable[[Sequence[Sequence[int]], int], Tensor]
"""Ids of each row, and at which position all of them begin -> hidden states [B, T, H]."""


def last_hidden(prompts: Sequence[Sequence[int]], start: int, check: Check, read: Read) -> Tensor:
    """The hidden state [B, 1, H] of each prompt's last token; the prompts are read from `start` on, in chunks."""
    last: list[Tensor] = [torch.empty(0)] * len(prompts)
    for column in range(start, max(map(len, prompts)), _PREFILL_TOKENS):
        check()
        chunk = [ids[column : column + _PREFILL_TOKENS] for ids in prompts]
        hidden_BTH = read(chunk, column)
        for row, ids in enumerate(chunk):
            if ids:
                last[row] = hidden_BTH[row, len(ids) - 1]
    return torch.stack(last)[:, None]


class _Slots:
    """Where the tokens of the current forward pass go; shared by all layers of a cache."""

    positions: Tensor
    """[B, T]"""
    rows: Tensor
    """[B, 1]"""
    used: int
    """Slots that any row may read in this pass."""


class _SlotLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values in slots chosen by the caller, in a buffer that grows in large steps."""

    def __init__(self, slots: _Slots) -> None:
        super().__init__()
        self._slots = slots

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        slots = self._slots
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        if self.keys.shape[2] < slots.used:
            self.keys, self.values = _grown(self.keys, slots.used), _grown(self.values, slots.used)
        self.keys[slots.rows, :, slots.positions] = key_states.transpose(1, 2)
        self.values[slots.rows, :, slots.positions] = value_states.transpose(1, 2)
        return self.keys[:, :, : slots.used], self.values[:, :, : slots.used]


def _grown(buffer: Tensor, used: int) -> Tensor:
    """A buffer with room for `used` slots. Zeros, because 0 * NaN left in a masked slot would be NaN."""
    B, H, old, D = buffer.shape
    grown = buffer.new_zeros(B, H, -(-used // _GROW_SLOTS) * _GROW_SLOTS, D)
    grown[:, :, :old] = buffer
    return grown


class _SlottedRows:
    """Slot = position: a query reads the slots up to its own position, so stale slots beyond it never count."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._slots = _Slots()
        self._cache = Cache(layers=[_SlotLayer(self._slots) for _ in range(model.config.num_hidden_layers)])

    def start(self, prompts: Sequence[Sequence[int]], check: Check) -> list[list[int]]:
        shared = shared_length(prompts)
        if shared:
            last_hidden([prompts[0][:shared]], 0, check, self._chunk)
            self.keep([0] * len(prompts))
        return self._model.best(last_hidden(prompts, shared, check, self._chunk))

    def _chunk(self, chunk: Sequence[Sequence[int]], column: int) -> Tensor:
        return self._forward(chunk, [column] * len(chunk))

    def step(self, feeds: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[int]]:
        return self._model.best(self._forward(feeds, starts))

    def _forward(self, feeds: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Right-padding falls into slots past the row's end, which later tokens overwrite."""
        model, slots = self._model, self._slots
        ids_BT = pad(feeds, model.pad_id, model.device)
        B, T = ids_BT.shape
        slots.positions = torch.tensor(starts, device=model.device)[:, None] + torch.arange(T, device=model.device)
        slots.rows = torch.arange(B, device=model.device)[:, None]
        slots.used = max(starts) + T
        mask_B1TS = torch.arange(slots.used, device=model.device) <= slots.positions[:, None, :, None]
        if model.attention == "eager":  # adds the mask to the scores instead of selecting by it
            mask_B1TS = torch.zeros_like(mask_B1TS, dtype=model.dtype).masked_fill(
                ~mask_B1TS, torch.finfo(model.dtype).min
            )
        return model.hidden(
            ids_BT,
            position_ids=slots.positions,
            attention_mask=mask_B1TS,
            cache=self._cache,
        )

    def keep(self, rows: Sequence[int]) -> None:
        self._cache.reorder_cache(torch.tensor(rows, device=self._model.device))


class _PaddedRows:
    """Left-padded rows on the model's own cache, one token a step."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._cache = DynamicCache(config=model.config)

    def start(self, prompts: Sequence[Sequence[int]], check: Check) -> list[list[int]]:
        check()
        model = self._model
        ids_BT = pad(prompts, model.pad_id, model.device, left=True)
        self._mask = pad([[1] * len(ids) for ids in prompts], 0, model.device, left=True)
        positions_BT = (self._mask.cumsum(1) - 1).clamp(min=0)
        return model.best(self._forward(ids_BT, positions_BT)[:, -1:])

    def step(self, feeds: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[int]]:
        ids_B1 = torch.tensor(feeds, device=self._model.device)
        self._mask = torch.cat([self._mask, torch.ones_like(ids_B1)], dim=1)
        positions_B1 = torch.tensor(starts, device=self._model.device)[:, None]
        return self._model.best(self._forward(ids_B1, positions_B1))

    def _forward(self, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
        return self._model.hidden(
            ids_BT,
            position_ids=positions_BT,
            attention_mask=self._mask,
            cache=self._cache,
        )

    def keep(self, rows: Sequence[int]) -> None:
        index = torch.tensor(rows, device=self._model.device)
        self._cache.reorder_cache(index)
        self._mask = self._mask[index]


class Memory(Protocol):
    """Where the rows of a batch are kept while they are written."""

    def tokens(self, rows: int, longest: int) -> int:
        """How much so many rows, the longest of which ends at that length, take."""

    def batch(self, rows: int, longest: int) -> BatchState:
        """Room for them. What an earlier batch kept is gone."""


class _GrowingMemory:
    """Every batch has its own, which grows with it."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def tokens(self, rows: int, longest: int) -> int:
        return rows * longest

    def batch(self, rows: int, longest: int) -> BatchState:
        return _SlottedRows(self._model) if self._model.slotted else _PaddedRows(self._model)


class Decoder:
    """Writes the continuations of many prompts at once."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        memory: Memory | None = None,
        stop_ids: Collection[int],
        stop_strings: Collection[str],
        decode: Callable[[list[int]], str],
        max_batch_tokens: int,
        speculate: bool,
    ) -> None:
        self._model = model
        self._memory = memory or _GrowingMemory(model)
        self._stop_ids = frozenset(stop_ids)
        self._stop_strings = tuple(stop_strings)
        self._decode_ids = decode
        self._max_batch_tokens = max_batch_tokens
        self._speculate = speculate

    def write(self, requests: Sequence[WriteRequest], check: Check) -> Iterator[WritePiece]:
        """Pieces of all texts, interleaved; earlier requests are written first where not all fit in one batch."""
        rows = []
        for index, request in enumerate(requests):
            limit = min(len(request.ids) + request.max_tokens, self._model.context)
            if limit <= len(request.ids):
                yield WritePiece(index, "", 0, "length")
            else:
                text = TextStream(self._decode_ids, self._stop_strings)
                rows.append(BatchRow(index, request.ids, limit, text))
        for batch in self._batches(rows):
            yield from self._write_batch(batch, check)

    def _batches(self, rows: Iterable[BatchRow]) -> Iterator[list[BatchRow]]:
        batch: list[BatchRow] = []
        for row in rows:
            longest = max(row.limit, *(other.limit for other in batch)) if batch else row.limit
            if batch and self._memory.tokens(len(batch) + 1, longest) > self._max_batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _write_batch(self, rows: list[BatchRow], check: Check) -> Iterator[WritePiece]:
        """When memory runs out, halves of the batch go on one after the other from where they stand."""
        try:
            yield from self._decode(rows, check)
            return
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        if len(rows) == 1:
            _logger.warning("out of memory while writing text %d after %d tokens", rows[0].index, len(rows[0].ids))
            yield WritePiece(rows[0].index, "", 0, "length")
            return
        unfinished = [row for row in rows if row.finish is None]
        middle = (len(unfinished) + 1) // 2
        for half in (unfinished[:middle], unfinished[middle:]):
            if half:
                yield from self._write_batch(half, check)

    def _decode(self, rows: list[BatchRow], check: Check) -> Iterator[WritePiece]:
        yield from write_batch(
            self._memory.batch(len(rows), max(row.limit for row in rows)),
            rows,
            stop_ids=self._stop_ids,
            context=self._model.context,
            speculate=self._speculate,
            check=check,
        )
