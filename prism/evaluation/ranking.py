"""Rankings: measured against qrels, kept as TREC runs, and made by reranking another one.

A run is, for each query, its documents from best to worst. Scores exist only in files: what is measured is an order,
and whoever makes a run has decided it (ties included).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import Protocol

from pydantic import Field

from prism.errors import DataError, InputError
from prism.files.ids import fits_tables
from prism.files.jsonl import write_text
from prism.files.ledger import append_line, read_ledger
from prism.files.trec import run_lines
from prism.types import Document, Judgment, Record, Usage

Run = Mapping[str, Sequence[str]]
"""Query id -> document ids, best first."""
REFUSED = "refused"
"""How the reason begins when a service would not read a document."""
Qrels = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> label; relevant from 1 on."""

MEASURES = ("nDCG@10", "nDCG@5", "nDCG@1", "nDCG", "Recall@100", "MRR@10", "MRR", "MAP", "P@1")
_TREC_NAMES = {"Recall": "R", "MRR": "RR", "MAP": "AP"}


# --- measures --------------------------------------------------------------------------------------------------------


def measure(qrels: Qrels, run: Run, names: Iterable[str] = MEASURES) -> dict[str, float]:
    """Mean of each measure over ALL queries of the qrels; a query the run lacks counts as 0.

    Queries of the run without qrels do not count. nDCG has linear gains and log2 discounts, as in trec_eval and BEIR.
    """
    values = measure_queries(qrels, run, names)
    return {name: math.fsum(of_query.values()) / len(of_query) for name, of_query in values.items()}


def measure_queries(qrels: Qrels, run: Run, names: Iterable[str] = MEASURES) -> dict[str, dict[str, float]]:
    """Measure -> query -> value, for every query of the qrels.

    Labels below 0 (TREC's spam) gain nothing, as in trec_eval, which must not see them: below -1 it writes outside its
    own memory.
    """
    import ir_measures

    if not qrels:
        raise InputError("no qrels: there is nothing to measure against")
    measures: dict[object, list[str]] = {}
    for name in names:
        measures.setdefault(_parse(name), []).append(name)
    values = {name: dict.fromkeys(qrels, 0.0) for same in measures.values() for name in same}
    labels = {query: {d: max(0, label) for d, label in judged.items()} for query, judged in qrels.items()}
    for metric in ir_measures.iter_calc(list(measures), labels, _with_scores(run, qrels)):
        for name in measures[metric.measure]:
            values[name][metric.query_id] = float(metric.value)
    return values


def _parse(name: str) -> object:
    import ir_measures

    stem, _, cutoff = name.partition("@")
    trec = _TREC_NAMES.get(stem, stem) + ("@" + cutoff if cutoff else "")
    try:
        return ir_measures.parse_measure(trec)
    except (NameError, ValueError) as error:
        raise InputError(f"no measure {name!r}: expected one like {', '.join(MEASURES)}") from error


def _with_scores(run: Run, qrels: Qrels) -> dict[str, dict[str, float]]:
    """Scores that fall by 1 from rank to rank.

    Measuring programs sort by score again and break ties each in its own way (trec_eval by descending document id,
    others by file order), and trec_eval reads scores as float32. Whole numbers without ties leave them no choice.
    """
    return {query: dict(_descending(query, ranked)) for query, ranked in run.items() if query in qrels and ranked}


def _descending(query: str, ranked: Sequence[str]) -> Iterator[tuple[str, float]]:
    if len(set(ranked)) != len(ranked):
        twice = next(document for document in ranked if ranked.count(document) > 1)
        raise InputError(f"query {query!r} ranks document {twice!r} more than once: rank each document once")
    return ((document, float(len(ranked) - rank)) for rank, document in enumerate(ranked))


# --- files -----------------------------------------------------------------------------------------------------------


def read_run(path: Path) -> dict[str, list[str]]:
    """A TREC run: `query Q0 document rank score tag`. The score decides, not the rank; ties break by document id."""
    return {query: by_score(scores) for query, scores in read_scores(path).items()}


def by_score(scores: Mapping[str, float]) -> list[str]:
    """Documents, best first; ties break by document id."""
    return sorted(scores, key=lambda document: (-scores[document], document))


def read_scores(path: Path) -> dict[str, dict[str, float]]:
    """The scores of a TREC run: query -> document -> score."""
    scores: dict[str, dict[str, float]] = {}
    for where, (query, document, score) in run_lines(path):
        ranked = scores.setdefault(query, {})
        if document in ranked:
            raise DataError(f"{where}: document {document!r} stands twice for query {query!r}: keep one of the lines")
        ranked[document] = score
    if not scores:
        raise DataError(f"{path}: the run is empty: expected lines `query Q0 document rank score tag`")
    return scores


def write_run(path: Path, run: Run, tag: str) -> bool:
    """Write a TREC run; scores count down so that every reader sees this order (see `_with_scores`).

    Returns whether the very same was there already.

    Separated by spaces, as trec_eval wants it; by tabs where an id holds a space, as BEIR's qrels are.
    """
    tag = "_".join(tag.split()) or "run"
    lines = []
    for query, ranked in run.items():
        for rank, (document, score) in enumerate(_descending(query, ranked), start=1):
            if not fits_tables(query + document):
                raise DataError(f"no run can hold a tab or line end in an id: query {query!r}, document {document!r}")
            lines.append((query, "Q0", document, str(rank), f"{score:.0f}", tag))
    spaced = any(len(f"x{query}x x{document}x".split()) != 2 for query, _, document, *_ in lines)
    return write_text(path, "".join(("\t" if spaced else " ").join(line) + "\n" for line in lines))


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
    """One finished task: a line of a state file."""

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


class State:
    """Finished tasks in an append-only file."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path = path
        self._say = say

    def read(self) -> dict[str, Reranked]:
        """Task id -> what is finished. A last line that was cut off when the program died is dropped from the file."""
        what, cure = "a finished query", "start over with --fresh"
        lines = read_ledger(self.path, Reranked.model_validate_json, what=what, cure=cure, say=self._say)
        return {done.id: done for done in lines}

    def append(self, done: Reranked) -> None:
        """One write per task, on disk before the next one counts."""
        append_line(self.path, done.model_dump_json())


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
