"""Typed questions about a state, as a model can answer them that says yes or no to one passage for one query.

`systemone` and `decisions` read two vendors' requests into these; `read_question` finds the pairs whose scores answer a
question, `typed_answer` makes the answer of the scores. A question that no pair stands for is refused on its own.

    the state has a `query`, the question speaks of it    that query with the passage that the question names
    the state is a text, the question "... query: TEXT"   the state with TEXT
    anything else                                         the question with the passage it names, or with the state
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from prism.scoring import level_probabilities, option_probabilities
from prism.serving.subject import CannotSay, Document, Subject
from prism.types import Record

_YES = {"yes", "true"}
_BOOLEAN = ({"yes", "no"}, {"true", "false"})
_MOST_CHARS = 100_000
"""Of a question that is asked as a query: more fits no prompt, and every option repeats it."""


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
    document: Document
    known: float | None = None
    """The score, where nobody need be asked: a passage without text answers no query."""


class QuestionPairs(NamedTuple):
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


def read_question(question: TypedQuestion, state: Subject) -> QuestionPairs:
    """The pairs for one question."""
    try:
        if problem := question.problem or state.problem:
            raise CannotSay(problem)
        return QuestionPairs(tuple(_pairs(question, state)))
    except CannotSay as refusal:
        return QuestionPairs(problem=str(refusal))


def _pairs(question: TypedQuestion, state: Subject) -> list[Posed]:
    """Raises CannotSay."""
    if question.kind == "choice" and not question.boolean:
        among = state.passages(question.text, [str(option.value) for option in question.options])
        if among:
            return [_about(among[0], document) for document in among[1]]
    query, document, text = state.meant_by(question.text)
    if query is not None and (question.kind != "choice" or question.boolean):
        return [_about(query, document)]
    text = text if query is None else f"{text}\nQuery: {query}"
    if len(text) > _MOST_CHARS:
        raise CannotSay(f"it has {len(text):,} characters, at most {_MOST_CHARS:,} are read")
    if question.kind == "predicate" or question.boolean:
        return [Posed(text, document)]
    return [Posed(f"{text}\n{option.text}", document) for option in question.options]


def _about(query: str, document: Document) -> Posed:
    text = document if isinstance(document, str) else document["text"]
    return Posed(query, document, None if text.strip() else 0.0)
