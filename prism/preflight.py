"""What a call would take, before it is made: tokens, time, and what would be cut. The model computes nothing.

The prompts are those of the call itself, so `prompt_tokens` is what judging the documents will take, to the token; a
document that the engine then cannot judge takes none. What evidence takes is not known before the scores are: those
figures are bounds, and no call passes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from prism.engines.timed import Timed
from prism.judging import Pair
from prism.options import Call
from prism.query import AskedQuery
from prism.quoting import sentence_quotes
from prism.sourcing import EVIDENCE_WINDOWS, MIN_EVIDENCE_TOKENS
from prism.template import Template
from prism.types import Document, QueryCut, Record, Truncation


class DocumentCut(Record):
    """A document that would be cut."""

    index: int
    id: str | None = None
    truncation: Truncation


class DocumentProblem(Record):
    """A document that could not be judged."""

    index: int
    id: str | None = None
    error: str


class Preflight(Record):
    """What `Reranker.rerank` would take with the same arguments."""

    model: str
    query: str
    """As the model would read it."""
    instruction: str | None = None
    documents: int
    """How many would be judged."""
    prompt_tokens: int
    """Of all prompts that judge documents: exact."""
    evidence_prompt_tokens: int
    """Of the prompts of quoted evidence: at most."""
    written_tokens: int
    """Of what the model would write: at most."""
    judging_seconds: float | None
    """An estimate: at the speed of this model in recent calls, without waiting for others; None before the first."""
    evidence_seconds: float | None
    """Likewise, for as much evidence as there can be."""
    query_cuts: tuple[QueryCut, ...] = ()
    cut: tuple[DocumentCut, ...] = ()
    errors: tuple[DocumentProblem, ...] = ()
    warnings: tuple[str, ...] = ()


def foresee(
    name: str,
    template: Template,
    asked: AskedQuery,
    call: Call,
    pairs: Sequence[Pair],
    max_prompt_tokens: int | None,
    timed: Timed,
    warnings: Sequence[str],
) -> Preflight:
    """What the call with these rendered pairs would take of the model `name`."""
    tokens = sum(pair.judgment.usage.prompt_tokens for pair in pairs)
    quoting, writing = evidence_bounds(template, asked.text, pairs, call, max_prompt_tokens)
    reading, judged = timed.reading, [pair.judgment for pair in pairs]
    return Preflight(
        model=name,
        query=asked.text,
        instruction=call.instruction,
        documents=sum(bool(pair.windows) for pair in pairs),
        prompt_tokens=tokens,
        evidence_prompt_tokens=quoting,
        written_tokens=writing,
        judging_seconds=reading.seconds(tokens),
        evidence_seconds=timed.writing.seconds(writing) if writing else reading.seconds(quoting),
        query_cuts=asked.cuts,
        cut=tuple(DocumentCut(index=j.index, id=j.id, truncation=j.truncation) for j in judged if j.truncation),
        errors=tuple(DocumentProblem(index=j.index, id=j.id, error=j.error) for j in judged if j.error),
        warnings=tuple(warnings),
    )


class Bounds(NamedTuple):
    """What evidence takes at most, in tokens."""

    prompt_tokens: int
    written_tokens: int


def evidence_bounds(
    template: Template,
    query: str,
    pairs: Sequence[Pair],
    call: Call,
    max_prompt_tokens: int | None,
) -> Bounds:
    """Whichever documents turn out to be worth it: the dearest ones are counted."""
    counts = [count for count in (call.top_n, call.evidence_top_n) if count is not None]
    readable = [pair for pair in pairs if pair.windows]
    most = min([len(readable), *counts])
    budget = call.evidence_tokens
    if call.evidence is None or not most or (budget is not None and budget < MIN_EVIDENCE_TOKENS):
        return Bounds(0, 0)
    if call.evidence == "written":
        windows = sorted((min(len(pair.windows), EVIDENCE_WINDOWS) for pair in readable), reverse=True)
        written = sum(windows[:most]) * template.spec.max_written_tokens
        return Bounds(0, written if budget is None else min(written, budget))

    def cost(sentence: str) -> int:
        document = Document(text=sentence)
        return len(template.render(query, document, instruction=call.instruction, max_tokens=max_prompt_tokens).ids)

    limit = math.inf if call.max_total_tokens is None else call.max_total_tokens
    dearest, asked = list[int](), 0
    for pair in readable:
        heappush(dearest, _quoting_tokens(template, pair, cost))
        if len(dearest) > most:
            heappop(dearest)
        asked = sum(dearest)
        if asked >= limit:
            return Bounds(int(limit), 0)
    return Bounds(asked, 0)


def _quoting_tokens(template: Template, pair: Pair, cost: Callable[[str], int]) -> int:
    """Prompt tokens of a document's sentences, in the dearest windows of it that could give evidence."""
    windows = [
        sum(cost(quote.text) for quote in sentence_quotes(template, pair.document.text, [window]))
        for window in pair.windows
    ]
    if len(windows) == 1 and len(sentence_quotes(template, pair.document.text, pair.windows)) < 2:
        return 0
    return sum(sorted(windows, reverse=True)[:EVIDENCE_WINDOWS])
