"""The recipe for a real Qwen, on its real weights: two steps on a CPU, killed between them and gone on with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from test_trainer import example, finish, kill_after, run_command, same

from prism.catalogue import CATALOGUE, find
from prism.files.examples import write_examples

RECIPE = Path(__file__).parents[1] / "recipes" / "qwen2.5-1.5b.yaml"
BASE = "qwen2.5-coder-1.5b-instruct"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The published recipe, with few short records and two steps."""
    if find(CATALOGUE[BASE]) is None:
        pytest.skip(f"the base is not here: run `prism pull {BASE}`")
    write_examples(tmp_path / "train.jsonl", [example(number) for number in range(8)])
    settings = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    assert settings["model"]["base"] == BASE
    settings["data"] = {"files": [str(tmp_path / "train.jsonl")], "max_tokens": 400}
    few = {"batch_size": 4, "tokens_per_batch": 1024, "max_steps": 2, "save_steps": 1, "log_steps": 1}
    settings["schedule"] |= few | {"max_seconds": None}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_two_steps_of_the_real_model_and_the_same_after_kill_9(recipe: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(run_command(recipe, whole))
    kill_after(run_command(recipe, broken), broken, 1)
    finish(run_command(recipe, broken))
    trained = load_file(whole / "checkpoint" / "adapter_model.safetensors")
    assert same(trained, load_file(broken / "checkpoint" / "adapter_model.safetensors"))
    moved = [name for name in trained if "lora_B" in name]  # B is zero until it is trained
    assert len(moved) == 28 * 7
    assert all(trained[name].abs().max() > 0 for name in moved)
    history = json.loads((whole / "log.json").read_text(encoding="utf-8"))["history"]
    losses = [point[name] for point in history for name in ("loss", "distill", "distill_ce", "sft") if name in point]
    assert len(losses) >= 8
    assert all(map(math.isfinite, losses))
