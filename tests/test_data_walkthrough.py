"""Two pages lead from a corpus to a training file: every command on them is run, on real documentation."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from http_server import HttpServer, Reply, Request
from typer.testing import CliRunner

from prism import cli
from prism.files.examples import read_examples
from prism.labeling.panel import load_panel

ROOT = Path(__file__).parents[1]
DATA = ROOT / ".." / "shared" / "data"
KEYS = ("DASHSCOPE", "DEEPSEEK", "GEMINI", "OPENAI", "ANTHROPIC", "EXAMPLE", "JINA")
runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
needs_data = pytest.mark.skipif(not (DATA / "corpora").is_dir(), reason="needs ../shared/data (README: data)")


def commands(page: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def run(line: str, server: str = "") -> Any:
    """Runs a line; the page's own server, and the waiting for it, are stood in for by `server`."""
    if re.match(r"prism serve .*&|until curl |kill \$SERVER", line):
        return None
    line, _, otherwise = line.replace("http://127.0.0.1:8765", server).partition(" || ")
    words = shlex.split(line)
    if words[0] == "cat":
        *sources, sign, target = words[1:]
        assert sign == ">"
        Path(target).write_bytes(b"".join(Path(source).read_bytes() for source in sources))
        return None
    assert words[0] == "prism"
    done = runner.invoke(cli.app, words[1:])
    assert done.exit_code in ((0, 1) if otherwise else (0,)), f"{line}\n{done.output}"
    return done


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def corpus(count: int) -> str:
    """Writes corpus.jsonl; returns the text of one section, which is to be kept out."""
    with gzip.open(DATA / "corpora" / "techdocs.jsonl.gz", "rt", encoding="utf-8") as lines:
        sections = list(islice((line for line in lines if 300 < len(line) < 1500), count))
    Path("corpus.jsonl").write_text("".join(sections), encoding="utf-8")
    return str(json.loads(sections[3])["text"])


# --- stand-ins for models: they count shared words -------------------------------------------------------------------


def share(query: str, text: str) -> float:
    asked = set(query.lower().split())
    return len(asked & set(text.lower().split())) / len(asked)


def answer(request: Request) -> Reply:
    """A rerank API, and behind the chat API jurors, a writer of texts and one of queries."""
    if "documents" in request.body:
        query, documents = request.body["query"], request.body["documents"]
        scores = [round(share(query, text), 4) for text in documents]
        results = [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]
        return Reply({"results": results, "usage": {"total_tokens": 7}})
    text = request.body["messages"][-1]["content"]
    said = juror(text) if "That was the material." in text else writer(text) if text.startswith("{") else asker(text)
    choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    return Reply({"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 2}})


def juror(text: str) -> str:
    query, _, document = text.replace("> ", "").partition("\n\n")
    return str(int(share(query.removeprefix("Query:\n"), document) >= 0.7))


def writer(text: str) -> str:
    """The sentence with most of the query's words, as both texts."""
    pair = json.loads(text)
    sentences = [part.strip() for part in re.split(r"(?<=[.:])\s+|\n", pair["document"]) if len(part) > 20]
    best = max(sentences, key=lambda sentence: share(pair["query"], sentence), default="")
    return f"<contribution>{best[:390]}</contribution>\n<evidence>{best}</evidence>" if best else "none"


def asker(text: str) -> str:
    """Two stretches of the text."""
    words = text.partition("\n\n")[2].split()
    return " ".join(words[:5]) + "\n" + " ".join(words[8:14])


# --- the pages -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_data
def test_from_corpus_to_training_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    planted = corpus(12)
    Path("evaluation.jsonl").write_text(json.dumps({"text": planted}) + "\n", encoding="utf-8")
    with HttpServer(answer) as server:
        for line in commands("recipes/README.md"):
            run(line, server.url)
    found = [*read_examples(Path("data/train.jsonl")), *read_examples(Path("data/dev.jsonl"))]
    assert len(found) > 20
    assert {example.verdict for example in found} == {"yes", "no"}
    assert {example.losses for example in found} == {("distill", "sft"), ("sft",)}
    for example in found:
        agrees = (example.teacher_score >= 0.5) == (example.verdict == "yes")
        assert agrees == ("distill" in example.losses)
        assert example.votes
    card = json.loads(Path("data/card.json").read_text())
    assert card["cost"]["scores.jsonl"]["calls"] == len(server.requests)
    assert card["rules"]["power"] == pytest.approx(json.loads(Path("fit.json").read_text())["power"])
    kept = sum(split["yes"] + split["no"] for split in card["splits"].values())
    assert kept == len(found)
    assert kept + sum(drop["count"] for drop in card["dropped"].values()) == card["labels_read"]
    assert any(reason.startswith("leakage: document") for reason in card["dropped"])
    for name in ("train.jsonl", "balanced.jsonl", "split/train.jsonl"):
        assert planted not in {example.document for example in read_examples(Path(name))}


def panels(url: str) -> None:
    """The panel files, as they are but for the addresses and how often those may be asked."""
    Path("configs/panels").mkdir(parents=True)
    for file in (ROOT / "configs/panels").glob("*.yaml"):
        text = re.sub(r"base_url: \S+", f"base_url: {url}/v1", file.read_text(encoding="utf-8"))
        text = re.sub(r"\n *requests_per_minute: \d+", "", text)
        Path("configs/panels", file.name).write_text(text, encoding="utf-8")


@pytest.mark.slow
@needs_data
def test_label_your_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in KEYS:
        monkeypatch.setenv(f"{name}_API_KEY", "key")
    planted = corpus(10)
    Path("path/to").mkdir(parents=True)
    Path("path/to/my-test-set.jsonl").write_text(json.dumps({"text": planted}) + "\n", encoding="utf-8")
    with HttpServer(answer) as server:
        panels(server.url)
        for line in commands("configs/panels/README.md"):
            if "--workers" in line or line.startswith("prism train"):
                continue  # tests/test_ray_workers.py; a recipe of one's own
            if "--start-local" in line or line.startswith(("pip install", "prism pull", "python -m llama_cpp.server")):
                continue  # tests/test_local_jury.py
            if "labels-by-logits" in line:
                continue  # Qwen's gigabyte: the panel is read, and its labels built, below
            if line.startswith("prism agree"):  # a person who sees every fifth pair the other way
                seen = {row["id"]: row["label"] for row in rows("labels/labels.jsonl")}
                drawn = rows("mine.jsonl")
                assert all(row["label"] is None and "votes" not in row for row in drawn)
                mine = [{**row, "label": seen[row["id"]] ^ (at % 5 == 0)} for at, row in enumerate(drawn)]
                Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mine), encoding="utf-8")
            line = line.replace("https://api.example.com", server.url)
            run(line.replace("--teacher jina", f"--teacher jina --url {server.url}"))
    labels = rows("labels/labels.jsonl")
    assert {row["verdict"] for row in labels} == {"yes", "no"}
    assert {len(row["votes"]) for row in labels} == {3}  # of five like-minded jurors three decide
    assert Path("pictures/kappa.png").stat().st_size > 0
    targets = {row["id"]: row for row in rows("targets.jsonl")}
    assert targets
    assert all(row["evidence"] in row["document"] for row in targets.values())
    found = [*read_examples(Path("training/train.jsonl")), *read_examples(Path("training/dev.jsonl"))]
    written = [example for example in found if example.evidence]
    assert {example.verdict for example in found} == {"yes", "no"}
    assert written
    assert {example.verdict for example in written} == {"yes"}
    assert planted not in {example.document for example in found}
    card = json.loads(Path("training/card.json").read_text(encoding="utf-8"))
    report = json.loads(Path("labels/report.json").read_text(encoding="utf-8"))
    assert any(reason.startswith("leakage: document") for reason in card["dropped"])
    assert card["cost"]["labels.jsonl"]["paid_usd"] == report["paid_usd"]
    # By hand: 100 tokens at $0.1 and 2 at $0.4 per million for each answer.
    assert Decimal(card["cost"]["targets.jsonl"]["cost_usd"]) == len(targets) * Decimal("0.0000108")
    assert card["cost"]["scores.jsonl"]["pairs"] == len(labels)


def test_a_dry_run_says_which_models_have_to_be_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "empty"))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"query": "q", "document": "d"}\n')
    panel = ROOT / "configs/panels/local-logits.yaml"
    said = run(f"prism label {panel} {pairs} {tmp_path}/out --dry-run").output
    assert "qwen: its model is not here yet: run `prism pull qwen2.5-coder-1.5b-instruct`" in said
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "full"))
    file = tmp_path / "full/bases/qwen2.5-coder-1.5b-instruct.gguf"
    file.parent.mkdir(parents=True)
    file.touch()
    assert "qwen: its model" not in run(f"prism label {panel} {pairs} {tmp_path}/out --dry-run").output


def test_a_panel_read_by_logits_keeps_what_both_agree_on(tmp_path: Path) -> None:
    """The packaged panel is two rerankers of this machine; of its labels the page keeps the unanimous ones."""
    panel = load_panel(ROOT / "configs/panels/local-logits.yaml")
    assert [(juror.kind, juror.name) for juror in panel.jurors] == [("local", "mini"), ("local", "qwen")]
    labels = [
        {
            "query": f"q{n}",
            "document": f"Document {n}.",
            "label": label,
            "verdict": "no",
            "vote_share": share,
            "votes": votes,
        }
        for n, (label, share, votes) in enumerate(
            [(1, 1.0, {"mini": 1, "qwen": 1}), (0, 1.0, {"mini": 0, "qwen": 0}), (0, 0.5, {"mini": 1, "qwen": 0})]
        )
    ]
    labels[0]["verdict"] = "yes"
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels), encoding="utf-8")
    run(f"prism data build {tmp_path}/labels.jsonl {tmp_path}/training --min-majority 1 --splits train=1.0")
    kept = rows(str(tmp_path / "training/train.jsonl"))
    assert sorted(row["query"] for row in kept) == ["q0", "q1"]
