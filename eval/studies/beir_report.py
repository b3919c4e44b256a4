"""The report of `eval/beir_qa.py`: quality, whether differences are chance, what it costs, published figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from prism.measures.ranking import measure_queries
from prism.measures.statistics import adjust, compare_paired, mean_interval
from prism.reports.blocks import Cell, Section
from prism.reports.report import Report
from prism.types import Qrels, Run
from studies import reference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURE = "nDCG@10"
SIGNIFICANT = 0.05
_MAX: Literal["max"] = "max"
Made = Mapping[str, Any]
"""The body of report.json: datasets, meta, comparisons."""


def compare(qrels: Qrels, runs: Mapping[str, Run]) -> dict[str, Any]:
    """Intervals of nDCG@10, and every pair of systems on the same queries, p-values corrected together (Holm)."""
    values = {name: list(measure_queries(qrels, run, [MEASURE])[MEASURE].values()) for name, run in runs.items()}
    if len(qrels) < 2:  # nothing can be said about the spread
        return {"measure": MEASURE, "queries": len(qrels), "intervals": {}, "pairs": []}
    intervals = {name: [round(end, 6) for end in mean_interval(of_run)] for name, of_run in values.items()}
    names = list(combinations(values, 2))
    paired = [compare_paired(values[b], values[a]) for a, b in names]
    corrected = adjust([p.p_bootstrap for p in paired], "holm")
    pairs = [
        {
            "column": b,
            "against": a,
            "difference": round(p.difference, 6),
            "interval": [round(end, 6) for end in p.interval],
            "p": round(p.p_bootstrap, 6),
            "p_holm": round(holm, 6),
        }
        for (a, b), p, holm in zip(names, paired, corrected, strict=True)
    ]
    return {"measure": MEASURE, "queries": len(qrels), "intervals": intervals, "pairs": pairs}


def build(made: Made, command: str, versions: Mapping[str, str]) -> Report:
    """The report for people; `made` is what report.json holds."""
    report = Report("BEIR-QA: ranking", command=command, versions=versions)
    systems = list(dict.fromkeys(system for rows in made["datasets"].values() for system in rows))
    report.lead(_lead(made, systems))
    _overview(report.section("Overview"), made, systems)
    _published(report.section("Beside published figures"), made, systems)
    for name in made["datasets"]:
        _dataset(report.section(name), made, name)
    return report


def _lead(made: Made, systems: Sequence[str]) -> str:
    sets = made["datasets"]
    whole = {
        c: sum(v[c][MEASURE] for v in sets.values()) / len(sets) for c in systems if all(c in v for v in sets.values())
    }
    if not whole:
        return f"{MEASURE} of {len(systems)} rankings; no two were measured on the same sets."
    best = max(whole, key=whole.__getitem__)
    where = next(iter(sets)) if len(sets) == 1 else f"{len(sets)} data sets on average"
    return (
        f"Best on {where}: {best} with {MEASURE} {whole[best]:.4f}. Every query in the qrels counts, answered or not."
    )


# --- all sets --------------------------------------------------------------------------------------------------------


def _overview(section: Section, made: Made, systems: Sequence[str]) -> None:
    sets = made["datasets"]
    if limited := [name for name in sets if any(m["options"].get("limit") for m in made["meta"][name].values())]:
        section.warn(f"Only the first queries were measured on {', '.join(limited)}: a quick look, not a result.")
    if failed := [f"{c} on {n}" for n, metas in made["meta"].items() for c, m in metas.items() if m["failures"]]:
        section.warn(f"Some documents could not be judged and rank last: {', '.join(failed)}.")
    heads = [*sets, *(["mean"] if len(sets) > 1 else [])]
    rows: list[list[Cell]] = []
    for system in systems:
        found = [sets[name].get(system, {}).get(MEASURE) for name in sets]
        mean = sum(found) / len(found) if None not in found else None
        rows.append([system, *found, *([mean] if len(sets) > 1 else [])])
    section.table(["ranking", *heads], rows, caption=f"{MEASURE} by data set", best=dict.fromkeys(heads, _MAX))
    name = next(iter(sets))
    _intervals_figure(section, made, name)
    _cost_figure(section, made, name)


def _intervals_figure(section: Section, made: Made, name: str) -> None:
    intervals = made["comparisons"].get(name, {}).get("intervals", {})
    shown = {system: made["datasets"][name][system][MEASURE] for system in intervals}
    if not shown:
        return

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (system, value) in enumerate(reversed(shown.items())):
            low, high = intervals[system]
            axes.errorbar(
                value, place, xerr=[[max(0.0, value - low)], [max(0.0, high - value)]], fmt="o", capsize=4, color="C0"
            )
            axes.annotate(f"{value:.3f}", (value, place), xytext=(0, 7), textcoords="offset points", ha="center")
        axes.set_yticks(range(len(shown)), list(reversed(shown)))
        axes.set_ylim(-0.6, len(shown) - 0.3)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"{MEASURE} on {name}")

    words = "; ".join(f"{c} {v:.3f} ({intervals[c][0]:.3f} to {intervals[c][1]:.3f})" for c, v in shown.items())
    section.figure(
        "ndcg",
        draw,
        alt=f"{MEASURE} on {name} with 95 % intervals: {words}.",
        caption=f"{MEASURE} on {name}, 95 % bootstrap interval over queries. Overlap is no test: see the pairs below.",
        size=(7.6, 1.2 + 0.55 * len(shown)),
    )


def _cost_figure(section: Section, made: Made, name: str) -> None:
    metas = made["meta"][name]
    points = {
        c: (1000 * m["seconds"] / max(1, m["queries"]), made["datasets"][name][c][MEASURE])
        for c, m in metas.items()
        if m["seconds"] > 0
    }
    if len(points) < 2:
        return

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        middle = sorted(x for x, _ in points.values())[len(points) // 2]
        for system, (x, y) in points.items():
            axes.plot(x, y, "o", markersize=8, color="C0")
            side = ("left", 8) if x < middle else ("right", -8)
            axes.annotate(system, (x, y), xytext=(side[1], 5), textcoords="offset points", ha=side[0])
        axes.set_xscale("log")
        axes.margins(0.12)
        axes.set_xlabel("milliseconds a query (log scale)")
        axes.set_ylabel(f"{MEASURE} on {name}")

    words = "; ".join(f"{c}: {x:.1f} ms, {y:.3f}" for c, (x, y) in points.items())
    section.figure(
        "latency",
        draw,
        alt=f"{MEASURE} against time a query: {words}.",
        caption="Quality against mean time a query. First stages are timed over all queries, with building the index.",
    )


def _published(section: Section, made: Made, systems: Sequence[str]) -> None:
    section.text(
        f"Published nDCG@10 in per cent, averaged over the nine sets; each reranked the first {reference.DEPTH}"
        f" candidates of {reference.FIRST_STAGE}."
    )
    rows: list[list[Cell]] = [[name, value, "published", ""] for name, value in reference.PUBLISHED.items()]
    warned = []
    for system in systems:
        mean = reference.mean_ndcg(made, system)
        why = reference.differences(made, system)
        rows.append([system, mean, "this run", "; ".join(why)])
        warned += [system] if why else []
    rows.sort(key=lambda row: (bool(row[3]), -float(row[1] or 0.0)))  # what cannot be compared stands below
    if warned:
        section.warn(f"Not comparable with the published figures: {', '.join(warned)}. The last column says why.")
    heads = ["ranking", "mean nDCG@10, %", "from", "differs"]
    section.table(heads, rows, digits={heads[1]: 2}, caption="Published figures and this run")


# --- one set ---------------------------------------------------------------------------------------------------------


def _dataset(section: Section, made: Made, name: str) -> None:
    measured, metas = made["datasets"][name], made["meta"][name]
    heads = list(dict.fromkeys(measure for values in measured.values() for measure in values))
    rows: list[list[Cell]] = [[c, *(values.get(h) for h in heads)] for c, values in measured.items()]
    section.table(["ranking", *heads], rows, caption=f"{name}: measures", best=dict.fromkeys(heads, _MAX))
    floors = {c: m["shuffled_ndcg10"] for c, m in metas.items() if m.get("shuffled_ndcg10") is not None}
    if floors:
        words = ", ".join(f"{c} {value:.4f}" for c, value in floors.items())
        section.text(f"The same candidates in random order would score {MEASURE} (expected value): {words}.")
    _pairs(section, made["comparisons"].get(name))
    _costs(section, name, metas)
    together: dict[tuple[str, str], list[str]] = {}
    for system, meta in metas.items():
        together.setdefault((meta["command"], meta["date"][:10]), []).append(system)
    for (command, day), names in together.items():
        section.code(command, caption=f"{', '.join(names)}, {day}")


def _pairs(section: Section, compared: Mapping[str, Any] | None) -> None:
    if not compared or not compared["pairs"]:
        return
    rows: list[list[Cell]] = [
        [
            f"{p['column']} − {p['against']}",
            p["difference"],
            p["interval"][0],
            p["interval"][1],
            p["p"],
            p["p_holm"],
            "yes" if p["p_holm"] < SIGNIFICANT else "no",
        ]
        for p in compared["pairs"]
    ]
    heads = ["pair", "difference", "from", "to", "p", "p, Holm", f"differs at {SIGNIFICANT}"]
    section.table(heads, rows, caption=f"{MEASURE}: differences on the same {compared['queries']} queries")
    section.text(
        "Intervals and p-values by paired bootstrap over queries (10,000 samples); Holm's correction keeps the chance"
        f" of any false yes in this table below {SIGNIFICANT}."
    )


def _costs(section: Section, name: str, metas: Mapping[str, Mapping[str, Any]]) -> None:
    heads = ["ranking", "queries", "top k", "failed documents", "s in all", "median ms", "p95 ms"]
    heads += ["tokens / query", "USD", "peak MiB"]
    rows = [_cost_row(system, meta) for system, meta in metas.items()]
    section.table(
        heads,
        rows,
        caption=f"{name}: time and cost",
        digits={"s in all": 1, "median ms": 1, "p95 ms": 1, "tokens / query": 0, "USD": 4},
    )
    section.text(
        "Times are those of this machine and of the moment, or of the service's answer. Dollars only where a price was"
        " given with --price. Peak memory is of the whole program up to then."
    )


def _cost_row(system: str, meta: Mapping[str, Any]) -> list[Cell]:
    queries, tokens = meta["queries"], meta.get("tokens", 0)
    limit = meta["options"].get("limit")
    return [
        system,
        f"{queries} (first {limit} only)" if limit else queries,
        meta["options"].get("top_k"),
        sum(meta["failures"].values()),
        meta["seconds"],
        _milliseconds(meta.get("median_s")),
        _milliseconds(meta.get("p95_s")),
        tokens / queries if tokens and queries else None,
        meta.get("usd"),
        meta.get("peak_mib"),
    ]


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def price(text: str) -> tuple[str, float, str]:
    """`SYSTEM=USD/UNIT` -> system, dollars, unit. Raises InputError for another shape."""
    from prism.errors import InputError

    system, equals, rest = text.rpartition("=")
    amount, _, unit = rest.partition("/")
    try:
        dollars = float(amount)
    except ValueError:
        dollars = -1.0
    if not equals or not system or not 0 <= dollars < float("inf") or unit not in UNITS:
        raise InputError(f"--price {text!r}: expected SYSTEM=DOLLARS/UNIT, unit one of {', '.join(UNITS)}")
    return system, dollars, unit


UNITS = {"search": 1.0, "ksearch": 1e3, "token": 1.0, "Mtoken": 1e6}
"""What a price is for -> how many searches or tokens."""


def dollars(prices: Iterable[str], system: str, tokens: int, requests: int) -> float | None:
    """What the system cost by the given prices; None when there is none for it."""
    for name, amount, unit in map(price, prices):
        if name == system:
            count = tokens if unit.endswith("token") else requests
            return round(amount * count / UNITS[unit], 6)
    return None
