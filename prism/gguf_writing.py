"""A checkpoint as one GGUF file: weights for llama.cpp, and beside them all that `prism.json` and the tokenizer say.

Names of tensors and keys are those that llama.cpp's own converter writes, so that other programs read the file too.
Tensors go to the disk one by one, in the type asked for; norms and biases stay float32, and what a block of 32 does not
divide is float16.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from prism import gguf_file
from prism.errors import CheckpointError
from prism.location import locate
from prism.score_version import weights

if TYPE_CHECKING:
    from torch import Tensor

    from prism.checkpoint import Checkpoint

Stored = Literal["float32", "float16", "bfloat16", "q8_0"]

_KINDS = {
    "float32": (Kind.F32, gguf.LlamaFileType.ALL_F32),
    "float16": (Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bfloat16": (Kind.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
"""By the `model_type` of transformers."""

_UNUSED = np.dtype(np.float32)
"""The writer asks for numpy's type, which says nothing where the kind is given."""

_Step = tuple[str, object]
_GPT2: _Step = ("ByteLevel", True)
_BYTES: _Step = ("ByteLevel", False)
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS: Mapping[tuple[_Step, ...], str] = {
    (_GPT2,): "gpt-2",
    (("Digits", True), _GPT2): "smollm",
    (("Split", _QWEN2_SPLIT), _BYTES): "qwen2",
    (("Split", _QWEN2_SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|")), _BYTES): "llama-bpe",
}
"""How a text is cut before merges, and llama.cpp's name for it."""


def write_gguf(path: Path, checkpoint: Checkpoint, model: Any, stored: Stored) -> None:
    """Write `model`, a causal language model of transformers, and what its checkpoint says, to the new file `path`.

    Raises CheckpointError for an architecture, or a kind of tokenizer, that llama.cpp would read as another.
    """
    config = model.config.get_text_config(decoder=True)
    _require_plain(config, checkpoint.name)
    kind, file_type = _KINDS[stored]
    tensors = {name: (tensor, _kind(tensor, kind)) for name, tensor in _tensors(model, config, checkpoint.name)}
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[_ARCHITECTURES[config.model_type]])
    try:
        _add_ours(writer, checkpoint)
        _add_shape(writer, config, checkpoint.name)
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_vocabulary(writer, checkpoint, config.vocab_size)
        for name, (tensor, own) in tensors.items():
            rows, columns = tensor.shape[:-1], tensor.shape[-1]
            block, size = gguf.GGML_QUANT_SIZES[own]
            writer.add_tensor_info(name, tensor.shape, _UNUSED, rows.numel() * columns // block * size, raw_dtype=own)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, own in tensors.values():
            writer.write_tensor_data(gguf.quants.quantize(tensor.float().contiguous().numpy(), own))
    finally:
        writer.close()


# --- the model -------------------------------------------------------------------------------------------------------


def _require_plain(config: Any, name: str) -> None:
    """Raises CheckpointError for what llama.cpp computes otherwise than transformers, or not at all."""
    kind = config.model_type
    if kind not in _ARCHITECTURES:
        raise CheckpointError(
            f"{name} is a {kind}, and layout gguf knows {', '.join(_ARCHITECTURES)}: leave it as it is"
        )
    rotations = (config.rope_parameters or {}).get("rope_type", "default")
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    odd = {
        f"rotations of type {rotations}": rotations != "default",
        f"activation {config.hidden_act}": config.hidden_act != "silu",
        "attention in windows": layers != {"full_attention"},
    }
    for what, is_so in odd.items():
        if is_so:
            raise CheckpointError(f"{name} has {what}, which layout gguf does not carry: leave it as it is")


def _tensors(model: Any, config: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Weights under llama.cpp's names. An output layer that is the embedding is left out: it is taken from there."""
    names = gguf.get_tensor_name_map(_ARCHITECTURES[config.model_type], config.num_hidden_layers)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        place = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if place is None:
            raise CheckpointError(f"{name} has weights {key}, which a {config.model_type} in GGUF has no place for")
        if config.model_type == "llama" and (".q_proj." in key or ".k_proj." in key):
            heads = config.num_attention_heads if ".q_proj." in key else config.num_key_value_heads
            tensor = _interleaved(tensor, heads)
        yield place, tensor.detach()


def _interleaved(rows: Tensor, heads: int) -> Tensor:
    """A Llama's queries or keys as llama.cpp rotates them: pairs (i, i + half) of each head side by side."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _kind(tensor: Tensor, wanted: Kind) -> Kind:
    if tensor.dim() < 2:
        return Kind.F32
    return Kind.F16 if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] else wanted


def _add_shape(writer: gguf.GGUFWriter, config: Any, name: str) -> None:
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base((config.rope_parameters or {}).get("rope_theta", 10_000.0))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


# --- what stands beside it -------------------------------------------------------------------------------------------


def _add_ours(writer: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
    yes_id, no_id = checkpoint.template.label_ids
    writer.add_string(gguf_file.CONFIG, checkpoint.config.model_dump_json())
    home = checkpoint.home or checkpoint.path
    writer.add_string(gguf_file.WEIGHTS, weights(home, locate, checkpoint.config.base_sha256))
    writer.add_uint32(gguf_file.YES, yes_id)
    writer.add_uint32(gguf_file.NO, no_id)
    state = _tokenizer_state(checkpoint)
    writer.add_string(gguf_file.TOKENIZER, json.dumps(state | {"truncation": None, "padding": None}))


def _tokenizer_state(checkpoint: Checkpoint) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(checkpoint.tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] != "BPE":
        raise CheckpointError(
            f"{checkpoint.name} has a tokenizer of type {state['model']['type']}: layout gguf carries byte-level BPE"
        )
    return state


def _add_vocabulary(writer: gguf.GGUFWriter, checkpoint: Checkpoint, rows: int) -> None:
    """The tokens as llama.cpp reads them, one for each of the `rows` of the embedding."""
    tokenizer, state = checkpoint.tokenizer, _tokenizer_state(checkpoint)
    texts = [f"[PAD{index}]" for index in range(rows)]
    types = [gguf.TokenType.UNUSED] * rows
    for text, index in state["model"]["vocab"].items():
        texts[index], types[index] = text, gguf.TokenType.NORMAL
    for token in state["added_tokens"]:
        control = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        texts[token["id"]], types[token["id"]] = token["content"], control
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(state, checkpoint.name))
    writer.add_token_list(texts)
    writer.add_token_types(types)
    merges = state["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for add, index in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
    ):
        if index is not None:
            add(index)
    writer.add_add_bos_token(tokenizer.encode("a")[0] == tokenizer.bos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _pre_tokenizer(state: Mapping[str, Any], name: str) -> str:
    known = state["pre_tokenizer"] or {}
    steps = tuple(_step(one) for one in known.get("pretokenizers", [known]))
    if steps not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f"{name} cuts texts before merging in a way that layout gguf does not know ({_shown(steps)}): other"
            f" programs would read other tokens; known are {', '.join(_PRE_TOKENIZERS.values())}"
        )
    return _PRE_TOKENIZERS[steps]


def _step(one: Mapping[str, Any]) -> _Step:
    """What a step of a pre-tokenizer does, as far as steps of its type differ."""
    kind = one.get("type", "none")
    if kind == "ByteLevel":
        return kind, one["use_regex"] if not one["add_prefix_space"] else "with a space before"
    if kind == "Digits":
        return kind, one["individual_digits"]
    if kind == "Split":
        plain = one["behavior"] == "Isolated" and not one["invert"]
        return kind, one["pattern"].get("Regex") if plain else one["behavior"]
    return kind, None


def _shown(steps: Sequence[_Step]) -> str:
    return " then ".join(kind for kind, _ in steps)
