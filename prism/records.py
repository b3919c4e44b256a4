"""What records are made of, and what is wrong with one that somebody wrote."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator


class Record(BaseModel):
    """A frozen record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Settings(Record):
    """A record of settings that people write: numbers are finite, and `true` is not the number 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name is not None:
            taken = cls.model_fields[info.field_name].annotation
            if taken is not bool and bool not in get_args(taken) and _is_number(taken):
                raise ValueError("expected a number")
        return value


def _is_number(annotation: Any) -> bool:
    return any(kind in (annotation, *get_args(annotation)) for kind in (int, float))


def first_problem(error: ValidationError, sent: object = None) -> str:
    """pydantic's first complaint in one line: where, what, and what was got.

    With `sent`, what was validated, the place is one in it: pydantic puts the branches of unions among the names.
    """
    problem = error.errors(include_url=False)[0]
    place = problem["loc"] if sent is None else _in_sent(problem["loc"], sent, missing=problem["type"] == "missing")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if not place and problem["type"] == "value_error":
        return f"{problem['ctx']['error']}{more}"  # fields that contradict each other, which it names
    where = ".".join(map(str, place)) or "top level"
    says = "Input should be an object" if problem["type"] in ("model_type", "dict_type") else problem["msg"]
    return f"{where}: {says}, got {_shorten(repr(problem.get('input')))}{more}"


def _in_sent(place: tuple[int | str, ...], sent: Any, *, missing: bool) -> list[int | str]:
    """The parts of a place that lead on in what was sent, and the name that is `missing` there."""
    found = []
    for part in place[:-1] if missing else place:
        try:
            sent = sent[part]
        except (KeyError, IndexError, TypeError):
            continue
        found.append(part)
    return [*found, *(place[-1:] if missing else ())]


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
