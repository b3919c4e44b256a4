"""Typed questions about a state, as a model can answer them that says yes or no to one passage for one query.

`systemone` and `decisions` read two vendors' requests into these; `read_question` finds the pairs whose scores answer a
question, `typed_answer` makes the answer of the scores. A question that no pair stands for is refused on its own.

    the state has a `query`, the question speaks of it    that query with the passage that the question names
    the state is a text, the question "... query: TEXT"   the state with TEXT
    anything else                                         the question with the passage it names, or with the state
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from prism.scoring import level_probabilities, option_probabilities
from prism.text import clean
from prism.types import Record

QUERIES = ("query", "search_query", "user_query", "question")
"""What a state may call its query."""
_RULES = ("rubric", "instructions")
"""What a state may say about how to judge: no passage."""
_TEXTS = ("text", "content", "body", "passage", "document", "snippet")
"""Where an object keeps its text."""
_YES = {"yes", "true"}
_BOOLEAN = ({"yes", "no"}, {"true", "false"})
_REFERENCE = re.compile(r"`([^`\n]{1,200})`")
_THE_QUERY = re.compile(r"\b(?:the|this|that|given|following|user|user's|search)\s+(?:\w+\s+)?query\b", re.IGNORECASE)


class CannotSay(Exception):
    """The question has no answer here; the message says why, and quotes no text."""


class Option(Record):
    """One of a choice's options, or one level of a score."""

    value: str | bool
    text: str
    """What it says, with its name."""

    @property
    def word(self) -> str:
        """Its name as a word."""
        return str(self.value).strip().lower()


class TypedQuestion(Record):
    """A question of either vendor."""

    kind: Literal["predicate", "choice", "score"]
    text: str
    """As asked, with what counts as yes and as no."""
    options: tuple[Option, ...] = ()
    """Of a choice; of a score its levels, lowest first."""
    problem: str | None = None
    """Why it cannot be answered, whatever the state."""

    @property
    def boolean(self) -> bool:
        """Whether the options are yes and no, or true and false: then the choice is a predicate."""
        return self.kind == "choice" and {option.word for option in self.options} in _BOOLEAN


class Subject(NamedTuple):
    """What the questions are about."""

    value: str | Mapping[str, Any] | list[Any]
    images: frozenset[str] = frozenset()
    """Placeholders that stand for images."""
    problem: str | None = None
    """Why nothing can be said about it."""


class Questions(NamedTuple):
    """A request, read."""

    state: Subject
    questions: Mapping[str, TypedQuestion]
    """By name; those of a list by position."""
    model: str | None
    instruction: str | None
    """Takes the place of the model's default, as in a rerank request."""
    unheeded: list[str]
    """Fields nobody reads."""
    labels: Sequence[str | None] = ()
    """Of questions in a list, their own names."""


class Posed(NamedTuple):
    """A query and a passage to score."""

    query: str
    document: str | dict[str, str]
    known: float | None = None
    """The score, where nobody need be asked: a passage without text answers no query."""


class Reading(NamedTuple):
    """The pairs that are scored for one question, or why there are none."""

    pairs: tuple[Posed, ...] = ()
    problem: str | None = None


class TypedAnswer(NamedTuple):
    """The answer: one probability for each option or level; of a predicate its own."""

    probabilities: tuple[float, ...]
    confidence: float

    @property
    def best(self) -> int:
        """Of equals the first."""
        return self.probabilities.index(max(self.probabilities))

    @property
    def expected(self) -> float:
        """The expected level."""
        return sum(level * probability for level, probability in enumerate(self.probabilities))


def typed_answer(question: TypedQuestion, scores: Sequence[float]) -> TypedAnswer:
    """The answer, from the scores of the question's pairs.

    Confidence is the probability of the likeliest, but no more than its own score: low where two fit, or none does.
    """
    if question.kind == "predicate":
        return TypedAnswer((scores[0],), max(scores[0], 1 - scores[0]))
    if question.kind == "score" and len(scores) == 1:
        levels = level_probabilities(scores[0], len(question.options))
        return TypedAnswer(levels, max(levels))
    if question.boolean:
        probabilities = tuple(scores[0] if option.word in _YES else 1 - scores[0] for option in question.options)
        return TypedAnswer(probabilities, max(probabilities))
    shares = option_probabilities(scores)
    best = shares.index(max(shares))
    return TypedAnswer(shares, min(shares[best], scores[best]))


# --- which pairs -----------------------------------------------------------------------------------------------------


def read_question(question: TypedQuestion, state: Subject) -> Reading:
    """The pairs for one question."""
    try:
        if problem := question.problem or state.problem:
            raise CannotSay(problem)
        pairs = _pairs(question, state.value)
        texts = [text for pair in pairs for text in (pair.query, *_texts_of(pair.document))]
        if any(image in text for image in state.images for text in texts):
            raise CannotSay("it is about an image, and this model reads text only")
    except CannotSay as refusal:
        return Reading(problem=str(refusal))
    return Reading(tuple(pairs))


def _pairs(question: TypedQuestion, state: str | Mapping[str, Any] | list[Any]) -> list[Posed]:
    name = _query_name(state)
    if name and question.kind == "choice" and not question.boolean and _mentions(question.text, name):
        named = [_at(state, str(option.value)) for option in question.options]
        if all(passage is not None for passage in named):
            assert isinstance(state, Mapping)  # it has a query
            return [_about(clean(state[name]), _document(passage)) for passage in named]
    query, document, text = _subject(question.text, state, name)
    if question.kind == "predicate" or question.boolean or (question.kind == "score" and query is not None):
        return [Posed(text, document) if query is None else _about(query, document)]
    about = text if query is None else f"{text}\nQuery: {query}"
    return [Posed(f"{about}\n{option.text}", document) for option in question.options]


def _about(query: str, document: str | dict[str, str]) -> Posed:
    text = document if isinstance(document, str) else document["text"]
    return Posed(query, document, None if text.strip() else 0.0)


def _subject(text: str, state: Any, name: str | None) -> tuple[str | None, str | dict[str, str], str]:
    """The query that the question speaks of, if any, the passage it is about, and its text without references to that.

    Raises CannotSay where it is about several passages.
    """
    if isinstance(state, str):
        head, colon, tail = text.partition(":")
        if colon and _THE_QUERY.search(head):
            if not tail.strip():
                raise CannotSay("it has no passage behind its colon")
            return clean(state), tail.strip(), text
        return None, clean(state), text
    aside = {*_RULES, *([name] if name else [])}
    places = [place for place in dict.fromkeys(_REFERENCE.findall(text)) if place.partition(".")[0] not in aside]
    named = {place: passage for place in places if (passage := _at(state, place)) is not None}
    if len(named) > 1:
        raise CannotSay(f"it is about {len(named)} passages, and this model judges one at a time")
    for place, passage in named.items():
        query = clean(state[name]) if name and _mentions(text, name) else None
        return query, _document(passage), text.replace(f"`{place}`", "the document")
    rest = {key: value for key, value in state.items() if key not in aside} if isinstance(state, Mapping) else state
    if name and rest and _mentions(text, name):
        return clean(state[name]), _only_passage(rest), text
    return None, _document(rest or (state[name] if name else "")), text


def _query_name(state: Any) -> str | None:
    if not isinstance(state, Mapping):
        return None
    return next((name for name in QUERIES if isinstance(state.get(name), str)), None)


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"\b(?:{name}|query)\b", text, re.IGNORECASE) is not None


def _at(state: Any, place: str) -> Any:
    """What stands at `a.b`, `a[0]` or, below one container alone, at `b`; None where nothing does."""
    found = _walk(state, place)
    if found is None and isinstance(state, Mapping):
        below = [value for value in state.values() if isinstance(value, Mapping | list)]
        inner = [value for value in (_walk(container, place) for container in below) if value is not None]
        found = inner[0] if len(inner) == 1 else None
    return found


def _walk(state: Any, place: str) -> Any:
    if isinstance(state, Mapping) and place in state:
        return state[place]
    for part in place.replace("[", ".").replace("]", "").split("."):
        if isinstance(state, Mapping):
            state = state.get(part)
        elif isinstance(state, list) and part.isascii() and part.isdecimal() and int(part) < len(state):
            state = state[int(part)]
        else:
            return None
    return state


def _only_passage(rest: Any) -> str | dict[str, str]:
    """The passage where the question names none. Raises CannotSay where there are several."""
    while not isinstance(rest, str) and _text_of(rest) is None:
        inner = list(rest.values()) if isinstance(rest, Mapping) else rest if isinstance(rest, list) else [rest]
        if len(inner) != 1:
            raise CannotSay(f"it names none of {len(inner)} passages: write `documents.ID` in it")
        if not isinstance(inner[0], Mapping | list):
            return _document(inner[0])
        rest = inner[0]
    return _document(rest)


def _document(value: Any) -> str | dict[str, str]:
    """A passage as `Reranker.arerank` takes it."""
    if (text := _text_of(value)) is not None:
        title = value.get("title")
        return {"text": clean(text), "title": clean(title)} if isinstance(title, str) and title else clean(text)
    return written_out(value)


def _text_of(value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return None
    return next((value[name] for name in _TEXTS if isinstance(value.get(name), str)), None)


def _texts_of(document: str | dict[str, str]) -> Sequence[str]:
    return [document] if isinstance(document, str) else list(document.values())


def written_out(value: Any) -> str:
    """Text as it is; of an object or a list one line for each member, as JSON where that is no text.

    Raises CannotSay for what is nested too deeply.
    """
    if isinstance(value, Mapping):
        return "\n".join(f"{clean(key)}: {_line(inner)}" for key, inner in value.items())
    return "\n".join(map(_line, value)) if isinstance(value, list) else _line(value)


def _line(value: Any) -> str:
    if isinstance(value, str):
        return clean(value)
    try:
        return clean(json.dumps(value, ensure_ascii=False))
    except RecursionError as error:
        raise CannotSay("the text it is about is nested too deeply") from error
