"""What a checkpoint's scores mean: fitted on labelled pairs, checked on others, stored."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prism.errors import CheckpointError, DataError, InputError
from prism.files.ids import QUERY_IDS, id_in
from prism.files.jsonl import Drops, Row, read_rows, require_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prism.evaluation.ranking import QueryReranker
    from prism.measures.calibration import Bin, Cut
    from prism.scoring import Calibration
    from prism.types import Document


class Labelled(NamedTuple):
    """One line of the pairs file."""

    query: str
    group: str
    """What keeps a query on one side of the split: its id, or its text."""
    document: Document
    relevant: bool


class Scored(NamedTuple):
    """Scores and labels of some pairs."""

    scores: list[float]
    relevant: list[bool]


class Result(NamedTuple):
    """Everything measured. Before: the score itself as a probability. All on held-out queries."""

    calibration: Calibration
    fitted: Scored
    held: Scored
    before: tuple[float, float, tuple[Bin, ...]]
    """Calibration error, Brier score, reliability."""
    after: tuple[float, float, tuple[Bin, ...]]
    cuts: Mapping[str, Cut]
    prior: float
    failures: int


def read_pairs(path: Path, limit: int | None = None) -> list[Labelled]:
    """Labelled pairs. Raises DataError naming file and line at the first one that is not."""
    rows = [_pair(line.row, line.place) for line in read_rows(path, Drops())]
    if not rows:
        raise DataError(f"{path}: no pairs: expected JSONL lines with query, document, and verdict or label")
    return rows[:limit]


def _pair(row: Row, where: str) -> Labelled:
    query, document = (require_text(row, name, where) for name in ("query", "document"))
    verdict, label = row.get("verdict"), row.get("label")
    if verdict in ("yes", "no"):
        relevant = verdict == "yes"
    elif isinstance(label, int | float) and 0 <= label <= 9:  # true and false are labels here
        relevant = label >= 1
    else:
        raise DataError(
            f"{where}: expected verdict yes or no, or a label from 0 to 9, got {str(verdict or label)[:40]!r}"
        )
    title = row.get("title")
    from prism.types import Document

    read = Document(text=document, id=where, title=title if isinstance(title, str) else None)
    return Labelled(query, id_in(row, QUERY_IDS, where) or query, read, relevant)


def held_out(group: str) -> bool:
    """Half of the queries, by a hash of their id: the same ones whatever else is in the file."""
    return hashlib.blake2b(group.encode("utf-8", "replace"), digest_size=1).digest()[0] % 2 == 1


def measure(
    reranker: QueryReranker,
    pairs: Sequence[Labelled],
    method: Literal["isotonic", "platt"],
    prior: float | None = None,
) -> Result:
    """Score, split by query, fit on one half, measure on the other. Raises InputError when a half lacks a label."""
    from prism.measures import calibration as fitting

    sides, failures = _scored(reranker, pairs)
    for name, side in zip(("fitting", "held-out"), sides, strict=True):
        if len(set(side.relevant)) < 2:
            raise InputError(
                f"the {name} half has {sum(side.relevant)} relevant of {len(side.relevant)} pairs: more queries"
            )
    fitted, held = sides
    calibration = fitting.fit(fitted.scores, fitted.relevant, method)
    said = [calibration.probability(score) for score in held.scores]

    def errors(probabilities: Sequence[float]) -> tuple[float, float, tuple[Bin, ...]]:
        given = probabilities, held.relevant
        return fitting.calibration_error(*given), fitting.brier(*given), fitting.reliability(*given)

    proposed = fitting.propose_cuts(fitted.scores, fitted.relevant)
    now = prior or calibration.prior
    cuts = fitting.at_cuts(held.scores, held.relevant, list(proposed.values()), calibration, now)
    named = dict(zip(proposed, cuts, strict=True))
    return Result(calibration, fitted, held, errors(held.scores), errors(said), named, now, failures)


def _scored(reranker: QueryReranker, pairs: Sequence[Labelled]) -> tuple[tuple[Scored, Scored], int]:
    from rich.progress import track

    by_query: dict[str, list[Labelled]] = {}
    for pair in pairs:
        by_query.setdefault(pair.query, []).append(pair)
    sides, failures = (Scored([], []), Scored([], [])), 0
    for query, rows in track(by_query.items(), "scoring", transient=True):
        for judgment in reranker.rerank(query, [row.document for row in rows], evidence=False).judgments:
            row = rows[judgment.index]
            if judgment.score is None:
                failures += 1
                continue
            side = sides[held_out(row.group)]
            side.scores.append(judgment.score)
            side.relevant.append(row.relevant)
    return sides, failures


# --- storing ---------------------------------------------------------------------------------------------------------


def target_of(checkpoint: str, out: Path, in_place: bool) -> tuple[Path, Path]:
    """(where the checkpoint is, where the calibrated one goes)."""
    from prism.checkpoint import CONFIG_NAME, MINI

    source = MINI if checkpoint == "mini" else Path(checkpoint)
    if not (source / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{checkpoint} has no {CONFIG_NAME} to store a calibration in: give a local Prism checkpoint"
        )
    target = source if in_place else out / "checkpoint"
    if not in_place and target.exists():
        raise InputError(f"{target} is there already: choose another --out, or move it away")
    return source, target


def store(source: Path, target: Path, calibration: Calibration) -> None:
    """Put the calibration into `prism.json` of `target`, a copy of `source` unless they are one. All or nothing."""
    from prism.checkpoint import CONFIG_NAME, PrismConfig

    if target != source:
        part = target.with_name(target.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source, part)
        part.replace(target)
    path = target / CONFIG_NAME
    config = PrismConfig.model_validate_json(path.read_bytes()).model_copy(update={"calibration": calibration})
    new = path.with_name(path.name + ".part")
    new.write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    new.replace(path)


# --- report ----------------------------------------------------------------------------------------------------------


def write_report(result: Result, checkpoint: str, out: Path) -> Path:
    """report.html, report.md, report.json; returns the path of the first."""
    from prism.reports.report import Report, command_line, versions

    calibration = result.calibration
    report = Report(
        f"What the scores of {Path(checkpoint).name} mean", command=command_line(), versions=versions("scikit-learn")
    )
    report.lead(
        f"Calibration error on held-out queries: {result.before[0]:.4f} for the score itself, {result.after[0]:.4f}"
        f" after {calibration.method} calibration on {calibration.pairs} pairs."
    )
    section = report.section("Before and after")
    rows: list[list[Any]] = [["score as it is", *result.before[:2]], [f"after {calibration.method}", *result.after[:2]]]
    section.table(["probability", "calibration error", "Brier score"], rows, best={"Brier score": "min"})
    section.text(
        f"{len(result.fitted.scores)} pairs to fit ({calibration.prior:.1%} relevant), {len(result.held.scores)} held"
        f" out; queries are on one side only. {result.failures} pairs could not be scored. Bins of equal mass."
    )
    section.figure(
        "reliability", lambda figure: _diagram(figure, result), size=(6.4, 4.8),
        alt="Share of relevant pairs against the probability said, before and after; the diagonal is perfect.",
        caption="Reliability on held-out queries, 95 % intervals",
    )  # fmt: skip
    section = report.section(f"Cuts where {result.prior:.1%} of the documents are relevant")
    rows = [[n, c.score, c.precision, c.recall, c.passing, c.posterior] for n, c in result.cuts.items()]
    columns = ["chosen for", "score", "precision", "recall", "share passing", "posterior at the cut"]
    section.table(columns, rows, caption="Chosen on the fitting half, measured on the other", digits=3)
    priors = sorted({0.01, 0.1, 0.3, round(result.prior, 4)})
    rows = [
        [f"{s:.2f}", *(calibration.probability(s, p) for p in priors)] for s in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
    ]
    section.table(
        ["score", *(f"prior {p:.2%}" for p in priors)], rows, caption="Posterior of relevance by score", digits=3
    )
    section.note(
        "Another prior moves probabilities by Saerens et al. (2002): right if relevant documents score alike in both"
        " places and irrelevant ones too. Harder negatives break that: then calibrate on pairs from there."
    )
    data = result._replace(fitted=Scored([], []), held=Scored([], []))._asdict()
    return report.write(out, data)


def _diagram(figure: Figure, result: Result) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ls="--", lw=0.8)
    for name, bins in (("score as it is", result.before[2]), (f"after {result.calibration.method}", result.after[2])):
        shares = [one.relevant for one in bins]
        below = [max(0.0, one.relevant - one.low) for one in bins]
        above = [max(0.0, one.high - one.relevant) for one in bins]
        axes.errorbar([b.probability for b in bins], shares, yerr=[below, above], fmt="o-", ms=4, lw=1, label=name)
    axes.set_xlabel("probability said")
    axes.set_ylabel("share relevant")
    axes.legend()
