"""Records from question-passage sets: windows, places, negatives, teacher, contributions, splits, caps."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from prism import cli
from prism.data.contributions import contribute, echoes, stated, topic_terms
from prism.data.placing import Overlap, cut_texts, holds_answer, place_answer
from prism.data.qa import build
from prism.data.qa_teacher import LabelledPassage, Teacher, target
from prism.data.splits import query_key
from prism.errors import DataError
from prism.evidence.passages import evidence_text
from prism.files.corpus import Text
from prism.files.examples import read_examples
from prism.files.jsonl import Drops
from prism.files.qa_sets import QaQuestion, gather
from prism.files.qa_settings import Cap, HeldOut, Qa, Windows
from prism.types import Example
from studies.held_out import read_groups

THINGS = ["lantern", "copper", "turbine", "glacier", "ledger", "orchard", "signal", "valley", "engine", "bridge"]
PLACES = ["Lindau", "Bregenz", "Konstanz", "Rorschach", "Arbon", "Romanshorn", "Meersburg", "Hagnau"]


def saved(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


def pair(number: int, **changes: Any) -> dict[str, Any]:
    """A question with the passage that answers it; every fourth is one that the passage does not answer."""
    thing, town = f"{THINGS[number % 10]}{number}", PLACES[number % 8]
    passage = (
        f"The {thing} of {town} stands on a hill above the lake and is well known. "
        f"It was built in {1500 + number} by a guild of local masters. "
        f"Every winter the people of {town} clean the {thing} and paint its doors."
    )
    row = {"question": f"When was the {thing} of {town} built?", "passage": passage, "evidence": [], "lang": "en"}
    row |= {"label": 1, "answers": [str(1500 + number)], "title": f"{thing} {town}"}
    if number % 4 == 3:
        row |= {"question": f"Who repaired the {thing} of {town}?", "label": 0, "answers": []}
    return {**row, **changes}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return saved(tmp_path / "in" / "made.en.jsonl.gz", [pair(n) for n in range(160)])


SMALL = {
    "windows": Windows(shortest=60, smallest=400, largest=500),
    "held_out": HeldOut(share=0.25, negatives=3),
    "hard": 2,
    "easy": 1,
}


def records(folder: Path, name: str = "train") -> list[Example]:
    return list(read_examples(folder / f"{name}.jsonl"))


# --- the whole build -------------------------------------------------------------------------------------------------


def test_positives_say_what_the_document_gives(pairs, tmp_path):
    build(Qa(files=(pairs,), keywords=0.0, **SMALL), tmp_path / "out", 1)
    yes = [one for one in records(tmp_path / "out") if one.verdict == "yes"]
    assert len(yes) > 60
    wordings = Counter()
    for one in yes:
        year = one.query.split()[3].lstrip("abcdefghijklmnopqrstuvwxyz")
        assert one.evidence == f"It was built in {1500 + int(year)} by a guild of local masters."
        assert str(1500 + int(year)) in one.contribution
        assert "date" in one.contribution
        assert not echoes(one.contribution, one.query, "en")
        assert 0.9 <= one.teacher_score <= 0.98
        wordings[one.contribution.replace(str(1500 + int(year)), "")] += 1
    assert len(wordings) == 4  # all wordings are used


def test_what_people_said_does_not_answer_is_a_hard_no(pairs, tmp_path):
    build(Qa(files=(pairs,), **SMALL), tmp_path / "out", 1)
    asked = [one for one in records(tmp_path / "out") if one.query.startswith("Who repaired")]
    assert len(asked) > 20
    for one in asked:
        thing = one.query.split()[3]
        assert f"The {thing} of" in one.document  # its own passage
        assert (one.verdict, one.evidence, one.contribution) == ("no", None, None)
        assert 0.02 <= one.teacher_score <= 0.15


def test_negatives_are_other_documents_and_no_window_has_a_prior(pairs, tmp_path):
    build(Qa(files=(pairs,), **SMALL), tmp_path / "out", 1)
    made = records(tmp_path / "out")
    own = {one.query_id: one for one in made if one.verdict == "yes"}
    as_positive = Counter(one.doc_id for one in own.values())
    mined = [one for one in made if one.verdict == "no" and one.query_id in own]
    as_negative = Counter(one.doc_id for one in mined)
    assert all(as_negative[id_] <= 3 * as_positive[id_] for id_ in as_negative)
    assert len(mined) > 2.4 * len(own)
    for one in mined:
        assert one.doc_id != own[one.query_id].doc_id
        assert (
            own[one.query_id].contribution.split()[-1].strip(".") not in one.document
        )  # no other passage has its year
        assert 0.01 <= one.teacher_score <= 0.5


def test_no_document_and_no_query_stands_on_both_sides(pairs, tmp_path):
    report = build(Qa(files=(pairs,), **SMALL), tmp_path / "out", 1)
    train, dev = records(tmp_path / "out"), records(tmp_path / "out", "dev")
    assert {one.document for one in train}.isdisjoint({one.document for one in dev})
    assert {query_key(one.query) for one in train}.isdisjoint({query_key(one.query) for one in dev})
    groups = read_groups(tmp_path / "out" / "dev.jsonl")
    assert len(groups) > 10
    assert all(len(group.negatives) == 3 for group in groups)
    assert {group.kind for group in groups} <= {"question", "keyword"}
    assert report["train"]["records"] == len(train)
    assert sum(report["train"]["by_source"].values()) == len(train)


def test_a_question_on_several_documents_is_held_out_of_training_with_one_of_them(tmp_path):
    shared = [pair(n, question=f"What do people paint in winter number {n // 4}?", label=1) for n in range(160)]
    build(Qa(files=(saved(tmp_path / "s.jsonl", shared),), keywords=0.0, **SMALL), tmp_path / "out", 1)
    train, dev = records(tmp_path / "out"), records(tmp_path / "out", "dev")
    assert dev
    assert {one.query for one in train}.isdisjoint({one.query for one in dev})


def test_build_is_reproducible_and_a_finished_one_is_reused(pairs, tmp_path):
    settings = Qa(files=(pairs,), **SMALL)
    for name in ("a", "b"):
        build(settings, tmp_path / name, 5)
    for name in ("train.jsonl", "dev.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    said: list[str] = []
    before = (tmp_path / "a" / "report.json").read_bytes()
    build(settings, tmp_path / "a", 5, said.append)
    assert said == [f"reusing {tmp_path / 'a'}"]
    build(settings, tmp_path / "a", 6)
    assert (tmp_path / "a" / "report.json").read_bytes() != before
    saved(pairs, [pair(n) for n in range(120)])  # other content under the same name
    said.clear()
    build(settings, tmp_path / "a", 6, said.append)
    assert said[0].startswith("120 questions")


def test_caps_limits_and_repeats(tmp_path):
    rows = [pair(n) for n in range(120)]
    many = [pair(0, question=f"In which year number {n} was the lantern0 built?") for n in range(10)]
    files = (saved(tmp_path / "one.jsonl", rows), saved(tmp_path / "two.jsonl", [*many, *many]))
    caps = {"one": Cap(questions=100), "two": Cap(per_passage=3)}
    report = build(Qa(files=files, caps=caps, **SMALL), tmp_path / "out", 1)
    dropped = {reason: found["count"] for reason, found in report["dropped"].items()}
    assert dropped["one: over the cap of questions"] == 20
    assert dropped["two: over the cap of questions on a passage"] == 7 + 7  # of the repeats none was counted
    limited = build(Qa(files=files[:1], limit=60, keywords=0.0, **SMALL), tmp_path / "few", 1)
    asked = {one.query for name in ("train", "dev") for one in records(tmp_path / "few", name)}
    assert len(asked) <= 60
    assert limited["train"]["records"] < report["train"]["records"]
    with pytest.raises(DataError, match="caps: no set 'three': there are one, two"):
        build(Qa(files=files, caps={"three": Cap()}, **SMALL), tmp_path / "x", 1)


def test_where_people_disagree_those_who_found_the_answer_stand(tmp_path):
    rows = [pair(n, label=label) for n in range(120) if n % 4 != 3 for label in (0, 1)]
    report = build(Qa(files=(saved(tmp_path / "r.jsonl", rows),), keywords=0.0, **SMALL), tmp_path / "out", 1)
    assert report["dropped"]["r: people disagree, and others found the answer"]["count"] > 0
    own = [one for one in records(tmp_path / "out") if one.query.split()[3] in one.document]
    assert {one.verdict for one in own} == {"yes"}


class Vowels:
    """An encoder that knows only which things and towns are named: unit vectors."""

    def __init__(self) -> None:
        self.texts = 0

    def _unit(self, texts: Sequence[str]) -> Any:
        self.texts += len(texts)
        found = np.array([[text.count(name) for name in (*THINGS, *PLACES)] for text in texts], dtype=np.float32) + 0.01
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    queries = documents = _unit


def test_a_dense_model_brings_negatives_of_its_own(pairs, tmp_path):
    settings = Qa(files=(pairs,), keywords=0.0, **SMALL)
    build(settings, tmp_path / "bm25", 1)
    encoder = Vowels()
    build(settings.model_copy(update={"dense": "vowels"}), tmp_path / "both", 1, encoder=encoder)

    def mined(folder: Path) -> dict[str, set[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        for one in records(folder):
            if one.verdict == "no":
                found[one.query].add(one.doc_id)
        return found

    first, second = mined(tmp_path / "bm25"), mined(tmp_path / "both")
    assert sum(first[query] != second[query] for query in second) > len(second) // 4
    before = encoder.texts
    (tmp_path / "both" / "report.json").unlink()
    build(settings.model_copy(update={"dense": "vowels"}), tmp_path / "both", 1, encoder=encoder)
    assert encoder.texts - before < before / 2 + 20  # vectors of windows are kept; those of the queries are made anew


def test_evaluation_sets_are_refused_and_what_touches_them_is_left_out(pairs, tmp_path):
    for name in ("beir/nq/train.jsonl", "data/scifact.jsonl"):
        file = saved(tmp_path / name, [pair(0)])
        with pytest.raises(DataError, match="is for evaluation only"):
            build(Qa(files=(file,), **SMALL), tmp_path / "out", 1)
    secret = saved(
        tmp_path / "test.jsonl",
        [{"query": "when was the copper1 of Bregenz built", "document": pair(4)["passage"]}],
    )
    report = build(Qa(files=(pairs,), exclude=(secret,), **SMALL), tmp_path / "out", 1)
    dropped = {reason: found["count"] for reason, found in report["dropped"].items()}
    assert dropped["made: its passage touches an evaluation set"] >= 1  # texts of one pattern share runs of words
    assert dropped["made: the question touches an evaluation set"] >= 1
    made = [*records(tmp_path / "out"), *records(tmp_path / "out", "dev")]
    assert pair(4)["passage"] not in {one.document for one in made}
    assert pair(1)["question"] not in {one.query for one in made}


def test_command(pairs, tmp_path):
    settings = tmp_path / "s.yaml"
    settings.write_text("windows: {shortest: 60, smallest: 400, largest: 500}\nheld_out: {share: 0.25, negatives: 3}\n")
    arguments = ["data", "qa", str(pairs), str(tmp_path / "out"), "--settings", str(settings), "--limit", "100"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert f"train.jsonl: {len(records(tmp_path / 'out')):,} records" in done.output
    settings.write_text("windos: {}\n")
    failed = CliRunner().invoke(cli.app, arguments)
    assert failed.exit_code == 2
    assert "s.yaml: windos" in failed.output


# --- reading ---------------------------------------------------------------------------------------------------------


def test_every_shape_of_file_is_read(tmp_path):
    body = "Cells die. " + "Mitochondria move during death of cells. " * 3
    files = [
        saved(tmp_path / "a.jsonl", [{"id": 1, "question": "Do they move?", "contexts": ["Cells die.", "They move."],
               "long_answer": "Mitochondria move while the cell is dying. More is unknown.", "decision": "yes"}]),
        saved(tmp_path / "b.jsonl", [{"title": "T", "question": "who won", "paragraph": "Ann won , they say .",
               "answers": ["Ann"], "evidence_sentence": "Ann won , they say ."}]),
        saved(tmp_path / "c.jsonl", [{"id": "x#1", "title": "T", "headings": ["H"], "text": body}]),
    ]  # fmt: skip
    folder = tmp_path / "d"
    saved(folder / "contexts.jsonl.gz", [{"id": "c1", "text": body}])
    saved(folder / "questions.jsonl", [{"question": "what moves", "context_id": "c1", "answers": ["Mitochondria"]}])
    found = gather([*files, folder], Drops())
    asked = {(one.set, one.kind): one for one in found.asked}
    assert asked["a", "question"].verdict is True
    assert asked["a", "claim"].query == "Mitochondria move while the cell is dying."
    assert found.texts[asked["b", "question"].text_id].text == "Ann won, they say."
    assert asked["b", "question"].evidence == ("Ann won, they say.",)
    assert asked["d", "question"].answers == ("Mitochondria",)
    assert [(text.id, text.group, text.heading) for text in found.sections] == [("x#1", "x", "H")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "q", "passage": "p", "label": 2}, r"x\.jsonl:1: label: expected 1 .* got 2"),
        ({"question": " ", "passage": "p", "label": 1}, r"x\.jsonl:1: question: expected text"),
        ({"question": "q", "passage": "p", "label": 1, "answers": "one"}, r"answers: expected a list of texts"),
        ({"colour": "red"}, r"x\.jsonl:1: expected one of passage, contexts, paragraph, text .* got colour"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, said):
    with pytest.raises(DataError, match=said):
        gather([saved(tmp_path / "x.jsonl", [row])], Drops())


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no file .*none"):
        build(Qa(files=(tmp_path / "none.jsonl",)), tmp_path / "out", 1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"no contexts\.jsonl\.gz"):
        gather([tmp_path / "folder"], Drops())


# --- windows and places ----------------------------------------------------------------------------------------------


def question(query: str, **known: Any) -> QaQuestion:
    fields = {"evidence": (), "answers": (), "verdict": None, "kind": "question", "set": "made", "language": "en"}
    return QaQuestion(query=query, text_id="t", relevant=True, **{**fields, **known})


LONG = Text(
    "t",
    "t",
    "",
    "",
    "Filler stands here and says little of use. " * 12
    + "The bridge opened in 1963. It cost 40 million. "
    + "More filler follows, and it says as little. " * 12,
    "made",
)


def test_windows_do_not_depend_on_the_question():
    settings = Windows(shortest=50, smallest=200, largest=200)
    windows = cut_texts(settings, [LONG])
    assert all(50 <= len(window.text) <= 200 for window in windows)
    assert "".join(LONG.text.split()) == "".join("".join(window.text.split()) for window in windows)
    sizes = {max(len(w.text) for w in cut_texts(Windows(), [LONG._replace(id=f"t{n}")])) for n in range(20)}
    assert len(sizes) > 3  # drawn for each text


@pytest.mark.parametrize(
    ("asked", "how", "evidence"),
    [
        (question("when", evidence=("The bridge opened in 1963.", "It cost  40 million.")), "marked", (0, 1)),
        (question("when did the bridge open", answers=("1963",)), "answer", (0,)),
        (question("how much did the bridge cost", answers=("40 million",)), "answer", (1,)),
        (question("bridge opened"), "overlap", (0,)),
    ],
)
def test_a_question_falls_on_the_window_with_its_answer(asked, how, evidence):
    windows = cut_texts(Windows(shortest=50, smallest=150, largest=150), [LONG])  # three fillers to a window
    found = place_answer(asked, windows, range(len(windows)), Overlap(windows))
    assert found is not None
    assert found.how == how
    told = ("The bridge opened in 1963.", "It cost 40 million.")
    assert all(told[index] in evidence_text(windows[found.window], found.sentences) for index in evidence)


def test_an_unknown_place_is_told_apart_from_none():
    windows = cut_texts(Windows(shortest=50, smallest=120, largest=120), [LONG])
    nowhere = question("who painted the opera", answers=("Rembrandt",))
    assert place_answer(nowhere, windows, range(len(windows)), Overlap(windows)) is None
    found = place_answer(nowhere, windows[:1], [0], Overlap(windows[:1]))
    assert found is not None
    assert (found.sentences, found.how) == ((), "unknown")


def test_what_repeats_the_question_is_no_evidence():
    text = LONG._replace(text="To determine whether copper bridges rust in rain. Copper bridges did not rust there.")
    windows = cut_texts(Windows(shortest=50, smallest=300, largest=300), [text])
    found = place_answer(question("Do copper bridges rust?"), windows, [0], Overlap(windows))
    assert found is not None
    assert found.sentences == (1,)


@pytest.mark.parametrize(
    ("text", "answers", "holds"),
    [
        ("It opened in 1963.", ["1963"], True),
        ("Part no. 19634 fits.", ["1963"], False),
        ("A forty  million\nloan", ["forty million"], True),
        ("The Romans left.", ["Roman"], False),
        ("于1963年通车。", ["1963年"], True),
        ("于21963年通车。", ["1963年"], False),
    ],
)
def test_answers_stand_alone(text, answers, holds):
    assert holds_answer(text, answers) is holds


# --- contributions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "evidence", "language", "answers", "said"),
    [
        ("When did it open?", "It opened in 1963.", "en", ["1963"], ("date", "1963")),
        ("How many came when it opened?", "When it opened, 40 people came.", "en", ["40"], ("figure", "40")),
        ("Who won?", "Ann Lee won.", "en", ["Ann Lee", "Ann Lee won"], ("name", "Ann Lee")),
        ("Wann wurde sie eröffnet?", "Sie wurde 1963 eröffnet.", "de", ["1963"], ("Datum", "1963")),
        ("Когда открыт мост?", "Мост открыт в 1963 году.", "ru", ["1963"], ("дата", "1963")),
        ("大桥是什么时候通车的？", "大桥于1963年通车。", "zh", ["1963年"], ("时间", "1963年")),
        ("橋はいつ開通しましたか。", "橋は1963年に開通した。", "ja", ["1963年"], ("時期", "1963年")),
        ("why is it red", "Iron in the rock turned it red.", "en", [], ("Iron in the rock turned it red.",)),
    ],
)
def test_contributions_name_the_answer_or_state_the_evidence(query, evidence, language, answers, said):
    contribution = contribute(query, evidence, language, answers=answers)
    assert all(words in contribution for words in said)
    assert not echoes(contribution, query, language)


def test_an_answer_that_only_repeats_the_query_is_not_named():
    evidence = "Of the two, Venus is hotter because of its dense air."
    contribution = contribute("Is Venus or Mars hotter?", evidence, "en", answers=["Venus"])
    assert contribution.endswith(evidence)
    assert contribute("Is Venus hotter?", "Venus is hotter.", "en", answers=["Venus"]) is None


def test_yes_and_no_are_said():
    evidence = "The bird of the polar coast cannot fly."
    yes, no = (contribute("Do penguins fly?", evidence, "en", verdict=verdict) for verdict in (True, False))
    assert yes.startswith(("It answers yes", "It confirms"))
    assert no.startswith(("It answers no", "It says otherwise"))


def test_long_evidence_is_cut_at_a_border():
    long = (
        "The bridge, which spans the river north of the old town, was opened by the mayor in 1963, " + "and so on " * 20
    )
    said = stated(long, "en")
    assert len(said) <= 171
    assert long.startswith(said.rstrip("…"))
    assert stated("- Use `rm -r` to delete folders", "en") == "Use `rm -r` to delete folders."


@given(
    st.text(max_size=60), st.text(min_size=1, max_size=200).filter(str.strip), st.sampled_from(["en", "zh", "ja", "de"])
)
def test_no_contribution_is_the_query_again(query, evidence, language):
    contribution = contribute(query, evidence, language, answers=[evidence[:20]])
    if contribution is not None:
        assert topic_terms(contribution, language) - topic_terms(query, language)
        assert "\n" not in contribution


# --- teacher ---------------------------------------------------------------------------------------------------------


def test_the_teacher_is_calibrated_on_the_labels():
    """Pairs whose one telling feature is right three times in four."""
    rng = np.random.default_rng(3)
    labelled = []
    for number in range(2000):
        relevant = bool(rng.random() < 0.5)
        signal = float(relevant) if rng.random() < 0.75 else 1.0 - float(relevant)
        labelled.append(LabelledPassage(number, np.array([7, signal, 0, 0, 0, 0], dtype=np.float32), relevant))
    teacher = Teacher(labelled)
    high, low = teacher.probabilities(np.array([[7, 1, 0, 0, 0, 0], [7, 0, 0, 0, 0, 0]], dtype=np.float32))
    assert (high, low) == pytest.approx((0.75, 0.25), abs=0.04)
    assert teacher.figures["auc"] == pytest.approx(0.75, abs=0.06)
    assert teacher.figures["held_out_pairs"] == 400
    with pytest.raises(DataError, match="at least 4 passages that answer"):
        Teacher([pair for pair in labelled if pair.relevant][:10])


def test_people_outrank_the_teacher():
    assert target(0.0, True, 0.5) == 0.9 < target(1.0, True, 0.5) == 0.98
    assert target(0.0, False, 0.5) == 0.02 < target(1.0, False, 0.5) == 0.15
    assert [target(p, None, 0.5) for p in (0.0, 0.3, 0.9)] == [0.01, 0.3, 0.5]
