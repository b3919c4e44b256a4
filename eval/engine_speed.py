"""How fast the engines in this process score and write on a CPU, against the naive loops they replace.

    python eval/engine_speed.py --checkpoint mini --out eval/results/engine_speed
    python eval/engine_speed.py --checkpoint mini --gguf mini.gguf     engine llamacpp in the same run
    python eval/engine_speed.py                        a random model of mini's shape, no weights needed

Ways take turns, each in a process of its own, as it would be alone. A way that fails is a row with its error, and the
report is written anew after every round: what was measured is not lost. A random model repeats itself far more than a
trained one, so its prompt-lookup figures are an upper bound, and it writes no evidence.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from prism import devices
from prism.outputs import write_text
from prism.reports.report import command_line, versions
from studies import engine_ways as ways
from studies.speed_table import rows, table
from studies.turns import Prepare, Turns, Way

WHOLE_TOKENS, WHOLE_TOP = 160, 5
LLAMACPP = "engine llamacpp"


class Section(StrEnum):
    """What can be measured, in this order."""

    SCORING = "scoring"
    WRITING = "writing"
    WHOLE = "whole"


def scoring(setting: ways.Setting) -> dict[str, Prepare]:
    packed: dict[str, Prepare] = {LLAMACPP: partial(ways.by_llamacpp, setting)} if setting.gguf else {}
    return {
        "float32, one by one, all logits": partial(ways.one_by_one, setting, "float32", all_logits=True),
        "float32, one by one, last logit": partial(ways.one_by_one, setting, "float32", all_logits=False),
        "float32, batches of 16": partial(ways.padded, setting, "float32"),
        "float32, CrossEncoder.predict": partial(ways.cross_encoder, setting, "float32"),
        "bfloat16, CrossEncoder.predict": partial(ways.cross_encoder, setting, "bfloat16"),
        "float32, engine, rows padded": partial(ways.by_engine, setting, "float32", packed=False),
        "float32, engine": partial(ways.by_engine, setting, "float32"),
        "bfloat16, engine": partial(ways.by_engine, setting, "bfloat16"),
        "int8, engine": partial(ways.by_engine, setting, "int8"),
        **packed,
    }


def writing(setting: ways.Setting) -> dict[str, Prepare]:
    packed: dict[str, Prepare] = {
        f"{LLAMACPP}, batched": partial(ways.written_by_llamacpp, setting, speculate=False),
        f"{LLAMACPP}, batched, prompt lookup": partial(ways.written_by_llamacpp, setting),
    }
    return {
        "float32, generate one by one": partial(ways.generated, setting, "float32"),
        "float32, engine, batched": partial(ways.written, setting, "float32", speculate=False),
        "float32, engine, batched, prompt lookup": partial(ways.written, setting, "float32"),
        "bfloat16, engine, batched, prompt lookup": partial(ways.written, setting, "bfloat16"),
        "int8, engine, batched, prompt lookup": partial(ways.written, setting, "int8"),
        **(packed if setting.gguf else {}),
    }


def whole(setting: ways.Setting) -> dict[str, Prepare]:
    asked: dict[str, Any] = {"tokens": WHOLE_TOKENS, "top_n": WHOLE_TOP}
    found: dict[str, Prepare] = {
        dtype: partial(ways.reranked, setting, dtype, **asked) for dtype in ("float32", "auto", "int8")
    }
    if setting.gguf:
        found[LLAMACPP] = partial(ways.reranked, setting, "auto", **asked, packed=True)
    return found


def main(
    checkpoint: Annotated[str, typer.Option(help="mini, a checkpoint's directory, or `random`.")] = "random",
    gguf: Annotated[Path | None, typer.Option(exists=True, help="The checkpoint as a file: adds llamacpp.")] = None,
    documents: Annotated[int, typer.Option(min=2, help="Documents to score.")] = 100,
    texts: Annotated[int, typer.Option(min=1, help="Texts to write.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest text.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds after one to warm up; medians count.")] = 5,
    only: Annotated[list[Section] | None, typer.Option(help="Some of the sections; repeatable.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: as many as this process is given.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write PATH.json and PATH.md too.")] = None,
) -> None:
    """Measure scoring, writing and both together, in one run."""
    setting = ways.Setting(checkpoint, documents, texts, max_tokens, threads or devices.cpu_threads())
    setting = setting._replace(gguf=str(gguf) if gguf else None)
    used = versions("torch", "transformers", "llama-cpp-python").items()
    described = (
        f"{checkpoint}, {setting.threads} threads, {platform.machine()}, auto dtype {devices.choose_dtype('cpu')},"
        f" {', '.join(f'{name} {text}' for name, text in used)};"
        f" {documents} documents, {texts} texts of at most {max_tokens} tokens; medians of {repeats} rounds in turn"
    )
    chosen = only or list(Section)
    sections: dict[str, tuple[str, dict[str, Prepare], Callable[[Way], float]]] = {
        "Scoring": ("documents/s", scoring(setting), lambda _: documents),
        "Writing": ("tokens/s", writing(setting), lambda way: sum(map(len, way.result or ()))),
    }
    if checkpoint != "random":
        title = f"{documents} documents of {WHOLE_TOKENS} tokens, evidence for the best {WHOLE_TOP}"
        sections[title] = ("documents/s", whole(setting), lambda _: documents)
    sections = {title: made for kind, (title, made) in zip(Section, sections.items(), strict=False) if kind in chosen}
    record: dict[str, Any] = {"command": command_line(), "setting": described, "sections": {}}

    def text() -> str:
        parts = [table(title, sections[title][0], lines) for title, lines in record["sections"].items()]
        body = [line for part in parts for line in part]
        head = ["# Speed of the engines in this process", "", described, ""]
        return "\n".join([*head, *body, f"`{record['command']}`", ""])

    for title, (_, prepares, count) in sections.items():
        with Turns(prepares) as turns, Console(stderr=True).status(title):

            def keep(title: str = title, turns: Turns = turns, count: Callable[[Way], float] = count) -> None:
                record["sections"][title] = rows(turns.ways, count)
                if out:
                    write_text(out.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
                    write_text(out.with_suffix(".md"), text())

            turns.rounds(repeats, keep)
    typer.echo(text())


if __name__ == "__main__":
    typer.run(main)
