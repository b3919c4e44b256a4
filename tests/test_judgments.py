"""Judges against people: confusion and errors by hand, the audit's way there and back, the script end to end."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
import typer
from typer.testing import CliRunner

import judgments as script
from prism.errors import DataError, InputError
from prism.files.beir import BeirSet
from prism.files.ledger import Kept
from prism.labeling.rubrics import RUBRICS
from prism.llm.failures import BadAnswer
from prism.types import Judgment, Usage
from studies import judgments as study
from studies.audit import disagreements, patch, read_decisions, write_audit
from studies.label_baselines import embedded, lsa
from studies.label_quality import Judged, grade, judge_report
from studies.recorded import as_pairs, read_recorded, write_labels

ROOT = Path(__file__).resolve().parents[1]
HUMAN = {("q", "a"): 3, ("q", "b"): 0, ("q", "c"): 1, ("r", "a"): 0}


def judged(labels: dict[tuple[str, str], int], top: int = 3) -> Judged:
    return Judged("judge", {pair: float(label) for pair, label in labels.items()}, labels, top)


# --- measures --------------------------------------------------------------------------------------------------------


def test_report_by_hand():
    found = judge_report(judged({("q", "a"): 2, ("q", "b"): 3, ("q", "c"): 1}), HUMAN, 3)
    assert (found.pairs, found.failures) == (4, 1)
    assert (found.mean_label, found.human_mean) == (2.0, pytest.approx(4 / 3))
    assert found.mean_absolute_error == pytest.approx((1 + 3 + 0) / 3)
    assert found.exact == pytest.approx(1 / 3)
    assert found.confusion == ((0, 0, 0, 1), (0, 1, 0, 0), (0, 0, 0, 0), (0, 0, 1, 0))
    # Ranked b, a, c: linear gains 0, 3, 1 against 3, 1. Query r has nothing relevant and does not count.
    d2, d3 = 1 / math.log2(3), 1 / 2
    assert found.ndcg["nDCG@10"] == pytest.approx((3 * d2 + d3) / (3 + d2))
    assert list(found.by_query["nDCG@10"]) == ["q"]


def test_failures_rank_last():
    found = judge_report(judged({("q", "b"): 0, ("q", "c"): 0}), HUMAN, 3)
    # b, c tie and rank by id, a failed: gains 0, 1, 3.
    assert found.ndcg["nDCG"] == pytest.approx((1 / math.log2(3) + 3 / 2) / (3 + 1 / math.log2(3)))


def test_scales_are_stretched():
    found = judge_report(judged({("q", "a"): 3, ("q", "b"): 1}), {("q", "a"): 1, ("q", "b"): 0}, 1)
    assert found.mean_absolute_error == pytest.approx((0 + 1 / 3) / 2)
    assert found.exact is None


def test_judges_that_do_not_fit():
    with pytest.raises(InputError, match="no pair people labelled"):
        judge_report(judged({("x", "y"): 1}), HUMAN, 3)
    with pytest.raises(InputError, match="labels run from 2 to 9"):
        judge_report(judged({("q", "a"): 9, ("q", "b"): 2}), HUMAN, 3)
    with pytest.raises(InputError, match="nothing relevant"):
        judge_report(judged({("r", "a"): 1}), {("r", "a"): 0}, 3)


def test_grades_from_cuts():
    assert [grade(s, (0.25, 0.5, 0.75)) for s in (0.0, 0.25, 0.6, 0.75, 1.0)] == [0, 1, 2, 3, 3]
    with pytest.raises(InputError, match="cuts must grow"):
        grade(0.5, (0.5, 0.5))


# --- the audit, there and back ---------------------------------------------------------------------------------------

JUDGES = {"one": {("q", "b"): 3, ("r", "a"): 2}, "two": {("q", "b"): 3, ("r", "a"): 3, ("q", "a"): 3}}


def test_disagreements_most_judges_first():
    found = disagreements(HUMAN, JUDGES, 0, 3)
    assert [(row.query, row.document, row.judges) for row in found] == [
        ("q", "b", ("one", "two")),
        ("r", "a", ("two",)),
    ]


def test_audit_page_is_inert(tmp_path):
    rows = disagreements(HUMAN, JUDGES, 0, 3)
    evil = "<script>alert(1)</script>\x1b[2J"
    page, table = write_audit(tmp_path, rows, lambda q, d: (evil, f"text of {d}"), "0 to 3")
    html = page.read_text()
    assert "<script>" not in html
    assert "\x1b" not in html
    assert "text of b" in html
    assert next(csv.DictReader(table.read_text().splitlines())) == {
        "query": "q", "document": "b", "human": "0", "model": "3", "decision": ""
    }  # fmt: skip
    table.write_text("an annotator's work")
    write_audit(tmp_path, rows, lambda q, d: ("", ""), "")
    assert table.read_text() == "an annotator's work"


@pytest.mark.parametrize("separator", ["\t", " "])
def test_decisions_become_a_patch(tmp_path, separator):
    lines = [separator.join([*pair[:1], "0", pair[1], str(label)]) for pair, label in HUMAN.items()]
    (tmp_path / "human.qrels").write_text("\n".join(lines) + "\n")
    (tmp_path / "decisions.csv").write_text("query,document,human,model,decision\nq,b,0,3,2\nr,a,0,3,\nq,a,3,3,3\n")
    decided = read_decisions(tmp_path / "decisions.csv", HUMAN, 3)
    assert decided == {("q", "b"): 2, ("q", "a"): 3}
    assert patch(tmp_path / "human.qrels", decided, tmp_path / "new.qrels") == 1
    expected = [line[:-1] + "2" if line.split()[2] == "b" else line for line in lines]
    assert (tmp_path / "new.qrels").read_text() == "\n".join(expected) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query;document;decision\n", r"decisions\.csv:1: no column 'query'"),
        ("query,document,decision\nq,z,1\n", r":2: people never labelled query 'q' document 'z'"),
        ("query,document,decision\nq,a,4\n", r":2: decision '4' is not a whole number from 0 to 3"),
        ("query,document,decision\nq,a,x\n", r":2: decision 'x'"),
        ("query,document,decision\nq,a\n", r":2: expected 3"),
        ("query,document,decision\nq,a,1\nq,a,1\n", r":3: query 'q' document 'a' is decided above"),
    ],
)
def test_bad_decisions_name_the_line(tmp_path, text, message):
    path = tmp_path / "decisions.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_decisions(path, HUMAN, 3)


# --- judges with texts -----------------------------------------------------------------------------------------------

DATA = BeirSet(
    name="made",
    split="test",
    corpus={"a": ("", "good 0.9"), "b": ("", "bad 0.1"), "c": ("", "broken")},
    queries={"q": "what?"},
    qrels={"q": {"a": 1}},
)
PAIRS = {("q", "a"): 1, ("q", "b"): 0, ("q", "c"): 0}


def test_embedding_baselines(tmp_path, tiny_checkpoint):
    found = lsa(DATA, PAIRS)
    assert found.keys() == PAIRS.keys()
    assert all(-1.001 <= score <= 1.001 for score in found.values())
    judge = embedded(DATA, PAIRS, str(tiny_checkpoint), tmp_path / "cache")
    assert judge.scores.keys() == PAIRS.keys()
    assert judge.labels is None
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_documents_without_words_are_said_to_be_so():
    with pytest.raises(InputError, match="made: too few words for the LSA baseline"):
        lsa(replace(DATA, corpus={"a": ("", "the"), "b": ("", "of"), "c": ("", "and")}), PAIRS)


class FakeReranker:
    """Scores by the number in the document; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def rerank(self, query, documents, **_):
        self.calls += 1
        made = []
        for index, document in enumerate(documents):
            broken = document.text == "broken"
            score = None if broken else float(document.text.split()[-1])
            made.append(Judgment(index=index, score=score, verdict=None, error="no" if broken else None))
        return SimpleNamespace(judgments=made)

    def close(self) -> None:
        pass


def test_reranker_as_a_judge_resumes(tmp_path):
    fake = FakeReranker()
    cuts = (0.25, 0.5, 0.75)
    for _ in range(2):
        found = study.reranked(DATA, PAIRS, "mini", cuts, tmp_path / "state/mini.sqlite", lambda _: fake)
        assert found.labels == {("q", "a"): 3, ("q", "b"): 0}
        assert found.scores == {("q", "a"): 0.9, ("q", "b"): 0.1}
    assert fake.calls == 1
    assert judge_report(found, PAIRS, 1).failures == 1


class FakeChat:
    """Grades by the document; one answer is no grade, one is paid for and bad."""

    provider = SimpleNamespace(concurrency=2)

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def complete(self, messages, *, model, max_tokens, params):
        text = messages[-1]["content"]
        self.asked.append(text)
        if "broken" in text:
            raise BadAnswer("empty", "nothing came", usage=Usage(), cost_usd=Decimal(0))
        return SimpleNamespace(text="3" if "good" in text else "I would rather not say", finish="stop")


def test_chat_judge_counts_failures_and_resumes(tmp_path):
    chat = FakeChat()
    for _ in range(2):
        found = anyio.run(
            study.asked, DATA, PAIRS, "model-x", RUBRICS["graded-basic"], chat, tmp_path / "chat.sqlite", 2
        )
        assert found.labels == {("q", "a"): 3}
        assert found.name == "model-x, without reasoning"
    assert len(chat.asked) == 3
    assert judge_report(found, PAIRS, 1).failures == 2
    kept = Kept(tmp_path / "chat.sqlite", study.Answer).read().values()
    assert sorted(str(answer.failure) for answer in kept) == ["None", "empty", "unparseable"]


# --- the script ------------------------------------------------------------------------------------------------------


def invoke(*words: str):
    app = typer.Typer()
    app.command()(script.main)
    return CliRunner().invoke(app, list(words))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "human.qrels").write_text("".join(f"{q} 0 {d} {label}\n" for (q, d), label in HUMAN.items()))
    (tmp_path / "fair.qrels").write_text("q 0 a 2\nq 0 b 3\nq 0 c 1\nr 0 a 0\n")
    (tmp_path / "odd.qrels").write_text("q 0 a 3\nq 0 b 10\nq 0 c 0\nr 0 a 0\n")
    return tmp_path


def test_script_measures_audits_and_patches(folder):
    human, out = str(folder / "human.qrels"), folder / "out"
    models = ["--model", str(folder / "fair.qrels"), "--model", str(folder / "odd.qrels")]
    done = invoke("--human", human, *models, "--out", str(out))
    assert done.exit_code == 0, done.output
    report = json.loads((out / "report.json").read_text())
    assert {row["name"]: row["failures"] for row in report["judges"]} == {"fair": 0, "odd": 1}
    values = [row["ndcg"]["nDCG@10"] for row in report["judges"]]
    assert values == sorted(values, reverse=True)
    assert "odd.qrels:2: label off the scale 0 to 3" in (out / "report.md").read_text()
    assert [(d["query"], d["document"]) for d in report["disagreements"]] == [("q", "b")]
    table = out / "decisions.csv"
    table.write_text(table.read_text().replace("q,b,0,3,", "q,b,0,3,2"))
    patched = folder / "patched.qrels"
    done = invoke("--human", human, "--apply-decisions", str(table), "--patch-out", str(patched))
    assert done.exit_code == 0, done.output
    assert "1 of 4 labels changed" in done.output
    assert "q 0 b 2\n" in patched.read_text()


def test_judges_of_texts_leave_their_labels_to_the_other_scripts(tmp_path):
    folder = tmp_path / "made"
    (folder / "qrels").mkdir(parents=True)
    rows = {"corpus": {"a": "good 0.9 word", "b": "bad 0.1 word", "c": "other"}, "queries": {"q": "word"}}
    for name, texts in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(f'{{"_id": "{i}", "text": "{t}"}}\n' for i, t in texts.items()))
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")
    candidates, judges = study.with_texts(folder, "test", 2, None)
    assert candidates.human == {("q", "a"): 1, ("q", "b"): 0}
    assert [judge.name for judge in judges] == ["BM25", "LSA similarity"]
    labels = {("q", "a"): 3, ("q", "b"): 1}
    write_labels(tmp_path / "labels", candidates.human, [*judges, judged(labels)])
    found = read_recorded(tmp_path / "labels", None, [], 3)
    assert [as_pairs(file) for file in (found.people, *found.judges)] == [candidates.human, labels]


def test_help_teaches():
    shown = CliRunner().invoke(script.app, ["--help"]).output
    assert "    python eval/judgments.py --labels" in shown
    assert "MODEL@BASE_URL[#KEY_VARIABLE]" in shown


def test_script_says_what_is_missing(folder):
    assert "no judge" in invoke("--out", str(folder / "out")).output
    assert "cuts must grow" in invoke("--beir", str(folder), "--cuts", "0.5,0.5", "--out", str(folder / "out")).output
    assert "no address" in invoke("--beir", str(folder), "--judge", "m", "--out", str(folder / "out")).output
    assert "needs --human" in invoke("--apply-decisions", str(folder / "human.qrels")).output
    (folder / "fair.qrels").write_text("q 0 a 2\nq\t0\tb\t3\n")
    models = ["--model", str(folder / "fair.qrels")]
    done = invoke("--human", str(folder / "human.qrels"), *models, "--out", str(folder / "out"))
    assert done.exit_code == 2
    assert "fair.qrels:2: separated by" in done.output
