"""Questions whose documents share their words and do not answer them: who ranks, judges and quotes right all the same?

One document of a question answers it, or none does. Ties rank the answering document last. A document that could not be
judged stands below all others and has no verdict, which is never the right one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from prism.errors import DataError
from prism.evaluation.answers import contains_answer
from prism.files.jsonl import Drops, dumps, read_rows
from prism.measures.statistics import Interval, mean_interval
from prism.records import first_problem
from prism.retrieval.bm25 import Bm25
from prism.retrieval.dense import Encoder
from prism.types import Document, Judgment, Outcome, Record

Kind = Literal["paraphrase", "keyword", "question", "unanswerable"]
KINDS: Sequence[Kind] = ("paraphrase", "keyword", "question", "unanswerable")
_STEMMERS = {"en": "english", "de": "german", "ru": "russian"}
_RANKING = """\
| ranking | questions | right document first | 95 % interval | MRR | verdicts right | false yes | false no | AUC \
| unanswerable without a yes | good | flawless |
|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|"""
_LEGEND = """\
Intervals: bootstrap over questions, which has no width where none or all are right, however few there are.
AUC: chance that a right document scores above a wrong one, over all questions. Good: the right document first, with
a yes, or no yes where nothing answers. Flawless: every verdict right, too. Ties count against the right document."""
_TEXTS = """\
| texts | asked for | complete | only the query again | fidelity | right documents with a yes | answer in evidence \
| answer in contribution |
|---|---:|---:|---:|---:|---:|---:|---:|"""


class Question(Record):
    """One question, its documents, and what answers it."""

    id: str
    language: str
    kind: Kind
    query: str
    answers: tuple[str, ...]
    """Ids of the documents that answer: one, or none for an unanswerable question."""
    answer: str | None
    """The answer in a few words, as the document has it."""
    evidence: tuple[str, ...]
    """The sentences that answer, word for word."""
    documents: tuple[Document, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        texts = {document.id: document.text for document in self.documents}
        if None in texts or len(texts) < len(self.documents):
            raise ValueError("each document needs an id of its own")
        if self.kind == "unanswerable":
            if self.answers or self.answer is not None or self.evidence:
                raise ValueError("an unanswerable question has no answer and no evidence")
            return self
        if len(self.answers) != 1 or self.answers[0] not in texts:
            raise ValueError(f"expected one document of the question in answers, got {list(self.answers)}")
        if not self.evidence or any(sentence not in texts[self.answers[0]] for sentence in self.evidence):
            raise ValueError("evidence must stand in the answering document word for word")
        if not self.answer or not any(self.answer in sentence for sentence in self.evidence):
            raise ValueError("the answer must stand in the evidence")
        return self


class Reranks(Protocol):
    """What is measured: `Reranker` fits."""

    def rerank(self, query: str, documents: Sequence[Document], *, evidence: bool) -> Iterable[Judgment]: ...


class Answered(NamedTuple):
    """A question and what a reranker said about its documents."""

    question: Question
    judgments: tuple[Judgment, ...]
    """In the order of the question's documents."""

    @property
    def relevant(self) -> list[bool]:
        return [document.id in self.question.answers for document in self.question.documents]

    @property
    def right(self) -> Judgment | None:
        """The judgment of the document that answers."""
        return next((j for j, relevant in zip(self.judgments, self.relevant, strict=True) if relevant), None)

    @property
    def rank(self) -> int | None:
        """Of the document that answers; None where none does."""
        return None if self.right is None else _rank([_score(j) for j in self.judgments], self.relevant.index(True))

    @property
    def flawless(self) -> bool:
        """Every verdict is right, and the document that answers comes first."""
        verdicts = ["yes" if relevant else "no" for relevant in self.relevant]
        return [j.verdict for j in self.judgments] == verdicts and self.rank in (1, None)

    @property
    def good(self) -> bool:
        """The document that answers comes first, with a yes; where none answers, none gets a yes."""
        if self.right is None:
            return all(judgment.verdict != "yes" for judgment in self.judgments)
        return self.rank == 1 and self.right.verdict == "yes"


class Ranks(Record):
    """Where the answering documents of some questions came."""

    questions: int
    first: float
    """Share that came first."""
    first_interval: Interval
    """95 %, bootstrap over questions."""
    mrr: float


class Measures(Record):
    """Everything measured on some questions. None where there is nothing to measure on."""

    ranks: Ranks | None
    documents: int
    verdicts_right: float
    false_yes: int
    false_no: int
    """Answering documents without a yes."""
    auc: float | None
    """Chance that an answering document scores above one that does not answer, over all questions' documents."""
    unanswerable: int
    left_alone: int
    """Unanswerable questions for which no document got a yes."""
    good: int
    """Questions with the answering document first and a yes for it, or no yes where none answers."""
    flawless: int
    """Questions with every verdict right and the answering document first."""
    written: int
    """Documents with a yes: a text was asked for."""
    complete: float | None
    """Share of the texts that say something and are whole."""
    uninformative: int
    """Texts that are whole but for a contribution that only says the query again."""
    found: int
    """Answering documents with a yes: the two shares below are of these."""
    answer_in_evidence: float | None
    answer_in_contribution: float | None
    fidelity: float | None
    """Mean share of the checkable facts in the written texts that the document holds."""


def read_questions(path: Path) -> list[Question]:
    """One question a line. Raises DataError with the line of what is wrong."""
    questions: dict[str, Question] = {}
    for place, row in read_rows(path, Drops()):
        try:
            question = Question.model_validate_json(dumps(row))
        except ValidationError as error:
            raise DataError(f"{place}: {first_problem(error)}") from None
        if question.id in questions:
            raise DataError(f"{place}: the id {question.id!r} was used before: give each its own")
        questions[question.id] = question
    if not questions:
        raise DataError(f"{path} holds no question: expected one JSON object a line")
    return list(questions.values())


def ask(
    reranker: Reranks,
    questions: Sequence[Question],
    progress: Callable[[int], None] = lambda _: None,
    evidence: bool = True,
) -> list[Answered]:
    """Put every question to a reranker, evidence included or not. `progress` hears how many questions are done."""
    answered = []
    for number, question in enumerate(questions, start=1):
        judgments = sorted(
            reranker.rerank(question.query, question.documents, evidence=evidence), key=lambda judgment: judgment.index
        )
        answered.append(Answered(question, tuple(judgments)))
        progress(number)
    return answered


def bm25(questions: Sequence[Question]) -> dict[str, int]:
    """Rank of the answering document by BM25 over titles and texts of all questions of its language, by question id."""
    ranks = {}
    for language in {question.language for question in questions}:
        ours = [question for question in questions if question.language == language]
        texts = list(dict.fromkeys(_text(document) for question in ours for document in question.documents))
        place = {text: position for position, text in enumerate(texts)}
        hits = Bm25(texts, stemmer=_STEMMERS.get(language)).search([question.query for question in ours], len(texts))
        for question, found in zip(ours, map(dict, hits), strict=True):
            if question.answers:
                scores = [found.get(place[_text(document)], 0.0) for document in question.documents]
                ids = [document.id for document in question.documents]
                ranks[question.id] = _rank(scores, ids.index(question.answers[0]))
    return ranks


def dense(questions: Sequence[Question], encoder: Encoder) -> dict[str, int]:
    """Rank of the answering document by cosine similarity of title and text to the query, by question id."""
    ranks = {}
    for question in questions:
        if question.answers:
            vectors = encoder.documents([_text(document) for document in question.documents])
            scores = (vectors @ encoder.queries([question.query])[0]).tolist()
            ids = [document.id for document in question.documents]
            ranks[question.id] = _rank(scores, ids.index(question.answers[0]))
    return ranks


def _text(document: Document) -> str:
    return f"{document.title or ''} {document.text}"


def slices(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Ids of questions by language, English first, and by kind in languages of twenty questions and more."""
    found: dict[str, list[str]] = {}
    for language in sorted({question.language for question in questions}, key=lambda name: (name != "en", name)):
        ours = [question for question in questions if question.language == language]
        found[language] = [question.id for question in ours]
        if len(ours) >= 20:
            found |= {f"{language}, {kind}": [q.id for q in ours if q.kind == kind] for kind in KINDS}
    return {name: ids for name, ids in found.items() if ids}


def baseline(questions: Sequence[Question], ranks: Mapping[str, int]) -> dict[str, Ranks | None]:
    """`ranks` by question id, measured by language and kind."""
    return {name: measure_ranks([ranks[i] for i in ids if i in ranks]) for name, ids in slices(questions).items()}


def measure_ranks(ranks: Sequence[int]) -> Ranks | None:
    """Share on top with its interval, and mean reciprocal rank; None without ranks."""
    if not ranks:
        return None
    first = [float(rank == 1) for rank in ranks]
    interval = mean_interval(first) if len(first) > 1 else Interval(first[0], first[0])
    return Ranks(
        questions=len(ranks),
        first=float(np.mean(first)),
        first_interval=interval,
        mrr=float(np.mean(1.0 / np.asarray(ranks, dtype=float))),
    )


def measure(answered: Sequence[Answered]) -> Measures:
    """All measures of one set of answered questions."""
    pairs = [pair for one in answered for pair in zip(one.judgments, one.relevant, strict=True)]
    written = [judgment for judgment, _ in pairs if judgment.verdict == "yes"]
    found = [(one.right, [one.question.answer or ""]) for one in answered if one.right and one.right.verdict == "yes"]
    unanswerable = [one for one in answered if one.right is None]
    return Measures(
        ranks=measure_ranks([one.rank for one in answered if one.rank is not None]),
        documents=len(pairs),
        verdicts_right=float(np.mean([j.verdict == ("yes" if relevant else "no") for j, relevant in pairs])),
        false_yes=sum(j.verdict == "yes" and not relevant for j, relevant in pairs),
        false_no=sum(j.verdict != "yes" and relevant for j, relevant in pairs),
        auc=_auc([_score(j) for j, r in pairs if r], [_score(j) for j, r in pairs if not r]),
        unanswerable=len(unanswerable),
        left_alone=sum(one.good for one in unanswerable),
        good=sum(one.good for one in answered),
        flawless=sum(one.flawless for one in answered),
        written=len(written),
        complete=_mean(judgment.outcome is Outcome.COMPLETE for judgment in written),
        uninformative=sum(judgment.outcome is Outcome.UNINFORMATIVE for judgment in written),
        found=len(found),
        answer_in_evidence=_mean(contains_answer(judgment.evidence or "", answer) for judgment, answer in found),
        answer_in_contribution=_mean(
            contains_answer(judgment.contribution or "", answer) for judgment, answer in found
        ),
        fidelity=_mean(judgment.check.fidelity.score for judgment in written if judgment.check),
    )


def by_slice(answered: Sequence[Answered]) -> dict[str, Measures]:
    """Measures by language and kind."""
    by_id = {one.question.id: one for one in answered}
    return {
        name: measure([by_id[id_] for id_ in ids]) for name, ids in slices([one.question for one in answered]).items()
    }


# --- the page --------------------------------------------------------------------------------------------------------


def markdown(
    answered: Mapping[str, Sequence[Answered]], baselines: Mapping[str, Mapping[str, Ranks | None]], seed: int = 17
) -> str:
    """Tables of all models and `baselines` by language and kind, and for each model ten examples, drawn by `seed`."""
    measured = {name: by_slice(ones) for name, ones in answered.items()}
    lines = ["# Everyday questions", "", _RANKING]
    for part in next(iter(measured.values())):
        lines += [_ranking_row(f"{name}: {part}", measures[part]) for name, measures in measured.items()]
        for name, found in baselines.items():
            if ranks := found[part]:
                lines.append(f"| {name}: {part} | {ranks.questions} |{_shown_ranks(ranks)} | | | | | | | |")
    lines += ["", _LEGEND, "", _TEXTS]
    for name, measures in measured.items():
        lines += [_texts_row(f"{name}: {part}", found) for part, found in measures.items()]
    for name, ones in answered.items():
        lines += ["", *_examples(name, ones, seed)]
    return "\n".join(lines) + "\n"


def _ranking_row(title: str, found: Measures) -> str:
    questions = (found.ranks.questions if found.ranks else 0) + found.unanswerable
    right = f"{round(found.verdicts_right * found.documents)} of {found.documents}"
    alone = f"{found.left_alone} of {found.unanswerable}" if found.unanswerable else ""
    return (
        f"| {title} | {questions} |{_shown_ranks(found.ranks)} | {right} | {found.false_yes} | {found.false_no} "
        f"| {_shown(found.auc)} | {alone} | {found.good} | {found.flawless} |"
    )


def _shown_ranks(found: Ranks | None) -> str:
    if found is None:
        return " | |"
    low, high = found.first_interval
    first = f"{round(found.first * found.questions)} of {found.questions} ({found.first:.3f})"
    return f" {first} | {low:.3f} to {high:.3f} | {found.mrr:.3f}"


def _texts_row(title: str, found: Measures) -> str:
    shares = [_shown(value) for value in (found.answer_in_evidence, found.answer_in_contribution)]
    written = f"{found.written} | {_shown(found.complete)} | {found.uninformative} | {_shown(found.fidelity)}"
    return f"| {title} | {written} | {found.found} | {' | '.join(shares)} |"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _examples(name: str, answered: Sequence[Answered], seed: int) -> Iterator[str]:
    """Ten by seed, five good and five bad where there are as many."""
    drawn = random.Random(seed).sample(answered, len(answered))
    good, bad = [one for one in drawn if one.good], [one for one in drawn if not one.good]
    bad = bad[: max(5, 10 - len(good))]
    good = good[: 10 - len(bad)]
    yield f"## {name}: examples drawn by seed {seed}"
    yield ""
    for sort, ones in (("good", good), ("bad", bad)):
        for one in ones:
            yield from _example(sort, one)


def _example(sort: str, one: Answered) -> Iterator[str]:
    question = one.question
    expected = f"the answer is: {question.answer}" if question.answers else "nothing answers it"
    yield f"- **{question.query}** ({question.language}, {question.kind}, {sort}; {expected})"
    if one.right is not None:
        yield f"    - right document, rank {one.rank}: {_said(one.right)}"
    others = [judgment for judgment, relevant in zip(one.judgments, one.relevant, strict=True) if not relevant]
    best = max(others, key=_score)
    yield f"    - best of the others, {best.title or 'without title'}: {_said(best)}"


def _said(judgment: Judgment) -> str:
    verdict = judgment.error or f"{judgment.verdict} {_score(judgment):.2f}"
    texts = {"contribution": judgment.contribution, "evidence": judgment.evidence}
    return "; ".join([verdict, *(f"{name}: {' '.join(text.split())}" for name, text in texts.items() if text)])


# --- numbers ---------------------------------------------------------------------------------------------------------


def _score(judgment: Judgment) -> float:
    return -1.0 if judgment.score is None else judgment.score


def _rank(scores: Sequence[float], place: int) -> int:
    """Of the document at `place`; ties go against it."""
    return sum(score >= scores[place] for score in scores)


def _auc(yes: Sequence[float], no: Sequence[float]) -> float | None:
    """Mann and Whitney's: ties count half."""
    if not yes or not no:
        return None
    difference = np.subtract.outer(yes, no)
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def _mean(values: Iterable[float]) -> float | None:
    given = list(values)
    return float(np.mean(given)) if given else None
