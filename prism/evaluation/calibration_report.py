"""`prism calibrate` as a page, and its coverage curve as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism.evaluation.answer_sets import SetReport
from prism.evaluation.calibrating import Result
from prism.evaluation.yes_from import LEAST_PAIRS, LEAST_QUERIES, LanguageYes, YesFor
from prism.measures.calibration import Quality
from prism.reports.blocks import Section
from prism.reports.report import Report, command_line, versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_calibration_report(
    result: Result,
    checkpoint: str,
    out: Path,
    languages: Mapping[str, LanguageYes] | None = None,
    wanted: YesFor = "kappa",
) -> Path:
    """report.html, report.md, report.json; returns the path of the first."""
    report = Report(
        f"What the scores of {Path(checkpoint).name} mean", command=command_line(), versions=versions("scikit-learn")
    )
    method = result.calibration.method
    report.lead(
        f"Calibration error on held-out queries: {result.before.calibration_error} for the score itself,"
        f" {result.after.calibration_error} after {method} calibration on {result.calibration.pairs} pairs."
    )
    if result.worse:
        report.section("Not stored").warn(f"The fit is no better than none: {result.worse}.")
    _pairs(report.section("Before and after"), result)
    _cuts(report.section(f"Cuts where {result.prior:.1%} of the documents are relevant"), result)
    _languages(report.section("Where a yes begins, by language"), languages or {}, wanted)
    section = report.section("Is it answered?")
    if isinstance(result.sets, str):
        section.text(f"Not measured: {result.sets}.")
    else:
        _sets(section, result.sets)
    return report.write(out, result._asdict() | {"languages": languages or {}})


def _qualities(section: Section, rows: list[tuple[str, Quality]]) -> None:
    cells: list[list[Any]] = [[name, str(one.calibration_error), str(one.brier)] for name, one in rows]
    section.table(["probability", "calibration error", "Brier score"], cells)


def _pairs(section: Section, result: Result) -> None:
    method = f"after {result.calibration.method}"
    _qualities(section, [("score as it is", result.before), (method, result.after)])
    section.text(
        f"{result.fitted} pairs to fit ({result.calibration.prior:.1%} relevant), {result.held} held out; queries are"
        f" on one side only. {result.failures} pairs could not be scored. Bins of equal mass; in brackets 95 %"
        " intervals, bootstrap over queries."
    )
    section.figure(
        "reliability",
        lambda figure: _diagram(figure, {"score as it is": result.before, method: result.after}, "share relevant"),
        size=(6.4, 4.8),
        alt="Share of relevant pairs against the probability said, before and after; the diagonal is perfect.",
        caption="Reliability on held-out queries, 95 % intervals (Wilson)",
    )


def _cuts(section: Section, result: Result) -> None:
    rows: list[list[Any]] = [
        [n, c.score, c.precision, c.recall, c.passing, c.posterior] for n, c in result.cuts.items()
    ]
    columns = ["chosen for", "score", "precision", "recall", "share passing", "posterior at the cut"]
    section.table(columns, rows, caption="Chosen on the fitting half, measured on the other", digits=3)
    priors = sorted({0.01, 0.1, 0.3, round(result.prior, 4)})
    rows = [
        [f"{s:.2f}", *(result.calibration.probability(s, p) for p in priors)]
        for s in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
    ]
    section.table(
        ["score", *(f"prior {p:.2%}" for p in priors)], rows, caption="Posterior of relevance by score", digits=3
    )
    section.note(
        "Another prior moves probabilities by Saerens et al. (2002): right if relevant documents score alike in both"
        " places and irrelevant ones too. Harder negatives break that: then calibrate on pairs from there."
    )


def _languages(section: Section, languages: Mapping[str, LanguageYes], wanted: YesFor) -> None:
    if not languages:
        section.text(
            f"Not measured: no language has {LEAST_PAIRS} pairs of either label, of {LEAST_QUERIES} queries, in both"
            " halves."
        )
        return
    section.table(YES_COLUMNS, yes_rows(languages, wanted), caption=YES_CAPTION, digits=3)


YES_COLUMNS = ["language", "pairs", "yes from", "precision", "recall", "noes called yes", "kappa", "F1", "gain"]
YES_CAPTION = (
    "With the checkpoint's threshold, and with the best on the fitting half; measured on the other. Gain: 95 % interval"
    " over its queries; one that is not above zero is no reason for another threshold"
)


def yes_rows(languages: Mapping[str, LanguageYes], wanted: YesFor) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for name, found in languages.items():
        gain = "" if found.gain is None else f"{found.gain[0]:+.3f} to {found.gain[1]:+.3f}"
        for said, one, gained in ((name, found.before, ""), (f"{name}, by {wanted}", found.after, gain)):
            cells = (one.threshold, one.precision, one.recall, one.false_yes, one.kappa, one.f1) if one else (None,) * 6
            rows.append([said, found.held, *cells, gained if one else "no such cut"])
    return rows


# --- sets ------------------------------------------------------------------------------------------------------------


def _sets(section: Section, found: SetReport) -> None:
    if found.worse:
        section.warn(f"Not stored, since it is no better than the best document alone: {found.worse}.")
    section.text(
        f"Questions with and without their passage, {found.held} held out, one set each, {found.unanswered} without."
        f" The fit: {formula(found)}, on {found.answering.sets} sets of other questions."
    )
    _qualities(section, [("best document's", found.before), ("of the set", found.after)])
    section.table(
        ["features", "log loss", "standard error"],
        [[", ".join(one.features), one.log_loss, one.error] for one in found.candidates],
        caption="Cross-validated on the fitting questions; chosen: the fewest within a standard error of the best",
        digits=4,
    )
    section.figure(
        "answerable",
        lambda figure: _diagram(figure, {"best document's": found.before, "of the set": found.after}, "share answered"),
        size=(6.4, 4.8),
        alt="Share of sets with an answer against the probability said; the diagonal is perfect.",
        caption="Reliability of answerable on held-out questions, 95 % intervals (Wilson)",
    )
    section.table(
        CURVE,
        curve_rows(found),
        caption="Coverage and risk: the share called answered, and how much of that holds no answer (95 %, Wilson)",
        digits=3,
    )
    section.text(
        f"Mean risk over all coverages: {found.area_after:.4f}; by the best document alone {found.area_before:.4f}."
    )
    section.table(PROMISES, promise_rows(found), caption=PROMISED, digits=3)


CURVE = ["answerable from", "coverage", "called answered", "no answer", "risk", "95 % interval"]
PROMISES = [
    "of the answered unanswered at most",
    "answerable from",
    "where it was found",
    "where it was checked",
    "under",
]
PROMISED = (
    "Promises, each true with probability 0.9 for questions like these, half of them with an answer (Learn then Test);"
    " the last columns are of questions that had no part in them"
)


def curve_rows(found: SetReport) -> list[list[Any]]:
    return [[p.threshold, p.coverage, p.accepted, p.wrong, p.risk, f"{p.low:.3f} to {p.high:.3f}"] for p in found.curve]


def promise_rows(found: SetReport) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for one in found.bounds:
        bound, there = one.bound, one.there
        seen = f"{there.wrong} of {there.accepted} ({there.risk:.3f})" if there else "none called answered"
        rows.append([f"{bound.risk:g}", bound.threshold, f"{bound.wrong} of {bound.called}", seen, one.most])
    return rows


def formula(found: SetReport) -> str:
    terms = [f"{weight:+.3f} {name}" for name, weight in found.answering.weights.items()]
    return f"sigmoid({found.answering.intercept:.3f} {' '.join(terms)})"


def summary(result: Result, languages: Mapping[str, LanguageYes], wanted: YesFor = "kappa") -> Iterator[str]:
    """What the command prints: errors before and after, where a yes begins, coverage curve, promises."""
    before, after = result.before, result.after
    yield f"calibration error {before.calibration_error} before, {after.calibration_error} after (held-out queries)"
    yield f"Brier score {before.brier} before, {after.brier} after"
    if languages:
        yield from ["", *_lines(YES_COLUMNS, yes_rows(languages, wanted)), ""]
    if isinstance(result.sets, str):
        yield f"whether sets are answered was not measured: {result.sets}"
    else:
        yield from ["", *curve_lines(result.sets), ""]


def _lines(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """A Markdown table, its fractions to three places."""
    yield f"| {' | '.join(columns)} |"
    yield "|---:" * len(columns) + "|"
    for row in rows:
        cells = (f"{cell:.3f}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in row)
        yield f"| {' | '.join(cells)} |"


def curve_lines(found: SetReport) -> Iterator[str]:
    """Coverage curve and promises as Markdown tables."""
    yield from _lines(CURVE, curve_rows(found))
    yield ""
    if not found.bounds:
        yield "No error rate up to 0.4 can be promised."
        return
    yield from _lines(PROMISES, promise_rows(found))


def _diagram(figure: Figure, said: dict[str, Quality], share: str) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ls="--", lw=0.8)
    for name, quality in said.items():
        bins = quality.reliability
        shares = [one.relevant for one in bins]
        below = [max(0.0, one.relevant - one.low) for one in bins]
        above = [max(0.0, one.high - one.relevant) for one in bins]
        axes.errorbar([b.probability for b in bins], shares, yerr=[below, above], fmt="o-", ms=4, lw=1, label=name)
    axes.set_xlabel("probability said")
    axes.set_ylabel(share)
    axes.legend()
