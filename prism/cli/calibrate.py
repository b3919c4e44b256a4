"""`prism calibrate`: what a checkpoint's scores mean as probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from prism.errors import InputError
from prism.files.outputs import writable_folder

Checkpoint = Annotated[str, typer.Argument(help="mini, a checkpoint directory, or a name on the hub.")]
Pairs = Annotated[
    Path, typer.Argument(help="JSONL: query, document, and verdict (yes, no) or label (from 1 on: relevant).")
]
Out = Annotated[
    Path, typer.Option(help="Folder for the report, and for the calibrated checkpoint.", callback=writable_folder)
]
Method = Annotated[Literal["isotonic", "platt"], typer.Option(help="platt for fewer than some hundred pairs.")]
Prior = Annotated[
    float | None,
    typer.Option(help="Share of relevant documents where the model will be used; default: as in the pairs."),
]
InPlace = Annotated[
    bool, typer.Option("--in-place", help="Store into the checkpoint itself, not into a copy under --out.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="A quick look: only the first N pairs.")]


def calibrate(
    checkpoint: Checkpoint,
    pairs: Pairs,
    out: Out,
    method: Method = ("isotonic"),
    prior: Prior = None,
    in_place: InPlace = False,
    limit: Limit = None,
) -> None:
    """Fit what scores mean as probabilities, on half of the queries; report and check it on the other half.

    Writes report.html (reliability diagram, error before and after, precision and recall at cuts, posterior by score)
    and stores the calibration in the `prism.json` of a copy of the checkpoint. Scores and rankings stay as they are.

    Example: prism calibrate mini pairs.jsonl --out calibrated --prior 0.1
    """
    from prism.evaluation.calibrating import measure, read_pairs, store, target_of, write_report
    from prism.reranker import Reranker

    if prior is not None and not 0.0 < prior < 1.0:
        raise InputError(f"--prior is a share between 0 and 1, got {prior}")
    target = target_of(checkpoint, out, in_place)
    found = read_pairs(pairs, limit)
    with Reranker.load(checkpoint) as reranker:
        result = measure(reranker, found, method, prior)
    report = write_report(result, checkpoint, out)
    store(target[0], target[1], result.calibration)
    typer.echo(f"calibration error {result.before[0]:.4f} before, {result.after[0]:.4f} after (held-out queries)")
    typer.echo(f"{report}\n{target[1]}")
