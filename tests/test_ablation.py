"""eval/ablation.py: every way to train is a recipe that differs as it says, and the tables say what was measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from prism.training.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablation", ROOT / "eval/ablation.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ablation"] = module
    spec.loader.exec_module(module)
    return module


def budget_of(ablation: ModuleType, **changes: object):
    settings = {"recipe": ROOT / "recipes/nano.yaml", "steps": 40, "queries": 100, "groups": 10, "written": 4}
    return ablation.Budget(**{**settings, "overrides": (), **changes})


def recipes_of(ablation: ModuleType, work: Path) -> dict[str, Recipe]:
    budget = budget_of(ablation)
    base = load_recipe(budget.recipe)
    return {arm: load_recipe(budget.recipe, ablation.settings_of(arm, 3, base, budget, work)) for arm in ablation.ARMS}


def test_ways_to_train_differ_as_they_say(ablation, tmp_path):
    recipes = recipes_of(ablation, tmp_path)
    both, untrained = recipes["both"], recipes.pop("not trained")
    assert untrained.schedule.max_steps == 1
    assert max(untrained.optimizer.lr, untrained.optimizer.vector_lr or 1, untrained.optimizer.muon_lr) < 1e-9
    assert both.losses == load_recipe(ROOT / "recipes/nano.yaml").losses
    assert (both.seed, both.schedule.max_steps, both.data.pairs) == (3, 40, None)
    same = {"model", "optimizer", "schedule", "evaluation", "seed"}
    for recipe in recipes.values():
        assert all(getattr(recipe, name) == getattr(both, name) for name in same)
    losses = {arm: recipe.losses for arm, recipe in recipes.items()}
    assert (losses["sft only"].distill, losses["sft only"].distill_ce, losses["sft only"].sft) == (
        0,
        0,
        both.losses.sft,
    )
    assert losses["sft only"].sft_parts.label_with_teacher
    assert losses["distillation only"].sft == 0
    assert losses["label not masked"] == both.losses.model_copy(update={"sft_parts": losses["sft only"].sft_parts})
    assert losses["listwise"].by_query
    assert (losses["published weights"].distill, losses["published weights"].sft) == (20, 1)
    assert recipes["no keyword queries"].losses == both.losses
    assert recipes["no keyword queries"].data.files != both.data.files


def found(ablation: ModuleType, *mrr: float):
    groups = {f"q{number}": value for number, value in enumerate(mrr)}
    kinds = {group: "keyword" if number % 2 else "title" for number, group in enumerate(groups)}
    flat = dict.fromkeys(groups, 0.25)
    return ablation.Found(mrr=groups, teacher_error=flat, complete=flat, right=flat, kinds=kinds)


def test_tables_are_means_over_seeds_and_paired_differences(ablation, tmp_path):
    results = {
        "both": {1: found(ablation, 1.0, 0.5, 0.5, 0.25), 2: found(ablation, 0.5, 0.5, 1.0, 0.25)},
        "sft only": {1: found(ablation, 0.5, 0.25, 0.25, 0.5), 2: found(ablation, 0.5, 0.25, 0.25, 0.5)},
    }
    assert ablation.over_seeds(results["both"], "mrr") == {"q0": 0.75, "q1": 0.5, "q2": 0.75, "q3": 0.25}
    assert ablation.over_seeds(results["both"], "mrr_keyword") == {"q1": 0.5, "q3": 0.25}
    page = ablation.write_report(results, budget_of(ablation), load_recipe(ROOT / "recipes/nano.yaml"), tmp_path)
    text = page.with_name("report.md").read_text(encoding="utf-8")
    # Means 0.5625 and 0.375; differences by query -0.25, -0.25, -0.5, +0.25: mean -0.1875.
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    ours = next(row for row in table if row[0] == "both")
    assert float(ours[1]) == pytest.approx(0.5625, abs=6e-4)
    assert [float(seed) for seed in ours[3].split(",")] == pytest.approx([0.5625, 0.5625], abs=6e-4)
    differences = [row for row in table if row[0] == "sft only"]
    assert float(differences[1][1].lstrip("\\")) == pytest.approx(-0.1875, abs=6e-4)
    data = json.loads(page.with_name("report.json").read_text(encoding="utf-8"))
    assert data["results"]["sft only"]["2"]["mrr"] == 0.375


def test_what_is_finished_is_not_run_again(ablation, tmp_path):
    """A finished run is read; one of other settings is not taken for it."""
    budget = budget_of(ablation)
    base = load_recipe(budget.recipe)
    folder = tmp_path / "both-1"
    folder.mkdir()
    done = found(ablation, 1.0, 0.5)
    (folder / "found.json").write_text(done.model_dump_json(), encoding="utf-8")
    recipe = load_recipe(budget.recipe, ablation.settings_of("both", 1, base, budget, tmp_path))
    (folder / "resolved.yaml").write_text(ablation.dump_recipe(recipe), encoding="utf-8")
    assert ablation.run_one("both", 1, base, budget, tmp_path, []) == done
