"""The second phase: contribution and evidence for the documents worth it, reported as they are written."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Literal, NamedTuple

from anyio import to_thread

from prism.engines.base import Engine, WriteRequest
from prism.errors import EngineError
from prism.judging import Pair
from prism.result import Contributed, Judged
from prism.template import Template, Written
from prism.text import clean
from prism.types import EvidenceCheck, Judgment, Outcome, Usage
from prism.windows import Window

MIN_WRITE_TOKENS = 32
"""What is left of an evidence budget below this buys no passage worth reading."""
EVIDENCE_WINDOWS = 3
"""At most so many windows of one document are written about."""


class _Task(NamedTuple):
    """One text to write."""

    rank: int
    window: Window
    first: bool
    """Whether this is the document's best window, which states the contribution."""


class _Text(NamedTuple):
    """A written text so far."""

    text: str = ""
    tokens: int = 0
    finish: Literal["stop", "length"] | None = None


class Writer:
    """Writes for ranked pairs, in rank order, until the budget is spent. `judgments` is the state of them all.

    A wave holds as many texts as the budget surely covers; what a wave leaves over pays for the next.
    """

    def __init__(
        self,
        template: Template,
        engine: Engine,
        query: str,
        ranked: Sequence[Pair],
        *,
        threshold: float,
        top_n: int | None,
        budget: int | None,
        check: bool,
    ) -> None:
        """`threshold`: documents and windows below it are not written about. `budget`: tokens in all."""
        self._template, self._engine, self._query, self._ranked = template, engine, query, ranked
        self._budget, self._given, self._check = budget, budget, check
        self.judgments = [pair.judgment for pair in ranked]
        chosen = [i for i, j in enumerate(self.judgments) if j.verdict == "yes" and (j.score or 0.0) >= threshold]
        self._chosen = chosen[:top_n]
        self._waiting = [task for i in self._chosen for task in _tasks(i, ranked[i], threshold)]
        self._open = {i: sum(task.rank == i for task in self._waiting) for i in self._chosen}
        self._written: dict[int, list[tuple[_Task, _Text]]] = {}

    def warnings(self) -> list[str]:
        """Says how many documents the budget left without evidence."""
        missed = sum(self.judgments[i].outcome is Outcome.NOT_WRITTEN for i in self._chosen)
        if not missed:
            return []
        wanted = len(self._chosen)
        return [
            f"evidence_tokens={self._given} was spent: {missed} of {wanted} documents with verdict yes have no evidence"
        ]

    async def events(self) -> AsyncGenerator[Contributed | Judged, None]:
        """A document's contribution as soon as it is written, its judgment when all of it is."""
        most = self._template.spec.max_written_tokens
        while self._waiting and (self._budget is None or self._budget >= MIN_WRITE_TOKENS):
            cap = most if self._budget is None else min(most, self._budget)
            size = len(self._waiting) if self._budget is None else max(1, self._budget // cap)
            wave, self._waiting = self._waiting[:size], self._waiting[size:]
            async with aclosing(self._wave(wave, cap)) as events:
                async for event in events:
                    yield event
        for unfinished in [i for i, texts in self._written.items() if texts]:
            yield await self._judged(unfinished)

    async def _wave(self, wave: Sequence[_Task], cap: int) -> AsyncGenerator[Contributed | Judged, None]:
        label = self._template.yes_id
        texts = [_Text() for _ in wave]
        told: set[int] = set()
        requests = [WriteRequest([*task.window.prompt.ids, label], cap) for task in wave]
        async with aclosing(self._engine.write(requests)) as pieces:  # type: ignore[type-var]  # it can be closed
            async for piece in pieces:
                task, before = wave[piece.index], texts[piece.index]
                text = _Text(before.text + piece.text, before.tokens + piece.tokens, piece.finish or before.finish)
                texts[piece.index] = text
                if task.first and task.rank not in told and (contribution := self._contribution(task, text)):
                    told.add(task.rank)
                    yield Contributed(index=self.judgments[task.rank].index, contribution=contribution)
                if not piece.finish:
                    continue
                if event := await self._finished(task, text):
                    yield event
        if any(text.finish is None for text in texts):
            raise EngineError("the engine stopped in the middle of a text without saying why: try again")

    def _contribution(self, task: _Task, text: _Text) -> str | None:
        """The contribution of an unfinished text, once it is closed."""
        if self._template.contribution_close not in text.text:
            return None
        return self._template.parse(text.text, "length").contribution

    async def _finished(self, task: _Task, text: _Text) -> Judged | None:
        if self._budget is not None:
            self._budget -= text.tokens
        self._written.setdefault(task.rank, []).append((task, text))
        self._open[task.rank] -= 1
        return None if self._open[task.rank] else await self._judged(task.rank)

    async def _judged(self, rank: int) -> Judged:
        texts = sorted(self._written[rank], key=lambda written: written[0].window.start)
        self._written[rank] = []
        read = partial(_read_written, self._template, self._query, self._ranked[rank], texts, check=self._check)
        self.judgments[rank] = await to_thread.run_sync(read)
        return Judged(judgment=self.judgments[rank])


def _tasks(rank: int, pair: Pair, threshold: float) -> list[_Task]:
    """The windows that matter, best first; equal ones in reading order."""
    best = sorted(pair.windows, key=lambda window: (-window.score, window.start))
    matter = [window for window in best if window.score >= threshold][:EVIDENCE_WINDOWS]
    return [_Task(rank, window, first=window is best[0]) for window in matter]


def _read_written(
    template: Template, query: str, pair: Pair, texts: Sequence[tuple[_Task, _Text]], *, check: bool
) -> Judgment:
    """The judgment with what was written: the best window's contribution, the evidence of all in reading order."""
    parsed = [(task, template.parse(text.text, text.finish or "stop")) for task, text in texts]
    main = next((written for task, written in parsed if task.first), parsed[0][1])
    evidence = "\n".join(written.evidence for _, written in parsed if written.evidence) or None
    written = Written(main.outcome, main.contribution, evidence)
    update = {
        "outcome": written.outcome,
        "contribution": written.contribution,
        "evidence": written.evidence,
        "check": _checked(query, pair, written) if check else None,
        "usage": pair.judgment.usage + Usage(written_tokens=sum(text.tokens for _, text in texts)),
    }
    return pair.judgment.model_copy(update=update)


def _checked(query: str, pair: Pair, written: Written) -> EvidenceCheck | None:
    """Against all the model read, so that spans are offsets in the document as sent."""
    from prism import evidence as checks

    if not written.evidence:
        return None
    read = clean(pair.document.text[: pair.read_chars])
    title = pair.document.title and clean(pair.document.title)
    return checks.check(written.evidence, read, contribution=written.contribution, query=query, title=title)
