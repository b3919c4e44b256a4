"""eval/beir_qa.py end to end on a small made-up data set with a fake reranker: report, options, resuming, kill -9."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import beir_qa
from prism.errors import DataError, EngineError, InputError
from prism.evaluation.reranking import Reranked
from prism.files.beir import BEIR_QA, load_beir
from prism.files.trec import read_run
from prism.reports.report import command_line
from prism.types import Document, Judgment, Usage
from studies import reference
from studies.systems import State

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "eval" / "beir_qa.py"
SHARED = ROOT / "../shared/data/beir"


class FakeReranker:
    """Prefers documents that end in `!`; fails those that say `broken`; counts its calls."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.options: dict[str, object] = {}
        self.closed = False
        self._stop_at = stop_at

    def rerank(self, query: str, documents: Sequence[Document], **options: object) -> SimpleNamespace:
        if self._stop_at is not None and len(self.calls) == self._stop_at:
            raise EngineError("out of memory")
        self.calls.append((query, [str(document.id) for document in documents]))
        self.options = options
        return SimpleNamespace(judgments=[self._judge(index, document) for index, document in enumerate(documents)])

    def _judge(self, index: int, document: Document) -> Judgment:
        if "broken" in document.text:
            return Judgment(index=index, score=None, verdict=None, error="the document is broken")
        return Judgment(index=index, score=0.9 if document.text.endswith("!") else 0.1, verdict=None)

    def close(self) -> None:
        self.closed = True


def make_set(folder: Path, queries: int = 4) -> Path:
    """For query i three documents that BM25 ranks c, b, a (more often the word); `a` is the relevant one."""
    (folder / "qrels").mkdir(parents=True)
    corpus, asked, qrels = [], [], ["query-id\tcorpus-id\tscore"]
    for i in range(queries):
        word = f"word{i}x"
        corpus += [{"_id": f"{i}{name}", "title": "", "text": f"{f'{word} ' * count}so!"} for name, count in [("a", 1)]]
        corpus += [{"_id": f"{i}{n}", "title": "", "text": f"{f'{word} ' * c}so."} for n, c in [("b", 2), ("c", 3)]]
        asked.append({"_id": f"q{i}", "text": word})
        qrels.append(f"q{i}\t{i}a\t1")
    for name, rows in (("corpus", corpus), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / "test.tsv").write_text("\n".join(qrels) + "\n")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_set(tmp_path / "beir" / "tiny")
    return tmp_path / "beir"


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], FakeReranker, list[str]]]:
    """Runs the evaluation; returns the report, the reranker it used and what was said."""

    def go(**changes: Any) -> tuple[dict[str, Any], FakeReranker, list[str]]:
        reranker = changes.pop("reranker", None) or FakeReranker()
        said: list[str] = []
        options = beir_qa.Options(**{"models": ("mini",), "data": data, "out": tmp_path / "out", **changes})
        path = beir_qa.evaluate(options, said.append, lambda name, options: reranker)
        return json.loads(path.read_text()), reranker, said

    return go


Go = Callable[..., tuple[dict[str, Any], FakeReranker, list[str]]]


# --- figures ---------------------------------------------------------------------------------------------------------


def test_report_by_hand(run: Go, tmp_path: Path) -> None:
    report, reranker, _ = run()
    # BM25 ranks the relevant document third: nDCG 1/log2(4) = 0.5, RR 1/3. The fake puts it first: everything 1.
    bm25, mini = report["datasets"]["tiny"]["bm25"], report["datasets"]["tiny"]["mini"]
    third = {
        "nDCG@10": 0.5,
        "nDCG@5": 0.5,
        "nDCG@1": 0,
        "nDCG": 0.5,
        "Recall@100": 1,
        "MRR@10": 0.333333,
        "MRR": 0.333333,
    }
    assert bm25 == {**third, "MAP": 0.333333, "P@1": 0}
    assert mini == dict.fromkeys(bm25, 1.0)
    assert read_run(tmp_path / "out" / "tiny.bm25.run")["q2"] == ["2c", "2b", "2a"]
    assert read_run(tmp_path / "out" / "tiny.mini.run")["q2"] == ["2a", "2b", "2c"]  # b and c tie: by id
    meta = report["meta"]["tiny"]["mini"]
    assert meta["queries"] == 4
    assert meta["failures"] == {}
    assert meta["options"]["top_k"] == 100
    assert meta["versions"]["prism"]
    assert reranker.closed
    assert reranker.options == {"instruction": None, "top_n": None, "evidence": False, "max_prompt_tokens": None}


def test_below_top_k_the_first_stage_order_stays(run: Go, tmp_path: Path) -> None:
    report, reranker, _ = run(top_k=2)
    assert reranker.calls[0] == ("word0x", ["0c", "0b"])
    assert read_run(tmp_path / "out" / "tiny.mini.run")["q0"] == ["0b", "0c", "0a"]
    assert report["datasets"]["tiny"]["mini"]["Recall@100"] == 1
    assert report["datasets"]["tiny"]["mini"]["Recall@2"] == 0


def test_failed_documents_go_below_the_scored_ones_and_are_counted(run: Go, data: Path, tmp_path: Path) -> None:
    path = data / "tiny" / "corpus.jsonl"
    path.write_text(path.read_text().replace("word1x word1x so.", "word1x word1x broken so."))
    report, _, said = run()
    # The replacement hits 1b and the end of 1c; the first stage had them in the order 1c, 1b.
    assert read_run(tmp_path / "out" / "tiny.mini.run")["q1"] == ["1a", "1c", "1b"]
    assert report["meta"]["tiny"]["mini"]["failures"] == {"the document is broken": 2}
    assert "tiny mini: 2 documents could not be judged, most often: the document is broken" in said


def test_queries_without_candidates_count_as_zero(run: Go, data: Path) -> None:
    path = data / "tiny" / "queries.jsonl"
    path.write_text(path.read_text().replace("word3x", "unheard"))
    report, reranker, _ = run()
    assert len(reranker.calls) == 3
    assert report["datasets"]["tiny"]["mini"]["nDCG@10"] == 0.75
    assert report["meta"]["tiny"]["mini"]["queries_without_candidates"] == 1


def test_limit_measures_the_first_queries(run: Go, tmp_path: Path) -> None:
    report, reranker, _ = run(limit=2)
    assert [query for query, _ in reranker.calls] == ["word0x", "word1x"]
    assert report["datasets"]["tiny"]["mini"]["nDCG@10"] == 1
    assert "2 (first 2 only)" in (tmp_path / "out" / "report.md").read_text()
    _, reranker, said = run()  # the others follow; the two are not ranked again
    assert [query for query, _ in reranker.calls] == ["word2x", "word3x"]
    assert "tiny mini: 2 queries were finished before, 2 to go" in said


def test_a_run_file_instead_of_bm25(run: Go, tmp_path: Path) -> None:
    path = tmp_path / "tiny.dense.run"
    path.write_text("q0 Q0 0b 1 9 x\nq0 Q0 0a 2 8 x\nq1 Q0 1b 1 9 x\nq9 Q0 0a 1 9 x\n")
    report, reranker, _ = run(run=path)
    # dense: q0 finds it second, q1 to q3 never. mini: q0 first.
    assert report["datasets"]["tiny"]["dense"]["nDCG@10"] == pytest.approx(1 / math.log2(3) / 4, abs=1e-6)
    assert report["datasets"]["tiny"]["mini"]["nDCG@10"] == 0.25
    assert reranker.calls == [("word0x", ["0b", "0a"]), ("word1x", ["1b"])]
    path.write_text("q0 Q0 elsewhere 1 9 x\n")
    with pytest.raises(DataError, match=r"tiny.dense.run:1: document 'elsewhere' is not in tiny test"):
        run(run=path)
    path.write_text("other Q0 0a 1 9 x\n")
    with pytest.raises(DataError, match=r"tiny.dense.run:1: query 'other' is not in tiny test"):
        run(run=path)


def test_a_second_model_joins_the_report(run: Go, data: Path, tmp_path: Path) -> None:
    run()
    make_set(data / "wee", queries=2)
    report, _, said = run(models=("some/other", "mini"))
    assert {name: list(systems) for name, systems in report["datasets"].items()} == {
        "tiny": ["bm25", "mini", "other"],
        "wee": ["bm25", "other", "mini"],
    }
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    start = lines.index("| ranking | tiny | wee | mean |")
    assert lines[start + 1 : start + 5] == [
        "|---|---:|---:|---:|",
        "| bm25 | 0.5000 | 0.5000 | 0.5000 |",
        "| mini | **1.0000** | **1.0000** | **1.0000** |",
        "| other | **1.0000** | **1.0000** | **1.0000** |",
    ]
    assert not any("replaces" in line for line in said)
    _, _, said = run(top_k=2, datasets=("wee",))
    assert "wee mini: replaces the result of an earlier run with other options" in said
    assert not any(line.startswith("wee bm25: replaces") for line in said)


def test_a_foreign_report_is_not_overwritten(run: Go, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for content in ("{", "[]", "{}"):
        (tmp_path / "out" / "report.json").write_text(content)
        with pytest.raises(DataError, match=r"report.json: not a report of this program"):
            run()
        assert (tmp_path / "out" / "report.json").read_text() == content


def test_no_path_of_this_machine_gets_into_the_report(run: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "work" / "prism"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    model = tmp_path / "checkpoints" / "mine"
    run(models=(str(model),))
    for path in (tmp_path / "out").glob("report.*"):
        assert str(tmp_path) not in path.read_text()
    words = ["eval/beir_qa.py", "--model", str(model), "--model", f"dense:{model}", "--model", "jina:m@http://x/v1"]
    words += ["--data", str(here.parent / "shared" / "beir"), "--instruction", "find it", "--fresh", "--out=results"]
    assert command_line(words) == (
        "python eval/beir_qa.py --model mine --model dense:mine --model jina:m@http://x/v1 --data ../shared/beir"
        " --instruction 'find it' --fresh --out=results"
    )


def test_columns_need_different_names(run: Go) -> None:
    for models in (("a/x", "b/x"), ("bm25",)):
        with pytest.raises(InputError, match=r"system .* is taken"):
            run(models=models)


# --- resuming --------------------------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on(run: Go, tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        run(reranker=FakeReranker(stop_at=2))
    report, reranker, _ = run()
    assert [query for query, _ in reranker.calls] == ["word2x", "word3x"]
    assert report["datasets"]["tiny"]["mini"]["nDCG@10"] == 1
    _, reranker, _ = run()
    assert reranker.calls == []
    assert not reranker.closed  # never loaded
    _, reranker, _ = run(resume=False)
    assert len(reranker.calls) == 4


@pytest.mark.parametrize(
    "changes",
    [{"top_k": 3}, {"instruction": "other"}, {"dtype": "float32"}, {"max_prompt_tokens": 9}, {"engine": "vllm"}],
)
def test_other_options_do_not_reuse_the_state(run: Go, changes: dict[str, Any]) -> None:
    run()
    _, reranker, said = run(**changes)
    assert len(reranker.calls) == 4
    assert "tiny mini: the model or the options differ from earlier runs, whose state is not used" in said


def test_another_model_or_other_texts_do_not_reuse_the_state(run: Go, data: Path, tmp_path: Path) -> None:
    model = tmp_path / "mine"
    model.mkdir()
    (model / "weights").write_text("one")
    run(models=(str(model),))
    (model / "README.md").write_text("A card decides no score.")
    assert run(models=(str(model),))[1].calls == []
    (model / "weights").write_text("other")
    assert len(run(models=(str(model),))[1].calls) == 4
    path = data / "tiny" / "corpus.jsonl"
    path.write_text(path.read_text().replace("word1x so!", "word1x so, so!"))
    assert [query for query, _ in run(models=(str(model),))[1].calls] == ["word1x"]


DRIVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
import beir_qa
from types import SimpleNamespace
from pathlib import Path
from prism.types import Judgment

class Slow:
    def rerank(self, query, documents, **options):
        time.sleep(float(sys.argv[4]))
        print(f"{query}\\n", end="", flush=True)
        scores = [(sum(map(ord, d.id + query)) % 7) / 7 for d in documents]
        return SimpleNamespace(judgments=[Judgment(index=i, score=s, verdict=None) for i, s in enumerate(scores)])

    def close(self):
        pass

options = beir_qa.Options(models=("mini",), data=Path(sys.argv[2]), out=Path(sys.argv[3]), query_batch=2)
beir_qa.evaluate(options, lambda message: print(message, file=sys.stderr), lambda name, options: Slow())
"""


def test_kill_dash_9_in_the_middle(tmp_path: Path) -> None:
    make_set(tmp_path / "beir" / "tiny", queries=30)
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(out: str, seconds: float) -> subprocess.Popen[str]:
        words = [tmp_path / "driver.py", SCRIPT.parent, tmp_path / "beir", tmp_path / out, seconds]
        pipe = subprocess.PIPE
        command = [sys.executable, *map(str, words)]
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)

    whole = start("whole", 0.0)
    assert len(whole.communicate(timeout=120)[0].split()) == 30
    assert whole.returncode == 0

    killed = start("killed", 0.1)
    deadline = time.monotonic() + 60
    finished = 0
    while finished < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
        finished = sum(len(State(path, Reranked).read()) for path in tmp_path.glob("killed/state/*.sqlite"))
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    [path] = tmp_path.glob("killed/state/*.sqlite")
    state = State(path, Reranked)
    before = len(state.read())
    assert 5 <= before < 30

    again = start("killed", 0.0)
    ranked, said = again.communicate(timeout=120)
    assert again.returncode == 0
    assert len(ranked.split()) == 30 - before
    assert f"{before} queries were finished before" in said
    reports = [json.loads((tmp_path / out / "report.json").read_text())["datasets"] for out in ("whole", "killed")]
    assert reports[0] == reports[1]
    runs = [(tmp_path / out / "tiny.mini.run").read_bytes() for out in ("whole", "killed")]
    assert runs[0] == runs[1]
    assert len(state.read()) == 30


# --- command line ----------------------------------------------------------------------------------------------------


def invoke(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(beir_qa.app, [str(word) for word in words], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_help_names_every_option() -> None:
    code, text, _ = invoke("--help")
    assert code == 0
    options = {"resume", "fresh"} | {name.replace("_", "-") for name in beir_qa.Options.model_fields} - {"models"}
    assert {f"--{name}" for name in options | {"model"}} <= set(re.findall(r"--[a-z-]+", text))


def test_command_line_without_a_model(data: Path, tmp_path: Path) -> None:
    words = ("--model", "none", "--data", data, "--datasets", "tiny,tiny", "--limit", 3, "--out", tmp_path / "o")
    code, text, said = invoke(*words)
    assert (code, text.strip()) == (0, str(tmp_path / "o" / "report.json"))
    assert "tiny bm25: nDCG@10 0.5000, Recall@100 1.0000, MRR@10 0.3333" in said
    assert list(json.loads(Path(text.strip()).read_text())["datasets"]["tiny"]) == ["bm25"]


def test_wrong_words_end_in_one_line_and_exit_code_2(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    cases = [
        (("--data", tmp_path / "nowhere"), "no folder"),
        (("--data", tmp_path / "empty"), "no data set in"),
        (("--data", data, "--datasets", "nq"), "it holds tiny"),
        (("--data", data, "--split", "dev"), "test found in qrels/"),
        (("--data", data, "--run", tmp_path / "no.run"), "no file"),
        (("--run", tmp_path / "no.run"), "--run holds the candidates of one data set, got 9: name it with --datasets"),
        (("--data", data, "--out", tmp_path / "file" / "x"), "choose another --out"),
        (("--data", data, "--engine", "openai"), "--engine openai and --base-url go together"),
        (("--data", data, "--engine", "openai", "--base-url", "http://me:pw@h/v1"), "...h/v1: a key does not belong"),
    ]
    for words, message in cases:
        code, text, said = invoke("--out", tmp_path / "o", *words)
        assert (code, text) == (2, "")
        last = said.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert message in last
    assert invoke("--top-k", 0)[0] == 2
    assert invoke("--dtype", "float8")[0] == 2
    assert invoke("--engine", "steam")[0] == 2


def test_engine_openai_asks_the_servers_it_is_given(data: Path, tmp_path: Path) -> None:
    server = "http://127.0.0.1:9/v1"  # the discard port: nobody listens
    words = ("--data", data, "--model", "mini", "--engine", "openai", "--base-url", server, "--out", tmp_path / "o")
    code, _, said = invoke(*words)
    assert code == 2
    assert "127.0.0.1:9" in said.strip().splitlines()[-1]


@pytest.mark.skipif(not (SHARED / "scifact").is_dir(), reason="needs the SciFact data beside the repository")
def test_scifact_as_published(tmp_path: Path) -> None:
    code, _, said = invoke("--data", SHARED, "--datasets", "scifact", "--out", tmp_path)
    assert code == 0, said
    figures = json.loads((tmp_path / "report.json").read_text())["datasets"]["scifact"]["bm25"]
    assert figures["nDCG@10"] == pytest.approx(0.676, abs=0.005)  # BEIR's own BM25 (Anserini, flat): 0.679
    assert figures["Recall@100"] == pytest.approx(0.913, abs=0.005)


# --- fusion, baselines, cost -----------------------------------------------------------------------------------------


def with_train(data: Path) -> Path:
    """The same judged pairs as train and test: enough to fit a weight on."""
    qrels = data / "tiny" / "qrels"
    (qrels / "train.tsv").write_text((qrels / "test.tsv").read_text())
    return data


def test_fusions_join_the_report(run: Go, data: Path, tmp_path: Path) -> None:
    with_train(data)
    report, reranker, said = run(fuse=("rrf:bm25+mini", "minmax:bm25+mini"), tune_queries=2)
    systems = report["datasets"]["tiny"]
    assert list(systems) == ["bm25", "mini", "rrf-bm25-mini", "minmax-bm25-mini"]
    # bm25: c, b, a; mini: a, b, c (b and c tie, so by id). rrf: a 1/63 + 1/61, b 2/62, c 1/61 + 1/63: a and c tie
    # above b, since 1/61 + 1/63 > 2/62; a goes first by its id.
    assert read_run(tmp_path / "out" / "tiny.rrf-bm25-mini.run")["q0"] == ["0a", "0c", "0b"]
    # minmax: bm25 gives c 1, a 0; mini gives a 1, c 0. Up to a half on bm25 `a` is first (at a half by its id).
    weight = report["meta"]["tiny"]["minmax-bm25-mini"]["options"]["weight"]
    assert weight == 0.5
    assert systems["minmax-bm25-mini"]["nDCG@10"] == 1
    assert f"tiny minmax:bm25+mini: weight {weight:.2f} on bm25, from 2 train queries" in said
    assert len(reranker.calls) == 4 + 2  # the train queries are ranked once for all fusions


def test_wrong_fusions_and_prices_are_refused_before_anything_runs(run: Go, tmp_path: Path) -> None:
    path = tmp_path / "tiny.dense.run"
    path.write_text("q0 Q0 0b 1 9 x\n")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"fuse": ("rrf:bm25+other",)}, "no system 'other': this run has bm25, mini"),
        ({"fuse": ("sum:bm25+mini",)}, "expected rrf:A"),
        ({"fuse": ("minmax:dense+mini",), "run": path, "datasets": ("tiny",)}, "a run file has no train queries"),
        ({"fuse": ("minmax:bm25+mini",), "split": "train"}, "fitted on train"),
        ({"price": ("other=1/search",)}, "no system 'other'"),
        ({"price": ("mini=1/day",)}, "expected SYSTEM=DOLLARS/UNIT"),
        ({"price": ("mini=-1/token",)}, "expected SYSTEM=DOLLARS/UNIT"),
        ({"api_fields": "[]"}, "expected a JSON object"),
        ({"first": "splade:x"}, "cannot retrieve with 'splade:x'"),
        ({"baseline": ("bm25",)}, "system 'bm25' is taken"),
    ]
    for changes, message in cases:
        reranker = FakeReranker()
        with pytest.raises(InputError, match=re.escape(message)):
            run(reranker=reranker, **changes)
        assert reranker.calls == []
    assert not (tmp_path / "out").exists()


def test_bm25_as_a_baseline_beside_a_run(run: Go, tmp_path: Path) -> None:
    path = tmp_path / "tiny.dense.run"
    path.write_text("".join(f"q{i} Q0 {i}a 1 9 x\n" for i in range(4)))
    report, _, _ = run(run=path, baseline=("bm25",), datasets=("tiny",), fuse=("rrf:dense+bm25",))
    systems = report["datasets"]["tiny"]
    assert list(systems) == ["dense", "bm25", "mini", "rrf-dense-bm25"]
    assert [systems[name]["nDCG@10"] for name in ("dense", "bm25", "mini")] == [1, 0.5, 1]
    # c: 1/61; b: 1/62; a: 1/61 + 1/63.
    assert read_run(tmp_path / "out" / "tiny.rrf-dense-bm25.run")["q0"] == ["0a", "0c", "0b"]


def test_dense_first_stage(tiny_checkpoint: Path, run: Go, tmp_path: Path) -> None:
    """With a real model of random weights: every document is a candidate, and its vectors are kept."""
    model = f"dense:{tiny_checkpoint}"
    report, _, _ = run(first=model, fuse=(f"rrf:{tiny_checkpoint.name}+mini",))
    assert list(report["datasets"]["tiny"])[:2] == [tiny_checkpoint.name, "mini"]
    assert report["datasets"]["tiny"][tiny_checkpoint.name]["Recall@100"] == 1
    assert report["meta"]["tiny"]["mini"]["options"]["candidates"] == tiny_checkpoint.name
    [vectors] = (tmp_path / "out" / "cache" / "dense").iterdir()
    assert vectors.stat().st_size == 12 * 64 * 4  # 12 documents, 64 numbers of 4 bytes
    assert str(tiny_checkpoint.parent) not in (tmp_path / "out" / "report.html").read_text()


class CountingReranker(FakeReranker):
    """Also says what it read."""

    def rerank(self, query: str, documents: Sequence[Document], **options: object) -> SimpleNamespace:
        reply = super().rerank(query, documents, **options)
        return SimpleNamespace(judgments=reply.judgments, usage=Usage(prompt_tokens=100, written_tokens=25), requests=1)


def test_tokens_and_dollars(run: Go, tmp_path: Path) -> None:
    report, _, _ = run(reranker=CountingReranker(), price=("mini=2/Mtoken",))
    meta = report["meta"]["tiny"]["mini"]
    assert (meta["tokens"], meta["requests"]) == (500, 4)  # four queries
    assert meta["usd"] == pytest.approx(500 * 2 / 1e6)
    assert meta["median_s"] <= meta["p95_s"]
    assert meta["peak_mib"] > 0
    assert run(price=("mini=2/ksearch",))[0]["meta"]["tiny"]["mini"]["usd"] == pytest.approx(4 * 2 / 1000)
    assert run()[0]["meta"]["tiny"]["mini"]["usd"] is None
    assert "| mini | 4 | 100 | 0 |" in (tmp_path / "out" / "report.md").read_text()


def test_the_report_says_what_is_not_comparable(run: Go, tmp_path: Path) -> None:
    run(top_k=2)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Not comparable with the published figures: bm25, mini" in text
    assert "| Prism on Qwen3-Reranker-4B | 58.87 | published |" in text
    report: dict[str, Any] = {"datasets": {}, "meta": {}}
    for name in BEIR_QA:
        options = {"candidates": "jina-embeddings-v3", "top_k": 100, "limit": None, "split": "test"}
        report["datasets"][name] = {"x": {"nDCG@10": 0.5}}
        report["meta"][name] = {"x": {"options": options}}
    assert reference.differences(report, "x") == []
    assert reference.mean_ndcg(report, "x") == pytest.approx(50)
    report["meta"]["nq"]["x"]["options"] = {"candidates": "bm25", "top_k": 20, "limit": 5, "split": "dev"}
    del report["datasets"]["fiqa"]["x"]
    assert reference.differences(report, "x") == [
        "1 of the nine sets are missing (fiqa)",
        "its candidates are not those of jina-embeddings-v3 (bm25)",
        "it reranked 20 candidates, not 100",
        "only the first queries were measured",
        "the split is not test",
    ]


def test_pairs_and_chance_are_in_the_report(run: Go, tmp_path: Path) -> None:
    report, _, _ = run()
    [pair] = report["comparisons"]["tiny"]["pairs"]
    assert (pair["column"], pair["against"]) == ("mini", "bm25")
    assert (pair["difference"], pair["interval"]) == (0.5, [0.5, 0.5])  # the same in every query
    # One relevant document among three: (1 + 1/log2(3) + 1/2) / 3.
    expected = (1 + 1 / math.log2(3) + 0.5) / 3
    assert report["meta"]["tiny"]["bm25"]["shuffled_ndcg10"] == pytest.approx(expected, abs=1e-6)
    assert "| mini − bm25 | 0.5000 | 0.5000 | 0.5000 |" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "report.html").is_file()


def test_columns_of_other_queries_are_not_compared(run: Go) -> None:
    run()
    report, _, _ = run(limit=3, models=("some/other",))
    assert set(report["datasets"]["tiny"]) == {"bm25", "mini", "other"}
    assert [(pair["column"], pair["against"]) for pair in report["comparisons"]["tiny"]["pairs"]] == [("other", "bm25")]


def test_a_corpus_stays_on_disk(tmp_path: Path) -> None:
    """Twenty megabytes of text; the loaded set holds ids and offsets only."""
    folder = make_set(tmp_path / "big", queries=1)
    with (folder / "corpus.jsonl").open("a") as file:
        for i in range(4000):
            file.write(json.dumps({"_id": f"x{i}", "title": "t", "text": f"{i} " + "word " * 1000}) + "\n")
    tracemalloc.start()
    data = load_beir("big", tmp_path)
    texts = sum(len(data.text(id_)) for id_ in data.corpus)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert texts > 20_000_000
    assert peak < 3_000_000
    assert len(data.corpus) == 4003
    assert list(data.corpus) == sorted(data.corpus)
    assert data.corpus["x7"] == ("t", "7 " + "word " * 1000)
    assert "x4000" not in data.corpus
