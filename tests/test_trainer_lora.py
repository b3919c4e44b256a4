"""LoRA through the real trainer: adapters move, the base stays, the result is one plain model, resume is exact."""

from __future__ import annotations

import hashlib
import json
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from test_trainer import example, finish, kill_after, run_command, same, weights
from transformers import LlamaConfig, LlamaForCausalLM

from prism.checkpoint import Checkpoint, PrismConfig
from prism.errors import RecipeError
from prism.files.examples import write_examples
from prism.reranker import Reranker
from prism.template import PRISM
from prism.training.distill import unwrapped
from prism.training.model import make_model, merged_model
from prism.training.packaging import base_sum
from prism.training.recipe import load_recipe
from prism.training.setup import open_template
from prism.training.trainer import train


@pytest.fixture
def recipe(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    return written(tmp_path, tiny_checkpoint)


def written(folder: Path, base: Path) -> Path:
    write_examples(folder / "train.jsonl", [example(i) for i in range(32)])
    settings = {
        "name": "adapted",
        "output": str(folder / "run"),
        "model": {"base": str(base), "template": "prism", "lora": {"rank": 4, "alpha": 8}},
        "data": {"files": [str(folder / "train.jsonl")], "max_tokens": 400},
        "optimizer": {"lr": 1e-2, "warmup_steps": 1},
        "schedule": {"batch_size": 4, "accumulation": 2, "epochs": 2, "save_steps": 2, "log_steps": 1, "bf16": False},
    }
    path = folder / "adapted.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def test_adapters_are_trained_and_merged(recipe, tiny_qwen3, tmp_path):
    folder = train(recipe)
    settings = load_recipe(recipe)
    adapters = torch.load(tmp_path / "run/state/checkpoint-8/optimizer.pt", weights_only=True)["adamw"]
    assert len(adapters["state"]) == 2 * 2 * 7  # A and B of 7 projections in 2 layers
    after = weights(folder)
    before = {name: value.to(torch.bfloat16) for name, value in tiny_qwen3.state_dict().items()}
    assert not any("lora" in name for name in after)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if name.endswith("_proj.weight")}
    with Reranker.load(str(folder), dtype="float32", self_test=False) as reranker:
        scores = [j.score for j in reranker.rerank(example(2).query, [example(2).document, example(3).document])]
    assert all(0.0 < score < 1.0 for score in scores)
    assert settings.model.lora is not None


def test_every_adapter_moves_and_the_base_does_not(recipe, tmp_path):
    settings = load_recipe(recipe)
    fresh = make_model(settings, open_template(settings).base)
    start = {name: value.clone() for name, value in fresh.state_dict().items()}
    train(recipe)
    base = Checkpoint.load(settings.model.base, template="prism").load_model("float32")
    trained = PeftModel.from_pretrained(base, tmp_path / "run" / "state" / "checkpoint-8").state_dict()
    still = {name for name in start if torch.equal(start[name], trained[name])}
    assert {name for name in start if "lora_" in name} & still == set()
    assert {name for name in start if "lora_" not in name} == still


def test_merging_keeps_what_the_adapters_say(recipe, tmp_path):
    settings = load_recipe(recipe)
    opened = open_template(settings)
    model = make_model(settings, opened.base)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = unwrapped(deepcopy(model))(ids).logits
        assert torch.allclose(merged_model(model, settings, opened.base)(ids).logits, expected, atol=1e-4)


def test_adapters_are_saved_as_peft_reads_them(recipe, tmp_path, tiny_checkpoint):
    folder = train(recipe, overrides=["model.lora.save=adapter", "schedule.max_steps=4"])
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "prism.json",
        "recipe.yaml",
        "README.md",
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_checkpoint)
    assert (config["r"], config["lora_alpha"], config["inference_mode"]) == (4, 8, True)
    stored = load_file(folder / "adapter_model.safetensors")
    trained = load_file(tmp_path / "run/state/checkpoint-4/adapter_model.safetensors")
    assert len(stored) == 2 * 2 * 7
    assert all(name.startswith("base_model.model.model.layers.") for name in stored)
    assert same(stored, {name: value.to(torch.bfloat16) for name, value in trained.items()})
    named = PrismConfig.model_validate_json((folder / "prism.json").read_bytes())
    assert named.base_sha256 is None  # of a folder, whose weights may be several files
    assert named.template.text == PRISM.text
    assert f"for `{tiny_checkpoint}`" in (folder / "README.md").read_text()
    # As one model or as two, what is read back says the same.
    base = Checkpoint.load(str(tiny_checkpoint), template="prism").load_model("float32")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        plain_logits = base(ids).logits
        beside = PeftModel.from_pretrained(base, folder).float()
        expected = beside(ids).logits
        whole = beside.merge_and_unload()(ids).logits
    assert torch.allclose(whole, expected, atol=1e-5)
    assert (expected - plain_logits).abs().max() > 1e-3


def test_an_adapter_reranks_by_its_own_folder(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "cache"))
    short = ["schedule.max_steps=2"]
    beside = train(recipe, overrides=[*short, "model.lora.save=adapter"], output=tmp_path / "beside")
    whole = train(recipe, overrides=short, output=tmp_path / "whole")
    scores = []
    for folder in (beside, whole):
        with Reranker.load(str(folder), dtype="float32", self_test=False) as reranker:
            scores.append([j.score for j in reranker.rerank(example(2).query, [example(2).document, "Else."])])
    assert scores[0] == pytest.approx(scores[1], abs=0.02)  # one rounds adapters to bf16, the other sums


def test_adapters_do_not_stack(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "cache"))
    first = train(recipe, overrides=["schedule.max_steps=1", "model.lora.save=adapter"], output=tmp_path / "first")
    again = [f"model.base={first}", "model.lora.save=adapter", "name=second"]
    with pytest.raises(RecipeError, match="adapters do not stack"):
        train(recipe, overrides=again, output=tmp_path / "second")


def test_a_base_of_one_file_is_named_by_its_sum(tmp_path):
    file = tmp_path / "base.gguf"
    file.write_bytes(b"GGUF and more")
    base = SimpleNamespace(home=file)
    assert base_sum(base) == hashlib.sha256(b"GGUF and more").hexdigest()


def test_a_llama_is_adapted_killed_and_resumed(tmp_path, tiny_tokenizer):
    """The architecture of mini's base, in one process: the states before and after a stop are one run."""
    torch.manual_seed(4)
    settings = LlamaConfig(
        vocab_size=600,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(settings).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    recipe = written(tmp_path, tmp_path / "base")
    common = ["model.lora.save=adapter", "schedule.tokens_per_batch=700"]
    whole = train(recipe, overrides=common, output=tmp_path / "whole")
    stopped = tmp_path / "stopped"
    train(recipe, overrides=common, output=stopped)
    shutil.rmtree(stopped / "checkpoint")
    (stopped / "log.json").unlink()
    shutil.rmtree(stopped / "state" / "checkpoint-8")  # as if killed after the sixth of eight steps
    again = train(recipe, overrides=common, output=stopped)
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (whole, again))
    assert same(one, two)
    assert any(value.abs().max() > 0 for name, value in one.items() if "lora_B" in name)


def test_gradient_checkpointing_gives_the_same_weights(recipe, tmp_path):
    short = ["schedule.max_steps=2", "schedule.save_steps=2"]
    kept = train(recipe, overrides=short, output=tmp_path / "kept")
    twice = train(recipe, overrides=[*short, "schedule.gradient_checkpointing=true"], output=tmp_path / "twice")
    first, second = weights(kept), weights(twice)
    assert all(torch.allclose(first[name].float(), second[name].float(), atol=1e-2) for name in first)


def test_unknown_targets_are_named(recipe):
    with pytest.raises(RecipeError, match=r"lora\.targets .*nothing_like_it"):
        train(recipe, overrides=["model.lora.targets=[nothing_like_it]"])


def test_packing_is_refused_where_it_leaks(tmp_path, tiny_qwen35, tiny_tokenizer):
    tiny_qwen35.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(RecipeError, match="leak into each other in this qwen3_5"):
        train(written(tmp_path, tmp_path / "base"), overrides=["schedule.packing=true"])


def test_linear_attention_is_adapted_too(tmp_path, tiny_qwen35, tiny_tokenizer):
    tiny_qwen35.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    folder = train(written(tmp_path, tmp_path / "base"), overrides=["schedule.max_steps=2"])
    after = weights(folder)
    base = weights(tmp_path / "base")
    changed = {name for name in after if not torch.equal(after[name], base[name].to(torch.bfloat16))}
    assert any("linear_attn" in name for name in changed)
    assert any("self_attn" in name for name in changed)
    assert all("proj" in name for name in changed)
    with Reranker.load(str(folder), dtype="float32", self_test=False) as reranker:
        assert len(reranker.rerank(example(2).query, [example(2).document], evidence=False)) == 1


@pytest.mark.slow
def test_kill_9_and_resume_gives_the_same_adapters(recipe, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(run_command(recipe, whole))
    kill_after(run_command(recipe, broken), broken, 1)
    finish(run_command(recipe, broken))
    assert same(weights(whole / "checkpoint"), weights(broken / "checkpoint"))


def adapter_recipe(recipe: Path, tmp_path: Path, name: str, **lora: object) -> Path:
    """The same recipe, saving adapters, under another name."""
    settings = yaml.safe_load(recipe.read_text())
    settings["name"], settings["output"] = name, str(tmp_path / name)
    settings["model"]["lora"] |= {"save": "adapter", **lora}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_run_goes_on_from_a_finished_adapter(recipe, tmp_path):
    first = train(adapter_recipe(recipe, tmp_path, "first"))
    second = load_recipe(adapter_recipe(recipe, tmp_path, "second", start=str(first)))
    begun = get_peft_model_state_dict(make_model(second, open_template(second).base))
    stored = load_file(first / "adapter_model.safetensors")
    assert set(begun) == set(stored)
    assert all(torch.equal(begun[name].bfloat16(), stored[name]) for name in stored)
    assert any(value.abs().sum() > 0 for name, value in begun.items() if "lora_B" in name)  # a new one begins at 0


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"start": "nowhere"}, "nowhere is no adapter"),
        ({"start": "mini", "rank": 32, "alpha": 64}, "mini is for another base or other targets"),
        ({"start": "mini"}, "mini has rank 32 and alpha 64, the recipe 4 and 8"),
    ],
)
def test_an_adapter_of_another_shape_is_refused_in_a_line(recipe, tmp_path, lora, said):
    with pytest.raises(RecipeError, match=said) as error:
        train(adapter_recipe(recipe, tmp_path, "other", **lora))
    assert "\n" not in str(error.value)


def test_a_run_ends_when_its_time_is_up(recipe, tmp_path):
    folder = tmp_path / "run"
    train(recipe, overrides=["schedule.max_seconds=0.001"])
    log = json.loads((folder / "log.json").read_bytes())
    assert log["steps"] == 1  # of 8: the clock is looked at after each
    assert (folder / "checkpoint" / "model.safetensors").is_file()
    assert train(recipe, overrides=["schedule.max_seconds=0.001"]) == folder / "checkpoint"
    assert json.loads((folder / "log.json").read_bytes()) == log  # finished: nothing was trained again
