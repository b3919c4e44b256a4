"""Training pairs from any corpus of texts, without an LLM: what `prism.data.pairs` makes, for texts of one's own.

Queries are headings, titles, keyword subsets of a sentence and rule-made questions; the sentence is the evidence, BM25
neighbours are the negatives, and the teacher score is lexical. Texts in scripts without spaces between words go through
`prism.data.unspaced`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

from pydantic import Field

from prism.data.pairs import Lexicon, Query, make_queries, negative, negatives, positive
from prism.data.unspaced import is_unspaced, unspaced_groups
from prism.errors import DataError
from prism.evidence.passages import Passage, cut
from prism.files.corpus import Text
from prism.files.jsonl import Drops
from prism.types import Example, Record


class CorpusPairs(Record):
    """What to make of a corpus."""

    queries: int = Field(default=10_000, ge=1)
    """In all."""
    per_passage: int = Field(default=2, ge=1)
    """At most, from one passage."""
    hard: int = Field(default=3, ge=0)
    """BM25 neighbours per query."""
    easy: int = Field(default=1, ge=0)
    """Random passages per query."""
    max_chars: int = Field(default=1200, ge=100)
    """Length of the passages documents are cut into, on sentence borders."""


def pairs_from_corpus(texts: Iterable[Text], settings: CorpusPairs, seed: int, drops: Drops) -> Iterator[Example]:
    """Records, one query after another: its positive first, then its negatives. Negatives have no evidence.

    Every passage is a negative about as often as it is a positive, so that no passage gives its label away. Raises
    DataError when no query can be made of the corpus.
    """
    spaced: list[Text] = []
    unspaced: list[Text] = []
    for text in texts:
        (unspaced if is_unspaced(text.text) else spaced).append(text)
    rng = random.Random(seed)
    share = len(unspaced) / max(1, len(spaced) + len(unspaced))
    wanted = round(settings.queries * share)
    made = 0
    for some, count, groups in (
        (spaced, settings.queries - wanted, _spaced_groups),
        (unspaced, wanted, unspaced_groups),
    ):
        passages = cut(some, settings.max_chars)
        _report_unused(some, passages, drops)
        if not passages or not count:
            continue
        for group in groups(
            passages, rng, count=count, per_passage=settings.per_passage, hard=settings.hard, easy=settings.easy
        ):
            made += 1
            yield from group
    if not made:
        raise DataError(
            "no query could be made of this corpus: expected prose of some sentences; or write queries by LLM"
        )


def _report_unused(texts: Sequence[Text], passages: Sequence[Passage], drops: Drops) -> None:
    used = {passage.text_id for passage in passages}
    for text in texts:
        if text.id not in used:
            drops.add("no passage: too short, or a repeat of another text", text.id)


def _spaced_groups(
    passages: Sequence[Passage], rng: random.Random, *, count: int, per_passage: int, hard: int, easy: int
) -> Iterator[list[Example]]:
    lexicon = Lexicon(passages)
    queries: list[Query] = make_queries(passages, lexicon, rng, per_passage=per_passage, count=count)[:count]
    if not queries:
        return
    others = negatives(queries, passages, lexicon, hard=hard, easy=easy, rng=rng)
    for query, found in zip(queries, others, strict=True):
        yield [positive(query, passages), *(negative(query, index, passages, lexicon) for index in found)]
