"""What a recipe may ask for besides: a base in four bits, faster kernels, TensorBoard, figures on the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from test_trainer import finish, kill_after, recipe, run_command, same, weights  # noqa: F401  (a fixture)
from test_trainer_lora import written

from prism.errors import RecipeError
from prism.training.distill import unwrapped
from prism.training.dry_run import dry_run
from prism.training.model import make_model, merged_model, require
from prism.training.progress import Reporter, bar
from prism.training.recipe import load_recipe
from prism.training.setup import open_template
from prism.training.trainer import train


@pytest.fixture
def four_bits(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    path = written(tmp_path, tiny_checkpoint)
    path.write_text(path.read_text(encoding="utf-8").replace("rank: 4", "rank: 4\n    quantize: nf4"), encoding="utf-8")
    return path


def test_four_bits_hold_the_projections_and_merge_to_what_was_trained(four_bits, tmp_path):
    settings = load_recipe(four_bits)
    opened = open_template(settings)
    model = make_model(settings, opened.base)
    packed = {name for name, p in model.named_parameters() if p.dtype is torch.uint8}
    assert len(packed) == 2 * 7  # the projections of two layers
    assert all("base_layer" in name for name in packed)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = unwrapped(model)(ids).logits
        whole = merged_model(model, settings, opened.base)
        assert torch.allclose(whole(ids).logits, expected, atol=1e-3)
    assert all(p.dtype is torch.float32 for p in whole.parameters())


def test_adapters_beside_four_bits_are_trained(four_bits, tiny_checkpoint):
    after, base = weights(train(four_bits)), weights(tiny_checkpoint)
    assert after.keys() == base.keys()
    changed = {name for name in after if not torch.equal(after[name], base[name].to(torch.bfloat16))}
    assert changed == {name for name in after if name.endswith("_proj.weight")}


def test_measuring_in_between_leaves_the_gradients(four_bits, tmp_path):
    settings = load_recipe(four_bits)
    model = make_model(settings, open_template(settings).base)
    ids = torch.arange(3, 40)[None]

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model.train()(ids).logits.square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    before = gradients()
    with torch.no_grad():
        model.eval()(ids)
    assert all(torch.equal(one, two) for one, two in zip(before, gradients(), strict=True))
    assert any(gradient.abs().max() > 0 for gradient in before)


@pytest.mark.exhaustive
def test_kill_9_and_resume_in_four_bits(four_bits, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(run_command(four_bits, whole))
    kill_after(run_command(four_bits, broken), broken, 1)
    finish(run_command(four_bits, broken))
    assert same(weights(whole / "checkpoint"), weights(broken / "checkpoint"))


def test_dry_run_counts_four_bits(four_bits, tiny_qwen3, tmp_path):
    frozen = tiny_qwen3.num_parameters()
    projections = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128)
    adapters = 2 * 4 * (128 + 2 * 96 + 128 + 3 * 192)
    plan = dry_run(four_bits, output=tmp_path / "run")
    # 4 bits and 0.127 for the scales (Dettmers et al. 2023, section 3); the rest and the adapters are fp32.
    expected = projections * 4.127 / 8 + (frozen - projections) * 4 + adapters * 4
    assert plan.weights_gib == pytest.approx(expected / 2**30)


def test_what_is_not_installed_is_named():
    with pytest.raises(RecipeError, match=r"model\.lora\.quantize needs no_such_package.*prism-reranker\[qlora\]"):
        require("no_such_package", "model.lora.quantize", "qlora")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_kernels_for_gpus_are_refused_without_one(recipe):  # noqa: F811
    with pytest.raises(RecipeError, match="Liger's kernels run on GPUs"):
        train(recipe, overrides=["schedule.liger=true"])
    with pytest.raises(RecipeError, match=r"schedule\.attention 'flash_attention_2'"):
        train(recipe, overrides=["schedule.attention=flash_attention_2"], resume=False)


def test_tensorboard_gets_the_terms(recipe, tmp_path):  # noqa: F811
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(recipe, overrides=["schedule.report_to=[tensorboard]", "schedule.max_steps=4"])
    (folder,) = {path.parent for path in (tmp_path / "run").rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {"train/loss", "train/distill", "train/sft"} <= set(events.Tags()["scalars"])
    logged = json.loads((tmp_path / "run" / "log.json").read_text())["history"]
    expected = [(point["step"], pytest.approx(point["distill"])) for point in logged if "distill" in point]
    assert [(event.step, event.value) for event in events.Scalars("train/distill")] == expected[: len(expected)]


def reported(*logs: dict[str, float], process: int = 0) -> str:
    console = Console(file=io.StringIO(), width=200)
    state = SimpleNamespace(is_world_process_zero=process == 0, global_step=20, max_steps=100)
    with Reporter(console) as reporter:
        reporter.on_train_begin(None, state, None)
        for one in logs:
            reporter.on_step_end(None, state, None)
            reporter.on_log(None, state, None, one)
    return console.file.getvalue()


def test_terminal_shows_terms_and_measures():
    shown = reported(
        {"loss": 3.25, "distill": 0.125, "learning_rate": 1e-5, "tokens": 4000.0, "epoch": 0.5},
        {"eval_ndcg@10": 0.75, "eval_auc": 0.5},
        {"train_runtime": 12.0},
    )
    first, second = shown.split("\n")[:2]
    assert first.startswith("step 20/100: loss 3.25, distill 0.125, learning_rate 1e-05, ")
    assert first.endswith(" tokens/s")
    assert second == "step 20/100: ndcg@10 0.7500, auc 0.5000"
    assert "runtime" not in shown


def test_other_processes_are_silent():
    assert reported({"loss": 3.25}, process=1).strip() == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_for_terminals(terminal):
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
    with bar("tokenizing", 1200, console) as advance:
        advance(500)
    shown = console.file.getvalue()
    assert ("tokenizing" in shown and "500/1200" in shown) == terminal
