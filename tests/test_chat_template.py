"""Templates made of a chat model's own: what `instruct` and `instruct-label` send, against prompts written by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from fakes import FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from prism.chat_template import CHAT, INSTRUCT, LABEL_ONLY, NAMES, choose_spec, instruct_spec
from prism.checkpoint import Checkpoint
from prism.cli import data_pairs, models
from prism.engines.base import LabelLogits, ScoreOutput
from prism.errors import CheckpointError, InputError, TemplateError
from prism.export import export
from prism.reranker import Reranker
from prism.template import PRISM, Template
from prism.types import Document, Outcome

CHATML = (
    "{% for m in messages if m.role in ('system', 'user', 'assistant') %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML


BOTH = pytest.mark.parametrize("wording", CHAT.values(), ids=CHAT)


@pytest.fixture
def chat(tiny_tokenizer: Any) -> Any:
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture
def chat_model(tiny_qwen3: Any, chat: Any, tmp_path: Path) -> Path:
    """A random model with a chat template, and no `prism.json`."""
    tiny_qwen3.save_pretrained(tmp_path / "chat")
    chat.save_pretrained(tmp_path / "chat")
    return tmp_path / "chat"


def test_the_pair_is_the_last_turn_and_the_label_comes_next(chat):
    spec = instruct_spec(chat)
    assert spec.text.startswith("<|im_start|>system\n{instruction}\n")
    assert spec.text.endswith(
        "<|im_end|>\n<|im_start|>user\nQuery: {query}\nDocument: {document}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert spec.text.count("<|im_start|>assistant\nyes\n<contribution>") == 1
    assert spec.text.count("<|im_start|>assistant\nno<|im_end|>") == 1
    assert spec.end_of_turn == "<|im_end|>"


def test_the_label_alone_is_asked_for_in_so_many_words(chat):
    spec = instruct_spec(chat, LABEL_ONLY)
    assert spec.text == (
        "<|im_start|>system\n{instruction}\nAnswer with the single word yes or no.<|im_end|>\n"
        "<|im_start|>user\nQuery: {query}\nDocument: {document}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (spec.name, spec.end_of_turn, spec.writes) == ("instruct-label", "<|im_end|>", False)
    assert spec.default_instruction == instruct_spec(chat).default_instruction


@BOTH
def test_ids_are_those_of_the_whole_conversation(chat, wording):
    template = Template(instruct_spec(chat, wording), chat)
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
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    turns = {"instruct": 6, "instruct-label": 2}  # system and question; two examples, question and answer
    for name, wording in CHAT.items():
        template = Template(instruct_spec(tokenizer, wording), tokenizer)
        plain = template.render("q", Document(text="d"), instruction="i").ids
        hostile = template.render(text or "q", Document(text=text or "d"), instruction=text or "i").ids
        assert hostile.count(end) == plain.count(end) == turns[name]


@BOTH
@pytest.mark.parametrize("chat_template", [None, NO_SYSTEM, "{{ messages[-1].content }}"])
def test_a_model_that_takes_no_such_turns_is_refused(tiny_tokenizer, chat_template, wording):
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = chat_template
    with pytest.raises(TemplateError, match=f"template '{wording.name}' needs a model with a chat template"):
        instruct_spec(tokenizer, wording)


@BOTH
def test_a_chat_template_that_ends_turns_with_text_is_refused(chat, wording):
    chat.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    with pytest.raises(TemplateError, match=f"'{wording.name}': this model's chat template ends turns with no token"):
        instruct_spec(chat, wording)


def test_a_name_wins_over_what_is_stored(chat):
    assert choose_spec(INSTRUCT, chat, PRISM, "x").name == INSTRUCT
    assert choose_spec("instruct-label", chat, PRISM, "x").name == "instruct-label"
    assert choose_spec("prism", chat, None, "x") is PRISM
    assert choose_spec(None, chat, PRISM, "x") is PRISM
    with pytest.raises(TemplateError, match=r"x has no prism\.json"):  # an ordinary chat template makes no reranker
        choose_spec(None, chat, None, "x")
    with pytest.raises(TemplateError, match="expected prism, qwen3-reranker, instruct, instruct-label or a JSON file"):
        choose_spec("instruct-lable", chat, None, "x")


def test_the_command_line_names_every_template():
    for option in (models.Template, data_pairs.Template):
        assert f": {', '.join(NAMES)}, or a file." in get_args(option)[1].help


def test_what_evidence_an_untaught_model_gives_by_default(chat_model: Path):
    assert Checkpoint.load(chat_model, template=INSTRUCT).config.evidence == "written"
    assert Checkpoint.load(chat_model, template="prism").config.evidence == "quoted"
    assert Checkpoint.load(chat_model, template="instruct-label").config.evidence == "quoted"


def test_a_model_that_writes_quotes_when_asked_for_the_label_alone(chat_model: Path):
    stored = {"name": "taught", "template": PRISM.model_dump(), "evidence": "written"}
    (chat_model / "prism.json").write_text(json.dumps(stored))
    assert Checkpoint.load(chat_model).config.evidence == "written"
    assert Checkpoint.load(chat_model, template="instruct-label").config.evidence == "quoted"


def test_the_template_that_asks_for_texts_gets_them_from_a_checkpoint_of_the_label_alone(chat_model: Path):
    """As `prism export --template instruct-label` leaves it. What its prism.json says of its own template stands."""
    label = Checkpoint.load(chat_model, template="instruct-label")
    (chat_model / "prism.json").write_text(label.config.model_dump_json())
    assert Checkpoint.load(chat_model).config.evidence == "quoted"
    assert Checkpoint.load(chat_model, template=INSTRUCT).config.evidence == "written"
    assert Checkpoint.load(chat_model, template="prism").config.evidence == "quoted"
    chosen = Checkpoint.load(chat_model, template=INSTRUCT).config.model_copy(update={"evidence": "quoted"})
    (chat_model / "prism.json").write_text(chosen.model_dump_json())
    assert Checkpoint.load(chat_model).config.evidence == "quoted"


# --- the label alone -------------------------------------------------------------------------------------------------


def test_the_label_alone_ranks_gives_verdicts_and_quotes(chat):
    template = Template(instruct_spec(chat, LABEL_ONLY), chat)
    documents = ["p=0.2 Nothing. To see.", "p=0.4 It froze. It thawed."]
    with Reranker(template, FakeEngine(template), name="chat", evidence="quoted") as reranker:
        strict = reranker.rerank("when?", documents)
        assert [(j.index, j.verdict, j.evidence) for j in strict] == [(1, "no", None), (0, "no", None)]
        cut = reranker.rerank("when?", documents, threshold=0.3)
    assert [(j.index, j.verdict) for j in cut] == [(1, "yes"), (0, "no")]
    assert (cut[0].evidence, cut[0].evidence_source, cut[0].outcome) == ("p=0.4 It froze.", "quoted", Outcome.COMPLETE)
    assert cut.usage.written_tokens == 0


def test_nothing_is_written_after_a_label_that_stands_alone(chat):
    template = Template(instruct_spec(chat, LABEL_ONLY), chat)
    engine = FakeEngine(template)
    with Reranker(template, engine, name="chat") as reranker:
        for ask in (reranker.rerank, reranker.preflight):
            with pytest.raises(InputError, match="asks for yes or no and nothing else: ask for 'quoted'") as caught:
                ask("when?", ["p=0.9 a."], evidence="written")
            assert "\n" not in str(caught.value)
        assert engine.calls == []  # found before anything is computed
        assert reranker.rerank("when?", ["p=0.9 a."], evidence=False)[0].verdict == "yes"


def test_a_server_that_is_to_write_does_not_start(chat):
    from prism.serving.app import create_app
    from prism.serving.limits import Limits

    template = Template(instruct_spec(chat, LABEL_ONLY), chat)
    with Reranker(template, FakeEngine(template), name="chat", evidence="quoted") as reranker:
        with pytest.raises(InputError, match="evidence='written' is not to be had with template 'instruct-label'"):
            create_app(reranker, Limits(evidence="written"))
        create_app(reranker, Limits(evidence="auto"))


def test_training_teaches_to_write_after_it(chat_model: Path, tmp_path: Path):
    from prism.training.recipe import Recipe
    from prism.training.setup import open_template

    model = {"base": str(chat_model), "template": "instruct-label"}
    data = {"files": [str(tmp_path / "train.jsonl")]}
    settings = {"name": "taught", "output": str(tmp_path / "run"), "model": model, "data": data}
    opened = open_template(Recipe.model_validate(settings))
    assert (opened.base.template.spec.writes, opened.template.spec.writes) == (False, True)
    opened.template.require_texts()


# --- the self-test ---------------------------------------------------------------------------------------------------


class Reader:
    """Reads the pair in the n-th turn of the user, and says yes if they share half of the query's words."""

    def __init__(self, template: Template, turn: int) -> None:
        self.template, self.turn = template, turn

    async def score(self, prompts: Sequence[Sequence[int]]) -> ScoreOutput:
        return ScoreOutput([self._label(self.template.decode(list(ids))) for ids in prompts], 0)

    def _label(self, text: str) -> LabelLogits:
        turn = text.split("user\nQuery: ")[self.turn].partition("\nassistant\n")[0]
        query, document = (set(part.lower().split()) for part in turn.split("\nDocument: "))
        return LabelLogits(-3.0 if 2 * len(query & document) > len(query) else -9.0, 0.0)


@BOTH
def test_the_self_test_reads_the_pair_not_an_example(chat_model: Path, wording):
    """Also where both scores are far below 0.5, 0.047 and 0.0001, as an untaught model's are."""
    checkpoint = Checkpoint.load(chat_model, template=wording.name)
    asyncio.run(checkpoint.self_test(Reader(checkpoint.template, -1)))
    if wording.examples:
        with pytest.raises(CheckpointError, match=f"self-test with template '{wording.name}': constant scores"):
            asyncio.run(checkpoint.self_test(Reader(checkpoint.template, 1)))


# --- on a model ------------------------------------------------------------------------------------------------------


def test_a_score_is_that_of_the_first_token_behind_the_prompt(chat_model: Path, tiny_qwen3: Any):
    documents = ["It froze in 1963.", "Copper. " * 80]
    with Reranker.load(
        str(chat_model), template="instruct-label", dtype="float32", device="cpu", self_test=False
    ) as reranker:
        template = reranker.template
        result = reranker.rerank("when did it freeze?", documents, max_prompt_tokens=180)
    assert {judgment.index: judgment.truncation is None for judgment in result} == {0: True, 1: False}
    for judgment in result:
        ids = template.render("when did it freeze?", Document(text=documents[judgment.index]), max_tokens=180).ids
        with torch.no_grad():
            logits = tiny_qwen3(torch.tensor([ids])).logits[0, -1]
        expected = torch.sigmoid(logits[template.yes_id] - logits[template.no_id]).item()
        assert judgment.score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("layout", ["merged", "gguf"])
def test_it_travels_with_an_export(chat_model: Path, tmp_path: Path, layout: Any):
    target = tmp_path / ("out.gguf" if layout == "gguf" else "out")
    export(str(chat_model), target, layout, template="instruct-label")
    asked = Checkpoint.load(chat_model, template="instruct-label").config
    found = (Checkpoint.load_packed if layout == "gguf" else Checkpoint.load)(target).config
    assert (found.template, found.evidence) == (asked.template, "quoted")
