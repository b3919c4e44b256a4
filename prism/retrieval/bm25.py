"""BM25 over texts in memory: the first stage of evaluations and the source of hard negatives.

Robertson et al. (1994) as Lucene has it, through bm25s: idf = ln(1 + (N - df + 0.5) / (df + 0.5)), never negative.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import bm25s
import numpy as np
import Stemmer
from numpy.typing import NDArray

from prism.errors import InputError

_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
"""Kana and Han: scripts that put no spaces between words."""
_STOP_WORDS = frozenset(
    {"english", "german", "dutch", "french", "spanish", "portuguese", "italian", "russian", "swedish"}
)
"""Languages whose stop words bm25s knows under the stemmer's name."""


class Bm25:
    """Documents by their position in `documents`; equal scores in the order of positions, so results never vary.

    Lower-cased words of two and more characters, stop words of `stemmer`'s language left out, then stemmed. Text
    without spaces between words (Chinese, Japanese) is matched by pairs of characters. `stemmer=None` does neither.
    """

    def __init__(
        self, documents: Iterable[str], k1: float = 0.9, b: float = 0.4, stemmer: str | None = "english"
    ) -> None:
        if stemmer is not None and stemmer not in Stemmer.algorithms():
            raise InputError(f"no stemmer {stemmer!r}: expected None or one of {', '.join(Stemmer.algorithms())}")
        self._stemmer = Stemmer.Stemmer(stemmer) if stemmer else None
        self._stop_words = stemmer if stemmer in _STOP_WORDS else []
        tokens = self._tokenize(documents)
        if not tokens.vocab:
            raise InputError("BM25 needs at least one document with a word in it: got none")
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
        self._index.index(tokens, create_empty_token=False, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> list[list[tuple[int, float]]]:
        """For each query up to `k` (position, score), best first. Documents that share no word with it never appear."""
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        if isinstance(queries, str):
            raise InputError("search takes a list of queries, got one text: wrap it in a list")
        return [self._best(words, k) for words in self._words(queries)]

    def scores(self, query: str) -> NDArray[np.float32]:
        """The score of every document, by position; 0 where it shares no word with the query."""
        return self._scores(self._words([query])[0])

    def _words(self, queries: Sequence[str]) -> list[list[str]]:
        tokens = self._tokenize(queries)
        words = {id_: word for word, id_ in tokens.vocab.items()}
        return [[words[id_] for id_ in ids] for ids in tokens.ids]

    def _scores(self, query: list[str]) -> NDArray[np.float32]:
        scores = self._index.get_scores_from_ids(self._index.get_tokens_ids(query))
        return np.asarray(scores, dtype=np.float32)

    def _best(self, query: list[str], k: int) -> list[tuple[int, float]]:
        scores = self._scores(query)
        found = np.flatnonzero(scores > 0)
        if len(found) > k:  # everything that ties with the k-th score stays in, so that positions decide, not chance
            found = found[scores[found] >= np.partition(scores[found], -k)[-k]]
        order = found[np.argsort(-scores[found], kind="stable")][:k]
        return [(int(position), float(scores[position])) for position in order]

    def _tokenize(self, texts: Iterable[str]) -> bm25s.tokenization.Tokenized:
        pairs = (_UNSPACED.sub(_character_pairs, text) for text in texts)
        return bm25s.tokenize(pairs, stopwords=self._stop_words, stemmer=self._stemmer, show_progress=False)


def _character_pairs(run: re.Match[str]) -> str:
    """`银比铜` -> ` 银比 比铜 `; a single character stays alone and, like any one-letter word, is not indexed."""
    text = run.group()
    return f" {' '.join(text[i : i + 2] for i in range(max(1, len(text) - 1)))} "
