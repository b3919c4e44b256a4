"""Forward passes for scoring: rows of ids -> the hidden state of each row's last token.

Padded: a batch is as wide as its longest row. Packed: rows lie one after another, and the layers may be compiled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from prism.engines.budget import head_size
from prism.engines.decode import LanguageModel
from prism.engines.packed import PACKED, Shapes, can_pack, knows_rows, pack
from prism.engines.prefix import APART, attends_by, prefix_cache
from prism.errors import EngineError, in_one_line

_WIDTHS = 32
"""Batches are as wide, or as long, as a multiple of this: matrix kernels are made once for every shape, which takes
longer than a few positions more."""
_HALVINGS = 6
"""Sizes of a compiled batch: the largest, half of it, and so on: ten documents are not to cost what a thousand do."""
_USUAL = 512
"""Tokens of the rows that compiled layers are warmed up with."""

Prompt = tuple[int, ...]
Compiler = Callable[[Any], Callable[..., Tensor]]
"""As `torch.compile`: a module -> what does the same."""


class Prefix(NamedTuple):
    """What all prompts of a call begin with, computed once."""

    tokens: int
    cache: Any | None
    apart: bool = False
    """Read where it is; else put in front of every row."""


class Pass(Protocol):
    """A way through the model."""

    def batches(self, prompts: Iterable[Prompt], free: int, most: int) -> Iterator[list[Prompt]]:
        """Prompts to compute together, at most `most` tokens. `free`: tokens of each that take nothing."""

    def reads_prefix(self, apart: bool) -> bool:
        """Whether it can go on from a shared prefix, put in front of every row or read `apart`."""

    def __call__(self, prompts: Sequence[Prompt], prefix: Prefix) -> Tensor:
        """The last hidden state of each, [B, H]. Does not wait for the device."""


class PaddedPass:
    """Right-padding without a mask is exact: in a causal model nothing after a row's last token reaches it."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def batches(self, prompts: Iterable[Prompt], free: int, most: int) -> Iterator[list[Prompt]]:
        """Longest first, so that the rows of a batch need little padding."""
        batch: list[Prompt] = []
        for ids in sorted(prompts, key=len, reverse=True):
            if batch and (len(batch[0]) - free) * (len(batch) + 1) > most:
                yield batch
                batch = []
            batch.append(ids)
        if batch:
            yield batch

    def reads_prefix(self, apart: bool) -> bool:
        return True

    def __call__(self, prompts: Sequence[Prompt], prefix: Prefix) -> Tensor:
        device = self._model.device
        ids, last = padded([ids[prefix.tokens :] for ids in prompts], self._model.pad_id, _WIDTHS)
        hidden_BTH = self._hidden(sent(ids, device), prefix)
        return hidden_BTH[torch.arange(len(prompts), device=device), sent(last, device)]

    def _hidden(self, ids_BT: Tensor, prefix: Prefix) -> Tensor:
        model = self._model
        if prefix.cache is None:
            return model.hidden(ids_BT)
        cache = prefix_cache(prefix.cache, len(ids_BT), joined=not prefix.apart)
        if not prefix.apart:
            return model.hidden(ids_BT, cache=cache)
        with attends_by(model.config, APART):
            return model.hidden(ids_BT, cache=cache, prefix=cache.layers)


class PackedPass:
    """No padding; or, compiled, filled up to the next of seven sizes, for each of which the layers are made once. Rows
    of more tokens than those are made for go through the plain layers."""

    def __init__(self, model: LanguageModel, most: int, compiler: Compiler | None = None) -> None:
        """`most`: tokens of the largest batch. `compiler`: makes a layer for each size, here and now.

        Raises EngineError where rows would see each other, and where the compiler does not work.
        """
        if not packable(model):
            raise EngineError(
                f"rows packed together would see each other in {model.config.model_type} with {model.attention}"
                " attention: leave `packed` and `compiled` off"
            )
        self._model = model
        self._by_kernel = knows_rows(model.device, model.dtype, head_size(model.config))
        sizes = {max(_WIDTHS, most >> halvings) for halvings in range(_HALVINGS + 1)}
        self._shapes = Shapes(tuple(sorted(sizes))) if compiler else None
        self._multiple = _WIDTHS if model.device.type == "cpu" else 1
        self._layers = [compiler(layer) for layer in model.body.layers] if compiler else []
        for size in self._shapes.tokens if self._shapes else ():
            self._warm_up(size)

    def batches(self, prompts: Iterable[Prompt], free: int, most: int) -> Iterator[list[Prompt]]:
        """Longest first: what does not fit into the memory shows early."""
        batch: list[Prompt] = []
        taken = 0
        for ids in sorted(prompts, key=len, reverse=True):
            if batch and taken + len(ids) - free > most:
                yield batch
                batch, taken = [], 0
            batch.append(ids)
            taken += len(ids) - free
        if batch:
            yield batch

    def reads_prefix(self, apart: bool) -> bool:
        return apart and self._shapes is None  # one of another length would be another shape

    def __call__(self, prompts: Sequence[Prompt], prefix: Prefix) -> Tensor:
        model = self._model
        rows = [ids[prefix.tokens :] for ids in prompts]
        shapes = self._shapes if self._shapes and self._shapes.take(rows) else None
        batch = pack(rows, model.pad_id, prefix.tokens, shapes, self._multiple)
        shared = {} if prefix.cache is None else {"prefix": prefix.cache.layers}
        with attends_by(model.config, PACKED):
            hidden_1TH = (self._by_layers if shapes else model.hidden)(
                sent(batch.ids, model.device),
                position_ids=sent(batch.positions, model.device),
                ends_R1=sent(batch.ends, model.device),
                longest=batch.longest,
                by_kernel=self._by_kernel,
                **shared,
            )
        return hidden_1TH[0, sent(batch.last, model.device)]

    def _by_layers(self, ids_1T: Tensor, *, position_ids: Tensor, **inputs: Any) -> Tensor:
        """The body of the models that `can_pack` knows. All layers are alike: what is made for one serves the others,
        where the body as a whole would take a compiler thirty times longer."""
        body = self._model.body
        hidden_1TH: Tensor = body.embed_tokens(ids_1T)
        turns = body.rotary_emb(hidden_1TH, position_ids)
        for layer in self._layers:
            hidden_1TH = layer(hidden_1TH, attention_mask=None, position_embeddings=turns, **inputs)
        return body.norm(hidden_1TH)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def _warm_up(self, size: int) -> None:
        try:
            row = (self._model.pad_id,) * min(size, _USUAL)
            self([row] * (size // len(row)), Prefix(0, None))
        except torch.OutOfMemoryError as error:
            raise EngineError(f"a batch of {size} tokens does not fit in memory: pass max_batch_tokens") from error
        except torch._dynamo.exc.TorchDynamoException as error:
            raise EngineError(
                f"torch.compile does not work here ({in_one_line(error)}): leave `compiled` off, or install a C"
                " compiler and triton"
            ) from error


def packable(model: LanguageModel) -> bool:
    """Whether its rows can be packed: see `can_pack`."""
    return can_pack(model.config) and model.attention == "sdpa"


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
