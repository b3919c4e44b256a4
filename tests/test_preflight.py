"""A dry run says what the call then takes: judging to the token, evidence as a bound that no call passes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest
from fakes import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from prism.engines.timed import Pace
from prism.errors import InputError
from prism.reranker import Reranker
from prism.result import Ranked, RerankResult
from prism.template import PRISM, Template

QUERY = "when does the harbour freeze?"


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: Any) -> FakeEngine:
    return FakeEngine(Template(PRISM, tiny_tokenizer))


@pytest.fixture(scope="module")
def reranker(engine: FakeEngine) -> Iterator[Reranker]:
    with Reranker(engine.template, engine, name="fake") as made:
        yield made


TEXTS = st.lists(
    st.sampled_from(["p=0.9", "p=0.2", "p=0.7", "The harbour froze.", "It was cold in 1963!", "Nobody came.", "\n"]),
    min_size=1,
    max_size=30,
).map(" ".join)
CALLS = st.fixed_dictionaries(
    {},
    optional={
        "evidence": st.sampled_from([True, False, "quoted", "written"]),
        "top_n": st.integers(1, 4),
        "evidence_top_n": st.integers(0, 4),
        "evidence_tokens": st.integers(0, 100),
        "max_document_tokens": st.integers(5, 60),
        "max_query_tokens": st.integers(4, 20),
        "on_long_document": st.sampled_from(["truncate", "window"]),
    },
).filter(lambda call: call.get("evidence") is not False or not {"evidence_tokens", "evidence_top_n"} & set(call))


@given(st.lists(TEXTS, min_size=1, max_size=5), CALLS)
@settings(max_examples=60)
def test_no_call_takes_more_than_was_said(reranker: Reranker, documents: list[str], call: dict[str, Any]) -> None:
    said = reranker.preflight(QUERY, documents, **call)
    result = reranker.rerank(QUERY, documents, **call)
    scores_only = {name: value for name, value in call.items() if name not in ("evidence_tokens", "evidence_top_n")}
    judging = reranker.rerank(QUERY, documents, **{**scores_only, "evidence": False})
    assert judging.usage.prompt_tokens == said.prompt_tokens
    quoting = result.usage.prompt_tokens - said.prompt_tokens
    assert 0 <= quoting <= said.evidence_prompt_tokens
    assert result.usage.written_tokens <= said.written_tokens
    cut = {judgment.index: judgment.truncation for judgment in result if judgment.truncation}
    told = {each.index: each.truncation for each in said.cut}
    assert cut.items() <= told.items()
    assert said.query == result.query
    assert said.query_cuts == result.query_cuts


def test_judging_takes_exactly_what_was_said(reranker: Reranker) -> None:
    documents: list[Any] = ["p=0.9 The harbour froze. " * 30, "", None, {"id": "b", "text": "p=0.2 no"}]

    async def ranking() -> RerankResult:
        async with aclosing(reranker.astream(QUERY, documents, max_document_tokens=50)) as events:
            async for event in events:
                assert isinstance(event, Ranked)
                return event.result
        raise AssertionError("no ranking was told")

    said = reranker.preflight(QUERY, documents, max_document_tokens=50)
    assert asyncio.run(ranking()).usage.prompt_tokens == said.prompt_tokens > 0
    assert said.documents == 2
    assert [problem.index for problem in said.errors] == [1, 2]
    assert [cut.index for cut in said.cut] == [0]
    assert said.warnings == ("documents longer than the model reads, whose end was not read: 0",)


def test_nothing_is_computed_and_what_would_be_refused_is(engine: FakeEngine, reranker: Reranker) -> None:
    engine.calls.clear()
    reranker.preflight(QUERY, ["p=0.9 yes"] * 3, evidence="quoted")
    with pytest.raises(InputError, match="too many tokens"):
        reranker.preflight(QUERY, ["p=0.9 yes"] * 3, max_total_tokens=20)
    with pytest.raises(InputError, match="allows no cut"):
        reranker.preflight(QUERY, ["yes " * 200], max_document_tokens=20, on_long_document="refuse")
    assert engine.calls == []


def test_quoting_is_bounded_by_the_dearest_documents(reranker: Reranker) -> None:
    long, short = "p=0.9 One here. Two here. Three here.", "p=0.9 One sentence only."
    one = reranker.preflight(QUERY, [long], evidence="quoted").evidence_prompt_tokens
    assert one > 0
    assert reranker.preflight(QUERY, [short], evidence="quoted").evidence_prompt_tokens == 0
    assert reranker.preflight(QUERY, [short, long, long], evidence="quoted").evidence_prompt_tokens == 2 * one
    assert reranker.preflight(QUERY, [short, long, long], evidence="quoted", top_n=1).evidence_prompt_tokens == one
    assert reranker.rerank(QUERY, [long], evidence="quoted").usage.prompt_tokens == (
        reranker.preflight(QUERY, [long], evidence="quoted").prompt_tokens + one
    )


def test_time_is_told_once_something_was_timed(engine: FakeEngine) -> None:
    with Reranker(engine.template, engine, name="fake") as fresh:
        before = fresh.preflight(QUERY, ["p=0.9 It froze."])
        assert (before.judging_seconds, before.evidence_seconds) == (None, None)
        assert fresh.preflight(QUERY, ["p=0.9 It froze."], evidence=False).evidence_seconds == 0.0
        fresh.rerank(QUERY, ["p=0.9 It froze."])
        after = fresh.preflight(QUERY, ["p=0.9 It froze."])
        assert after.judging_seconds is not None
        assert after.evidence_seconds is not None


def test_pace_weighs_calls_by_tokens_and_forgets() -> None:
    pace = Pace()
    assert pace.seconds(5) is None
    pace.seen(100, 1.0)
    assert pace.seconds(50) == 0.5
    pace.seen(20, 1.0)  # 0.8 * 1 + 1 seconds for 0.8 * 100 + 20 tokens
    assert pace.seconds(100) == pytest.approx(1.8)
