"""Reading what an OpenAI-compatible server sends back: an answer, or the failure in its place.

What a model wrote is read in one way wherever an answer counts (`own_words`): thoughts, control tokens and invisible
characters around it are not part of it.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prism.llm.classify import Caller, read_error, without_key
from prism.llm.failures import Unavailable
from prism.types import Usage

_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060\u00ad\u200e\u200f"
_THOUGHT = "think|thinking|thought|reasoning|reflection"
_CLOSED = re.compile(rf"</(?:\w+:)?(?:{_THOUGHT})>|\[/(?:{_THOUGHT})\]|\u25c1/think\u25b7", re.IGNORECASE)
_OPENED = re.compile(rf"<(?:\w+:)?(?:{_THOUGHT})>|\[(?:{_THOUGHT})\]|\u25c1think\u25b7", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")
_CONTROL = re.compile(r"<[|\uff5c][^<>|\uff5c]{1,40}[|\uff5c]>|</?s>|<(?:end|start)_of_turn>|<eos>|\[/?INST\]")
"""Tokens of chat templates, which some servers leave at the ends of an answer."""
_ESCAPE = re.compile(r"""\\["\\nrt]""")
"""What JSON writes for quotation marks, backslashes, ends of lines and tabs."""
_ROUNDING = 1e-3
"""So far above 0 a log-probability may come out."""
_MOST_TOKENS = 2**40
"""More than this is no count."""


def own_words(text: str) -> str:
    """What an answer says, without the thoughts before it, control tokens around it and what cannot be seen.

    Templates may put the opening tag into the prompt: then only the closing one is there. A thought that is not closed
    is all there is, and no answer: the result is empty. Of channels (`<|channel|>final<|message|>`) the last counts, if
    it is the final one.
    """
    channels = list(_CHANNEL.finditer(text))
    if channels:
        last = channels[-1]
        text = text[last.end() :] if last[1].lower() == "final" else ""
    closed = list(_CLOSED.finditer(text))
    if closed:
        text = text[closed[-1].end() :]
    elif _OPENED.match(_stripped(text)):
        return ""
    return _stripped(text)


def as_shown(text: str, shown: Sequence[str]) -> str:
    """What a model wrote about texts that it was shown in JSON, without that JSON's escapes (`\\"`, `\\n`).

    An escape that one of the texts has itself is no such: what is copied from them stays as it is.
    """

    def read(escape: re.Match[str]) -> str:
        theirs = any(escape[0] in one for one in shown)
        return escape[0] if theirs else str(json.loads(f'"{escape[0]}"'))

    return _ESCAPE.sub(read, text)


def visible(text: str) -> str:
    """The text without zero-width characters and byte order marks, wherever they are."""
    return text.translate(dict.fromkeys(map(ord, _INVISIBLE)))


def _stripped(text: str) -> str:
    """Without control tokens, spaces and invisible characters at both ends."""
    while True:
        bare = text.strip().strip(_INVISIBLE)
        head = _CONTROL.match(bare)
        bare = bare[head.end() :] if head else bare
        tail = next((found for found in _CONTROL.finditer(bare) if found.end() == len(bare)), None)
        bare = bare[: tail.start()] if tail else bare
        if bare == text:
            return bare
        text = bare


class Reply(NamedTuple):
    """A complete answer, as the server sent it."""

    text: str
    finish: str
    usage: Usage | None
    """None when the server did not count."""
    problem: str | None = None
    """refused, empty or cut_off: nothing in it to read."""
    first: Mapping[str, float] | None = None
    """The likeliest first tokens and their log-probabilities, where they were asked for and given."""


def read_reply(caller: Caller, body: bytes) -> Reply:
    """Raises Unavailable when the body is not a whole JSON object, or what its `error` says."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise Unavailable("cut_body", f"{caller.name}: the answer is not whole JSON ({len(body)} bytes)", paid=True)
    if data.get("error"):  # some gateways say so under status 200
        code = data["error"].get("code") if isinstance(data["error"], dict) else None
        raise read_error(caller, code if isinstance(code, int) and code >= 400 else 500, {}, body)
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    text, finish = without_key(_text(message.get("content")), caller.key), str(choice.get("finish_reason") or "stop")
    reply = Reply(text, finish, _usage(data.get("usage")), first=_first_tokens(choice.get("logprobs")))
    if message.get("refusal") or finish == "content_filter":
        return reply._replace(problem="refused")
    if not text.strip() and reply.first is None:
        return reply._replace(problem="cut_off" if finish == "length" else "empty")
    return reply


def _text(content: object) -> str:
    """A string, or the texts of a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return ""


def _first_tokens(logprobs: object) -> dict[str, float] | None:
    """Token -> log-probability, tokens of one spelling together; None where the server gives none."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    listed = first.get("top_logprobs") if isinstance(first, dict) else None
    found: dict[str, float] = {}
    for one in listed if isinstance(listed, list) else ():
        token, value = (one.get("token"), one.get("logprob")) if isinstance(one, dict) else (None, None)
        if not isinstance(token, str) or not isinstance(value, int | float) or isinstance(value, bool):
            continue
        # Compared as it is: NaN is nowhere, and integers of JSON may be greater than any float.
        if -sys.float_info.max <= value <= _ROUNDING:
            found[token] = max(min(float(value), 0.0), found.get(token, -math.inf))
    return found or None


def _usage(counts: object) -> Usage | None:
    """Token counts. Where the total says more than prompt and completion, the rest was written unseen and is billed."""
    if not isinstance(counts, dict):
        return None
    prompt, written = _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))
    if prompt is None:
        return None
    total = _count(counts.get("total_tokens")) or 0
    details = counts.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    cached = cached or _count(counts.get("prompt_cache_hit_tokens")) or 0
    return Usage(prompt_tokens=prompt, cached_tokens=cached, written_tokens=max(written or 0, total - prompt))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS else None
