"""Teacher scores for pairs, from a rerank API or a model on this machine, through the store of `teacher_store`.

    pairs.jsonl -> keys not in the store -> calls -> store -> pairs.jsonl with `teacher_score` and `teacher`

The store is the truth: a run that dies or stops is taken up where it was, and a file is only written once every pair
has been asked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import anyio

from prism.data.teacher_fit import Calibrated, mixed
from prism.data.teacher_store import Cost, TeacherStore, score_key
from prism.errors import DataError, EngineError, InputError, PrismError
from prism.files.jsonl import Drops, Line, Row
from prism.llm.failures import Evidence, Stop, Unavailable, Undelivered
from prism.llm.rerank_api import ApiTeacher, CallScores
from prism.text import titled

if TYPE_CHECKING:
    import httpx
    from aiolimiter import AsyncLimiter
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from prism.data.teacher_local import LocalTeacher

Squash = Literal["none", "sigmoid", "half"]
"""How a raw score becomes one in [0, 1]: as it is; 1 / (1 + exp(-s)) for logits; (1 + s) / 2 for cosines."""
Advance = Callable[[int], None]
_T = TypeVar("_T")

_WINDOW = 4_096
"""Pairs held in memory at once; calls group what is in it by query."""
_BYTES_PER_TOKEN = 4
_SILENT_CALLS = 3
"""After this many calls in a row without any answer the server is taken for down."""


@dataclass(frozen=True, slots=True)
class ApiLimits:
    """What an API may be asked for, and at what price."""

    batch_size: int = 32
    concurrency: int = 4
    requests_per_minute: float | None = None
    timeout_s: float = 60.0
    price_per_search: float = 0.0
    price_per_million_tokens: float = 0.0
    budget: float | None = None
    """In the currency of the prices, over all runs on one store."""

    def __post_init__(self) -> None:
        if self.budget is not None and not (self.price_per_search or self.price_per_million_tokens):
            raise InputError("a budget needs a price: give --price-per-search or --price-per-million-tokens")

    def cost(self, tokens: int, searches: int) -> Cost:
        """Tokens and searches at their prices."""
        paid = tokens / 1e6 * self.price_per_million_tokens + searches * self.price_per_search
        return Cost(tokens, searches, paid)


class Batch(NamedTuple):
    """One call: documents of one query, with their keys."""

    query: str
    documents: tuple[str, ...]
    keys: tuple[str, ...]

    def estimate(self, limits: ApiLimits) -> Cost:
        """From above, before the call: the query is billed with every document, a search covers 100 documents."""
        texts = len(self.query.encode()) * len(self.documents) + sum(len(text.encode()) for text in self.documents)
        return limits.cost(math.ceil(texts / _BYTES_PER_TOKEN), math.ceil(len(self.documents) / 100))

    def halves(self) -> tuple[Batch, Batch]:
        """To find the document an API refuses."""
        middle = len(self.documents) // 2
        return (
            Batch(self.query, self.documents[:middle], self.keys[:middle]),
            Batch(self.query, self.documents[middle:], self.keys[middle:]),
        )


_HARMLESS = Batch("what is water", ("Water is a liquid at room temperature.",), ())
"""Texts nobody refuses, and no pair of anybody's: whoever refuses them refuses everything."""


def unscored(lines: Iterable[Line], teacher: str, store: TeacherStore, size: int, advance: Advance) -> Iterator[Batch]:
    """Batches of one query and up to `size` documents each, of the pairs without a score; each key once."""
    asked: set[str] = set()
    for window in chunks(lines, _WINDOW):
        wanted: dict[str, tuple[str, str]] = {}
        for _, row in window:
            query, document = str(row["query"]), titled(str(row["document"]), row.get("title"))
            key = score_key(teacher, query, document)
            if key not in asked:
                wanted[key] = (query, document)
        for key in store.get(list(wanted)):
            del wanted[key]
        advance(len(window) - len(wanted))
        asked.update(wanted)
        for query, group in groupby(sorted(wanted.items(), key=_query), key=_query):
            for some in chunks(group, size):
                yield Batch(query, tuple(text for _, (_, text) in some), tuple(key for key, _ in some))


def _query(item: tuple[str, tuple[str, str]]) -> str:
    return item[1][0]


def chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Lists of up to `size` items, in order."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


class ApiScoring:
    """One run of an API teacher. What stops it is kept in `stopped`; answers in flight are still stored."""

    def __init__(self, teacher: ApiTeacher, store: TeacherStore, limits: ApiLimits, advance: Advance) -> None:
        self._teacher, self._store, self._limits, self._advance = teacher, store, limits, advance
        self._spent, self._reserved, self._silent = store.spent().cost, 0.0, 0
        self._evidence = Evidence()
        self.stopped: PrismError | None = None
        self.failures: dict[str, str] = {}
        """Key -> why it has no score."""

    async def run(self, batches: Iterable[Batch]) -> None:
        """Ask for every batch, `concurrency` at a time."""
        import httpx

        limiter = self._limiter()
        send, receive = anyio.create_memory_object_stream[Batch](0)
        async with (
            httpx.AsyncClient(timeout=self._limits.timeout_s) as http,
            anyio.create_task_group() as group,
        ):
            for _ in range(self._limits.concurrency):
                group.start_soon(self._work, receive.clone(), http, limiter)
            receive.close()
            async with send:
                await self._feed(batches, send)

    async def _feed(self, batches: Iterable[Batch], send: MemoryObjectSendStream[Batch]) -> None:
        try:
            for batch in batches:
                if self.stopped:
                    return
                await send.send(batch)
        except PrismError as error:  # a malformed line: what is under way is still stored
            self.stopped = error

    def _limiter(self) -> AsyncLimiter | None:
        from aiolimiter import AsyncLimiter

        rate = self._limits.requests_per_minute
        return AsyncLimiter(1, 60.0 / rate) if rate else None  # evenly spaced: no burst for the server to refuse

    async def _work(
        self, batches: MemoryObjectReceiveStream[Batch], client: httpx.AsyncClient, limiter: AsyncLimiter | None
    ) -> None:
        async with batches:
            async for batch in batches:
                waiting = [batch]
                while waiting and not self.stopped:
                    waiting += await self._score(waiting.pop(), client, limiter)

    async def _score(self, batch: Batch, client: httpx.AsyncClient, limiter: AsyncLimiter | None) -> Sequence[Batch]:
        """Ask once and store the answer. Returns what to ask instead when the API refuses the batch as a whole."""
        estimate = batch.estimate(self._limits)
        if not self._affordable(estimate.cost):
            return ()
        call, asked_at = self._store.sent(len(batch.keys), estimate), time.monotonic()
        self._reserved += estimate.cost
        try:
            answer = await self._teacher.ask(client, batch.query, batch.documents, limiter)
        except Unavailable as error:  # the call stays `sent`: it may have been billed
            self._spent += estimate.cost
            self._silent += 1
            if self._silent >= _SILENT_CALLS:
                self.stopped = error
            return self._fail(batch, "the teacher gave no answer")
        except (Undelivered, Stop) as error:
            self._store.refused(call)
            return await self._refused(batch, error, asked_at, client, limiter)
        finally:
            self._reserved -= estimate.cost
        self._silent = 0
        self._evidence.answered()
        self._keep(call, batch, answer, estimate)
        return ()

    async def _refused(
        self,
        batch: Batch,
        error: Undelivered | Stop,
        asked_at: float,
        client: httpx.AsyncClient,
        limiter: AsyncLimiter | None,
    ) -> Sequence[Batch]:
        """Of the account: the run stops. Of some text: it is found by halving, and fails alone."""
        single = len(batch.keys) == 1
        harmless = partial(self._try_harmless, client, limiter)
        found = await self._evidence.believed(error, asked_at, harmless, single=single)
        if isinstance(found, Stop):
            self.stopped = self.stopped or found
            return ()
        return self._fail(batch, f"the teacher refused it: {found}") if single else batch.halves()

    async def _try_harmless(self, client: httpx.AsyncClient, limiter: AsyncLimiter | None) -> Exception | None:
        """Ask about texts that nobody refuses. Returns how that failed; None when it was answered."""
        estimate = _HARMLESS.estimate(self._limits)
        if self.stopped or not self._affordable(estimate.cost):
            return self.stopped
        call = self._store.sent(0, estimate)
        try:
            answer = await self._teacher.ask(client, _HARMLESS.query, _HARMLESS.documents, limiter)
        except Unavailable as error:
            self._spent += estimate.cost
            return error
        except (Undelivered, Stop) as error:
            self._store.refused(call)
            return error
        self._keep(call, _HARMLESS, answer, estimate)
        return None

    def _affordable(self, cost: float) -> bool:
        budget = self._limits.budget
        if budget is None or self._spent + self._reserved + cost <= budget:
            return True
        self.stopped = BudgetReached(
            f"the next call could exceed the budget of {budget:g}: {self._spent:.4f} spent so far; raise --budget"
        )
        return False

    def _keep(self, call: int, batch: Batch, answer: CallScores, estimate: Cost) -> None:
        """Scores to the store, costs to the accounts. A batch without keys leaves none."""
        tokens = estimate.tokens if answer.tokens is None else answer.tokens
        searches = estimate.searches if answer.searches is None else answer.searches
        cost = self._limits.cost(tokens, searches)
        scores = {batch.keys[index]: score for index, score in answer.scores.items()} if batch.keys else {}
        self._store.paid(call, cost, scores)
        self._spent += cost.cost
        for index, key in enumerate(batch.keys):
            if index not in answer.scores:
                self.failures[key] = "the teacher's answer left it out"
        self._advance(len(batch.keys))

    def _fail(self, batch: Batch, reason: str) -> tuple[Batch, ...]:
        self.failures.update(dict.fromkeys(batch.keys, reason))
        self._advance(len(batch.keys))
        return ()


class BudgetReached(EngineError):
    """Nothing more may be spent."""


def score_with_api(
    read: Callable[[], Iterator[Line]], teacher: ApiTeacher, store: TeacherStore, limits: ApiLimits, advance: Advance
) -> dict[str, str]:
    """Have every pair scored. Returns why keys without a score have none.

    Raises what stopped the run (wrong key, no credit, budget, dead server); the store keeps all that was paid for.
    """
    scoring = ApiScoring(teacher, store, limits, advance)
    anyio.run(scoring.run, unscored(read(), teacher.name, store, limits.batch_size, advance))
    if scoring.stopped:
        pairs = store.spent().pairs
        kept = f"{pairs} scores are kept; the same command goes on from there"
        scoring.stopped.args = (f"{scoring.stopped}. {kept}",)
        raise scoring.stopped
    return scoring.failures


def score_locally(
    read: Callable[[], Iterator[Line]], teacher: LocalTeacher, store: TeacherStore, batch_size: int, advance: Advance
) -> dict[str, str]:
    """Have every pair scored by a model on this machine; a score that is no number is a failure, never a guess."""
    failures: dict[str, str] = {}
    for window in chunks(unscored(read(), teacher.name, store, batch_size, advance), 64):
        pairs = [
            (batch.query, text, key) for batch in window for text, key in zip(batch.documents, batch.keys, strict=True)
        ]
        pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))  # batches of like length: little padding
        for some in chunks(pairs, batch_size):
            scores = teacher.score([(query, text) for query, text, _ in some])
            found = {key: float(score) for (_, _, key), score in zip(some, scores, strict=True) if math.isfinite(score)}
            store.paid(store.sent(len(some), Cost()), Cost(), found)
            failures.update({key: "the model gave no number" for _, _, key in some if key not in found})
            advance(len(some))
    return failures


def scored(
    lines: Iterable[Line],
    teacher: str,
    store: TeacherStore,
    failures: Mapping[str, str],
    squash: Squash,
    drops: Drops,
    fit: Calibrated | None = None,
    mix: float = 1.0,
) -> Iterator[Row]:
    """The rows with `teacher_score` in [0, 1] and `teacher`; those without a score go into `drops` with the reason.

    `fit` makes probabilities of the scores; `mix` is the share of this teacher where a row had a score before.
    """
    for window in chunks(lines, _WINDOW):
        keys = [
            score_key(teacher, str(row["query"]), titled(str(row["document"]), row.get("title"))) for _, row in window
        ]
        found = store.get(keys)
        for key, (place, row) in zip(keys, window, strict=True):
            if key in found:
                score = squashed(found[key], squash, place)
                score = score if fit is None else fit.probability(score, row.get("language"))
                yield {**row, "teacher_score": mixed(_before(row, place), score, mix), "teacher": teacher}
            else:
                drops.add(failures.get(key, "not scored"), place)


def _before(row: Row, place: str) -> float | None:
    score = row.get("teacher_score")
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0.0 <= score <= 1.0:
        raise DataError(f"{place}: teacher_score {str(score)[:40]!r} is no number in [0, 1]: leave it out or mend it")
    return float(score)


def squashed(score: float, how: Squash, place: str) -> float:
    """A score in [0, 1]. Raises DataError when `how` does not bring it there."""
    if how == "sigmoid":
        score = 1.0 / (1.0 + math.exp(-score)) if score >= 0 else math.exp(score) / (1.0 + math.exp(score))
    elif how == "half":
        score = (1.0 + score) / 2.0
    if not 0.0 <= score <= 1.0:
        raise DataError(
            f"{place}: teacher score {score:g} is not in [0, 1]:"
            " pass --squash sigmoid for logits, --squash half for cosines"
        )
    return round(score, 6)


def estimate_calls(
    read: Callable[[], Iterator[Line]], teacher: str, store: TeacherStore, limits: ApiLimits
) -> tuple[int, int, Cost]:
    """(pairs without a score, calls, what they cost from above), asking nobody."""
    pairs = calls = tokens = searches = 0
    for batch in unscored(read(), teacher, store, limits.batch_size, lambda _: None):
        cost = batch.estimate(limits)
        pairs, calls = pairs + len(batch.keys), calls + 1
        tokens, searches = tokens + cost.tokens, searches + cost.searches
    return pairs, calls, limits.cost(tokens, searches)
