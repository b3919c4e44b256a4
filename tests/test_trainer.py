"""The real trainer on a tiny model: parameters move, every term has a gradient, a killed run resumes exactly."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from trl import SFTConfig

from prism.checkpoint import Checkpoint
from prism.cli import main_train
from prism.errors import DataError, RecipeError
from prism.files.examples import write_examples
from prism.template import PRISM, Template
from prism.training.batches import Steps, collator
from prism.training.dataset import make_row
from prism.training.distill import DistillTrainer, body
from prism.training.recipe import TERMS, Losses, load_recipe
from prism.training.rows import Rows
from prism.training.trainer import train
from prism.types import Document, Example

ROOT = Path(__file__).parents[1]
PRELOADED = ["prism.cli", "prism.training.trainer", "peft", "datasets", "trl"]
"""Imported once for all processes that a test starts."""


def example(number: int) -> Example:
    asked = f"when did harbour {number // 4} freeze"  # four documents a query
    if number % 2:
        return Example(query=asked, document="Copper conducts heat. " * 3, teacher_score=0.1, verdict="no")
    fact = f"Harbour {number // 4} froze in {1900 + number}."
    return Example(
        query=asked,
        document=f"{fact} Nobody came to harbour {number}.",
        teacher_score=0.9 - 0.2 * (number % 4 == 2),
        verdict="yes",
        contribution=f"It says when harbour {number} froze.",
        evidence=fact,
    )


@pytest.fixture
def recipe(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    write_examples(tmp_path / "train.jsonl", [example(i) for i in range(64)])
    settings = {
        "name": "tiny",
        "output": str(tmp_path / "run"),
        "model": {"base": str(tiny_checkpoint), "template": "prism"},
        "data": {"files": [str(tmp_path / "train.jsonl")], "max_tokens": 400},
        "losses": {"distill": 20.0, "sft": 1.0},
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "schedule": {"batch_size": 4, "epochs": 2, "save_steps": 4, "log_steps": 2},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_recipe_becomes_a_checkpoint_that_reranks(recipe, tmp_path):
    folder = train(recipe)
    assert {p.name for p in folder.iterdir()} >= {"model.safetensors", "prism.json", "recipe.yaml", "tokenizer.json"}
    checkpoint = Checkpoint.load(folder)
    assert checkpoint.name == "tiny"
    assert checkpoint.template.spec.text == PRISM.text
    from prism.reranker import Reranker

    with Reranker.load(str(folder), dtype="float32", self_test=False) as reranker:
        result = reranker.rerank("when did harbour 0 freeze", [example(2).document, example(3).document])
        assert sorted(judgment.index for judgment in result) == [0, 1]
        assert all(0.0 < judgment.score < 1.0 for judgment in result)
    logged = yaml.safe_load((tmp_path / "run" / "log.json").read_text())
    assert logged["steps"] == 32
    assert {"distill", "sft"} <= logged["history"][0].keys()


def trainer_for(tiny_tokenizer, model, folder: Path, weights: Losses) -> DistillTrainer:
    template = Template(PRISM, tiny_tokenizer)
    rows = Rows.of([make_row(example(i), template, 400) for i in range(8)])
    collate = collator(tiny_tokenizer.pad_token_id)
    return DistillTrainer(
        steps=Steps(rows, np.arange(8), share=4, cut=lambda some, least: [some], collate=collate),
        label_ids=template.label_ids,
        weights=weights,
        settings=load_recipe(ROOT / "recipes" / "mini.yaml"),
        model=model,
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=3,
            per_device_train_batch_size=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            max_length=None,
            save_strategy="no",
            dataloader_pin_memory=False,
            gradient_checkpointing=False,
        ),
        processing_class=tiny_tokenizer,
    )


def test_every_parameter_moves(tiny_tokenizer, tiny_qwen3, tmp_path):
    from copy import deepcopy

    model = deepcopy(tiny_qwen3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer_for(tiny_tokenizer, model, tmp_path, Losses()).train()
    still = [name for name, p in model.named_parameters() if torch.equal(before[name], p)]
    assert still == []


@pytest.mark.parametrize("term", TERMS)
def test_each_term_alone_has_a_gradient_through_the_trainer(tiny_tokenizer, tiny_qwen3, tmp_path, term):
    """The silent trap: a distillation term on outputs that were computed without gradient trains nothing."""
    from copy import deepcopy

    model = deepcopy(tiny_qwen3).train()
    alone = Losses(**{**dict.fromkeys(TERMS, 0.0), term: 1.0})
    trainer = trainer_for(tiny_tokenizer, model, tmp_path, alone)
    batch = collator(0)([trainer.train_dataset.rows[i] for i in range(4)])
    trainer.compute_loss(model, batch).backward()
    gradient = body(model).layers[0].self_attn.q_proj.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_distillation_gradient_reaches_the_score_position_only(tiny_tokenizer, tiny_qwen3, tmp_path):
    """Minimising the distillation term alone brings scores to their teachers."""
    from copy import deepcopy

    model = deepcopy(tiny_qwen3).train()
    trainer = trainer_for(tiny_tokenizer, model, tmp_path, Losses(distill=1.0, sft=0.0))
    batch = collator(0)([trainer.train_dataset.rows[i] for i in range(8)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = trainer.compute_loss(model, dict(batch))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def run_command(recipe: Path, output: Path) -> BaseProcess:
    """`prism-train` in a process of its own, which can be killed; it starts with everything imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_command, args=(str(recipe), str(output)))
    process.start()
    return process


def _command(recipe: str, output: str) -> None:
    torch.set_num_threads(1)
    sys.argv = ["prism-train", recipe, "--output", output]
    main_train()


def finish(process: BaseProcess) -> None:
    process.join(timeout=300)
    assert process.exitcode == 0


def kill_after(process: BaseProcess, output: Path, states: int) -> None:
    """kill -9 some moment after so many states were saved: within a step, or while the next one is written."""
    deadline = time.monotonic() + 300
    while len(list(output.glob("state/checkpoint-*/trainer_state.json"))) < states:
        assert process.is_alive(), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.random() / 5)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (output / "checkpoint" / "model.safetensors").exists()


@pytest.mark.slow
def test_kill_9_and_resume_gives_the_same_weights(recipe, tmp_path):
    """Killed twice, at moments of chance: the data's order goes on where it was, in the middle of an epoch."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(run_command(recipe, whole))
    for states in (1, 2):
        kill_after(run_command(recipe, broken), broken, states)
    finish(run_command(recipe, broken))
    assert same(weights(whole / "checkpoint"), weights(broken / "checkpoint"))
    reports = [json.loads((run / "log.json").read_text())["history"] for run in (whole, broken)]
    steps = [[(point["step"], point.get("loss"), point.get("distill")) for point in history] for history in reports]
    assert steps[0] == steps[1]


def states(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ending", [[], ["schedule.max_steps=6"]], ids=["epochs", "max_steps"])
def test_a_finished_run_is_finished(recipe, tmp_path, capsys, ending):
    """Run again it changes no file and says so, whatever ended it."""
    folder = train(recipe, overrides=ending)
    before = states(tmp_path / "run")
    capsys.readouterr()
    assert train(recipe, overrides=ending) == folder
    assert states(tmp_path / "run") == before
    assert "finished: nothing was trained" in capsys.readouterr().err


def test_a_run_killed_between_its_last_step_and_its_checkpoint_is_packaged_as_it_was(recipe, tmp_path):
    short = ["schedule.max_steps=6", "schedule.save_steps=2"]
    whole = states(train(recipe, overrides=short))
    for name in ("log.json", "checkpoint/prism.json", "checkpoint/model.safetensors"):
        (tmp_path / "run" / name).unlink()
    for state in (tmp_path / "run/state").glob("checkpoint-[24]"):
        (state / "model.safetensors").write_bytes(b"")  # who goes back further than he must cannot go on
    assert states(train(recipe, overrides=short)) == whole
    assert json.loads((tmp_path / "run/log.json").read_text())["steps"] == 6
    assert sorted(path.name for path in (tmp_path / "run/state").iterdir() if path.is_dir())[-1] == "checkpoint-6"


def test_early_stopping_stays_stopped(recipe, tmp_path):
    write_examples(tmp_path / "dev.jsonl", [example(i) for i in range(64, 72)])
    stopping = [
        f"evaluation={{file: {tmp_path / 'dev.jsonl'}, every_steps: 2, queries: 2, written: 0, patience: 1}}",
        "optimizer.lr=1e-12",
        "schedule.save_steps=2",
    ]
    train(recipe, overrides=stopping)
    steps = json.loads((tmp_path / "run/log.json").read_text())["steps"]
    assert steps < 32
    whole = states(tmp_path / "run/checkpoint")
    (tmp_path / "run/log.json").unlink()  # as if killed before the end of it
    train(recipe, overrides=stopping)
    assert json.loads((tmp_path / "run/log.json").read_text())["steps"] == steps
    assert states(tmp_path / "run/checkpoint") == whole


def test_fresh_leaves_no_state_of_the_run_before(recipe, tmp_path):
    train(recipe, overrides=["schedule.max_steps=8", "schedule.save_steps=4"])
    train(recipe, overrides=["schedule.max_steps=2", "schedule.save_steps=2"], resume=False)
    assert [path.name for path in (tmp_path / "run/state").glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_folder_of_another_recipe_is_not_continued(recipe, tmp_path):
    train(recipe, overrides=["schedule.max_steps=4"])
    with pytest.raises(RecipeError, match="different recipe"):
        train(recipe, overrides=["schedule.max_steps=4", "optimizer.lr=0.5"])
    train(recipe, overrides=["schedule.max_steps=4", "optimizer.lr=0.5"], resume=False)


def test_wrong_data_fails_before_training(recipe, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"query": "q", "document": "d", "verdict": "perhaps"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:1: verdict"):
        train(recipe)
    write_examples(tmp_path / "train.jsonl", [Example(query=" ", document="d", verdict="no")])
    with pytest.raises(DataError, match="no training records"):
        train(recipe, overrides=["name=again"], resume=False)


def test_optimizer_keeps_fp32_copies_of_bf16_weights(tiny_qwen3):
    """An update far below bf16's resolution still adds up."""
    from copy import deepcopy

    from prism.training.optimizer import build_optimizer
    from prism.training.recipe import Optimizer

    model = deepcopy(tiny_qwen3).to(torch.bfloat16)
    parameter = model.model.norm.weight
    optimizer = build_optimizer(model, Optimizer(lr=1e-4, weight_decay=0.0))
    start = parameter.detach().clone()
    for _ in range(100):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        optimizer.zero_grad()
    # 100 Adam steps of 1e-4 on weights of 1.0, where bf16 steps are 0.0039 below and 0.0078 above one.
    assert torch.allclose(start - parameter, torch.full_like(start, 0.01), atol=4e-3)
    assert all(p.grad is None for p in model.parameters())


def test_terms_without_weight_cost_nothing(tiny_tokenizer, tiny_qwen3, tmp_path):
    from copy import deepcopy

    trainer = trainer_for(tiny_tokenizer, deepcopy(tiny_qwen3), tmp_path, Losses(distill=1.0, sft=0.0))
    trainer.train()
    assert set(TERMS) & trainer.state.log_history[0].keys() == {"distill"}


def test_packed_rows_do_not_see_each_other(tiny_tokenizer, tiny_qwen3, tmp_path):
    """Loss and gradient of a packed batch are those of the same rows padded."""
    from copy import deepcopy

    model = deepcopy(tiny_qwen3).train()
    trainer = trainer_for(tiny_tokenizer, model, tmp_path, Losses(**dict.fromkeys(TERMS, 1.0)))
    rows = [trainer.train_dataset.rows[i] for i in range(8)]
    found = []
    for packed in (False, True):
        model.zero_grad()
        loss = trainer.compute_loss(model, collator(0, packed=packed)(rows))
        loss.backward()
        found.append((loss.item(), body(model).layers[0].self_attn.q_proj.weight.grad.clone()))
    (padded_loss, padded), (packed_loss, together) = found
    assert packed_loss == pytest.approx(padded_loss, rel=1e-5)
    assert torch.allclose(padded, together, atol=1e-5 * padded.abs().max().item())


def test_document_titles_reach_the_model(tiny_tokenizer):
    template = Template(PRISM, tiny_tokenizer)
    titled = example(2).model_copy(update={"title": "Lindau"})
    row = make_row(titled, template, 400)
    prompt = template.render(titled.query, Document(text=titled.document, title="Lindau"))
    assert row.input_ids[: row.label_position].tolist() == prompt.ids
