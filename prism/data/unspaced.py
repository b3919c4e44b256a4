"""Pairs without an LLM in Chinese and Japanese, where words are not spaced: the rules of `pairs` over character pairs.

A query is two to four chunks of one sentence, cut at punctuation and function characters, the rarest first chosen.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from prism.data.contributions import pairs_of
from prism.data.pairs import Query, positive
from prism.evidence.passages import Passage
from prism.evidence.sentences import UNSPACED_CHAR
from prism.retrieval.bm25 import Bm25
from prism.text import stable_id
from prism.types import Example

_FUNCTION = re.compile(
    r"[^\w]+|[的了在是和与及或并而但也就都被把将对从于以为其之有这那该此由使让给向到又还等]|[はがのをにへとでもやか]|です|ます|した|する"
)
_KANA = re.compile("[\u3040-\u30ff]")
_DEPTH = 40


def is_unspaced(text: str) -> bool:
    """Whether at least a third of the characters belong to scripts without spaces between words."""
    return 3 * len(UNSPACED_CHAR.findall(text)) >= max(1, len(text))


def unspaced_groups(
    passages: Sequence[Passage], rng: random.Random, *, count: int, per_passage: int, hard: int, easy: int
) -> Iterator[list[Example]]:
    """For each query its positive and its negatives, as `corpus_pairs.pairs_from_corpus` yields them."""
    sentences = [[passage.text[a:b] for a, b in passage.sentences] for passage in passages]
    rarity = _Rarity(sentences)
    queries = list(islice(_queries(passages, sentences, rarity, rng, per_passage), count))
    if not queries:
        return
    left = Counter({index: n * (hard + easy) for index, n in Counter(query.passage for query in queries).items()})
    pool = sorted(left)
    ranked = Bm25((passages[index].text for index in pool), stemmer=None).search([q.text for q in queries], _DEPTH)
    for query, hits in zip(queries, ranked, strict=True):
        own, asked = passages[query.passage], pairs_of(query.text)
        drawn = (rng.choice(pool) for _ in range(50 * (easy + hard)))
        group, seen = [_positive(query, passages)], {query.passage}
        for near, candidates in ((hard, (pool[at] for at, _ in hits)), (hard + easy, drawn)):
            for index in candidates:
                if len(group) > near:
                    break
                share = rarity.coverage(asked, sentences[index])
                if index in seen or passages[index].group == own.group or left[index] <= 0 or share > 0.95:
                    continue
                seen.add(index)
                left[index] -= 1
                group.append(_negative(query, passages[index], share))
        yield group


class _Rarity:
    """idf of character pairs over sentences, and how much of a query one sentence says."""

    def __init__(self, sentences: Sequence[Sequence[str]]) -> None:
        self._counts = Counter(pair for found in sentences for sentence in found for pair in pairs_of(sentence))
        self._total = sum(len(found) for found in sentences)

    def idf(self, pair: str) -> float:
        """log(N / df), smoothed."""
        return math.log((self._total + 1) / (self._counts[pair] + 0.5))

    def coverage(self, asked: set[str], sentences: Sequence[str]) -> float:
        """Largest share of the query's idf mass found in one sentence."""
        total = sum(map(self.idf, asked)) or 1.0
        return max((sum(map(self.idf, asked & pairs_of(sentence))) / total for sentence in sentences), default=0.0)

    def weight(self, chunk: str) -> float:
        """Mean idf of a chunk's character pairs."""
        found = pairs_of(chunk)
        return sum(map(self.idf, found)) / max(1, len(found))


def _queries(
    passages: Sequence[Passage],
    sentences: Sequence[Sequence[str]],
    rarity: _Rarity,
    rng: random.Random,
    per_passage: int,
) -> Iterator[Query]:
    for index in rng.sample(range(len(passages)), len(passages)):
        places = range(len(sentences[index]))
        for where in rng.sample(places, min(per_passage, len(places))):
            text = _keywords(sentences[index][where], rarity, rng)
            if text:
                yield Query(text, "keyword", index, (where,))


def _keywords(sentence: str, rarity: _Rarity, rng: random.Random) -> str | None:
    chunks = [chunk for chunk in dict.fromkeys(_FUNCTION.split(sentence)) if 2 <= len(chunk) <= 12]
    if len(chunks) < 2:
        return None
    chosen = set(sorted(chunks, key=rarity.weight, reverse=True)[: rng.randint(2, 4)])
    return " ".join(chunk for chunk in chunks if chunk in chosen)


def _positive(query: Query, passages: Sequence[Passage]) -> Example:
    language = "ja" if _KANA.search(passages[query.passage].text) else "zh"
    spoken = [passage._replace(language=language) for passage in (passages[query.passage],)]
    return positive(query._replace(passage=0), spoken).model_copy(update={"query_id": _query_id(query)})


def _query_id(query: Query) -> str:
    return stable_id(query.text, f"{query.kind}/{query.passage}")


def _negative(query: Query, passage: Passage, share: float) -> Example:
    return Example(
        query=query.text,
        document=passage.text,
        doc_id=passage.id,
        query_id=_query_id(query),
        source=f"{passage.source}/{query.kind}",
        language="ja" if _KANA.search(passage.text) else "zh",
        teacher_score=round(0.02 + 0.28 * share**2, 4),
        verdict="no",
    )
