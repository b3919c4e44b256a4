"""Who answers: a model behind an API, a reranker in this process, or a file of votes cast before.

Each takes a pair and gives a vote, which may be a recorded failure; never a made-up label. What it raises says more:
`Stop` when this juror can answer nothing further, `Undelivered` when this one question got no answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Protocol

from anyio import to_thread

from prism.errors import InputError, PrismError
from prism.labeling.label_pairs import LabelPair
from prism.labeling.panel import ApiJuror, EndpointJuror, LocalJuror, Panel
from prism.labeling.recorded import FileJuror
from prism.labeling.rerank_client import RerankClient
from prism.labeling.rubrics import Rubric
from prism.labeling.store import Committer, Store
from prism.labeling.votes import CastVote, dated, failed_vote
from prism.llm.allowance import Allowance
from prism.llm.chat import CallLog, ChatClient, Completion
from prism.llm.failures import BadAnswer, Broken, Rejected, Stop, Unavailable, Undelivered
from prism.result import RerankResult
from prism.text import clean
from prism.types import Document, Judgment, Vote

_SILENT_BATCHES = 3
"""After so many batches in a row without an answer an endpoint is taken for down."""
_LOGITS = {"logprobs": True, "top_logprobs": 20}
"""As many first tokens as the APIs give."""
_MAX_ANSWER_CHARS = 20_000
"""More of an answer than this is not kept."""


class Juror(Protocol):
    """One judge."""

    name: str

    async def open(self) -> None:
        """Read what it needs. Raises PrismError when it cannot work, before anything is paid."""
        ...

    async def ask(self, pair: LabelPair) -> CastVote:
        """Raises Stop or Undelivered."""
        ...

    async def aclose(self) -> None: ...


def make_jurors(
    panel: Panel,
    allowances: Mapping[str, Allowance],
    committer: Committer,
    served: Mapping[str, ChatClient] | None = None,
) -> list[Juror]:
    """The panel's jurors in its order. Those of one provider share its limits and what is left of its budget.

    `served`: juror -> the client of this machine's model that is asked in the place of its provider.
    """
    clients = {
        name: ChatClient(provider, name=name, allowance=allowances[name]) for name, provider in panel.providers.items()
    }
    jurors: list[Juror] = []
    for settings in panel.jurors:
        if isinstance(settings, ApiJuror):
            client = (served or {}).get(settings.name) or clients[settings.provider]
            jurors.append(ChatJuror(settings, panel.rubric, client, committer, give_up_after=panel.give_up_after))
        elif isinstance(settings, LocalJuror):
            jurors.append(ModelJuror(settings, panel.rubric, partial(_load, settings)))
        elif isinstance(settings, EndpointJuror):
            jurors.append(ModelJuror(settings, panel.rubric, partial(RerankClient, settings)))
        else:
            jurors.append(FileJuror(settings, panel.rubric))
    return jurors


class ChatJuror:
    """A model behind an OpenAI-compatible API. Every request is on record before it is sent."""

    def __init__(
        self, settings: ApiJuror, rubric: Rubric, client: ChatClient, committer: Committer, *, give_up_after: int
    ) -> None:
        self.name = settings.name
        self._settings = settings
        self._rubric = rubric
        self._client = client
        self._committer = committer
        self._give_up_after = give_up_after
        self._in_a_row = 0

    async def open(self) -> None:
        """Nothing to read: a key that is missing shows at the first question, and stops this juror alone."""

    async def ask(self, pair: LabelPair) -> CastVote:
        vote = Vote(pair_id=pair.id, juror=self.name, label=None, rubric=self._rubric.key)
        if not pair.has_text:
            return CastVote(failed_vote(vote, "no_text"))
        log = _CallLog(self._committer, vote, self._settings.provider)
        try:
            completion = await self._complete(pair, log)
        except BadAnswer as error:
            self._in_a_row = 0
            paid = dated(vote, usage=error.usage, cost_usd=error.cost_usd)
            return CastVote(failed_vote(paid, error.kind), log.call)
        except Unavailable as error:
            self._in_a_row += 1
            if self._in_a_row >= self._give_up_after:
                raise Broken(f"{self._in_a_row} questions in a row got no answer; the last: {error}") from None
            raise
        self._in_a_row = 0
        if self._settings.read == "spoken":
            answer, reading = completion.text, self._rubric.read(completion.text, completion.finish)
        elif completion.first is None:
            await log.failed("no_logprobs", completion.cost_usd)
            raise Broken("the API returns no top_logprobs: say read: spoken")
        else:
            answer = json.dumps(completion.first)
            reading = self._rubric.read_tokens(completion.first, self._settings.cut)
        paid = dated(vote, usage=completion.usage, cost_usd=completion.cost_usd)
        found = {"answer": clean(answer[:_MAX_ANSWER_CHARS]), **reading._asdict()}
        return CastVote(paid.model_copy(update=found), log.call)

    async def _complete(self, pair: LabelPair, log: CallLog) -> Completion:
        settings, logits = self._settings, self._settings.read == "logits"
        return await self._client.complete(
            self._rubric.messages(pair.query, pair.document),
            model=settings.model,
            max_tokens=1 if logits else settings.max_answer_tokens or self._rubric.max_answer_tokens,
            price=settings.price,
            params=_LOGITS | settings.params if logits else settings.params,
            log=log,
        )

    async def aclose(self) -> None:
        await self._client.aclose()


class _CallLog:
    """Puts each attempt on record."""

    def __init__(self, committer: Committer, vote: Vote, provider: str) -> None:
        self._committer = committer
        self._key = (vote.pair_id, vote.juror, vote.rubric or "", provider)
        self.call: int | None = None

    async def sent(self, most_usd: Decimal) -> None:
        self.call = await self._committer.write(Store.add_call, *self._key, most_usd)

    async def failed(self, kind: str, charged_usd: Decimal) -> None:
        call = self.call
        if call is not None:
            await self._committer.write(Store.end_call, call, kind, charged_usd, paid=charged_usd > 0)
        self.call = None


class AsyncReranker(Protocol):
    """A reranker, here or behind an endpoint."""

    async def arerank(
        self, query: str, documents: Sequence[Document], *, instruction: str | None, evidence: bool
    ) -> RerankResult: ...

    async def aclose(self) -> None: ...


class ModelJuror:
    """A reranker. Waiting pairs with one query are scored together: their prefix is computed once."""

    def __init__(self, settings: LocalJuror | EndpointJuror, rubric: Rubric, load: Callable[[], AsyncReranker]) -> None:
        self.name = settings.name
        self._settings = settings
        self._rubric = rubric
        self._load = load
        self._scorer: AsyncReranker | None = None
        self._waiting: list[tuple[LabelPair, asyncio.Future[Judgment]]] = []
        self._halves: list[list[tuple[LabelPair, asyncio.Future[Judgment]]]] = []
        """Of batches that were refused."""
        self._in_a_row = 0
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        if self._scorer is None:
            self._scorer = await to_thread.run_sync(self._load)

    async def ask(self, pair: LabelPair) -> CastVote:
        vote = Vote(pair_id=pair.id, juror=self.name, label=None, rubric=self._rubric.key)
        if not pair.has_text:
            return CastVote(failed_vote(vote, "no_text"))
        future: asyncio.Future[Judgment] = asyncio.get_running_loop().create_future()
        self._waiting.append((pair, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        judgment = await future
        if judgment.score is None:
            return CastVote(failed_vote(vote, "unjudgeable"))
        label = self._label(judgment, judgment.score)
        return CastVote(dated(vote, label=label, score=judgment.score, usage=judgment.usage))

    def _label(self, judgment: Judgment, score: float) -> int:
        cuts = self._settings.cuts
        return self._rubric.labels[sum(score >= cut for cut in cuts) if cuts else judgment.verdict == "yes"]

    async def _work(self) -> None:
        while batch := self._next():
            query = batch[0][0].query
            try:
                judged = await self._judge(query, [pair.document for pair, _ in batch])
            except PrismError as error:
                self._failed(batch, error)
                continue
            self._in_a_row = 0
            for judgment in judged:
                future = batch[judgment.index][1]
                if not future.done():
                    future.set_result(judgment)

    def _next(self) -> list[tuple[LabelPair, asyncio.Future[Judgment]]]:
        """Pairs of one query to ask about next; none when nothing waits."""
        if self._halves:
            return self._halves.pop(0)
        query = self._waiting[0][0].query if self._waiting else None
        batch = [waiting for waiting in self._waiting if waiting[0].query == query][: self._settings.batch_size]
        chosen = {id(future) for _, future in batch}
        self._waiting = [waiting for waiting in self._waiting if id(waiting[1]) not in chosen]
        return batch

    def _failed(self, batch: list[tuple[LabelPair, asyncio.Future[Judgment]]], error: PrismError) -> None:
        """A refused text is found by halving and fails alone; passing trouble is for the next run; the rest stops."""
        if isinstance(error, Rejected) and len(batch) > 1:
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                self._halves.append(half)
            return
        self._in_a_row += isinstance(error, Unavailable)
        if not isinstance(error, Undelivered) or self._in_a_row >= _SILENT_BATCHES:
            error = error if isinstance(error, Stop) else Broken(f"juror {self.name}: {error}")
        for _, future in batch:
            if not future.done():
                future.set_exception(error)

    async def _judge(self, query: str, documents: Sequence[Document]) -> Sequence[Judgment]:
        if self._scorer is None:
            raise InputError(f"juror {self.name} was asked before it was opened")
        sent = [Document(text=document.text, title=document.title) for document in documents]
        result = await self._scorer.arerank(query, sent, instruction=self._settings.instruction, evidence=False)
        return result.judgments

    async def aclose(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._scorer:
            await self._scorer.aclose()


def _load(chosen: LocalJuror) -> AsyncReranker:
    from transformers.utils import logging

    from prism.reranker import Reranker

    logging.disable_progress_bar()  # it would run through our own
    return Reranker.load(
        chosen.model, engine=chosen.engine, template=chosen.template, dtype=chosen.dtype, device=chosen.device
    )
