"""Everyday questions: the file holds what it promises, and the measures are those worked out by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import everyday as script
from prism import evidence
from prism.errors import DataError
from prism.retrieval.dense import Vectors
from prism.types import Document, Judgment, Outcome
from studies.everyday import (
    Answered,
    Question,
    ask,
    baseline,
    bm25,
    by_slice,
    dense,
    markdown,
    measure,
    measure_ranks,
    read_questions,
)

SCRIPT = Path(__file__).resolve().parents[1] / "eval" / "everyday.py"
QUESTIONS = SCRIPT.parent / "everyday" / "questions.jsonl"


@pytest.fixture(scope="module")
def everyday() -> list[Question]:
    return read_questions(QUESTIONS)


# --- the file: ids, verbatim evidence and answers are checked by `Question` as it is read ----------------------------


def test_as_many_questions_as_the_page_says(everyday):
    found = Counter((question.language, question.kind) for question in everyday)
    english = {kind: found["en", kind] for kind in ("paraphrase", "keyword", "question", "unanswerable")}
    assert english == {"paraphrase": 30, "keyword": 10, "question": 8, "unanswerable": 12}
    assert Counter(question.language for question in everyday) == {"en": 60, "de": 8, "ru": 6, "zh": 8, "ja": 4}


def test_documents_are_short_and_none_is_given_twice(everyday):
    for question in everyday:
        assert len(question.documents) == (6 if question.language == "en" else 4), question.id
        texts = [document.text for document in question.documents]
        assert len(set(texts)) == len(texts), question.id
        if question.language == "en":
            assert all(40 <= len(text.split()) <= 120 for text in texts), question.id


def test_a_place_gives_nothing_away(everyday):
    places = Counter(question.answers[0] for question in everyday if question.answers and question.language == "en")
    assert places == {f"d{place}": 8 for place in range(1, 7)}


def test_shared_words_do_not_find_the_answer(everyday):
    ranks = bm25(everyday)
    assert ranks.keys() == {question.id for question in everyday if question.answers}
    assert sum(rank == 1 for rank in ranks.values()) <= 0.1 * len(ranks)


# --- what is wrong with a line is said -------------------------------------------------------------------------------


def line(**changed: object) -> str:
    whole: dict[str, object] = {
        "id": "q", "language": "en", "kind": "paraphrase", "query": "when does it open", "answers": ["a"],
        "answer": "at nine", "evidence": ["Doors are unlocked at nine."],
        "documents": [{"id": "a", "text": "Doors are unlocked at nine. Bring tea."}, {"id": "b", "text": "Open it."}],
    }  # fmt: skip
    return json.dumps({**whole, **changed})


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"evidence": ["Doors are unlocked at ten."]}, "word for word"),
        ({"answer": "at ten"}, "must stand in the evidence"),
        ({"answers": ["c"]}, "expected one document"),
        ({"answers": ["a", "b"]}, "expected one document"),
        ({"kind": "unanswerable"}, "has no answer"),
        ({"kind": "riddle"}, "kind"),
        ({"documents": [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]}, "an id of its own"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, changed, problem):
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{line(id='fine')}\n{line(**changed)}\n", encoding="utf-8")
    with pytest.raises(DataError, match=f":2: .*{problem}"):
        read_questions(path)


def test_an_id_used_twice_and_an_empty_file_are_refused(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{line()}\n{line()}\n", encoding="utf-8")
    with pytest.raises(DataError, match=":2: the id 'q' was used before"):
        read_questions(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="no question"):
        read_questions(path)


# --- measures, by hand -----------------------------------------------------------------------------------------------

TEXTS = ("It opens at nine.", "Closed since May 1990.", "Tea costs two.")


class Scripted:
    """Scores by query and place, None for a document that fails; says yes from 0.5 on and writes what it is told to."""

    def __init__(self, scores: Mapping[str, Sequence[float | None]], said: Mapping[str, tuple[str, str]]) -> None:
        self.scores, self.said = scores, said

    def rerank(self, query: str, documents: Sequence[Document], *, evidence: bool) -> list[Judgment]:
        assert evidence
        made = [self._judge(query, place, document) for place, document in enumerate(documents)]
        return sorted(made, key=lambda judgment: -(judgment.score or 0.0))

    def _judge(self, query: str, place: int, document: Document) -> Judgment:
        score = self.scores[query][place]
        if score is None:
            return Judgment(index=place, id=document.id, score=None, verdict=None, error="too long")
        if score < 0.5:
            return Judgment(index=place, id=document.id, score=score, verdict="no")
        said = self.said.get(document.text)
        if said is None:
            return Judgment(index=place, id=document.id, score=score, verdict="yes", outcome=Outcome.MALFORMED)
        return Judgment(
            index=place, id=document.id, score=score, verdict="yes", outcome=Outcome.COMPLETE, contribution=said[0],
            evidence=said[1], check=evidence.check(said[1], document.text),
        )  # fmt: skip


def question(query: str, answers: tuple[str, ...] = ("a",), kind: str = "paraphrase") -> Question:
    documents = tuple(Document(id=id_, text=text) for id_, text in zip("abc", TEXTS, strict=True))
    known = {"answer": "at nine", "evidence": (TEXTS[0],)} if answers else {"answer": None, "evidence": ()}
    return Question.model_validate(
        {"id": query, "language": "en", "kind": kind, "query": query, "answers": answers, "documents": documents}
        | known
    )


ASKED = [
    question("first"),
    question("second"),
    question("tied"),
    question("failed"),
    question("none", (), "unanswerable"),
]
RERANKER = Scripted(
    {
        "first": (0.9, 0.2, 0.1),  # flawless
        "second": (0.6, 0.8, 0.1),  # one false yes, rank 2
        "tied": (0.3, 0.3, 0.3),  # a false no, rank 3: ties go against it
        "failed": (None, 0.1, None),  # a false no, rank 3
        "none": (0.2, 0.1, 0.0),  # left alone: flawless
    },
    {TEXTS[0]: ("It says: at nine!", TEXTS[0]), TEXTS[1]: ("It closed.", "Closed since May 1991.")},
)  # fmt: skip


def test_measures_by_hand():
    found = measure(ask(RERANKER, ASKED))
    assert found.ranks is not None
    assert (found.ranks.questions, found.ranks.first) == (4, 0.25)
    assert found.ranks.mrr == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 3) / 4)
    assert found.ranks.first_interval == (0.0, 0.75)  # P(0 of 4) is 0.316, P(3 or more) 0.051, P(4) 0.004
    # Wrong: the false yes of "second", the false no of "tied", the two documents of "failed" without a verdict.
    assert found.documents == 15
    assert found.verdicts_right == pytest.approx(11 / 15)
    assert (found.false_yes, found.false_no) == (1, 2)
    assert (found.unanswerable, found.left_alone, found.good, found.flawless) == (1, 1, 2, 2)
    assert (found.written, found.found) == (3, 2)
    assert (found.complete, found.answer_in_evidence, found.answer_in_contribution) == (1.0, 1.0, 1.0)
    # Answering documents score 0.9, 0.6, 0.3 and fail; the eleven others score 0.8, 0.3, 0.3, 0.2, 0.2, four times 0.1,
    # 0.0 and fail: 11 + 10 + (8 + 2 / 2) + 1 / 2 pairs of 44.
    assert found.auc == pytest.approx(30.5 / 44)
    # "at nine" has nothing to check, twice; "May 1991", the only date of the third text, is not in its document.
    assert found.fidelity == pytest.approx(2 / 3)


def test_texts_that_miss_the_answer_or_do_not_parse():
    vague = Scripted({"first": (0.9, 0.5, 0.1)}, {TEXTS[0]: ("It helps.", "It opens.")})
    found = measure(ask(vague, ASKED[:1]))
    assert (found.answer_in_evidence, found.answer_in_contribution) == (0.0, 0.0)
    assert found.complete == 0.5  # nothing is written for the second document
    assert (found.good, found.flawless) == (1, 0)  # the right one is first, the second one's yes is false


def test_nothing_to_measure_is_not_zero():
    silent = measure(ask(Scripted({"none": (0.7, 0.1, 0.1)}, {}), ASKED[-1:]))
    assert (silent.ranks, silent.auc, silent.answer_in_evidence, silent.fidelity) == (None, None, None, None)
    assert (silent.unanswerable, silent.left_alone, silent.false_yes) == (1, 0, 1)


def test_bm25_ranks_by_words_and_ties_count_against_the_answer():
    ranks = bm25([question("closed since May"), question("nine opens"), question("zebra")])
    assert ranks == {"closed since May": 3, "nine opens": 1, "zebra": 3}


class ByLength:
    """Vectors on the unit circle, the longer the text the farther from a query."""

    def queries(self, texts: Sequence[str]) -> Vectors:
        return np.asarray([[1.0, 0.0] for _ in texts], dtype=np.float32)

    def documents(self, texts: Sequence[str]) -> Vectors:
        angles = [len(text) / 100 for text in texts]
        return np.asarray([[np.cos(angle), np.sin(angle)] for angle in angles], dtype=np.float32)


def test_dense_ranks_by_similarity():
    # The texts have 17, 22 and 14 characters, and the first answers.
    assert dense([question("first"), *ASKED[-1:]], ByLength()) == {"first": 2}


def test_a_contribution_that_repeats_the_query_is_counted():
    answered = ask(Scripted({"first": (0.9, 0.5, 0.1)}, RERANKER.said), ASKED[:1])
    first, *others = answered[0].judgments
    repeated = first.model_copy(update={"outcome": Outcome.UNINFORMATIVE})
    found = measure([Answered(answered[0].question, (repeated, *others))])
    assert (found.written, found.uninformative, found.complete) == (2, 1, 0.5)


def test_baselines_are_measured_by_language():
    found = baseline(ASKED, {"first": 1, "second": 2, "tied": 1, "failed": 2})
    assert found == {"en": measure_ranks([1, 2, 1, 2])}
    assert found["en"] is not None
    assert (found["en"].first, found["en"].mrr) == (0.5, 0.75)


def test_progress_hears_of_every_question():
    heard: list[int] = []
    ask(RERANKER, ASKED, heard.append)
    assert heard == [1, 2, 3, 4, 5]


BASELINE = {"BM25": {"en": measure_ranks([3, 3, 3, 1])}}


def test_page():
    ones = ask(RERANKER, ASKED)
    page = markdown({"ours": ones}, BASELINE)
    assert (
        "| ours: en | 5 | 1 of 4 (0.250) | 0.000 to 0.750 | 0.542 | 11 of 15 | 1 | 2 | 0.693 | 1 of 1 | 2 | 2 |" in page
    )
    assert "| BM25: en | 4 | 1 of 4 (0.250) |" in page
    assert f"| ours: en | 3 | 1.000 | 0 | {by_slice(ones)['en'].fidelity:.3f} | 2 | 1.000 | 1.000 |" in page
    assert [page.count(f", {sort}; ") for sort in ("good", "bad")] == [2, 3]
    assert (
        "    - right document, rank 2: yes 0.60; contribution: It says: at nine!; evidence: It opens at nine." in page
    )
    assert "    - right document, rank 3: too long" in page
    assert page == markdown({"ours": ones}, BASELINE)


@pytest.mark.parametrize(("good", "bad", "shown"), [(20, 20, (5, 5)), (2, 20, (2, 8)), (20, 3, (7, 3)), (1, 2, (1, 2))])
def test_ten_examples_of_both_sorts(good, bad, shown):
    asked = [question(f"good {number}") for number in range(good)] + [
        question(f"bad {number}") for number in range(bad)
    ]
    scores = {one.query: (0.9, 0.1, 0.1) if "good" in one.query else (0.1, 0.9, 0.1) for one in asked}
    page = markdown({"ours": ask(Scripted(scores, RERANKER.said), asked)}, {})
    assert tuple(page.count(f", {sort}; ") for sort in ("good", "bad")) == shown


def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(script.main)
    return made


def test_the_script_asks_a_checkpoint_and_writes_both_reports(tmp_path, tiny_checkpoint):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(QUESTIONS.read_text(encoding="utf-8").splitlines()[:2]) + "\n", encoding="utf-8")
    done = CliRunner().invoke(
        app(),
        ["--model", str(tiny_checkpoint), "--template", "prism", "--questions", str(path), "--out", str(tmp_path)],
    )
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    (model,) = report["models"].values()
    assert [len(asked["documents"]) for asked in model["questions"]] == [6, 6]
    assert model["measures"]["en"]["documents"] == 12
    assert report["baselines"]["BM25"]["en"]["questions"] == 2
    assert report["questions_sha256"] == sha256(path.read_bytes()).hexdigest()
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| BM25: en | 2 |" in page
    assert "Command: `python" in page


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    done = CliRunner().invoke(app(), ["--model", str(tmp_path / "missing")])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
