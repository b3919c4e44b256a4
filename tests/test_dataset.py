"""Records to rows: masks, drops, order, padding."""

from __future__ import annotations

import copy
import gzip
import json
import math
import multiprocessing
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.errors import DataError
from prism.files.examples import read_examples, write_examples
from prism.files.jsonl import Drops
from prism.template import PRISM, Template
from prism.text import stable_id
from prism.training.batches import collator, order, order_by_query
from prism.training.dataset import Rendering, make_row, make_rows, tokenize
from prism.training.recipe import Data, Model, PartWeights, Recipe
from prism.training.rows import IGNORED, Row, Rows
from prism.types import Example


@pytest.fixture
def template(tiny_tokenizer) -> Template:
    return Template(PRISM, tiny_tokenizer)


def yes(**changes) -> Example:
    base = {
        "query": "when did it freeze",
        "document": "The harbour froze in 1963. Nobody came.",
        "teacher_score": 0.9,
        "verdict": "yes",
        "contribution": "It names the year.",
        "evidence": "The harbour froze in 1963.",
    }
    return Example(**{**base, **changes})


def test_label_is_masked_where_a_teacher_scores_it(template):
    row = make_row(yes(), template, 400)
    assert row.input_ids[row.label_position] == template.yes_id
    assert row.labels[: row.label_position + 1].tolist() == [IGNORED] * (row.label_position + 1)
    assert row.labels[row.label_position + 1 :].tolist() == row.input_ids[row.label_position + 1 :].tolist()
    assert row.teacher_score == 0.9


def test_label_is_learnt_where_there_is_no_teacher(template):
    for example in (yes(teacher_score=None), yes(losses=("sft",))):
        row = make_row(example, template, 400)
        assert row.labels[row.label_position] == template.yes_id
        assert math.isnan(row.teacher_score)


def test_distill_only_writes_nothing(template):
    row = make_row(yes(losses=("distill",)), template, 400)
    assert set(row.labels.tolist()) == {IGNORED}
    assert set(row.weights.tolist()) == {0.0}
    assert row.teacher_score == 0.9


def test_parts_count_what_the_recipe_says(template):
    parts = PartWeights(contribution=0.5, evidence=3.0, tags=0.0, label_with_teacher=True)
    row = make_row(yes(), template, 400, parts)
    written = list(zip(row.input_ids, row.labels, [0.0] * row.label_position + row.weights.tolist(), strict=True))
    said = {part: template.decode([id_ for id_, _, w in written if w == part]).strip() for part in (0.5, 1.0, 3.0)}
    # The full stops are one token with the tags behind them, and count as these.
    assert said == {0.5: "It names the year", 1.0: "yes", 3.0: "The harbour froze in 1963"}
    assert all((label == IGNORED) == (weight == 0.0) for _, label, weight in written)  # tags train nothing


def test_every_target_counts_one_by_default(template):
    row = make_row(yes(), template, 400)
    targets = row.labels[row.label_position :]
    assert row.weights.tolist() == [float(label != IGNORED) for label in targets]


def as_lists(rows: Iterable[Row]) -> list[Any]:
    return [[value.tolist() if isinstance(value, np.ndarray) else value for value in row] for row in rows]


def tokenized(folder: Path, examples: Iterable[Example], rendering: Rendering, **options: Any) -> tuple[Rows, Drops]:
    write_examples(folder / "train.jsonl", examples)
    path = folder / "rows" / "key.arrow"
    tokenize([folder / "train.jsonl"], path, rendering, **options)
    return Rows.open(path), Drops.of(json.loads(path.with_suffix(".json").read_bytes()))


def test_bad_records_are_dropped_counted_and_named(template, tmp_path):
    long = [yes(document="long " * 300), yes(query="long " * 300), yes(evidence="long " * 300)]
    records = [yes(), yes(query=" "), yes(document=""), *long, yes(losses=())]
    kept, drops = tokenized(tmp_path, records, Rendering(template, 200))
    assert len(kept) == 1
    assert drops.counts == {"blank query or document": 2, "prompt and target exceed 200 tokens": 3, "no losses": 1}
    assert "record 2" in drops.named[0]


def test_many_processes_make_the_rows_of_one(template, tmp_path):
    """Rows, drops and what is named, over several chunks of records, as each record makes them alone."""
    examples = [
        yes(query=f"when {n}" if n % 7 else " ", document=f"It froze in {n}. Nobody came.") for n in range(1203)
    ]
    alone = as_lists(make_row(one, template, 200) for one in examples if one.query.strip())
    assert len(alone) == 1203 - 172  # 0, 7, ... 1197 are blank
    for workers in (1, 3):
        made, drops = tokenized(tmp_path / str(workers), examples, Rendering(template, 200), workers=workers)
        assert as_lists(made) == alone
        assert drops.counts == {"blank query or document": 172}
        assert len(drops.named) == 20
        assert drops.named[1].startswith("record 8 ")


def test_rows_are_mapped_not_read(template, tmp_path):
    """Tokens stay in the file; all of a kind are one array."""
    made, _ = tokenized(tmp_path, [yes(query=f"when {n}") for n in range(700)], Rendering(template, 200))
    row = made[650]
    assert not row.input_ids.flags.owndata
    assert not row.input_ids.flags.writeable
    assert made.lengths.tolist() == [len(one.input_ids) for one in made]
    assert made.label_positions[650] == row.label_position
    assert made.queries[650] == row.query
    assert made.teacher_scores.tolist() == [0.9] * 700
    assert made.targets == sum(int((one.weights > 0).sum()) for one in made)
    with pytest.raises(IndexError, match="row 700 of 700"):
        made[700]


def test_an_error_in_a_process_leaves_nothing(template, tmp_path):
    class Broken(Template):
        def supervise(self, query, *arguments, **options):
            if query == "when 700":
                raise ValueError("broken at 700")
            return super().supervise(query, *arguments, **options)

    broken = Rendering(Broken(PRISM, template.tokenizer), 200)
    with pytest.raises(ValueError, match="broken at 700"):
        tokenized(tmp_path, [yes(query=f"when {n}") for n in range(1500)], broken, workers=2)
    assert list((tmp_path / "rows").iterdir()) == []


def test_a_malformed_record_is_named_whatever_process_reads_it(template, tmp_path):
    write_examples(tmp_path / "train.jsonl", [yes(query=f"when {n}") for n in range(1200)])
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"query": "x"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:1201: document"):
        tokenize([tmp_path / "train.jsonl"], tmp_path / "key.arrow", Rendering(template, 200), workers=2)


def test_a_file_that_is_no_rows_is_named(tmp_path):
    (tmp_path / "x.arrow").write_bytes(b"ARROW1 and no more")
    with pytest.raises(DataError, match=r"x\.arrow holds no tokenized records .*: delete it"):
        Rows.open(tmp_path / "x.arrow")


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    write_examples(tmp_path / "train.jsonl", [yes(), yes(query=" "), yes(query="x")])
    return Recipe(name="x", model=Model(base="b"), data=Data(files=(tmp_path / "train.jsonl",), max_tokens=400))


def made_at(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "rows").iterdir()}


def test_rows_are_made_once(recipe, template, tmp_path, capsys):
    """The second run maps the file of the first, and tells the same of the records that were dropped."""
    first = make_rows(recipe, tmp_path, template)
    made, told = made_at(tmp_path), capsys.readouterr().err
    second = make_rows(recipe, tmp_path, template)
    assert made_at(tmp_path) == made
    assert as_lists(second.rows) == as_lists(first.rows)
    assert second.drops.counts == first.drops.counts == {"blank query or document": 1}
    again = capsys.readouterr().err
    for line in ("dropped 1 records: blank query or document", "record 2 (query ' '", "2 records,"):
        assert line in told
        assert line in again
    packed = tmp_path / "train.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "train.jsonl").read_bytes()))
    make_rows(recipe.model_copy(update={"data": Data(files=(packed,), max_tokens=400)}), tmp_path, template)
    assert made_at(tmp_path) == made  # the same records, packed


@pytest.mark.parametrize("changed", ["data", "limit", "weights", "template", "tokenizer"])
def test_whatever_goes_into_rows_makes_them_anew(recipe, template, tmp_path, changed, tiny_tokenizer):
    make_rows(recipe, tmp_path, template)
    (old,) = (tmp_path / "rows").glob("*.arrow")
    if changed == "data":
        write_examples(tmp_path / "train.jsonl", [yes(query="other")])
    elif changed == "limit":
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_tokens": 300})})
    elif changed == "weights":
        losses = recipe.losses.model_copy(update={"sft_parts": PartWeights(evidence=2.0)})
        recipe = recipe.model_copy(update={"losses": losses})
    elif changed == "template":
        template = Template(
            PRISM.model_copy(update={"text": PRISM.text.replace("{document}", "{document} ")}), tiny_tokenizer
        )
    else:
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.add_tokens(["harbour"])
        template = Template(PRISM, tokenizer)
    make_rows(recipe, tmp_path, template)
    (new,) = (tmp_path / "rows").glob("*.arrow")  # the old one is gone
    assert new.name != old.name


def test_no_record_left_is_said_however_often(template, tmp_path):
    write_examples(tmp_path / "train.jsonl", [yes(query=" ")])
    recipe = Recipe(name="x", model=Model(base="b"), data=Data(files=(tmp_path / "train.jsonl",)))
    for _ in range(2):
        with pytest.raises(DataError, match="no training records are left"):
            make_rows(recipe, tmp_path, template)


class Deadly(Template):
    """Ends the process that renders a certain record."""

    def supervise(self, query, *arguments, **options):
        if query == "when 1199":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().supervise(query, *arguments, **options)


def test_a_worker_that_is_killed_ends_the_run(template, tmp_path):
    """Out of memory, most often: nobody waits for its answer for ever, and no file is left."""
    deadly = Rendering(Deadly(PRISM, template.tokenizer), 200)
    with pytest.raises(DataError, match="one of 2 worker processes was ended from outside"):
        tokenized(tmp_path, [yes(query=f"when {n}") for n in range(1500)], deadly, workers=2)
    assert list((tmp_path / "rows").iterdir()) == []


def test_kill_9_leaves_nothing_that_counts_and_nothing_that_stays(template, tmp_path):
    write_examples(tmp_path / "train.jsonl", [yes(query=f"when {n}") for n in range(1200)])
    path = tmp_path / "rows" / "key.arrow"
    arguments = ([tmp_path / "train.jsonl"], path, Rendering(Deadly(PRISM, template.tokenizer), 200))
    process = multiprocessing.get_context("fork").Process(target=tokenize, args=arguments, kwargs={"workers": 1})
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [left.suffix for left in path.parent.iterdir()] == [".part"]
    tokenize([tmp_path / "train.jsonl"], path, Rendering(template, 200))
    assert len(Rows.open(path)) == 1200
    assert {made.suffix for made in path.parent.iterdir()} == {".arrow", ".json"}


def test_rows_in_memory_are_the_rows(template):
    made = [make_row(yes(query="q" * n), template, 400) for n in (1, 2, 3)]
    held = Rows.of(made)
    assert as_lists(held) == as_lists(made)
    assert held.lengths.tolist() == [len(row.input_ids) for row in made]
    bare = Rows.of([make_row(yes(teacher_score=None), template, 400)])
    assert math.isnan(bare[0].teacher_score)
    assert len(Rows.of([])) == 0


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(1, 20), st.booleans())
def test_order_is_a_permutation_and_reproducible(lengths, step_size, shuffle):
    first = order(np.array(lengths), step_size, shuffle=shuffle, seed=5).tolist()
    assert sorted(first) == list(range(len(lengths)))
    assert first == order(np.array(lengths), step_size, shuffle=shuffle, seed=5).tolist()


def test_order_sorts_within_a_step_and_never_groups_steps_by_length():
    lengths = np.array([10, 90] * 16)
    arranged = order(lengths, 8, shuffle=False, seed=1).tolist()
    for start in range(0, 32, 8):
        step = arranged[start : start + 8]
        assert set(step) == set(range(start, start + 8))  # the order holds, and every step has both lengths
        assert [lengths[i] for i in step] == [10] * 4 + [90] * 4


def test_documents_of_a_query_share_its_number(template):
    first, second = make_row(yes(), template, 400), make_row(yes(document="Else."), template, 400)
    other = make_row(yes(query="x"), template, 400)
    assert first.query == second.query != other.query
    assert (
        make_row(yes(query_id="7"), template, 400).query
        == make_row(yes(query="reworded", query_id="7"), template, 400).query
    )


@given(st.lists(st.integers(0, 9), max_size=60), st.booleans())
def test_order_by_query_keeps_queries_together(queries, shuffle):
    arranged = order_by_query(np.array(queries, dtype=np.int32), shuffle=shuffle, seed=3).tolist()
    assert sorted(arranged) == list(range(len(queries)))
    found = [queries[index] for index in arranged]
    assert len(set(found)) == sum(1 for i, query in enumerate(found) if i == 0 or found[i - 1] != query)
    assert arranged == order_by_query(np.array(queries, dtype=np.int32), shuffle=shuffle, seed=3).tolist()


def test_collator_packs_without_padding(template):
    made = [make_row(yes(query=query), template, 400) for query in ("when", "x")]
    batch = collator(0, packed=True)(made)
    first, second = (len(row.input_ids) for row in made)
    assert batch["input_ids"].tolist() == [[*made[0].input_ids, *made[1].input_ids]]
    assert batch["position_ids"].tolist() == [[*range(first), *range(second)]]
    for row, start, place in zip(made, (0, first), batch["score_places"].tolist(), strict=True):
        assert place == start + row.label_position - 1
        assert batch["input_ids"][0, place + 1].item() == template.yes_id
    assert first - 1 not in batch["target_places"].tolist()  # nothing is predicted from another row
    assert batch["target_ids"].tolist() == [token for row in made for token in row.labels.tolist() if token != IGNORED]


def test_collator_pads_right(template):
    made = [
        make_row(yes(), template, 400),
        make_row(yes(query="x"), template, 400),
    ]
    batch = collator(0)(made)
    longest = max(len(row.input_ids) for row in made)
    assert batch["input_ids"].shape == (2, longest)
    ids = batch["input_ids"].flatten()
    for index, (row, place) in enumerate(zip(made, batch["score_places"].tolist(), strict=True)):
        assert place == index * longest + row.label_position - 1
        assert ids[place + 1].item() == template.yes_id
        assert set(batch["input_ids"][index, len(row.input_ids) :].tolist()) <= {0}
    assert batch["target_ids"].tolist() == ids[batch["target_places"] + 1].tolist()


@pytest.mark.parametrize("packed", [False, True])
def test_batches_say_what_is_predicted_where_by_hand(packed):
    """Rows of 4 and 3 tokens, labels at 2 and 1; the second row has no teacher, and its label counts."""
    made = [
        Row(np.array([5, 6, 7, 8], np.int32), 2, 0.5, 1, np.array([0.0, 2.0], np.float32)),
        Row(np.array([3, 4, 9], np.int32), 1, math.nan, 1, np.array([1.0, 0.5], np.float32)),
    ]
    batch = collator(0, packed=packed)(made)
    assert batch["input_ids"].tolist() == ([[5, 6, 7, 8, 3, 4, 9]] if packed else [[5, 6, 7, 8], [3, 4, 9, 0]])
    assert (batch["score_places"].tolist(), batch["teacher_scores"].tolist()) == ([1], [0.5])
    # Both rows begin at a multiple of 4. Token 8 is predicted at place 2, 4 at 4, 9 at 5.
    assert batch["target_places"].tolist() == [2, 4, 5]
    assert batch["target_ids"].tolist() == [8, 4, 9]
    assert batch["target_weights"].tolist() == [2.0, 1.0, 0.5]
    counted = {"distill": 1, "distill_ce": 1, "distill_logit": 1, "margin": 0, "listwise": 0, "sft": 3.5, "tokens": 7}
    assert batch["counts"] == counted


def test_records_round_trip_and_name_the_bad_line(tmp_path):
    path = tmp_path / "deep" / "train.jsonl"
    examples = [yes(), yes(document="Ünïcode 证据 \u2028 line")]
    assert write_examples(path, examples) == 2
    assert list(read_examples(path)) == examples
    path.write_text(path.read_text() + '{"query": "x"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:3: document"):
        list(read_examples(path))
    with pytest.raises(DataError, match="no training file"):
        list(read_examples(tmp_path / "none.jsonl"))


def test_ids_are_stable():
    # blake2b with an 8-byte digest over the parts joined by the unit separator.
    import hashlib

    assert stable_id("a", "b") == hashlib.blake2b(b"a\x1fb", digest_size=8).hexdigest()
    assert stable_id("ab") != stable_id("a", "b")
