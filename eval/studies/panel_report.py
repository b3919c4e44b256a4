"""The panel study as a page: what `eval/panel_study.py` computed, in tables, pictures and words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prism.labeling.agreement_plots import confusion_size, draw_confusions, draw_kappas, kappa_size
from prism.labeling.comparison import Agreement
from prism.measures.agreement import Estimate
from prism.reports.blocks import Cell, Section
from prism.reports.report import Report
from studies import aggregation
from studies.panel_study import Asked, Judged, PanelStudy, Seeded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FACTS = {"majority": 0.396, "dawid-skene": 0.412, "mean grade > 1": 0.415}
"""Kappa of the five judges at >= 2, known before this study."""
BEST_SINGLE = 0.428
"""Of the best of the five."""
PUBLISHED_CUTS = {1: "kappa_0|123", 2: "kappa_01|23", 3: "kappa_012|3"}
"""Cut -> column of published.tsv."""


def lead(report: Report, panel: PanelStudy) -> None:
    """The study in one paragraph."""
    judged = {found.name: found for found in panel.judged}
    default, exact, posterior = judged[aggregation.DEFAULT], _exact(panel), _chosen(panel)
    report.lead(
        f"At >= {panel.cut}, five judges together reach a Cohen's kappa of {judged['majority'].kappa} against people by"
        f" majority and {default.kappa} by {aggregation.DEFAULT}, the default (difference {default.minus_majority});"
        " the"
        f" best single judge, chosen on other queries, has {judged['best juror'].kappa}. Asking one by one until the"
        f" majority is decided saves {exact.saved:.1%} of the calls with the same verdicts; with a posterior bound of"
        f" {posterior.bound}, learnt without people, {posterior.saved:.1%} at a kappa of {posterior.kappa}."
    )


# --- judges ----------------------------------------------------------------------------------------------------------


def add_judges(
    section: Section, agreement: Agreement, published: Mapping[str, Mapping[str, float]], limit: int | None
) -> None:
    """Every judge against people, and the published figures reproduced (not for a partial run)."""
    section.text(
        f"{agreement.pairs} pairs of {agreement.queries} queries. Intervals are 95 %, percentile bootstrap over queries"
        f" ({agreement.samples} samples); per topic is kappa query by query: median (lowest to highest)."
    )
    if limit is None:
        kappa, alpha = _distances(agreement, published)
        section.note(
            f"Published figures reproduced for {len(published)} systems: largest difference {kappa:.1e} over four"
            " kappas"
            f" each, {alpha:.1e} in ordinal alpha (published with four decimals)."
        )
    section.text(
        "One label of h2oloo-zeroshot2 is 10 (line 3187 of its file), off the scale of 0 to 3. It is counted as a"
        " label of"
        " its own, as the published figures have it."
    )
    cuts = [cut for cut in PUBLISHED_CUTS if cut in agreement.labels]
    columns = ["judge", "kappa", "linear", "quadratic", *(f">= {cut}" for cut in cuts)]
    rows: list[list[Cell]] = [
        [
            judged.name,
            str(judged.kappa),
            judged.kappa_linear.value,
            judged.kappa_quadratic.value,
            *(judged.kappa_binary[cut].value for cut in cuts),
            str(judged.alpha["ordinal"]),
            judged.exact.value,
            judged.within_one.value,
            _spread(judged.by_query.median, judged.by_query.lowest, judged.by_query.highest),
        ]
        for judged in sorted(agreement.compared, key=lambda judged: -(judged.kappa.value or 0))
    ]
    columns += ["alpha ordinal", "exact", "within 1", "per topic"]
    section.table(columns, rows, caption="Each judge against people, by kappa", digits=3)
    group = agreement.group
    section.text(
        f"All {group.judges} (people included) together: Fleiss' kappa {group.fleiss}; Krippendorff's alpha nominal"
        f" {group.alpha['nominal']}, ordinal {group.alpha['ordinal']}, interval {group.alpha['interval']}."
    )
    _add_pictures(section, agreement, "llmjudge")


def _distances(agreement: Agreement, published: Mapping[str, Mapping[str, float]]) -> tuple[float, float]:
    """Largest distance to the published kappas and to the published ordinal alphas."""
    kappas, alphas = [], []
    for judged in agreement.compared:
        row = published[judged.name]
        kappas.append(_apart(judged.kappa, row["kappa"]))
        kappas += [_apart(judged.kappa_binary[cut], row[column]) for cut, column in PUBLISHED_CUTS.items()]
        alphas.append(_apart(judged.alpha["ordinal"], row["alpha_ordinal"]))
    return max(kappas), max(alphas)


def _apart(estimate: Estimate, published: float) -> float:
    return abs(_value(estimate) - published)


def _value(estimate: Estimate) -> float:
    return float("nan") if estimate.value is None else estimate.value


def _add_pictures(section: Section, agreement: Agreement, name: str) -> None:
    kappas = [judged.kappa.value or 0 for judged in agreement.compared]
    section.figure(
        f"{name}_kappa",
        lambda figure: draw_kappas(figure, agreement),
        alt=f"Heat map of Cohen's kappa between {len(agreement.names)} judges;"
        f" against people {min(kappas):.2f} to {max(kappas):.2f}.",
        caption="Cohen's kappa of every two judges",
        size=kappa_size(agreement),
    )
    section.figure(
        f"{name}_confusion",
        lambda figure: draw_confusions(figure, agreement),
        alt="Confusion matrices, rows are the labels of people; the same counts stand in report.json.",
        caption="Confusion matrices, shaded by the share of the row",
        size=confusion_size(agreement),
    )


def _spread(*values: float | None) -> str:
    middle, low, high = ("-" if value is None else f"{value:.2f}" for value in values)
    return f"{middle} ({low} to {high})"


# --- aggregation -----------------------------------------------------------------------------------------------------


def add_aggregation(
    section: Section, panel: Mapping[int, PanelStudy], everybody: PanelStudy, limit: int | None
) -> None:
    """Ways to put the votes together at every cut of `panel` (2 is the main one), and for all judges."""
    main = panel[2]
    section.text(
        f"Panel: {', '.join(main.jurors)}. {main.positives} of {main.pairs} pairs are >= 2 for people. A method that"
        " learns from people is fitted on all queries but one and judged on that one, for each query in turn; one that"
        " learns from votes sees the votes on all queries and no label from people. Differences are paired over the"
        " same"
        " resampled queries."
    )
    if limit is None:
        judged = {found.name: found for found in main.judged}
        facts: list[list[Cell]] = [[name, known, judged[name].kappa.value] for name, known in FACTS.items()]
        facts.append(["best single judge", BEST_SINGLE, max(estimate.value or 0 for estimate in main.single.values())])
        section.table(["method", "known", "here"], facts, caption="Facts reproduced first", digits=3)
    for cut, study in panel.items():
        _add_methods(section, study, f"Five judges at >= {cut}")
    _add_methods(section, everybody, f"All {len(everybody.jurors)} judges at >= {everybody.cut}")
    section.figure(
        "aggregation",
        lambda figure: _draw_methods(figure, main),
        alt="; ".join(f"{found.name} {found.kappa}" for found in main.judged) + ".",
        caption="Kappa against people at >= 2, with 95 % intervals over queries",
    )
    _add_verdict(section, main)


def _by_kappa(study: PanelStudy) -> list[Judged]:
    return sorted(study.judged, key=lambda found: -(found.kappa.value or 0))


def _add_methods(section: Section, study: PanelStudy, caption: str) -> None:
    columns = ["method", "learns from", "kappa", "minus majority", "minus best juror", "minus the default"]
    rows: list[list[Cell]] = []
    for found in _by_kappa(study):
        differences = (found.minus_majority, found.minus_best_juror, found.minus_default)
        rows.append([found.name, found.learns_from, str(found.kappa), *map(str, differences)])
    section.table(columns, rows, caption=caption)


def _add_verdict(section: Section, main: PanelStudy) -> None:
    ranked = _by_kappa(main)
    winner = next(found for found in ranked if found.name != "best juror")
    default = next(found for found in main.judged if found.name == aggregation.DEFAULT)
    section.text(
        f"Highest kappa at >= 2: {ranked[0].name} ({ranked[0].kappa}); among ways to put several votes together:"
        f" {winner.name} ({winner.kappa}), {winner.minus_majority} over the majority. The library's default is"
        f" {aggregation.DEFAULT}: it needs no labels from people; its paired difference to the majority is"
        f" {default.minus_majority}, to the best juror {default.minus_best_juror}."
    )
    section.warn(
        f"The intervals of the kappas themselves overlap almost entirely: {main.queries} queries, and jurors of very"
        " unequal"
        " worth. Only a paired interval that leaves out 0 says that one method is better than another, and only for"
        " this"
        " panel and these queries. The threshold of 1.0 on the mean grade was found on these very data."
    )
    section.note(
        "Of crowd-kit's other models, Wawa and ZeroBasedSkill fail with scikit-learn 1.9, and one fit of GLAD takes"
        " minutes."
    )


def _draw_methods(figure: Figure, study: PanelStudy) -> None:
    axes = figure.subplots()
    found = _by_kappa(study)[::-1]
    colours = {"nobody": "C0", "votes": "C1", "people": "C2"}
    for place, judged in enumerate(found):
        _bar(axes, place, judged.kappa, colours[judged.learns_from])
    axes.set_yticks(range(len(found)), [judged.name for judged in found])
    axes.set_xlabel("Cohen's kappa against people")
    for label, colour in colours.items():
        axes.plot([], [], "o", color=colour, label=f"learns from {label}")
    axes.legend(loc="lower left", fontsize=8)


def _bar(axes: Axes, place: int, estimate: Estimate, colour: str) -> None:
    if estimate.value is not None and estimate.low is not None and estimate.high is not None:
        ends = [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
        axes.errorbar([estimate.value], [place], xerr=ends, fmt="o", color=colour, capsize=3)


# --- a seed from people ----------------------------------------------------------------------------------------------


def add_seed(section: Section, study: PanelStudy) -> None:
    """What a seed of some queries is worth."""
    section.text(
        "Seeds of some queries, drawn at random, are labelled by people; what is learnt from them is judged on the"
        " other"
        " queries. Figures are kappa minus the majority's on the same queries: median, 5 % and 95 % quantiles over"
        " draws."
    )
    if not study.seeded:
        section.note("Too few queries here.")
        return
    sizes = sorted({found.queries for found in study.seeded})
    names = list(dict.fromkeys(found.name for found in study.seeded))
    cells = {(found.name, found.queries): found for found in study.seeded}
    rows: list[list[Cell]] = [[name, *(_quantiles(cells.get((name, size))) for size in sizes)] for name in names]
    section.table(["method", *(f"{size} queries" for size in sizes)], rows, caption=f"Five judges at >= {study.cut}")
    section.text(
        "Where the lower quantile is below 0, a seed of that size can do harm: queries differ more than judges."
    )


def _quantiles(found: Seeded | None) -> str:
    if found is None or found.median is None:
        return "-"
    return f"{found.median:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


# --- in sequence -----------------------------------------------------------------------------------------------------


def _exact(study: PanelStudy) -> Asked:
    return next(found for found in study.asked if found.bound is None and found.order == "given")


def _chosen(study: PanelStudy, order: str = "given") -> Asked:
    """Posterior from votes at 0.9: fixed here, not picked by its result."""
    return next(
        found
        for found in study.asked
        if found.name == "posterior, from votes" and found.bound == 0.9 and found.order == order
    )


def add_sequential(section: Section, study: PanelStudy) -> None:
    """Calls saved, by the exact rule and by the posterior bound, in the order given and reversed."""
    exact, orders = _exact(study), study.orders
    section.text(
        f"Order of asking: {', '.join(study.jurors)}. Stopping when the majority is decided saves {exact.saved:.2%}"
        " of the"
        f" calls; {exact.same_verdict:.2%} of the verdicts are those of the whole panel. Over all orders it saves"
        " between"
        f" {orders.lowest:.1%} and {orders.highest:.1%}."
    )
    section.text(
        "The posterior rule stops when P(yes) passes the bound on either side; error rates of the jurors are counted on"
        " the other queries only, against people or, with no label from people at all, against the whole panel's"
        " majority"
        " there."
    )
    columns = ["rule", "bound", "calls saved", "verdict of the panel", "kappa against people", "minus majority"]
    for order in ("given", "reversed"):
        rows: list[list[Cell]] = [
            [found.name, found.bound, found.saved, found.same_verdict, str(found.kappa), str(found.minus_majority)]
            for found in study.asked
            if found.order == order
        ]
        digits = {"bound": 2, "calls saved": 3, "verdict of the panel": 3}
        section.table(columns, rows, caption=f"Order {order}", digits=digits)
    section.figure(
        "sequential",
        lambda figure: _draw_sequential(figure, study),
        alt="; ".join(
            f"{found.name} {found.bound or ''} ({found.order}): {found.saved:.0%} saved, kappa"
            f" {_value(found.kappa):.3f}"
            for found in study.asked
        ),
        caption="Calls saved against kappa, each point one bound",
    )
    given, reverse = _chosen(study), _chosen(study, "reversed")
    section.warn(
        "Who is asked first decides what an early stop is worth: in the order given the two best jurors come first."
        " With"
        f" the bound of 0.9 learnt from votes, the difference to the majority is {given.minus_majority} in that"
        " order and"
        f" {reverse.minus_majority} reversed. Ask first whom you trust most; the exact rule is safe in any order."
    )


def _draw_sequential(figure: Figure, study: PanelStudy) -> None:
    axes = figure.subplots()
    colours = {"posterior, from people": "C1", "posterior, from votes": "C2", "majority decided": "C0"}
    for order, marker in (("given", "o"), ("reversed", "x")):
        for name, colour in colours.items():
            found = [asked for asked in study.asked if asked.name == name and asked.order == order]
            saved, kappas = [asked.saved for asked in found], [_value(asked.kappa) for asked in found]
            axes.plot(saved, kappas, marker=marker, linestyle=":", color=colour, label=f"{name}, {order} order")
    axes.set_xlabel("share of calls saved")
    axes.set_ylabel("Cohen's kappa against people")
    axes.legend(fontsize=7)


# --- TREC RAG 2025 ---------------------------------------------------------------------------------------------------


def add_rag(section: Section, agreement: Agreement, calibrated: Mapping[int, tuple[Estimate, Estimate]]) -> None:
    """One judge on a scale of 0 to 4, with its own cuts and with cuts set on other queries."""
    judged = agreement.compared[0]
    alpha, by_query = judged.alpha, judged.by_query
    section.text(
        f"{agreement.pairs} pairs of {agreement.queries} queries. Kappa {judged.kappa}, linear {judged.kappa_linear},"
        f" quadratic {judged.kappa_quadratic}; Krippendorff's alpha nominal {alpha['nominal']}, ordinal"
        f" {alpha['ordinal']},"
        f" interval {alpha['interval']}; exact {judged.exact}, within one {judged.within_one}; kappa per topic"
        f" {_spread(by_query.median, by_query.lowest, by_query.highest)}."
    )
    rows: list[list[Cell]] = [
        [f">= {cut}", str(estimate), str(calibrated[cut][1]) if cut in calibrated else "-"]
        for cut, estimate in judged.kappa_binary.items()
    ]
    columns = ["cut", "kappa, same cut for both", "kappa, judge's cut set on the other queries"]
    section.table(columns, rows, caption="Binarised")
    _add_pictures(section, agreement, "rag25")
