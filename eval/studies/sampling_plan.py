"""Which queries to label, and what the labelled ones say of all.

queries.csv -> strata -> Neyman counts -> drawn queries, in sample.csv -> (labels) -> estimates, effects by stratum
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prism.outputs import write_text
from prism.reports.blocks import Cell, Section
from studies import sampling
from studies.experiments import SegmentEffect, detectable, segment_effects

Values = Mapping[str, float]
"""Query -> value of the measure."""
Strata = Mapping[str, Sequence[str]]
"""Stratum -> query ids."""
SAMPLE = "sample.csv"


def plan(
    path: Path, total: int, values: tuple[Values, Values], *, seed: int, section: Section, out: Path
) -> dict[str, Any]:
    """Strata of the queries in the CSV file `path`, a sample of `total` of them, estimates and effects by stratum.

    `values`: of treatment and control, for as many queries as are labelled yet; empty before anything is labelled.
    Writes `sample.csv` into `out` and tables into `section`. Raises DataError for a malformed file, InputError when
    `total` is less than two a stratum.
    """
    members = sampling.strata(sampling.read_queries(path))
    sizes = {name: len(ids) for name, ids in members.items()}
    both = {name: [q for q in ids if q in values[0] and q in values[1]] for name, ids in members.items()}
    deviations = _deviations(both, values[1])
    counts = sampling.neyman(sizes, deviations, min(total, sum(sizes.values())))
    drawn = sampling.draw(members, counts, seed)
    write_text(out / SAMPLE, sample_table(drawn, sizes))
    section.text(
        "Deviations are those of the control's values by people; strata without two such queries take the overall one."
        f" The drawn queries are in {SAMPLE}, each with the number of queries it stands for."
    )
    rows: list[list[Cell]] = [[name, sizes[name], deviations[name], counts[name]] for name in sizes]
    section.table(["stratum", "queries", "deviation", "to label"], rows, caption=f"{path.name}: Neyman allocation")
    estimates = _estimates(both, sizes, values, section)
    effects = _effects(both, values, section)
    return {"sizes": sizes, "allocation": counts, "drawn": drawn, "estimates": estimates, "effects": list(effects)}


def _deviations(both: Strata, control: Values) -> dict[str, float]:
    """Standard deviation of the control's values in each stratum; the overall one where there are fewer than two."""
    pooled = [control[q] for ids in both.values() for q in ids]
    overall = float(np.std(pooled, ddof=1)) if len(pooled) > 1 else 1.0
    return {n: float(np.std([control[q] for q in ids], ddof=1)) if len(ids) > 1 else overall for n, ids in both.items()}


def sample_table(drawn: Strata, sizes: Mapping[str, int]) -> str:
    """CSV: query, stratum, and how many queries of the stratum it stands for (N_h / n_h)."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("query", "stratum", "stands_for"))
    for name, ids in drawn.items():
        writer.writerows((query, name, round(sizes[name] / len(ids), 6)) for query in ids)
    return table.getvalue()


def _estimates(
    both: Strata, sizes: Mapping[str, int], values: tuple[Values, Values], section: Section
) -> dict[str, sampling.StratifiedEstimate]:
    """What the labelled queries say of all listed ones, weighted by stratum; nothing before any is labelled."""
    if not any(both.values()):
        return {}
    if short := [name for name, ids in both.items() if len(ids) < min(2, sizes[name])]:
        section.warn(
            f"No estimate for all queries: {', '.join(short[:3])} has fewer than 2 labelled queries"
            f" ({len(short)} such strata). Label {SAMPLE} first."
        )
        return {}
    treatment, control = values
    of = {
        "control": {name: [control[q] for q in ids] for name, ids in both.items()},
        "treatment": {name: [treatment[q] for q in ids] for name, ids in both.items()},
        "difference": {name: [treatment[q] - control[q] for q in ids] for name, ids in both.items()},
    }
    found = {what: sampling.stratified_mean(samples, sizes) for what, samples in of.items()}
    rows: list[list[Cell]] = [
        [what, e.queries, e.mean, e.standard_error, *e.interval, _plain_mean(of[what])] for what, e in found.items()
    ]
    section.table(
        ["of", "labelled", "estimate", "standard error", "low", "high", "plain mean"], rows,
        caption=f"All {sum(sizes.values()):,} queries, estimated by stratum (Cochran 1977, 5.3); 95 %",
    )  # fmt: skip
    if found["control"].mean > 0 and found["difference"].standard_error > 0:  # 0: every query is labelled
        smallest = 100 * detectable(found["difference"].standard_error) / found["control"].mean
        section.text(f"This sample shows a difference of {smallest:.2f} % of the control four times in five.")
    section.note("The plain mean of a Neyman sample leans towards the strata that were drawn more: it is no estimate.")
    return found


def _plain_mean(samples: Mapping[str, Sequence[float]]) -> float:
    return float(np.mean([value for values in samples.values() for value in values]))


def _effects(both: Strata, values: tuple[Values, Values], section: Section) -> tuple[SegmentEffect, ...]:
    known = {name: ids for name, ids in both.items() if len(ids) >= 2}
    effects = segment_effects(
        {n: ([values[0][q] for q in ids], [values[1][q] for q in ids]) for n, ids in known.items()}
    )
    if effects:
        columns = ["stratum", "queries", "effect", "low", "high", "p", "p adjusted", "found"]
        found: list[list[Cell]] = [
            [e.segment, e.queries, e.effect, *e.interval, e.p, e.p_adjusted, e.found] for e in effects
        ]
        section.table(columns, found, caption="Effects by stratum, Benjamini-Hochberg over the strata")
    return effects
