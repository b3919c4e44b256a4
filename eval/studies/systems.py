"""The systems of a comparison: first stages, their candidates reranked, and fusions of both, each with its scores."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prism.errors import DataError, InputError
from prism.evaluation import reranking
from prism.evaluation.reranking import QueryReranker
from prism.files.beir import BeirSet
from prism.files.ledger import Kept
from prism.files.trec import by_score, line_with, read_scores
from prism.location import MINI
from prism.reports.report import shown
from prism.types import Run
from prism.version import __version__
from studies import fusion
from studies.specs import parse_spec

Say = Callable[[str], None]
State = Kept[reranking.Reranked]
"""Finished queries of one system."""
K1, B = 0.9, 0.4
"""BM25 as BEIR and Anserini run it."""


class System(NamedTuple):
    """One system (a first stage, a reranker, a fusion) on one data set."""

    name: str
    run: Run
    scores: Mapping[str, Mapping[str, float]]
    """Query -> document -> score, of the documents this system scored itself."""
    seconds: float
    """Time spent per query, summed over all queries, those of earlier, stopped runs included."""
    options: Mapping[str, Any]
    """What decided it."""
    failures: Mapping[str, int] = {}
    """Why documents could not be judged -> how many. They stand below the judged ones and count as ranked there."""
    latencies: Sequence[float] = ()
    """Seconds of each query, where queries are answered one by one."""
    tokens: int = 0
    requests: int = 0


def progress_bar() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True))


# --- first stages ----------------------------------------------------------------------------------------------------


def bm25_system(data: BeirSet, depth: int, decided: Mapping[str, Any]) -> System:
    """The best `depth` documents by BM25 over title and text. The index is in memory, the texts are not."""
    from prism.retrieval.bm25 import Bm25

    start = time.perf_counter()
    ids = list(data.corpus)
    found = Bm25(map(data.text, ids), k1=K1, b=B).search(list(data.queries.values()), depth)
    return _retrieved("bm25", data, ids, found, start, {**decided, "k1": K1, "b": B, "depth": depth})


def dense_system(data: BeirSet, name: str, model: str, depth: int, cache: Path, decided: Mapping[str, Any]) -> System:
    """The `depth` nearest documents by the vectors of a sentence-transformers model, which are kept in `cache`."""
    from prism.retrieval.dense import build_index
    from prism.retrieval.sentence_models import SentenceEncoder

    start = time.perf_counter()
    ids, encoder = list(data.corpus), SentenceEncoder(model)
    with progress_bar() as progress:
        bar = progress.add_task(f"{data.name} vectors", total=len(ids))
        index = build_index(
            lambda: map(data.text, ids),
            encoder,
            identity(model),
            cache,
            lambda done: progress.update(bar, completed=done),
        )
    found = index.search(encoder.queries(list(data.queries.values())), depth)
    return _retrieved(name, data, ids, found, start, {**decided, "model": shown(model), "depth": depth})


def _retrieved(
    name: str,
    data: BeirSet,
    ids: Sequence[str],
    found: Sequence[Sequence[tuple[int, float]]],
    start: float,
    decided: Mapping[str, Any],
) -> System:
    scores = {q: {ids[place]: score for place, score in hits} for q, hits in zip(data.queries, found, strict=True)}
    run = {query: list(of_query) for query, of_query in scores.items()}
    return System(name, run, scores, time.perf_counter() - start, decided)


def run_system(data: BeirSet, name: str, path: Path, decided: Mapping[str, Any]) -> System:
    """The candidates of a TREC run. Raises DataError when it is plainly of another data set."""
    start = time.perf_counter()
    given = read_scores(path)
    scores = {query: given.get(query, {}) for query in data.queries}
    run = {query: by_score(of_query) for query, of_query in scores.items()}
    strange = next((d for ranked in run.values() for d in ranked if d not in data.corpus), None)
    if strange is not None or not any(run.values()):
        kind, id_ = ("document", strange) if strange is not None else ("query", next(iter(given)))
        where = line_with(path, id_)
        raise DataError(f"{where}: {kind} {id_!r} is not in {data.name} {data.split}: is the run of another data set?")
    return System(name, run, scores, time.perf_counter() - start, {**decided, "run": shown(path)})


# --- reranked --------------------------------------------------------------------------------------------------------


class Reranking(NamedTuple):
    """One reranker and what it is told."""

    system: str
    model: str
    top_k: int
    instruction: str | None
    max_prompt_tokens: int | None
    at_once: int
    decides: Mapping[str, Any]
    """Whatever changes scores, for the name of the state file."""


def kept_before(data: BeirSet, first: System, plan: Reranking, state: State, say: Say) -> dict[str, reranking.Reranked]:
    """The queries that the state file has as they are now; those that a service refused in part are asked again."""
    kept = state.read()
    tasks = (_task(data, query, ranked, plan.top_k) for query, ranked in first.run.items() if ranked)
    same = {task.id: kept[task.id] for task in tasks if task.id in kept and kept[task.id].digest == task.digest()}
    finished = {id_: done for id_, done in same.items() if not done.to_ask_again}
    if finished:
        left = len(unfinished(first, finished))
        say(f"{data.name} {plan.system}: {len(finished)} queries were finished before, {left} to go")
    return finished


def unfinished(first: System, finished: Mapping[str, reranking.Reranked]) -> list[str]:
    """The queries that have candidates and are not reranked yet."""
    return [query for query, ranked in first.run.items() if ranked and query not in finished]


def rerank_rest(
    data: BeirSet,
    first: System,
    plan: Reranking,
    state: State,
    finished: dict[str, reranking.Reranked],
    reranker: QueryReranker,
) -> None:
    """The candidates of every other query with their first `top_k` reranked, into state file and `finished`."""
    todo = unfinished(first, finished)
    work = (_task(data, query, first.run[query], plan.top_k) for query in todo)
    settings: dict[str, Any] = {"instruction": plan.instruction, "max_prompt_tokens": plan.max_prompt_tokens}
    with progress_bar() as progress:
        total = len(finished) + len(todo)
        bar = progress.add_task(f"{data.name} {plan.system}", completed=len(finished), total=total)
        for done in reranking.rerank(work, reranker, **settings, at_once=plan.at_once):
            state.append(done.id, done)
            finished[done.id] = done
            progress.advance(bar)


def reranked_system(first: System, plan: Reranking, finished: Mapping[str, reranking.Reranked]) -> System:
    """What became of the first stage."""
    scored = {q: {d: score for d, score in done.ranked if score is not None} for q, done in finished.items()}
    return System(
        name=plan.system,
        run=reranking.put_on_top(first.run, finished),
        scores={query: scored.get(query, {}) for query in first.run},
        seconds=sum(done.seconds for done in finished.values()),
        options={**first.options, "candidates": first.name, "model": shown(plan.model), **plan.decides},
        failures=Counter(reason for done in finished.values() for reason in done.failures.values()),
        latencies=[done.seconds for done in finished.values()],
        tokens=sum(done.tokens for done in finished.values()),
        requests=sum(done.requests for done in finished.values()),
    )


def _task(data: BeirSet, query: str, ranked: Sequence[str], top_k: int) -> reranking.Task:
    documents = tuple(data.document(id_) for id_ in ranked[:top_k])
    return reranking.Task(id=query, query=data.queries[query], documents=documents)


def open_state(data: BeirSet, plan: Reranking, folder: Path, resume: bool, say: Say) -> State:
    """The state file; its name hashes whatever decides scores, except the texts: those are in each entry's digest."""
    decides = json.dumps([__version__, identity(plan.model), data.name, data.split, plan.decides], default=str)
    key = hashlib.sha256(decides.encode()).hexdigest()[:12]
    stem = f"{data.name if data.split == 'test' else f'{data.name}-{data.split}'}.{plan.system}"
    state = Kept(folder / f"{stem}.{key}.sqlite", reranking.Reranked, say)
    if not resume:
        state.clear()
    elif not state.exists() and any(folder.glob(f"{stem}.*.*")):
        say(f"{data.name} {plan.system}: the model or the options differ from earlier runs, whose state is not used")
    return state


def identity(model: str) -> object:
    """What tells one state of a model from another: its files, but for its card, with size and time of change, or its
    name on the hub."""
    kind, name, url = parse_spec(model)
    folder = MINI if name == "mini" else Path(name)
    files = ((path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".md")
    known = [(str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in files]
    return [kind, known or name, url]


# --- fused -----------------------------------------------------------------------------------------------------------


def fuse(
    systems: Sequence[System], method: fusion.Method, top_k: int, name: str, weight: float | None = None
) -> System:
    """The best `top_k` of each system, fused; what the first system had besides stays below, in its order."""
    run: dict[str, list[str]] = {}
    scores: dict[str, dict[str, float]] = {}
    for query in systems[0].run:
        parts = [_best(system, query, top_k) for system in systems]
        if method == "rrf":
            fused = fusion.reciprocal_rank(parts)
        else:
            fused = fusion.weighted(parts[0], parts[1], 0.5 if weight is None else weight, method)
        scores[query] = fused
        run[query] = [*by_score(fused), *(d for d in systems[0].run[query] if d not in fused)]
    options = {**systems[-1].options, "fused": [system.name for system in systems], "method": method, "top_k": top_k}
    if method != "rrf":
        options["weight"] = weight
    return System(
        name,
        run,
        scores,
        sum(system.seconds for system in systems),
        options,
        tokens=sum(system.tokens for system in systems),
        requests=sum(system.requests for system in systems),
    )


def _best(system: System, query: str, top_k: int) -> dict[str, float]:
    scores = system.scores.get(query, {})
    return {document: scores[document] for document in system.run.get(query, ())[:top_k] if document in scores}


def fitted_weight(train: BeirSet, systems: Sequence[System], method: fusion.Method, top_k: int) -> float:
    """The weight of the first system, from queries of the train split."""
    if len(systems) != 2:
        raise InputError(f"a weighted sum has two systems, got {len(systems)}: use rrf for more")
    first, second = ({query: _best(system, query, top_k) for query in train.qrels} for system in systems)
    return fusion.fit_weight(train.qrels, first, second, method)


def percentiles(latencies: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Median and 95th percentile of the time of a query, in seconds; nothing where it was not taken."""
    if latencies:
        import numpy as np

        yield "median_s", round(float(np.percentile(latencies, 50)), 6)
        yield "p95_s", round(float(np.percentile(latencies, 95)), 6)
