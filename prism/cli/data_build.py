"""`prism data fit`, `transform`, `balance`, `mix`, `split`, `leakage`, `build`: from scored pairs to training files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prism.cli.data import (
    AllDocuments,
    Bad,
    BeirSplit,
    Out,
    Overlap,
    QuerySimilarity,
    RecordsFile,
    Seed,
    Splits,
    YesFrom,
    app,
    finish,
    writable_output,
)
from prism.files.jsonl import Drops, WrittenFile, read_pairs, read_rows, write_rows, write_stage_report
from prism.outputs import writable_file, writable_folder, write_text
from prism.reports.bar import progress

if TYPE_CHECKING:
    from prism.data.card import Rules
    from prism.data.leakage import LeakageCheck


@app.command()
def fit(
    scores: Annotated[Path, typer.Argument(help="JSONL with teacher_score, as `prism data score` writes it.")],
    labels: Annotated[Path, typer.Argument(help="JSONL with label (or verdict) for some of the same pairs.")],
    yes_from: YesFrom = None,
    out: Annotated[Path | None, typer.Option(help="Also write the fit as JSON.", callback=writable_file)] = None,
    samples: Annotated[int, typer.Option(min=10, help="Bootstrap samples of the queries.")] = 500,
    seed: Seed = 0,
    on_bad: Bad = "fail",
) -> None:
    """Fit the power p for which `teacher_score ** p >= 0.5` agrees best with the labels.

    Use it as `prism data build --power P`. The order of the scores does not change.
    """
    from prism.data.assemble import labelled_scores
    from prism.data.transform import fit_power

    drops = Drops()
    found = list(labelled_scores(scores, labels, yes_from, drops, on_bad))
    fitted = fit_power([f[0] for f in found], [f[1] for f in found], [f[2] for f in found], samples=samples, seed=seed)
    low, high = fitted.interval
    typer.echo(
        f"power {fitted.power:.4f} (95 % {low:.3f} to {high:.3f}): raw {fitted.threshold:.4f} becomes 0.5;"
        f" {fitted.pairs:,} pairs of {fitted.queries:,} queries\n"
        f"kappa with the labels {fitted.kappa:.4f}; untransformed {fitted.kappa_untransformed:.4f},"
        f" with the published 1.609 {fitted.kappa_published:.4f}"
    )
    if out:
        write_text(out, fitted.model_dump_json(indent=2) + "\n")


@app.command()
def transform(
    scores: Annotated[Path, typer.Argument(help="JSONL with teacher_score.")],
    out: Out,
    power: Annotated[float, typer.Option(min=0.01, help="As `prism data fit` found it.")],
    on_bad: Bad = "fail",
) -> None:
    """Raise each teacher_score to a power."""
    from prism.data.transform import transformed

    drops = Drops()
    written = write_rows(out, transformed(read_rows(scores, drops, on_bad), power, drops, on_bad))
    finish(write_stage_report(out, "transform", [scores], drops, records=written.records, power=power), out, written)


@app.command()
def balance(
    records: RecordsFile,
    out: Out,
    total: Annotated[int | None, typer.Option(min=1, help="Leave about this many records, at most.")] = None,
    cap: Annotated[int | None, typer.Option(min=1, help="Or: leave at most this many in each cell.")] = None,
    on_bad: Bad = "fail",
) -> None:
    """Even out teacher scores and document lengths: every cell of score x length is cut down to the same size."""
    from prism.data.balance import balance_file

    drops = Drops()
    rows, cells = balance_file(records, drops, on_bad, total=total, cap=cap)
    written = write_rows(out, rows)
    finish(write_stage_report(out, "balance", [records], drops, records=written.records, **cells), out, written)


@app.command()
def mix(
    out: Out,
    files: Annotated[list[str], typer.Argument(help="FILE or FILE=WEIGHT, at least one.")],
    total: Annotated[
        int | None, typer.Option(min=1, help="Records in all; short files repeat. Default: until one file is used up.")
    ] = None,
    seed: Seed = 0,
    on_bad: Bad = "fail",
) -> None:
    """Mix files in given proportions, each in a random order of its own."""
    from prism.data.mixing import mix, parse_weights

    drops = Drops()
    weights = parse_weights(files)
    written = write_rows(out, mix(weights, total, seed, drops, on_bad))
    finish(write_stage_report(out, "mix", list(weights), drops, records=written.records), out, written)


@app.command()
def split(
    records: RecordsFile,
    folder: Annotated[Path, typer.Argument(help="Where NAME.jsonl of each split goes.", callback=writable_folder)],
    splits: Splits = "train=0.95,dev=0.05",
    salt: Annotated[str, typer.Option(help="Another salt, another split.")] = "",
    on_bad: Bad = "fail",
) -> None:
    """Split by query: all records of a query fall on one side, the same in every file and run."""
    from prism.data.splits import parse_shares, split_file

    drops = Drops()
    counts = split_file(records, folder, parse_shares(splits), salt, drops, on_bad)
    for name, count in counts.items():
        finish(
            write_stage_report(folder / f"{name}.jsonl", "split", [records], drops, records=count),
            folder / f"{name}.jsonl",
        )


@app.command()
def leakage(
    records: RecordsFile,
    evaluation: Annotated[list[Path], typer.Argument(help="BEIR folders, or JSONL with query, document or text.")],
    out: Annotated[
        Path | None, typer.Option(help="Write the records that do not leak.", callback=writable_output)
    ] = None,
    query_similarity: QuerySimilarity = 90.0,
    overlap: Overlap = 0.5,
    beir_split: BeirSplit = "test",
    all_documents: AllDocuments = False,
    on_bad: Bad = "fail",
) -> None:
    """Find records whose query or document is, or nearly repeats, one of an evaluation set.

    Exit code 1 if any does, with and without --out.
    """
    from prism.data.leakage import LeakageCheck, clean_rows, read_evaluation

    drops, leaks = Drops(), Drops()
    texts = read_evaluation(evaluation, drops, beir_split, not all_documents)
    check = LeakageCheck(texts, query_similarity, overlap)
    rows = clean_rows(read_pairs(records, drops, on_bad), check, leaks)
    with progress("checking", None):
        written = write_rows(out, rows) if out else WrittenFile(sum(1 for _ in rows), False)
    leaks.counts.update(drops.counts)
    leaks.places.update(drops.places)
    typer.echo(f"checked against {len(texts.queries):,} queries and {len(texts.documents):,} documents", err=True)
    if out:
        finish(write_stage_report(out, "leakage", [records, *evaluation], leaks, records=written.records), out, written)
    else:
        finish({"records": written.records, "dropped": leaks.report()}, records)
    if any(reason.startswith("leakage") for reason in leaks.counts):
        raise typer.Exit(1)


Labels = Annotated[Path, typer.Argument(help="Labelled pairs: label or verdict, votes, vote_share.")]
Folder = Annotated[
    Path,
    typer.Argument(help="Where train.jsonl, dev.jsonl, dropped.jsonl and the card go.", callback=writable_folder),
]
Scores = Annotated[Path | None, typer.Option(help="Pairs with teacher_score (`prism data score`).")]
Targets = Annotated[Path | None, typer.Option(help="Pairs with contribution and evidence.")]
MinMajority = Annotated[float, typer.Option(min=0, max=1, help="Share of votes a verdict needs.")]
Power = Annotated[float, typer.Option(min=0.01, help="teacher_score ** POWER, from `prism data fit`.")]
Fit = Annotated[Path | None, typer.Option(help="The power from the file that `prism data fit --out` wrote.")]
Salt = Annotated[str, typer.Option(help="Another salt, another split.")]
BalanceTotal = Annotated[int | None, typer.Option(min=1, help="Balance score x length down to this many.")]
RequireTargets = Annotated[bool, typer.Option("--require-targets", help="Drop a yes without texts.")]
Evaluation = Annotated[
    list[Path] | None, typer.Option(help="Leave out what touches this set (BEIR folder or JSONL); repeatable.")
]


@app.command()
def build(
    labels: Labels,
    folder: Folder,
    scores: Scores = None,
    targets: Targets = None,
    yes_from: YesFrom = None,
    min_majority: MinMajority = 0.0,
    power: Power = 1.0,
    fit: Fit = None,
    splits: Splits = "train=0.95,dev=0.05",
    salt: Salt = "",
    balance_total: BalanceTotal = None,
    require_targets: RequireTargets = False,
    evaluation: Evaluation = None,
    query_similarity: QuerySimilarity = 90.0,
    overlap: Overlap = 0.5,
    beir_split: BeirSplit = "test",
    all_documents: AllDocuments = False,
    on_bad: Bad = "fail",
) -> None:
    """Join labels, teacher scores and written targets into training files, with a data card.

    Each record gets its `losses`: distil and sft where the teacher's side of 0.5 is the panel's verdict, sft alone
    where they disagree or there is no teacher score.
    """
    from prism.data.assemble import build_training_data
    from prism.data.card import Sources

    check = _leakage(evaluation, beir_split, not all_documents, query_similarity, overlap)
    majority = {"yes_from": yes_from, "min_majority": min_majority, "require_targets": require_targets}
    rules = _rules(fit, power, splits, salt=salt, balance_total=balance_total, **majority)
    sources = Sources(labels=labels, scores=scores, targets=targets)
    card = build_training_data(sources, rules, folder, leakage=check, on_bad=on_bad)
    for name, counts in card["splits"].items():
        finish({"records": counts["yes"] + counts["no"], "dropped": {}}, folder / f"{name}.jsonl")
    finish({"records": card["labels_read"], "dropped": card["dropped"]}, labels)
    typer.echo(f"what is in it: {folder / 'card.md'}")


def _leakage(
    evaluation: list[Path] | None, beir_split: str, judged_only: bool, query_similarity: float, overlap: float
) -> LeakageCheck | None:
    if not evaluation:
        return None
    from prism.data.leakage import LeakageCheck, read_evaluation

    return LeakageCheck(read_evaluation(evaluation, Drops(), beir_split, judged_only), query_similarity, overlap)


def _rules(fit: Path | None, power: float, splits: str, **settings: Any) -> Rules:
    from prism.data.card import Rules
    from prism.data.splits import parse_shares
    from prism.data.transform import read_fit

    return Rules(power=read_fit(fit).power if fit else power, splits=parse_shares(splits), **settings)
