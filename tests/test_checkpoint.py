"""Loading and saving: what a checkpoint without `prism.json` gets, unsafe weights, the self-test, clear failures."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import torch

from prism.checkpoint import Checkpoint, PrismConfig
from prism.engines.base import LabelLogits, ScoreOutput
from prism.errors import CheckpointError, DocumentError, InputError, TemplateError
from prism.location import MINI
from prism.template import PRISM, QWEN3_RERANKER, Template

pytestmark = pytest.mark.filterwarnings("ignore:.*incorrect regex pattern.*")


@pytest.fixture
def saved(tmp_path: Path, tiny_qwen3, tiny_tokenizer) -> Path:
    from copy import deepcopy

    path = tmp_path / "mine"
    Checkpoint.save(
        path, model=deepcopy(tiny_qwen3), template=Template(PRISM, tiny_tokenizer), name="mine", recipe="a: 1\n"
    )
    return path


def test_saved_checkpoint_loads_with_its_template_and_weights(saved, tiny_qwen3):
    checkpoint = Checkpoint.load(saved)
    assert checkpoint.name == "mine"
    assert checkpoint.template.spec.text == PRISM.text
    model = checkpoint.load_model(dtype="float32", device="cpu")
    assert not model.training
    expected = tiny_qwen3.model.embed_tokens.weight.to(torch.bfloat16).float()
    assert torch.equal(model.model.embed_tokens.weight, expected)
    assert (saved / "recipe.yaml").read_text() == "a: 1\n"


def test_mini_is_packaged_in_safe_weights():
    assert sum(path.stat().st_size for path in MINI.iterdir()) < 30e6
    assert not [path for path in MINI.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    checkpoint = Checkpoint.load("mini")
    assert (checkpoint.name, checkpoint.home) == ("mini", MINI)
    model = checkpoint.load_model(dtype="float32")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008  # SmolLM2-135M's own, embeddings tied
    assert checkpoint.template.label_ids == (10407, 4607)


def test_without_prism_json_the_template_must_be_named(saved):
    (saved / "prism.json").unlink()
    with pytest.raises(TemplateError, match=r"prism, qwen3-reranker, instruct, instruct-label or a file"):
        Checkpoint.load(saved)
    assert Checkpoint.load(saved, template="qwen3-reranker").template.spec.text == QWEN3_RERANKER.text


def test_without_prism_json_a_reranker_chat_template_is_read(saved):
    (saved / "prism.json").unlink()
    (saved / "chat_template.jinja").write_text(
        "<|im_start|>user\n{{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
        "{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
        "<|im_end|>\n<|im_start|>assistant{{ '\n' }}"
    )
    checkpoint = Checkpoint.load(saved)
    assert checkpoint.template.spec.text == ("<|im_start|>user\n{query}\n{document}<|im_end|>\n<|im_start|>assistant\n")
    assert (checkpoint.template.spec.contribution_tag, checkpoint.template.spec.evidence_tag) == (
        "contribution",
        "evidence",
    )


def test_an_explicit_template_wins(saved):
    assert Checkpoint.load(saved, template="qwen3-reranker").template.spec.text == QWEN3_RERANKER.text
    with pytest.raises(TemplateError, match="no template 'nonsense'"):
        Checkpoint.load(saved, template="nonsense")


def test_pickled_weights_are_refused(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, which can run code"):
        Checkpoint.load(saved)
    (saved / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        Checkpoint.load(saved)


def test_missing_and_broken_checkpoints_say_so_in_one_line(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for source, message in (
        (tmp_path / "nowhere" / "at" / "all", "no such directory"),
        (tmp_path, "neither config.json nor adapter_config.json"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            Checkpoint.load(source)
        assert "\n" not in str(caught.value)
    (saved / "prism.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        Checkpoint.load(saved)
    (saved / "prism.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(CheckpointError, match="template: Field required"):
        Checkpoint.load(saved)
    config = PrismConfig(name="x", template=PRISM).model_dump(mode="json")
    for thresholds, message in (
        ({"chinese": 0.9}, "no language that its letters tell is 'chinese'"),
        ({"zh": 9}, "less than or equal to 1"),
    ):
        (saved / "prism.json").write_text(json.dumps(config | {"thresholds": thresholds}))
        with pytest.raises(CheckpointError, match=message):
            Checkpoint.load(saved)


def test_truncated_weights_and_wrong_device_say_so(saved):
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot load the weights"):
        Checkpoint.load(saved).load_model(dtype="float32", device="cpu")
    weights.write_bytes(whole)
    with pytest.raises(InputError, match="no device 'nonsense': expected auto or one of"):
        Checkpoint.load(saved).load_model(dtype="float32", device="nonsense")


def test_tokenizer_of_another_checkpoint_is_refused(saved, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(saved)
    tokenizer.add_tokens([f"<extra{i}>" for i in range(100)])
    tokenizer.save_pretrained(saved)
    with pytest.raises(CheckpointError, match="not of one checkpoint"):
        Checkpoint.load(saved).load_model(dtype="float32", device="cpu")


class Fixed:
    """An engine that answers these labels: four pairs together, then the first of them alone."""

    def __init__(self, together: list[LabelLogits | DocumentError], alone: LabelLogits) -> None:
        self.together, self.alone = together, alone

    async def score(self, prompts) -> ScoreOutput:
        return ScoreOutput(self.together if len(prompts) == 4 else [self.alone], 0)

    def write(self, requests):
        raise AssertionError("the self-test writes nothing")

    async def aclose(self) -> None: ...


YES, NO, HALF = LabelLogits(2.0, 0.0), LabelLogits(0.0, 2.0), LabelLogits(0.0, 0.0)
NEITHER = [LabelLogits(-60.0, 0.0), LabelLogits(-58.0, 0.0)]  # sigmoid: 9e-27 and 6e-26


@pytest.mark.parametrize(
    ("labels", "alone", "fails"),
    [
        ([YES, NO, NO, YES], YES, None),
        ([YES, NO, NO, HALF], YES, None),
        ([HALF, HALF, HALF, HALF], HALF, "constant scores"),  # of a wrong prompt or a lost head
        ([*NEITHER, *NEITHER], NEITHER[0], "label rows lost"),
        ([NO, YES, YES, NO], NO, "scores inverted"),
        ([YES, NO, YES, NO], YES, "query not in the prompt"),
        ([YES, YES, NO, NO], YES, "document not in the prompt"),
        ([YES, NO, NO, YES], HALF, "scores depend on the batch"),
        ([NO, YES, NO, HALF], NO, "is it the template it was trained with"),
        ([DocumentError("too long"), NO, NO, YES], YES, "could not be scored: too long"),
    ],
)
def test_self_test(saved, labels, alone, fails):
    test = Checkpoint.load(saved).self_test(Fixed(labels, alone))
    if fails is None:
        asyncio.run(test)
        return
    with pytest.raises(CheckpointError, match=f"self-test.*{fails}"):
        asyncio.run(test)


def test_a_copied_checkpoint_is_the_same(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    assert Checkpoint.load(tmp_path / "copy").config == Checkpoint.load(saved).config


def test_missing_weights_are_never_filled_with_random_numbers(saved):
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights .*up_proj"):
        Checkpoint.load(saved).load_model(dtype="float32", device="cpu")


def test_limits_stay_within_the_context(saved):
    config = json.loads((saved / "config.json").read_text())
    config["max_position_embeddings"] = 1000
    (saved / "config.json").write_text(json.dumps(config))
    spec = Checkpoint.load(saved).template.spec
    assert (spec.max_prompt_tokens, spec.max_written_tokens) == (750, 250)


def test_a_file_is_no_checkpoint(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file: pass the folder"):
        Checkpoint.load(file)


def test_a_tokenizer_of_a_newer_library_says_so(saved):
    file = saved / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["type"] = "FutureBPE"
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"cannot read the tokenizer.json of .*upgrade tokenizers"):
        Checkpoint.load(saved)


def test_a_git_lfs_pointer_is_named(saved):
    for name in ("model.safetensors", "tokenizer.json", "prism.json", "config.json"):
        kept = (saved / name).read_bytes()
        (saved / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n")
        with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
            Checkpoint.load(saved)
        (saved / name).write_bytes(kept)
    Checkpoint.load(saved)


def test_missing_and_odd_files_are_named(saved):
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00002.safetensors, which model.safetensors.index"):
        Checkpoint.load(saved)
    index.unlink()
    config = (saved / "config.json").read_bytes()
    (saved / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config.json: expected a JSON object, got list"):
        Checkpoint.load(saved)
    (saved / "config.json").write_bytes(config)
    for file in saved.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer: expected tokenizer.json"):
        Checkpoint.load(saved)
