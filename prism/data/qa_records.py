"""The records of question-passage sets: what people labelled, with what is written for it, and mined negatives."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prism.data.contributions import contribute
from prism.data.placing import AnswerPlace, Overlap, holds_answer, is_evidence
from prism.data.qa_search import Retrieved
from prism.data.qa_teacher import Scored, Teacher, target, window_of
from prism.data.splits import query_key
from prism.evidence.passages import Passage, evidence_text
from prism.files.jsonl import Drops
from prism.files.qa_sets import QaQuestion
from prism.files.qa_settings import Qa
from prism.reports.bar import progress
from prism.text import stable_id
from prism.types import Example

_SHORT_ANSWER = {"zh": 2, "ja": 2}
"""An answer of fewer characters (elsewhere 4) stands in too many passages to say anything about one."""


class QaQuery(NamedTuple):
    """A query, where it is answered, and what it is made of."""

    text: str
    kind: str
    asked: QaQuestion
    window: int
    """The window that answers it, or that people said does not."""
    place: AnswerPlace | None
    """None where it does not."""

    @property
    def id(self) -> str:
        return stable_id(self.text, self.kind, self.asked.text_id)


class Made(NamedTuple):
    """Everything the records are made of."""

    windows: list[Passage]
    overlap: Overlap
    queries: list[QaQuery]
    held: set[str]
    """Document groups kept out of training."""


def is_held(made: Made, query: QaQuery) -> bool:
    return made.windows[query.window].group in made.held


def same_document(made: Made, query: QaQuery, other: Scored) -> bool:
    return made.windows[window_of(other)].group == made.windows[query.window].group


def informative_answers(query: QaQuery) -> tuple[str, ...]:
    """Answers long enough that a passage without them does not answer."""
    least = _SHORT_ANSWER.get(query.asked.language, 4)
    return tuple(answer for answer in query.asked.answers if len(answer) >= least)


class Records:
    """Makes the records of both sides."""

    def __init__(
        self, made: Made, ranked: Sequence[Retrieved], teacher: Teacher, settings: Qa, seed: int, drops: Drops
    ) -> None:
        self._made, self._ranked, self._teacher = made, ranked, teacher
        self._settings, self._seed, self._drops = settings, seed, drops
        self._answering: defaultdict[str, set[int]] = defaultdict(set)
        for query in made.queries:
            if query.place is not None:
                self._answering[query_key(query.asked.query)].add(query.window)

    def train(self, dev_queries: set[str]) -> Iterator[Example]:
        """Positives with their negatives, and what people said does not answer."""
        per_query = self._settings.hard + self._settings.easy
        numbers = []
        for number, query in enumerate(self._made.queries):
            if is_held(self._made, query):
                continue
            if query_key(query.text) in dev_queries:
                self._drops.add(f"{query.asked.set}: the query is among those held out", query.text)
            else:
                numbers.append(number)
        left = Counter(self._made.queries[n].window for n in numbers if self._made.queries[n].place is not None)
        left = Counter({window: count * per_query for window, count in left.items()})
        random.Random(self._seed).shuffle(numbers)
        with progress("records", len(numbers)) as advance:
            for number in numbers:
                query = self._made.queries[number]
                yield self._labelled(number)
                if query.place is not None:
                    yield from self._negatives(number, left)
                advance(1)

    def dev(self) -> Iterator[Example]:
        """Groups of a positive and its hardest negatives, as many for each kind and language."""
        groups: Counter[tuple[str, str]] = Counter()
        wanted = self._settings.held_out
        order = sorted(range(len(self._made.queries)), key=lambda n: stable_id("dev", self._made.queries[n].id))
        for number in order:
            query = self._made.queries[number]
            kind = (query.kind, query.asked.language)
            if query.place is None or not is_held(self._made, query) or groups[kind] >= wanted.groups:
                continue
            chosen = self._admitted(number, self._ranked[number].near)[: wanted.negatives]
            if len(chosen) < wanted.negatives:
                self._drops.add("held out: too few negatives for a group", query.text)
                continue
            groups[kind] += 1
            yield self._labelled(number)
            yield from (self._mined(query, one, probability) for one, probability in chosen)

    def _labelled(self, number: int) -> Example:
        """The record of a pair people labelled."""
        query, known = self._made.queries[number], self._ranked[number].known
        score = target(float(self._teacher.probabilities(known)[0]), query.place is not None, 1.0)
        if query.place is None:
            return self._example(query, query.window, score, "no")
        passage = self._made.windows[query.window]
        evidence = contribution = None
        if is_evidence(passage, query.place.sentences):
            evidence = evidence_text(passage, query.place.sentences)
            contribution = contribute(
                query.asked.query,
                evidence,
                passage.language,
                answers=query.asked.answers,
                verdict=query.asked.verdict,
            )
        if contribution is None:
            why = "no evidence known" if evidence is None else "nothing to say but words of the query"
            self._drops.add(f"{query.asked.set}: nothing written, score only: {why}", query.text)
            return self._example(query, query.window, score, "yes")
        return self._example(query, query.window, score, "yes", contribution, evidence)

    def _negatives(self, number: int, left: Counter[int]) -> Iterator[Example]:
        query, found = self._made.queries[number], self._ranked[number]
        taken: set[int] = set()
        for candidates, count in ((found.near, self._settings.hard), (found.far, self._settings.easy)):
            wanted = count
            for one, probability in self._admitted(number, candidates):
                window = window_of(one)
                if wanted and window not in taken and left[window] > 0:
                    left[window] -= 1
                    taken.add(window)
                    wanted -= 1
                    yield self._mined(query, one, probability)
            if wanted:
                self._drops.add("fewer negatives than asked for: none left that may serve", query.text)

    def _admitted(self, number: int, candidates: Scored) -> list[tuple[Scored, float]]:
        """Windows of other documents that likely do not answer, with the teacher's probability."""
        query = self._made.queries[number]
        answering = self._answering[query_key(query.asked.query)]
        kept = []
        answers = informative_answers(query)
        for one, probability in zip(candidates, self._teacher.probabilities(candidates), strict=True):
            if window_of(one) in answering or same_document(self._made, query, one):
                continue
            if answers and holds_answer(self._made.windows[window_of(one)].text, answers):
                self._drops.add("negative left out: the answer stands in it", query.text)
            elif probability >= self._settings.likely_relevant:
                self._drops.add("negative left out: the teacher holds it for relevant", query.text)
            else:
                kept.append((one, float(probability)))
        return kept

    def _mined(self, query: QaQuery, one: Scored, probability: float) -> Example:
        score = target(probability, None, self._settings.likely_relevant)
        return self._example(query, window_of(one), score, "no")

    def _example(
        self,
        query: QaQuery,
        window: int,
        score: float,
        verdict: str,
        contribution: str | None = None,
        evidence: str | None = None,
    ) -> Example:
        passage = self._made.windows[window]
        # A title above the text would answer queries made of it without reading.
        shown = query.kind not in ("heading", "title") and self._shows_title(passage)
        return Example(
            query=query.text,
            document=passage.text,
            doc_id=passage.id,
            query_id=query.id,
            title=passage.title if shown else None,
            source=f"{query.asked.set}/{query.kind}",
            language=passage.language,
            teacher_score=score,
            verdict="yes" if verdict == "yes" else "no",
            contribution=contribution,
            evidence=evidence,
            losses=("distill",) if verdict == "yes" and contribution is None else ("distill", "sft"),
        )

    def _shows_title(self, passage: Passage) -> bool:
        return bool(passage.title) and int(stable_id("title", passage.id), 16) < self._settings.titles * 2**64
