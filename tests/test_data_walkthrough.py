"""The walk from a corpus to a training file in recipes/README.md: every command of it is run, on real documentation."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from http_server import HttpServer, Reply, Request
from typer.testing import CliRunner

from prism import cli
from prism.data.records import read_examples

ROOT = Path(__file__).parents[1]
DATA = ROOT / ".." / "shared" / "data"
runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "recipes" / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def lexical(request: Request) -> Reply:
    """A teacher that counts shared words."""
    asked = set(request.body["query"].lower().split())
    shares = [len(asked & set(text.lower().split())) / len(asked) for text in request.body["documents"]]
    results = [{"index": index, "relevance_score": round(share, 4)} for index, share in enumerate(shares)]
    return Reply({"results": results, "usage": {"total_tokens": 7}})


def run(line: str) -> Any:
    words = shlex.split(os.path.expandvars(line))
    if words[0] == "cat":
        *sources, sign, target = words[1:]
        assert sign == ">"
        Path(target).write_bytes(b"".join(Path(source).read_bytes() for source in sources))
        return None
    assert words[0] == "prism"
    done = runner.invoke(cli.app, words[1:])
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return done


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "corpora").is_dir(), reason="needs ../shared/data (README: data)")
def test_from_corpus_to_training_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    with gzip.open(DATA / "corpora" / "techdocs.jsonl.gz", "rt", encoding="utf-8") as lines:
        sections = list(islice((line for line in lines if 300 < len(line) < 1500), 12))
    Path("corpus.jsonl").write_text("".join(sections), encoding="utf-8")
    planted = json.loads(sections[3])["text"]
    Path("evaluation.jsonl").write_text(json.dumps({"text": planted}) + "\n", encoding="utf-8")
    with HttpServer(lexical) as server:
        monkeypatch.setenv("RERANKER_URL", server.url)
        for line in commands():
            run(line)
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
