"""Dry runs: exact counts, estimates by hand, and nothing of the weights is read."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from test_trainer import example
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3ForCausalLM
from typer.testing import CliRunner

from prism.cli import app
from prism.errors import CheckpointError, DataError, RecipeError
from prism.files.examples import write_examples
from prism.training.dry_run import activation_bytes, dry_run, training_flops
from prism.training.model import adapted
from prism.training.recipe import Lora, load_recipe
from prism.types import Example

ROOT = Path(__file__).parents[1]
OTHERS = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if path.stem != "mini")


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Overrides that point a recipe at 32 good records, two bad ones, and a dev file."""
    bad = [Example(query=" ", document="d", verdict="no"), Example(query="q", document="d", verdict="no", losses=())]
    write_examples(tmp_path / "train.jsonl", [*(example(i) for i in range(32)), *bad])
    write_examples(tmp_path / "dev.jsonl", [example(i) for i in range(8)])
    return [f"data.files=[{tmp_path / 'train.jsonl'}]", f"evaluation.file={tmp_path / 'dev.jsonl'}"]


@pytest.fixture
def weightless(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint with weights that cannot be read."""
    folder = tmp_path / "weightless"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    return folder


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_every_recipe_dry_runs_without_reading_weights(path, data, weightless, tmp_path, capsys):
    measured = "evaluation.every_steps=1"  # wherever a recipe saves its states
    plan = dry_run(path, overrides=[*data, f"model.base={weightless}", measured], output=tmp_path / "run")
    assert plan.records == 32
    assert plan.dropped == {"blank query or document": 1, "no losses": 1}
    assert len(re.findall(r"^  record \d+ ", capsys.readouterr().err, re.MULTILINE)) == 2  # each is named
    assert plan.distilled == 32
    assert plan.dev_records == 8
    steps = load_recipe(path).schedule.max_steps  # -1: as many as two epochs take
    assert plan.epochs == pytest.approx(2, abs=0.1) if steps < 0 else plan.steps == steps
    assert 0 < plan.tokens_per_epoch <= plan.padded_tokens_per_epoch
    assert plan.longest_tokens <= plan.longest_batch_tokens
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_parameters_and_steps_by_hand(data, weightless, tmp_path, tiny_qwen3):
    lora = ["model.lora.rank=4", "schedule.batch_size=3", "schedule.accumulation=2", "schedule.epochs=3"]
    plan = dry_run(OTHERS[0], overrides=[*data, f"model.base={weightless}", *lora], output=tmp_path / "run")
    # rank x (inputs + outputs): q 64+64, k and v 64+32, o 64+64, gate and up 64+128, down 128+64; two layers.
    adapters = 2 * 4 * (128 + 2 * 96 + 128 + 3 * 192)
    assert plan.trained_parameters == adapters
    assert plan.parameters == tiny_qwen3.num_parameters() + adapters
    assert plan.steps == 3 * 6  # 32 records in 11 batches of three, in 6 steps of two


def test_flops_by_hand():
    # 10 x 20 weights, embeddings of 7 x 10 left out: 6 N T trained; 4 N T frozen; 2 N T more when done twice.
    model = nn.Sequential(nn.Embedding(7, 10), nn.Linear(10, 20, bias=False))
    assert training_flops(model, 1000) == 6 * 200 * 1000
    assert training_flops(model, 1000, checkpointing=True) == 8 * 200 * 1000
    model[1].weight.requires_grad_(False)
    assert training_flops(model, 1000) == 4 * 200 * 1000


def test_memory_of_full_training_by_hand(data, weightless, tmp_path, tiny_qwen3):
    full = [*data, f"model.base={weightless}", "model.lora=null"]
    n = tiny_qwen3.num_parameters() / 2**30
    plan = dry_run(OTHERS[0], overrides=[*full, "schedule.bf16=false"], output=tmp_path / "run")
    assert (plan.weights_gib, plan.gradients_gib, plan.optimizer_gib) == pytest.approx((4 * n, 4 * n, 8 * n))
    whole = [*full, "schedule.bf16=true", "schedule.gradient_checkpointing=false"]
    half = dry_run(OTHERS[0], overrides=whole, output=tmp_path / "run")
    assert (half.weights_gib, half.gradients_gib, half.optimizer_gib) == pytest.approx((2 * n, 2 * n, 12 * n))
    # A layer, hidden 64, intermediate 128, heads of 64 in all: norms 2 x 64 x (4 + 2), attention 4 x 64 x 2, SwiGLU
    # 3 x 128 x 2, inputs of the projections (2 x 64 + 128) x 2.
    assert half.activations_gib == pytest.approx(half.longest_batch_tokens * 2 * (768 + 512 + 768 + 512) / 2**30)
    again = [*full, "schedule.bf16=true", "schedule.gradient_checkpointing=true"]
    less = dry_run(OTHERS[0], overrides=again, output=tmp_path / "run")
    assert less.activations_gib == pytest.approx(less.longest_batch_tokens * (2 * 64 * 2 + 2560) / 2**30)


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)], ids=["whole", "lora"])
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_what_a_layer_keeps_is_what_autograd_keeps(tiny_qwen3, dtype, width, lora):
    """Counted through autograd's own hooks, of the third layer: with one more layer, so much more is kept."""
    tokens = 200
    read = {"input_ids": torch.zeros(1, tokens, dtype=torch.long), "attention_mask": torch.ones(1, tokens).long()}
    read["attention_mask"][0, -3:] = 0

    def kept(layers: int) -> float:
        config = copy.deepcopy(tiny_qwen3.config)
        config.num_hidden_layers, config.layer_types = layers, ["full_attention"] * layers
        base = Qwen3ForCausalLM(config).to(dtype)
        model = (base if lora is None else adapted(base, lora)).train()
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        found: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            found[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            _hidden = base.model(**read).last_hidden_state
        return sum(t.untyped_storage().nbytes() for key, t in found.items() if key not in weights) / tokens

    # What comes on top here: norms of 64 queries and 32 keys, which keep what the layer's own norms do; a number of
    # each norm (1 + 1, and one for each of 4 + 2 heads) and of the softmax of each head; the mask of padded rows, in
    # numbers; four of rank of each of seven adapters.
    norms = (64 + 32) * (4 if lora else 4 + width)
    ranks = 7 * 4 * 4 if lora else 0
    more = norms + (2 + 6) * 4 + 4 * 4 + tokens * width + ranks
    assert kept(3) - kept(2) == activation_bytes(tiny_qwen3.config, width, lora=lora is not None) + more


def test_a_base_of_another_kind_dry_runs(data, tiny_tokenizer, tmp_path):
    """GPT-2's configuration has no intermediate size: its layers' is four times the hidden one."""
    base = tmp_path / "gpt2"
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 2048, "vocab_size": len(tiny_tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    asked = [*data, f"model.base={base}", "model.lora=null", "schedule.bf16=false", "schedule.packing=false"]
    asked += ["schedule.gradient_checkpointing=false"]
    plan = dry_run(OTHERS[0], overrides=asked, output=tmp_path / "run")
    # Norms 2 x 64 x 8, attention 4 x 64 x 4, 3 x 256 x 4, inputs of the projections (2 x 64 + 256) x 4.
    assert plan.activations_gib == pytest.approx(plan.longest_batch_tokens * 2 * (1024 + 1024 + 3072 + 1536) / 2**30)


def on_hub(folder: Path, cache: Path, name: str) -> None:
    """What of a folder the hub's cache holds after a look: everything but weights."""
    there = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, there / "snapshots" / ("0" * 40), ignore=shutil.ignore_patterns("*.safetensors"))
    (there / "refs").mkdir()
    (there / "refs" / "main").write_text("0" * 40)


def test_bases_are_found_as_training_finds_them(data, weightless, tmp_path, monkeypatch):
    """In the home folder, on the hub, and adapters of the hub beside a base of the hub: without their weights."""
    cache, adapter = tmp_path / "hub", tmp_path / "adapter"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HOME", str(tmp_path))
    on_hub(weightless, cache, "some/base")
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    on_hub(adapter, cache, "some/adapter")
    asked = [*data, "model.lora.save=merged"]
    plans = [
        dry_run(OTHERS[0], overrides=[*asked, f"model.base={base}"], output=tmp_path / "run")
        for base in ("~/weightless", "some/base", "some/adapter")
    ]
    assert {(plan.records, plan.parameters, plan.longest_tokens) for plan in plans} == {
        (32, plans[0].parameters, plans[0].longest_tokens)
    }
    stacked = [*data, "model.lora.save=adapter", "model.base=some/adapter"]
    with pytest.raises(RecipeError, match="adapters do not stack"):
        dry_run(OTHERS[0], overrides=stacked, output=tmp_path / "run")


def test_a_folder_that_lacks_weights_is_refused_as_training_refuses_it(data, weightless, tmp_path):
    (weightless / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        dry_run(OTHERS[0], overrides=[*data, f"model.base={weightless}"], output=tmp_path / "run")


def test_command_prints_a_table_or_json(data, weightless, tmp_path):
    arguments = ["train", str(OTHERS[0]), "--dry-run", "--output", str(tmp_path / "run")]
    for override in [*data, f"model.base={weightless}"]:
        arguments += ["--set", override]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    for words in ("memory, about", "steps", "blank query or document", "Kaplan"):
        assert words in shown.output
    found = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(found.stdout)["records"] == 32
    assert CliRunner().invoke(app, ["train", str(OTHERS[0]), "--json"]).exit_code == 2


def test_bad_data_ends_before_weights(data, weightless, tmp_path):
    overrides = [*data, f"model.base={weightless}"]
    (tmp_path / "train.jsonl").write_text('{"query": "q", "document": "d", "verdict": "perhaps"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:1: verdict"):
        dry_run(OTHERS[0], overrides=overrides, output=tmp_path / "run")
    write_examples(tmp_path / "train.jsonl", [example(i) for i in range(8)])
    write_examples(tmp_path / "dev.jsonl", [example(1)])
    with pytest.raises(DataError, match="expected records labelled yes"):
        dry_run(OTHERS[0], overrides=overrides, output=tmp_path / "run")
