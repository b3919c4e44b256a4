"""How good a model is on documents it never saw: one positive among BM25 negatives, and what it writes for it.

A group is one query with one positive and its negatives, as `prism.data.qa` writes them to `dev.jsonl`. Every group
counts. Ties rank the positive last: a model that scores everything alike gets the worst rank, not a lucky one.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from prism.errors import DataError
from prism.files.examples import read_examples
from prism.measures.statistics import mean_interval
from prism.retrieval.bm25 import Bm25
from prism.types import Document, Example, Judgment, Outcome, Record


class Group(NamedTuple):
    """One query, its positive record, and its negatives."""

    positive: Example
    negatives: list[Example]

    @property
    def kind(self) -> str:
        """How the query was made: question, keyword, claim, heading or title."""
        return (self.positive.source or "unknown").rpartition("/")[2]

    @property
    def documents(self) -> list[Document]:
        return [Document(text=e.document, title=e.title) for e in (self.positive, *self.negatives)]


class Judges(Protocol):
    """What is measured: `Reranker` fits."""

    def rerank(
        self, query: str, documents: list[Document], *, evidence: bool, threshold: float | None = None
    ) -> Iterable[Judgment]: ...


class Ranks(Record):
    """Where the positives of some groups came."""

    groups: int
    mrr: float
    mrr_interval: tuple[float, float]
    """95 %, bootstrap over groups (percentile, 2,000 samples)."""
    top1: float


class HeldOutReport(Record):
    """Everything measured on one set of groups."""

    overall: Ranks
    by_kind: dict[str, Ranks]
    shuffled_control: Ranks
    """The same documents ranked for another group's query: what the documents alone give away."""
    bm25: Ranks
    chance_mrr: float
    written: int
    """Documents with verdict yes, for which the model wrote."""
    outcomes: dict[str, int]
    fidelity: float
    """Mean share of checkable facts in the written texts that the document holds."""
    evidence_right: dict[str, float]
    """Per kind of query: share of positives whose evidence points at the gold sentences (intersection over union of the
    spans' characters at least 0.5); the positive's evidence is asked for whatever its verdict."""

    @property
    def parse_rate(self) -> float:
        return sum(count for outcome, count in self.outcomes.items() if Outcome(outcome).parsed) / max(1, self.written)


def read_groups(path: Path) -> list[Group]:
    """Groups from a record file: consecutive records of one `query_id`, exactly one of them a yes."""
    groups = []
    for query_id, records in groupby(read_examples(path), key=lambda record: record.query_id):
        found = list(records)
        yes = [record for record in found if record.verdict == "yes"]
        if len(yes) != 1 or len(found) < 2:
            raise DataError(
                f"{path}: query {query_id!r} has {len(yes)} positives among {len(found)}: expected one of many"
            )
        groups.append(Group(yes[0], [record for record in found if record.verdict == "no"]))
    return groups


def evaluate(
    reranker: Judges, groups: Sequence[Group], *, seed: int = 17, progress: Callable[[int], None] = lambda _: None
) -> HeldOutReport:
    """Rank, write and check every group. `progress` hears how many groups are done."""
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    queries = {index: groups[other].positive.query for index, other in _derangement(order)}
    ranks, control, judged = [], [], []
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for index, group in enumerate(groups):
        result = list(reranker.rerank(group.positive.query, group.documents, evidence=True))
        ranks.append(_rank(result))
        judged += [judgment for judgment in result if judgment.verdict == "yes"]
        control.append(_rank(reranker.rerank(queries[index], group.documents, evidence=False)))
        right[group.kind].append(_evidence_right(reranker, group, result))
        progress(index + 1)
    kinds = [group.kind for group in groups]
    fidelities = [judgment.check.written.score for judgment in judged if judgment.check]
    return HeldOutReport(
        overall=_ranks(ranks),
        by_kind={
            kind: _ranks([r for r, k in zip(ranks, kinds, strict=True) if k == kind]) for kind in sorted(set(kinds))
        },
        shuffled_control=_ranks(control),
        bm25=_ranks(list(_bm25(groups))),
        chance_mrr=float(np.mean([_chance(1 + len(group.negatives)) for group in groups])),
        written=len(judged),
        outcomes=dict(Counter(str(judgment.outcome) for judgment in judged)),
        fidelity=float(np.mean(fidelities)) if fidelities else 0.0,
        evidence_right={kind: float(np.mean(values)) for kind, values in sorted(right.items())},
    )


def _derangement(order: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs (group, another group): the next one in a shuffled circle."""
    return zip(order, [*order[1:], *order[:1]], strict=True)


def _rank(judgments: Iterable[Judgment]) -> int:
    """Rank of document 0, the positive, among all; ties and failures count against it."""
    scores = {judgment.index: judgment.score for judgment in judgments}
    own = scores.pop(0)
    if own is None:
        return len(scores) + 1
    return 1 + sum(score is not None and score >= own for score in scores.values())


def _evidence_right(reranker: Judges, group: Group, result: Iterable[Judgment]) -> bool:
    judgment = next(judgment for judgment in result if judgment.index == 0)
    if judgment.verdict != "yes":  # ask all the same: the evidence is measured apart from the verdict
        judgment = next(iter(reranker.rerank(group.positive.query, group.documents[:1], evidence=True, threshold=0.0)))
    start = group.positive.document.find(group.positive.evidence or "\0")
    if start < 0:
        return False
    gold = set(range(start, start + len(group.positive.evidence or "")))
    found = {offset for span in judgment.spans for offset in range(span.start, span.end)}
    return len(gold & found) >= 0.5 * len(gold | found)


def _ranks(ranks: Sequence[int]) -> Ranks:
    reciprocal = 1.0 / np.asarray(ranks, dtype=float)
    low = high = float(reciprocal.mean())
    if len(ranks) > 1:
        low, high = mean_interval(reciprocal, samples=2000)
    return Ranks(
        groups=len(ranks),
        mrr=float(reciprocal.mean()),
        mrr_interval=(low, high),
        top1=float((np.asarray(ranks) == 1).mean()),
    )


def _bm25(groups: Sequence[Group]) -> Iterator[int]:
    """Ranks by BM25 over all documents of the groups."""
    texts = list(dict.fromkeys(e.document for group in groups for e in (group.positive, *group.negatives)))
    place = {text: position for position, text in enumerate(texts)}
    hits = Bm25(texts).search([group.positive.query for group in groups], len(texts))
    for group, found in zip(groups, hits, strict=True):
        scores = dict(found)
        own = scores.get(place[group.positive.document], 0.0)
        yield 1 + sum(scores.get(place[e.document], 0.0) >= own for e in group.negatives)


def _chance(documents: int) -> float:
    """Expected reciprocal rank of a random order: H(n) / n."""
    return sum(1.0 / rank for rank in range(1, documents + 1)) / documents


def markdown(name: str, report: HeldOutReport) -> str:
    """The report as tables."""
    lines = [
        f"# {name} on documents it never saw",
        "",
        "| ranking | groups | MRR | 95 % interval | top 1 |",
        "|---|---:|---:|---|---:|",
    ]
    rows = {name: report.overall, **{f"{name}, {kind}": ranks for kind, ranks in report.by_kind.items()}}
    rows |= {"BM25": report.bm25, f"{name}, queries shuffled (control)": report.shuffled_control}
    for title, ranks in rows.items():
        low, high = ranks.mrr_interval
        lines.append(f"| {title} | {ranks.groups} | {ranks.mrr:.3f} | {low:.3f} to {high:.3f} | {ranks.top1:.3f} |")
    lines += [f"| chance | | {report.chance_mrr:.3f} | | |", ""]
    lines += [f"Written: {report.written}; parsed complete: {report.parse_rate:.1%} ({report.outcomes})."]
    lines += [f"Fidelity of what was written: {report.fidelity:.3f}.", ""]
    lines += ["| queries | evidence is the right sentence |", "|---|---:|"]
    lines += [f"| {kind} | {share:.3f} |" for kind, share in report.evidence_right.items()]
    return "\n".join(lines) + "\n"
