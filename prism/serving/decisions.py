"""`POST /v1/decisions`: the wire format of OpenAI's Decisions API (`openai`).

    {"input": "a query", "questions": [{"type": "predicate", "instructions": "Is this relevant to the query: TEXT"}]}
    {"answers": [{"type": "predicate", "name": null, "probability": 0.93}], "usage": ...}

An input that is one `input_json` object is a state with named parts, as in `systemone`; any other is a text. What a
question means to a model that says yes or no to a passage is in `questions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, ValidationError, field_validator
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

_HEARD = {"prompt_cache_key", "prompt_cache_options", "safety_identifier"}
"""Fields that change no answer."""


class _In(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", use_attribute_docstrings=True)


class TextPart(_In):
    type: Literal["input_text", "output_text"]
    text: Text


class RefusalPart(_In):
    type: Literal["refusal"]
    refusal: Text


class ImagePart(_In):
    """Refused."""

    type: Literal["input_image"]


class JsonPart(_In):
    type: Literal["input_json"]
    data: dict[str, Any] | list[Any]


Part = Annotated[TextPart | RefusalPart | ImagePart | JsonPart, Field(discriminator="type")]


class DecisionItem(_In):
    """A message, or a call of a tool and what came of it."""

    type: Literal["message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"] = (
        "message"
    )
    role: Text | None = None
    content: Text | list[Part] | None = None
    name: Text | None = None
    arguments: Text | None = None
    input: Text | None = None
    output: Text | list[Part] | None = None

    def parts(self) -> list[Part]:
        """What is said in it, in order."""
        said = self.content if self.type == "message" else self.output
        if isinstance(said, list):
            return said
        texts = [said] if said is not None else [self.name, self.arguments, self.input]
        return [TextPart(type="input_text", text=text) for text in texts if text is not None]


class _QuestionIn(_In):
    name: Text | None = None
    instructions: Text | list[Part]

    def problem(self) -> str | None:
        return IMAGE if isinstance(self.instructions, list) and _has_image(self.instructions) else None

    def text(self) -> str:
        return self.instructions if isinstance(self.instructions, str) else _written(self.instructions)


class DecisionPredicate(_QuestionIn):
    """A statement that may hold, or a yes/no question."""

    type: Literal["predicate"]

    def read(self) -> TypedQuestion:
        return TypedQuestion(kind="predicate", text=self.text(), problem=self.problem())


class DecisionOption(_In):
    value: StrictBool | StrictStr
    description: Text | None = None


class DecisionChoice(_QuestionIn):
    """One of several."""

    type: Literal["choice"]
    choices: Annotated[list[DecisionOption], Field(min_length=2)]

    @field_validator("choices")
    @classmethod
    def _differ(cls, choices: list[DecisionOption]) -> list[DecisionOption]:
        if len({(type(option.value), option.value) for option in choices}) < len(choices):
            raise PydanticCustomError("choices_unique", "Each choice should be unique")
        return choices

    def read(self) -> TypedQuestion:
        options = tuple(Option(value=one.value, text=_named(_word(one.value), one.description)) for one in self.choices)
        return TypedQuestion(kind="choice", text=self.text(), options=options, problem=self.problem())


class DecisionLevel(_In):
    label: Text
    description: Text | None = None


class DecisionScore(_QuestionIn):
    """A level."""

    type: Literal["score"]
    levels: Annotated[list[DecisionLevel], Field(min_length=1)]
    """Lowest first."""

    def read(self) -> TypedQuestion:
        options = tuple(Option(value=one.label, text=_named(one.label, one.description)) for one in self.levels)
        return TypedQuestion(kind="score", text=self.text(), options=options, problem=self.problem())


AnyDecision = Annotated[DecisionPredicate | DecisionChoice | DecisionScore, Field(discriminator="type")]


class DecisionRequest(_In):
    """`null` and blank texts mean the default."""

    model: Maybe = None
    """Clients send what they were set up with; the loaded model answers whatever the name."""
    input: Text | list[DecisionItem]
    """What the questions are about: for reranking the query, or an `input_json` object with `query` and documents."""
    questions: Annotated[list[AnyDecision], Field(min_length=1)]
    instruction: Maybe = None
    """Ours: takes the place of the model's default instruction, as in a rerank request."""


def read_decisions(body: object) -> Questions:
    """Raises Refused (422) for wrong types, InputError for a blank text."""
    try:
        request = DecisionRequest.model_validate(body)
        state = _state(request.input)
        questions = {str(index): question.read() for index, question in enumerate(request.questions)}
    except ValidationError as error:
        raise Refused(422, " ".join(first_problem(error, body).split()), INVALID) from error
    except CannotSay as error:
        raise Refused(422, f"input: {error}", INVALID) from error
    names = [question.name for question in request.questions]
    unheeded = sorted(set(request.model_extra or {}) - _HEARD)
    return Questions(state, questions, request.model, request.instruction, unheeded, names)


def _state(sent: str | list[DecisionItem]) -> Subject:
    if isinstance(sent, str):
        if not sent.strip():
            raise InputError("input is blank: say what the questions are about")
        return Subject(sent)
    every = [part for item in sent for part in item.parts()]
    if _has_image(every):
        return Subject("", problem=IMAGE)
    if len(every) == 1 and isinstance(every[0], JsonPart):
        return Subject(every[0].data)
    if len(sent) == 1:
        return Subject(_written(every))
    return Subject("\n".join(f"{item.role or item.type}: {_written(item.parts())}" for item in sent))


def _has_image(parts: Sequence[Part]) -> bool:
    return any(isinstance(part, ImagePart) for part in parts)


def _written(parts: Sequence[Part]) -> str:
    return "\n".join(map(_part_text, parts))


def _part_text(part: Part) -> str:
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, RefusalPart):
        return part.refusal
    return written_out(part.data) if isinstance(part, JsonPart) else ""


def _named(name: str, says: str | None) -> str:
    return name if says is None else f"{name}: {says}"


def _word(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value


# --- what is answered ------------------------------------------------------------------------------------------------


class DecisionPredicateAnswer(Record):
    type: Literal["predicate"] = "predicate"
    name: str | None
    probability: float
    """The score of the pair, as `/v1/rerank` has it."""


class OptionProbability(Record):
    value: str | bool
    probability: float


class DecisionChoiceAnswer(Record):
    type: Literal["choice"] = "choice"
    name: str | None
    choice: str | bool
    confidence: float
    """The choice's share of `probabilities`, but no more than its own score: low where two fit, and where none does."""
    probabilities: tuple[OptionProbability, ...]


class LevelProbability(Record):
    value: int
    label: str
    probability: float


class DecisionScoreAnswer(Record):
    type: Literal["score"] = "score"
    name: str | None
    score: float
    """The expected level, counted from 0."""
    confidence: float
    probabilities: tuple[LevelProbability, ...]


class DecisionRefusal(Record):
    """This question has no answer, the others have."""

    type: Literal["refusal"] = "refusal"
    name: str | None
    reason: str
    """Ours."""


DecisionAnswer = DecisionPredicateAnswer | DecisionChoiceAnswer | DecisionScoreAnswer | DecisionRefusal


class InputDetails(Record):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Record):
    reasoning_tokens: int


class DecisionUsage(Record):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    """0: nothing is written."""
    output_tokens_details: OutputDetails
    total_tokens: int


class DecisionResponse(Record):
    id: str
    model: str
    answers: tuple[Annotated[DecisionAnswer, Field(discriminator="type")], ...]
    """In the order of the questions."""
    usage: DecisionUsage
    meta: Meta


def decisions_answer(request_id: str, model: str, asked: Questions, decided: Decided) -> dict[str, Any]:
    """The JSON answer."""
    named = zip(asked.labels, asked.questions.items(), strict=True)
    body = DecisionResponse(
        id=request_id,
        model=model,
        answers=tuple(_answer(label, question, decided.answers[key]) for label, (key, question) in named),
        usage=DecisionUsage(
            input_tokens=decided.used.prompt_tokens,
            input_tokens_details=InputDetails(cached_tokens=decided.used.cached_tokens, cache_write_tokens=0),
            output_tokens=decided.used.written_tokens,
            output_tokens_details=OutputDetails(reasoning_tokens=0),
            total_tokens=decided.used.prompt_tokens + decided.used.written_tokens,
        ),
        meta=meta_of(asked, decided, model),
    )
    return body.model_dump(mode="json") | {"meta": body.meta.model_dump(mode="json", exclude_unset=True)}


def _answer(name: str | None, question: TypedQuestion, found: TypedAnswer | str) -> DecisionAnswer:
    if isinstance(found, str):
        return DecisionRefusal(name=name, reason=found)
    if question.kind == "predicate":
        return DecisionPredicateAnswer(name=name, probability=found.probabilities[0])
    pairs = list(zip(question.options, found.probabilities, strict=True))
    if question.kind == "choice":
        return DecisionChoiceAnswer(
            name=name,
            choice=question.options[found.best].value,
            confidence=found.confidence,
            probabilities=tuple(OptionProbability(value=option.value, probability=p) for option, p in pairs),
        )
    levels = enumerate(pairs)
    return DecisionScoreAnswer(
        name=name,
        score=found.expected,
        confidence=found.confidence,
        probabilities=tuple(LevelProbability(value=n, label=str(one.value), probability=p) for n, (one, p) in levels),
    )
