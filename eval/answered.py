"""Is it answered? Coverage, risk and promised error rates of `answerable`, and whether they hold on other questions.

    python eval/answered.py --model mini --scores scores.sqlite pairs.jsonl

Pairs as `prism calibrate` takes them, scored once (`--scores` keeps them): half of the questions fit, a quarter
promises, a quarter checks. Then questions from elsewhere: the everyday ones, written as traps, by the scores that
`eval/everyday.py` has recorded, as they were asked and with the document that answers taken out. With `--data` the four
error rates of comparing passages (`eval/passage_compare.py`) stand beside them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from prism.answer_check import AnswerFit
from prism.checkpoint import Checkpoint
from prism.errors import PrismError
from prism.evaluation.answer_sets import COVERAGES, SetReport, check_bound
from prism.evaluation.calibrating import KeptScores, fit_and_measure, read_labelled_pairs, score_pairs
from prism.evaluation.calibration_report import curve_lines, formula
from prism.measures.calibration import quality
from prism.measures.selective import at_coverages, outcomes, risk_area, risk_coverage
from prism.measures.set_fit import ScoredSet
from prism.outputs import write_text
from prism.reports.report import command_line, versions
from prism.reranker import Reranker
from prism.score_version import scores_part
from studies.everyday import read_questions
from studies.passage_errors import count_all, table

HERE = Path(__file__).parent
QUALITY = ["| probability | calibration error | Brier score | mean risk |", "|---|---|---|---:|"]


def main(
    pairs: Annotated[Path, Argument(exists=True, dir_okay=False, help="JSONL: query, document, verdict or label.")],
    scores: Annotated[Path, Option(help="Where the pairs' scores are kept.")],
    model: Annotated[str, Option(help="mini, or a local checkpoint.")] = "mini",
    everyday: Annotated[Path, Option(help="Report of eval/everyday.py.")] = HERE / "results/everyday/report.json",
    method: Annotated[Literal["isotonic", "platt"], Option(help="How scores of pairs are fitted.")] = "platt",
    data: Annotated[
        Path | None, Option(help="Data folder with pairs/: prints the errors of comparing passages too.")
    ] = None,
    out: Annotated[Path, Option(help="Folder for report.json and report.md.")] = HERE / "results/answered",
) -> None:
    """Print the coverage curve and the promises, on held-out questions and on the everyday ones."""
    try:
        rows = read_labelled_pairs(pairs)
        with Reranker.load(model) as reranker:
            judged, failures = score_pairs(
                reranker, rows, KeptScores(scores, scores_part(reranker.score_version or ""))
            )
        result = fit_and_measure(judged, method, failures=failures)
        stored = Checkpoint.load(model).config
        asked, taken = read_everyday(everyday, model)
    except PrismError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    found = result.sets
    if isinstance(found, str):
        print(f"error: {found}", file=sys.stderr)
        raise typer.Exit(2)
    fits = {
        "stored in prism.json": AnswerFit(stored.calibration, stored.answering),
        "best document's": AnswerFit(result.calibration),
        "of the set": AnswerFit(result.calibration, found.answering),
    }
    body: dict[str, Any] = {"command": command_line(), "versions": versions("scikit-learn"), "pairs": result._asdict()}
    body["pairs"] |= {"sets": found.model_dump(mode="json"), "worse": result.worse}
    body["pairs"] |= {name: body["pairs"][name].model_dump(mode="json") for name in ("calibration", "before", "after")}
    body["pairs"]["cuts"] = {name: cut.model_dump(mode="json") for name, cut in result.cuts.items()}
    lines = ["# Is it answered?", "", *_held_out(found), ""]
    for name, sets in (("as asked", asked), ("with and without their document", [*asked, *taken])):
        told, body[f"everyday, {name}"] = _elsewhere(f"Everyday questions, {name}", sets, fits, found)
        lines += [*told, ""]
    if data is not None:
        body["passages"] = count_all(data, limit=150)
        lines += ["## Passages compared", "", *table(body["passages"], kinds=False), ""]
    print("\n".join(lines))
    write_text(out / "report.md", "\n".join([*lines, f"Command: `{command_line()}`", ""]))
    write_text(out / "report.json", json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def _held_out(found: SetReport) -> list[str]:
    return [
        f"{found.held} held-out questions, one set each, {found.unanswered} without the passage that answers. The fit:"
        f" {formula(found)}, on {found.answering.sets} sets of other questions. In brackets 95 % intervals.",
        "",
        *QUALITY,
        f"| best document's | {found.before.calibration_error} | {found.before.brier} | {found.area_before:.3f} |",
        f"| of the set | {found.after.calibration_error} | {found.after.brier} | {found.area_after:.3f} |",
        "",
        "| features | log loss, cross-validated | standard error |",
        "|---|---:|---:|",
        *(f"| {', '.join(one.features)} | {one.log_loss:.4f} | {one.error:.4f} |" for one in found.candidates),
        "",
        *curve_lines(found),
    ]


def read_everyday(path: Path, model: str) -> tuple[list[ScoredSet], list[ScoredSet]]:
    """The questions as asked, and those with an answer once more without it. Scores as recorded."""
    recorded = json.loads(path.read_text(encoding="utf-8"))["models"][model]["questions"]
    answers = {question.id: question.answers for question in read_questions(HERE / "everyday/questions.jsonl")}
    asked, taken = [], []
    for one in recorded:
        scores = {id_: document["score"] for id_, document in one["documents"].items() if "score" in document}
        right = answers[one["id"]]
        asked.append(ScoredSet(one["id"], tuple(scores.values()), bool(right)))
        if right:
            left = tuple(score for id_, score in scores.items() if id_ not in right)
            taken.append(ScoredSet(one["id"], left, False))
    return asked, taken


def _elsewhere(
    title: str, sets: Sequence[ScoredSet], fits: dict[str, AnswerFit], found: SetReport
) -> tuple[list[str], dict[str, Any]]:
    truth, groups = [one.answered for one in sets], [one.group for one in sets]
    lines = [f"## {title}", "", f"{len(sets)} sets, {len(sets) - sum(truth)} without an answer.", "", *QUALITY]
    body: dict[str, Any] = {"sets": len(sets), "answered": sum(truth)}
    for name, fit in fits.items():
        given = outcomes([fit.probability(one.scores) or 0.0 for one in sets], truth)
        good, area = quality(given.confidence, truth, groups), risk_area(given)
        lines.append(f"| {name} | {good.calibration_error} | {good.brier} | {area:.3f} |")
        body[name] = {"quality": good.model_dump(mode="json"), "mean_risk": area}
    checked = [check_bound(one.bound, given) for one in found.bounds]  # of the last: the set's
    curve = at_coverages(risk_coverage(given), COVERAGES)
    body |= {"curve": [point.model_dump() for point in curve], "bounds": [one.model_dump() for one in checked]}
    shown = found.model_copy(update={"curve": curve, "bounds": tuple(checked)})
    return [*lines, "", *curve_lines(shown)], body


if __name__ == "__main__":
    typer.run(main)
