"""What labels and samples of queries can tell apart; what `eval/experiments.py` runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from prism.errors import InputError
from prism.files.label_files import LabelFile
from prism.measures.statistics import compare_paired
from prism.reports.blocks import Section
from prism.reports.report import Report, command_line, versions
from prism.types import Run
from studies import monte_carlo as mc
from studies.experiments import detectable_effect, paired_errors, query_errors, sdcg_of_run
from studies.recorded import Recorded, read_labelled_run, read_recorded
from studies.sampling_plan import plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPERIMENTS = 1000
PAPER = "arXiv:2509.03764"
PUBLISHED = (
    ("Kendall's tau, model and human labels, United States", "0.652"),
    ("Spearman's rho, the same", "0.817"),
    ("query-level error of sDCG@25, mean", "0.005"),
    ("minimum detectable effect before (human labels, simple sample)", "1.3 to 1.5 %"),
    ("minimum detectable effect after (model labels, strata, Neyman)", "at most 0.25 %"),
)
NOTES = (
    "z_beta: with beta as the error of the second kind (the usual reading) z_beta is -0.84 and the formula names an"
    " effect that is found one time in five, not four in five. It must be the quantile of the power, +0.84.",
    "sqrt(2 s^2 / n) holds for two independent groups of n queries each with one variance. Treatment and control shown"
    " for the same queries are paired: sqrt(2 s^2 (1 - rho) / n). With rho 0.8 the printed form asks for five times the"
    " queries. With unequal variances it promises more power than there is.",
    "For a stratified sample s^2 / n is not the variance of the estimate: use the stratified standard error. The plain"
    " mean of a Neyman sample is biased towards the strata drawn more, whatever its interval says.",
    "The effect is relative to the mean, and the mean depends on the label scale: with labels 1 to 5 sDCG lies in"
    " [0.2, 1], with 0 to 4 over 4 in [0, 1]. The same experiment then has different MDEs in percent.",
    "The normaliser of sDCG runs to K however few results there are: a page with fewer than K results cannot reach 1,"
    " and with labels from 1 a useless extra result raises the value.",
    "1 - alpha/2 means two-sided. A gate that looks at one side only would use 1 - alpha and report an effect 11 %"
    " smaller (2.49 in place of 2.80 standard errors).",
    "An interval from model labels covers sampling, not the model's bias: the mean query-level error does not shrink"
    " with more queries. Next to an error of 0.005 (0.7 % of a value of 0.7, say) an MDE of 0.25 % can only mean"
    " differences in which the bias is shared and cancels. It does not for a judge related to one of the rankings.",
    "From 1.4 % to 0.25 % the standard error has to fall 5.6 times, the variance 31 times: strata alone would need to"
    " explain 97 % of the variance between queries; otherwise most of the gain is more queries.",
)


class Inputs:
    """What is compared: two rankings, human labels, and judges."""

    def __init__(
        self, labels: Recorded, judges: Sequence[LabelFile], runs: tuple[Run, Run], names: tuple[str, str], top: int
    ) -> None:
        self.human, self.judges, self.off, self.top = labels.people, judges, labels.off, top
        self.control, self.treatment = runs
        self.names = names


def load(
    folder: Path | None, human: Path | None, model: Sequence[Path], runs: Sequence[Path | None], top: int
) -> Inputs:
    """Reads and checks everything. Raises InputError or DataError."""
    labels = read_recorded(folder, human, model, top)
    people, judges = labels.people, labels.judges
    if (runs[0] is None) != (runs[1] is None):
        raise InputError("--control and --treatment go together: pass both, or none")
    if runs[0] is not None and runs[1] is not None:
        names = (runs[0].stem, runs[1].stem)
        compared = read_labelled_run(runs[0], people), read_labelled_run(runs[1], people)
        return Inputs(labels, judges, compared, names, top)
    if len(judges) < 3:
        raise InputError(
            "without --control and --treatment two judges rank and a third judges: pass at least 3 --model"
        )
    control, treatment = (_ranked(judge, people) for judge in (judges[0], judges[-1]))
    return Inputs(labels, judges[1:-1], (control, treatment), (judges[0].name, judges[-1].name), top)


def _ranked(judge: LabelFile, people: LabelFile) -> Run:
    """Each query's documents by this judge's labels; equal labels by document id."""
    found: dict[str, list[tuple[int, str]]] = {}
    for (query, document), label in judge.labels.items():
        if (query, document) in people.labels:
            found.setdefault(query, []).append((-label, document))
    return {query: [document for _, document in sorted(rows)] for query, rows in found.items()}


def _qrels(file: LabelFile) -> dict[str, dict[str, int]]:
    """Query -> document -> label."""
    found: dict[str, dict[str, int]] = {}
    for place, label in file.labels.items():
        found.setdefault(place.query, {})[place.document] = label
    return found


# --- model labels against human labels -------------------------------------------------------------------------------


def compare_labels(inputs: Inputs, k: int, section: Section) -> dict[str, Any]:
    """Errors of groups and of paired differences, judge by judge."""
    people = _qrels(inputs.human)
    human = tuple(sdcg_of_run(people, run, k, inputs.top) for run in (inputs.treatment, inputs.control))
    common = [query for query in human[0] if query in human[1]]
    if len(common) < 2:
        raise InputError(f"fewer than 2 queries have human labels for the first {k} of both rankings: lower --k")
    truth = compare_paired([human[0][q] for q in common], [human[1][q] for q in common])
    rows, data = [], {}
    for judge in inputs.judges:
        labels, off = _qrels(judge), inputs.off.get(judge.name, [])
        if off:
            section.warn(f"{off[0]}: label off the scale 0 to {inputs.top} ({len(off)} in all): left out.")
        model = tuple(sdcg_of_run(labels, run, k, inputs.top) for run in (inputs.treatment, inputs.control))
        single, paired = query_errors(model[1], human[1]), paired_errors((model[0], model[1]), (human[0], human[1]))
        both = [query for query in common if query in model[0] and query in model[1]]
        said = compare_paired([model[0][q] for q in both], [model[1][q] for q in both])
        agrees = said.difference * truth.difference > 0
        data[judge.name] = {"single": single, "paired": paired, "effect": said, "off_scale": off}
        errors = (*_four(single), *_four(paired))
        rows.append([judge.name, single.queries, *errors, said.difference, "same" if agrees else "other"])
    four = ["mean", "P10", "median", "P90"]
    columns = ["judge", "queries", *(f"one group {f}" for f in four), *(f"difference {f}" for f in four)]
    low, high = truth.interval
    section.text(
        f"sDCG@{k} over labels 0 to {inputs.top}; error: judge minus people, per query. By people the treatment"
        f" ({inputs.names[1]}) is {truth.ours:.3f}, the control ({inputs.names[0]}) {truth.other:.3f}: difference"
        f" {truth.difference:+.4f} (95 % {low:+.4f} to {high:+.4f}, {truth.queries} queries)."
    )
    section.table(
        [*columns, "effect", "sign"], rows, caption="Query-level error, and the effect each judge reports", digits=3
    )
    section.figure(
        "errors", lambda figure: _draw_errors(figure, data), size=(7.6, 5.2),
        alt="Per judge, P10, median and P90 of the query-level error for one group and for paired differences.",
        caption="Does the bias cancel in differences? Not for judges that are relatives of one of the rankings",
    )  # fmt: skip
    section.note(
        "A judge that resembles one of the rankings finds that ranking better than people do. Judge with labels that"
        " had no part in making either ranking."
    )
    mean, spread = truth.other, float(np.std([human[1][q] for q in common], ddof=1))
    rho = float(np.corrcoef([human[0][q] for q in common], [human[1][q] for q in common])[0, 1])
    if mean > 0 and np.isfinite(rho):  # not so when a ranking has one value for all queries
        _plan(section, mean, spread, rho)
    return {"human": truth, "judges": data, "mean": mean, "deviation": spread, "correlation": rho}


def _four(errors: Any) -> tuple[float, float, float, float]:
    return errors.mean, errors.p10, errors.median, errors.p90


def _plan(section: Section, mean: float, spread: float, rho: float) -> None:
    rows = [
        [n, 100 * detectable_effect(mean, spread, n), 100 * detectable_effect(mean, spread, n, correlation=rho)]
        for n in (25, 300, 1000, 5000, 20_000)
    ]
    section.table(
        ["queries", "two groups, %", "paired, %"], rows, digits=2,
        caption=f"Minimum detectable effect at 80 % power for the human values above (s {spread:.3f}, rho {rho:.2f})",
    )  # fmt: skip


def _draw_errors(figure: Figure, data: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    for shift, kind in ((-0.15, "single"), (0.15, "paired")):
        rows = [values[kind] for values in data.values()]
        places = np.arange(len(rows)) + shift
        middle = np.array([row.median for row in rows])
        ends = np.array([[row.median - row.p10 for row in rows], [row.p90 - row.median for row in rows]])
        axes.errorbar(
            middle, places, xerr=ends, fmt="o", ms=4, label={"single": "one group", "paired": "difference"}[kind]
        )
    axes.axvline(0.0, lw=0.8, ls="--")
    axes.set_yticks(range(len(data)), list(data))
    axes.set_xlabel("judge minus people")
    axes.legend()


# --- sampling plan for the user's own queries ------------------------------------------------------------------------


def labelled_values(inputs: Inputs | None, k: int) -> tuple[dict[str, float], dict[str, float]]:
    """Query -> sDCG@K by people, of treatment and control; empty without labels."""
    if inputs is None:
        return {}, {}
    labels = _qrels(inputs.human)
    treatment, control = (sdcg_of_run(labels, run, k, inputs.top) for run in (inputs.treatment, inputs.control))
    return treatment, control


# --- simulation ------------------------------------------------------------------------------------------------------


def simulate(report: Report, experiments: int, seed: int) -> dict[str, Any]:
    """Coverage, designs, power, segments: the checks of `studies.monte_carlo` as tables."""
    section = report.section("Do the statistics keep their promises?")
    section.text(
        f"{experiments:,} simulated experiments a row; the truth is known. Last columns: the simulation's own noise."
    )
    coverage = list(mc.interval_coverage(experiments, seed))
    section.table(*_checks(coverage), caption="Coverage of 95 % intervals of a mean", digits=3)
    made = mc.designs(experiments, seed=seed)
    rows: list[list[Any]] = [[d.name, d.deviation, d.mean_standard_error, d.bias, d.coverage.seen] for d in made]
    columns = [
        "600 of 20,000 queries drawn by",
        "deviation of the estimate",
        "said of itself",
        "bias",
        "coverage of 95 %",
    ]
    section.table(columns, rows, caption="Sampling designs on one population of 12 strata", digits=4)
    power = list(mc.power_of_detectable_effect(experiments, seed=seed))
    section.table(*_checks(power), caption="Effects as large as the minimum detectable effect: share found", digits=3)
    section.figure(
        "power", lambda figure: _draw_power(figure, power),
        alt="Share of experiments that found the effect: 0.8 where the formula fits the design, elsewhere not.",
        caption="Power promised and seen",
    )  # fmt: skip
    found = mc.segment_discoveries(max(20, experiments // 5), seed)
    rows = [[f.rule, f.false_share, f.power] for f in found]
    section.table(
        ["rule at 5 %", "false among found", "true effects found"],
        rows,
        caption="20 segments, 4 with an effect",
        digits=3,
    )
    return {"coverage": coverage, "designs": list(made), "power": power, "segments": list(found)}


def _checks(checks: Sequence[mc.Check]) -> tuple[list[str], list[list[Any]]]:
    rows: list[list[Any]] = [[c.name, c.promised, c.seen, c.low, c.high] for c in checks]
    return ["experiment", "promised", "seen", "low", "high"], rows


def _draw_power(figure: Figure, checks: Sequence[mc.Check]) -> None:
    axes = figure.subplots()
    places = np.arange(len(checks))[::-1]
    axes.barh(places, [check.seen for check in checks], height=0.5, label="seen")
    axes.plot([float(check.promised or 0.0) for check in checks], places, "d", color="C1", label="promised")
    axes.set_yticks(places, [check.name for check in checks])
    axes.set_xlabel("share of experiments with p <= 0.05")
    axes.legend()


# --- report ----------------------------------------------------------------------------------------------------------


def run(
    inputs: Inputs | None, queries: Path | None, k: int, total: int, limit: int | None, seed: int, out: Path
) -> Path:
    """Measures everything and writes the report; returns its path."""
    report = Report(
        "Measuring experiments with labels", command=command_line(), versions=versions("scipy", "statsmodels", "numpy")
    )
    data: dict[str, Any] = {"seed": seed}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("experiments", total=3)
        if inputs is not None:
            if limit is not None:
                inputs.judges = inputs.judges[:limit]
            data["labels"] = compare_labels(inputs, k, report.section("Model labels against human labels"))
        if queries is not None:
            section = report.section("Which queries to label")
            data["plan"] = plan(queries, total, labelled_values(inputs, k), seed=seed, section=section, out=out)
        progress.advance(task)
        data["simulation"] = simulate(report, limit or EXPERIMENTS, seed)
        progress.advance(task)
        speed = mc.bootstrap_speed(seed=seed)
        progress.advance(task)
    section = report.section("Speed")
    section.table(
        ["bootstrap of 300 queries, 10,000 samples", "CPU seconds"],
        [
            ["vectorised", speed.vectorised_s],
            ["Python loop", speed.loop_s],
            ["loop over samples, each drawn and added in C", speed.drawn_in_c_s],
            ["Python loop over vectorised, ratio", speed.ratio],
        ],
    )
    data["speed"] = {**speed.model_dump(), "ratio": speed.ratio}
    section = report.section("Published figures and what their formulas leave open")
    section.table(
        ["published", "value"], list(PUBLISHED), caption=f"Reference ({PAPER}); labels and queries not public"
    )
    for note in NOTES:
        section.note(note)
    report.lead(
        f"Bootstrap {speed.ratio:.0f} times as fast as a loop; {len(NOTES)} remarks on the published formulas below."
    )
    return report.write(out, data)
