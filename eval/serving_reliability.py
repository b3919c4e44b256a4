"""What a server must survive, shown on a running one: nonsense, hostile documents, a killed engine, clients that leave.

    python eval/serving_reliability.py --out eval/results/serving_reliability/cpu
    .venv-vllm/bin/python eval/serving_reliability.py --only crash --out eval/results/serving_reliability/cpu

Sections: openapi (schemathesis over the published schema), hostile (no document moves another's score), crash (the
processes of vLLM get SIGKILL under load; needs vLLM), leaving (work ends with the client that asked for it). Each runs
`prism serve` anew. `--out` keeps the figures of sections measured before. Ends with 1 when one is not as it must be.
"""

from __future__ import annotations

import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from studies.serving_reliability import SECTIONS, Run, markdown


def main(
    model: Annotated[str, typer.Option(help="mini, or a checkpoint directory.")] = "mini",
    cases: Annotated[int, typer.Option(min=2, help="Requests that schemathesis makes up.")] = 5000,
    documents: Annotated[int, typer.Option(min=6, help="Hostile documents.")] = 300,
    kills: Annotated[int, typer.Option(min=1, help="How often the engine is killed.")] = 20,
    leaves: Annotated[int, typer.Option(min=1, help="Clients that leave.")] = 20,
    only: Annotated[list[str] | None, typer.Option(help=f"Check this alone: {', '.join(SECTIONS)}.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write PATH.json and PATH.md, after every section.")] = None,
) -> None:
    """Check what a server must survive, on this machine."""
    chosen = [name for name in SECTIONS if name in (only or SECTIONS)]
    if unknown := set(only or ()) - set(SECTIONS):
        raise typer.BadParameter(f"no section {unknown.pop()!r}: expected {', '.join(SECTIONS)}")
    run = Run(model, cases, documents, kills, leaves)
    file = out.with_suffix(".json") if out else None
    known = json.loads(file.read_bytes()) if file and file.is_file() else {"sections": {}}
    record = {"model": model, "sections": known["sections"]}
    met = True
    for name in chosen:
        begin = time.monotonic()
        figures = run.figures(name)
        setting = f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.machine()}, "
        setting += f"{time.monotonic() - begin:.0f} s"
        record["sections"][name] = {"setting": setting, "figures": [figure._asdict() for figure in figures]}
        met = met and all(figure.met for figure in figures)
        if file and out:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            out.with_suffix(".md").write_text(markdown(record), encoding="utf-8")
    typer.echo(markdown(record))
    raise typer.Exit(0 if met else 1)


if __name__ == "__main__":
    typer.run(main)
