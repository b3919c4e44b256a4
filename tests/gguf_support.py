"""Tiny random models as checkpoints that llama.cpp can read, and a memory of sequences made of a transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm_support import save_float32

from prism.engines.llama_context import Run, Wants
from prism.errors import EngineError

VOCABULARY = 600
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.15,
}


def tiny_model(kind: str) -> Any:
    """`llama`: an output layer of its own; `qwen3`: heads larger than hidden / heads, output tied; `qwen2`: biases."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(20260105)
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False))
    elif kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=True))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=False))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith(("norm.weight", ".bias")):
                weights += 0.2 * torch.randn_like(weights)
    return model.eval()


def save(path: Path, kind: str, tokenizer: Any) -> Path:
    """The model's checkpoint in float32."""
    return save_float32(path, tiny_model(kind), tokenizer, name=f"tiny-{kind}")


class ModelContext:
    """`prism.engines.llama_context.Context` that reads every sequence anew, whole, with a transformers model.

    Keeps account as llama.cpp does, and refuses what that would refuse: too large batches, gaps, and more tokens than
    there are cells for. Tokens that sequences share take one cell.
    """

    def __init__(
        self, model: Any, *, context: int = 2048, batch_tokens: int = 64, batch_outputs: int = 16, sequences: int = 8
    ) -> None:
        self._model = model
        self.context, self.cells, self.sequences = context, context + batch_tokens, sequences
        self.batch_tokens, self.batch_outputs = batch_tokens, batch_outputs
        self.held: dict[int, list[tuple[int, int]]] = {}
        """By sequence: its tokens, each with the number of its cell."""
        self._next_cell = 0
        self.batches: list[int] = []
        """Tokens of each batch."""
        self.most_rows = 0
        self.fails = False
        self.closed = 0

    @torch.inference_mode()
    def read(self, runs: Sequence[Run]) -> list[NDArray[np.float32]]:
        if self.fails:
            raise EngineError("llama.cpp could not read this")
        found = []
        self.batches.append(sum(len(run.ids) for run in runs))
        assert self.batches[-1] <= self.batch_tokens
        self.most_rows = max(self.most_rows, len(runs))
        for run in runs:
            held = self.held.setdefault(run.sequence, [])
            assert run.ids
            assert 0 <= run.sequence < self.sequences
            assert len(held) == run.start, "a gap, or a position that is taken"
            for token in run.ids:
                held.append((token, self._next_cell))
                self._next_cell += 1
            if run.wants is not Wants.NOTHING:
                logits_TV = self._model(torch.tensor([[token for token, _ in held]])).logits[0]
                count = 1 if run.wants is Wants.LAST else len(run.ids)
                found += list(logits_TV[-count:].numpy())
        assert len(found) <= self.batch_outputs
        assert len({cell for held in self.held.values() for _, cell in held}) <= self.cells
        return found

    def share(self, source: int, target: int, length: int) -> None:
        assert not self.held.get(target)
        self.held[target] = self.held[source][:length]
        assert len(self.held[target]) == length

    def forget(self, sequence: int, start: int = 0) -> None:
        del self.held.setdefault(sequence, [])[start:]

    def clear(self) -> None:
        self.held = {}

    def close(self) -> None:
        self.closed += 1
