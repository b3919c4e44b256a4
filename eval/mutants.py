"""Whether the tests notice: central lines of the library (mutants.yaml), each made wrong in a copy of the tree.

    python eval/mutants.py --out eval/results/mutants        # all: some minutes
    python eval/mutants.py --only tie-order threshold        # some

A mutant is killed when a test of its files fails and survives when all pass; the exit code is 1 if any survives. The
tree itself is never touched. The first run, without a mutation, must pass.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("prism", "tests", "recipes", "configs", "eval", "serve", "pyproject.toml", "README.md")


class Mutant(NamedTuple):
    """One line made wrong: `old`, which `file` has once, becomes `new`; a test of the files `tests` should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: list[str]


def copied(folder: Path) -> None:
    """The tree as it stands, ignored files left out."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results", "*.gguf"))
        elif source.is_file():
            shutil.copy(source, folder / name)


def failures(folder: Path, tests: list[str], timeout_s: float) -> list[str]:
    """Names of the tests that fail in the copy; stops at the first. An error outside the tests raises."""
    files = [f"tests/test_{name}.py" for name in tests]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=timeout_s
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return re.findall(r"^FAILED tests/(\w+\.py::\w+)", done.stdout, re.MULTILINE)


def tried(mutants: list[Mutant], timeout_s: float) -> Iterator[tuple[Mutant, list[str]]]:
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        folder = Path(place)
        copied(folder)
        everything = list(dict.fromkeys(name for mutant in mutants for name in mutant.tests))
        if broken := failures(folder, everything, timeout_s * 4):
            raise SystemExit(f"{broken[0]} fails without any mutation: mend it first")
        for mutant in mutants:
            path = folder / mutant.file
            right = path.read_text(encoding="utf-8")
            if right.count(mutant.old) != 1:
                raise SystemExit(f"{mutant.name}: {mutant.file} has {mutant.old!r} {right.count(mutant.old)} times")
            path.write_text(right.replace(mutant.old, mutant.new), encoding="utf-8")
            try:
                yield mutant, failures(folder, mutant.tests, timeout_s)
            finally:
                path.write_text(right, encoding="utf-8")


def main() -> None:
    listed = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    mutants = [Mutant(name, **fields) for name, fields in listed.items()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="NAME", choices=list(listed))
    parser.add_argument("--timeout-s", type=float, default=400.0, help="for the tests of one mutant")
    parser.add_argument("--out", type=Path, help="folder for report.md and results.json")
    args = parser.parse_args()
    chosen = [mutant for mutant in mutants if not args.only or mutant.name in args.only]
    lines = ["| mutant | file | becomes | first test to fail |", "|---|---|---|---|"]
    results = {}
    for mutant, failed in tried(chosen, args.timeout_s):
        results[mutant.name] = failed
        shown = f"`{failed[0]}`" if failed else "**none: survives**"
        lines.append(f"| {mutant.name} | {mutant.file} | `{mutant.new.strip()}` | {shown} |")
        print(lines[-1], flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        text = "\n".join([f"`python eval/mutants.py --out {args.out}`", "", *lines, ""])
        (args.out / "report.md").write_text(text, encoding="utf-8")
        (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(not failed for failed in results.values()))


if __name__ == "__main__":
    main()
