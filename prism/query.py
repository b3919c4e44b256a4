"""A query in several fields: what is asked, why, and the conversation it came up in; each with a budget of tokens.

    {"question": "how long is it?", "reason": "to quote it to a customer", "conversation": [{"role", "content"}, …]}

A field is a text, or `{"text": …, "max_tokens": …}`; a conversation may also be a list of turns. What the model reads
is one text of one line a field:

    how long is it?
    Reason: to quote it to a customer
    Conversation: user: "is there a warranty?" assistant: "yes"

Injection: white space of every kind in a field becomes a space, so that none can begin a line, and what is said in a
turn is a JSON string, so that it cannot begin a turn. A question alone is read as it is, like a query that is a text.
No packaged model was taught this form; the question comes first because queries are what they know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

from prism.errors import InputError
from prism.inputs import kind_of, read_count, read_text
from prism.template import Template
from prism.text import clean
from prism.types import QueryCut, QueryField, Side

REASON_TOKENS, CONVERSATION_TOKENS = 128, 512
"""Budgets of these fields where the caller states none. A question has none: it is read whole."""
_FIELDS: tuple[QueryField, ...] = get_args(QueryField)
"""In the order in which they are read, and in which `max_query_tokens` is spent."""
_LABELS: Mapping[QueryField, str] = {"question": "", "reason": "Reason: ", "conversation": "Conversation: "}
_SIDES: Mapping[QueryField, Side] = {"question": "right", "reason": "right", "conversation": "left"}
_BUDGETS: Mapping[QueryField, int] = {"reason": REASON_TOKENS, "conversation": CONVERSATION_TOKENS}
ROLES = ("user", "assistant", "system", "tool")


class Field(NamedTuple):
    """One field of a query, in one line."""

    text: str
    max_tokens: int | None


class AskedQuery(NamedTuple):
    """What the model reads as the query."""

    text: str
    question: str
    """The question in it."""
    cuts: tuple[QueryCut, ...] = ()

    def warnings(self) -> list[str]:
        ends = {"right": "first", "left": "last"}
        return [
            f"the {cut.field} is over its budget: its {ends[_SIDES[cut.field]]} {cut.read_chars:,} of"
            f" {cut.total_chars:,} characters were read"
            for cut in self.cuts
        ]


def read_query(query: object, max_tokens: int | None, template: Template) -> AskedQuery:
    """The query within its budgets; `max_tokens`: of all its fields together, counted as the template reads them.

    Raises InputError for what is no query, and for a budget that leaves nothing of the question.
    """
    fields: dict[QueryField, Field] = {}
    if isinstance(query, Mapping):
        if unknown := sorted(str(name) for name in set(query) - set(_FIELDS)):
            raise InputError(f"query has no field {unknown[0][:40]!r}: expected {', '.join(_FIELDS)}")
        said = {name: query[name] for name in _FIELDS if query.get(name) is not None}
        read = {name: _field(f"query.{name}", value, _BUDGETS.get(name)) for name, value in said.items()}
        fields = {name: field for name, field in read.items() if field.text.strip()}
        if "question" not in fields:
            raise InputError("query has no question: say what to look for")
        if len(fields) > 1:
            fields = {name: field._replace(text=_one_line(field.text)) for name, field in fields.items()}
    else:
        fields["question"] = Field(read_text("query", query), None)
    return _fitted(fields, max_tokens, template)


def _field(name: str, value: object, default: int | None) -> Field:
    if isinstance(value, Mapping):
        if unknown := sorted(str(key) for key in set(value) - {"text", "max_tokens"}):
            raise InputError(f"{name} has no {unknown[0][:40]!r}: expected text and max_tokens")
        limit = value.get("max_tokens")
        budget = default if limit is None else read_count(f"{name}.max_tokens", limit)
        return Field(_text(name, value.get("text")), budget)
    return Field(_text(name, value), default)


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return clean(value)
    talk = name == "query.conversation"
    if talk and isinstance(value, Sequence) and not isinstance(value, bytes):
        return " ".join(_turn(f"{name}[{at}]", turn) for at, turn in enumerate(value))
    raise InputError(f"{name} must be a string{' or a list of turns' if talk else ''}, got {kind_of(value)}")


def _turn(name: str, turn: object) -> str:
    if isinstance(turn, Mapping):
        role, content = turn.get("role"), turn.get("content")
        if role in ROLES and isinstance(content, str):
            return f"{role}: {json.dumps(_one_line(clean(content)), ensure_ascii=False)}"
    raise InputError(f"{name} must be {{role, content}}, the role one of {', '.join(ROLES)}, the content a string")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _fitted(fields: Mapping[QueryField, Field], max_tokens: int | None, template: Template) -> AskedQuery:
    """What an earlier field takes of `max_tokens` is gone for the later ones."""
    lines, cuts = dict[QueryField, str](), list[QueryCut]()
    for name, (text, budget) in fields.items():
        head = "\n".join([*lines.values(), _LABELS[name]])
        kept = _kept(head, text, budget, max_tokens, _SIDES[name], template)
        if kept:
            lines[name] = _LABELS[name] + kept
        elif name == "question":
            raise InputError("the budget of the query leaves nothing of its question: raise it")
        if len(kept) < len(text):
            cuts.append(QueryCut(field=name, read_chars=len(kept), total_chars=len(text)))
    return AskedQuery("\n".join(lines.values()), lines["question"], tuple(cuts))


def _kept(head: str, text: str, budget: int | None, max_tokens: int | None, side: Side, template: Template) -> str:
    """What of a field is within its own budget and, behind `head`, within `max_tokens`."""
    kept = text if budget is None else template.fit_text(text, budget, side)
    if max_tokens is None:
        return kept
    left = max_tokens
    while left > 0:
        kept = template.fit_text(kept, left, side)
        over = template.count_plain(head + kept) - max_tokens
        if over <= 0:
            return kept
        left = min(left, template.count_plain(kept)) - over
    return ""
