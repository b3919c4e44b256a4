"""How single fields of a request are read, and what the published schema says of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from prism.query import ROLES
from prism.text import clean
from prism.types import Side

_NUMERAL = r"^\s*[+-]?\d+(\.0*)?\s*$"
_DECIMAL = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_TRUTHS = dict.fromkeys(("true", "yes", "on", "t", "y", "1"), True)
_TRUTHS |= dict.fromkeys(("false", "no", "off", "f", "n", "0"), False)


def encodable(value: object) -> object:
    return clean(value) if isinstance(value, str) else value


def unsaid(value: object) -> object:
    """What a form leaves empty was not said."""
    return None if isinstance(value, str) and not value.strip() else value


def switched(value: object) -> object:
    """true and false, and what stands for them."""
    if isinstance(value, str):
        return unsaid(_TRUTHS.get(value.strip().lower(), value))
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else value


def not_truth(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


def _query_read(value: object) -> object:
    """A text, or an object of fields, which `Reranker` reads; Jina's clients may send `{"text": ...}`."""
    if isinstance(value, dict):
        if isinstance(value.get("text"), str) and "question" not in value:
            return clean(value["text"])
        if "question" in value:
            return value
    elif isinstance(value, str):
        return clean(value)
    raise PydanticCustomError("query_type", "Input should be a valid string or {question, reason, conversation}")


def _published(*kinds: dict[str, Any]) -> WithJsonSchema:
    """JSON schema of an optional scalar, with all that is read as one."""
    return WithJsonSchema({"anyOf": [*kinds, {"type": "string", "pattern": r"^\s*$"}, {"type": "null"}]})


def _published_whole(least: int) -> WithJsonSchema:
    return _published({"type": "integer", "minimum": least}, {"type": "string", "pattern": _NUMERAL})


Text = Annotated[str, BeforeValidator(encodable)]
"""A string; a lone surrogate, legal in JSON but in no encoding, is replaced one for one."""
_SAID = {"type": "string", "pattern": r"\S"}
_FIELD_LIMIT = {"max_tokens": {"type": "integer", "minimum": 1}}
_FIELD = {
    "anyOf": [
        {"type": "string"},
        {"type": "object", "properties": {"text": {"type": "string"}, **_FIELD_LIMIT}, "required": ["text"]},
        {"type": "null"},
    ]
}
_TURNS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"role": {"enum": list(ROLES)}, "content": {"type": "string"}},
        "required": ["role", "content"],
    },
}
_TALK = {
    "anyOf": [
        *_FIELD["anyOf"],
        _TURNS,
        {"type": "object", "properties": {"text": _TURNS, **_FIELD_LIMIT}, "required": ["text"]},
    ]
}
Query = Annotated[
    str | dict[str, Any],
    BeforeValidator(_query_read),
    WithJsonSchema(
        {
            "anyOf": [
                _SAID,
                {"type": "object", "properties": {"text": _SAID}, "required": ["text"]},
                {
                    "type": "object",
                    "properties": {
                        "question": {"anyOf": [_SAID, _FIELD["anyOf"][1]]},
                        "reason": _FIELD,
                        "conversation": _TALK,
                    },
                    "required": ["question"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
Maybe = Annotated[Text | None, BeforeValidator(unsaid)]
"""A string; a blank one counts as none."""
# Scalars are read as FastAPI's servers read them, which clients were written against: "true" and 1 are true, "3" and
# 3.0 are 3. Bounds are published here and kept by `Reranker`, which answers 400 in words of its own.
Whole = Annotated[int, Field(strict=False), BeforeValidator(not_truth)]
Real = Annotated[float, Field(strict=False), BeforeValidator(not_truth)]
Count = Annotated[Whole | None, BeforeValidator(unsaid), _published_whole(1)]
CountOrZero = Annotated[Whole | None, BeforeValidator(unsaid), _published_whole(0)]
AnyWhole = Annotated[
    Whole | None, BeforeValidator(unsaid), _published({"type": "integer"}, {"type": "string", "pattern": _NUMERAL})
]
CountOrAll = Annotated[Whole | None, BeforeValidator(unsaid), _published_whole(-1)]
Fraction = Annotated[
    Real | None,
    BeforeValidator(unsaid),
    _published({"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": _DECIMAL}),
]
Switch = Annotated[bool | None, BeforeValidator(switched), _published({"type": "boolean"}, {"enum": [*_TRUTHS, 1, 0]})]
SideIn = Annotated[
    Side | None,
    BeforeValidator(lambda value: value.strip().lower() or None if isinstance(value, str) else value),
    _published({"enum": ["left", "right", "Left", "Right"]}),
]
AnyDocument = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {
                        "text": {"type": "string"},
                        "id": {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
                        "title": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    },
                },
                {},
            ],
            "description": "A text (YAML is one) or an object. With `rank_fields` an object's text is made of the"
            " fields named there; an object without `text` is read as YAML (id and title apart), nested objects too."
            " Anything else is an `error` on its own result.",
        }
    ),
]
