from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import anyio
import pytest
from fakes import TEXT_TOKENS, FakeEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prism.errors import InputError
from prism.reranker import Reranker
from prism.result import Contributed, Judged, Ranked, RerankResult
from prism.template import PRISM, Prompt, Template
from prism.types import Document, Outcome, Truncation
from prism.windows import MAX_WINDOWS, cut_windows

QUERY = "when does the harbour freeze?"
FILLER = "p=0.2 Nothing stands here at all. "
GOOD = "p=0.9 The harbour froze in 1963. "
FAIR = "p=0.7 Copper conducts electricity. "


@pytest.fixture(scope="module")
def template(tiny_tokenizer: Any) -> Template:
    return Template(PRISM.model_copy(update={"max_written_tokens": 40}), tiny_tokenizer)


@pytest.fixture
def engine(template: Template) -> FakeEngine:
    return FakeEngine(template)


@pytest.fixture
def reranker(template: Template, engine: FakeEngine) -> Iterator[Reranker]:
    with Reranker(template, engine, name="fake") as loaded:
        yield loaded


def fitting(most: int) -> Any:
    """Renders into one id a character, at most `most`."""

    def render(part: Document) -> Prompt:
        read = min(most, len(part.text))
        cut = None if read == len(part.text) else Truncation(read_chars=read, total_chars=len(part.text))
        return Prompt([1] * read, cut)

    return render


# --- cutting ---------------------------------------------------------------------------------------------------------


def test_windows_end_where_sentences_end() -> None:
    text = "One is here. Two is here. Three is here. Four."
    windows = cut_windows(Document(text=text), fitting(30))
    read = [text[window.start : window.end].strip() for window in windows]
    assert read == ["One is here. Two is here.", "Three is here. Four."]


def test_a_sentence_longer_than_half_a_window_is_broken() -> None:
    text = "x" * 25 + ". Short one."
    windows = cut_windows(Document(text=text), fitting(10))
    assert "".join(text[window.start : window.end] for window in windows).replace(" ", "") == text.replace(" ", "")
    assert all(window.end - window.start <= 10 for window in windows)


def test_what_lies_behind_the_last_window_is_not_read() -> None:
    windows = cut_windows(Document(text="a" * (MAX_WINDOWS * 10 + 5)), fitting(10))
    assert len(windows) == MAX_WINDOWS
    assert windows[-1].end == MAX_WINDOWS * 10
    assert cut_windows(Document(text="abc"), fitting(0)) == []


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=()), max_size=300), st.integers(5, 80))
def test_windows_cover_the_text_in_order(text: str, most: int) -> None:
    windows = cut_windows(Document(text=text), fitting(most))
    end = 0
    for window in windows:
        assert end <= window.start < window.end <= window.start + most
        assert not text[end : window.start].strip()
        end = window.end
    assert not text[end:].strip() or len(windows) == MAX_WINDOWS


# --- judging ---------------------------------------------------------------------------------------------------------


def test_the_score_is_the_best_windows_and_spans_are_the_documents(reranker: Reranker, engine: FakeEngine) -> None:
    text = FILLER * 12 + GOOD + FILLER * 12
    [cut] = reranker.rerank(QUERY, [text], max_prompt_tokens=140)
    assert (cut.verdict, cut.truncation is not None) == ("no", True)
    [judgment] = reranker.rerank(QUERY, [text], max_prompt_tokens=140, on_long_document="window")
    assert judgment.truncation is None
    assert len(judgment.windows) > 2
    assert judgment.score == max(window.score for window in judgment.windows)
    assert judgment.usage.prompt_tokens == sum(map(len, engine_prompts(reranker, text, 140)))


def engine_prompts(reranker: Reranker, text: str, most: int) -> list[list[int]]:
    windows = cut_windows(Document(text=text), lambda part: reranker.template.render(QUERY, part, max_tokens=most))
    return [window.prompt.ids for window in windows]


ONE_A_WINDOW = ("Copper p=0.7 conducts better. ", "Iron p=0.2 conducts better. ", "Silver p=0.9 conducts better. ")


def room_for_each(reranker: Reranker, sentences: Sequence[str]) -> int:
    """A prompt limit under which each window holds one of the sentences."""
    return max(len(reranker.template.render(QUERY, Document(text=text)).ids) for text in sentences) + 1


def test_evidence_comes_from_the_windows_that_matter(reranker: Reranker) -> None:
    text = "".join(ONE_A_WINDOW)
    size = room_for_each(reranker, ONE_A_WINDOW)
    [judgment] = reranker.rerank(QUERY, [text], max_prompt_tokens=size, on_long_document="window")
    copper, iron, silver = (sentence.strip() for sentence in ONE_A_WINDOW)
    assert [text[window.start : window.end].strip() for window in judgment.windows] == [copper, iron, silver]
    assert [window.score for window in judgment.windows] == pytest.approx([0.7, 0.2, 0.9])
    assert judgment.evidence == f"{copper}\n{silver}"
    assert [text[span.start : span.end] for span in judgment.spans] == [copper, silver]
    assert judgment.usage.written_tokens == 2 * TEXT_TOKENS
    assert judgment.outcome is Outcome.COMPLETE


def test_a_short_document_has_no_windows(reranker: Reranker) -> None:
    plain = reranker.rerank(QUERY, [GOOD, "", FILLER])
    assert reranker.rerank(QUERY, [GOOD, "", FILLER], on_long_document="window") == plain
    assert plain[0].windows == ()


def test_a_window_that_fails_spares_the_others(reranker: Reranker) -> None:
    sentences = ("Do refuse better. ", "Silver p=0.9 conducts better. ")
    size = room_for_each(reranker, sentences)
    [judgment] = reranker.rerank(QUERY, ["".join(sentences)], max_prompt_tokens=size, on_long_document="window")
    assert judgment.error is None
    assert judgment.score == pytest.approx(0.9)


def test_options_that_are_wrong(reranker: Reranker) -> None:
    with pytest.raises(InputError, match="'truncate', 'window' or 'refuse'"):
        reranker.rerank(QUERY, [GOOD], on_long_document="tear")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="too many tokens: the first 1 of 1 documents"):
        reranker.rerank(QUERY, [GOOD], max_total_tokens=5)
    with pytest.raises(TypeError, match="no option 'colour'"):
        anyio.run(lambda: reranker.arerank(QUERY, [GOOD], colour="blue"))  # type: ignore[call-arg]


# --- events ----------------------------------------------------------------------------------------------------------


def test_events_tell_what_the_result_holds(reranker: Reranker) -> None:
    async def main() -> list[Any]:
        return [event async for event in reranker.astream(QUERY, [FILLER, GOOD, FAIR, ""], evidence_top_n=1)]

    ranked, contributed, judged, result = anyio.run(main)
    assert isinstance(ranked, Ranked)
    assert [judgment.evidence for judgment in ranked.result] == [None] * 4
    assert contributed == Contributed(index=1, contribution="It helps.")
    assert isinstance(judged, Judged)
    assert isinstance(result, RerankResult)
    assert judged.judgment == result[0]
    assert result == reranker.rerank(QUERY, [FILLER, GOOD, FAIR, ""], evidence_top_n=1)
    assert [judgment.index for judgment in result] == [judgment.index for judgment in ranked.result] == [1, 2, 0, 3]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.lists(st.sampled_from([FILLER, GOOD, FAIR, "", "refuse", FAIR * 9]), max_size=5), st.booleans())
def test_a_result_does_not_depend_on_how_it_is_asked_for(reranker: Reranker, texts: list[str], window: bool) -> None:
    mode: Any = "window" if window else "truncate"
    options: Any = {"on_long_document": mode, "max_prompt_tokens": 120}
    assert anyio.run(lambda: reranker.arerank(QUERY, texts, **options)) == reranker.rerank(QUERY, texts, **options)
