"""Models of this machine: what a vote's identity holds, what is never charged, and servers that start late or die."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
import test_local_jury as jury
import yaml
from llama_server import USAGE
from typer.testing import CliRunner

from prism.catalogue import CATALOGUE
from prism.cli import app
from prism.errors import EngineError, PanelError
from prism.labeling.local import served_clients
from prism.labeling.panel import load_panel
from prism.labeling.rubrics import RUBRICS
from prism.labeling.run import label
from prism.labeling.store import read_votes
from prism.llm.allowance import Provider
from prism.llm.classify import Caller
from prism.llm.failures import Broken
from prism.llm.local_server import LocalServer, Program
from prism.llm.replies import read_reply
from prism.llm.served import ServedClient

environment = jury.environment
NO_PROGRAM = {"PATH": "/usr/bin:/bin"}


def panel_of(path: Path, local: dict[str, Any], juror: dict[str, Any] | None = None, **provider: Any) -> Path:
    """A panel of one juror, whose provider has a model of this machine."""
    here = {"base_url": "http://127.0.0.1:9/v1", "local": local, "backoff_s": 0.01, "max_attempts": 2, **provider}
    asked = {"name": "a", "kind": "api", "provider": "here", "model": "a", **(juror or {})}
    content = {"name": "p", "rubric": "binary", "providers": {"here": here}, "jurors": [asked]}
    if asked.get("observer"):
        content["jurors"].append({"name": "b", "kind": "api", "provider": "here", "model": "b"})
    path.mkdir(exist_ok=True)
    (path / "panel.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return path / "panel.yaml"


@pytest.fixture
def studied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the list that is for studies only, under a name of its own."""
    file = tmp_path / "renamed.gguf"
    file.write_bytes(b"weights under terms")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    base = CATALOGUE["gemma3-270m"].model_copy(update={"sha256": digest, "size_bytes": file.stat().st_size})
    monkeypatch.setitem(CATALOGUE, "gemma3-270m", base)
    return file


# --- what a juror is -------------------------------------------------------------------------------------------------


def test_what_is_served_is_part_of_what_a_juror_is(tmp_path: Path) -> None:
    remote = '["api", "a", {"temperature": 0}, null]'
    (tmp_path / "one.gguf").write_bytes(b"12345")
    (tmp_path / "other.gguf").write_bytes(b"12345")
    found = {}
    for name, local in {
        "one": {"model": "one.gguf"},
        "template": {"model": "one.gguf", "chat_format": "chatml"},
        "other": {"model": "other.gguf"},
        "list": {"model": "qwen2.5-coder-1.5b-instruct"},
    }.items():
        panel = load_panel(panel_of(tmp_path, local))
        assert panel.identities() == {"a": remote}  # whoever answers at the address: as before
        found[name] = panel.identities(served=True)["a"]
    assert len({*found.values(), remote}) == 5
    assert json.loads(found["one"])[-1] == {"served": "one.gguf, 5 bytes", "chat_format": None}
    assert CATALOGUE["qwen2.5-coder-1.5b-instruct"].sha256 in found["list"]
    roomier = load_panel(panel_of(tmp_path, {"model": "one.gguf", "context_tokens": 8192, "threads": 1}))
    assert roomier.identities(served=True)["a"] == found["one"]


def test_votes_of_two_models_do_not_mix_under_one_name(tmp_path: Path, environment: dict[str, str]) -> None:
    file, out = jury.pairs(tmp_path, 2), tmp_path / "out"
    for name in ("first", "second"):
        jury.model(tmp_path, name, log=str(tmp_path / f"{name}.jsonl"))
    done = jury.run(environment, panel_of(tmp_path, {"model": "first.gguf"}), file, out)
    assert done.returncode == 0, done.stderr
    other = jury.run(environment, panel_of(tmp_path, {"model": "second.gguf"}), file, out)
    remote = subprocess.run(
        jury.command(tmp_path / "panel.yaml", file, out)[:-1],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    for refused in (other, remote):
        assert refused.returncode != 0
        assert "give it another name, or choose another OUT" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert jury.requests(tmp_path, "second") == []
    assert len(list(read_votes(out))) == 2


@pytest.mark.parametrize("observer", [False, True])
def test_a_studies_only_model_may_not_decide_by_its_path_either(studied: Path, observer: bool) -> None:
    file = panel_of(studied.parent, {"model": studied.name}, {"observer": observer})
    if not observer:
        with pytest.raises(PanelError, match=r"juror 'a': gemma3-270m is under Gemma terms.*observer: true"):
            load_panel(file)
        return
    with pytest.raises(PanelError, match="juror 'b'"):  # of the two on this model
        load_panel(file)


def test_a_studies_only_model_may_not_write_by_its_path_either(studied: Path, tmp_path: Path) -> None:
    rows = labelled(tmp_path, 1)
    result = CliRunner().invoke(
        app, ["write-targets", str(rows), str(tmp_path / "t.jsonl"), "--model", str(studied), "--start-local"]
    )
    assert result.exit_code == 2
    assert "gemma3-270m is under Gemma terms" in result.output


@pytest.mark.parametrize(
    ("juror", "provider", "words"),
    [
        ({}, {"key_env": "SOME_KEY"}, "key_env: not beside `local`"),
        ({}, {"budget_usd": 1, "requests_per_minute": 5}, "budget_usd, requests_per_minute: not beside `local`"),
        ({"price": {"input": 1, "output": 1}}, {}, "juror 'a': a provider with `local` costs nothing: leave out price"),
    ],
)
def test_what_is_served_here_has_no_account(
    tmp_path: Path, juror: dict[str, Any], provider: dict[str, Any], words: str
) -> None:
    with pytest.raises(PanelError, match=words) as caught:
        load_panel(panel_of(tmp_path, {"model": "a.gguf"}, juror, **provider))
    assert "\n" not in str(caught.value)


# --- a server that starts late, or dies ------------------------------------------------------------------------------


def test_nothing_is_looked_for_before_the_first_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "cache"))
    panel = load_panel(panel_of(tmp_path, {"model": "qwen2.5-coder-1.5b-instruct"}))
    client = served_clients(panel, tmp_path / "logs")["a"]

    async def ask() -> list[str]:
        said = []
        for _ in range(2):
            with pytest.raises(Broken) as caught:
                await client.complete([{"role": "user", "content": "?"}], model="a", max_tokens=1)
            said.append(str(caught.value))
        await client.aclose()
        return said

    first, second = anyio.run(ask)
    assert "run `prism pull qwen2.5-coder-1.5b-instruct`" in first == second
    assert not (tmp_path / "logs").exists()


def test_a_finished_run_needs_no_program_to_be_run_again(tmp_path: Path, environment: dict[str, str]) -> None:
    jury.model(tmp_path, "a")
    panel, file, out = panel_of(tmp_path, {"model": "a.gguf"}), jury.pairs(tmp_path, 2), tmp_path / "out"
    assert jury.run(environment, panel, file, out).returncode == 0
    again = jury.run(environment | NO_PROGRAM, panel, file, out)
    assert again.returncode == 0, again.stderr
    assert "nothing was left to ask" in again.stdout
    more = jury.run(environment | NO_PROGRAM, panel, jury.pairs(tmp_path, 3), out)
    assert more.returncode == 1
    assert "a stopped: no llama.cpp server on this machine" in more.stderr


FACT = "The harbour at Lindau froze in 1963."
ANSWER = f"<contribution>It dates the freeze.</contribution><evidence>{FACT}</evidence>"


def labelled(path: Path, count: int) -> Path:
    file = path / "labels.jsonl"
    rows = [
        {"query": f"When did the harbour freeze, {n}?", "document": f"{FACT} Copper conducts.", "verdict": "yes"}
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write(environment: dict[str, str], *words: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prism.cli", "write-targets", *map(str, words), "--start-local"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_a_writer_whose_server_dies_ends_the_run_and_the_next_one_goes_on(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    asked = {"answer": ANSWER, "log": str(tmp_path / "small.jsonl")}
    file, rows, out = jury.model(tmp_path, **asked, die_after=2), labelled(tmp_path, 6), tmp_path / "targets.jsonl"
    words = [rows, out, "--model", file, "--context-tokens", 1024]
    dead = write(environment, *words)
    assert dead.returncode == 1
    told = [line for line in dead.stderr.splitlines() if "the server was ended by SIGKILL" in line]
    assert len(told) == 1
    assert told[0].startswith("4 pairs have no usable answer yet: ")
    assert "Traceback" not in dead.stderr
    assert len(out.read_text().splitlines()) == 2
    jury.model(tmp_path, **asked)
    done = write(environment, *words)
    assert done.returncode == 0, done.stderr
    assert len(out.read_text().splitlines()) == 6
    assert [one["context"] for one in jury.requests(tmp_path, "small")] == [1024] * 6
    written = out.read_bytes()
    again = write(environment | NO_PROGRAM, *words)  # nothing to ask: nothing to start
    assert again.returncode == 0, again.stderr
    assert out.read_bytes() == written


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--judge", "large"], "say --judge-url of the judge's API"),
        (["--key-env", "SOME_KEY"], "leave out --key-env, --budget-usd and --price"),
        (["--price", "1:2"], "leave out --key-env, --budget-usd and --price"),
    ],
)
def test_a_writer_here_neither_grades_itself_nor_has_an_account(tmp_path: Path, more: list[str], words: str) -> None:
    file, rows, out = jury.model(tmp_path), labelled(tmp_path, 1), tmp_path / "targets.jsonl"
    result = CliRunner().invoke(
        app, ["write-targets", str(rows), str(out), "--model", str(file), "--start-local", *more]
    )
    assert result.exit_code == 2
    assert words in result.output
    assert not out.exists()


def make_queries(environment: dict[str, str], *words: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prism.cli", "data", *map(str, words), "--by", "llm", "--start-local"]
    return subprocess.run(
        command, env=environment, cwd=words[1].parent, capture_output=True, text=True, check=False, timeout=120
    )


def test_queries_and_keywords_are_written_here_and_never_twice(tmp_path: Path, environment: dict[str, str]) -> None:
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "queries.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(n), "text": f"{FACT} Ice {n}."}) + "\n" for n in range(3)))
    file = jury.model(tmp_path, answer="Lindau harbour 1963", log=str(tmp_path / "small.jsonl"))
    words = ["queries", corpus, out, "--count", 1, "--model", file]
    made = make_queries(environment, *words)
    assert made.returncode == 0, made.stderr
    assert [json.loads(line)["query"] for line in out.read_text().splitlines()] == ["Lindau harbour 1963"] * 3
    assert len(jury.requests(tmp_path, "small")) == 3
    assert (tmp_path / "queries.jsonl.server.log").exists()
    assert make_queries(environment | NO_PROGRAM, *words).returncode == 0  # nothing to ask: nothing to start
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"query": "When did the harbour of Lindau freeze, in 1963?"}\n')
    keywords = make_queries(environment, "keywords", asked, tmp_path / "keywords.jsonl", "--model", file)
    assert keywords.returncode == 0, keywords.stderr
    assert json.loads((tmp_path / "keywords.jsonl").read_text())["query"] == "Lindau harbour 1963"
    jury.model(tmp_path, "other", answer="x").replace(file)
    file.write_text(file.read_text() + " ")  # another model at the same place is asked anew
    assert make_queries(environment | NO_PROGRAM, *words).returncode != 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--key-env", "SOME_KEY"], "leave out keys, prices, budgets and rates"),
        (["--price-input", "1"], "leave out keys, prices, budgets and rates"),
        (["--budget-usd", "1"], "leave out keys, prices, budgets and rates"),
        (["--requests-per-minute", "5"], "leave out keys, prices, budgets and rates"),
        (["--by", "rule"], "--start-local serves a model: say --by llm"),
        (["--base-url", "http://127.0.0.1:9/v1"], "either --base-url, such as"),
    ],
)
def test_a_model_here_that_writes_queries_has_no_account(tmp_path: Path, more: list[str], words: str) -> None:
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "queries.jsonl"
    corpus.write_text(json.dumps({"text": FACT}) + "\n")
    given = [str(corpus), str(out), "--by", "llm", "--model", str(jury.model(tmp_path)), "--start-local"]
    result = CliRunner().invoke(app, ["data", "queries", *given, *more])
    assert result.exit_code == 2
    assert words in result.output
    assert not out.exists()


def test_a_proxy_is_not_asked_about_this_machine(tmp_path: Path, environment: dict[str, str]) -> None:
    jury.model(tmp_path, "a")
    panel, file, out = panel_of(tmp_path, {"model": "a.gguf"}), jury.pairs(tmp_path, 2), tmp_path / "out"
    kept = {name: value for name, value in environment.items() if name.lower() != "no_proxy"}
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:9")
    done = jury.run(kept | proxies, panel, file, out)
    assert done.returncode == 0, done.stderr
    assert len(list(read_votes(out))) == 2


def test_only_what_a_server_needs_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other variable may be one of its settings."""
    settings = ("API_KEY", "SSL_KEYFILE", "ROOT_PATH", "CHAT_FORMAT", "CACHE", "LORA_PATH", "SEED", "MODEL", "cache")
    for name in (*settings, "LLAMA_ARG_HOST", "LLAMA_API_KEY", "HTTP_PROXY", "PATHS", "MY_HOME"):
        monkeypatch.setenv(name, "1")
    passed = {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "", "LC_ALL": "C", "PYTHONPATH": "/here"}
    for name, value in passed.items():
        monkeypatch.setenv(name, value)
    seen = tmp_path / "environment.json"
    code = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    program = Program("/health", lambda launch: [sys.executable, "-c", code, str(seen)])
    with pytest.raises(EngineError, match="exit code 0"):
        LocalServer(jury.model(tmp_path), "small", log=tmp_path / "log", program=program).start()
    found = json.loads(seen.read_text())
    assert found.items() >= {**passed, "PATH": os.environ["PATH"], "HOST": "127.0.0.1"}.items()
    needed = {"PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "HOST", "PORT"}
    families = ("LC_", "PYTHON", "OMP_", "CUDA_")
    assert not [name for name in found if name not in needed and not name.startswith(families)]


# --- first tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("-0.5", -0.5), ("0", 0.0), ("1e-7", 0.0), ("-9999", -9999.0), ("1000.0", None), ("NaN", None),
        ("Infinity", None), ("-Infinity", None), ("1" + "0" * 400, None), ("-1" + "0" * 400, None), ("false", None),
    ],
)  # fmt: skip
def test_a_log_probability_is_finite_and_not_above_zero(value: str, read: float | None) -> None:
    top = f'[{{"token": "1", "logprob": {value}}}]'
    body = (
        '{"choices": [{"message": {"content": "1"}, "logprobs": {"content": [{"top_logprobs": ' + top + "}]}}],"
        f' "usage": {json.dumps(USAGE)}}}'
    )
    found = read_reply(Caller("a", "", "none", 1.0), body.encode()).first
    assert found == (None if read is None else {"1": read})
    if found:
        RUBRICS["binary"].read_tokens(found)


def test_a_count_that_no_database_holds_is_none() -> None:
    body = json.dumps({"choices": [{"message": {"content": "1"}}], "usage": USAGE | {"prompt_tokens": 10**30}})
    assert read_reply(Caller("a", "", "none", 1.0), body.encode()).usage is None


# --- observers -------------------------------------------------------------------------------------------------------


def recorded(path: Path, votes: dict[str, list[int]], observers: str, **sequential: Any) -> Path:
    """A panel of votes that are known, one file each, in the order of asking."""
    path.mkdir(exist_ok=True)
    for name, labels in votes.items():
        (path / f"{name}.qrels").write_text("".join(f"q{n} 0 d{n} {value}\n" for n, value in enumerate(labels)))
    rates = {"sensitivity": 0.9, "specificity": 0.9}
    jurors = [
        {"name": name, "kind": "recorded", "path": f"{name}.qrels"}
        | ({"observer": True} if name in observers else rates)
        for name in votes
    ]
    content = {"name": "p", "rubric": "binary", "jurors": jurors, "sequential": sequential}
    (path / "panel.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return path / "panel.yaml"


@pytest.mark.parametrize("place", ["abcx", "axbc", "xabc"])
@pytest.mark.parametrize("rule", [{"stop": "majority"}, {"stop": "posterior", "bound": 0.95}])
def test_observers_are_asked_about_every_pair(tmp_path: Path, place: str, rule: dict[str, Any]) -> None:
    """By hand, of pairs 0 and 1: a and b agree, and c is saved (two of 0.9 make 81 to 1); of pair 2 c decides."""
    votes = {"a": [1, 0, 1], "b": [1, 0, 0], "c": [1, 0, 0], "x": [0, 1, 1]}
    file = recorded(tmp_path / "p", {name: votes[name] for name in place}, "x", **rule)
    pairs = tmp_path / "pairs.qrels"
    pairs.write_text("".join(f"q{n} 0 d{n} 0\n" for n in range(3)))
    report = anyio.run(label, load_panel(file), pairs, tmp_path / "out")
    assert {juror.name: juror.votes for juror in report.jurors} == {"a": 3, "b": 3, "c": 1, "x": 3}
    assert report.not_asked == 2
    assert (report.verdicts["yes"], report.verdicts["no"]) == (1, 2)


def test_a_server_that_cannot_be_started_is_broken_and_nobody_else_is_asked() -> None:
    """A log that cannot be written, a disk that is full: one line, not a traceback, and not the panel's own address."""

    class Unstartable(LocalServer):
        def __init__(self) -> None:
            """Looks for nothing."""

        def start(self) -> None:
            raise PermissionError(13, "Permission denied", "labels/servers/a.log")

        def end(self) -> None:
            """Nothing was started."""

    client = ServedClient(Provider(base_url="http://127.0.0.1:9/v1"), Unstartable, name="a")

    async def ask() -> list[str]:
        said = []
        for _ in range(2):
            with pytest.raises(Broken) as refused:
                await client.complete([{"role": "user", "content": "hello"}], model="a", max_tokens=1)
            said.append(str(refused.value))
        await client.aclose()
        return said

    first, second = anyio.run(ask)
    assert "Permission denied" in first == second
