"""One visit to a GPU: does Prism compute there what it computes on a CPU, and how fast beside plain code?

    python -m eval.gpu_check --out eval/results/gpu_check                     all of it, at most eight minutes
    python -m eval.gpu_check --only scoring --limit-s 100 --out gpu           one section
    python -m eval.gpu_check --size tiny --out gpu                            the same code at no size, on any machine

Needs a bare machine: Python, torch, transformers, the packages that `make gpu-wheels` puts into a folder, and no
network; models are random, made on the device (mini itself is measured where its base is there). Each section is a
process of its own with a share of the time; one that fails or runs out of it is a row with its error. The report,
report.json and report.md, is written anew after every section.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prism.files.jsonl import Drops, Row, read_rows
from prism.outputs import write_text
from prism.reports.report import versions

ROOT = Path(__file__).resolve().parents[1]
SHARES = {"correctness": 0.15, "scoring": 0.45, "writing": 0.2, "training": 0.2}
"""Of the time; what a section leaves goes to the next."""
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "trl")


class Section:
    """A section's process: it loads its libraries at once, and waits to be told to begin."""

    def __init__(self, name: str, size: str, mini: str, folder: Path) -> None:
        self.name = name
        self.out, self._errors = folder / f"{name}.jsonl", folder / f"{name}.err"
        self._ready = folder / f"{name}.ready"
        command = [sys.executable, "-m", "studies.gpu", name]
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
        path = os.pathsep.join([str(ROOT), str(ROOT / "eval"), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [*command, "--size", size, "--mini", mini, "--out", str(self.out), "--ready", str(self._ready)],
                cwd=ROOT,
                env={**os.environ, **quiet, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
            )

    def wait(self, until: float) -> None:
        """Until its libraries are loaded, it has failed, or that time has come."""
        while not self._ready.exists() and self._process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)

    def run(self, seconds: float) -> list[Row]:
        """Its rows; it is ended when its time is over."""
        try:
            self._process.communicate(f"{seconds * 0.9:.1f}\n".encode(), timeout=max(1.0, seconds))
            problem = self._last_line() if self._process.returncode else None
        except subprocess.TimeoutExpired:
            problem = f"ended after {seconds:.0f} s, its share of the time"
        finally:
            self.end()
        lines = read_rows(self.out, Drops(), "skip") if self.out.is_file() else ()  # the last may be cut off
        rows: dict[str, Row] = {row["what"]: row for _, row in lines}  # the last one of a name counts
        return [*rows.values(), *([{"what": "section", "error": problem}] if problem else [])]

    def end(self) -> None:
        """Ends the process, also one that never began."""
        self._process.kill()
        self._process.wait()

    def _last_line(self) -> str:
        said = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"exit {self._process.returncode}: {said[-1][:300] if said else 'nothing said'}"


def device_name() -> str:
    """As the driver says; the parent itself never touches the card."""
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"CPU ({platform.machine()}, {os.cpu_count()} processors)"


def table(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return "\n".join([*head, *(f"| {' | '.join(_cell(row.get(name)) for name in names)} |" for row in rows)])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "\\|")


def write(out: Path, record: dict[str, Any]) -> None:
    """Both files, each whole."""
    head = f"# GPU check\n\n{record['device']}; {', '.join(f'{k} {v}' for k, v in record['versions'].items())}"
    body = [f"## {name} ({part['seconds']} s)\n\n{table(part['rows'])}" for name, part in record["sections"].items()]
    texts = {"report.json": json.dumps(record, indent=1), "report.md": "\n\n".join([head, *body, record["command"]])}
    for name, text in texts.items():
        write_text(out / name, text + "\n")


def main(
    out: Annotated[Path, typer.Option(help="Folder for report.json and report.md.")] = Path("eval/results/gpu_check"),
    only: Annotated[list[str] | None, typer.Option(help=f"Sections: {', '.join(SHARES)}.")] = None,
    limit_s: Annotated[float, typer.Option(min=5, help="Seconds for all of it.")] = 460.0,
    size: Annotated[Literal["full", "tiny"], typer.Option(help="tiny: the same code in seconds, on a CPU.")] = "full",
    mini: Annotated[str, typer.Option(help="A checkpoint of mini's shape; empty: random weights.")] = "mini",
) -> None:
    """Measure, and write what is known after every section."""
    began = time.monotonic()
    names = [name for name in SHARES if name in (only or SHARES)]
    if unknown := set(only or ()) - set(SHARES):
        raise typer.BadParameter(f"no section {min(unknown)}: expected {', '.join(SHARES)}")
    out.mkdir(parents=True, exist_ok=True)
    command = f"`python -m eval.gpu_check {' '.join(sys.argv[1:])}`"
    known = dict.fromkeys(LIBRARIES, "absent") | versions(*LIBRARIES)
    record: dict[str, Any] = {"device": device_name(), "versions": known, "command": command, "sections": {}}
    with tempfile.TemporaryDirectory() as folder:
        waiting = [Section(name, size, mini, Path(folder)) for name in names]
        try:
            for at, section in enumerate(waiting):
                section.wait(began + limit_s)
                start, share = time.monotonic(), sum(SHARES[name] for name in names[at:])
                rows = section.run((limit_s - (start - began)) * SHARES[section.name] / share)
                record["sections"][section.name] = {"seconds": round(time.monotonic() - start, 1), "rows": rows}
                write(out, record)
                typer.echo(f"## {section.name}\n{table(rows)}")
        finally:
            for section in waiting:
                section.end()


if __name__ == "__main__":
    typer.run(main)
