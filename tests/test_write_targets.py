"""Writing targets: parsing and checks by hand, then the command against a real HTTP server that misbehaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from http_server import HttpServer, Reply, Request
from typer.testing import CliRunner

from prism.cli import app
from prism.files.jsonl import Drops, read_pairs
from prism.files.ledger import Kept
from prism.labeling.write_targets import (
    PaidAnswer,
    Problem,
    TargetLimits,
    TargetWriter,
    Texts,
    check_answer,
    finish,
    is_yes,
    parse,
)
from prism.llm.allowance import Provider
from prism.llm.asking import Asked
from prism.llm.chat import ChatClient
from prism.llm.money import Price

ROOT = Path(__file__).resolve().parents[1]
FACT = "The harbour at Lindau froze in 1963, for the first time in a lifetime."
DOCUMENT = f"{FACT} Copper conducts electricity better than iron. Ships stayed in the south of the lake."
GOOD = f"<contribution>It dates the last freeze.</contribution>\n<evidence>{FACT}</evidence>"


def row(number: int = 0, verdict: str = "yes") -> dict[str, Any]:
    return {
        "query": f"When did the harbour freeze? ({number})",
        "document": DOCUMENT,
        "verdict": verdict,
        "doc_id": "d",
    }


def written(contribution: str = "It dates the last freeze.", evidence: str = FACT) -> PaidAnswer:
    return PaidAnswer(text=f"<contribution>{contribution}</contribution><evidence>{evidence}</evidence>")


def faults(attempt: PaidAnswer, of: dict[str, Any] | None = None, **limits: Any) -> list[str]:
    found = check_answer(of or row(), attempt, TargetLimits(short_chars=0, **limits))
    return [] if isinstance(found, Texts) else [problem.kind for problem in found]


# --- one answer ------------------------------------------------------------------------------------------------------


def test_the_form_is_read_and_thinking_is_passed_over():
    assert parse(f"<think>maybe <evidence>?</think>\n{GOOD}\n") == ("It dates the last freeze.", FACT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The harbour froze.",
        f"Here you are: {GOOD}",
        f"{GOOD} I hope this helps.",
        GOOD.replace("</evidence>", ""),
        "<contribution></contribution><evidence>x</evidence>",
        "<evidence>x</evidence><contribution>y</contribution>",
        "<contribution>None</contribution><evidence>x</evidence>",
        "<contribution>y</contribution><evidence>none.</evidence>",
    ],
)
def test_anything_else_is_malformed(text):
    found = parse(text)
    assert isinstance(found, Problem)
    assert found.kind == "malformed"


def test_a_writer_may_find_nothing():
    found = parse("None.")
    assert isinstance(found, Problem)
    assert found.kind == "nothing to write"


def test_a_faithful_text_passes_with_its_measures():
    found = check_answer(row(), written(), TargetLimits())
    assert isinstance(found, Texts)
    assert found.checks == {"support": 1.0, "fidelity": 1.0, "compression": round(len(FACT) / len(DOCUMENT), 4)}


def test_each_fault_is_found():
    assert faults(written(evidence=FACT.replace("1963", "1964"))) == ["unsupported fact"]
    assert faults(written(contribution="It says 1977.")) == ["unsupported fact"]
    assert "unbacked sentence" in faults(written(evidence=f"{FACT} Whales sing together every summer night."))
    assert faults(written(evidence=DOCUMENT)) == ["too long"]
    assert faults(written(contribution="It dates it. " * 40)) == ["contribution too long", "broken text"]
    assert faults(written(contribution="One line.\nAnother line.")) == ["contribution too long"]
    assert "tag in text" in faults(written(evidence=f"{FACT} <evidence>"))
    german = "Der Hafen von Lindau fror damals zu, zum ersten Mal seit sehr langer Zeit, und die Schiffe blieben fern."
    assert "wrong language" in faults(written(evidence=german))
    assert faults(PaidAnswer(text=None, failure="refused")) == ["refused"]


def test_what_a_judgment_would_refuse_is_not_taught():
    assert faults(written(contribution="The document discusses the harbour and when it did freeze.")) == [
        "uninformative"
    ]
    assert faults(written(contribution="The document states that the harbour froze in 1963.")) == []
    assert faults(written(contribution="The freeze froze froze froze froze froze.")) == ["broken text"]
    assert "broken text" in faults(written(evidence=f"{FACT} <|im_end|>"))


def test_quotation_marks_are_those_of_the_document():
    """The document is shown in JSON, whose escapes writers copy."""
    document = f'They call it "the great freeze". {DOCUMENT}'
    answer = written(r"It names it: \"the great freeze\".", r"They call it \"the great freeze\".")
    found = check_answer({**row(), "document": document}, answer, TargetLimits())
    assert isinstance(found, Texts)
    assert found.contribution == 'It names it: "the great freeze".'
    assert found.evidence == 'They call it "the great freeze".'
    assert found.checks["support"] == 1.0


def test_short_documents_may_be_copied_whole():
    copied = written(evidence=DOCUMENT)
    texts = check_answer(row(), copied, TargetLimits(short_chars=len(DOCUMENT) + 1))
    assert isinstance(texts, Texts)
    assert texts.evidence == DOCUMENT
    (problem,) = check_answer(row(), copied, TargetLimits(short_chars=len(DOCUMENT)))
    assert isinstance(problem, Problem)
    assert problem.kind == "too long"


def test_which_pairs_are_yes():
    assert is_yes({"verdict": "yes"}, None)
    assert not is_yes({"verdict": "no", "label": 3}, None)
    assert is_yes({"label": 1}, None)
    assert is_yes({"verdict": "no", "label": 2}, 2)
    assert not is_yes({"label": None, "verdict": None}, None)


# --- over HTTP -------------------------------------------------------------------------------------------------------


def said(text: str | None, finish_reason: str = "stop") -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return Reply({"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}})


def asked_query(request: Request) -> str:
    return str(json.loads(request.body["messages"][1]["content"])["query"])


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


class Run:
    """One writer over one labels file, against a server."""

    def __init__(self, server: HttpServer, labels: Path, folder: Path, **limits: Any) -> None:
        provider = Provider(base_url=f"{server.url}/v1", concurrency=2, max_attempts=2, backoff_s=0.01, timeout_s=5)
        self.client = ChatClient(provider, name="writer")
        kept = Kept(folder / "answers.sqlite", PaidAnswer)
        price = Price.model_validate({"input": "1", "output": "10"})
        self.writer = TargetWriter(self.client, "m", kept, limits=TargetLimits(**limits), price=price)
        self.labels, self.folder = labels, folder

    def write(self) -> Asked:
        async def go() -> Asked:
            async with self.client:
                return await self.writer.write(lambda: (line.row for line in read_pairs(self.labels, Drops())))

        return asyncio.run(go())

    def finish(self) -> tuple[Any, Drops, list[dict[str, Any]]]:
        drops, out = Drops(), self.folder / "targets.jsonl"
        finished = finish(self.writer, read_pairs(self.labels, Drops()), out, drops)
        return finished, drops, [json.loads(line) for line in out.read_text().splitlines()]


def test_faults_are_named_and_written_again(tmp_path):
    def answer(request: Request) -> Reply:
        again = len(request.body["messages"]) > 2
        if again:
            assert "1964" in request.body["messages"][3]["content"]
        return said(GOOD if again else GOOD.replace("1963", "1964"))

    with HttpServer(answer) as server:
        run = Run(server, save(tmp_path / "labels.jsonl", [row(0), row(1), row(0)]), tmp_path)
        asked = run.write()
        assert (asked.answered, asked.stopped) == (4, None)
        finished, drops, targets = run.finish()
    assert [target["evidence"] for target in targets] == [FACT, FACT]
    assert targets[0]["checks"]["fidelity"] == 1.0
    assert targets[0]["doc_id"] == "d"  # whatever stood in the record stays
    assert finished.attempts == {"2": 2}
    assert drops.counts == {"the pair again": 1}
    # 4 answers of 100 tokens at $1 and 10 at $10 a million: 4 * (0.0001 + 0.0001).
    assert float(finished.cost_usd) == pytest.approx(0.0008)


def test_what_fails_to_the_end_is_dropped_with_the_reason(tmp_path):
    answers: dict[str, Callable[[], Reply]] = {
        "(0)": lambda: said("I would rather not use tags."),
        "(1)": lambda: said("none"),
        "(2)": lambda: said(None),
        "(3)": lambda: said("<contribution>It", "length"),
        "(4)": lambda: said("no", "content_filter"),
        "(5)": lambda: said(GOOD),
    }
    with HttpServer(lambda r: answers[asked_query(r)[-3:]]()) as server:
        run = Run(server, save(tmp_path / "labels.jsonl", [row(n) for n in range(6)]), tmp_path, attempts=2)
        run.write()
        finished, drops, targets = run.finish()
        asked = [asked_query(request)[-3:] for request in server.requests]
    assert len(targets) == 1
    assert drops.counts == {"malformed": 1, "nothing to write": 1, "empty": 1, "cut_off": 1, "refused": 1}
    assert [asked.count(f"({n})") for n in range(6)] == [2, 1, 2, 2, 1, 1]  # none and a refusal are final
    assert finished.no_answer_yet == 0


def test_servers_that_fail_cost_nothing_and_are_asked_again(tmp_path):
    broken = threading.Event()

    def answer(request: Request) -> Reply:
        if broken.is_set():
            return said(GOOD)
        return Reply(b'{"choices": [{"mess', 200) if "(0)" in asked_query(request) else Reply({}, 500)

    with HttpServer(answer) as server:
        labels = save(tmp_path / "labels.jsonl", [row(n) for n in range(3)])
        asked = Run(server, labels, tmp_path).write()
        assert asked.undelivered == {"cut_body": 1, "server_error": 2}
        finished, drops, targets = Run(server, labels, tmp_path).finish()
        assert (finished.no_answer_yet, targets, drops.counts) == (3, [], {})
        broken.set()
        run = Run(server, labels, tmp_path)
        run.write()
        assert len(run.finish()[2]) == 3


def test_other_limits_are_tried_on_kept_answers_for_nothing(tmp_path):
    with HttpServer(lambda _: said(GOOD.replace("1963", "1964"))) as server:
        labels = save(tmp_path / "labels.jsonl", [row()])
        run = Run(server, labels, tmp_path, attempts=1)
        run.write()
        assert run.finish()[1].counts == {"unsupported fact": 1}
        paid = len(server.requests)
        lenient = Run(server, labels, tmp_path, attempts=1, max_unsupported=1)
        lenient.write()
        assert len(lenient.finish()[2]) == 1
        assert len(server.requests) == paid


# --- the command -----------------------------------------------------------------------------------------------------


def command(server: HttpServer, labels: Path, out: Path, *more: str) -> list[str]:
    return ["write-targets", str(labels), str(out), "--model", "m", "--base-url", f"{server.url}/v1", *more]


def test_command_end_to_end_with_a_judge(tmp_path):
    def answer(request: Request) -> Reply:
        if request.body["model"] != "judge":
            return said(GOOD)
        grades = {"accuracy": 5, "coverage": 4, "faithfulness": 5, "self_containedness": 4, "concision": 4}
        if "(1)" in asked_query(request):
            grades["concision"] = 2
        return said("hm" if "(2)" in asked_query(request) else json.dumps(grades))

    labels = save(tmp_path / "labels.jsonl", [*(row(n) for n in range(3)), row(9, "no")])
    out = tmp_path / "targets.jsonl"
    with HttpServer(answer) as server:
        given = command(server, labels, out, "--judge", "judge", "--price", "0.1:0.4")
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 0, result.output
        assert len(server.requests) == 6
        assert CliRunner().invoke(app, given).exit_code == 0
        assert len(server.requests) == 6
    assert "no grades for 1 of 3" in result.output
    assert [json.loads(line)["query"][-3:] for line in out.read_text().splitlines()] == ["(0)", "(2)"]
    report = json.loads((tmp_path / "targets.jsonl.report.json").read_text())
    assert report["records"] == 2
    assert report["dropped"]["a judge"]["count"] == 1
    assert "concision 2" in report["dropped"]["a judge"]["first"][0]


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--price", "cheap"], "expected INPUT:OUTPUT"), (["--yes-from", "9"], "no pair labelled yes")],
)
def test_command_says_what_is_wrong(tmp_path, more, message):
    labels = save(tmp_path / "labels.jsonl", [row()])
    with HttpServer(lambda _: said(GOOD)) as server:
        result = CliRunner().invoke(app, command(server, labels, tmp_path / "t.jsonl", *more))
    assert result.exit_code == 2
    assert message in result.output


def test_a_wrong_key_stops_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WRITER_KEY", "sk-secret-123")

    def answer(request: Request) -> Reply:
        assert request.headers["authorization"] == "Bearer sk-secret-123"
        if len(server.requests) > 1:
            return Reply({"error": {"message": "bad key sk-secret-123"}}, 401)
        return said(GOOD)

    labels, out = save(tmp_path / "labels.jsonl", [row(n) for n in range(4)]), tmp_path / "t.jsonl"
    with HttpServer(answer) as server:
        given = command(server, labels, out, "--key-env", "WRITER_KEY", "--concurrency", "1")
        result = CliRunner().invoke(app, given)
    assert result.exit_code == 1
    assert "run the same command again" in result.output
    assert len(out.read_text().splitlines()) == 1
    everything = result.output + "".join(p.read_bytes().decode("latin-1") for p in tmp_path.rglob("*") if p.is_file())
    assert "sk-secret-123" not in everything


def test_two_commands_do_not_write_one_file(tmp_path):
    labels, out = save(tmp_path / "labels.jsonl", [row()]), tmp_path / "t.jsonl"
    (tmp_path / "t.jsonl.state").mkdir()
    with HttpServer(lambda _: said(GOOD)) as server, FileLock(tmp_path / "t.jsonl.state/.lock"):
        result = CliRunner().invoke(app, command(server, labels, out))
    assert result.exit_code == 2
    assert "another command is writing" in result.output
    assert server.requests == []


def test_kill_9_pays_nothing_twice(tmp_path):
    labels, out = save(tmp_path / "labels.jsonl", [row(n) for n in range(6)]), tmp_path / "t.jsonl"
    freed = threading.Event()

    def answer(request: Request) -> Reply:
        if len(server.requests) > 3 and not freed.is_set():
            freed.wait(20)
        return said(GOOD)

    with HttpServer(answer) as server:
        given = [sys.executable, "-m", "prism.cli", *command(server, labels, out, "--concurrency", "1")]
        with subprocess.Popen(given, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while len(server.requests) < 4 and process.poll() is None:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
        freed.set()
        subprocess.run(given, cwd=ROOT, check=True, capture_output=True)
    queries = [asked_query(request) for request in server.requests]
    assert len(queries) == 6 + 1  # only the answer under way is asked for again
    assert len(set(queries)) == 6
    assert len(out.read_text().splitlines()) == 6


def test_an_address_or_a_server_of_one_s_own(tmp_path):
    labels, out = save(tmp_path / "labels.jsonl", [row()]), tmp_path / "t.jsonl"
    given = ["write-targets", str(labels), str(out), "--model"]
    for more, words in (
        (["m"], "say where the model is"),
        (["m", "--start-local", "--base-url", "http://127.0.0.1:9/v1"], "say where the model is"),
        (["m", "--start-local"], "no model m: expected a GGUF file, or one of smollm2-135m-instruct"),
        (["gemma3-270m", "--start-local"], "Gemma terms, for studies only"),
    ):
        result = CliRunner().invoke(app, [*given, *more])
        assert result.exit_code == 2
        assert words in result.output
        assert not out.exists()
