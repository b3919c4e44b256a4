"""What typed questions are about: a state with named parts, or a text; and which passage of it one question means.

Everything here is as large and as odd as its sender likes: what many questions need of a state is computed once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

from prism.text import clean

Document = str | dict[str, str]
"""A passage as `Reranker.arerank` takes it: a text, or text and title."""
IMAGE = "it is about an image, and this model reads text only"
QUERIES = ("query", "search_query", "user_query", "question")
"""What a state may call its query."""
_RULES = ("rubric", "instructions")
"""What a state may say about how to judge: no passage."""
_TEXTS = ("text", "content", "body", "passage", "document", "snippet")
"""Where an object keeps its text."""
_REFERENCE = re.compile(r"`([^`\n]{1,200})`")
_MOST_REFERENCES, _MOST_CONTAINERS = 50, 50
_THE_QUERY = re.compile(r"\b(?:the|this|that|given|following|user|user's|search)\s+(?:\w+\s+)?query\b", re.IGNORECASE)


class CannotSay(Exception):
    """The question has no answer here; the message says why, and quotes no text."""


class Meant(NamedTuple):
    """What one question is about."""

    query: str | None
    """The state's, if the question speaks of it."""
    document: Document
    text: str
    """The question, its reference to that document made words."""


class Subject:
    """`value`: a text, or JSON. `problem`: why nothing can be said about it."""

    def __init__(self, value: str | Mapping[str, Any] | list[Any], problem: str | None = None) -> None:
        self._value = clean(value) if isinstance(value, str) else value
        self.problem = problem
        self._read: dict[int, Document] = {}
        """Passages of the state by the identity of their values, which live as long as it does."""

    def meant_by(self, text: str) -> Meant:
        """Raises CannotSay where a question with this text is about several passages, or does not say about which."""
        if isinstance(self._value, str):
            head, colon, tail = text.partition(":")
            if not colon or not _THE_QUERY.search(head):
                return Meant(None, self._value, text)
            if not tail.strip():
                raise CannotSay("it has no passage behind its colon")
            return Meant(self._value, tail.strip(), text)
        query = self.query if self.query is not None and self._speaks_of_query(text) else None
        named = self._named_in(text)
        if len(named) > 1:
            raise CannotSay(f"it is about {len(named)} passages, and this model judges one at a time")
        for place, passage in named.items():
            return Meant(query, self._document(passage), text.replace(f"`{place}`", "the document"))
        if query is not None and self._rest:
            if isinstance(self._only, str):
                raise CannotSay(self._only)
            return Meant(query, self._only[0], text)
        return Meant(None, self._whole, text)

    def passages(self, text: str, places: list[str]) -> tuple[str, list[Document]] | None:
        """The query and the passages at `places`, if the question speaks of the query and all of them are there."""
        if self.query is None or not self._speaks_of_query(text):
            return None
        found = [self._at(place) for place in places]
        return None if None in found else (self.query, [self._document(passage) for passage in found])

    # --- the query and what is left -----------------------------------------------------------------------------------

    @cached_property
    def _name(self) -> str | None:
        state = self._value
        return next((name for name in QUERIES if isinstance(state, Mapping) and isinstance(state.get(name), str)), None)

    @cached_property
    def query(self) -> str | None:
        """The state's query, blank if it is; None where there is none."""
        return clean(self._value[self._name]) if isinstance(self._value, Mapping) and self._name else None

    def _speaks_of_query(self, text: str) -> bool:
        return re.search(rf"\b(?:{self._name}|query)\b", text, re.IGNORECASE) is not None

    @cached_property
    def _rest(self) -> Any:
        """The state without its query and rules."""
        if not isinstance(self._value, Mapping):
            return self._value
        return {key: value for key, value in self._value.items() if key != self._name and key not in _RULES}

    @cached_property
    def _whole(self) -> Document:
        return _document(self._rest) if self._rest else self.query or ""

    @cached_property
    def _only(self) -> tuple[Document] | str:
        """The passage where a question names none; where there are several, what is to be done."""
        rest = self._rest
        while isinstance(rest, Mapping | list) and _text_of(rest) is None:
            if len(rest) != 1:
                return f"it names none of {len(rest)} passages: write `documents.ID` in it"
            rest = next(iter(rest.values() if isinstance(rest, Mapping) else rest))
        return (_document(rest),)

    # --- what is named in it ------------------------------------------------------------------------------------------

    def _named_in(self, text: str) -> dict[str, Any]:
        found = dict.fromkeys(match[1] for match in islice(_REFERENCE.finditer(text), _MOST_REFERENCES + 1))
        if len(found) > _MOST_REFERENCES:
            raise CannotSay(f"it names more than {_MOST_REFERENCES} things in backticks")
        aside = (self._name, *_RULES)
        places = (place for place in found if place.partition(".")[0] not in aside)
        return {place: passage for place in places if (passage := self._at(place)) is not None}

    def _at(self, place: str) -> Any:
        """What stands at `a.b`, `a[0]` or, below one container alone, at `b`; None where nothing does."""
        if (found := _walk(self._value, place)) is not None:
            return found
        inner = [value for value in (_walk(container, place) for container in self._containers) if value is not None]
        return inner[0] if len(inner) == 1 else None

    @cached_property
    def _containers(self) -> list[Any]:
        values = self._value.values() if isinstance(self._value, Mapping) else ()
        found = list(islice((value for value in values if isinstance(value, Mapping | list)), _MOST_CONTAINERS + 1))
        return found if len(found) <= _MOST_CONTAINERS else []

    def _document(self, value: Any) -> Document:
        if id(value) not in self._read:
            self._read[id(value)] = _document(value)
        return self._read[id(value)]


def _walk(value: Any, place: str) -> Any:
    if isinstance(value, Mapping) and place in value:
        return value[place]
    for part in place.replace("[", ".").replace("]", "").split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isascii() and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _document(value: Any) -> Document:
    if (text := _text_of(value)) is not None:
        title = value.get("title")
        return {"text": clean(text), "title": clean(title)} if isinstance(title, str) and title else clean(text)
    return written_out(value)


def _text_of(value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return None
    return next((value[name] for name in _TEXTS if isinstance(value.get(name), str)), None)


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
