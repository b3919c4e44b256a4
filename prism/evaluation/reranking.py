"""Rankings made by reranking others, query by query, so that a run that was stopped goes on.

A run is, for each query, its documents from best to worst. Scores exist only in files: what is measured is an order,
and whoever makes a run has decided it (ties included).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from typing import Protocol

from pydantic import Field

from prism.files.trec import by_score
from prism.types import Document, Judgment, Record, Run, Usage

REFUSED = "refused"
"""How the reason begins when a service would not read a document."""

# --- reranking, resumable --------------------------------------------------------------------------------------------


class Judgments(Protocol):
    @property
    def judgments(self) -> Sequence[Judgment]: ...


class QueryReranker(Protocol):
    """The part of `prism.Reranker` used here."""

    def rerank(
        self,
        query: str,
        documents: Sequence[Document],
        *,
        instruction: str | None = None,
        top_n: int | None = None,
        evidence: bool = True,
        max_prompt_tokens: int | None = None,
    ) -> Judgments: ...

    def close(self) -> None: ...


class Task(Record):
    """One query with the documents to rank for it, in first-stage order; each document has an id."""

    id: str
    query: str
    documents: tuple[Document, ...]

    def digest(self) -> str:
        """Changes with anything the reranker would see."""
        seen = [self.query, [(document.id, document.title, document.text) for document in self.documents]]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


class Reranked(Record):
    """One finished task: an entry of a state file."""

    id: str
    digest: str
    ranked: tuple[tuple[str, float | None], ...]
    """(document, score), best first; those that failed last, in first-stage order, without a score."""
    failures: dict[str, str] = Field(default_factory=dict)
    """Document -> why it could not be judged."""
    seconds: float
    tokens: int = 0
    """Tokens paid for: read and written; 0 where the reranker does not say."""
    requests: int = 0
    """Billed requests of a rerank service (Cohere's search units); 0 for a model that runs here."""

    @property
    def to_ask_again(self) -> bool:
        """Whether a service refused some of it: the next run tries once more."""
        return any(reason.startswith(REFUSED) for reason in self.failures.values())


def rerank(
    tasks: Iterable[Task],
    reranker: QueryReranker,
    *,
    instruction: str | None = None,
    max_prompt_tokens: int | None = None,
    at_once: int = 1,
) -> Iterator[Reranked]:
    """Yields each task as it is finished, `at_once` of them under way. Whoever stops iterating stops the work."""

    def judge(task: Task) -> Reranked:
        start = time.perf_counter()
        reply: Judgments | None = None
        if task.query.strip():  # a blank query is an error of the data set: its documents fail, the others go on
            reply = reranker.rerank(
                task.query,
                task.documents,
                instruction=instruction,
                top_n=None,
                evidence=False,
                max_prompt_tokens=max_prompt_tokens,
            )
        return _order(task, reply, time.perf_counter() - start)

    with ThreadPoolExecutor(max_workers=at_once) as pool:
        under_way: set[Future[Reranked]] = set()
        try:
            for task in tasks:  # read as needed: all documents of a large set at once would not fit
                under_way.add(pool.submit(judge, task))
                if len(under_way) == at_once:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in as_completed(under_way))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _order(task: Task, reply: Judgments | None, seconds: float) -> Reranked:
    """By score; equal scores by document id, because the first stage's order must not leak into the model's figures."""
    usage = getattr(reply, "usage", None)  # not every reranker counts
    tokens = usage.prompt_tokens + usage.written_tokens if isinstance(usage, Usage) else 0
    ids = [str(document.id) for document in task.documents]
    scores: dict[str, float] = {}
    reasons = dict.fromkeys(ids, "not returned by the reranker" if task.query.strip() else "the query is blank")
    for judgment in reply.judgments if reply else ():
        if judgment.score is not None and judgment.error is None and math.isfinite(judgment.score):
            scores[ids[judgment.index]] = judgment.score
        else:
            reasons[ids[judgment.index]] = judgment.error or f"its score is {judgment.score}"
    order = by_score(scores)
    failed = [id_ for id_ in ids if id_ not in scores]
    return Reranked(
        id=task.id,
        digest=task.digest(),
        ranked=(*((id_, scores[id_]) for id_ in order), *((id_, None) for id_ in failed)),
        failures={id_: reasons[id_] for id_ in failed},
        seconds=round(getattr(reply, "seconds", seconds), 6),  # an answer kept from before has its own time
        tokens=tokens,
        requests=getattr(reply, "requests", 0),
    )


def put_on_top(candidates: Run, finished: Mapping[str, Reranked]) -> dict[str, list[str]]:
    """The candidates with the reranked documents above the others; those stay in first-stage order."""
    run: dict[str, list[str]] = {}
    for query, ranked in candidates.items():
        top = [document for document, _ in finished[query].ranked] if query in finished else []
        above = set(top)
        run[query] = [*top, *(document for document in ranked if document not in above)]
    return run
