"""Training pairs without any LLM: queries by rule, BM25 neighbours as hard negatives, the sentence as evidence.

    passages -> queries (headings, titles, keyword subsets, rule-made and human questions) -> positives
             -> BM25 or random negatives -> lexical teacher scores -> Example

Three precautions keep a model from scoring well with nothing learnt: positives and negatives are windows cut alike
(`passages.cut`), each passage is a negative about as often as it is a positive (`_Quota`), and splits are by document.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Literal, NamedTuple

from prism.data.contributions import STOP_WORDS, contribute
from prism.evidence.passages import Passage, evidence_text, words
from prism.retrieval.bm25 import Bm25
from prism.text import stable_id
from prism.types import Example

Kind = Literal["keyword", "question", "heading", "title"]

_MOST_EVIDENCE = 400
"""Characters; a longer "sentence" is a table or a listing."""
_QUESTION_OPENINGS = (
    "what is", "what are", "how to", "how do i", "how does", "how can i", "when should i use", "why", "which",
    "where is", "can i", "what happens with", "is there", "who", "when did", "how many", "what does", "tell me about",
)  # fmt: skip
_ASKED_IN = {
    "de": ("was ist", "wie kann ich", "wie", "warum", "welche", "wo ist", "was bedeutet", "wann"),
    "ru": ("что такое", "как", "почему", "где", "какие", "зачем", "когда", "что делает"),
}
"""Openings of questions in other languages."""


class Query(NamedTuple):
    """A query with the passage and sentences that answer it."""

    text: str
    kind: Kind
    passage: int
    """Index into the passages."""
    evidence: tuple[int, ...]
    """Indices of the passage's sentences, in reading order."""


class Lexicon:
    """Word statistics of a set of passages."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.sentence_words = [[words(p.text[a:b]) for a, b in p.sentences] for p in passages]
        self._sentence_sets = [[frozenset(sentence) for sentence in found] for found in self.sentence_words]
        counts: Counter[str] = Counter()
        for sets in self._sentence_sets:
            counts.update(frozenset().union(*sets))
        self._total = max(1, len(passages))
        self._counts = counts

    def idf(self, word: str) -> float:
        """log(N / df), smoothed; 0 for stop words."""
        return 0.0 if word in STOP_WORDS else math.log((self._total + 1) / (self._counts[word] + 0.5))

    def coverage(self, query: Sequence[str], passage: int) -> tuple[float, int]:
        """Largest share of the query's idf mass found in one sentence of the passage, and that sentence's index."""
        weights = {word: self.idf(word) for word in query}
        total = sum(weights.values()) or 1.0
        best, where = 0.0, 0
        for index, present in enumerate(self._sentence_sets[passage]):
            share = sum(weights[word] for word in weights.keys() & present) / total
            if share > best:
                best, where = share, index
        return best, where


# --- queries ---------------------------------------------------------------------------------------------------------


def make_queries(
    passages: Sequence[Passage],
    lexicon: Lexicon,
    rng: random.Random,
    *,
    per_passage: int,
    count: int | None = None,
) -> list[Query]:
    """Rule-made queries, `count` in all: from passages in random order up to `per_passage` of kinds drawn at random."""
    queries: list[Query] = []
    order = rng.sample(range(len(passages)), len(passages))
    for index in order:
        if count is not None and len(queries) >= count:
            break
        passage = passages[index]
        kinds: list[Kind] = ["keyword", "keyword", "question"]
        rng.shuffle(kinds)
        # Headings are the queries nearest to what people type, and there is one to several passages: they go first.
        if passage.first and passage.title:
            kinds.insert(0, "title")
        if passage.first and passage.heading:
            kinds.insert(0, "heading")
        made = (_make(kind, index, passage, lexicon, rng) for kind in kinds)
        queries += [query for query in made if query is not None][:per_passage]
    return queries


def _make(kind: Kind, index: int, passage: Passage, lexicon: Lexicon, rng: random.Random) -> Query | None:
    if kind in ("heading", "title"):
        return _from_heading(kind, index, passage, lexicon, rng)
    candidates = [
        i
        for i, sentence in enumerate(lexicon.sentence_words[index])
        if len(_content(sentence)) >= 4 and _fits(passage, i)
    ]
    if not candidates:
        return None
    where = rng.choice(candidates)
    start, end = passage.sentences[where]
    sentence = passage.text[start:end]
    text = _keywords(sentence, lexicon, rng) if kind == "keyword" else _question(sentence, rng, _openings(passage))
    return Query(text, kind, index, (where,)) if text else None


def _fits(passage: Passage, sentence: int) -> bool:
    start, end = passage.sentences[sentence]
    return end - start <= _MOST_EVIDENCE


def _content(sentence: Iterable[str]) -> list[str]:
    return [word for word in sentence if word not in STOP_WORDS and len(word) > 2 and not word.isdigit()]


def _surface(sentence: str) -> list[str]:
    return [word.strip("*_`'\"()[]{}<>,;:!?|#.。，；：？！、") for word in sentence.split()]


def _keywords(sentence: str, lexicon: Lexicon, rng: random.Random) -> str | None:
    """Two to six telling words of a sentence, in its order or shuffled."""
    pool = [word for word in dict.fromkeys(_surface(sentence)) if len(word) < 30 and _content(words(word))]
    if len(pool) < 2:
        return None
    # Sampling without replacement by weight idf (Efraimidis and Spirakis 2006: keys u^(1/w)).
    keyed = {w: rng.random() ** (1.0 / (0.5 + max(map(lexicon.idf, words(w)), default=0.0))) for w in pool}
    chosen = set(sorted(pool, key=keyed.__getitem__, reverse=True)[: rng.randint(2, 6)])
    ordered = [word for word in pool if word in chosen]
    if rng.random() < 0.4:
        rng.shuffle(ordered)
    text = " ".join(ordered)
    return text.lower() if rng.random() < 0.6 else text


def _openings(passage: Passage) -> Sequence[str]:
    return _ASKED_IN.get(passage.language, _QUESTION_OPENINGS)


def _question(sentence: str, rng: random.Random, openings: Sequence[str] = _QUESTION_OPENINGS) -> str | None:
    """A question word before a stretch of the sentence, now and then with a few words left out."""
    surface = [word for word in _surface(sentence) if word]
    if len(surface) < 5:
        return None
    length = min(len(surface), rng.randint(4, 9))
    start = rng.randrange(len(surface) - length + 1)
    stretch = [
        word for word in surface[start : start + length] if rng.random() > 0.15 or word.lower() not in STOP_WORDS
    ]
    while stretch and stretch[-1].lower() in STOP_WORDS:
        stretch.pop()
    if len(_content(words(" ".join(stretch)))) < 2:
        return None
    text = f"{rng.choice(openings)} {' '.join(stretch)}"
    text = text if rng.random() < 0.2 else text.lower()
    return text + "?" if rng.random() < 0.5 else text


def _from_heading(kind: Kind, index: int, passage: Passage, lexicon: Lexicon, rng: random.Random) -> Query | None:
    text = passage.title if kind == "title" else passage.heading
    if kind == "heading" and passage.title and rng.random() < 0.5:
        text = f"{passage.title} {text}"
    text = " ".join(_surface(text))
    if len(_content(words(text))) < 2:
        return None
    if rng.random() < 0.25:
        text = f"{rng.choice(_openings(passage))} {text}"
    share, where = lexicon.coverage(words(text), index)
    # Where the heading's words do not occur, a model that reads could not tell this passage from another.
    if share < 0.2 or not _fits(passage, where):
        return None
    return Query(text.lower() if rng.random() < 0.6 else text, kind, index, (where,))


# --- negatives -------------------------------------------------------------------------------------------------------


class _Quota:
    """Lets each passage serve as a negative about as often as it is a positive, so that no passage has a prior."""

    def __init__(self, queries: Sequence[Query], negatives: int) -> None:
        self._left = Counter({passage: n * negatives for passage, n in Counter(q.passage for q in queries).items()})

    def take(self, passage: int) -> bool:
        if self._left[passage] <= 0:
            return False
        self._left[passage] -= 1
        return True


def negatives(
    queries: Sequence[Query],
    passages: Sequence[Passage],
    lexicon: Lexicon,
    *,
    hard: int,
    easy: int,
    rng: random.Random,
    depth: int = 40,
    quota: bool = True,
) -> list[list[int]]:
    """Per query `hard` BM25 neighbours and `easy` random passages that do not answer it.

    Left out are those that may well answer: passages of the same section (of the same text, when the query is its
    title), and those with all of the query's words in one sentence.
    """
    limits = _Quota(queries, hard + easy) if quota else None
    # With a quota only passages that are somebody's positive can serve, so only those are searched.
    pool = sorted({query.passage for query in queries}) if quota else list(range(len(passages)))
    neighbours = _neighbours(queries, passages, pool, depth) if hard else [[] for _ in queries]
    found: list[list[int]] = [[] for _ in queries]
    for position in rng.sample(range(len(queries)), len(queries)):
        admit = _Admission(queries[position], passages, lexicon, limits)
        taken = list(islice(filter(admit, neighbours[position]), hard))
        # A quota that ran out for the neighbours is made up with random passages, so that the balance holds.
        wanted = easy + (hard - len(taken) if quota else 0)
        drawn = (rng.choice(pool) for _ in range(50 * wanted))
        found[position] = taken + list(islice(filter(admit, drawn), wanted))
    return found


def _neighbours(
    queries: Sequence[Query], passages: Sequence[Passage], pool: Sequence[int], depth: int
) -> list[list[int]]:
    ranked = Bm25(passages[index].text for index in pool).search([query.text for query in queries], depth)
    return [[pool[position] for position, _ in hits] for hits in ranked]


class _Admission:
    """Whether a passage may serve as a negative of one query; what is admitted is booked."""

    def __init__(self, query: Query, passages: Sequence[Passage], lexicon: Lexicon, limits: _Quota | None) -> None:
        self._own = passages[query.passage]
        self._asked = words(query.text)
        self._whole_text = query.kind == "title"
        self._passages, self._lexicon, self._limits = passages, lexicon, limits
        self._seen: set[int] = set()

    def __call__(self, index: int) -> bool:
        other = self._passages[index]
        same = other.group == self._own.group and (self._whole_text or other.heading == self._own.heading)
        if same or index in self._seen or self._lexicon.coverage(self._asked, index)[0] > 0.95:
            return False
        if self._limits is not None and not self._limits.take(index):
            return False
        self._seen.add(index)
        return True


# --- records ---------------------------------------------------------------------------------------------------------


def positive(query: Query, passages: Sequence[Passage]) -> Example:
    """The record of a query with its own passage: evidence verbatim, contribution by rule, teacher score 0.95."""
    passage = passages[query.passage]
    evidence = evidence_text(passage, query.evidence)
    contribution = contribute(query.text, evidence, passage.language)
    return _example(query, passage, "yes", 0.95, contribution, evidence if contribution else None)


def negative(query: Query, index: int, passages: Sequence[Passage], lexicon: Lexicon) -> Example:
    """The record of a query with another passage; the teacher score grows with what the passage shares."""
    share, _ = lexicon.coverage(words(query.text), index)
    return _example(query, passages[index], "no", round(0.02 + 0.28 * share**2, 4), None, None)


def _example(
    query: Query,
    passage: Passage,
    verdict: Literal["yes", "no"],
    teacher: float,
    contribution: str | None,
    evidence: str | None,
) -> Example:
    # A title above the text would answer heading and title queries without reading; elsewhere it is often there.
    titled = query.kind not in ("heading", "title") and passage.title and int(stable_id(passage.id), 16) % 2
    return Example(
        query=query.text,
        document=passage.text,
        doc_id=passage.id,
        query_id=stable_id(query.text, f"{query.kind}/{query.passage}"),
        title=passage.title if titled else None,
        source=f"{passage.source}/{query.kind}",
        language=None if passage.language == "en" else passage.language,
        teacher_score=teacher,
        verdict=verdict,
        contribution=contribution,
        evidence=evidence,
        losses=("distill",) if verdict == "yes" and evidence is None else ("distill", "sft"),
    )
