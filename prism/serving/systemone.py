"""`POST /v1/systemone`: the wire format of TypeSafe's System One (`typesafe-sdk`), whose model is called Jev.

    {"state": {"query": ..., "documents": {"D00": ...}}, "questions": {"D00": {"type": "noul", "instructions": ...}}}
    {"answers": {"D00": {"type": "noul", "noul": 0.93}}, "usage": ...}

What a question means to a model that says yes or no to a passage is in `questions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from prism.errors import InputError
from prism.records import first_problem
from prism.serving.decide import Decided, meta_of
from prism.serving.dialects import Meta
from prism.serving.http_errors import INVALID, Refused
from prism.serving.questions import Option, Questions, TypedAnswer, TypedQuestion
from prism.serving.subject import IMAGE, CannotSay, Subject, written_out
from prism.serving.values import Maybe, Text
from prism.types import Record


def _content(value: object) -> object:
    if value is None or isinstance(value, str | dict | list):
        return value
    raise PydanticCustomError("content_type", "Input should be a text, an object or an array")


Content = Annotated[
    Any, BeforeValidator(_content), Field(json_schema_extra={"type": ["string", "object", "array", "null"]})
]
"""A text, an object or an array, which are read line by line."""


class _In(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", use_attribute_docstrings=True)


class JevCriteria(_In):
    true: Content = None
    """What counts as yes."""
    false: Content = None
    """What counts as no."""


class JevNoul(_In):
    """A yes/no question, or a statement that may hold."""

    type: Literal["noul"]
    instructions: Content = None
    criteria: JevCriteria | None = None

    def read(self) -> TypedQuestion:
        criteria = self.criteria or JevCriteria()
        meant = (("yes", criteria.true), ("no", criteria.false))
        lines = [self.instructions, *(f"{word}: {written_out(says)}" for word, says in meant if says is not None)]
        return TypedQuestion(kind="predicate", text=_text(lines))


class JevChoice(_In):
    """One of several."""

    type: Literal["choice"]
    instructions: Content = None
    criteria: Annotated[dict[str, Content], Field(min_length=1)]
    """Names, and when each applies."""

    def read(self) -> TypedQuestion:
        options = tuple(Option(value=name, text=_text([name, says], ": ")) for name, says in self.criteria.items())
        return TypedQuestion(kind="choice", text=_text([self.instructions]), options=options)


class JevScore(_In):
    """A level."""

    type: Literal["score"]
    instructions: Content = None
    criteria: Annotated[list[Content], Field(min_length=1)]
    """What each level means, lowest first."""

    def read(self) -> TypedQuestion:
        options = tuple(Option(value=str(level), text=_text([says])) for level, says in enumerate(self.criteria))
        return TypedQuestion(kind="score", text=_text([self.instructions]), options=options)


class JevBox(_In):
    """Where something is in an image: refused."""

    type: Literal["box"]
    instructions: Content = None

    def read(self) -> TypedQuestion:
        return TypedQuestion(
            kind="predicate", text="", problem="it asks for a place in an image, and this model reads text only"
        )


AnyJevQuestion = Annotated[JevNoul | JevChoice | JevScore | JevBox, Field(discriminator="type")]


class SystemOneRequest(_In):
    """`null` and blank texts mean the default."""

    model: Maybe = None
    """Clients send what they were set up with; the loaded model answers whatever the name."""
    state: Text | dict[str, Any] | list[Any]
    """What the questions are about: for reranking `query` and one or more documents."""
    questions: Annotated[dict[str, AnyJevQuestion], Field(min_length=1)]
    """By name; the answers have the same names."""
    assets: dict[str, Any] | None = None
    """Images: a question that has one in it is refused."""
    instruction: Maybe = None
    """Ours: takes the place of the model's default instruction, as in a rerank request."""


def _text(parts: Sequence[Any], between: str = "\n") -> str:
    return between.join(written_out(part) for part in parts if part is not None)


def read_system_one(body: object) -> Questions:
    """Raises Refused (422) for wrong types, InputError for a blank text."""
    try:
        request = SystemOneRequest.model_validate(body)
        questions = {name: question.read() for name, question in request.questions.items()}
    except ValidationError as error:
        raise Refused(422, " ".join(first_problem(error, body).split()), INVALID) from error
    except CannotSay as error:
        raise Refused(422, f"questions: {error}", INVALID) from error
    if isinstance(request.state, str) and not request.state.strip():
        raise InputError("state is blank: say what the questions are about")
    state = Subject(request.state, IMAGE if request.assets else None)
    return Questions(state, questions, request.model, request.instruction, sorted(request.model_extra or {}))


# --- what is answered ------------------------------------------------------------------------------------------------


class JevNoulAnswer(Record):
    type: Literal["noul"] = "noul"
    noul: float
    """The score of the pair, as `/v1/rerank` has it."""


class JevChoiceAnswer(Record):
    type: Literal["choice"] = "choice"
    choice: str
    confidence: float
    """The choice's share of `probabilities`, but no more than its own score: low where two fit, and where none does."""
    probabilities: dict[str, float]


class JevScoreAnswer(Record):
    type: Literal["score"] = "score"
    score: float
    """The expected level."""
    confidence: float
    legend: dict[str, str]
    probabilities: dict[str, float]


class JevRefusal(Record):
    """This question has no answer, others have. `typesafe-sdk` leaves it out of `answers` and logs a warning."""

    type: Literal["refusal"] = "refusal"
    reason: str


JevAnswer = JevNoulAnswer | JevChoiceAnswer | JevScoreAnswer | JevRefusal


class JevUsage(Record):
    input_tokens: int
    output_tokens: int
    """0: nothing is written."""


class SystemOneResponse(Record):
    id: str
    model: str
    answers: dict[
        str, Annotated[JevNoulAnswer | JevChoiceAnswer | JevScoreAnswer | JevRefusal, Field(discriminator="type")]
    ]
    usage: JevUsage
    meta: Meta


def system_one_answer(request_id: str, model: str, asked: Questions, decided: Decided) -> dict[str, Any]:
    """The JSON answer. Raises InputError where every question is refused: these clients know no refusals."""
    refused = {name: found for name, found in decided.answers.items() if isinstance(found, str)}
    if len(refused) == len(decided.answers):
        name, reason = next(iter(refused.items()))
        raise InputError(f"no question has an answer: {name[:60]!r}: {reason}")
    body = SystemOneResponse(
        id=request_id,
        model=model,
        answers={name: _answer(question, decided.answers[name]) for name, question in asked.questions.items()},
        usage=JevUsage(input_tokens=decided.used.prompt_tokens, output_tokens=decided.used.written_tokens),
        meta=meta_of(asked, decided, model),
    )
    return body.model_dump(mode="json") | {"meta": body.meta.model_dump(mode="json", exclude_unset=True)}


def _answer(question: TypedQuestion, found: TypedAnswer | str) -> JevAnswer:
    if isinstance(found, str):
        return JevRefusal(reason=found)
    if question.kind == "predicate":
        return JevNoulAnswer(noul=found.probabilities[0])
    names = [str(option.value) for option in question.options]
    probabilities = dict(zip(names, found.probabilities, strict=True))
    if question.kind == "choice":
        return JevChoiceAnswer(choice=names[found.best], confidence=found.confidence, probabilities=probabilities)
    legend = dict(zip(names, (option.text for option in question.options), strict=True))
    return JevScoreAnswer(score=found.expected, confidence=found.confidence, legend=legend, probabilities=probabilities)
