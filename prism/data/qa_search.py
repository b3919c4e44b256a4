"""First stages over the windows of question-passage sets: BM25 in every language, a dense model where it reads it."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prism.data.contributions import topic_terms
from prism.data.placing import Overlap
from prism.data.qa_teacher import COLUMNS, Scored
from prism.evidence.passages import Passage
from prism.files.qa_settings import Qa
from prism.parallel import ordered
from prism.retrieval.bm25 import Bm25
from prism.retrieval.dense import Encoder, build_index
from prism.retrieval.sentence_models import SentenceEncoder, Vectors
from prism.text import stable_id

_STEMMERS = {"en": "english", "de": "german", "ru": "russian"}
_QUERIES_AT_ONCE = 64
_RANDOM = 8
"""Random windows looked at for each random negative that is wanted."""


class SearchQuery(NamedTuple):
    """A query and the windows whose scores are needed, whatever ranks."""

    text: str
    language: str
    windows: tuple[int, ...]


class Retrieved(NamedTuple):
    """What the first stages found for one query."""

    known: Scored
    """Of the windows asked for, in that order."""
    near: Scored
    """Best ranks of BM25 and the dense model in turn, each window once."""
    far: Scored
    """Random windows."""


class _Searched(NamedTuple):
    """What every process that searches needs: the windows of one language."""

    bm25: Bm25
    pool: list[int]
    """Window numbers, ascending."""
    overlap: Overlap
    vectors: Vectors | None
    depth: int
    far: int
    seed: int


def search(
    wanted: Sequence[SearchQuery],
    windows: Sequence[Passage],
    pool: Sequence[int],
    overlap: Overlap,
    settings: Qa,
    folder: Path,
    seed: int,
    encoded: Callable[[int], None],
    searched: Callable[[int], None],
    encoder: Encoder | None = None,
) -> list[Retrieved]:
    """For each query what is near and what is far among the windows `pool` of its own language.

    `encoder` stands in for the model that `settings.dense` names; vectors lie in `folder` and are not computed again.
    `encoded` hears how many windows of a language have vectors, `searched` how many more queries are done.
    """
    found: dict[int, Retrieved] = {}
    for language in sorted({query.language for query in wanted}):
        numbers = [n for n, query in enumerate(wanted) if query.language == language]
        queries = [wanted[n] for n in numbers]
        named = {window for query in queries for window in query.windows}
        own = sorted({i for i in pool if windows[i].language == language} | named)
        vectors = asked = None
        if settings.dense is not None and language in settings.dense_languages:
            encoder = encoder or SentenceEncoder(settings.dense)
            texts = partial(_texts, windows, own)
            vectors = build_index(texts, encoder, settings.dense, folder / f"dense-{language}", encoded).vectors
            asked = encoder.queries([query.text for query in queries])
        bm25 = Bm25(_texts(windows, own), stemmer=_STEMMERS.get(language))
        state = _Searched(bm25, own, overlap, vectors, settings.depth, _RANDOM * max(1, settings.easy), seed)
        items = [(query, None if asked is None else asked[n]) for n, query in enumerate(queries)]
        results = chain.from_iterable(_counted(ordered(_rank, state, items, chunk=_QUERIES_AT_ONCE), searched))
        found.update(zip(numbers, results, strict=True))
    return [found[n] for n in range(len(wanted))]


def _texts(windows: Sequence[Passage], own: Sequence[int]) -> Iterator[str]:
    return (windows[i].text for i in own)


def _counted(results: Iterator[list[Retrieved]], progress: Callable[[int], None]) -> Iterator[list[Retrieved]]:
    for some in results:
        progress(len(some))
        yield some


def _rank(state: _Searched, some: list[tuple[SearchQuery, Vectors | None]]) -> list[Retrieved]:
    return [_rank_one(state, query, vector) for query, vector in some]


def _rank_one(state: _Searched, query: SearchQuery, vector: Vectors | None) -> Retrieved:
    scores = state.bm25.scores(query.text)
    cosines: Vectors = np.zeros_like(scores)
    if state.vectors is not None and vector is not None:
        cosines = state.vectors @ vector
    best = float(scores.max()) or 1.0
    terms = topic_terms(query.text, query.language)

    def scored(positions: Sequence[int]) -> Scored:
        found = np.zeros((len(positions), COLUMNS), dtype=np.float32)
        for row, position in zip(found, positions, strict=True):
            window, score = state.pool[position], scores[position]
            said = max(state.overlap.of_sentences(terms, window), default=0.0)
            row[:] = (
                window,
                score / best,
                np.log1p(score),
                cosines[position],
                said,
                state.overlap.of_window(terms, window),
            )
        return found

    rankings = [_top(scores, state.depth)]
    if state.vectors is not None:
        rankings.append(_top(cosines, state.depth))
    turns = (position for turn in zip_longest(*rankings) for position in turn if position is not None)
    rng = random.Random(f"{state.seed} {stable_id(query.text)}")
    far = rng.sample(range(len(state.pool)), min(state.far, len(state.pool)))
    known = [bisect_left(state.pool, window) for window in query.windows]
    return Retrieved(scored(known), scored(list(dict.fromkeys(turns))), scored(far))


def _top(scores: Vectors, depth: int) -> list[int]:
    """Positions of the best scores above 0; equal ones in the order of positions."""
    found = np.flatnonzero(scores > 0)
    if len(found) > depth:
        found = found[scores[found] >= np.partition(scores[found], -depth)[-depth]]
    order = found[np.argsort(-scores[found], kind="stable")]
    return [int(position) for position in order[:depth]]
