"""Recipes: every one in the repository parses; wrong ones fail in one line that says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from prism.errors import RecipeError
from prism.training.recipe import dump_recipe, load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
MINIMAL = "name: tiny\nmodel: {base: some/model}\ndata: {files: [train.jsonl]}\n"


def written(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_there_is_a_recipe():
    assert ROOT / "recipes" / "mini.yaml" in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_parse_and_say_how_to_launch_them(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    header = path.read_text(encoding="utf-8").partition("\nname:")[0]
    assert f"prism-train recipes/{path.name}" in header


def test_resolved_recipe_reads_back_the_same(tmp_path):
    for path in RECIPES:
        recipe = load_recipe(path)
        assert load_recipe(written(tmp_path, dump_recipe(recipe))) == recipe


def test_published_settings():
    """The sizes share one recipe; only what the issue of the larger one says differs."""
    ours = {"mini", "mini-distilled", "mini-jury", "qwen2.5-1.5b"}
    sizes = {path.stem: load_recipe(path) for path in RECIPES if path.stem not in ours}
    assert set(sizes) == {"0.8b", "2b", "4b", "9b", "qwen3-reranker-4b"}
    for name, recipe in sizes.items():
        assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (1e-5, 0.01)
        assert (recipe.optimizer.warmup_steps, recipe.optimizer.min_lr_share) == (100, 0.0)
        assert recipe.model.lora is not None
        assert (recipe.model.lora.rank, recipe.model.lora.alpha, recipe.model.lora.dropout) == (64, 128, 0.0)
        assert (recipe.losses.distill, recipe.losses.sft) == (20.0, 1.0)
        assert (recipe.schedule.epochs, recipe.data.max_tokens) == (2, 10240)
        assert recipe.schedule.batch_size * recipe.schedule.accumulation == (48 if name == "9b" else 8)
    assert sizes["qwen3-reranker-4b"].model.base == "Qwen/Qwen3-Reranker-4B"
    assert sizes["qwen3-reranker-4b"].model.template == "qwen3-reranker"
    assert {sizes[n].model.base for n in ("0.8b", "2b", "4b", "9b")} == {
        f"Qwen/Qwen3.5-{size}" for size in ("0.8B", "2B", "4B", "9B")
    }


PROFILES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_launch_profiles_parse(path):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    profile = load_config_from_file(str(path))
    assert profile.num_processes % profile.num_machines == 0
    text = path.read_text(encoding="utf-8")
    assert f"accelerate launch --config_file configs/accelerate/{path.name}" in text
    assert profile.distributed_type == ("FSDP" if path.stem.startswith("fsdp2") else "MULTI_GPU")
    if path.stem.startswith("fsdp2"):
        assert set(profile.fsdp_config) <= set(vars(launch_command_parser().parse_args(["x"])))
        assert profile.fsdp_config["fsdp_version"] == 2


def test_extends_merges_deeply(tmp_path):
    written(tmp_path, MINIMAL + "optimizer: {lr: 0.5, weight_decay: 0.25}\n", "base.yaml")
    recipe = load_recipe(written(tmp_path, "extends: base.yaml\nname: child\noptimizer: {lr: 0.1}\n"))
    assert (recipe.name, recipe.optimizer.lr, recipe.optimizer.weight_decay) == ("child", 0.1, 0.25)


def test_overrides(tmp_path):
    recipe = load_recipe(written(tmp_path, MINIMAL), ["optimizer.lr=2e-5", "schedule.batch_size=4", "name=other"])
    assert (recipe.optimizer.lr, recipe.schedule.batch_size, recipe.name) == (2e-5, 4, "other")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (MINIMAL + "colour: red\n", [], "colour"),
        (MINIMAL + "optimizer: {lr: -1}\n", [], "optimizer.lr"),
        ("name: x\nmodel: {}\ndata: {files: [a]}\n", [], "model.base"),
        ("name: x\nmodel: {base: b}\ndata: {}\n", [], "either `files`"),
        ("name: ../x\nmodel: {base: b}\ndata: {files: [a]}\n", [], "name"),
        ("a: [1\n", [], "not YAML"),
        ("- a\n- b\n", [], "keys and values"),
        (MINIMAL, ["losses={distill: 0, sft: 0}"], "nothing would be trained"),
        (MINIMAL, ["losses.listwise=1", "schedule.batch_size=1"], "compare rows of a batch"),
        (MINIMAL, ["evaluation={}"], "evaluation.file is missing"),
        (MINIMAL, ["evaluation={file: d, every_steps: 30}"], "multiple of evaluation.every_steps"),
        (MINIMAL, ["model.scratch={layers: 2}"], "model.scratch is no key any more: models are not trained from"),
        (MINIMAL, ["model.evidence_quotes=true"], "model.evidence_quotes is no key any more"),
        (MINIMAL, ["data.pairs={root: x}"], "data.pairs is no key any more"),
        (MINIMAL, ["losses.lm=0.3"], "losses.lm is no key any more"),
        (MINIMAL, ["optimizer.name=muon"], "optimizer.name is no key any more: AdamW is the only"),
        (MINIMAL, ["optimizer.lr=.inf"], "optimizer.lr"),
        (MINIMAL, ["optimizer.lr=.nan"], "optimizer.lr"),
        (MINIMAL, ["optimizer.lr=true"], "optimizer.lr: Value error, expected a number"),
        (MINIMAL, ["optimizer.betas=[0.9, .inf]"], "optimizer.betas"),
        (MINIMAL, ["optimizer.betas=[0.9, 1.5]"], "betas are shares"),
        (MINIMAL, ["schedule.batch_size=true"], "schedule.batch_size: Value error, expected a number"),
        (MINIMAL, ["schedule.max_steps=-5"], "schedule.max_steps"),
        (MINIMAL, ["schedule.max_steps=0"], "max_steps: 0 trains nothing"),
        (MINIMAL, ["schedule.epochs=.inf"], "schedule.epochs"),
        (MINIMAL, ["losses.distill=true"], "losses.distill: Value error, expected a number"),
        (MINIMAL, ["optimizer"], "key.path=value"),
        (MINIMAL, ["name.x=1"], "holds a value"),
        (MINIMAL, ["optimizer.learning_rate=1"], "learning_rate"),
    ],
)
def test_wrong_recipes_fail_in_one_line(tmp_path, text, overrides, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, text), overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_circular_recipes(tmp_path):
    with pytest.raises(RecipeError, match="no recipe"):
        load_recipe(tmp_path / "none.yaml")
    written(tmp_path, "extends: b.yaml\n", "a.yaml")
    with pytest.raises(RecipeError, match="circle"):
        load_recipe(written(tmp_path, "extends: a.yaml\n", "b.yaml"))
    with pytest.raises(RecipeError, match="cannot read"):
        load_recipe(tmp_path)
