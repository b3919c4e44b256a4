"""Batches by a budget of tokens: what they cost, that nothing is lost, that the gradient does not depend on them."""

from __future__ import annotations

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_trainer import example, recipe, trainer_for, weights  # noqa: F401  (a fixture)

from prism.engines.packed import PACKED
from prism.engines.prefix import attends_by
from prism.template import PRISM, Template
from prism.training.batches import Steps, collator, deal, filled, steps_of, token_batches
from prism.training.dataset import make_row
from prism.training.distill import body
from prism.training.dry_run import _batches
from prism.training.recipe import TERMS, Data, Losses, Model, PartWeights, Recipe, Schedule
from prism.training.rows import Row, Rows
from prism.training.setup import arguments
from prism.training.trainer import train

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def test_rows_of_similar_length_share_a_batch():
    # Longest first. Padded: 50 alone (2 x 50 > 80); 40 + 40 = 80; 20 + 20 + 10 padded to 3 x 20 = 60.
    assert token_batches([10, 20, 40, 50, 20, 40], 80) == [[3], [2, 5], [1, 4, 0]]
    # Packed, a batch costs its sum: 50 (+ 40 is too much); 40 + 30; 20 + 20 + 10.
    assert token_batches([10, 20, 40, 50, 20, 30], 80, packed=True) == [[3], [2, 5], [1, 4, 0]]
    assert token_batches([100], 80) == [[0]]  # never cut


@given(LENGTHS, st.integers(1, 150), st.booleans(), st.integers(1, 6))
def test_batches_keep_every_row_and_the_budget(lengths, budget, packed, least):
    made = token_batches(lengths, budget, packed=packed, least=least)
    assert sorted(position for batch in made for position in batch) == list(range(len(lengths)))
    assert len(made) >= min(least, len(lengths))
    for batch in made:
        rows = [lengths[position] for position in batch]
        assert len(rows) == 1 or (sum(rows) if packed else max(rows) * len(rows)) <= budget


@given(LENGTHS, st.integers(1, 150), st.integers(1, 4), st.data())
def test_documents_of_a_query_stay_together(lengths, budget, least, data):
    units = data.draw(st.lists(st.integers(0, 5), min_size=len(lengths), max_size=len(lengths)))
    made = token_batches(lengths, budget, units=units, least=least)
    assert sorted(position for batch in made for position in batch) == list(range(len(lengths)))
    assert len(made) >= min(least, len(set(units)))
    assert sum(len({units[position] for position in batch}) for batch in made) == len(set(units))


def of_lengths(lengths: list[int], kind: type[Rows] = Rows) -> Rows:
    """Rows of so many tokens, the last of them the label."""
    weight = np.ones(1, np.float32)
    made = enumerate(lengths)
    return kind.of([Row(np.full(size, 7, np.int32), size - 1, 0.5, query, weight) for query, size in made])


@given(LENGTHS, st.integers(1, 5), st.integers(1, 4), st.integers(64, 150))
def test_processes_get_equally_many_rows_and_batches(lengths, share, processes, budget):
    schedule = Schedule(batch_size=share, tokens_per_batch=budget)
    steps = steps_of(speaking(schedule, Losses()), of_lengths(lengths), 0, processes)
    items = [steps.batches(item) for item in range(len(steps))]
    assert {row for batches in items for batch in batches for row in batch.tolist()} == set(range(len(lengths)))
    for start in range(0, len(items), processes):
        step = items[start : start + processes]
        assert len(step) == processes
        assert len({len(batches) for batches in step}) == 1
        assert len({sum(map(len, batches)) for batches in step}) == 1


def test_a_step_is_dealt_out_evenly():
    # Two processes, three rows each: sorted rows 0..5 go to process 0 and 1 in turn; so does the next step.
    assert deal(np.arange(12), 3, 2).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_the_last_step_is_filled_from_the_front():
    assert filled(np.array([7, 8, 9]), 4).tolist() == [7, 8, 9, 7]
    assert filled(np.array([7]), 4).tolist() == [7, 7, 7, 7]
    assert filled(np.array([7, 8]), 2).tolist() == [7, 8]


def test_batches_of_rows_by_hand():
    """Two batches of two a step, in the order of the data, each step sorted by length; the last step is short."""
    schedule = Schedule(batch_size=2, accumulation=2, shuffle=False)
    steps = steps_of(speaking(schedule, Losses()), of_lengths([30, 10, 20, 40, 9, 8]), 0)
    assert [[batch.tolist() for batch in steps.batches(item)] for item in range(2)] == [[[1, 2], [0, 3]], [[5, 4]]]
    # Two processes: sorted 1, 2, 0, 3 is dealt out as 1, 0 and 2, 3; the second step is filled with rows 1 and 0.
    schedule = Schedule(batch_size=2, shuffle=False)
    steps = steps_of(speaking(schedule, Losses()), of_lengths([30, 10, 20, 40, 9, 8]), 0, processes=2)
    found = [[batch.tolist() for batch in steps.batches(item)] for item in range(len(steps))]
    assert found == [[[1, 0]], [[2, 3]], [[5, 1]], [[4, 2]]]
    with pytest.raises(IndexError):
        steps.batches(4)


def test_an_item_is_cut_without_the_items_before_it():
    """What a resumed run skips is not even looked at."""

    class Counting(Rows):
        looked_at = 0

        def __getitem__(self, index):
            Counting.looked_at += 1
            return super().__getitem__(index)

    rows = of_lengths([10] * 400, Counting)
    schedule = Schedule(batch_size=4, tokens_per_batch=64)
    steps = steps_of(speaking(schedule, Losses()), rows, 0)
    last = steps[99]
    assert Counting.looked_at == 4
    assert sum(len(batch["queries"]) for batch in last["batches"]) == 4
    # Of two processes one looks at what the other computes too: it knows the totals without asking.
    steps = steps_of(speaking(schedule, Losses()), rows, 0, processes=2)
    Counting.looked_at = 0
    assert steps[99]["totals"]["distill"] == 8
    assert Counting.looked_at == 8


def speaking(schedule: Schedule, losses: Losses) -> Recipe:
    return Recipe(name="x", model=Model(base="b"), data=Data(files=["f"]), schedule=schedule, losses=losses)


def test_rows_of_a_step_are_those_drawn_for_it():
    """The budget decides what is computed together, never what a step trains on."""
    rows = of_lengths([5 + number * 7 % 60 for number in range(32)])
    drawn = []
    for budget in (None, 100):
        schedule = Schedule(batch_size=4, accumulation=2, tokens_per_batch=budget)
        steps = steps_of(speaking(schedule, Losses()), rows, 0)
        drawn.append([sorted(np.concatenate(steps.batches(item)).tolist()) for item in range(4)])
    assert drawn[0] == drawn[1]
    assert sorted(row for step in drawn[0] for row in step) == list(range(32))


def rows_for(template: Template) -> list[Row]:
    """A step of eight rows: texts of many lengths, three without a teacher, three without a written part."""
    made = []
    for number in range(8):
        one = example(number)
        changed = {"document": one.document + " More." * 7 * number}
        if number in (1, 2, 6):
            changed["teacher_score"] = None
        made.append(make_row(one.model_copy(update=changed), template, 600, PartWeights(evidence=3.0)))
    return made


@pytest.fixture
def step(tiny_tokenizer, tiny_qwen3, tmp_path):
    """(trainer, rows, gradient of a step whose rows are cut into these batches)."""
    model = deepcopy(tiny_qwen3).train()
    trainer = trainer_for(tiny_tokenizer, model, tmp_path, Losses(**dict.fromkeys(TERMS, 1.0)))
    rows = Rows.of(rows_for(Template(PRISM, tiny_tokenizer)))

    def gradient(batches: list[list[int]], packed: str = "") -> dict[str, torch.Tensor]:
        cut = [np.array(batch) for batch in batches]
        collate = collator(0, packed=bool(packed))
        (sample,) = Steps(rows, np.arange(8), share=8, cut=lambda some, least: cut, collate=collate)
        model.zero_grad()
        samples, totals = trainer.get_batch_samples(iter([sample]), 1, torch.device("cpu"))
        with attends_by(model.config, PACKED if packed == "ours" else "sdpa"):
            trainer.training_step(model, samples[0], totals)
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    return trainer, rows, gradient


def test_the_gradient_does_not_depend_on_the_batches(step):
    """Every term, unequal batches, rows with and without teacher, parts with weights: the step is what counts."""
    trainer, rows, gradient = step
    whole = gradient([list(range(8))])
    scale = {name: value.abs().max().item() for name, value in whole.items()}
    for packed in ("", "by positions", "ours"):
        for budget in (400, 700):
            cut = token_batches(rows.lengths.tolist(), budget, packed=bool(packed), units=rows.queries.tolist())
            assert len({len(batch) for batch in cut}) > 1 or len(cut) == len(set(rows.queries.tolist()))
            found = gradient(cut, packed)
            for name, value in whole.items():
                assert torch.allclose(found[name], value, atol=2e-5 * scale[name]), (name, packed, budget)
    assert body(trainer.model).layers[0].self_attn.q_proj.weight.grad.abs().max() > 0


def test_what_is_counted_by_hand(tiny_tokenizer):
    made = rows_for(Template(PRISM, tiny_tokenizer))
    found = collator(0)(made)["counts"]
    # Rows 0 to 3 ask one thing, 4 to 7 another. Teachers: rows 0, 3 and rows 4, 5, 7: 1 + 3 pairs of two queries.
    assert (found["distill"], found["margin"], found["listwise"]) == (5, 1 + 3, 2)
    assert found["sft"] == pytest.approx(sum(sum(row.weights) for row in made))
    assert collator(0, packed=True)(made)["counts"] == found


def test_a_budget_trains_what_batches_of_rows_train(recipe, tmp_path):  # noqa: F811
    """Through the command's own path, with the same rows in every step: equal but for the order of sums."""
    exact = ["schedule.bf16=false", "optimizer.eps=1e-3"]  # nothing that blows up last bits
    common = [*exact, "schedule.max_steps=4", "schedule.save_steps=4", "schedule.batch_size=8"]
    one = weights(train(recipe, overrides=common, output=tmp_path / "rows"))
    budget = [*common[:-1], "schedule.batch_size=2", "schedule.accumulation=4", "schedule.tokens_per_batch=600"]
    two = weights(train(recipe, overrides=budget, output=tmp_path / "tokens"))
    # The checkpoint is rounded to bf16: a last bit may differ.
    assert all(torch.allclose(one[name].float(), two[name].float(), atol=1e-4, rtol=2**-7) for name in one)
    logs = [json.loads((tmp_path / name / "log.json").read_text())["history"][0] for name in ("rows", "tokens")]
    for term in ("distill", "sft", "tokens"):
        assert logs[0][term] == pytest.approx(logs[1][term], rel=1e-4)


def test_arguments_hand_a_whole_step_over(tmp_path):
    settings = arguments(speaking(Schedule(batch_size=4, accumulation=6, tokens_per_batch=900), Losses()), tmp_path)
    assert (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) == (1, 1)


def test_dry_run_counts_what_is_computed():
    rows = of_lengths([30, 10, 20, 40, 9, 8])
    schedule = Schedule(batch_size=2, accumulation=2, tokens_per_batch=64, shuffle=False)
    # Rows 0 to 3, longest first: 40 alone (2 x 40 > 64), 30 and 20 as 2 x 30, 10 alone (3 x 30 > 64); then 9 and 8.
    assert _batches(speaking(schedule, Losses()), rows) == [[40, 60, 10], [18]]
    packed = speaking(schedule.model_copy(update={"packing": True}), Losses())
    # 40 (+ 30 is too much), 30 + 20 + 10 = 60; then 9 + 8.
    assert _batches(packed, rows) == [[40, 60], [17]]
