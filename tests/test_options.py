"""What a call may ask for, and the fields of a query: read once, contradictions refused, budgets kept."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from prism.errors import InputError
from prism.options import Call, Options, read_options
from prism.query import CONVERSATION_TOKENS, read_query
from prism.reranker import Reranker
from prism.template import PRISM, Template
from prism.types import Document

QUERY = "when does the harbour freeze?"
GOOD = "p=0.9 The harbour froze in 1963. It rarely does."


@pytest.fixture(scope="module")
def template(tiny_tokenizer: Any) -> Template:
    return Template(PRISM, tiny_tokenizer)


@pytest.fixture
def reranker(template: Template) -> Any:
    with Reranker(template, FakeEngine(template), name="fake") as made:
        yield made


# --- options -------------------------------------------------------------------------------------------------------


def test_every_option_is_read() -> None:
    assert set(Options.__annotations__) == set(Call._fields)
    call = read_options(0.3, "quoted", dict.fromkeys(Call._fields))
    assert (call.threshold, call.evidence, call.check, call.priority) == (0.3, "quoted", True, 0)
    assert (call.truncation_side, call.on_long_document, call.against) == ("right", "truncate", ())
    assert call.evidence_threshold == 0.0
    with pytest.raises(TypeError, match="no option 'top_k'"):
        read_options(0.5, "written", {"top_k": 3})


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"evidence": False, "evidence_tokens": 50}, "evidence=False asks for none, and evidence_tokens=50 bounds it"),
        ({"evidence": False, "evidence_threshold": 0.5}, "evidence=False asks for none, and evidence_threshold=0.5"),
        ({"truncation_side": "left", "on_long_document": "window"}, "truncation_side='left' says where to cut"),
        ({"truncation_side": "up"}, "truncation_side must be 'left' or 'right', got 'up'"),
        ({"on_long_document": "x"}, "on_long_document must be 'truncate', 'window' or 'refuse', got 'x'"),
        ({"against": ["held", " \n"]}, "against[1] is blank, expected evidence that is held"),
        ({"priority": "high"}, "priority must be a whole number, got str"),
        ({"max_query_tokens": 0}, "max_query_tokens must be at least 1, got 0"),
    ],
)
def test_what_contradicts_or_is_wrong_is_said_in_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        read_options(0.5, "written", options)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_nothing_bounded_is_no_contradiction() -> None:
    call = read_options(0.5, "written", {"evidence": False, "evidence_tokens": 0, "priority": -3})
    assert (call.evidence, call.evidence_tokens, call.priority) == (None, 0, -3)


def test_a_budget_under_one_sentence_says_so(reranker: Reranker) -> None:
    (warning,) = reranker.rerank(QUERY, [GOOD], evidence_tokens=5).warnings
    assert warning.startswith("evidence_tokens=5 is under one sentence, at least 32 are needed: 1 of 1 documents")


# --- fields of a query ---------------------------------------------------------------------------------------------


def test_fields_are_one_line_each(template: Template) -> None:
    turns = [{"role": "user", "content": 'is there a\n"warranty"?'}, {"role": "assistant", "content": "yes"}]
    asked = read_query({"question": "how\nlong?", "reason": "to quote it", "conversation": turns}, None, template)
    assert asked.text.split("\n") == [
        "how long?",
        "Reason: to quote it",
        'Conversation: user: "is there a \\"warranty\\"?" assistant: "yes"',
    ]
    assert (asked.question, asked.cuts) == ("how long?", ())


def test_a_question_alone_is_read_as_it_is(template: Template) -> None:
    text = "one\ntwo  three"
    assert read_query({"question": text, "reason": None, "conversation": " "}, None, template).text == text
    assert read_query(text, None, template).text == text


SPACE = st.sampled_from(
    ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", " ", "Reason: ", "x", '"', "\\"]
)
HOSTILE = st.lists(SPACE | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).map("".join)


@given(HOSTILE, HOSTILE, HOSTILE)
def test_no_field_can_pose_as_another(template: Template, question: str, reason: str, said: str) -> None:
    turns = [{"role": "user", "content": said}]
    asked = read_query({"question": "q " + question, "reason": "r " + reason, "conversation": turns}, None, template)
    first, second, third = asked.text.splitlines()
    assert first.startswith("q")
    assert second.startswith("Reason: r")
    assert third.startswith('Conversation: user: "')
    assert third.endswith('"')


@given(st.text(max_size=300), st.text(max_size=300), st.integers(3, 60))
def test_a_query_keeps_its_budget(template: Template, question: str, reason: str, most: int) -> None:
    fields = {"question": "q " + question, "reason": reason, "conversation": reason}
    asked = read_query(fields, most, template)
    assert 0 < template.count_plain(asked.text) <= most
    whole = read_query(fields, None, template)
    assert bool(asked.cuts) == (asked.text != whole.text)
    if template.count_plain(whole.text) <= most:
        assert asked == whole


def test_each_field_has_its_budget_and_a_conversation_keeps_its_end(template: Template) -> None:
    talk = " ".join(f"word{n}" for n in range(2000))
    asked = read_query(
        {"question": QUERY, "reason": {"text": talk, "max_tokens": 10}, "conversation": talk}, None, template
    )
    question, why, conversation = asked.text.split("\n")
    assert question == QUERY
    assert why.startswith("Reason: word0")
    assert template.count_plain(why.removeprefix("Reason: ")) <= 10
    assert conversation.endswith("word1999")
    kept = conversation.removeprefix("Conversation: ")
    assert CONVERSATION_TOKENS - 10 <= template.count_plain(kept) <= CONVERSATION_TOKENS
    assert [(cut.field, cut.total_chars) for cut in asked.cuts] == [("reason", len(talk)), ("conversation", len(talk))]
    assert asked.cuts[1].read_chars == len(kept)
    assert asked.warnings()[1] == (
        f"the conversation is over its budget: its last {len(kept):,} of {len(talk):,} characters were read"
    )


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ({"reason": "because"}, "query has no question"),
        ({"question": " "}, "query has no question"),
        ({"question": "q", "why": "x"}, "query has no field 'why': expected question, reason, conversation"),
        ({"question": ["q"]}, "query.question must be a string, got an array"),
        ({"question": {"text": "q", "tokens": 3}}, "query.question has no 'tokens': expected text and max_tokens"),
        ({"question": {"text": "q", "max_tokens": 0}}, "query.question.max_tokens must be at least 1, got 0"),
        ({"question": "q", "conversation": ["hi"]}, "query.conversation[0] must be {role, content}, the role one of"),
        ({"question": "q", "conversation": [{"role": "root", "content": "x"}]}, "query.conversation[0] must be"),
        (7, "query must be a string, got int"),
    ],
)
def test_what_is_no_query_is_said_in_one_line(template: Template, query: Any, line: str) -> None:
    with pytest.raises(InputError) as caught:
        read_query(query, None, template)
    assert str(caught.value).startswith(line)


def test_the_result_says_what_was_read(reranker: Reranker) -> None:
    result = reranker.rerank({"question": QUERY, "reason": "x y z " * 200}, [GOOD], instruction="Is it on topic?")
    assert result.instruction == "Is it on topic?"
    assert result.query.startswith(f"{QUERY}\nReason: x y z")
    assert [cut.field for cut in result.query_cuts] == ["reason"]
    assert any(warning.startswith("the reason is over its budget") for warning in result.warnings)
    cut = reranker.rerank(QUERY * 50, [GOOD], max_query_tokens=9)
    assert (QUERY * 50).startswith(cut.query)
    assert cut.query_cuts[0].field == "question"


# --- where documents are cut -----------------------------------------------------------------------------------------


@given(st.text(max_size=200), st.integers(45, 90), st.sampled_from([None, "A title"]))
def test_cut_on_the_left_the_end_is_read(template: Template, text: str, most: int, title: str | None) -> None:
    prompt = template.render("when", Document(text=text, title=title), max_tokens=most, side="left")
    assert len(prompt.ids) <= most
    cut = prompt.truncation
    read = text if cut is None else text[cut.start :]
    if cut:
        assert cut.start + cut.read_chars == len(text) == cut.total_chars
        assert cut.start > 0
    rest = template.render("when", Document(text=read, title=title if read or title is None or not cut else None))
    if cut is None or cut.read_chars:
        assert prompt.ids == rest.ids


def test_evidence_from_the_end_points_into_the_document_as_sent(reranker: Reranker) -> None:
    text = "Nothing of it matters here. " * 40 + "p=0.9 The harbour froze in 1963. It rarely does."
    (judgment,) = reranker.rerank(QUERY, [text], max_document_tokens=40, truncation_side="left")
    assert judgment.truncation is not None
    assert judgment.truncation.start > 900
    assert judgment.evidence is not None
    assert judgment.spans, "the fake quotes the first sentence it reads, which stands 40 times in the document"
    assert all(span.start >= judgment.truncation.start for span in judgment.spans), (
        "none of them where nothing was read"
    )
    assert all(text[span.start : span.end].strip() in judgment.evidence for span in judgment.spans)
    result = reranker.rerank(QUERY, ["short p=0.3", text], max_document_tokens=40, truncation_side="left")
    assert result.warnings == ("documents longer than the model reads, whose beginning was not read: 1",)
    (quoted,) = reranker.rerank(QUERY, [text], max_document_tokens=40, truncation_side="left", evidence="quoted")
    assert quoted.evidence is not None
    assert "1963" in quoted.evidence


# --- documents that are objects --------------------------------------------------------------------------------------


def test_an_object_without_text_is_read_as_yaml(reranker: Reranker) -> None:
    nested = {"id": 7, "title": "Log", "when": {"year": 1963, "where": ["Lindau", "Bregenz"]}, "note": "p=0.9 froze"}
    result = reranker.rerank(QUERY, [nested, {"title": "only"}, {}, {"text": None, "note": "p=0.9"}, {"x": object()}])
    first, *others = result
    assert (first.index, first.id, first.title, first.verdict) == (0, "7", "Log", "yes")
    text = "when:\n  year: 1963\n  where:\n  - Lindau\n  - Bregenz\nnote: p=0.9 froze\n"
    assert reranker.rerank(QUERY, [text])[0].score == first.score
    assert [judgment.index for judgment in others if judgment.error] == [1, 2, 3, 4]
    assert result.warnings == ("ignored document fields: note",), "of the one whose text is null"


@pytest.mark.parametrize("long", ["window", "refuse"])
def test_where_to_cut_and_not_to_cut_contradict_each_other(long):
    with pytest.raises(InputError, match=f"truncation_side='left' .*on_long_document='{long}' cuts nothing"):
        read_options(0.5, "written", {"truncation_side": "left", "on_long_document": long})


def test_a_blank_score_version_says_what_to_send():
    with pytest.raises(InputError, match="score_version is blank: send what an answer said, or leave it out"):
        read_options(0.5, "written", {"score_version": " "})
