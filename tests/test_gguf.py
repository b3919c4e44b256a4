"""GGUF files: every tensor and every id is what the checkpoint had, and what is no such file says so in one line."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from gguf_support import VOCABULARY, save, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner
from vllm_support import save_float32

from prism import gguf_file
from prism.checkpoint import Checkpoint, is_packed, stored_config
from prism.cli import app
from prism.errors import CheckpointError, InputError
from prism.export import export
from prism.gguf_file import PackedTokenizer, read_metadata, tokenizer_of
from prism.template import PRISM, QWEN3_RERANKER, Template
from prism.types import Document

KINDS = ("llama", "qwen3", "qwen2")
BOUND = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8, "q8_0": 0.5 / 127 + 2.0**-11}
"""Largest error of a stored weight: of itself, in q8_0 of the largest of its block of 32 (half a step, a scale in
float16)."""


@pytest.fixture(scope="module", params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    return save(tmp_path_factory.mktemp(request.param), request.param, tiny_tokenizer)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A GGUF file."""
    folder = tmp_path_factory.mktemp("llama")
    return export(save(folder / "checkpoint", "llama", tiny_tokenizer), folder / "tiny.gguf", "gguf")


@pytest.mark.parametrize("dtype", BOUND)
def test_transformers_reads_the_weights_back(source, tmp_path, dtype):
    """Through its own names and its own order of the queries' and keys' rows."""
    path = export(source, tmp_path / "tiny.gguf", "gguf", dtype=dtype)
    read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).state_dict()
    written = Checkpoint.load(source).load_model("float32", "cpu").state_dict()
    assert set(read) == set(written)
    for name, tensor in written.items():
        error = (read[name] - tensor).abs()
        bound = BOUND[dtype] if tensor.dim() > 1 else 0.0
        largest = tensor.abs()
        if dtype == "q8_0" and tensor.dim() > 1:
            largest = tensor.abs().reshape(-1, 32).amax(1, keepdim=True).expand(-1, 32).reshape(tensor.shape)
        assert (error <= bound * largest + (2.0**-24 if bound else 0.0)).all(), name  # float16 ends there


def test_the_file_holds_what_llama_cpp_asks_for(tmp_path, tiny_tokenizer):
    source = save(tmp_path / "checkpoint", "qwen3", tiny_tokenizer)
    path = export(source, tmp_path / "tiny.gguf", "gguf", dtype="q8_0")
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    expected = {
        "general.architecture": "qwen3",
        "general.file_type": 7,  # mostly Q8_0
        "qwen3.block_count": 2,
        "qwen3.context_length": 2048,
        "qwen3.embedding_length": 64,
        "qwen3.feed_forward_length": 128,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 32,
        "qwen3.attention.value_length": 32,
        "qwen3.rope.dimension_count": 32,
        "qwen3.rope.freq_base": 10_000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": tiny_tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tiny_tokenizer.pad_token_id,
    }
    assert {name: fields[name] for name in expected} == expected
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == VOCABULARY
    vocabulary = tiny_tokenizer.get_vocab()
    assert all(tokens[index] == text for text, index in vocabulary.items())
    kinds = dict(zip(tokens, types, strict=True))
    assert (kinds["yes"], kinds["<|im_end|>"], kinds["<think>"]) == (1, 3, 4)  # normal, control, user-defined
    assert all(kinds[f"[PAD{index}]"] == 5 for index in range(len(vocabulary), VOCABULARY))
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    assert "output.weight" not in by_name  # tied
    norm, embedding = by_name["blk.1.attn_q_norm.weight"], by_name["token_embd.weight"]
    assert (norm.tensor_type.name, embedding.tensor_type.name) == ("F32", "Q8_0")
    expected_rows = tiny_model("qwen3").model.embed_tokens.weight.detach().numpy()
    read = dequantize(embedding.data, embedding.tensor_type)
    np.testing.assert_allclose(read, expected_rows, rtol=0, atol=np.abs(expected_rows).max() / 127)


def test_what_a_block_does_not_divide_is_float16(tmp_path, tiny_tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    odd = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=40,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=20,
        )
    )
    source = save_float32(tmp_path / "odd", odd, tiny_tokenizer)
    reader = GGUFReader(export(source, tmp_path / "odd.gguf", "gguf", dtype="q8_0"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert (kinds["blk.0.attn_q.weight"], kinds["blk.0.ffn_down.weight"]) == ("F16", "Q8_0")  # rows of 40, of 64


def test_the_checkpoint_travels_in_the_file(tmp_path, tiny_tokenizer):
    """Prompt, threshold and calibration; both ways to load it agree, and neither asks for a template."""
    source = save(tmp_path / "checkpoint", "llama", tiny_tokenizer)
    config = json.loads((source / "prism.json").read_text())
    calibration = {"method": "platt", "prior": 0.2, "pairs": 9, "slope": 2.0, "intercept": -1.0}
    (source / "prism.json").write_text(
        json.dumps({**config, "threshold": 0.3, "evidence": "quoted", "calibration": calibration})
    )
    path = export(source, tmp_path / "tiny.gguf", "gguf")
    expected = Checkpoint.load(source).config
    unpacked = Checkpoint.load(path).load_model("float32", "cpu").config
    assert (unpacked.num_attention_heads, unpacked.head_dim) == (4, 16)
    packed = Checkpoint.load_packed(path)
    assert packed.config == stored_config(path) == Checkpoint.load(path).config == expected
    assert (packed.path, packed.home, packed.context_tokens) == (path, path, 2048)
    assert is_packed(path)
    assert not is_packed(source)
    versions = {one.score_version for one in (packed, Checkpoint.load(path), Checkpoint.load(source))}
    assert len(versions) == 1  # thresholds and calibration keep their meaning
    metadata = read_metadata(path)
    assert (metadata[gguf_file.YES], metadata[gguf_file.NO]) == packed.template.label_ids
    other = Checkpoint.load_packed(path, template="qwen3-reranker")
    assert other.template.spec.text == QWEN3_RERANKER.text


PIECES = ("yes", "no", " the harbour", "1963", "铜", "é", "e\u0301", "🦙\u200d🌫️", "\n\n", "\t ", "  ", "ﬁ", "\x00")
PIECES += ("<|im_end|>", "</evidence>", "<think>", "<|endoftext|>", "'RE", "don't", "\u2028")
TEXTS = st.text() | st.lists(st.sampled_from(PIECES)).map("".join)


@pytest.fixture(scope="module")
def packed(llama: Path) -> PackedTokenizer:
    return tokenizer_of(read_metadata(llama), llama)


@given(TEXTS, TEXTS)
def test_texts_are_the_same_ids_as_with_transformers(tiny_tokenizer, packed, query, text):
    assert packed.encode(text, add_special_tokens=False) == tiny_tokenizer.encode(text, add_special_tokens=False)
    theirs, ours = (Template(PRISM, tokenizer) for tokenizer in (tiny_tokenizer, packed))
    document = Document(text=text or "a")
    assert ours.render(query, document, max_tokens=300) == theirs.render(query, document, max_tokens=300)
    assert ours.count(text) == theirs.count(text)
    assert (ours.label_ids, ours.stop_ids, ours.pad_id) == (theirs.label_ids, theirs.stop_ids, theirs.pad_id)


@given(st.lists(st.integers(0, 500), max_size=40))
def test_ids_are_the_same_texts_as_with_transformers(tiny_tokenizer, packed, ids):
    assert Template(PRISM, packed).decode(ids) == Template(PRISM, tiny_tokenizer).decode(ids)
    assert len(packed) == len(tiny_tokenizer)


QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([pre_tokenizers.ByteLevel(add_prefix_space=False)], "gpt-2"),
        ([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)], "smollm"),
        (
            [
                pre_tokenizers.Split(Regex(QWEN2), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
            "qwen2",
        ),
        ([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)], None),
        ([pre_tokenizers.ByteLevel(add_prefix_space=True)], None),
    ],
)
def test_llama_cpp_s_name_of_the_pre_tokenizer(tmp_path, tiny_tokenizer, steps, name):
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    source = save(tmp_path / "checkpoint", "llama", tokenizer)
    if name:
        assert read_metadata(export(source, tmp_path / "a.gguf", "gguf"))["tokenizer.ggml.pre"] == name
    else:
        with pytest.raises(CheckpointError, match="cuts texts before merging in a way"):
            export(source, tmp_path / "a.gguf", "gguf")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]  # nothing half-written


def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path, tiny_tokenizer, tiny_qwen35):
    def refused(message: str, model: Any) -> None:
        path = tmp_path / message.replace(" ", "-")
        save_float32(path, model, tiny_tokenizer)
        with pytest.raises(CheckpointError, match=message) as caught:
            export(path, tmp_path / "a.gguf", "gguf")
        assert "\n" not in str(caught.value)

    refused("layout gguf knows llama, qwen2, qwen3", deepcopy(tiny_qwen35))
    model = tiny_model("llama")
    model.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    refused("rotations of type linear", model)
    model = tiny_model("llama")
    model.config.hidden_act = "gelu"
    refused("activation gelu", model)
    model = tiny_model("qwen3")
    model.config.layer_types = ["sliding_attention", "full_attention"]
    refused("attention in windows", model)


def test_the_target_is_a_new_gguf_file(tmp_path, tiny_tokenizer):
    source = save(tmp_path / "checkpoint", "llama", tiny_tokenizer)
    with pytest.raises(InputError, match=r"ends in \.gguf"):
        export(source, tmp_path / "folder", "gguf")
    (tmp_path / "there.gguf").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        export(source, tmp_path / "there.gguf", "gguf")
    assert (tmp_path / "there.gguf").read_text() == "mine"
    with pytest.raises(InputError, match="dtype q8_0 is layout gguf's"):
        export(source, tmp_path / "merged", "merged", dtype="q8_0")
    done = CliRunner().invoke(app, ["export", str(source), str(tmp_path / "a.gguf"), "--layout", "gguf"])
    assert (done.exit_code, "prism rerank" in done.output) == (0, True), done.output
    assert is_packed(tmp_path / "a.gguf")


# --- what is no such file --------------------------------------------------------------------------------------------


def refused(path: Path, message: str, load: Callable[[Path], Any] = Checkpoint.load_packed) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_other_files_are_refused_in_one_line(llama, tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"PK\x03\x04 a zip file")
    refused(path, "not a GGUF file")
    path.write_bytes(b"")
    refused(path, "not a GGUF file")
    content = llama.read_bytes()
    path.write_bytes(content[:4] + struct.pack("<I", 1) + content[8:])
    refused(path, "version 1 of the format, expected 2 or 3")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        Checkpoint.load_packed(path)
    with pytest.raises(InputError, match=r"prism export .* --layout gguf"):
        Checkpoint.load_packed(tmp_path)


def test_a_file_without_prism_s_metadata_says_what_to_do(llama, tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(llama.read_bytes().replace(gguf_file.CONFIG.encode(), b"other.config"))
    assert not is_packed(path)
    refused(path, r"no prism\.config.*prism export.*engine hf")
    path.write_bytes(llama.read_bytes().replace(gguf_file.TOKENIZER.encode(), b"tokenizer.huggingfake.json"))
    refused(path, r"no tokenizer\.huggingface\.json")


@pytest.mark.parametrize("kept", [4, 8, 23, 24, 30, 200, 3000, 9000])
def test_a_file_that_ends_in_its_metadata_says_so(llama, tmp_path, kept):
    path = tmp_path / "a.gguf"
    path.write_bytes(llama.read_bytes()[:kept])
    refused(path, "is the file complete", read_metadata)


@given(st.data())
def test_damaged_metadata_is_read_or_refused(llama, tmp_path_factory, data):
    """No other error, no hang, no memory: whatever the bytes say."""
    content = bytearray(llama.read_bytes()[:30_000])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, 2_000) | st.integers(4, len(content) - 9))
        content[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8) | st.just(b"\xff" * 8))
    path = tmp_path_factory.mktemp("damaged") / "a.gguf"
    path.write_bytes(content)
    with suppress(CheckpointError):
        assert isinstance(read_metadata(path), dict)


def test_a_foreign_tokenizer_or_label_is_refused(llama, tmp_path):
    content = llama.read_bytes()
    path = tmp_path / "a.gguf"
    path.write_bytes(content.replace(b'"type": "BPE"', b'"type": "BPX"'))
    refused(path, "cannot read tokenizer.huggingface.json of")
    template = Checkpoint.load_packed(llama).template
    at = content.index(gguf_file.YES.encode()) + len(gguf_file.YES)
    changed = content[:at] + struct.pack("<II", 4, template.yes_id + 1) + content[at + 8 :]
    path.write_bytes(changed)
    refused(path, re.escape(f"({template.yes_id + 1}, {template.no_id})"))
    path.write_bytes(content.replace(b'"threshold":0.5', b'"threshold":7.5'))
    refused(path, "prism.config")
