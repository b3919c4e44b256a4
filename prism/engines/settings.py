"""Settings of engines that callers may name: each engine's own record, read before its model is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from pydantic import ConfigDict, ValidationError

from prism.errors import InputError
from prism.records import Settings, first_problem


class EngineOptions(Settings):
    """What `engine_options` of `Reranker.load` may say. Nothing is converted: "no" is not False, nor is 0."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)


_Record = TypeVar("_Record", bound=EngineOptions)
_SHOWN = 20
"""Names in a refusal: vLLM has two hundred."""


def checked_options(engine: str, record: type[_Record], given: object) -> _Record:
    """`given`: a record, a mapping, or None. Raises InputError naming the setting that is wrong and what it may be."""
    if isinstance(given, record):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"engine_options must be an object of names and values, got {type(given).__name__}")
    said = dict(given or {})
    refuse_unknown(f"option of engine {engine}", said, record.model_fields)
    try:
        return record(**said)
    except ValidationError as error:
        raise InputError(f"engine_options of {engine}: {first_problem(error)}") from error


def refuse_unknown(kind: str, said: Iterable[object], known: Iterable[str]) -> None:
    """Raises InputError for the first name that is not known, with the one that was probably meant."""
    names = sorted(known)
    for name in said:
        if name not in names:
            close = get_close_matches(str(name), names, n=1)
            shown = ", ".join(names if len(names) <= _SHOWN else [*names[:_SHOWN], "…"])
            expected = f"did you mean {close[0]!r}?" if close else f"expected one of {shown}"
            raise InputError(f"no {kind} is called {str(name)[:40]!r}: {expected}")
