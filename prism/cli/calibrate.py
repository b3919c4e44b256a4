"""`prism calibrate`: what a checkpoint's scores mean as probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from prism.cli.models import Dtype
from prism.errors import InputError
from prism.outputs import writable_folder

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
Scores = Annotated[
    Path | None, typer.Option(help="Keep the scores in this file; what it holds already is not scored again.")
]
Threshold = Annotated[
    Literal["kappa", "f1", "precision-0.9", "recall-0.9"] | None,
    typer.Option(
        help="Store where a yes begins, too, for each language with enough pairs: where verdicts agree best with the"
        " labels (kappa), or for another aim."
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="A quick look: only the first N pairs.")]


def calibrate(
    checkpoint: Checkpoint,
    pairs: Pairs,
    out: Out,
    method: Method = ("isotonic"),
    prior: Prior = None,
    threshold: Threshold = None,
    in_place: InPlace = False,
    scores: Scores = None,
    dtype: Dtype = "auto",
    limit: Limit = None,
) -> None:
    """Fit what scores mean as probabilities, on half of the queries; report and check it on the other half.

    Of one document: the probability that it is relevant. Of all documents of a question: that one of them answers, from
    the same scores, with and without what is relevant; printed are how often that is wrong at each coverage, and which
    error rates can be promised. Writes report.html and stores both in the `prism.json` of a copy of the checkpoint,
    with the version of the scores. Scores and rankings stay as they are; verdicts too, unless `--threshold` asks for
    another place where a yes begins. What is no better than none on the held-out half is not stored; where nothing is,
    the exit code is 2.

    Example: prism calibrate mini pairs.jsonl --out calibrated --prior 0.1
    """
    from prism.evaluation.calibrating import (
        AS_IT_IS,
        KeptScores,
        fit_and_measure,
        read_labelled_pairs,
        score_pairs,
        store,
        target_of,
    )
    from prism.evaluation.calibration_report import summary, write_calibration_report
    from prism.evaluation.yes_from import measure_languages, stored_yes
    from prism.reranker import Reranker
    from prism.score_version import scores_part

    if prior is not None and not 0.0 < prior < 1.0:
        raise InputError(f"--prior is a share between 0 and 1, got {prior}")
    source, target = target_of(checkpoint, out, in_place)
    found = read_labelled_pairs(pairs, limit)
    with Reranker.load(checkpoint, dtype=dtype) as reranker:
        version = scores_part(reranker.score_version or "")
        judged, failures = score_pairs(reranker, found, KeptScores(scores, version) if scores else None)
        languages = measure_languages(judged, wanted := threshold or "kappa", reranker.threshold_of)
    result = fit_and_measure(judged, method, prior, failures)
    report = write_calibration_report(result, checkpoint, out, languages, wanted)
    typer.echo("\n".join([*summary(result, languages, wanted), str(report)]))
    typer.echo("\n".join(store(source, target, result, version, stored_yes(languages) if threshold else AS_IT_IS)))
