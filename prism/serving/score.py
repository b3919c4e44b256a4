"""vLLM's `/score`: how well texts fit, one with one, one with many, or pair by pair; scores only, in the order sent.

    {"text_1": "a query", "text_2": ["a document", "another"]}   one query, many documents
    {"text_1": ["q", "r"], "text_2": ["a", "b"]}                 q with a, r with b

vLLM calls the two sides by four pairs of names, and so does this. Limits, truncation and errors are those of a rerank
request; a pair that cannot be judged is an `error` on its own score.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from prism.errors import InputError
from prism.judging import cut_off
from prism.serving.body import check_count, spellings, validated
from prism.serving.dialects import Meta, UsageOut, common_names, told_score, usage
from prism.serving.http_errors import INVALID, Refused
from prism.serving.schema import RerankRequest, ignored, request_schema
from prism.text import clean
from prism.types import Judgment, Record, Usage

_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
_HEEDED = {
    *("model", "instruction", "max_prompt_tokens", "max_tokens_per_doc", "on_long_document", "raw_scores", "truncate"),
    *("truncate_prompt_tokens", "truncation", "truncation_side", "use_activation"),
    *("max_tokens_per_query", "priority"),
}


class ScoreItem(Record):
    """One pair. A pair with an `error` has the lowest score there is."""

    index: int
    object: Literal["score"]
    score: float
    error: str | None = None


class ScoreResponse(Record):
    id: str
    object: Literal["list"]
    created: int
    """Seconds since 1970."""
    model: str
    data: tuple[ScoreItem, ...]
    usage: UsageOut
    meta: Meta


class ScoreRequest(NamedTuple):
    """A score request, read."""

    request: RerankRequest
    """The settings; its documents are the second side."""
    queries: list[str | None]
    """One for every document; None where it is no text."""
    names: dict[str, str]
    """What the request called our options."""
    unheeded: list[str]
    """Fields nobody reads."""

    def groups(self) -> dict[str, list[int]]:
        """The places of each query's documents, which are judged together. A query that is no text has none."""
        found: dict[str, list[int]] = {}
        for index, query in enumerate(self.queries):
            if query is not None:
                found.setdefault(query, []).append(index)
        return found


def read_score_request(body: object, max_documents: int) -> ScoreRequest:
    """Raises Refused (422) for wrong types, InputError for numbers of texts that do not fit together."""
    renamed, names = common_names(body)
    if not isinstance(renamed, Mapping):
        raise Refused(422, "expected an object with text_1 and text_2, got something else", INVALID)
    first, second = _sides(renamed)
    queries, documents = (_several(renamed[name]) for name in (first, second))
    names |= {"query": first, "documents": second}
    check_count(documents, max_documents, names)
    if len(queries) not in (1, len(documents)):
        sizes = f"{first} has {len(queries)} texts and {second} {len(documents)}"
        raise InputError(f"{sizes}: send one with one, one with many, or as many as there are")
    texts = [_text(query) for query in queries]
    if len(queries) == 1 and texts[0] is None:
        raise Refused(422, f"{first}: expected a text that is not blank, got none", INVALID)
    heeded = {name: renamed[name] for name in _HEEDED if name in renamed}
    request = validated({**heeded, "query": texts[0] or "", "documents": documents}, names)
    request.refuse_contradictions()
    unheeded = sorted(set(renamed) - _HEEDED - {first, second})
    one_each = texts * (len(documents) if len(texts) == 1 else 1)
    return ScoreRequest(request, one_each, spellings(request, names), unheeded)


def _sides(body: Mapping[str, Any]) -> tuple[str, str]:
    for first, second in _SIDES:
        if body.get(first) is not None and body.get(second) is not None:
            return first, second
    raise Refused(422, f"expected text_1 and text_2, got {', '.join(sorted(body)[:5])[:80] or 'nothing'}", INVALID)


def _several(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(query: object) -> str | None:
    text = query.get("text") if isinstance(query, dict) else query
    return clean(text) if isinstance(text, str) and text.strip() else None


def score_answer(
    request_id: str,
    asked: ScoreRequest,
    judged: Mapping[int, Judgment],
    used: Usage,
    *,
    model: str,
    score_version: str | None,
) -> dict[str, Any]:
    """`judged`: by place; a pair without a judgment had no query."""
    nothing = Judgment(index=0, score=None, verdict=None, error=f"{asked.names['query']} has no text here")
    pairs = [judged.get(index, nothing) for index in range(len(asked.queries))]
    data = tuple(
        ScoreItem(
            index=index,
            object="score",
            score=told_score(pair, asked.request),
            **({"error": pair.error} if pair.error else {}),
        )
        for index, pair in enumerate(pairs)
    )
    warnings = asked.request.warnings(model)
    if asked.unheeded:
        warnings.append(ignored(asked.unheeded))
    if cut := [index for index, pair in judged.items() if pair.truncation]:
        side = asked.request.truncation_side or "right"
        warnings.append(cut_off(asked.names["documents"], sorted(cut), side))
    known: dict[str, Any] = {} if score_version is None else {"score_version": score_version}
    body = ScoreResponse(
        id=request_id,
        object="list",
        created=int(time.time()),
        model=model,
        data=data,
        usage=usage(used),
        meta=Meta(warnings=tuple(warnings), **known),
    )
    return body.model_dump(mode="json", exclude_unset=True)


def score_schema() -> dict[str, Any]:
    """JSON schema of a score request. OpenAPI knows it by its first pair of names."""
    known = request_schema()["properties"]
    text = {"anyOf": [{"type": "string"}, {"type": "object"}]}
    side = {"anyOf": [*text["anyOf"], {"type": "array", "minItems": 1, "items": {}}]}
    properties = {"text_1": side, "text_2": side, **{name: known[name] for name in sorted(_HEEDED)}}
    return {"type": "object", "properties": properties, "required": ["text_1", "text_2"]}
