from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from chat_server import ChatServer, reply
from http_server import HttpServer, Reply, Request

from prism.data.assemble import build_training_data
from prism.data.card import Rules, Sources
from prism.errors import DataError, InputError, PanelError
from prism.files.examples import read_examples
from prism.labeling.estimate import estimate_cost
from prism.labeling.panel import load_panel
from prism.labeling.reports import JurorReport, LabelingReport
from prism.labeling.run import label
from prism.labeling.store import Store, read_votes

ROOT = Path(__file__).parents[1]
LLMJUDGE = ROOT / "../shared/data/labels/llmjudge"
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_KEY", KEY)


def pairs(path: Path, count: int, extra: str = "") -> Path:
    file = path / "pairs.jsonl"
    lines = [
        json.dumps({"query": "when?", "document": f"text {i}", "doc_id": f"d{i}", "kept": i}) for i in range(count)
    ]
    file.write_text("\n".join(lines) + "\n" + extra, encoding="utf-8")
    return file


def acme(name: str = "acme", provider: str = "acme", **more: Any) -> dict[str, Any]:
    price = {"input": 0.15, "output": 0.6}
    return {"name": name, "kind": "api", "provider": provider, "model": name, "price": price, **more}


def panel(path: Path, servers: dict[str, ChatServer], jurors: list[dict[str, Any]], **more: Any) -> Path:
    options = more.pop("provider", {})
    providers = {
        name: {"base_url": server.url, "key_env": "ACME_KEY", "backoff_s": 0.001, "max_attempts": 2, **options}
        for name, server in servers.items()
    }
    file = path / "panel.yaml"
    content = {"name": "p", "rubric": "binary", "providers": providers, "jurors": jurors, **more}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def run(panel_file: Path, pairs_file: Path, out: Path, **more: Any) -> LabelingReport:
    return anyio.run(lambda: label(load_panel(panel_file), pairs_file, out, **more))


def of(report: LabelingReport, name: str = "acme") -> JurorReport:
    return next(juror for juror in report.jurors if juror.name == name)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "labels.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_and_a_second_one_that_asks_nothing(tmp_path: Path) -> None:
    with ChatServer(["1", "0"], default="1") as server:
        one = panel(tmp_path, {"acme": server}, [acme()])
        report = run(one, pairs(tmp_path, 5), tmp_path / "out")
        assert len(server.requests) == 5
        again = run(one, tmp_path / "pairs.jsonl", tmp_path / "out")
        assert len(server.requests) == 5
    assert report.verdicts == again.verdicts == {"yes": 4, "no": 1, "undecided": 0}
    juror = of(again)
    # By hand: 5 x (100 x 0.15 + 2 x 0.6) millionths.
    assert (juror.votes, juror.calls, juror.paid_usd) == (5, 5, Decimal("0.000081"))
    assert (juror.usage.prompt_tokens, juror.usage.written_tokens) == (500, 10)
    first = lines(tmp_path / "out")[0]
    assert (first["doc_id"], first["kept"], first["rubric"]) == ("d0", 0, report.rubric)
    assert set(first["votes"]) == {"acme"}


def test_nothing_that_is_no_label_becomes_one(tmp_path: Path) -> None:
    """Refusals, rambling, labels off the scale, cut-off and empty answers are failures with their kind, paid once."""
    bad = ["I think 1", "7", "-1", "1/1", reply("1", "length"), {"choices": []}, reply("1", "content_filter")]
    filtered = (400, {}, {"error": {"code": "content_filter", "message": "no"}})
    with ChatServer([*bad, filtered, (413, {}, {})]) as server:
        one = panel(tmp_path, {"acme": server}, [acme()], provider={"concurrency": 1})
        report = run(one, pairs(tmp_path, 10), tmp_path / "out")
        again = run(one, tmp_path / "pairs.jsonl", tmp_path / "out")
        assert len(server.requests) == 12  # the two that were refused and cost nothing
        retried = run(one, tmp_path / "pairs.jsonl", tmp_path / "out", retry_failures=True)
        assert len(server.requests) == 19
    assert of(report).failures == {"unparseable": 4, "cut_off": 1, "empty": 1, "refused": 1}
    assert of(report).missed == {"refused": 1, "rejected": 1}
    assert "413" in (of(report).last_missed or "")
    assert of(report).failure_rate == 0.875
    assert report.verdicts == {"yes": 1, "no": 0, "undecided": 9}
    assert again.verdicts == {"yes": 3, "no": 0, "undecided": 7}
    assert retried.verdicts == {"yes": 10, "no": 0, "undecided": 0}
    assert of(retried).failures == {}


@pytest.mark.parametrize(("status", "words"), [(401, "refused the key"), (402, "out of credit"), (404, "base_url")])
def test_a_juror_that_cannot_go_on_stops_alone(tmp_path: Path, status: int, words: str) -> None:
    with ChatServer(["1", "1"], default=status) as bad, ChatServer() as good:
        one = panel(tmp_path, {"a": bad, "b": good}, [acme("bad", "a"), acme("good", "b")], provider={"concurrency": 1})
        report = run(one, pairs(tmp_path, 12), tmp_path / "out")
        assert len(bad.requests) == 4  # two answers, the refusal, and a harmless question refused like it
        assert len(good.requests) == 12
        assert words in (of(report, "bad").stopped or "")
        assert of(report, "bad").votes == 2
        assert of(report, "good").stopped is None
        assert report.verdicts["undecided"] == 10  # a vote of `bad` could still make them a tie
        bad.default = "1"  # topped up
        report = run(one, tmp_path / "pairs.jsonl", tmp_path / "out")
        assert len(bad.requests) == 14
        assert len(good.requests) == 12
    assert report.verdicts == {"yes": 12, "no": 0, "undecided": 0}


def test_a_missing_key_stops_before_any_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACME_KEY")
    with ChatServer() as server:
        report = run(panel(tmp_path, {"acme": server}, [acme()]), pairs(tmp_path, 3), tmp_path / "out")
        assert server.requests == []
    assert "ACME_KEY" in (of(report).stopped or "")
    assert report.verdicts["undecided"] == 3


def test_the_budget_holds_over_runs_and_loses_nothing(tmp_path: Path) -> None:
    with ChatServer() as server:
        options = {"concurrency": 4, "budget_usd": 0.001}
        one = panel(tmp_path, {"acme": server}, [acme()], provider=options)
        report = run(one, pairs(tmp_path, 80), tmp_path / "out")
        asked = len(server.requests)
        assert 0 < asked < 80
        again = run(one, tmp_path / "pairs.jsonl", tmp_path / "out")
        assert len(server.requests) == asked
        assert "raise budget_usd" in (of(again).stopped or "")
        assert of(again).votes == asked
        assert report.paid_usd == again.paid_usd <= Decimal("0.001")
        one = panel(tmp_path, {"acme": server}, [acme()], provider={**options, "budget_usd": 1})
        assert run(one, tmp_path / "pairs.jsonl", tmp_path / "out").verdicts["yes"] == 80
        assert len(server.requests) == 80


def test_passing_trouble_is_missed_and_asked_again_by_the_next_run(tmp_path: Path) -> None:
    with ChatServer([500, 500, "cut", "cut"]) as server:
        one = panel(tmp_path, {"acme": server}, [acme()], provider={"concurrency": 1, "max_attempts": 1})
        report = run(one, pairs(tmp_path, 6), tmp_path / "out")
        again = run(one, tmp_path / "pairs.jsonl", tmp_path / "out")
    assert of(report).missed == {"cut_body": 2, "server_error": 2}
    assert report.verdicts == {"yes": 2, "no": 0, "undecided": 4}
    assert again.verdicts == {"yes": 6, "no": 0, "undecided": 0}
    assert of(again).failed_tries == {"cut_body": 2, "server_error": 2}
    assert (of(again).uncertain_calls, of(again).in_flight) == (2, 0)
    assert of(again).uncertain_usd > 0


def test_a_dead_provider_is_not_asked_forever(tmp_path: Path) -> None:
    with ChatServer(default=500) as server:
        one = panel(tmp_path, {"acme": server}, [acme()], give_up_after=3, provider={"concurrency": 1})
        report = run(one, pairs(tmp_path, 200), tmp_path / "out")
        assert len(server.requests) < 50
    assert "3 questions in a row" in (of(report).stopped or "")


def test_a_sequential_panel_stops_when_the_majority_is_decided(tmp_path: Path) -> None:
    with ChatServer() as yes, ChatServer(default="0") as no:
        jurors = [acme("a", "y"), acme("b", "y"), acme("c", "n")]
        one = panel(tmp_path, {"y": yes, "n": no}, jurors, sequential={"stop": "majority"})
        report = run(one, pairs(tmp_path, 4), tmp_path / "out")
        assert (len(yes.requests), len(no.requests)) == (8, 0)
        assert report.not_asked == 4
        jurors = [
            acme("a", "y"),
            acme("c", "n"),
            acme("b", "y"),
        ]  # the same jurors in another order: c's vote is bought
        one = panel(tmp_path, {"y": yes, "n": no}, jurors, sequential={"stop": "majority"})
        again = run(one, tmp_path / "pairs.jsonl", tmp_path / "out")
        assert (len(yes.requests), len(no.requests)) == (8, 4)
    assert report.verdicts == again.verdicts == {"yes": 4, "no": 0, "undecided": 0}


def test_a_posterior_bound_stops_earlier(tmp_path: Path) -> None:
    """One vote of a juror that is right 19 times in 20 gives odds of 19: P(yes) = 0.95."""
    with ChatServer() as server:
        rates = {"sensitivity": 0.95, "specificity": 0.95}
        jurors = [acme(name, **rates) for name in "abc"]
        for bound, asked in ((0.94, 1), (0.96, 2)):
            one = panel(tmp_path, {"acme": server}, jurors, sequential={"stop": "posterior", "bound": bound})
            server.requests.clear()
            report = run(one, pairs(tmp_path, 1), tmp_path / f"out{asked}")
            assert len(server.requests) == asked
            assert report.verdicts["yes"] == 1


def test_bad_lines_and_duplicates(tmp_path: Path) -> None:
    extra = 'not json\n{"query": "q"}\n[1]\n{"query": " ", "document": "d"}\n{"query": "when?", "document": "text 0"}\n'
    file = pairs(tmp_path, 2, extra)
    with ChatServer() as server:
        one = panel(tmp_path, {"acme": server}, [acme()])
        with pytest.raises(DataError, match=r"pairs.jsonl:3: not JSON.*--on-bad-line skip"):
            run(one, file, tmp_path / "out")
        assert server.requests == []
        report = run(one, file, tmp_path / "out", on_bad_line="skip")
        assert len(server.requests) == 2
    assert (report.pairs, report.repeated, report.bad_lines) == (2, 1, 4)
    assert [line.split(":")[0] for line in report.first_bad_lines] == ["line 3", "line 4", "line 5", "line 6"]
    assert len(lines(tmp_path / "out")) == 2


def test_another_model_under_a_known_name_is_refused(tmp_path: Path) -> None:
    with ChatServer() as server:
        run(panel(tmp_path, {"acme": server}, [acme()]), pairs(tmp_path, 1), tmp_path / "out")
        other = panel(tmp_path, {"acme": server}, [acme(model="other")])
        with pytest.raises(PanelError, match="another name"):
            run(other, tmp_path / "pairs.jsonl", tmp_path / "out")


def test_one_run_at_a_time(tmp_path: Path) -> None:
    from filelock import FileLock

    with ChatServer() as server:
        one = panel(tmp_path, {"acme": server}, [acme()])
        (tmp_path / "out").mkdir()
        with FileLock(tmp_path / "out" / ".lock"), pytest.raises(InputError, match="another run"):
            run(one, pairs(tmp_path, 1), tmp_path / "out")


def test_the_store_is_append_only_and_readable(tmp_path: Path) -> None:
    with ChatServer(["1", "what?"]) as server:
        run(panel(tmp_path, {"acme": server}, [acme()]), pairs(tmp_path, 2), tmp_path / "out")
    votes = list(read_votes(tmp_path / "out"))
    assert Counter((vote.label, vote.failure) for vote in votes) == {(1, None): 1, (None, "unparseable"): 1}
    assert {vote.answer for vote in votes} == {"1", "what?"}
    assert all(vote.created_at and vote.cost_usd == Decimal("0.0000162") for vote in votes)
    store = Store(tmp_path / "out" / "votes.sqlite")
    assert [rubric.name for rubric in store.rubrics().values()] == ["binary"]
    store.close()
    db = sqlite3.connect(tmp_path / "out" / "votes.sqlite")
    for change in ("UPDATE votes SET label = 0", "DELETE FROM votes", "DELETE FROM calls"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(change)
    db.close()


def test_the_estimate_asks_nothing_and_counts_what_is_left(tmp_path: Path) -> None:
    with ChatServer() as server:
        one = panel(tmp_path, {"acme": server}, [acme()])
        file = pairs(tmp_path, 10)
        run(one, file, tmp_path / "out", limit=4)
        found = estimate_cost(load_panel(one), file, tmp_path / "out").jurors[0]
        assert len(server.requests) == 4
    assert found.questions == 6
    assert found.expected_usd == (found.usage.prompt_tokens * Decimal("0.15") + 12 * Decimal("0.6")) / 10**6
    assert found.spent_usd == Decimal("0.0000648")
    assert found.key == "ACME_KEY is set"


def test_recorded_votes(tmp_path: Path) -> None:
    (tmp_path / "a.qrels").write_text("q 0 d1 1\nq 0 d2 0\n")
    (tmp_path / "b.jsonl").write_text(
        '{"query_id": "q", "doc_id": "d1", "label": 1}\n{"query_id": "q", "doc_id": "d2", "label": null}\n'
    )
    (tmp_path / "pairs.qrels").write_text("q 0 d1 1\nq 0 d2 0\nq 0 d3 0\nq 0 d3 1\n")
    jurors = [{"name": name, "kind": "recorded", "path": file} for name, file in (("a", "a.qrels"), ("b", "b.jsonl"))]
    report = run(panel(tmp_path, {}, jurors), tmp_path / "pairs.qrels", tmp_path / "out")
    assert report.verdicts == {"yes": 1, "no": 1, "undecided": 1}
    assert (of(report, "a").failures, of(report, "b").failures) == ({"absent": 1}, {"absent": 1, "unknown": 1})
    (tmp_path / "a.qrels").write_text("q 0 d1 3\n")
    with pytest.raises(DataError, match=r"a.qrels:1: label 3 is none of 0, 1"):
        run(panel(tmp_path, {}, jurors), tmp_path / "pairs.qrels", tmp_path / "out2")


@pytest.mark.exhaustive
def test_sequential_asking_on_llmjudge(tmp_path: Path) -> None:
    """The figures of the issue: the same labels with 36.3 % fewer calls, in this order."""
    if not LLMJUDGE.is_dir():
        pytest.skip("needs ../shared/data/labels/llmjudge")
    names = ("willia-umbrela1", "h2oloo-fewself", "Olz-exp", "RMITIR-llama38b", "NISTRetrieval-reason1")
    submissions = (LLMJUDGE / "submissions").resolve()
    jurors = [{"name": name, "kind": "recorded", "path": str(submissions / f"{name}.qrels")} for name in names]
    found = {}
    for sequential in (None, {"stop": "majority"}):
        one = panel(tmp_path, {}, jurors, rubric="graded-basic", sequential=sequential)
        report = run(one, LLMJUDGE / "human.qrels", tmp_path / str(bool(sequential)))
        found[bool(sequential)] = [line["verdict"] for line in lines(tmp_path / str(bool(sequential)))]
    assert found[True] == found[False]
    assert round(report.not_asked / (5 * 4423), 3) == 0.363


# --- the command -----------------------------------------------------------------------------------------------------


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "prism.cli", "label", *map(str, arguments)]


def prism(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False)


def test_killed_and_resumed_no_vote_is_lost_and_none_paid_twice(tmp_path: Path) -> None:
    total, at_once = 60, 4
    with ChatServer(default="1", delay_s=0.05) as server:
        one = panel(tmp_path, {"acme": server}, [acme()], provider={"concurrency": at_once})
        file, out = pairs(tmp_path, total), tmp_path / "out"
        for wanted in (10, 25):
            process = subprocess.Popen(
                command(one, file, out), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            while len(server.requests) < wanted and process.poll() is None:
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        kept = Counter(vote.pair_id for vote in read_votes(out))
        assert set(kept.values()) == {1}
        done = prism(one, file, out)
        assert done.returncode == 0, done.stderr
        report = LabelingReport.model_validate_json((out / "report.json").read_text(encoding="utf-8"))
        asked = server.asked()
    assert len(asked) == total
    votes = Counter(vote.pair_id for vote in read_votes(out))
    assert len(votes) == total
    assert set(votes.values()) == {1}
    in_flight = of(report).in_flight
    assert 0 < in_flight <= 2 * at_once  # two deaths
    assert sum(asked.values()) - total <= in_flight
    assert max(asked.values()) <= 3
    assert report.verdicts["yes"] == total


def test_a_finished_run_changes_nothing_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ChatServer() as server:
        one = panel(tmp_path, {"acme": server}, [acme()])
        assert prism(one, pairs(tmp_path, 3), out).returncode == 0
        files = ("labels.jsonl", "report.json")
        before = {name: ((out / name).read_bytes(), (out / name).stat().st_mtime_ns) for name in files}
        again = prism(one, tmp_path / "pairs.jsonl", out)
        assert len(server.requests) == 3
    assert again.returncode == 0
    assert f"finished before: nothing was left to ask, {out} is unchanged" in again.stdout
    assert {name: ((out / name).read_bytes(), (out / name).stat().st_mtime_ns) for name in files} == before


def test_one_refused_text_and_a_minute_limit_do_not_stop_a_run(tmp_path: Path) -> None:
    forbidden = (403, {}, {"error": {"message": "your input needs moderation", "code": 403}})
    minute = (429, {"retry-after": "0"}, {"error": {"message": "tokens per minute, see /settings/billing"}})
    with ChatServer([forbidden, "1", minute, "1"]) as server:
        one = panel(tmp_path, {"acme": server}, [acme()], provider={"concurrency": 1})
        done = prism(one, pairs(tmp_path, 4), tmp_path / "out")
        assert (
            "acme got no answer to 1 refused: run the same command again; the last: acme will not read" in done.stderr
        )
        assert done.returncode == 1
        assert len(server.requests) == 5
        again = prism(one, tmp_path / "pairs.jsonl", tmp_path / "out")
        assert len(server.requests) == 6
    assert again.returncode == 0
    assert [line["label"] for line in lines(tmp_path / "out")] == [1, 1, 1, 1]


def test_whole_number_ids_reach_the_training_file(tmp_path: Path) -> None:
    rows = [{"query": f"q{n}", "document": f"d{n}", "query_id": n, "doc_id": float(n)} for n in range(3)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ChatServer() as server:
        run(panel(tmp_path, {"acme": server}, [acme()]), tmp_path / "p.jsonl", tmp_path / "out")
    sources = Sources(labels=tmp_path / "out" / "labels.jsonl")
    build_training_data(sources, Rules(splits={"train": 1.0}), tmp_path / "built")
    built = list(read_examples(tmp_path / "built" / "train.jsonl"))
    assert [(example.query_id, example.doc_id) for example in built] == [("0", "0"), ("1", "1"), ("2", "2")]


def test_an_out_that_is_a_file_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    with ChatServer() as server:
        one = panel(tmp_path, {"acme": server}, [acme()])
        done = prism(one, pairs(tmp_path, 2), tmp_path / "pairs.jsonl")
        assert server.requests == []
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "is a file, not a folder" in done.stderr


def test_an_endpoint_that_refuses_one_document_scores_the_others(tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        texts = [document["text"] for document in request.body["documents"]]
        if any(text.endswith("1") for text in texts):
            return Reply({"detail": "Forbidden"}, 403)
        return Reply({"results": [{"index": index, "relevance_score": 0.9} for index, _ in enumerate(texts)]})

    with HttpServer(answer) as server:
        juror = {"name": "e", "kind": "endpoint", "url": server.url, "max_attempts": 1}
        rows = [{"query": "q", "document": f"text {number}"} for number in range(6)]
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        report = run(panel(tmp_path, {}, [juror]), tmp_path / "p.jsonl", tmp_path / "out")
        assert {request.path for request in server.requests} == {"/v1/rerank"}
    assert of(report, "e").missed == {"rejected": 1}
    assert of(report, "e").stopped is None
    assert [line["label"] for line in lines(tmp_path / "out")] == [1, None, 1, 1, 1, 1]


def test_the_key_is_nowhere(tmp_path: Path) -> None:
    echo = (401, {}, {"error": {"message": f"{KEY} is not valid"}})
    with ChatServer(["1", f"{KEY}?", echo]) as server:
        one = panel(tmp_path, {"acme": server}, [acme()], provider={"concurrency": 1})
        done = prism(one, pairs(tmp_path, 5), tmp_path / "out")
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert done.returncode == 1
    assert "acme refused the key (401)" in done.stderr
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert KEY not in done.stdout + done.stderr
    assert KEY.encode() not in written


def test_a_dry_run_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACME_KEY")
    with ChatServer() as server:
        done = prism(panel(tmp_path, {"acme": server}, [acme()]), pairs(tmp_path, 3), tmp_path / "out", "--dry-run")
        assert server.requests == []
    assert done.returncode == 0, done.stderr
    assert "ACME_KEY IS NOT SET" in done.stdout
    assert not (tmp_path / "out").exists()


# --- mini ------------------------------------------------------------------------------------------------------------


def demo_pairs(path: Path) -> Path:
    from prism.demo import DOCUMENTS, QUERIES

    file = path / "pairs.jsonl"
    records = [{"query": query, "document": doc.text, "title": doc.title} for query in QUERIES for doc in DOCUMENTS]
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def test_mini_is_a_juror(tmp_path: Path) -> None:
    file, out = demo_pairs(tmp_path), tmp_path / "out"
    report = run(ROOT / "configs/panels/local-mini.yaml", file, out)
    assert report.verdicts["yes"] + report.verdicts["no"] == len(file.read_text(encoding="utf-8").splitlines())
    assert of(report, "mini").calls == 0
    for vote in read_votes(out):
        assert vote.score is not None
        assert vote.label == (vote.score >= 0.5)


def test_mini_behind_our_endpoint_is_a_juror(tmp_path: Path) -> None:
    """Beside the same mini in this process: the same scores; and with a key the server wants."""
    from http_endpoint import Server

    from prism.reranker import Reranker

    file, out = demo_pairs(tmp_path), tmp_path / "out"
    with Reranker.load("mini", dtype="float32") as mini, Server(mini) as client:
        here = {"name": "here", "kind": "local", "model": "mini", "dtype": "float32"}
        there = {"name": "there", "kind": "endpoint", "url": f"{str(client.base_url).rstrip('/')}/v1"}
        report = run(panel(tmp_path, {}, [here, there]), file, out)
    assert of(report, "there").votes == of(report, "here").votes == report.pairs
    assert of(report, "there").failures == {}
    scores: dict[str, dict[str, float]] = {}
    for vote in read_votes(out):
        assert vote.score is not None
        assert vote.label == (vote.score >= 0.5)
        scores.setdefault(vote.pair_id, {})[vote.juror] = vote.score
    for one in scores.values():
        assert one["there"] == pytest.approx(one["here"], abs=1e-3)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, {"detail": "no"}, "refused the key"),
        (200, {"results": [{"index": 0, "relevance_score": 0.7}]}, "one result for each of 3 documents"),
        (200, {"results": [{"index": i, "relevance_score": 7.0} for i in range(3)]}, "one result for each"),
        (200, {"results": [{"index": 0, "relevance_score": True}] * 3}, "one result for each"),
    ],
)
def test_an_endpoint_that_does_not_answer_stops_and_makes_nothing_up(
    tmp_path: Path, status: int, body: dict[str, Any], words: str
) -> None:
    with HttpServer(lambda _: Reply(body, status)) as server:
        juror = {"name": "e", "kind": "endpoint", "url": f"{server.url}/v1", "max_attempts": 1, "key_env": "ACME_KEY"}
        report = run(panel(tmp_path, {}, [juror]), pairs(tmp_path, 3), tmp_path / "out")
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert words in (of(report, "e").stopped or "")
    assert report.verdicts == {"yes": 0, "no": 0, "undecided": 3}


@pytest.mark.parametrize(("cuts", "labels"), [([], [0, 1, 1]), ([0.7], [1, 1, 0])])
def test_an_endpoint_says_where_its_yes_begins_unless_the_panel_does(
    tmp_path: Path, cuts: list[float], labels: list[int]
) -> None:
    results = [
        {"index": 0, "relevance_score": 0.8, "verdict": "no"},
        {"index": 1, "relevance_score": 0.8},  # no server of ours: 0.5
        {"index": 2, "relevance_score": 0.6, "verdict": "yes"},
    ]
    with HttpServer(lambda _: Reply({"results": results})) as server:
        juror = {"name": "e", "kind": "endpoint", "url": f"{server.url}/v1", "cuts": cuts}
        run(panel(tmp_path, {}, [juror]), pairs(tmp_path, 3), tmp_path / "out")
    assert [line["label"] for line in lines(tmp_path / "out")] == labels


def test_an_endpoint_may_refuse_single_documents(tmp_path: Path) -> None:
    results = [
        {"index": 2, "relevance_score": 0.9},
        {"index": 0, "relevance_score": 0.1},
        {"index": 1, "relevance_score": None, "error": {"message": "too long"}},
    ]
    with HttpServer(lambda _: Reply({"results": results})) as server:
        juror = {"name": "e", "kind": "endpoint", "url": f"{server.url}/v1"}
        report = run(panel(tmp_path, {}, [juror]), pairs(tmp_path, 3), tmp_path / "out")
    assert of(report, "e").failures == {"unjudgeable": 1}
    assert [line["label"] for line in lines(tmp_path / "out")] == [0, None, 1]
