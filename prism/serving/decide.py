"""Typed questions answered: their pairs are scored query by query, and each answer is made of its own scores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from prism.errors import InputError, TooManyTokens
from prism.result import RerankResult
from prism.serving.dialects import Meta
from prism.serving.questions import Posed, QuestionPairs, Questions, TypedAnswer, read_question, typed_answer
from prism.serving.schema import ignored, other_model
from prism.types import Usage

Judge = Callable[[str, list[Any], int], Awaitable[RerankResult]]
"""(query, documents, most prompt tokens) -> their judgments."""


class Decided(NamedTuple):
    answers: dict[str, TypedAnswer | str]
    """For each question its answer, or why it is refused."""
    used: Usage
    cut: list[str]
    """Questions about passages whose end was not read."""
    score_version: str | None


def read_all(asked: Questions, max_pairs: int) -> dict[str, QuestionPairs]:
    """The pairs of every question. Raises InputError where they are too many."""
    most = f"at most {max_pairs} in one request"
    if len(asked.questions) > max_pairs:
        raise InputError(f"too many questions: got {len(asked.questions)}, {most}")
    readings, pairs = {}, 0
    for key, question in asked.questions.items():
        readings[key] = read_question(question, asked.state)
        pairs += len(readings[key].pairs)
        if pairs > max_pairs:
            got = f"got {pairs} and more, as every option of a choice is one"
            raise InputError(f"too many questions: {got}, {most}")
    return readings


async def decide(asked: Questions, readings: Mapping[str, QuestionPairs], judge: Judge, max_tokens: int) -> Decided:
    """The answers. What is wrong with one question, or its passage, is that question's refusal.

    Raises TooManyTokens where the prompts together take more than `max_tokens`, and what `judge` raises of the model.
    """
    posed = [(key, pair) for key, reading in readings.items() for pair in reading.pairs]
    scores: dict[int, float | str] = {n: pair.known for n, (_, pair) in enumerate(posed) if pair.known is not None}
    used, cut, version = Usage(), dict[str, None](), None
    for query, places in _by_query(posed).items():
        try:
            result = await judge(query, [posed[place][1].document for place in places], max_tokens - used.prompt_tokens)
        except TooManyTokens:
            raise
        except InputError as error:
            scores |= dict.fromkeys(places, str(error))
            continue
        used, version = used + result.usage, result.score_version
        for judgment in result:
            place = places[judgment.index]
            scores[place] = judgment.error or "it has no score" if judgment.score is None else judgment.score
            if judgment.truncation:
                cut[posed[place][0]] = None
    own: dict[str, list[float | str]] = {}
    for place, (key, _) in enumerate(posed):
        own.setdefault(key, []).append(scores[place])
    answers = {key: _answer(asked, key, reading, own.get(key, [])) for key, reading in readings.items()}
    return Decided(answers, used, list(cut), version)


def _by_query(posed: Sequence[tuple[str, Posed]]) -> dict[str, list[int]]:
    """The places of each query's pairs, which are scored together; without those that need no asking."""
    found: dict[str, list[int]] = {}
    for place, (_, pair) in enumerate(posed):
        if pair.known is None:
            found.setdefault(pair.query, []).append(place)
    return found


def _answer(asked: Questions, key: str, reading: QuestionPairs, scores: Sequence[float | str]) -> TypedAnswer | str:
    if reading.problem:
        return reading.problem
    for score in scores:
        if isinstance(score, str):
            return score
    return typed_answer(asked.questions[key], [score for score in scores if not isinstance(score, str)])


def meta_of(asked: Questions, decided: Decided, model: str) -> Meta:
    """What was sent and not heeded, what was not read to its end, and which scores these are."""
    found = other_model(asked.model, model)
    if asked.unheeded:
        found.append(ignored(asked.unheeded))
    if decided.cut:
        shown = ", ".join(key[:60] for key in decided.cut[:10]) + (", …" if len(decided.cut) > 10 else "")
        found.append(f"passages longer than the model reads, whose end was not read: of questions {shown}")
    version: dict[str, Any] = {} if decided.score_version is None else {"score_version": decided.score_version}
    return Meta(warnings=tuple(found), **version)
