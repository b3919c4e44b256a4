"""A new Qwen3 model and its tokenizer, from nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prism.template import TemplateSpec
from prism.training.recipe import Scratch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Words apart from punctuation, numbers digit by digit, runs of white space: the split the Qwen tokenizers use
# (tokenizer.json of Qwen/Qwen3-0.6B), which keeps numbers copyable.
_PRE_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], spec: TemplateSpec, vocab_size: int) -> Any:
    """Byte-level BPE with the template's control tokens; the written tags are tokens too, which saves writing them."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import AddedToken, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRE_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", spec.end_of_turn]
    tags = [f"<{mark}{tag}>" for tag in (spec.contribution_tag, spec.evidence_tag) for mark in ("", "/")]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials) - len(tags),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The label words must be single tokens whatever the corpus holds.
    labels = [f"{spec.yes} {spec.no}\n"] * 5000
    backend.train_from_iterator((text for source in (texts, labels) for text in source), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=spec.end_of_turn, pad_token=specials[0], clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": specials[1:2]})
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in tags])
    return tokenizer


def new_model(scratch: Scratch, tokenizer: Any) -> PreTrainedModel:
    """A Qwen3 with tied embeddings; seed torch first."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    vocabulary = -(-len(tokenizer) // 64) * 64  # whole tiles for matrix units
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=scratch.hidden_size,
        num_hidden_layers=scratch.layers,
        num_attention_heads=scratch.heads,
        num_key_value_heads=scratch.heads,
        head_dim=scratch.head_dim,
        intermediate_size=scratch.mlp_size,
        max_position_embeddings=scratch.max_positions,
        # Slow rotations, as in Qwen3: equal tokens still find each other hundreds of positions apart.
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_THETA},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    if scratch.induction:
        wire_induction(model)
    return model


_ROPE_THETA = 1e6
_EMBEDDING_CONSTANT = 4.0
_LOGIT_SCALE = 0.05
_SHARPNESS = 4.0
_COPY_GAIN = 5.0
_OFFSET_PAIRS = 4
_CONTENT_PAIRS = 14


def wire_induction(model: Any) -> None:
    """Start layers 0 and 1 as an induction circuit, in place: what follows an earlier occurrence of a token is copied.

    Layer 0 attends to the previous token and adds that token's embedding, turned by a random rotation M. Layer 1
    attends to positions whose *previous* token equals the current one, and copies what stands there. It is the circuit
    that models find by themselves after some millions of tokens (Olsson et al. 2022, "In-context Learning and Induction
    Heads", section "Mechanistic"); here copying works before the first step, and lexical matching is near.

    Embeddings get unit variance and one constant coordinate, from which layer 0 makes a query and a key that meet at
    offset one through the fast rotary pairs. Content is compared in the slow pairs, which distance hardly turns.
    """
    import torch

    hidden, heads, head_dim = (getattr(model.config, k) for k in ("hidden_size", "num_attention_heads", "head_dim"))
    half = head_dim // 2
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0.0, 1.0)[:, 0] = _EMBEDDING_CONSTANT
        model.model.norm.weight.fill_(_LOGIT_SCALE)
        content = torch.eye(hidden)
        content[0, 0] = 0.0
        slices, turn = _orthonormal(hidden, hidden), _orthonormal(hidden, hidden)
        offset = torch.zeros(head_dim)
        offset[:_OFFSET_PAIRS] = 1.0
        slow = torch.zeros(head_dim)
        slow[_CONTENT_PAIRS:half] = slow[half + _CONTENT_PAIRS :] = 1.0
        previous, copy = (model.model.layers[i].self_attn for i in (0, 1))
        for head in range(heads):
            rows = slice(head * head_dim, (head + 1) * head_dim)
            own = slices[rows] if rows.stop <= hidden else _orthonormal(head_dim, hidden)
            previous.q_proj.weight[rows, 0] = offset
            previous.k_proj.weight[rows, 0] = _rotated(offset, 1.0)
            previous.v_proj.weight[rows] = own @ content
            previous.o_proj.weight[:, rows] = content @ turn @ own.T
            compared = slow[:, None] * (_orthonormal(head_dim, hidden) @ content)
            copy.q_proj.weight[rows] = compared
            copy.k_proj.weight[rows] = compared @ turn.T
            copy.v_proj.weight[rows] = own @ content
            copy.o_proj.weight[:, rows] = _COPY_GAIN * content @ own.T
        for attention in (previous, copy):
            attention.q_norm.weight.fill_(_SHARPNESS)
        for layer in model.model.layers[2:]:  # later layers start by attending to equal tokens
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)


def _orthonormal(rows: int, columns: int) -> Tensor:
    """Random orthonormal rows."""
    import torch

    return torch.linalg.qr(torch.randn(columns, rows))[0].T


def _rotated(vector: Tensor, offset: float) -> Tensor:
    """A head vector as rotary embedding turns it over `offset` positions (pairs are i and i + half)."""
    import torch

    half = len(vector) // 2
    angles = offset * _ROPE_THETA ** (-torch.arange(half) / half)
    first, second = vector[:half], vector[half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin])
