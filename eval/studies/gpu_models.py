"""Random models made on the device, prompts for them, and ways to score and to write: what `studies.gpu` compares."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig, Qwen3Config

from prism.engines.base import LabelLogits, WriteRequest
from prism.engines.hf import HfEngine, HfOptions
from prism.scoring import score

LABELS, FIRST_ID = (5, 9), 32
PLAIN_TOKENS = 65_536
"""Of a batch in the plain padded forward pass."""
_FIRST_CHARACTER = 0x20000


# --- device ----------------------------------------------------------------------------------------------------------


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def finish() -> None:
    """Wait until the device has done task."""
    if device().type == "cuda":
        torch.cuda.synchronize()


# --- models ----------------------------------------------------------------------------------------------------------


def made(kind: type, config: Any, dtype: torch.dtype, where: torch.device, seed: int = 7) -> Any:
    """A random model, made where it works."""
    torch.manual_seed(seed)
    with torch.device(where):
        return kind(config).to(dtype).eval()


def tiny_qwen3(**changes: Any) -> Qwen3Config:
    """Small enough for anything; heads of 64, as fast kernels want them."""
    shape = {"vocab_size": 600, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    return Qwen3Config(**{**shape, **heads, "tie_word_embeddings": True, "initializer_range": 0.1, **changes})


def qwen3(tiny: bool) -> Qwen3Config:
    """The architecture of Qwen/Qwen3-0.6B."""
    real = {"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "initializer_range": 0.02}
    return tiny_qwen3() if tiny else tiny_qwen3(**real, **heads)


def llama(tiny: bool) -> LlamaConfig:
    """The architecture of mini (SmolLM2-135M)."""
    layers, vocabulary, heads = (2, 600, 3) if tiny else (30, 49152, 9)
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64 * heads,
        intermediate_size=256 if tiny else 1536,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
    )


def dtype_here() -> torch.dtype:
    return torch.bfloat16 if device().type == "cuda" else torch.float32


def random_prompts(vocabulary: int, count: int, shared: int, own: tuple[int, int]) -> list[list[int]]:
    rng = random.Random(11)
    prefix = [rng.randrange(FIRST_ID, vocabulary) for _ in range(shared)]
    return [prefix + [rng.randrange(FIRST_ID, vocabulary) for _ in range(rng.randint(*own))] for _ in range(count)]


def engine_of(model: Any, **options: Any) -> HfEngine:
    """One character a token, so that texts compare as tokens; nothing stops a text."""
    return HfEngine(
        model,
        label_ids=LABELS,
        stop_ids=(),
        stop_strings=(),
        pad_id=0,
        decode=lambda ids: "".join(chr(_FIRST_CHARACTER + token) for token in ids),
        options=HfOptions(**options),
    )


# --- ways ------------------------------------------------------------------------------------------------------------


def by_engine(engine: HfEngine, prompts: Sequence[Sequence[int]]) -> tuple[list[float], int]:
    """Scores, and how many tokens were not computed."""
    found = asyncio.run(engine.score(prompts))
    return [score(*one) if isinstance(one, LabelLogits) else float("nan") for one in found.labels], found.cached_tokens


@torch.inference_mode()
def by_padding(model: Any, prompts: Sequence[Sequence[int]], tokens: int = PLAIN_TOKENS) -> tuple[list[float], int]:
    """A plain padded forward pass, rows sorted by length: scores in the order of the prompts."""
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    rows_2H = model.get_output_embeddings().weight[list(LABELS)].float()
    found = [0.0] * len(prompts)
    while order:
        width = len(prompts[order[0]])
        batch, order = order[: max(1, tokens // width)], order[max(1, tokens // width) :]
        rows = [[*prompts[number], *([0] * (width - len(prompts[number])))] for number in batch]
        hidden_BTH = model.get_decoder()(input_ids=torch.tensor(rows, device=model.device), use_cache=False)[0]
        last = torch.tensor([len(prompts[number]) - 1 for number in batch], device=model.device)
        last_BH = hidden_BTH[torch.arange(len(batch), device=model.device), last].float()
        for number, pair in zip(batch, (last_BH @ rows_2H.T).tolist(), strict=True):
            found[number] = score(*pair)
    return found, 0


def written(engine: HfEngine, prompts: Sequence[Sequence[int]], tokens: int) -> list[str]:
    async def collect() -> list[str]:
        texts = [""] * len(prompts)
        async for piece in engine.write([WriteRequest(ids, tokens) for ids in prompts]):
            texts[piece.index] += piece.text
        return texts

    return asyncio.run(collect())


@torch.inference_mode()
def generated(model: Any, prompts: Sequence[Sequence[int]], tokens: int) -> list[str]:
    """transformers' own greedy `generate`, all prompts in one left-padded batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=model.device)
    out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, pad_token_id=0)
    return ["".join(chr(_FIRST_CHARACTER + token) for token in row) for row in out[:, width:].tolist()]
