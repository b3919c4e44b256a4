"""Hard negatives: documents that BM25 or a dense model ranks high for a query and that are not its positives.

What a retriever ranks high is often relevant. Mined records therefore carry no verdict unless asked for: have them
labelled (`prism label`) or scored (`prism data score`). Candidates are left out when they are a known positive, nearly
repeat one, or score too close to it (positive-aware mining: Moreira et al. 2024, NV-Retriever, "TopK-PercPos").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from rapidfuzz import fuzz

from prism.data.splits import query_key
from prism.errors import InputError
from prism.files.corpus import Text
from prism.files.ids import DOCUMENT_IDS, QUERY_IDS, id_in
from prism.files.jsonl import Drops, Line, Row
from prism.text import stable_id

_QUERIES_AT_ONCE = 256
_REPEATS = 95.0
"""Two documents at least this similar (rapidfuzz ratio, percent) are one."""


class Retriever(Protocol):
    """Ranks the documents of a corpus, by position, best first."""

    def search(self, queries: Sequence[str], k: int) -> Sequence[Sequence[tuple[int, float]]]:
        """For each query up to `k` (position, score)."""


@dataclass(frozen=True, slots=True)
class Mining:
    """What counts as a hard negative."""

    negatives: int = 8
    """Per query, at most."""
    skip: int = 0
    """Leave out this many of the best ranks, which are relevant most often."""
    depth: int = 100
    """How far down the ranking to look."""
    max_share: float | None = 0.95
    """Leave out candidates that score above this share of the query's best-scoring known positive; None: keep them."""
    assume_no: bool = False
    """Write verdict `no`. Only where the corpus is known to hold no other relevant document."""

    def __post_init__(self) -> None:
        if self.negatives < 1 or self.skip < 0 or self.depth <= self.skip:
            raise InputError("mining needs negatives >= 1, skip >= 0 and a depth beyond skip")


class Known:
    """One query with the documents known to be relevant to it."""

    def __init__(self, row: Row, place: str) -> None:
        self.query, self.place = str(row["query"]), place
        self.query_id = id_in(row, QUERY_IDS, place) or stable_id(self.query)
        self.ids: set[str] = set()
        self.texts: list[str] = []

    def add(self, row: Row) -> None:
        if row.get("verdict", "yes") == "no":
            return
        if (id_ := id_in(row, DOCUMENT_IDS, self.place)) is not None:
            self.ids.add(id_)
        if isinstance(row.get("document"), str):
            self.texts.append(row["document"])

    def has(self, document: Text) -> bool:
        """Whether the document is one of them, or nearly repeats one."""
        if document.id in self.ids:
            return True
        return any(fuzz.ratio(document.text, text, score_cutoff=_REPEATS) >= _REPEATS for text in self.texts)


def known_positives(lines: Iterable[Line]) -> list[Known]:
    """The queries of a file, each once, in order; rows without a verdict count as relevant pairs."""
    found: dict[str, Known] = {}
    for place, row in lines:
        found.setdefault(query_key(str(row["query"])), Known(row, place)).add(row)
    return list(found.values())


def mine(
    queries: Sequence[Known],
    documents: Sequence[Text],
    retriever: Retriever,
    settings: Mining,
    method: str,
    drops: Drops,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[Row]:
    """Negatives of each query, best rank first, as rows with `rank` and `retrieval_score`."""
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        some = queries[start : start + _QUERIES_AT_ONCE]
        rankings = retriever.search([known.query for known in some], settings.depth)
        for known, ranking in zip(some, rankings, strict=True):
            rows = list(_negatives(known, ranking, documents, settings, method))
            if not rows:
                drops.add("no negative found for the query", known.place)
            yield from rows
        advance(len(some))


def _negatives(
    known: Known, ranking: Sequence[tuple[int, float]], documents: Sequence[Text], settings: Mining, method: str
) -> Iterator[Row]:
    positive = [known.has(documents[position]) for position, _ in ranking]
    best = max((score for (_, score), is_known in zip(ranking, positive, strict=True) if is_known), default=None)
    bound = None if best is None or settings.max_share is None else best * settings.max_share
    found = 0
    seen: set[str] = set()
    for rank, ((position, score), is_known) in enumerate(zip(ranking, positive, strict=True), 1):
        document = documents[position]
        too_good = bound is not None and score > bound
        if is_known or too_good or rank <= settings.skip or document.text in seen:
            continue
        seen.add(document.text)
        yield _row(known, document, rank, score, settings, method)
        found += 1
        if found == settings.negatives:
            return


def _row(known: Known, document: Text, rank: int, score: float, settings: Mining, method: str) -> Row:
    row: Row = {
        "id": stable_id(known.query, document.text),
        "query": known.query,
        "document": document.text,
        "query_id": known.query_id,
        "doc_id": document.id,
        "title": document.title or None,
        "source": f"{document.source}/mined-{method}",
        "rank": rank,
        "retrieval_score": round(score, 6),
        "verdict": "no" if settings.assume_no else None,
    }
    return {name: value for name, value in row.items() if value is not None}
