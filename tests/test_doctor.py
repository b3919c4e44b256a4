"""`prism doctor` on real servers: good ones of every dialect pass, each fault is called by its name and no other."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

import pytest
import rerank_servers as servers
from fakes import FakeEngine
from http_endpoint import Server
from hypothesis import given
from hypothesis import strategies as st
from rerank_servers import RerankServer, judge, speaking
from typer.testing import CliRunner

from prism import symptoms
from prism.cli import app
from prism.doctor.examination import CHECKS, Examination, chosen, examine
from prism.doctor.golden import DECOYS, GOLDEN, filler, hundred
from prism.doctor.opening import open_server
from prism.doctor.request_checks import _fit, _in_units
from prism.doctor.targets import Item, LocalTarget, TargetReply
from prism.errors import EngineError, InputError
from prism.llm.failures import KeyRefused
from prism.reranker import Reranker
from prism.symptoms import CURES, Failure
from prism.template import PRISM, Template


def report_on(server: RerankServer, **options: Any) -> Examination:
    with server:
        target = open_server(server.url, **{"timeout_s": 20.0, **options})
        try:
            return examine(target)
        finally:
            target.close()


GOOD = {
    "jina": {},
    "cohere": {},
    "voyage": {},
    "vllm": {"owner": "vllm"},
    "tei": {"most": 32},
    "sglang": {},
    "prism": {"owner": "prism"},
}


@pytest.mark.parametrize("dialect", GOOD)
def test_a_good_server_of_each_dialect_is_recognised_and_passes(dialect):
    report = report_on(speaking(dialect, **GOOD[dialect])())
    assert report.dialect == dialect
    assert report.diagnoses == ()
    assert {finding.check for finding in report.findings} == {check.name for check in CHECKS}
    skips = {finding.check for finding in report.findings if finding.status == "skipped"}
    silent = {"instruction"} - ({"instruction"} if dialect in ("vllm", "sglang", "prism") else set())
    silent |= set() if dialect in ("cohere", "prism") else {"spans"}
    silent |= set() if dialect == "prism" else {"truncation"}
    assert skips == silent | ({"top_n"} if dialect == "tei" else set())


FAULTS = {
    servers.Constant: Failure.CONSTANT,
    servers.LabelsLost: Failure.LABELS_LOST,
    servers.Inverted: Failure.INVERTED,
    servers.QueryDropped: Failure.QUERY_DROPPED,
    servers.QueryCutShort: Failure.QUERY_DROPPED,
    servers.DocumentDropped: Failure.DOCUMENT_DROPPED,
    servers.TemplateMissing: Failure.TEMPLATE_MISSING,
    servers.BareTokens: Failure.TEMPLATE_MISSING,
    servers.TemplateDoubled: Failure.TEMPLATE_DOUBLED,
    servers.TextsDoubled: Failure.TEMPLATE_DOUBLED,
    servers.MinMax: Failure.BATCH,
    servers.Softmax: Failure.BATCH,
    servers.ByPlace: Failure.ORDER,
    servers.Unsteady: Failure.UNSTEADY,
    servers.PaddingRead: Failure.PADDING,
    servers.Rounded: Failure.TIES,
    servers.SuffixLost: Failure.SUFFIX_LOST,
    servers.LongFails: Failure.LONG_FAILS,
    servers.CutUntold: Failure.CUT_UNTOLD,
    servers.InstructionIgnored: Failure.INSTRUCTION_IGNORED,
    servers.BlankFails: Failure.BAD_FAILS_ALL,
    servers.BlankMoves: Failure.BAD_MOVES_OTHERS,
    servers.ControlObeyed: Failure.CONTROL_OBEYED,
    servers.EmptyFails: Failure.EMPTY_LIST,
    servers.PlanesLost: Failure.UNICODE,
    servers.InBytes: Failure.SPANS_IN_BYTES,
    servers.InUtf16: Failure.SPANS_IN_UTF16,
    servers.OffByTwo: Failure.SPANS_WRONG,
    servers.AllReturned: Failure.TOP_N,
    servers.FirstReturned: Failure.TOP_N,
    servers.RankAsIndex: Failure.INDICES,
    servers.FromOne: Failure.INDICES,
    servers.NoChinese: Failure.WEAK,
}


@pytest.mark.parametrize("faulty", FAULTS, ids=lambda faulty: faulty.__name__)
def test_a_fault_is_called_by_its_name_and_no_other(faulty):
    report = report_on(faulty())
    assert [diagnosis.failure for diagnosis in report.diagnoses] == [FAULTS[faulty]]
    assert report.diagnoses[0].meaning == CURES[FAULTS[faulty]].meaning


def test_every_known_failure_is_recognised_somewhere_and_explained():
    assert set(CURES) == set(Failure)
    assert set(Failure) - set(FAULTS.values()) == {Failure.SLOW, Failure.NO_ANSWER}  # in tests of their own, below


def test_a_server_that_fails_throughout_is_reached_and_found_out():
    report = report_on(servers.Broken(), dialect="jina")
    assert {diagnosis.failure for diagnosis in report.diagnoses} >= {Failure.NO_ANSWER}
    assert not any(finding.status == "passed" for finding in report.findings)


class Quadratic:
    """A good model in this process whose requests take time with the square of what is sent."""

    name, dialect, limit_tokens = "slow", "in process", 1000
    takes_instruction = takes_top_n = tells_spans = False

    def ask(self, query: str, documents: Sequence[str], **_: object) -> TargetReply:
        items = [Item(index, judge(query, document)) for index, document in enumerate(documents)]
        return TargetReply(items, seconds=float(len(documents) ** 2), tokens=None, warnings=("cut",))

    def prompt(self, query: str, document: str) -> str | None:
        return f"{query} {document}"

    def close(self) -> None: ...


def test_time_that_grows_with_the_square_of_the_documents():
    report = examine(Quadratic())
    assert [(d.failure, d.checks) for d in report.diagnoses] == [(Failure.SLOW, ("latency:documents",))]  # 400 > 3 * 20


@pytest.mark.parametrize(
    ("prompt", "failure"),
    [
        ("Is this an answer to the query? yes or no\n" * 2 + "{query} {document}", Failure.TEMPLATE_DOUBLED),
        ("{query} {document} {document}", Failure.TEMPLATE_DOUBLED),
        ("{document}", Failure.QUERY_DROPPED),
        ("{query}", Failure.DOCUMENT_DROPPED),
        ("{query} {document}", None),
    ],
)
def test_a_prompt_that_can_be_seen(prompt, failure):
    class Shown(Quadratic):
        def prompt(self, query: str, document: str) -> str | None:
            return prompt.format(query=query, document=document)

    assert examine(Shown(), chosen(["prompt"])).findings[0].failure == failure


# --- Prism itself ----------------------------------------------------------------------------------------------------


SHAPE = ["indices", "prompt", "twice", "alone", "order", "padding", "bad", "unicode", "top_n", "empty", "truncation"]
"""Checks that a random model passes too: they are about the server, not about what it learnt."""


@pytest.fixture
def tiny(tiny_checkpoint):
    with Reranker.load(
        str(tiny_checkpoint), template="prism", dtype="float32", device="cpu", self_test=False
    ) as reranker:
        yield reranker


def test_a_random_model_in_process(tiny):
    report = examine(LocalTarget(tiny), chosen([*SHAPE, "golden"]))
    assert {d.failure for d in report.diagnoses} <= {Failure.WEAK, Failure.INVERTED}  # it ranks at random
    assert all(f.status == "passed" for f in report.findings if not f.check.startswith("golden"))


@pytest.mark.parametrize("dialect", ["auto", "cohere", "jina", "voyage", "vllm", "tei"])
def test_our_own_server_in_every_dialect(tiny, dialect):
    server = Server(tiny)
    with server:
        target = open_server(server.url, dialect=dialect, timeout_s=60)
        report = examine(target, chosen([name for name in SHAPE if name != "prompt"]))
        target.close()
    assert report.dialect == ("prism" if dialect == "auto" else dialect)
    assert report.diagnoses == ()
    assert report.target == tiny.name


def test_an_engine_that_fails_is_a_finding(tiny_tokenizer):
    engine = FakeEngine(Template(PRISM, tiny_tokenizer))
    engine.fails = EngineError("the device is lost")
    report = examine(LocalTarget(Reranker(engine.template, engine, name="fake")), chosen(["scores"]))
    assert report.findings[0].failure is Failure.NO_ANSWER
    assert "the device is lost" in report.findings[0].got


# --- reaching it -----------------------------------------------------------------------------------------------------


def test_a_key_goes_where_it_was_meant_to_and_is_not_shown(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-7")
    server = RerankServer()
    with server:
        report_of = open_server(server.url, key_env="MY_KEY")
        report = examine(report_of, chosen(["scores"]))
        report_of.close()
    assert set(server.keys) == {"Bearer secret-7"}
    assert "secret-7" not in report.model_dump_json()
    server = RerankServer()
    with server:
        open_server(server.url).close()
    assert set(server.keys) == {None}


def test_a_refused_key_and_a_missing_one():
    class Locked(RerankServer):
        def refuses(self, query: str, documents: Sequence[str]) -> int | None:
            return 401

    server = Locked()
    with server, pytest.raises(KeyRefused, match="--api-key-env"):
        open_server(server.url)
    with pytest.raises(InputError, match="set NO_SUCH_KEY"):
        open_server("http://127.0.0.1:1", key_env="NO_SUCH_KEY")
    with pytest.raises(InputError, match="say which, --model"):
        open_server("https://api.jina.ai/v1")


def test_a_server_that_speaks_something_else():
    from http_server import HttpServer, Reply

    with HttpServer(lambda _: Reply({"hello": "world"})) as server, pytest.raises(EngineError, match="answers as none"):
        open_server(server.url, timeout_s=10)


def test_a_server_that_goes_away_is_not_asked_on_and_on():
    server = RerankServer()
    with server:
        target = open_server(server.url, timeout_s=5)
    report = examine(target)
    target.close()
    assert report.findings[0].failure is Failure.NO_ANSWER
    assert {finding.got for finding in report.findings[1:]} == {"the server is gone"}


# --- the command -----------------------------------------------------------------------------------------------------


def run(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["doctor", *words], env={"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"})
    return done.exit_code, done.stdout, done.stderr


def test_exit_codes_and_output(tmp_path):
    good, inverted = RerankServer(), servers.Inverted()
    with good, inverted:
        code, out, _ = run(good.url, "--only", "scores", "--only", "golden:en", "--json", str(tmp_path / "r.json"))
        assert code == 0
        assert "2 passed, 0 failed, 0 skipped" in out
        assert json.loads((tmp_path / "r.json").read_text())["diagnoses"] == []
        code, out, _ = run(inverted.url, "--only", "scores", "--only", "golden")
        assert code == 1
        assert "scores inverted (scores)" in out
        assert "what to do: the labels are swapped" in out
        assert "0 passed, 1 failed, 8 skipped" in out
        code, out, _ = run(inverted.url, "--only", "scores", "--json", "-")
        assert code == 1
        report = Examination.model_validate_json(out)
        assert [d.failure for d in report.diagnoses] == [Failure.INVERTED]
    with socket.socket() as taken:  # bound, never listening
        taken.bind(("127.0.0.1", 0))
        code, _, err = run(f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert code == 2
    assert err.startswith("error: cannot reach http://127.0.0.1:")


def test_what_the_command_refuses(tmp_path):
    assert run()[0] == 2
    assert "no check 'speed'" in run("mini", "--only", "speed")[2]
    assert "are for servers" in run("mini", "--dialect", "tei")[2]
    assert "--template is for checkpoints" in run("http://127.0.0.1:1", "--template", "prism")[2]
    assert "is a folder" in run("mini", "--json", str(tmp_path))[2]
    assert run(str(tmp_path))[0] == 2  # a folder without a checkpoint
    code, out, _ = run("--list")
    assert code == 0
    assert all(check.name in out for check in CHECKS)


# --- small parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "failure"),
    [
        ([[0.9, 0.1], [0.2, 0.8]], None),
        ([[4.0, -3.0], [-2.0, 5.0]], None),  # logits
        ([[0.5, 0.5], [0.5, 0.50001]], Failure.CONSTANT),
        ([[-7.0, -7.0], [-7.0, -7.0]], Failure.CONSTANT),
        ([[0.0, 0.0], [0.0, 0.0]], Failure.CONSTANT),
        ([[3e-20, 1e-20], [1e-20, 2e-20]], Failure.LABELS_LOST),
        ([[0.9, 0.1], [0.9, 0.1]], Failure.QUERY_DROPPED),
        ([[0.9, 0.9], [0.1, 0.1]], Failure.DOCUMENT_DROPPED),
        ([[0.1, 0.9], [0.8, 0.2]], Failure.INVERTED),
        ([[-4.0, 3.0], [2.0, -5.0]], Failure.INVERTED),
        ([[0.5, 0.55], [0.52, 0.5]], None),  # at random, without a sign
    ],
)
def test_what_a_matrix_gives_away(scores, failure):
    assert symptoms.of_matrix(scores) == failure


@given(st.text(min_size=1, max_size=60), st.data())
def test_offsets_in_other_units_come_back_as_code_points(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    encodable = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if len(encodable) != len(text):
        return
    for encoding, size in (("utf-8", 1), ("utf-16-le", 2)):
        units = [len(encodable[:place].encode(encoding)) // size for place in (start, end)]
        assert _in_units(encodable, [(units[0], units[1])], encoding, size) == [(start, end)]


def test_spans_that_fit():
    text = "The café 🎉 is open."
    assert _fit(text, [(0, 3), (4, 8), (11, 13)])
    assert not _fit(text, [(0, 2)])
    assert not _fit(text, [(4, 21)])
    assert not _fit(text, [(5, 5)])
    assert _in_units(text, [(4, 6)], "utf-8", 1) == [(4, 6)]
    assert _in_units(text, [(0, 8)], "utf-8", 1) is None  # é is bytes 7 and 8
    assert _in_units(text, [(0, 99)], "utf-8", 1) is None


@given(st.integers(1, 5000), st.integers(0, 400))
def test_filler_has_the_length_asked_for(characters, start):
    text = filler(characters, start)
    assert characters - 20 <= len(text) <= characters


def test_the_texts_are_what_they_are_said_to_be():
    assert len(set(hundred())) == 100
    assert set(DECOYS) == set(GOLDEN)
    for pairs in GOLDEN.values():
        assert len({pair.document for pair in pairs}) == len(pairs) >= 3
