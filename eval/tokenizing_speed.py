"""How fast records become rows, in one process and in several, and how much memory rows take in those that train.

    python eval/tokenizing_speed.py --model mini --out eval/results/tokenizing_speed
    python eval/tokenizing_speed.py --model mini --file runs/mini/data/train.jsonl

Without `--file`, records are made of the words of this project's own documentation. Every measurement is a process of
its own. Memory is what a process holds for itself (RssAnon): pages of the mapped file belong to all that read them, and
to nobody once others need the room. `ideal`: workers x the speed of one, on as many cores.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer

from prism import parallel
from prism.checkpoint import Checkpoint
from prism.devices import usable_cpus
from prism.files.examples import write_examples
from prism.files.jsonl import dumps
from prism.outputs import write_text
from prism.reports.report import command_line, versions
from prism.template import Template
from prism.training.batches import steps_of
from prism.training.dataset import Rendering, tokenize
from prism.training.recipe import Data, Model, Recipe, Schedule
from prism.training.rows import Rows
from prism.types import Example

ROOT = Path(__file__).resolve().parents[1]
MOST_TOKENS = 2048


def synthetic(path: Path, records: int, words: int) -> None:
    """Pairs of `words` words, half of them with a written part."""
    rng = random.Random(5)
    vocabulary = " ".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").rglob("*.md"))).split()

    def one(number: int) -> Example:
        text = " ".join(rng.choices(vocabulary, k=words))
        said: dict[str, Any] = {"contribution": f"It says {text[:60]}.", "evidence": text[:200]} if number % 2 else {}
        query = f"what is said of {number // 8}"
        return Example(query=query, document=text, verdict="yes" if number % 2 else "no", teacher_score=0.5, **said)

    write_examples(path, map(one, range(records)))


def held_mib() -> float:
    """What this process holds for itself."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def timed_tokenizing(model: str, file: Path, out: Path, workers: int) -> dict[str, Any]:
    base = Checkpoint.load(model)
    rendering = Rendering(Template(base.template.spec, base.tokenizer), MOST_TOKENS)
    start, before = time.perf_counter(), held_mib()
    tokenize([file], out, rendering, workers=workers)
    return {"seconds": time.perf_counter() - start, "held_mib": held_mib() - before}


def trained_on(path: Path) -> dict[str, Any]:
    """A process that trains, without the training: rows mapped, put in order, and every batch of an epoch made."""
    schedule = Schedule(batch_size=64, accumulation=4, tokens_per_batch=16384)
    recipe = Recipe(name="x", model=Model(base="x"), data=Data(files=(path,)), schedule=schedule)
    before = held_mib()
    rows = Rows.open(path)
    steps = steps_of(recipe, rows, pad_id=0)
    ready, start = held_mib(), time.perf_counter()
    most = ready
    for number in range(len(steps)):
        steps[number]
        most = max(most, held_mib())
    return {
        "records": len(rows),
        "tokens": int(rows.lengths.sum(dtype="int64")),
        "file_bytes_a_record": path.stat().st_size / len(rows),
        "held_bytes_a_record": (ready - before) * 2**20 / len(rows),
        "most_held_mib": most - before,
        "batches_tokens_per_s": int(rows.lengths.sum(dtype="int64")) / (time.perf_counter() - start),
    }


def alone(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    with ProcessPoolExecutor(1, get_context("spawn"), parallel.end_with_parent) as process:
        return process.submit(work, *arguments).result()


def main(
    model: Annotated[str, typer.Option(help="Whose tokenizer and template.")] = "mini",
    file: Annotated[Path | None, typer.Option(help="Training records; default: synthetic ones.")] = None,
    records: Annotated[int, typer.Option(min=1000, help="Synthetic records.")] = 100_000,
    words: Annotated[int, typer.Option(min=10, help="Words of a synthetic document.")] = 200,
    workers: Annotated[list[int] | None, typer.Option(help="Processes, repeatable; default: 1 and the cores.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json and report.md.")] = None,
) -> None:
    """Tokenize with each number of workers, then map the rows as training does."""
    with tempfile.TemporaryDirectory() as folder:
        if file is None:
            file = Path(folder) / "train.jsonl"
            synthetic(file, records, words)
        rows = Path(folder) / "rows" / "key.arrow"
        made = {count: alone(timed_tokenizing, model, file, rows, count) for count in workers or [1, usable_cpus()]}
        mapped = alone(trained_on, rows)
    text = _markdown(made, mapped)
    typer.echo(text)
    if out:
        record = {"command": command_line(), "workers": made, "mapped": mapped, **versions("tokenizers", "pyarrow")}
        write_text(out / "report.json", dumps(record, indent=2) + "\n")
        write_text(out / "report.md", f"# Records to rows\n\n{text}\nCommand: `{command_line()}`\n")


def _markdown(made: dict[int, dict[str, Any]], mapped: dict[str, Any]) -> str:
    first, count = next(iter(made)), mapped["records"]
    lines = ["| workers | records/s | tokens/s | against the first | ideal | held by the first process |"]
    lines.append("|---:|---:|---:|---:|---:|---:|")
    for workers, found in made.items():
        speed, ratio = count / found["seconds"], made[first]["seconds"] / found["seconds"]
        tokens = mapped["tokens"] / found["seconds"]
        lines.append(
            f"| {workers} | {speed:,.0f} | {tokens:,.0f} | {ratio:.2f}x | {workers / first:.0f}x"
            f" | {found['held_mib']:,.0f} MiB |"
        )
    lines += [
        "",
        f"{count:,} records, {mapped['tokens'] / count:,.0f} tokens each: {mapped['file_bytes_a_record']:,.0f} bytes a"
        f" record in the file; a process that trains holds {mapped['held_bytes_a_record']:,.0f} bytes a record,"
        f" {mapped['most_held_mib']:,.0f} MiB at most over an epoch of batches"
        f" ({mapped['batches_tokens_per_s']:,.0f} tokens/s).",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
