"""A round of questions: what is kept, what is counted, and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from prism.errors import DataError
from prism.files.ledger import Ledger
from prism.llm.asking import Asked, answer_key, ask_all
from prism.llm.failures import BadAnswer, OverBudget, Rejected, Unavailable
from prism.types import Usage

Ask = Callable[[str], Awaitable[str]]


def round_of(questions: Iterable[tuple[str, str]], ask: Ask, kept: dict[str, str], at_once: int = 2) -> Asked:
    return asyncio.run(ask_all(questions, ask, kept.__setitem__, at_once=at_once))


async def answered(question: str) -> str:
    await asyncio.sleep(0)
    return question.upper()


def test_what_fails_is_counted_and_named() -> None:
    async def ask(question: str) -> str:
        if question == "slow":
            raise Unavailable("timeout", "no answer in 60 s")
        if question == "odd":
            raise Rejected("too odd")
        if question == "mute":
            raise BadAnswer("empty", "nothing in it", usage=Usage(), cost_usd=Decimal(1))
        return await answered(question)

    kept: dict[str, str] = {}
    asked = round_of([("1", "slow"), ("2", "good"), ("3", "odd"), ("4", "mute"), ("5", "fine")], ask, kept)
    assert kept == {"2": "GOOD", "5": "FINE"}
    assert asked == Asked(
        answered=2,
        undelivered={"timeout": 1, "rejected": 1, "empty": 1},
        failures={"1": "no answer in 60 s", "3": "too odd", "4": "nothing in it"},
    )


def test_a_stop_does_not_hide_a_full_disk() -> None:
    """Two under way: one is told to stop first, the other's answer cannot be kept."""

    async def ask(question: str) -> str:
        if question == "dear":
            raise OverBudget("the next request could exceed the budget")
        await asyncio.sleep(0.01)
        return question

    def keep(key: str, answer: str) -> None:
        raise DataError("cannot write: is the disk full?")

    questions = [("1", "dear"), ("2", "good")]
    with pytest.raises(DataError, match="is the disk full"):
        asyncio.run(ask_all(questions, ask, keep, at_once=2))


def test_a_stop_lets_those_under_way_finish_and_asks_nothing_more() -> None:
    seen: list[str] = []

    async def ask(question: str) -> str:
        seen.append(question)
        if question == "dear":
            raise OverBudget("the next request could exceed the budget")
        await asyncio.sleep(0.01)
        return await answered(question)

    kept: dict[str, str] = {}
    asked = round_of([("1", "long"), ("2", "dear"), ("3", "never"), ("4", "never")], ask, kept)
    assert seen == ["long", "dear"]
    assert kept == {"1": "LONG"}
    assert asked == Asked(answered=1, stopped="the next request could exceed the budget")


def broken() -> Iterator[tuple[str, str]]:
    yield "1", "good"
    raise DataError("q.jsonl:2: no query")


def test_a_malformed_question_is_raised_after_what_was_under_way() -> None:
    kept: dict[str, str] = {}
    with pytest.raises(DataError, match=r"q\.jsonl:2: no query"):
        round_of(broken(), answered, kept)
    assert kept == {"1": "GOOD"}


def test_a_full_disk_ends_the_round() -> None:
    asked: list[str] = []

    async def ask(question: str) -> str:
        asked.append(question)
        return question

    def keep(key: str, value: str) -> None:
        raise DataError("cannot write s: disk full")

    with pytest.raises(DataError, match="disk full"):
        asyncio.run(ask_all([(str(n), "q") for n in range(9)], ask, keep, at_once=1))
    assert asked == ["q"]


def test_only_what_has_no_answer_is_asked_and_each_once(tmp_path: Path) -> None:
    skipped: list[None] = []
    with Ledger(tmp_path / "s") as ledger:
        ledger.put("b", "known")
        questions = [("a", "1"), ("b", "2"), ("a", "1"), ("c", "3")]
        assert list(ledger.missing(questions, lambda: skipped.append(None))) == [("a", "1"), ("c", "3")]
    assert len(skipped) == 2


def test_keys_change_with_all_that_decides_an_answer() -> None:
    keys = {answer_key("a", 1), answer_key("a", 2), answer_key("a", [1]), answer_key("a1"), answer_key(["a", 1])}
    assert len(keys) == 5
    assert answer_key("a", 1) == answer_key("a", 1)
