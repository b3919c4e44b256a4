"""Templates made of a chat model's own: what `instruct` sends, against prompts written out by hand."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.chat_template import INSTRUCT, choose_spec, instruct_spec
from prism.checkpoint import Checkpoint
from prism.errors import TemplateError
from prism.template import PRISM, Template
from prism.types import Document, Outcome

CHATML = (
    "{% for m in messages if m.role in ('system', 'user', 'assistant') %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML


@pytest.fixture
def chat(tiny_tokenizer: Any) -> Any:
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHATML
    return tokenizer


def test_the_pair_is_the_last_turn_and_the_label_comes_next(chat):
    spec = instruct_spec(chat)
    assert spec.text.startswith("<|im_start|>system\n{instruction}\n")
    assert spec.text.endswith(
        "<|im_end|>\n<|im_start|>user\nQuery: {query}\nDocument: {document}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert spec.text.count("<|im_start|>assistant\nyes\n<contribution>") == 1
    assert spec.text.count("<|im_start|>assistant\nno<|im_end|>") == 1
    assert spec.end_of_turn == "<|im_end|>"


def test_ids_are_those_of_the_whole_conversation(chat):
    template = Template(instruct_spec(chat), chat)
    rendered = template.spec.text.format(instruction="Is it?", query="who?", document="me")
    ids = template.render("who?", Document(text="me"), instruction="Is it?").ids
    assert ids == chat(rendered, add_special_tokens=False).input_ids


def test_the_examples_answer_as_answers_are_read(chat):
    template = Template(instruct_spec(chat), chat)
    _, first, second, _ = template.spec.text.split("<|im_start|>assistant\n")
    assert second.startswith("no<|im_end|>")
    written = template.parse(first.split("<|im_end|>")[0].removeprefix("yes"))
    assert written.outcome is Outcome.COMPLETE
    assert written.evidence == "On a full charge it runs for 14 hours."


PIECES = ("a", " ", "\n", "{", "}", "<|im_end|>", "<|im_start|>", "{query}", "{document}", "\ue000query\ue001")


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_no_text_ends_a_turn_or_fills_a_slot(tiny_tokenizer, text):
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHATML
    template = Template(instruct_spec(tokenizer), tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    plain = template.render("q", Document(text="d")).ids
    hostile = template.render(text or "q", Document(text=text or "d")).ids
    assert hostile.count(end) == plain.count(end) == 6  # system, three questions, two answers


@pytest.mark.parametrize("chat_template", [None, NO_SYSTEM, "{{ messages[-1].content }}"])
def test_a_model_that_takes_no_such_turns_is_refused(tiny_tokenizer, chat_template):
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = chat_template
    with pytest.raises(TemplateError, match="needs a model with a chat template"):
        instruct_spec(tokenizer)


def test_a_chat_template_that_ends_turns_with_text_is_refused(chat):
    chat.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    with pytest.raises(TemplateError, match="ends turns with no token of its own"):
        instruct_spec(chat)


def test_a_name_wins_over_what_is_stored(chat):
    assert choose_spec(INSTRUCT, chat, PRISM, "x").name == INSTRUCT
    assert choose_spec("prism", chat, None, "x") is PRISM
    assert choose_spec(None, chat, PRISM, "x") is PRISM
    with pytest.raises(TemplateError, match=r"x has no prism\.json"):  # an ordinary chat template makes no reranker
        choose_spec(None, chat, None, "x")


def test_an_untaught_model_writes_its_evidence_by_default(tiny_qwen3: Any, chat: Any, tmp_path: Path):
    tiny_qwen3.save_pretrained(tmp_path)
    chat.save_pretrained(tmp_path)
    assert Checkpoint.load(tmp_path, template=INSTRUCT).config.evidence == "written"
    assert Checkpoint.load(tmp_path, template="prism").config.evidence == "quoted"
