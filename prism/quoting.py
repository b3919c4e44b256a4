"""Quoted evidence: sentences of the document, word for word, chosen by the model's own yes or no to each.

Works with every yes/no reranker, also those that were never taught to write: nothing is generated. Each sentence is
judged as if it were the document (sentence-level relevance, as in Wadden et al. 2020, "Fact or Fiction", section 5.1,
with the reranker's own score in place of a trained selector). There is no contribution.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from functools import partial
from itertools import accumulate, islice, pairwise
from typing import NamedTuple

from anyio import to_thread

from prism.engines.base import Engine, LabelLogits
from prism.errors import DocumentError
from prism.evidence.sentences import UNSPACED_CHAR, sentences
from prism.judging import read_score, score_prompts
from prism.result import Judged
from prism.sourcing import MIN_EVIDENCE_TOKENS, EvidenceRequest
from prism.template import Template
from prism.text import clean
from prism.types import Document, Judgment, Outcome, Usage
from prism.windows import Window

MOST_QUOTES = 3
"""Sentences from one document: what a reader takes in at a glance."""
YES = 0.5
"""Score of a sentence where yes becomes likelier than no; the caller's threshold is for whole documents."""
_WAVE_SENTENCES = 256
"""Judged in one call of the engine, so that the first quotes are known before the last sentences are read."""


class Quote(NamedTuple):
    """A sentence of a document."""

    start: int
    """Where it begins; orders quotes as they stand in the document."""
    text: str
    tokens: int = 0


class _Asked(NamedTuple):
    """A document of a wave."""

    rank: int
    quotes: list[Quote]
    """The sentences that fit."""
    prompts: list[list[int]]
    """One a sentence; none where there is nothing to choose from."""
    most_tokens: int
    """Its quotes may take so many together."""


class Quoter:
    """Quotes from ranked documents, in rank order, until the budget is spent.

    A wave, whose sentences are judged together, holds as many documents as the budget surely covers. What would go past
    `max_total_tokens` is not quoted.
    """

    def __init__(self, template: Template, engine: Engine, request: EvidenceRequest) -> None:
        self._template, self._engine, self._request = template, engine, request
        self.judgments = [pair.judgment for pair in request.ranked]
        self.usage = Usage()
        self._chosen = request.ranks()
        self._waiting = list(self._chosen)
        self._left = request.budget
        limit = request.max_total_tokens
        self._room = None if limit is None else limit - request.spent_tokens
        self._past_limit = 0

    def warnings(self) -> list[str]:
        """Says how many documents the limit, and how many the budget, left without evidence."""
        missed = sum(self.judgments[rank].outcome is Outcome.NOT_WRITTEN for rank in self._chosen) - self._past_limit
        request = self._request
        return [
            *request.missing(
                self._past_limit, f"quoting would have passed max_total_tokens={request.max_total_tokens}"
            ),
            *request.missing_by_budget(missed),
        ]

    async def events(self) -> AsyncGenerator[Judged, None]:
        """Each document's judgment as soon as its wave is judged."""
        while self._waiting and (self._left is None or self._left >= MIN_EVIDENCE_TOKENS):
            wave = await to_thread.run_sync(self._next_wave)
            output = await score_prompts(self._engine, [ids for asked in wave for ids in asked.prompts])
            costs = _costs(wave, output.cached_tokens)
            labels = iter(output.labels)
            for asked, cost in zip(wave, costs, strict=True):
                answers = list(islice(labels, len(asked.prompts)))
                self.judgments[asked.rank] = await to_thread.run_sync(self._judgment, asked, answers, cost)
                self.usage += cost
                yield Judged(judgment=self.judgments[asked.rank])

    def _next_wave(self) -> list[_Asked]:
        """The next documents; they leave `_waiting`, with those for which there is no budget or no room."""
        most = self._template.spec.max_written_tokens
        cap = most if self._left is None else min(most, self._left)
        wave, surely, count = list[_Asked](), 0, 0
        while self._waiting:
            quotes = self._quotes(self._waiting[0])
            fitting = [quote for quote in quotes if quote.tokens <= cap]
            may_take = min(cap, sum(sorted(quote.tokens for quote in fitting)[-MOST_QUOTES:]))
            full = self._left is not None and surely + may_take > self._left
            if wave and (full or count + len(fitting) > _WAVE_SENTENCES):
                break
            rank = self._waiting.pop(0)
            if not fitting and any(quote.tokens <= most for quote in quotes):
                continue  # what is left of the budget buys none of them
            prompts = self._prompts(fitting)
            if prompts is None:
                self._past_limit += 1
                continue
            surely, count = surely + may_take, count + len(prompts)
            wave.append(_Asked(rank, fitting, prompts, cap))
        return wave

    def _quotes(self, rank: int) -> list[Quote]:
        return sentence_quotes(self._template, self._request.ranked[rank].document.text, self._request.windows(rank))

    def _prompts(self, quotes: Sequence[Quote]) -> list[list[int]] | None:
        """A prompt for each as if it were the document, unless they are past `max_total_tokens`; a choice of one needs
        none."""
        if len(quotes) < 2:
            return []
        request, prompts, tokens = self._request, list[list[int]](), 0
        render = partial(self._template.render, instruction=request.instruction, max_tokens=request.max_prompt_tokens)
        for quote in quotes:
            prompts.append(render(request.query, Document(text=quote.text)).ids)
            tokens += len(prompts[-1])
            if self._room is not None and tokens > self._room:
                return None
        if self._room is not None:
            self._room -= tokens
        return prompts

    def _judgment(self, asked: _Asked, answers: Sequence[LabelLogits | DocumentError], cost: Usage) -> Judgment:
        """With the best sentences in it; their tokens leave the budget."""
        scores = [_score(answer) for answer in answers] if asked.prompts else [1.0 for _ in asked.quotes]
        taken = choose_quotes(asked.quotes, scores, asked.most_tokens)
        if self._left is not None:
            self._left -= sum(quote.tokens for quote in taken)
        evidence = passage(taken) or None
        judgment = self.judgments[asked.rank]
        update = {
            "outcome": Outcome.COMPLETE if evidence else Outcome.CUT_OFF,
            "evidence": evidence,
            "evidence_source": "quoted",
            "check": self._request.checked(asked.rank, evidence),
            "usage": judgment.usage + cost,
        }
        return judgment.model_copy(update=update)


def sentence_quotes(template: Template, text: str, windows: Sequence[Window]) -> list[Quote]:
    """The sentences of a document in these windows of it, in reading order, equal ones once."""
    found = dict[str, Quote]()
    for window in sorted(windows, key=lambda window: window.start):
        borders = sentences(text[window.start : window.end])
        if (cut := window.prompt.truncation) and len(borders) > 1:
            borders.pop(0 if cut.start else -1)  # cut off somewhere
        for start, end in borders:
            sentence = clean(text[window.start + start : window.start + end])
            found.setdefault(sentence, Quote(window.start + start, sentence, template.count(sentence)))
    return list(found.values())


def _score(answer: LabelLogits | DocumentError) -> float | None:
    try:
        return read_score(answer)
    except DocumentError:
        return None


def _costs(wave: Sequence[_Asked], cached_tokens: int) -> list[Usage]:
    """What each document's prompts took; those not computed again are shared out by their length."""
    prompts = [sum(map(len, asked.prompts)) for asked in wave]
    ends = [0, *(cached_tokens * tokens // max(1, sum(prompts)) for tokens in accumulate(prompts))]
    cached = [end - start for start, end in pairwise(ends)]
    return [Usage(prompt_tokens=p, cached_tokens=c) for p, c in zip(prompts, cached, strict=True)]


def choose_quotes(quotes: Sequence[Quote], scores: Sequence[float | None], most_tokens: int) -> list[Quote]:
    """The best sentence and up to two more that the model says yes to, best first, within `most_tokens` together.

    `scores`: in [0, 1], None where the sentence could not be judged. The best one is taken whatever it scores: the
    document as a whole has been judged relevant.
    """
    judged = [(score, quote) for score, quote in zip(scores, quotes, strict=True) if score is not None]
    judged.sort(key=lambda pair: (-pair[0], pair[1].start))
    best = [quote for rank, (score, quote) in enumerate(judged[:MOST_QUOTES]) if rank == 0 or score >= YES]
    taken, tokens = list[Quote](), 0
    for quote in best:
        if tokens + quote.tokens <= most_tokens:
            taken.append(quote)
            tokens += quote.tokens
    return taken


def passage(quotes: Sequence[Quote]) -> str:
    """Quotes in reading order, with a space between where their script has one."""
    text = ""
    for quote in sorted(quotes):
        gap = "" if not text or _ends_unspaced(text) else " "
        text += gap + quote.text
    return text


def _ends_unspaced(text: str) -> bool:
    return bool(UNSPACED_CHAR.search(text[-2:]))
