"""Records to rows: masks, drops, order, padding."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.errors import DataError
from prism.files.examples import read_examples, write_examples
from prism.template import PRISM, Template
from prism.text import stable_id
from prism.training.batches import collator, order, order_by_query
from prism.training.dataset import IGNORED, Drops, as_dataset, make_row, rows
from prism.training.recipe import PartWeights
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


def test_bad_records_are_dropped_counted_and_named(template):
    drops = Drops()
    long = [yes(document="long " * 300), yes(query="long " * 300), yes(evidence="long " * 300)]
    kept = list(
        rows([yes(), yes(query=" "), yes(document=""), *long, yes(losses=())], template, max_tokens=200, drops=drops)
    )
    assert len(kept) == 1
    assert drops.counts == {"blank query or document": 2, "prompt and target exceed 200 tokens": 3, "no losses": 1}
    assert "record 2" in drops.named[0]


def test_many_processes_make_the_rows_of_one(template):
    """Rows, drops and what is named, over several chunks of records."""
    examples = [
        yes(query=f"when {n}" if n % 7 else " ", document=f"It froze in {n}. Nobody came.") for n in range(1203)
    ]
    found = []
    for workers in (1, 3):
        drops = Drops()
        made = list(rows(examples, template, max_tokens=200, drops=drops, workers=workers))
        kept = [(r.input_ids.tolist(), r.label_position, r.teacher_score, r.query, r.weights.tolist()) for r in made]
        found.append((kept, drops.counts, drops.named))
    assert found[0] == found[1]
    assert len(found[0][0]) == 1203 - 172  # 0, 7, ... 1197 are blank
    assert found[1][2][1].startswith("record 8 ")


def test_an_error_in_a_process_is_raised_where_it_stands(template):
    class Broken(Template):
        def supervise(self, query, *arguments, **options):
            if query == "when 700":
                raise ValueError("broken at 700")
            return super().supervise(query, *arguments, **options)

    broken = Broken(PRISM, template.tokenizer)
    made = rows((yes(query=f"when {n}") for n in range(1500)), broken, max_tokens=200, drops=Drops(), workers=2)
    with pytest.raises(ValueError, match="broken at 700"):
        list(made)


def test_a_dataset_holds_the_rows_in_training_order(template):
    made = [make_row(yes(query="q" * n), template, 400) for n in (1, 2, 3)]
    made[1] = made[1]._replace(teacher_score=float("nan"))
    dataset = as_dataset(made, [(2, 0), (1, 4)])
    assert dataset["batch"][:].tolist() == [0, 4]
    for stored, row in zip(dataset, (made[2], made[1]), strict=True):
        assert stored["input_ids"].tolist() == row.input_ids.tolist()
        assert stored["weights"].tolist() == row.weights.tolist()
        assert (stored["label_position"], stored["query"]) == (row.label_position, row.query)
    assert math.isnan(dataset[1]["teacher_score"])


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_order_is_a_permutation_and_reproducible(lengths, batch_size, accumulation, shuffle):
    first = order(lengths, batch_size, accumulation, shuffle=shuffle, seed=5)
    assert sorted(first) == list(range(len(lengths)))
    assert first == order(lengths, batch_size, accumulation, shuffle=shuffle, seed=5)


def test_order_sorts_within_a_step_and_never_groups_steps_by_length():
    lengths = [10, 90] * 16
    arranged = order(lengths, 4, 2, shuffle=False, seed=1)
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
    arranged = order_by_query(queries, shuffle=shuffle, seed=3)
    assert sorted(arranged) == list(range(len(queries)))
    found = [queries[index] for index in arranged]
    assert len(set(found)) == sum(1 for i, query in enumerate(found) if i == 0 or found[i - 1] != query)
    assert arranged == order_by_query(queries, shuffle=shuffle, seed=3)


def test_collator_packs_without_padding(template):
    made = [make_row(yes(query=query), template, 400)._asdict() for query in ("when", "x")]
    batch = collator(0, packed=True)(made)
    first, second = (len(row["input_ids"]) for row in made)
    assert batch["input_ids"].tolist() == [[*made[0]["input_ids"], *made[1]["input_ids"]]]
    assert batch["position_ids"].tolist() == [[*range(first), *range(second)]]
    for row, start, place in zip(made, (0, first), batch["score_positions"].tolist(), strict=True):
        assert place == start + row["label_position"] - 1
        assert batch["input_ids"][0, place + 1].item() == template.yes_id
    assert batch["labels"][0, first].item() == IGNORED
    assert batch["score_rows"].tolist() == [0, 0]


def test_collator_pads_right(template):
    made = [
        make_row(yes(), template, 400)._asdict(),
        make_row(yes(query="x"), template, 400)._asdict(),
    ]
    batch = collator(0)(made)
    longest = max(len(row["input_ids"]) for row in made)
    assert batch["input_ids"].shape == (2, longest)
    assert batch["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in made]
    for index, row in enumerate(made):
        position = batch["score_positions"][index].item()
        assert batch["input_ids"][index, position + 1].item() == template.yes_id
        assert (batch["labels"][index, len(row["input_ids"]) :] == IGNORED).all()


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
