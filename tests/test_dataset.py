"""Records to rows: masks, drops, order, padding."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.data.records import read_examples, write_examples
from prism.errors import DataError
from prism.template import PRISM, Template
from prism.text import stable_id
from prism.training.batches import collator, order, order_by_query
from prism.training.dataset import IGNORED, Drops, make_row, rows
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
    row = make_row(yes(), template, 400, lm=False)
    assert row.input_ids[row.label_position] == template.yes_id
    assert row.labels[: row.label_position + 1] == [IGNORED] * (row.label_position + 1)
    assert row.labels[row.label_position + 1 :] == row.input_ids[row.label_position + 1 :]
    assert row.teacher_score == 0.9
    assert set(row.lm_labels) == {IGNORED}


def test_label_is_learnt_where_there_is_no_teacher(template):
    for example in (yes(teacher_score=None), yes(losses=("sft",))):
        row = make_row(example, template, 400, lm=False)
        assert row.labels[row.label_position] == template.yes_id
        assert math.isnan(row.teacher_score)


def test_distill_only_writes_nothing(template):
    row = make_row(yes(losses=("distill",)), template, 400, lm=False)
    assert set(row.labels) == {IGNORED}
    assert set(row.weights) == {0.0}
    assert row.teacher_score == 0.9


def test_parts_count_what_the_recipe_says(template):
    parts = PartWeights(contribution=0.5, evidence=3.0, tags=0.0, label_with_teacher=True)
    row = make_row(yes(), template, 400, False, parts)
    written = list(zip(row.input_ids, row.labels, [0.0] * row.label_position + row.weights, strict=True))
    said = {part: template.decode([id_ for id_, _, w in written if w == part]).strip() for part in (0.5, 1.0, 3.0)}
    # The full stops are one token with the tags behind them, and count as these.
    assert said == {0.5: "It names the year", 1.0: "yes", 3.0: "The harbour froze in 1963"}
    assert all((label == IGNORED) == (weight == 0.0) for _, label, weight in written)  # tags train nothing


def test_every_target_counts_one_by_default(template):
    row = make_row(yes(), template, 400, lm=False)
    targets = row.labels[row.label_position :]
    assert row.weights == [float(label != IGNORED) for label in targets]


def test_language_model_targets_are_the_texts_only(template):
    row = make_row(yes(), template, 400, lm=True)
    kept = [id_ for id_ in row.lm_labels if id_ != IGNORED]
    text = template.tokenizer.decode(kept)
    assert "harbour froze in 1963" in text
    assert "Query" not in text


def test_bad_records_are_dropped_counted_and_named(template):
    drops = Drops()
    examples = [yes(), yes(query=" "), yes(document=""), yes(document="long " * 300), yes(losses=())]
    kept = list(rows(examples, template, max_tokens=200, lm_share=0.0, seed=0, drops=drops))
    assert len(kept) == 1
    assert sum(drops.counts.values()) == 4
    assert drops.counts["blank query or document"] == 2
    assert any("exceed 200 tokens" in reason for reason in drops.counts)
    assert "record 2" in drops.named[0]


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
        assert set(step) == set(range(start, start + 8))  # the curriculum holds, and every step has both lengths
        assert [lengths[i] for i in step] == [10] * 4 + [90] * 4


def test_documents_of_a_query_share_its_number(template):
    first, second = make_row(yes(), template, 400, lm=False), make_row(yes(document="Else."), template, 400, lm=False)
    other = make_row(yes(query="x"), template, 400, lm=False)
    assert first.query == second.query != other.query
    assert (
        make_row(yes(query_id="7"), template, 400, lm=False).query
        == make_row(yes(query="reworded", query_id="7"), template, 400, lm=False).query
    )


@given(st.lists(st.integers(0, 9), max_size=60), st.booleans())
def test_order_by_query_keeps_queries_together(queries, shuffle):
    arranged = order_by_query(queries, shuffle=shuffle, seed=3)
    assert sorted(arranged) == list(range(len(queries)))
    found = [queries[index] for index in arranged]
    assert len(set(found)) == sum(1 for i, query in enumerate(found) if i == 0 or found[i - 1] != query)
    assert arranged == order_by_query(queries, shuffle=shuffle, seed=3)


def test_collator_packs_without_padding(template):
    made = [make_row(yes(query=query), template, 400, lm=True)._asdict() for query in ("when", "x")]
    batch = collator(0, packed=True)(made)
    first, second = (len(row["input_ids"]) for row in made)
    assert batch["input_ids"].tolist() == [made[0]["input_ids"] + made[1]["input_ids"]]
    assert batch["position_ids"].tolist() == [[*range(first), *range(second)]]
    for row, start, place in zip(made, (0, first), batch["score_positions"].tolist(), strict=True):
        assert place == start + row["label_position"] - 1
        assert batch["input_ids"][0, place + 1].item() == template.yes_id
    assert batch["labels"][0, first].item() == batch["lm_labels"][0, first].item() == IGNORED
    assert batch["score_rows"].tolist() == [0, 0]


def test_collator_pads_right(template):
    made = [
        make_row(yes(), template, 400, lm=True)._asdict(),
        make_row(yes(query="x"), template, 400, lm=True)._asdict(),
    ]
    batch = collator(0)(made)
    longest = max(len(row["input_ids"]) for row in made)
    assert batch["input_ids"].shape == (2, longest)
    assert batch["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in made]
    for index, row in enumerate(made):
        position = batch["score_positions"][index].item()
        assert batch["input_ids"][index, position + 1].item() == template.yes_id
        assert (batch["labels"][index, len(row["labels"]) :] == IGNORED).all()


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
