"""Writing where everything stays in its place: keys and values in memory made once, steps of a few fixed shapes.

A GPU waits for Python: a step starts hundreds of kernels, one by one, each of which is done before the next is there. A
step that reads and writes the same memory every time is recorded once, as a CUDA graph, and then started as one. So a
batch has room for a power of two of rows and a row for one of a few lengths; rows that are finished, or were none, are
computed along. Token p lies in slot p, as in `decode`: a wrong draft is overwritten, and so is what fills up a feed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from prism.engines.budget import head_size
from prism.engines.decode import LanguageModel, last_hidden, out_of_memory, pad
from prism.engines.model_thread import Check
from prism.engines.packed import power_of_two
from prism.engines.passes import packable, sent
from prism.engines.prefix import attends_by
from prism.engines.row import FIRST_REACH, MAX_REACH, shared_length
from prism.errors import EngineError, in_one_line

SLOTS = "prism_slots"
"""`attend_slots`, for transformers' `_attn_implementation`."""
FED = (1, 1 + FIRST_REACH, 1 + MAX_REACH)
"""Tokens of a row in a step: the last one written, and a draft."""
MOST_STEPS = 64
"""Shapes whose steps are kept; the one that was used longest ago goes first."""
_SLOT_STEP = 256
_MOVING_ROTATIONS = ("dynamic", "longrope")
"""Those look at the positions of a pass before they turn by them."""

_CAPTURING = threading.Lock()
"""torch knows one capture at a time in a process."""

Step = Callable[[], None]
"""Reads and writes memory that stays where it is."""
Capture = Callable[[Step], Step]
"""A step, which may be run for it -> what does the same as often as it is called."""


class Shape(NamedTuple):
    """What a step looks like; its memory is where another step of this shape has it."""

    rows: int
    capacity: int
    """Slots of a row."""
    fed: int
    """Tokens of a row."""
    used: int
    """Slots of a row that are looked at."""


class _Slots(NamedTuple):
    """What attention needs of a pass over B rows with T tokens each."""

    layers: Sequence[Tensor]
    """Of every layer keys and values, [2, B, key heads, slots, D]."""
    rows: Tensor
    """[B, 1]"""
    positions: Tensor
    """[B, T]"""
    mask: Tensor
    """[B, 1, query heads to a key head * T, used]: added to the scores."""


class StaticMemory:
    """A `Memory` for one batch at a time, and the steps that were made for its shapes."""

    def __init__(self, model: LanguageModel, most: int, capture: Capture | None = None) -> None:
        """`most`: tokens of a batch; a single row that takes more makes it larger. `capture`: None: CUDA graphs; on
        a CPU the step itself.

        Raises EngineError for a model and a device that cannot, and where the memory is not there.
        """
        rotation = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type", "default")
        if not packable(model) or rotation in _MOVING_ROTATIONS:
            raise EngineError(
                f"writing by graphs knows plain attention layers under sdpa and fixed rotations, got"
                f" {model.config.model_type} with {model.attention} and {rotation}: leave `graphs` off"
            )
        self.model = model
        self._capture = capture or _capture_on(model.device)
        self._most = most
        self._layers: list[Tensor] = []
        self._reserved = 0
        self._steps: OrderedDict[Shape, _Step] = OrderedDict()
        try:
            self._reserve(most)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise EngineError(f"the keys and values of {most} tokens do not fit: pass max_batch_tokens") from error

    def tokens(self, rows: int, longest: int) -> int:
        return power_of_two(rows) * _capacity(longest)

    def batch(self, rows: int, longest: int) -> _StaticRows:
        """In zeros, because 0 * NaN left in a masked slot would be NaN."""
        self._reserve(self.tokens(rows, longest))
        places = self.layers(power_of_two(rows), _capacity(longest))
        for layer in places:
            layer.zero_()
        return _StaticRows(self, rows, _capacity(longest))

    def layers(self, rows: int, capacity: int) -> list[Tensor]:
        """Of every layer [2, rows, key heads, capacity, D]; fewer rows are the first of more."""
        heads, D = self._heads()
        taken = rows * heads * capacity * D
        return [layer[:, :taken].view(2, rows, heads, capacity, D) for layer in self._layers]

    def step(self, shape: Shape, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """By row and token: the most likely next. `rows`: where each begins, and the tokens it is fed."""
        if shape not in self._steps:
            places = self.layers(shape.rows, shape.capacity)
            self._steps[shape] = _Step(self.model, places, shape, rows, self._captured)
        self._steps.move_to_end(shape)
        if len(self._steps) > MOST_STEPS:
            self._steps.popitem(last=False)
        return self._steps[shape](rows)

    def _captured(self, step: Step) -> Step:
        try:
            return self._capture(step)
        except RuntimeError as error:
            if _ran_out(error):
                raise torch.OutOfMemoryError(in_one_line(error)) from error
            raise EngineError(f"a step cannot be captured here ({in_one_line(error)}): leave `graphs` off") from error

    def _reserve(self, tokens: int) -> None:
        """Steps know the old memory's address: they go with it."""
        if tokens <= self._reserved:
            return
        self._steps.clear()
        self._layers, self._reserved = [], 0
        tokens = max(tokens, self._most)
        heads, D = self._heads()
        model = self.model
        self._layers = [
            torch.empty(2, tokens * heads * D, dtype=model.dtype, device=model.device)
            for _ in range(model.config.num_hidden_layers)
        ]
        self._reserved = tokens

    def _heads(self) -> tuple[int, int]:
        return self.model.config.num_key_value_heads, head_size(self.model.config)


class _StaticRows:
    """A `BatchState`: rows in places of the memory."""

    def __init__(self, memory: StaticMemory, rows: int, capacity: int) -> None:
        self._memory, self._model = memory, memory.model
        self._capacity = capacity
        self._layers = memory.layers(power_of_two(rows), capacity)
        self._places = list(range(rows))

    def start(self, prompts: Sequence[Sequence[int]], check: Check) -> list[list[int]]:
        shared = shared_length(prompts)
        if shared:
            last_hidden([prompts[0][:shared]], 0, check, self._chunk)
            for layer in self._layers:
                layer[:, 1 : len(prompts), :, :shared] = layer[:, :1, :, :shared]
        return self._model.best(last_hidden(prompts, shared, check, self._chunk))

    def _chunk(self, chunk: Sequence[Sequence[int]], column: int) -> Tensor:
        ids_BT = pad(chunk, self._model.pad_id, self._model.device)
        B, T = ids_BT.shape
        positions_BT = torch.arange(column, column + T, device=self._model.device).expand(B, T)
        return _hidden(self._model, [layer[:, :B] for layer in self._layers], ids_BT, positions_BT, column + T)

    def step(self, feeds: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[int]]:
        fed = next(fed for fed in FED if fed >= max(map(len, feeds)))
        used = _slots(max(starts) + fed)
        padding = [self._model.pad_id] * fed
        rows = [[0, *padding]] * power_of_two(len(self._places))
        for place, feed, start in zip(self._places, feeds, starts, strict=True):
            rows[place] = [start, *feed, *padding[len(feed) :]]
        best = self._memory.step(Shape(len(rows), self._capacity, fed, used), rows)
        return self._model.known([best[place][: len(feed)] for place, feed in zip(self._places, feeds, strict=True)])

    def keep(self, rows: Sequence[int]) -> None:
        """Rows move only when half of the batch, or less, has room for those that are left."""
        self._places = [self._places[row] for row in rows]
        count = len(rows)
        if power_of_two(count) == self._layers[0].shape[1]:
            return
        index = sent(torch.tensor(self._places), self._model.device)
        for layer in self._layers:
            layer[:, :count] = layer[:, index]
        self._layers = self._memory.layers(power_of_two(count), self._capacity)
        self._places = list(range(count))


class _Step:
    """Steps of one shape. Nothing but the rows changes from one to the next, and they have a place, too."""

    def __init__(
        self,
        model: LanguageModel,
        layers: Sequence[Tensor],
        shape: Shape,
        rows: Sequence[Sequence[int]],
        capture: Capture,
    ) -> None:
        """`rows`: those that it is tried with; it does the same to `layers` whenever it runs with them again."""
        inputs = torch.zeros(shape.rows, 1 + shape.fed, dtype=torch.long, device=model.device)
        best_BT = torch.zeros(shape.rows, shape.fed, dtype=torch.long, device=model.device)

        def compute() -> None:
            positions_BT = inputs[:, :1] + torch.arange(shape.fed, device=model.device)
            hidden_BTH = _hidden(model, layers, inputs[:, 1:], positions_BT, shape.used)
            best_BT.copy_(model.next_tokens(hidden_BTH))

        self._inputs, self._best_BT = inputs, best_BT
        self._place(rows)
        self._run = capture(compute)

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Waits for the device, once."""
        self._place(rows)
        self._run()
        best: list[list[int]] = self._best_BT.tolist()
        return best

    def _place(self, rows: Sequence[Sequence[int]]) -> None:
        self._inputs.copy_(sent(torch.tensor(rows), self._inputs.device))


class CudaGraphs:
    """Steps as CUDA graphs. One is replayed at a time and leaves nothing but what stands in memory made before, so all
    compute in the same."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch gives it no type
        self._first: Any = None
        """Kept, for the memory that graphs share lives no longer than they."""

    def __call__(self, step: Step) -> Step:
        """Other threads may use the device meanwhile, but not capture."""
        with _CAPTURING, torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):  # also leaves it when the capture fails
                step()  # kernels are chosen and loaded when they first run, which cannot be recorded
                graph = torch.cuda.CUDAGraph()
                pool = None if self._first is None else self._first.pool()
                with torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local"):
                    step()
        if self._first is None:
            self._first = graph
        replay: Step = graph.replay
        return replay


def _capture_on(device: torch.device) -> Capture:
    """A CPU starts kernels at once: there the step itself is run."""
    if device.type == "cuda":
        return CudaGraphs(device)
    if device.type != "cpu":
        raise EngineError(f"graphs are for CUDA devices, got {device}: leave `graphs` off")
    return lambda step: step


def _ran_out(error: BaseException | None) -> bool:
    """Whether it, or what it came of, is lack of memory: to end a capture that failed is an error again."""
    while error is not None:
        if isinstance(error, RuntimeError) and out_of_memory(error):
            return True
        error = error.__context__
    return False


def _slots(least: int) -> int:
    """One of few sizes: a multiple of 256, above 1,024 of a quarter of the next power of two."""
    multiple = max(_SLOT_STEP, power_of_two(least) // 4)
    return -(-least // multiple) * multiple


def _capacity(longest: int) -> int:
    """Slots for a row that ends at this length, and for what fills up its last step."""
    return _slots(longest + FED[-1])


def _hidden(model: LanguageModel, layers: Sequence[Tensor], ids_BT: Tensor, positions_BT: Tensor, used: int) -> Tensor:
    """The last hidden states [B, T, H]; keys and values go into the slots of their positions."""
    groups = model.config.num_attention_heads // model.config.num_key_value_heads
    rows_B1 = torch.arange(len(ids_BT), device=model.device)[:, None]
    later_B1TS = torch.arange(used, device=model.device) > positions_BT[:, None, :, None]
    mask = torch.zeros_like(later_B1TS, dtype=model.dtype).masked_fill_(later_B1TS, float("-inf"))
    slots = _Slots(layers, rows_B1, positions_BT, mask.repeat(1, 1, groups, 1))
    with attends_by(model.config, SLOTS):
        return model.hidden(ids_BT, position_ids=positions_BT, slots=slots)


def attend_slots(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    slots: _Slots,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention to the slots up to each token's own. Query heads that share a key head are computed as tokens of one
    head, so that keys and values are read where they lie.

    `query` [B, heads, T, D], `key` and `value` [B, key heads, T, D] -> [B, T, heads, D].
    """
    B, heads, T, D = query.shape
    keys, values = slots.layers[module.layer_idx]
    keys[slots.rows, :, slots.positions] = key.transpose(1, 2)
    values[slots.rows, :, slots.positions] = value.transpose(1, 2)
    used = slots.mask.shape[-1]
    grouped = query.reshape(B, key.shape[1], -1, D)
    out = scaled_dot_product_attention(
        grouped, keys[:, :, :used], values[:, :, :used], attn_mask=slots.mask, scale=scaling
    )
    return out.reshape(B, heads, T, D).transpose(1, 2), None


AttentionInterface.register(SLOTS, attend_slots)
