"""Do offline measures order systems as people's labels, or as users, do? Kendall's tau-b and Spearman's rho."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy import stats

from prism.errors import DataError, InputError
from prism.types import Record
from studies.tables import read_table

ONLINE: Mapping[str, bool] = {
    "ctr": True,
    "clicks": True,
    "dwell_time": True,
    "abandonment": False,
    "zero_result_rate": False,
}
"""Online metrics and whether more is better; the correlation with one where less is better is turned round."""


class Alignment(Record):
    """One offline measure against one online metric over the same systems."""

    offline: str
    online: str
    systems: int
    tau_b: float | None
    """1: the same order; None when one of them ties throughout."""
    rho: float | None
    agreeing_pairs: float | None
    """Share of the pairs of systems, not tied in either, that both order alike."""
    disagreements: tuple[tuple[str, str], ...]
    """Pairs (better offline, better online) they order differently."""


def align(
    offline: Mapping[str, float], online: Mapping[str, float], names: tuple[str, str], more: bool = True
) -> Alignment:
    """System -> value offline and online; `more`: more is better online.

    tau-b (Kendall 1945) counts ties on either side; through scipy. Raises InputError unless 2 systems are in both.
    """
    systems = [system for system in offline if system in online]
    if len(systems) < 2:
        raise InputError(
            f"{names[0]} and {names[1]} have {len(systems)} systems in common, expected at least 2:"
            f" offline {', '.join(list(offline)[:3])}, online {', '.join(list(online)[:3])}"
        )
    ours = [offline[system] for system in systems]
    theirs = [online[system] * (1 if more else -1) for system in systems]
    flat = len(set(ours)) == 1 or len(set(theirs)) == 1
    agree, disagree = 0, []
    for i, first in enumerate(systems):
        for j in range(i):
            product = (ours[i] - ours[j]) * (theirs[i] - theirs[j])
            agree += product > 0
            if product < 0:
                disagree.append((first, systems[j]) if ours[i] > ours[j] else (systems[j], first))
    return Alignment(
        offline=names[0],
        online=names[1],
        systems=len(systems),
        tau_b=None if flat else float(stats.kendalltau(ours, theirs).statistic),
        rho=None if flat else float(stats.spearmanr(ours, theirs).statistic),
        agreeing_pairs=agree / (agree + len(disagree)) if agree + len(disagree) else None,
        disagreements=tuple(disagree),
    )


def read_online(path: Path, systems: Sequence[str]) -> dict[str, dict[str, float]]:
    """Metric -> system -> value, from a CSV table: the column `system` and any of `ONLINE`.

    Raises DataError with file and line for another separator, an unknown column or system, a system twice or missing, a
    value that is no number, a rate outside [0, 1] or a negative count.
    """
    table = read_table(path, ("system",), f"`system` and any of {', '.join(ONLINE)}")
    if len(table.columns) < 2 or set(table.columns) - {"system", *ONLINE}:
        expected = f"comma-separated `system` and any of {', '.join(ONLINE)}"
        raise DataError(f"{path}:1: expected {expected}, got {', '.join(table.columns)[:120]}")
    found: dict[str, dict[str, float]] = {name: {} for name in table.columns if name != "system"}
    seen: set[str] = set()
    for where, row in table.rows:
        system = row["system"].strip()
        if system not in systems:
            raise DataError(f"{where}: no run of system {system!r}: expected one of {', '.join(systems)[:120]}")
        if system in seen:
            raise DataError(f"{where}: system {system!r} stands twice: keep one of the lines")
        seen.add(system)
        for name in found:
            found[name][system] = _value(row[name], name, where)
    if missing := [system for system in systems if system not in seen]:
        raise DataError(f"{path}: no line for system {missing[0]!r}: every run needs its online metrics")
    return found


def _value(text: str, name: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    most = math.inf if name in ("clicks", "dwell_time") else 1.0
    if not (math.isfinite(value) and 0.0 <= value <= most):
        raise DataError(
            f"{where}: {name} {text!r} is not a number from 0 {'to 1' if most == 1.0 else 'on'}: fix the line"
        )
    return value
