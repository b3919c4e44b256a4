"""The tutorial without a key is followed line by line: queries, negatives, verdicts, texts, a file, a recipe.

A process that speaks llama.cpp's protocol stands in for Qwen, whose gigabyte is not here: what it says is the same for
every text. mini gives the verdicts that the page has mini and Qwen give.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import test_local_jury as jury
from test_doc_examples import DOCS, blocks

from prism.files.examples import read_examples

environment = jury.environment
PAGE = DOCS / "tutorials" / "no-key.md"
WRITER = "qwen2.5-coder-1.5b-instruct"
TEXTS = [
    "The battery of the lamp lasts ten hours. It takes two hours to charge it.",
    "The warranty of the lamp covers defects for two years from the date of purchase.",
    "The lamp weighs three hundred grams, and its stand weighs one kilogram.",
]


@pytest.mark.slow
def test_the_tutorial_without_a_key(tmp_path: Path, environment: dict[str, str]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "handbook").mkdir()
    for n, text in enumerate(TEXTS):
        (home / "handbook" / f"d{n}.md").write_text(f"# The lamp\n\n{text}\n")
    asks = jury.model(home, "asks", answer="How long does the battery of the lamp last?\nWarranty of the lamp")
    said = f"<contribution>It lasts ten hours.</contribution><evidence>{TEXTS[0].partition('. ')[0]}.</evidence>"
    writes = jury.model(home, "writes", answer=said)
    panel = jury.ROOT / "configs/panels/local-mini.yaml"
    ran = []
    for block in blocks(PAGE):
        if block.title:
            (home / block.title).write_text(block.text, encoding="utf-8")
        for line in block.text.splitlines() if block.language == "bash" else ():
            if line == "prism-train my.yaml" or "runs/mine" in line:
                continue  # a minute; tests/test_trainer.py and others train
            line = line.replace("configs/panels/local-logits.yaml", str(panel))
            line = line.replace(WRITER, str(asks if "data queries" in line else writes))
            tools = f'prism() {{ "{sys.executable}" -m prism "$@"; }}; prism-train() {{ prism train "$@"; }}; '
            done = subprocess.run(
                ["bash", "-euc", tools + line],
                cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            ran.append(line.split()[1])
    assert ran == ["data", "data", "data", "queries.jsonl", "label", "write-targets", "data", "my.yaml"]
    found = list(read_examples(home / "training" / "train.jsonl"))
    assert {example.verdict for example in found} == {"yes", "no"}
    written = [example for example in found if example.evidence]
    # Of what is a yes, only the text on the battery holds the sentence; the checks drop it for all others.
    assert written
    assert {example.document for example in written} == {TEXTS[0]}
