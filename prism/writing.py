"""Written evidence: contribution and evidence in the model's own words, reported as they are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Literal, NamedTuple

from anyio import to_thread

from prism.engines.base import Engine, WriteRequest
from prism.errors import EngineError
from prism.result import Contributed, Judged
from prism.sourcing import MIN_EVIDENCE_TOKENS, EvidenceRequest
from prism.template import Template
from prism.types import Judgment, Outcome, Usage
from prism.windows import Window


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

    def __init__(self, template: Template, engine: Engine, request: EvidenceRequest) -> None:
        self._template, self._engine, self._request = template, engine, request
        self._budget = request.budget
        self.judgments = [pair.judgment for pair in request.ranked]
        self.usage = Usage()
        self._chosen = request.ranks()
        self._waiting = [task for rank in self._chosen for task in _tasks(rank, request.windows(rank))]
        self._open = Counter(task.rank for task in self._waiting)
        self._written: dict[int, list[tuple[_Task, _Text]]] = {}

    def warnings(self) -> list[str]:
        """Says how many documents the budget left without evidence, and how many texts it ended."""
        outcomes = Counter(self.judgments[rank].outcome for rank in self._chosen)
        missing = self._request.missing_by_budget(outcomes[Outcome.NOT_WRITTEN])
        if self._affordable():
            return missing  # what is cut off ran into the template's own limit
        return [*missing, *self._request.unfinished_by_budget(outcomes[Outcome.CUT_OFF])]

    def _affordable(self) -> bool:
        """Whether the budget, if there is one, still pays for a text."""
        return self._budget is None or self._budget >= MIN_EVIDENCE_TOKENS

    async def events(self) -> AsyncGenerator[Contributed | Judged, None]:
        """A document's contribution as soon as it is written, its judgment when all of it is."""
        most = self._template.spec.max_written_tokens
        while self._waiting and self._affordable():
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
        self.usage += Usage(written_tokens=text.tokens)
        if self._budget is not None:
            self._budget -= text.tokens
        self._written.setdefault(task.rank, []).append((task, text))
        self._open[task.rank] -= 1
        return None if self._open[task.rank] else await self._judged(task.rank)

    async def _judged(self, rank: int) -> Judged:
        texts = sorted(self._written[rank], key=lambda written: written[0].window.start)
        self._written[rank] = []
        self.judgments[rank] = await to_thread.run_sync(self._judgment, rank, texts)
        return Judged(judgment=self.judgments[rank])

    def _judgment(self, rank: int, texts: Sequence[tuple[_Task, _Text]]) -> Judgment:
        """With what was written: the best window's contribution, the evidence of all in reading order."""
        parsed = [(task, self._template.parse(text.text, text.finish or "stop")) for task, text in texts]
        main = next((written for task, written in parsed if task.first), parsed[0][1])
        evidence = "\n".join(written.evidence for _, written in parsed if written.evidence) or None
        judgment = self.judgments[rank]
        update = {
            "outcome": self._request.outcome(rank, main._replace(evidence=evidence)),
            "contribution": main.contribution,
            "evidence": evidence,
            "evidence_source": "written",
            "check": self._request.checked(rank, evidence, main.contribution),
            "usage": judgment.usage + Usage(written_tokens=sum(text.tokens for _, text in texts)),
        }
        return judgment.model_copy(update=update)


def _tasks(rank: int, windows: Sequence[Window]) -> list[_Task]:
    return [_Task(rank, window, first=place == 0) for place, window in enumerate(windows)]
