"""Measuring while training: by hand on fixed answers, and through the real trainer (best checkpoint, early stop)."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from test_trainer import example, same, weights

from prism.errors import DataError, RecipeError
from prism.files.examples import write_examples
from prism.template import PRISM, Template
from prism.training.evaluate import Assessment, DevSet, assess, read_dev
from prism.training.recipe import load_recipe
from prism.training.trainer import train
from prism.types import Example


@pytest.fixture
def recipe(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    write_examples(tmp_path / "train.jsonl", [example(i) for i in range(48)])
    write_examples(tmp_path / "dev.jsonl", [example(i) for i in range(100, 116)])
    settings = {
        "name": "measured",
        "output": str(tmp_path / "run"),
        "model": {"base": str(tiny_checkpoint), "template": "prism", "max_written_tokens": 24},
        "data": {"files": [str(tmp_path / "train.jsonl")], "max_tokens": 400},
        "optimizer": {"lr": 1e-3, "warmup_steps": 1},
        "schedule": {"batch_size": 8, "max_steps": 6, "save_steps": 2, "log_steps": 1, "bf16": False},
        "evaluation": {"file": str(tmp_path / "dev.jsonl"), "every_steps": 2, "written": 2, "queries": 3},
    }
    path = tmp_path / "measured.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def blind(tiny_qwen3):
    """A model whose hidden states are all zero: every score is 0.5, and the first token is the likeliest for ever."""
    model = deepcopy(tiny_qwen3)
    with torch.no_grad():
        model.model.norm.weight.zero_()
    return model


def test_a_model_that_scores_all_alike_gets_no_credit(tiny_qwen3, tiny_tokenizer):
    template = Template(PRISM.model_copy(update={"max_written_tokens": 8}), tiny_tokenizer)
    texts = ["Copper conducts.", "Silver conducts.", "Iron conducts."]
    examples = [
        Example(query="which", document=text, verdict=verdict, evidence=text if verdict == "yes" else None)
        for text, verdict in zip(texts, ("yes", "no", "no"), strict=True)
    ]
    found = assess(blind(tiny_qwen3), template, DevSet({"which": examples}, written=1), step=3)
    # All scores are 0.5: the relevant document comes last of three (nDCG 1 / log2 4), half of the pairs are right, and
    # of pairs said to be relevant with 0.5 a third is.
    assert found.measures["ndcg@10"] == pytest.approx(1 / math.log2(4))
    assert found.measures["auc"] == pytest.approx(0.5)
    assert found.measures["calibration_error"] == pytest.approx(0.5 - 1 / 3)
    assert found.measures["failed"] == 0
    assert found.measures["parse_rate"] == 0.0  # it writes token 0 for ever
    assert [sample.score for sample in found.samples] == [0.5] * len(found.samples)
    assert {sample.label for sample in found.samples} == {"yes", "no"}


def test_assessing_leaves_the_model_and_the_random_numbers_alone(tiny_qwen3, tiny_tokenizer):
    template = Template(PRISM.model_copy(update={"max_written_tokens": 8}), tiny_tokenizer)
    model = deepcopy(tiny_qwen3).train()
    dev = DevSet({"q": [example(0), example(1)]}, written=1)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    first = assess(model, template, dev, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert assess(model, template, dev, 1) == first


def test_training_with_evaluation(recipe, tmp_path):
    folder = train(recipe)
    measured = Assessment.read_all(tmp_path / "run" / "evaluation")
    assert [one.step for one in measured] == [0, 2, 4, 6]
    for one in measured:
        assert {"ndcg@10", "auc", "calibration_error", "parse_rate", "failed"} <= one.measures.keys()
        assert all(0.0 <= value <= 1.0 for value in one.measures.values())
        assert [sample.query for sample in one.samples] == [sample.query for sample in measured[0].samples]
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    logged = {point["step"]: point["eval_ndcg@10"] for point in log["history"] if "eval_ndcg@10" in point}
    assert logged == {one.step: one.measures["ndcg@10"] for one in measured[1:]}
    best = max(logged, key=lambda step: (logged[step], -step))
    assert log["best_step"] == best
    state = weights(tmp_path / "run" / "state" / f"checkpoint-{best}")
    result = weights(folder)
    assert all(torch.equal(result[name], state[name].to(torch.bfloat16)) for name in result)
    page = (tmp_path / "run" / "report" / "report.html").read_text(encoding="utf-8")
    assert "Before and after" in page
    assert "Harbour 25 froze in 2000." in page  # the evidence that was wanted, beside what was written
    assert "ndcg@10" in page


def test_measuring_changes_no_weight(recipe, tmp_path):
    measured = train(recipe, overrides=["evaluation.keep_best=false"])
    plain = train(recipe, overrides=["evaluation=null"], output=tmp_path / "plain")
    assert same(weights(measured), weights(plain))


def test_training_stops_when_it_gets_no_better(recipe, tmp_path):
    # With a learning rate that changes nothing every evaluation equals the first: two more and it ends.
    still = ["optimizer.lr=1e-30", "optimizer.weight_decay=0", "evaluation.patience=2", "schedule.max_steps=40"]
    train(recipe, overrides=still)
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    assert log["steps"] == 6
    assert log["best_step"] == 2


def test_hostile_documents_stay_text_in_the_report(recipe, tmp_path):
    hostile = "<script>alert(1)</script> Harbour 0 froze in 1900."
    write_examples(
        tmp_path / "dev.jsonl",
        [Example(query="q", document=hostile, verdict="yes"), Example(query="q", document="Copper.", verdict="no")],
    )
    train(recipe, overrides=["schedule.max_steps=2"])
    page = (tmp_path / "run" / "report" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_dev_files_need_both_verdicts(recipe, tmp_path):
    write_examples(tmp_path / "dev.jsonl", [example(1)])
    with pytest.raises(DataError, match="expected records labelled yes"):
        read_dev(load_recipe(recipe), tmp_path)


def test_unknown_reporters_are_refused(recipe):
    with pytest.raises(RecipeError, match=r"report_to: smoke_signals is not installed"):
        train(recipe, overrides=["schedule.report_to=[smoke_signals]"])
