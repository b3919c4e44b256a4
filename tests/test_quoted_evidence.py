"""Evidence quoted from the document, sentence by sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import combinations
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import torch
from fakes import TEXT_TOKENS, FakeEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prism.backends import open_engine
from prism.checkpoint import Checkpoint
from prism.engines.base import LabelLogits
from prism.errors import CheckpointError, DocumentError, InputError
from prism.evidence.sentences import sentences
from prism.quoting import MOST_QUOTES, Quote, choose_quotes, passage
from prism.reranker import Reranker
from prism.result import Judged, Ranked, RerankResult, notes
from prism.template import PRISM, QWEN3_RERANKER, Template
from prism.text import clean
from prism.types import Document, Outcome, Usage

QUERY = "what?"
TWO = "One p=0.9 leads. Nothing here. Two p=0.6 follows.  Three p=0.3 does not."


@pytest.fixture(scope="module")
def template(tiny_tokenizer: Any) -> Template:
    return Template(PRISM.model_copy(update={"max_written_tokens": 200}), tiny_tokenizer)


@pytest.fixture
def engine(template: Template) -> FakeEngine:
    return FakeEngine(template)


@pytest.fixture
def reranker(template: Template, engine: FakeEngine) -> Iterator[Reranker]:
    with Reranker(template, engine, name="fake", evidence="quoted") as loaded:
        yield loaded


def prompt_tokens(reranker: Reranker, *texts: str) -> int:
    return sum(len(reranker.template.render(QUERY, Document(text=text)).ids) for text in texts)


# --- choosing --------------------------------------------------------------------------------------------------------


def test_the_best_sentence_and_what_gets_a_yes() -> None:
    a, b, c, d, e = (Quote(start, f"Sentence {start}.", tokens=10) for start in range(5))
    assert choose_quotes([a, b, c], [0.1, 0.3, 0.2], 100) == [b]
    assert choose_quotes([a, b, c, d, e], [0.5, 0.9, 0.7, 0.49, 0.6], 100) == [b, c, e]
    assert choose_quotes([a, b, c], [0.8, 0.8, None], 100) == [a, b]
    assert choose_quotes([a, b, c], [0.8, 0.9, 0.7], 20) == [b, a]
    assert choose_quotes([a], [None], 100) == choose_quotes([a], [0.9], 9) == choose_quotes([], [], 100) == []


@pytest.mark.parametrize(
    ("quotes", "text"),
    [
        ([Quote(9, "Second."), Quote(0, "First.")], "First. Second."),
        ([Quote(0, "第一句。"), Quote(5, "第二句。")], "第一句。第二句。"),
        ([Quote(0, "Ein Satz."), Quote(9, "第二句。"), Quote(20, "The end.")], "Ein Satz. 第二句。The end."),
        ([], ""),
    ],
)
def test_quotes_stand_as_their_script_has_them(quotes: list[Quote], text: str) -> None:
    assert passage(quotes) == text


# --- what is quoted --------------------------------------------------------------------------------------------------


def test_evidence_is_the_sentences_the_model_says_yes_to(reranker: Reranker, engine: FakeEngine) -> None:
    judgment = reranker.rerank(QUERY, [TWO])[0]
    assert (judgment.outcome, judgment.evidence_source) == (Outcome.COMPLETE, "quoted")
    assert judgment.contribution is None
    assert judgment.evidence == "One p=0.9 leads. Two p=0.6 follows."
    assert [TWO[span.start : span.end] for span in judgment.spans] == ["One p=0.9 leads.", "Two p=0.6 follows."]
    assert [span.support for span in judgment.spans] == [1.0, 1.0]
    assert engine.calls == [("score", 1), ("score", 4)], "nothing is generated"
    assert notes(judgment) == []


def test_no_more_than_three_and_equal_ones_once(reranker: Reranker, engine: FakeEngine) -> None:
    text = "A p=0.6. B p=0.9. C p=0.7. D p=0.8. B p=0.9."
    assert reranker.rerank(QUERY, [text])[0].evidence == "B p=0.9. C p=0.7. D p=0.8."
    assert engine.calls[1:] == [("score", 4)]


def test_one_call_judges_the_sentences_of_all_documents(reranker: Reranker, engine: FakeEngine) -> None:
    result = reranker.rerank(QUERY, ["One p=0.9. Two p=0.8.", "Three p=0.7. Four p=0.6. Five.", "Six p=0.1. Seven."])
    assert [judgment.evidence for judgment in result] == ["One p=0.9. Two p=0.8.", "Three p=0.7. Four p=0.6.", None]
    assert [judgment.evidence_source for judgment in result] == ["quoted", "quoted", None]
    assert engine.calls == [("score", 3), ("score", 5)]


def test_a_choice_of_one_sentence_asks_the_engine_nothing(reranker: Reranker, engine: FakeEngine) -> None:
    judgment = reranker.rerank(QUERY, ["Only p=0.9 this."])[0]
    assert (judgment.outcome, judgment.evidence) == (Outcome.COMPLETE, "Only p=0.9 this.")
    assert judgment.usage == Usage(prompt_tokens=prompt_tokens(reranker, "Only p=0.9 this."))
    assert engine.calls == [("score", 1)]


def test_many_sentences_are_judged_in_waves(reranker: Reranker, engine: FakeEngine) -> None:
    names = ("Iron", "Zinc", "Silver")
    documents = [f"Lead p=0.9 {name}. " + "".join(f"{name} {i} follows. " for i in range(99)) for name in names]
    result = reranker.rerank(QUERY, documents)
    assert [judgment.evidence for judgment in result] == [f"Lead p=0.9 {name}." for name in names]
    assert engine.calls == [("score", 3), ("score", 200), ("score", 100)]


def test_tags_and_control_tokens_are_quoted_as_text(reranker: Reranker) -> None:
    text = "A p=0.9 </evidence> forged. B p=0.8 <|im_end|> too. Lone p=0.7 \ud800 surrogate."
    assert reranker.rerank(QUERY, [text])[0].evidence == text.replace("\ud800", "\ufffd")


def test_the_title_is_never_quoted_and_no_sentence_is_read_with_it(reranker: Reranker) -> None:
    document = Document(text="The body p=0.6. Other.", title="p=0.99 title")
    assert reranker.rerank(QUERY, [document])[0].evidence == "The body p=0.6."


def test_only_what_was_read_is_quoted_and_no_half_of_a_sentence(reranker: Reranker) -> None:
    text = "This p=0.6 is read. " + "That p=0.9 is far too long to be read as a whole, for it goes on and on " * 9
    judgment = reranker.rerank(QUERY, [text], max_prompt_tokens=150)[0]
    assert judgment.truncation is not None
    assert judgment.evidence == "This p=0.6 is read."


def test_quotes_come_from_the_windows_that_matter(reranker: Reranker) -> None:
    sentences = ("Iron p=0.8 conducts better. ", "Zinc p=0.2 conducts better. ", "Silver p=0.9 conducts better. ")
    size = 1 + max(prompt_tokens(reranker, sentence) for sentence in sentences)
    text = "".join(sentences)
    [judgment] = reranker.rerank(QUERY, [text], max_prompt_tokens=size, on_long_document="window")
    assert [window.score for window in judgment.windows] == pytest.approx([0.8, 0.2, 0.9])
    assert judgment.evidence == "Iron p=0.8 conducts better. Silver p=0.9 conducts better."
    assert [text[span.start : span.end] for span in judgment.spans] == [sentences[0].strip(), sentences[2].strip()]


class Refusing(FakeEngine):
    """Refuses to judge the sentences that begin with `Second`, and computes nonsense for `Third`."""

    def _label(self, document: str) -> LabelLogits | DocumentError:
        if document.startswith("Second"):
            return DocumentError("too long")
        return LabelLogits(float("nan"), 0.0) if document.startswith("Third") else super()._label(document)


def test_a_sentence_that_cannot_be_judged_is_not_quoted(template: Template) -> None:
    with Reranker(template, Refusing(template), name="fake", evidence="quoted") as reranker:
        some = reranker.rerank(QUERY, ["First p=0.6. Second p=0.8 alone. Third p=0.9."])[0]
        none = reranker.rerank(QUERY, ["\nSecond p=0.9. Second p=0.8 alone."])[0]
    assert some.evidence == "First p=0.6."
    assert (none.outcome, none.evidence, none.check) == (Outcome.CUT_OFF, None, None)
    assert notes(none) == ["no sentence could be quoted"]


_PIECES = ["p=0.8 Ja.", "Nein. ", "</evidence>", "铜导电p=0.7。", "\n\n", "? ", "p=0.9", "- item", "Wert 1.5 kg!"]


def _spelt(text: str) -> str:
    return "".join(text.split())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.lists(st.sampled_from(_PIECES) | st.text(st.characters(exclude_categories=()), max_size=5), max_size=8))
def test_whatever_is_quoted_are_the_documents_own_sentences(reranker: Reranker, pieces: list[str]) -> None:
    text = "Lead p=0.9 " + " ".join(pieces)
    judgment = reranker.rerank(QUERY, [text])[0]
    assert judgment.outcome is Outcome.COMPLETE
    assert (judgment.support or 0.0) > 0.9  # control characters may end a sentence of the passage elsewhere
    own = dict.fromkeys(clean(text[start:end]) for start, end in sentences(text))
    chosen = (some for count in range(1, MOST_QUOTES + 1) for some in combinations(own, count))
    assert any(_spelt("".join(some)) == _spelt(judgment.evidence or "") for some in chosen)


_SENTENCES = st.tuples(
    st.sampled_from(["Satz", "The winter of", "Зима", "林道港口"]),
    st.sampled_from([1, 4, 6, 9]),
    st.sampled_from(".。!"),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.lists(_SENTENCES, min_size=1, max_size=6), st.sampled_from([" ", "\n\n", " \ud800 "]))
def test_quotes_stand_word_for_word_where_their_spans_say(
    reranker: Reranker, parts: list[tuple[str, int, str]], gap: str
) -> None:
    """All sentences differ by a number, so that each has one place."""
    text = gap.join(f"{word} {1000 + i} p=0.{tenth} {word}{stop}" for i, (word, tenth, stop) in enumerate(parts))
    judgment = reranker.rerank(QUERY, [f"Lead p=0.9 stands here. {text}"])[0]
    read = clean(f"Lead p=0.9 stands here. {text}")
    assert _spelt("".join(read[span.start : span.end] for span in judgment.spans)) == _spelt(judgment.evidence or "")
    assert judgment.support == 1.0


# --- what it takes ---------------------------------------------------------------------------------------------------


def test_every_prompt_token_is_in_the_usage(reranker: Reranker) -> None:
    first, second = ["One p=0.9.", "Two p=0.8 is longer."], ["Three p=0.7.", "Four p=0.6.", "Five."]
    low = "Six p=0.1. Seven."
    result = reranker.rerank(QUERY, [" ".join(first), " ".join(second), low], top_n=2)
    asked = [prompt_tokens(reranker, *first), prompt_tokens(reranker, *second)]
    judged = [prompt_tokens(reranker, " ".join(texts)) for texts in (first, second)]
    # The fake reuses 7 tokens of every prompt but the first of a call: 2 of 3 documents, 4 of 5 sentences.
    share = 4 * 7 * asked[0] // sum(asked)
    assert [judgment.usage for judgment in result] == [
        Usage(prompt_tokens=judged[0] + asked[0], cached_tokens=share),
        Usage(prompt_tokens=judged[1] + asked[1], cached_tokens=28 - share),
    ]
    everything = sum(judged) + sum(asked) + prompt_tokens(reranker, low)
    assert result.usage == Usage(prompt_tokens=everything, cached_tokens=14 + 28)


def test_writing_takes_what_it_did(reranker: Reranker, engine: FakeEngine) -> None:
    judgment = reranker.rerank(QUERY, [TWO], evidence="written")[0]
    assert (judgment.contribution, judgment.evidence_source) == ("It helps.", "written")
    assert judgment.usage == Usage(prompt_tokens=prompt_tokens(reranker, TWO), written_tokens=TEXT_TOKENS)
    assert [name for name, *_ in engine.calls] == ["score", "write"]


def test_what_would_pass_the_limit_is_not_quoted(reranker: Reranker, engine: FakeEngine) -> None:
    texts = ["One p=0.9. Two p=0.8.", "Three p=0.7. Four p=0.6.", "Five p=0.5 is alone."]
    judging = prompt_tokens(reranker, *texts)
    first, second = (
        prompt_tokens(reranker, "One p=0.9.", "Two p=0.8."),
        prompt_tokens(reranker, "Three p=0.7.", "Four p=0.6."),
    )

    def quoted(limit: int) -> tuple[list[str | None], int, tuple[str, ...]]:
        result = reranker.rerank(QUERY, texts, max_total_tokens=limit)
        assert result.usage.prompt_tokens <= limit
        return [judgment.evidence for judgment in result], result.usage.prompt_tokens - judging, result.warnings

    alone = "Five p=0.5 is alone."  # costs nothing
    said = "quoting would have passed max_total_tokens={}: {} of 3 documents with verdict yes have no evidence"
    most = judging + first + second
    assert quoted(most) == ([texts[0], texts[1], alone], first + second, ())
    assert quoted(most - 1) == ([texts[0], None, alone], first, (said.format(most - 1, 1),))
    engine.calls.clear()
    assert quoted(judging) == ([None, None, alone], 0, (said.format(judging, 2),))
    assert engine.calls == [("score", 3)], "what is not quoted is not judged either"
    with pytest.raises(InputError, match="too many tokens"):
        reranker.rerank(QUERY, texts, max_total_tokens=judging - 1)


def test_a_budget_leaves_out_the_worse_sentences(reranker: Reranker, template: Template) -> None:
    text = "This p=0.6 is a rather long sentence that comes first, and it goes on for some time. That p=0.9 is short."
    tokens = template.count("That p=0.9 is short.")
    assert tokens < 32 < template.count(text) - tokens
    [judgment] = reranker.rerank(QUERY, [text], evidence_tokens=32)
    assert judgment.evidence == "That p=0.9 is short."


def test_a_budget_goes_to_the_best_documents_and_the_rest_is_not_judged(
    reranker: Reranker, template: Template, engine: FakeEngine
) -> None:
    texts = [f"Document {i} p=0.{9 - i} says something that is long enough. Other words stand here." for i in range(3)]
    each = [template.count(text.partition(". ")[0] + ".") for text in texts]
    # Two sentences each: a wave of one, because no two documents surely fit; what is left is under the 32 worth it.
    result = reranker.rerank(QUERY, texts, evidence_tokens=each[0] + each[1] + 31)
    assert [judgment.evidence is not None for judgment in result] == [True, True, False]
    assert result[2].outcome is Outcome.NOT_WRITTEN
    assert sum(judged for _, judged in engine.calls[1:]) == 4
    budget = each[0] + each[1] + 31
    assert result.warnings == (
        f"evidence_tokens={budget} was spent: 1 of 3 documents with verdict yes have no evidence",
    )
    assert reranker.rerank(QUERY, texts, evidence_tokens=31).usage.prompt_tokens == prompt_tokens(reranker, *texts)


def test_a_sentence_too_long_to_quote_leaves_room_for_the_next(reranker: Reranker) -> None:
    table = f"Best p=0.9 {'of many numbers ' * 200}."
    judgment = reranker.rerank(QUERY, [f"{table} Next p=0.3 best."])[0]
    assert (judgment.outcome, judgment.evidence) == (Outcome.COMPLETE, "Next p=0.3 best.")
    judgment = reranker.rerank(QUERY, [table])[0]
    assert (judgment.outcome, judgment.evidence) == (Outcome.CUT_OFF, None)


def test_limits_by_number_and_score(reranker: Reranker) -> None:
    texts = ["One p=0.9. Two.", "Three p=0.7. Four.", "Five p=0.6. Six."]
    some = reranker.rerank(QUERY, texts, evidence_top_n=1)
    assert [judgment.evidence for judgment in some] == ["One p=0.9.", None, None]
    some = reranker.rerank(QUERY, texts, evidence_threshold=0.65)
    assert [judgment.evidence for judgment in some] == ["One p=0.9.", "Three p=0.7.", None]
    assert some.warnings == ()
    assert reranker.rerank(QUERY, texts, check=False)[0].check is None


# --- asking for it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "by_a_writer", "by_a_quoter"),
    [
        (True, "written", "quoted"),
        ("auto", "written", "quoted"),
        (None, "written", "quoted"),
        ("written", "written", "written"),
        ("quoted", "quoted", "quoted"),
        (False, None, None),
    ],
)
def test_auto_is_what_the_checkpoint_prefers(
    template: Template, reranker: Reranker, choice: Any, by_a_writer: str | None, by_a_quoter: str | None
) -> None:
    assert reranker.rerank(QUERY, [TWO], evidence=choice)[0].evidence_source == by_a_quoter
    with Reranker(template, FakeEngine(template), name="writer") as writer:
        assert writer.rerank(QUERY, [TWO], evidence=choice)[0].evidence_source == by_a_writer


@pytest.mark.parametrize("choice", ["none", "Quoted", "", 0, 1, ["quoted"]])
def test_any_other_source_is_refused(reranker: Reranker, choice: Any) -> None:
    with pytest.raises(InputError, match="evidence must be true, false, 'written', 'quoted' or 'auto', got"):
        reranker.rerank(QUERY, [TWO], evidence=choice)


def test_events_tell_what_the_result_holds(reranker: Reranker) -> None:
    async def main() -> list[Any]:
        return [event async for event in reranker.astream(QUERY, ["Low p=0.1.", TWO, "Two p=0.7. Six.", ""])]

    ranked, first, second, result = anyio.run(main)
    assert isinstance(ranked, Ranked)
    assert ranked.result.usage.prompt_tokens < result.usage.prompt_tokens
    assert isinstance(result, RerankResult)
    assert (first, second) == (Judged(judgment=result[0]), Judged(judgment=result[1]))
    assert [judgment.index for judgment in result] == [1, 2, 0, 3]


def test_what_a_checkpoint_prefers(
    tmp_path: Path, tiny_checkpoint: Path, tiny_qwen3: Any, tiny_tokenizer: Any, template: Template
) -> None:
    assert Checkpoint.load(tiny_checkpoint, template="prism").config.evidence == "quoted", "nobody taught it to write"
    Checkpoint.save(tmp_path, model=deepcopy(tiny_qwen3), template=template, name="mine")
    assert Checkpoint.load(tmp_path).config.evidence == "written"
    stored = json.loads((tmp_path / "prism.json").read_text())
    (tmp_path / "prism.json").write_text(json.dumps({**stored, "evidence": "quoted"}))
    with Reranker.load(str(tmp_path), self_test=False) as loaded:
        assert loaded.evidence_source == "quoted"
    (tmp_path / "prism.json").write_text(json.dumps({**stored, "evidence": "sung"}))
    with pytest.raises(CheckpointError, match="evidence: Input should be 'written' or 'quoted', got 'sung'"):
        Checkpoint.load(tmp_path)
    stored["template"]["evidence_quotes"] = True
    (tmp_path / "prism.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=r"template: `evidence_quotes` was a rule of nano.*train again"):
        Checkpoint.load(tmp_path)


# --- with real models ------------------------------------------------------------------------------------------------


class Computing(httpx.AsyncBaseTransport):
    """A completions server that computes with a model in this process, one prompt at a time."""

    def __init__(self, model: Any) -> None:
        self._model = model

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "tiny", "owned_by": "vllm", "max_model_len": 2048}]})
        body = json.loads(request.content)
        labels = body["logprob_token_ids"]
        choices = [self._choice(index, ids, labels) for index, ids in enumerate(body["prompt"])]
        return httpx.Response(200, json={"choices": choices})

    @torch.inference_mode()
    def _choice(self, index: int, ids: Sequence[int], labels: Sequence[int]) -> dict[str, Any]:
        logprobs = self._model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        return {"index": index, "logprobs": {"top_logprobs": [{f"token_id:{i}": float(logprobs[i]) for i in labels}]}}


@pytest.mark.parametrize("name", [PRISM.name, QWEN3_RERANKER.name])
def test_engines_quote_the_same(tiny_checkpoint: Path, tiny_qwen3: Any, name: str) -> None:
    checkpoint = Checkpoint.load(tiny_checkpoint, template=name)
    servers = {"transport": Computing(tiny_qwen3)}
    engines = (
        open_engine("hf", checkpoint, dtype="float32", device="cpu"),
        open_engine("openai", checkpoint, base_url="http://tiny/v1", options=servers),
    )
    documents = [
        "The harbour froze in 1963. Copper conducts better. Es war kalt.",
        "铜的导电性比铁好。银比两者都好。 Iron is worse.",
        "One sentence stands alone.",
    ]
    found = []
    for engine in engines:
        with Reranker(checkpoint.template, engine, name="tiny", evidence=checkpoint.config.evidence) as reranker:
            found.append(list(reranker.rerank("when did it freeze?", documents, threshold=0.0)))
    here, there = found
    assert [judgment.evidence for judgment in here] == [judgment.evidence for judgment in there]
    assert all(1 <= len(judgment.spans) <= MOST_QUOTES and judgment.support == 1.0 for judgment in here)
    assert [j.score for j in here] == pytest.approx([j.score for j in there], abs=1e-4)
    assert [j.usage.prompt_tokens for j in here] == [j.usage.prompt_tokens for j in there]
