from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from prism import cli
from prism.cli.rerank import _shown
from prism.context import why_empty
from prism.demo import DOCUMENTS, QUERIES
from prism.errors import RecipeError
from prism.llm.allowance import is_loopback
from prism.types import EvidenceCheck, Fidelity, Judgment, Outcome, Span
from prism.version import __version__

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture
def tiny(tiny_checkpoint: Path) -> list[str]:
    """Options that load the tiny random checkpoint."""
    return ["--model", str(tiny_checkpoint), "--template", "prism", "--dtype", "float32", "--no-self-test"]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    jsonl = tmp_path / "documents.jsonl"
    records = [
        {"id": "lindau", "title": "Lindau", "text": "The harbour at Lindau froze in 1963."},
        {"document": "Copper conducts electricity.", "url": "u"},
        {"_id": 7, "contents": "Silver too.\u2028Yes."},
    ]
    jsonl.write_text("\n\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    text = tmp_path / "note.txt"
    text.write_bytes("\ufeffOne document,\r\nseveral lines.".encode())
    return [str(jsonl), str(text)]


def run(*arguments: str, stdin: str | bytes | None = None) -> Any:
    return runner.invoke(cli.app, list(arguments), input=stdin)


def fails(words: str, *arguments: str, stdin: str | bytes | None = None) -> None:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


# --- rerank ----------------------------------------------------------------------------------------------------------


def test_rerank_files_as_json(tiny: list[str], files: list[str]) -> None:
    result = run("rerank", "when?", *files, "--json", "--no-evidence", *tiny)
    assert result.exit_code == 0, result.output
    judgments = json.loads(result.stdout)["judgments"]
    assert sorted((j["index"], j["id"], j["title"]) for j in judgments) == [
        (0, "lindau", "Lindau"),
        (1, f"{files[0]}:3", None),
        (2, "7", None),
        (3, files[1], None),
    ]
    assert {j["outcome"] for j in judgments} == {"not_written"}
    scores = [j["score"] for j in judgments]
    assert scores == sorted(scores, reverse=True)


def test_rerank_against_what_is_held(tiny: list[str], files: list[str], tmp_path: Path) -> None:
    held = tmp_path / "held.txt"
    held.write_text("copper conducts electricity", encoding="utf-8")
    options = ["--threshold", "0", "--no-evidence", "--json", "--against", str(held)]
    result = json.loads(run("rerank", "why?", *files, *tiny, *options).stdout)
    assert [(judgment["held"], judgment["verdict"]) for judgment in result["judgments"]][-1] == (0, "yes")
    assert [judgment["held"] for judgment in result["judgments"]] == [None, None, None, 0]
    assert result["judgments"][-1]["index"] == 1


def test_rerank_says_whether_it_is_answered(tiny: list[str], files: list[str]) -> None:
    options = ["--no-evidence", "--threshold", "1", "--score-version", "another"]
    result = run("rerank", "when?", *files, *options, "--json", *tiny)
    said = json.loads(result.stdout)
    assert (said["answerable"], said["reason"], said["sufficient"]) == (None, "none_relevant", None)
    assert re.fullmatch(r"[0-9a-f]{12}", said["score_version"])
    assert f"chosen for scores of version another, and these are {said['score_version']}" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "none_relevant (no document is relevant)" in run("rerank", "when?", *files, *options, *tiny).stdout
    fails(
        "cannot promise an answer_risk of 0.1: it promises none", "rerank", "x", *files, "--answer-risk", "0.1", *tiny
    )


def test_a_dry_run_says_what_the_same_command_takes(tiny: list[str], files: list[str], tmp_path: Path) -> None:
    talk = tmp_path / "talk.json"
    talk.write_text(json.dumps([{"role": "user", "content": "hi"}]), encoding="utf-8")
    asked = ["rerank", "when?", *files, "--no-evidence", "--reason", "to know", "--conversation", str(talk), *tiny]
    asked += ["--max-document-tokens", "8", "--truncation-side", "left"]
    said = json.loads(run(*asked, "--dry-run", "--json").stdout)
    real = json.loads(run(*asked, "--json").stdout)
    assert said["prompt_tokens"] == real["usage"]["prompt_tokens"] > 0
    assert said["query"] == real["query"] == 'when?\nReason: to know\nConversation: user: "hi"'
    first = next(judgment for judgment in real["judgments"] if judgment["index"] == 0)
    assert {"index": 0, "id": "lindau", "truncation": first["truncation"]} in said["cut"]
    lines = run(*asked, "--dry-run").stdout.splitlines()
    assert lines[0].startswith(f"judging 4 documents: {said['prompt_tokens']:,} prompt tokens")
    assert lines[1] == "evidence: none"
    total = len("The harbour at Lindau froze in 1963.")
    start = first["truncation"]["start"]
    assert f"cut: lindau: characters {start} to {total} of {total} are read" in lines


def test_a_conversation_that_is_no_json(tiny: list[str], files: list[str], tmp_path: Path) -> None:
    talk = tmp_path / "talk.json"
    talk.write_text("hi", encoding="utf-8")
    fails("is no JSON, expected an array of {role, content}", "rerank", "q", *files, "--conversation", str(talk), *tiny)


def test_rerank_prints_a_table(tiny: list[str], files: list[str]) -> None:
    result = run("rerank", "when?", *files, "--top-n", "2", "--threshold", "0", "--evidence-tokens", "40", *tiny)
    assert result.exit_code == 0, result.output
    assert "verdict" in result.stdout
    assert result.stdout.count("yes") >= 2


@pytest.mark.parametrize(
    ("asked", "sources"),
    [
        ([], {"quoted"}),  # this checkpoint carries no prism.json: nobody taught it to write
        (["--evidence", "auto"], {"quoted"}),
        (["--evidence", "quoted"], {"quoted"}),
        (["--evidence", "written", "--evidence-tokens", "40"], {"written", None}),
        (["--evidence", "none"], {None}),
        (["--no-evidence"], {None}),
        (["--evidence", "quoted", "--no-evidence"], {None}),
    ],
)
def test_where_evidence_comes_from(tiny: list[str], files: list[str], asked: list[str], sources: set[str]) -> None:
    result = run("rerank", "when?", *files, "--json", "--threshold", "0", *asked, *tiny)
    assert result.exit_code == 0, result.output
    judgments = json.loads(result.stdout)["judgments"]
    assert {judgment["evidence_source"] for judgment in judgments} == sources
    if sources == {"quoted"}:
        texts = ["The harbour at Lindau froze in 1963.", "Copper conducts electricity."]
        assert set(texts) <= {judgment["evidence"] for judgment in judgments}


def test_no_other_source(tiny: list[str], files: list[str]) -> None:
    for command in (["rerank", "when?", *files], ["demo"], ["serve"]):
        result = run(*command, "--evidence", "sung", *tiny)
        assert result.exit_code == 2
        assert "'sung' is not one of 'written', 'quoted', 'auto', 'none'" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("one\n\n  \ntwo\n", ["line 1", "line 4"]),
        ('{"text": "a"}\n{"text": "b", "id": "x"}\n', ["standard input:1", "x"]),
        ("{braces} but no JSON\nsecond\n", ["line 1", "line 2"]),
    ],
)
def test_rerank_standard_input(tiny: list[str], text: str, ids: list[str]) -> None:
    for sources in ([], ["-"]):
        result = run("rerank", "when?", *sources, "--json", "--no-evidence", *tiny, stdin=text)
        assert result.exit_code == 0, result.output
        judgments = sorted(json.loads(result.stdout)["judgments"], key=lambda judgment: judgment["index"])
        assert [judgment["id"] for judgment in judgments] == ids


def test_rerank_prints_context(tiny: list[str], files: list[str]) -> None:
    fails("--no-evidence leaves nothing for a context", "rerank", "q", *files, "--no-evidence", "--context", "9", *tiny)
    result = run("rerank", "when?", *files, "--evidence-tokens", "1", "--context", "100", *tiny)
    assert (result.exit_code, result.stdout) == (0, "")  # nothing written, nothing invented
    assert "no evidence to print: no evidence was made for the " in result.stderr
    result = run("rerank", "when?", *files, "--threshold", "1", "--context", "100", *tiny)
    assert (result.exit_code, result.stdout) == (0, "")
    assert re.fullmatch(
        r"no evidence to print: none of \d documents got a yes \(the best score is 0\.\d{3}\): see --threshold\n",
        result.stderr,
    )


def test_rerank_prints_context_in_every_form(tiny: list[str], files: list[str], tiny_checkpoint: Path) -> None:
    asked = ["rerank", "when?", *files, "--threshold", "0", "--evidence", "quoted", *tiny]
    text = run(*asked, "--context", "500")
    assert text.exit_code == 0, text.output
    assert text.stdout.startswith("[1] id=")
    assert run(*asked, "--context-format", "text").stdout == text.stdout
    sources = json.loads(run(*asked, "--context-format", "json").stdout)
    blocks = json.loads(run(*asked, "--context-format", "anthropic").stdout)
    assert [block["source"] for block in blocks] == [source["id"] for source in sources]
    both = run(*asked, "--json", "--context", "500", "--context-format", "xml")
    made = json.loads(both.stdout)
    assert made["context"]["content"] == run(*asked, "--context-format", "xml").stdout
    assert made["context"]["documents"] == [source["document"] for source in sources]
    assert len(made["judgments"]) == 4
    named = run(*asked, "--json", "--context", "500", "--context-tokenizer", str(tiny_checkpoint))
    assert json.loads(named.stdout)["context"]["tokens"] > 0


def test_rerank_says_which_budget_would_do(tiny: list[str], files: list[str]) -> None:
    asked = ["rerank", "when?", *files, "--threshold", "0", "--evidence", "quoted", "--context", "1", *tiny]
    fails("raise --context", *asked)
    told = run(*asked, "--json")  # the ranking is printed all the same
    assert told.exit_code == 2
    assert "raise --context" in told.stderr
    found = json.loads(told.stdout)["context"]
    least = re.search(r"takes (\d+)", found["problem"])
    assert least
    assert found["content"] == ""
    asked[asked.index("--context") + 1] = least[1]
    assert run(*asked).exit_code == 0
    fails("--context-tokenizer counts", "rerank", "when?", *files, "--context-tokenizer", "x", *tiny)
    fails("no tokenizer", "rerank", "when?", *files, "--context", "9", "--context-tokenizer", "/none/", *tiny)
    fails("--context must be at least 1", "rerank", "when?", *files, "--context", "0", *tiny)


def document(score: float | None, evidence: str | None = None) -> Judgment:
    verdict = None if score is None else "yes" if score >= 0.5 else "no"
    return Judgment(index=0, score=score, verdict=verdict, evidence=evidence, error=None if verdict else "empty")


@pytest.mark.parametrize(
    ("judgments", "why"),
    [
        (
            [document(0.9), document(0.1)],
            "no evidence was made for the 1 of 2 documents with a yes",
        ),
        ([document(0.4)], "none of 1 documents got a yes (the best score is 0.400)"),
        ([document(None)], "none of 1 documents got a yes (none could be scored)"),
    ],
)
def test_why_a_context_is_empty(judgments: list[Judgment], why: str) -> None:
    assert why_empty(judgments) == why


def test_json_files_are_read_in_every_form(tiny: list[str], tmp_path: Path) -> None:
    rows = [{"id": 0, "text": "a"}, {"id": "b c", "title": "T", "text": "b"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    forms = {
        "a.ndjson": lines.encode(),
        "a.JSONL": ("\ufeff" + lines.replace("\n", "\r\n")).encode(),
        "a.jsonl.gz": gzip.compress(lines.encode()),
        "a.json": json.dumps(rows, indent=1).encode(),
    }
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
    arguments = [str(tmp_path / name) for name in forms]
    result = run("rerank", "when?", *arguments, "--no-evidence", "--json", *tiny)
    assert result.exit_code == 0, result.output
    judgments = sorted(json.loads(result.stdout)["judgments"], key=lambda judgment: judgment["index"])
    assert [judgment["id"] for judgment in judgments] == ["0", "b c"] * len(forms)
    for name in ("a.jsonl.gz", "a.json", "a.JSONL"):
        piped = run("rerank", "when?", "--no-evidence", "--json", *tiny, stdin=forms[name])
        assert {judgment["id"] for judgment in json.loads(piped.stdout)["judgments"]} == {"0", "b c"}


def test_nothing_in_a_document_steers_the_terminal(tiny: list[str], tmp_path: Path) -> None:
    nasty = "\x1b[2J [bold red]x[/] \x9b31m \u202e :smile:"
    path = tmp_path / "nasty.jsonl"
    path.write_text(json.dumps({"text": nasty, "title": nasty, "id": nasty, nasty: 1}), encoding="utf-8")
    for form in ([], ["--json"], ["--context", "500"]):
        result = run("rerank", nasty, str(path), "--threshold", "0", *form, *tiny)
        assert result.exit_code == 0, result.output
        assert not set(result.output) & set("\x1b\x9b\u202e")
        if form == []:
            assert "[bold red]" in result.stdout
            assert ":smile:" in result.stdout
        elif form == ["--json"]:
            assert json.loads(result.stdout)["judgments"][0]["title"] == nasty


def test_rerank_input_errors(tiny: list[str], files: list[str], tmp_path: Path) -> None:
    def file(content: bytes, name: str = "bad.jsonl") -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    fails("bad.jsonl:2: not JSON", "rerank", "q", file(b'{"text": "a"}\n{"text":\n'), *tiny)
    fails("bad.jsonl:1: expected an object", "rerank", "q", file(b"[1]"), *tiny)
    fails("bad.jsonl:1: expected text, document or contents, got body", "rerank", "q", file(b'{"body": "a"}'), *tiny)
    fails("bad.jsonl:1: expected a string in text, got 3", "rerank", "q", file(b'{"text": 3}'), *tiny)
    fails("bad.jsonl:2: not UTF-8", "rerank", "q", file(b'{"text": "a"}\n\xff'), *tiny)
    fails("bad.jsonl:1: not JSON", "rerank", "q", file(b"[" * 100_000), *tiny)
    fails("standard input:2: not JSON", "rerank", "q", *tiny, stdin='{"text": "a"}\nplain\n')
    fails("no file", "rerank", "q", str(tmp_path / "absent.txt"), *tiny)
    fails("cannot read", "rerank", "q", str(tmp_path), *tiny)
    fails("no documents", "rerank", "q", file(b""), *tiny)
    fails("no documents", "rerank", "q", *tiny, stdin="\n")
    fails("query is blank", "rerank", " ", *files, *tiny)
    fails("top_n must be at least 1", "rerank", "q", *files, "--top-n", "0", *tiny)


def test_loading_errors(files: list[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = str(tiny_checkpoint)
    fails("absent", "rerank", "q", *files, "--model", str(tmp_path / "absent"))
    fails("--template", "rerank", "q", *files, "--model", checkpoint)
    fails("qwen3-reranker", "rerank", "q", *files, "--model", checkpoint, "--template", "wrong")


def test_a_blank_document_is_its_own_error(tiny: list[str], tmp_path: Path) -> None:
    path = tmp_path / "blank.txt"
    path.write_text(" \n")
    result = run("rerank", "q", str(path), *tiny)
    assert result.exit_code == 0
    assert "blank" in result.stdout


# --- demo ------------------------------------------------------------------------------------------------------------


def test_demo(tiny: list[str]) -> None:
    result = run("demo", "--query", "how do I mount a disk?", *tiny)
    assert result.exit_code == 0, result.output
    assert "how do I mount a disk?" in result.stdout
    assert all(document.title in result.stdout for document in DOCUMENTS if document.title)


def test_the_sample_is_well_formed() -> None:
    assert len({document.id for document in DOCUMENTS}) == len(DOCUMENTS)
    assert all(document.title and "  " not in document.text for document in DOCUMENTS)
    assert len(QUERIES) >= 2


def test_what_backs_the_evidence_is_highlighted() -> None:
    [document] = [document for document in DOCUMENTS if document.id == "wsl-mount"]
    quote = "attach it with `wsl --mount`"
    start = document.text.index(quote)
    span = Span(start=start, end=start + len(quote), support=1.0)
    check = EvidenceCheck(
        sentences=(), spans=(span,), support=1.0, fidelity=Fidelity(checked=0, unsupported=()), compression=0.1
    )
    judgment = Judgment(
        index=0,
        score=0.9,
        verdict="yes",
        outcome=Outcome.COMPLETE,
        contribution="Says how.",
        evidence=quote,
        check=check,
    )
    shown = _shown(judgment, document)
    marked = [shown.plain[s.start : s.end] for s in shown.spans if "reverse" in str(s.style)]
    assert marked == [quote]
    assert document.text in shown.plain
    assert "contribution: Says how." in shown.plain


# --- train, serve, version -------------------------------------------------------------------------------------------


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A trainer that notes how it was called."""
    calls: list[Any] = []

    def train(recipe: Path, *, overrides: list[str], resume: bool, output: Path | None, build: object) -> Path:
        assert callable(build)
        if recipe.name == "absent.yaml":
            raise RecipeError(f"no recipe {recipe}:\nlook in recipes/")
        calls.append((recipe, overrides, resume, output))
        return Path("runs/one")

    module = ModuleType("prism.training.trainer")
    module.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "prism.training.trainer", module)
    return calls


def test_train(trainer: list[Any]) -> None:
    result = run("train", "r.yaml")
    assert (result.exit_code, result.stdout) == (0, "runs/one\n")
    run("train", "r.yaml", "--set", "data.seed=1", "--set", "lr=2e-4", "--output", "out", "--fresh")
    assert trainer == [
        (Path("r.yaml"), [], True, None),
        (Path("r.yaml"), ["data.seed=1", "lr=2e-4"], False, Path("out")),
    ]
    fails("no recipe absent.yaml: look in recipes/", "train", "absent.yaml")


def test_prism_train_is_prism_train(
    trainer: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prism-train", "r.yaml", "--fresh"])
    with pytest.raises(SystemExit) as ended:
        cli.main_train()
    assert ended.value.code == 0
    assert trainer == [(Path("r.yaml"), [], False, None)]
    assert capsys.readouterr().out == "runs/one\n"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "prism.serving.app", raising=False)
    fails('pip install "prism-reranker[serve]"', "serve")


def test_serve_warns_before_it_is_reachable(monkeypatch: pytest.MonkeyPatch, tiny: list[str]) -> None:
    served: list[Any] = []
    monkeypatch.setattr("prism.serving.serve.run", lambda app, **options: served.append(options))
    result = run("serve", "--host", "0.0.0.0", "--port", "1234", *tiny)
    assert "no API key" in result.stderr
    assert run("serve", *tiny).stderr == ""
    addresses = [(options["host"], options["port"]) for options in served]
    assert addresses == [("0.0.0.0", 1234), ("127.0.0.1", 8000)]
    assert [is_loopback(host) for host in ("localhost", "127.0.0.2", "::1", "10.0.0.1", "::")] == [True] * 3 + [
        False
    ] * 2


def test_version() -> None:
    assert run("version").stdout == run("--version").stdout == f"{__version__}\n"


def python(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


def test_python_m_prism_is_prism() -> None:
    assert python("-m", "prism", "--version") == f"{__version__}\n"
    assert "Usage: prism serve" in python("-m", "prism", "serve", "--help", TERM="dumb", NO_COLOR="1")


def test_shells_complete_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        place = str(len(words.split(" ")) - 1)
        return python("-m", "prism", _PRISM_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=place).split()

    assert completed("prism se") == ["serve"]
    assert completed("prism serve --op") == ["--open"]
    assert completed("prism nonsense --op") == []


def test_serve_opens_a_browser_once_it_listens(tmp_path: Path, tiny: list[str]) -> None:
    """The browser is a script that fetches the page at once."""
    script, fetched = tmp_path / "browser.py", tmp_path / "fetched"
    script.write_text(
        "import os, sys, urllib.request\n"
        "page = urllib.request.urlopen(sys.argv[1]).read()\n"
        f"open({str(tmp_path / 'part')!r}, 'wb').write(page)\n"
        f"os.replace({str(tmp_path / 'part')!r}, {str(fetched)!r})\n"
    )
    serving = subprocess.Popen(
        [sys.executable, "-m", "prism", "serve", "--port", "0", "--host", "0.0.0.0", "--open", *tiny],
        env={**os.environ, "BROWSER": f"{sys.executable} {script} %s"},
        stderr=subprocess.PIPE,
    )
    try:
        until = time.monotonic() + 120
        while not fetched.exists() and serving.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert b"<title>Prism" in fetched.read_bytes()
    finally:
        serving.terminate()
        serving.communicate(timeout=60)


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("127.0.0.1", 8000, "http://127.0.0.1:8000/"),
        ("0.0.0.0", 80, "http://127.0.0.1:80/"),
        ("::", 1, "http://[::1]:1/"),
        ("fe80::1", 8000, "http://[fe80::1]:8000/"),
    ],
)
def test_where_a_browser_goes(host: str, port: int, url: str) -> None:
    from prism.serving.serve import address

    assert address(host, port) == url


def prism(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "prism.cli", *arguments],
        capture_output=True, text=True, check=False, timeout=120, **options,
    )  # fmt: skip


def test_as_a_process(tmp_path: Path) -> None:
    shown = prism("--help")
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in ("rerank", "demo", "serve", "train", "version"))
    failed = prism("rerank", "q", str(tmp_path / "absent.txt"))
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: no file")
    assert "Traceback" not in failed.stderr
    assert prism("rerank").returncode == 2
    assert prism("nonsense").returncode == 2


def test_rerank_imports_what_it_needs_and_collects_garbage_again(tiny_checkpoint, tmp_path):
    (tmp_path / "note.txt").write_text("Keys are rotated yearly.", encoding="utf-8")
    arguments = ["rerank", "keys", str(tmp_path / "note.txt"), "--model", str(tiny_checkpoint), "--no-self-test"]
    code = (
        "import gc, sys\nfrom typer.testing import CliRunner\nfrom prism.cli import app\n"
        f"done = CliRunner().invoke(app, {[*arguments, '--template', 'prism', '--no-evidence']})\n"
        "assert done.exit_code == 0 and 'transformers' in sys.modules, done.output\n"
        "heavy = {'scipy', 'sklearn', 'torchvision', 'matplotlib', 'tensorboard', 'peft', 'trl', 'datasets'}\n"
        "print(heavy & set(sys.modules) or None, gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "None True True\n"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom prism.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print([name for name in ('torch', 'transformers', 'fastapi', 'pydantic') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
