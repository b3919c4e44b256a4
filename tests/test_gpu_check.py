"""`eval/gpu_check.py` as it runs on a GPU, at a size that a CPU does in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def check(out: Path, *words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eval.gpu_check", "--size", "tiny", "--mini", "", "--out", str(out), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_section_measures_and_nothing_fails(tmp_path: Path) -> None:
    done = check(tmp_path, "--limit-s", "400")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    sections = {name: {row["what"]: row for row in part["rows"]} for name, part in report["sections"].items()}
    assert list(sections) == ["correctness", "scoring", "writing", "training"]
    rows = [row for section in sections.values() for row in section.values()]
    assert [row for row in rows if "error" in row] == []
    assert all(row.get("within", True) for row in rows)
    # On a CPU the device's fp32 is the reference's own arithmetic: the same texts, the same gradients.
    for way in ("", ", no drafts", ", graphs", ", graphs, no drafts"):
        assert sections["correctness"][f"tiny Qwen3, fp32, written{way}"]["equal"] == 4
        assert sections["writing"][f"4 texts: engine{way}"]["as_generate"] == 4
    assert sections["training"]["gradients, torch.float32"]["relative_difference"] == 0.0
    assert sections["training"]["waits in a batch"]["waits"] is None  # a CPU has no other device to wait for
    # 12 prompts share 60 tokens, which are computed once.
    assert sections["scoring"]["Qwen3-0.6B, 60 shared: engine, packed, prefix read once"]["cached_tokens"] == 11 * 60
    assert sections["scoring"]["Qwen3-0.6B, 60 shared: engine, packed"]["cached_tokens"] == 0
    assert "| 135M LoRA: trainer |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_section_that_fails_is_a_row(tmp_path: Path) -> None:
    broken = tmp_path / "site"
    broken.mkdir()
    (broken / "trl.py").write_text('raise ImportError("this trl is broken")', encoding="utf-8")
    done = check(tmp_path, "--only", "training", "--only", "correctness", path=broken)
    assert done.returncode == 0, done.stderr
    sections = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["sections"]
    assert sections["training"]["rows"] == [{"what": "section", "error": "exit 1: ImportError: this trl is broken"}]
    assert len(sections["correctness"]["rows"]) == 16  # two dtypes, four ways of scoring and of writing


def test_an_unknown_section_is_refused(tmp_path: Path) -> None:
    done = check(tmp_path, "--only", "speed")
    assert done.returncode == 2
    assert "no section speed: expected correctness, scoring, writing, training" in done.stderr
