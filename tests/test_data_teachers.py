"""Teacher scores: three dialects over real HTTP, nothing lost or paid twice after kill -9, budgets, local models."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from http_server import HttpServer, Reply, Request
from typer.testing import CliRunner

from prism import cli
from prism.data.teacher_local import load_teacher
from prism.data.teacher_store import Cost, TeacherStore, score_key
from prism.data.teachers import (
    ApiLimits,
    BudgetReached,
    estimate_calls,
    score_locally,
    score_with_api,
    scored,
    squashed,
)
from prism.errors import CheckpointError, DataError, InputError
from prism.files.jsonl import Drops, Line
from prism.llm.failures import Stop
from prism.llm.rerank_api import ApiTeacher
from prism.reranker import Reranker

ROOT = Path(__file__).parents[1]
runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def made(queries: int, documents: int) -> list[dict[str, str]]:
    return [{"query": f"query {q}", "document": f"text {d} of {q}"} for q in range(queries) for d in range(documents)]


def lines(rows: Sequence[dict[str, Any]]) -> Callable[[], Iterator[Line]]:
    return lambda: iter([Line(f"pairs.jsonl:{n}", row) for n, row in enumerate(rows, 1)])


def value(query: str, document: str) -> float:
    """What the server thinks of a pair: of the two texts alone, so that order and batches cannot matter."""
    return sum(map(ord, query + document)) % 97 / 100


def rated(request: Request, dialect: str = "jina") -> dict[str, Any]:
    body = request.body
    items = [
        {"index": index, "relevance_score": value(body["query"], text)} for index, text in enumerate(body["documents"])
    ]
    items.reverse()  # APIs answer best first, never in the order sent
    if dialect == "cohere":
        return {"id": "x", "results": items, "meta": {"billed_units": {"search_units": 1}}}
    if dialect == "voyage":
        return {"object": "list", "data": items, "model": body["model"], "usage": {"total_tokens": 10 * len(items)}}
    return {"model": body["model"], "results": items, "usage": {"total_tokens": 10 * len(items)}}


def api(server: HttpServer, dialect: Any = "jina", key: str | None = "secret", attempts: int = 3) -> ApiTeacher:
    return ApiTeacher(dialect, "m", server.url + "/v1/rerank", key, attempts=attempts, longest_wait_s=0.01)


def run(
    rows: Sequence[dict[str, Any]], teacher: ApiTeacher, store: TeacherStore, **limits: Any
) -> tuple[list[dict[str, Any]], Drops]:
    failures = score_with_api(lines(rows), teacher, store, ApiLimits(**limits), lambda _: None)
    drops = Drops()
    return list(scored(lines(rows)(), teacher.name, store, failures, "none", drops)), drops


@pytest.mark.parametrize("dialect", ["cohere", "jina", "voyage"])
def test_each_dialect_is_spoken_and_billed(dialect: str, tmp_path: Path) -> None:
    rows = [*made(2, 3), {"query": "query 0", "document": "plain", "title": "Heading"}]
    with HttpServer(lambda request: Reply(rated(request, dialect))) as server:
        teacher = api(server, dialect)
        with TeacherStore(tmp_path / "s", teacher.name) as store:
            found, drops = run(rows, teacher, store, price_per_search=2.0, price_per_million_tokens=1e6, concurrency=1)
            spent = store.spent()
    sent = [request.body for request in server.requests]
    assert [row["teacher_score"] for row in found[:6]] == [value(row["query"], row["document"]) for row in rows[:6]]
    assert found[6]["teacher_score"] == value("query 0", "Heading\nplain")
    assert not drops.counts
    assert [len(body["documents"]) for body in sent] == [4, 3]
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer secret"}
    if dialect == "voyage":
        assert sent[0]["top_k"] == 4
        assert "top_n" not in sent[0]
    else:
        assert sent[0]["top_n"] == 4
    if dialect == "cohere":  # two calls of one search unit at 2.0; no tokens billed, so they are estimated from above
        assert spent.searches == 2
        assert spent.cost == pytest.approx(2 * 2.0 + spent.tokens)
    else:  # 7 documents of 10 tokens at 1.0 a token, and the searches nobody billed are estimated: one a call
        assert spent.tokens == 70
        assert spent.cost == pytest.approx(70 + 2 * 2.0)


def test_same_pair_is_asked_once_ever(tmp_path: Path) -> None:
    rows = made(3, 4)
    with HttpServer(lambda request: Reply(rated(request))) as server:
        teacher = api(server)
        with TeacherStore(tmp_path / "s", teacher.name) as store:
            run([*rows, *rows], teacher, store)
            run([*rows, {"query": "query 0", "document": "new"}], teacher, store)
        asked = Counter((r.body["query"], text) for r in server.requests for text in r.body["documents"])
    assert set(asked.values()) == {1}
    assert len(asked) == 13


def test_busy_broken_and_partial_answers(tmp_path: Path) -> None:
    """429, 500, truncated JSON and a missing list are asked again; what an answer leaves out is named, not guessed."""
    script = iter(
        [
            Reply({"detail": "slow down"}, 429, {"Retry-After": "0.001"}),
            Reply({"detail": "oops"}, 500),
            Reply(b'{"results": [{"ind'),
            Reply({"results": None}),
        ]
    )

    def answer(request: Request) -> Reply:
        reply = next(script, None)
        if reply is not None:
            return reply
        body = rated(request)
        body["results"] = [
            *[item for item in body["results"] if item["index"] != 1],
            {"index": 99, "relevance_score": 0.5},
        ]
        return Reply(body)

    with HttpServer(answer) as server:
        teacher = api(server, attempts=6)
        with TeacherStore(tmp_path / "s", teacher.name) as store:
            found, drops = run(made(1, 3), teacher, store)
    assert len(server.requests) == 5
    assert [row["document"] for row in found] == ["text 0 of 0", "text 2 of 0"]
    assert drops.report() == {"the teacher's answer left it out": {"count": 1, "first": ["pairs.jsonl:2"]}}


def test_one_refused_document_is_found_by_halving(tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        if any("poison" in text for text in request.body["documents"]):
            return Reply({"message": "bad document"}, 422)
        return Reply(rated(request))

    rows = [*made(1, 6), {"query": "query 0", "document": "poison"}]
    with HttpServer(answer) as server:
        teacher = api(server)
        with TeacherStore(tmp_path / "s", teacher.name) as store:
            found, drops = run(rows, teacher, store)
            assert store.spent().unanswered_calls == 0
    refused = "rejected the request (422): bad document"
    assert len(found) == 6
    assert drops.report() == {
        f"the teacher refused it: {teacher.url} {refused}": {"count": 1, "first": ["pairs.jsonl:7"]},
    }


@pytest.mark.parametrize(("status", "words"), [(401, "refused the key"), (402, "out of credit"), (404, "--model")])
def test_a_teacher_that_will_not_answer_stops_the_run_and_loses_nothing(
    status: int, words: str, tmp_path: Path
) -> None:
    answered = threading.Event()

    def answer(request: Request) -> Reply:
        if answered.is_set():
            return Reply({"message": "no, secret"}, status)
        answered.set()
        return Reply(rated(request))

    with HttpServer(answer) as server:
        teacher = api(server)
        with TeacherStore(tmp_path / "s", teacher.name) as store:
            with pytest.raises(Stop, match=words) as stopped:
                run(made(5, 2), teacher, store, concurrency=1)
            assert store.spent().pairs == 2
    assert len(server.requests) == 3  # after an answer, a harmless question tells whether it is the account
    assert "2 scores are kept" in str(stopped.value)
    assert "secret" not in str(stopped.value)


def test_a_dead_server_ends_the_run(tmp_path: Path) -> None:
    with HttpServer(lambda request: Reply({}, 503)) as server:
        teacher = api(server, attempts=2)
        with (
            TeacherStore(tmp_path / "s", teacher.name) as store,
            pytest.raises(Exception, match="no answer in 2 attempts"),
        ):
            run(made(50, 1), teacher, store, concurrency=1)
    assert len(server.requests) == 6


def test_the_budget_is_never_exceeded_over_runs(tmp_path: Path) -> None:
    with HttpServer(lambda request: Reply(rated(request))) as server:
        teacher = api(server)
        for budget, calls in ((3.5, 3), (5.0, 5)):
            with (
                TeacherStore(tmp_path / "s", teacher.name) as store,
                pytest.raises(BudgetReached, match="raise --budget"),
            ):
                run(made(20, 1), teacher, store, price_per_search=1.0, budget=budget)
            assert len(server.requests) == calls
    with pytest.raises(InputError, match="a budget needs a price"):
        ApiLimits(budget=1.0)


def test_the_estimate_is_from_above(tmp_path: Path) -> None:
    """2 queries of 7 bytes with 3 documents of 11: 2 x ceil((21 + 33) / 4) = 28 tokens."""
    with TeacherStore(tmp_path / "s", "t") as store:
        pairs, calls, cost = estimate_calls(lines(made(2, 3)), "t", store, ApiLimits(price_per_million_tokens=1e6))
    assert (pairs, calls, cost) == (6, 2, Cost(28, 2, 28.0))


def test_no_key_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COHERE_API_KEY", raising=False)
    with pytest.raises(InputError, match="set COHERE_API_KEY"):
        ApiTeacher.from_environment("cohere", "rerank-v3.5")
    assert ApiTeacher.from_environment("cohere", "mini", "http://127.0.0.1:1/v2/rerank").key is None
    with pytest.raises(InputError, match="set MY_KEY"):
        ApiTeacher.from_environment("jina", "m", "http://127.0.0.1:1", "MY_KEY")
    monkeypatch.setenv("MY_KEY", "k")
    teacher = ApiTeacher.from_environment("jina", "m", "http://127.0.0.1:1", "MY_KEY")
    assert teacher.key == "k"
    assert "k" not in teacher.name.split()


def test_raw_scores_are_squashed_only_as_asked() -> None:
    assert squashed(0.25, "none", "p") == 0.25
    assert squashed(0.0, "sigmoid", "p") == 0.5
    assert squashed(math.log(3), "sigmoid", "p") == 0.75
    assert squashed(-900.0, "sigmoid", "p") == 0.0
    assert squashed(-0.5, "half", "p") == 0.25
    with pytest.raises(DataError, match=r"a:3: teacher score 4.5 is not in \[0, 1\]: pass --squash sigmoid"):
        squashed(4.5, "none", "a:3")


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("something else entirely, long enough to be read as a header" * 20)
    with pytest.raises(DataError, match="is not a store of teacher scores"):
        TeacherStore(tmp_path / "s", "t")


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def test_kill_9_loses_no_score_and_pays_none_twice(tmp_path: Path) -> None:
    """The command is killed while three calls hang; what was answered is kept, only those three are asked again."""
    concurrency, before = 3, 20
    gate = threading.Event()  # open: answer everything
    served = threading.Semaphore(before)
    hanging = threading.Barrier(concurrency + 1)

    def answer(request: Request) -> Reply:
        if not gate.is_set() and not served.acquire(blocking=False):
            hanging.wait(60)
            gate.wait(60)
        return Reply(rated(request))

    rows = made(60, 2)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "scored.jsonl"
    with HttpServer(answer) as server:
        command = [
            *(sys.executable, "-m", "prism.cli", "data", "score", str(pairs), str(out)),
            *("--teacher", "jina", "--model", "m", "--url", server.url, "--store", str(tmp_path / "store.sqlite")),
            *("--batch-size", "2", "--concurrency", str(concurrency)),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
        hanging.wait(60)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        assert not out.exists()
        gate.set()
        assert len(server.requests) == before + concurrency
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    asked = Counter(request.body["query"] for request in server.requests)
    assert len(asked) == 60
    assert sum(asked.values()) == 60 + concurrency  # paid twice: only what was in flight
    assert max(asked.values()) == 2
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["teacher_score"] for row in found] == [value(row["query"], row["document"]) for row in rows]
    report = json.loads((tmp_path / "scored.jsonl.report.json").read_text())
    assert report["cost"]["unanswered_calls"] == concurrency
    assert report["cost"]["pairs"] == 120


def test_a_torn_transaction_leaves_no_half_answer(tmp_path: Path) -> None:
    """A store left open, as by a dead process, keeps what was committed and shows the rest as unanswered."""
    store = TeacherStore(tmp_path / "s", "t")
    call = store.sent(2, Cost(10, 1, 0.5))
    store.paid(call, Cost(8, 1, 0.4), {score_key("t", "q", "d"): 0.5})
    store.sent(2, Cost(10, 1, 0.5))
    with TeacherStore(tmp_path / "s", "t") as again:
        assert again.get([score_key("t", "q", "d"), score_key("t", "q", "e")]) == {score_key("t", "q", "d"): 0.5}
        assert again.spent() == (1, 1, 18, 2, pytest.approx(0.9), 1)
    store.__exit__(None, None, None)


# --- the command -----------------------------------------------------------------------------------------------------


def test_malformed_lines_name_file_and_line(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_bytes(
        b'{"query": "q", "document": "d"}\n{"query": "q"}\n\xff\xfe\n[1]\n{"query": "q", "document": "\\ud800"}\n'
    )
    with HttpServer(lambda request: Reply(rated(request))) as server:
        base = ["data", "score", str(pairs), str(tmp_path / "out.jsonl"), "--teacher", "jina", "--model", "m"]
        base += ["--url", server.url, "--store", str(tmp_path / "s")]
        failed = runner.invoke(cli.app, base)
        assert failed.exit_code == 2
        assert "pairs.jsonl:2: document: expected text, got nothing" in failed.stderr
        assert server.requests == []
        passed = runner.invoke(cli.app, [*base, "--on-bad", "skip"])
        assert passed.exit_code == 0, passed.stderr
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert report["records"] == 2
    assert report["dropped"]["malformed line"]["count"] == 3
    assert [place.split(": ")[0].rpartition(":")[2] for place in report["dropped"]["malformed line"]["first"]] == list(
        "234"
    )


def test_dry_run_asks_nobody(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in made(2, 3)))
    with HttpServer(lambda request: Reply(rated(request))) as server:
        options = ["--teacher", "voyage", "--model", "m", "--url", server.url, "--store", str(tmp_path / "s")]
        price = ["--price-per-million-tokens", "50000", "--dry-run"]
        done = runner.invoke(cli.app, ["data", "score", str(pairs), str(tmp_path / "o"), *options, *price])
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "6 pairs without a score, 2 calls, at most 28 tokens, 1.40 in all\n"
    assert server.requests == []


# --- local models ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with a word tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", "text", "of", *map(str, range(10))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder = tmp_path_factory.mktemp("bert")
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special).save_pretrained(folder)
    BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
        num_labels=1,
    ).save_pretrained(folder)
    return folder


def local(kind: Any, folder: Path, store_path: Path) -> tuple[list[float], TeacherStore, Any]:
    teacher = load_teacher(kind, str(folder), "cpu")
    store = TeacherStore(store_path, teacher.name)
    assert score_locally(lines(made(3, 4)), teacher, store, 5, lambda _: None) == {}
    return (
        [row["teacher_score"] for row in scored(lines(made(3, 4))(), teacher.name, store, {}, "none", Drops())],
        store,
        teacher,
    )


def test_a_cross_encoder_gives_the_sigmoid_of_its_logit(bert: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(5)
    model = BertForSequenceClassification(BertConfig.from_pretrained(bert)).eval()
    folder = tmp_path / "ce"
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    tokenizer.save_pretrained(folder)
    found, store, teacher = local("cross-encoder", folder, tmp_path / "s")
    with torch.no_grad():
        logits = [
            model(**tokenizer(row["query"], row["document"], return_tensors="pt")).logits.item() for row in made(3, 4)
        ]
    assert found == pytest.approx([1 / (1 + math.exp(-logit)) for logit in logits], abs=2e-5)
    assert len(set(found)) > 6
    calls = store.spent().calls
    score_locally(lines(made(3, 4)), teacher, store, 5, lambda _: None)
    assert store.spent().calls == calls  # nothing is computed again
    store.__exit__(None, None, None)


def test_an_embedding_model_gives_half_of_one_plus_cosine(bert: Path, tmp_path: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(5)
    folder = tmp_path / "emb"
    BertModel(BertConfig.from_pretrained(bert)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    found, store, _ = local("embedding", folder, tmp_path / "s")
    store.__exit__(None, None, None)
    vectors = SentenceTransformer(str(folder), device="cpu")
    for row, score in zip(made(3, 4), found, strict=True):
        a, b = vectors.encode([row["query"], row["document"]])
        assert score == pytest.approx((1 + a @ b / math.sqrt((a @ a) * (b @ b))) / 2, abs=2e-5)


def test_any_reranker_is_a_teacher(tiny_checkpoint: Path, tmp_path: Path) -> None:
    teacher = load_teacher("reranker", str(tiny_checkpoint), "cpu", "prism")
    store = TeacherStore(tmp_path / "s", teacher.name)
    rows = made(3, 4)
    assert score_locally(lines(rows), teacher, store, 5, lambda _: None) == {}
    found = list(scored(lines(rows)(), teacher.name, store, {}, "none", Drops()))
    store.__exit__(None, None, None)
    with Reranker.load(str(tiny_checkpoint), template="prism", self_test=False) as reranker:
        for row, told in zip(rows, found, strict=True):
            (alone,) = reranker.rerank(row["query"], [row["document"]], evidence=False)
            assert told["teacher_score"] == pytest.approx(alone.score, abs=1e-3)


def test_a_template_is_for_rerankers_only(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"query": "q", "document": "d"}\n')
    asked = ["data", "score", str(tmp_path / "p.jsonl"), str(tmp_path / "o.jsonl"), "--model", "m"]
    result = CliRunner().invoke(cli.app, [*asked, "--teacher", "embedding", "--template", "prism"])
    assert result.exit_code == 2
    assert "--template is for --teacher reranker" in result.stderr


def test_what_is_read_is_not_written_over(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"query": "q", "document": "d", "teacher_score": 0.5}\n')
    before = path.read_bytes()
    asked = ["--teacher", "reranker", "--model", str(tiny_checkpoint), "--template", "prism"]
    again = tmp_path / "again.jsonl"
    again.symlink_to(path)
    for out in (path, again):
        result = CliRunner().invoke(cli.app, ["data", "score", str(path), str(out), *asked])
        assert result.exit_code == 2
        assert "is read and would be written over" in result.stderr
    assert path.read_bytes() == before


def test_a_score_there_was_counts_for_the_rest(tmp_path: Path) -> None:
    rows = [{**row, "teacher_score": 0.8} for row in made(1, 2)]
    with TeacherStore(tmp_path / "s", "t") as store:
        keys = [score_key("t", row["query"], row["document"]) for row in rows]
        store.paid(store.sent(2, Cost()), Cost(), dict(zip(keys, [0.2, 0.6], strict=True)))
        found = [row["teacher_score"] for row in scored(lines(rows)(), "t", store, {}, "none", Drops(), mix=0.25)]
        assert found == pytest.approx([0.65, 0.75])  # 0.75 * 0.8 + 0.25 * 0.2, and with 0.6
        broken = [{**rows[0], "teacher_score": "high"}]
        with pytest.raises(DataError, match="teacher_score 'high' is no number"):
            list(scored(lines(broken)(), "t", store, {}, "none", Drops(), mix=0.25))


def test_what_is_no_teacher_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot load the cross-encoder"):
        load_teacher("cross-encoder", str(tmp_path / "absent"))
