"""Choosing queries to label: strata of interest and popularity, Neyman allocation, the estimator that undoes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from prism.errors import DataError, InputError
from prism.files.ids import read_id
from prism.measures.statistics import Interval
from prism.types import Record
from studies.tables import read_table

POPULARITY = ("tail", "torso", "head")
"""Names of three groups of queries by how often they are asked, rarest first."""
Floats = NDArray[np.float64]
_COLUMNS = ("query", "interest", "popularity")


class QueryRow(NamedTuple):
    """One query of the population."""

    id: str
    interest: str
    popularity: str | float
    """A group's name, or how often it is asked."""


def read_queries(path: Path) -> list[QueryRow]:
    """A CSV table with the columns query, interest, popularity (a name, or a number of searches).

    Raises DataError with file and line: no such column, another separator, a query twice, names mixed with numbers.
    """
    table = read_table(path, _COLUMNS)
    rows: dict[str, QueryRow] = {}
    for where, row in table.rows:
        if any(not row[name].strip() for name in _COLUMNS):
            raise DataError(f"{where}: expected {len(table.columns)} comma-separated values, none empty")
        query = read_id(row["query"], "query", where)
        if query in rows:
            raise DataError(f"{where}: query {query!r} stands twice: keep one of the lines")
        rows[query] = QueryRow(query, row["interest"].strip(), _popularity(row["popularity"].strip()))
        if type(rows[query].popularity) is not type(next(iter(rows.values())).popularity):
            raise DataError(
                f"{where}: popularity {row['popularity']!r}: a number above and a name here, or the reverse"
            )
    if not rows:
        raise DataError(f"{path}: no queries under the header")
    return list(rows.values())


def _popularity(text: str) -> str | float:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def strata(queries: Sequence[QueryRow]) -> dict[str, list[str]]:
    """Stratum, `interest / popularity` -> query ids.

    Numbers of searches become tail, torso and head: thirds of the queries by rank, equal numbers in one group.
    """
    counts = [row.popularity for row in queries if isinstance(row.popularity, float)]
    cuts = np.quantile(counts, [1 / 3, 2 / 3]) if counts else np.zeros(2)
    found: dict[str, list[str]] = {}
    for row in queries:
        group = row.popularity
        if isinstance(group, float):
            group = POPULARITY[int(np.searchsorted(cuts, group, side="left"))]
        found.setdefault(f"{row.interest} / {group}", []).append(row.id)
    return found


def neyman(sizes: Mapping[str, int], deviations: Mapping[str, float], total: int, minimum: int = 2) -> dict[str, int]:
    """How many queries to draw from each stratum: proportional to N_h S_h (Neyman 1934), `total` in all.

    Cochran, Sampling Techniques (1977), eq. 5.26. Two things the formula leaves out: a stratum has only N_h queries
    (section 5.8), and a variance needs `minimum` of them; within those bounds the allocation is still optimal.
    Deviations come from a pilot: a stratum whose pilot happened to be constant still gets `minimum`. Raises InputError
    when the bounds leave no allocation.
    """
    if sizes.keys() != deviations.keys() or any(size < 1 for size in sizes.values()):
        raise InputError("every stratum needs a size of at least 1 and a deviation: they name different strata")
    if strange := [name for name, s in deviations.items() if not (math.isfinite(s) and s >= 0)]:
        raise InputError(f"stratum {strange[0]!r} has deviation {deviations[strange[0]]}: expected a number from 0 on")
    high = np.array(list(sizes.values()), dtype=np.float64)
    low = np.minimum(high, minimum)
    if not low.sum() <= total <= high.sum():
        raise InputError(
            f"{total} queries cannot be drawn: {len(sizes)} strata need at least {low.sum():.0f} and hold"
            f" {high.sum():.0f}"
        )
    weights = high * np.array([deviations[name] for name in sizes])
    weights = np.maximum(weights, 1e-9 * weights.max()) if weights.max() > 0 else high
    shares = _within(weights, low, high, total)
    return dict(zip(sizes, _whole(shares, high, total), strict=True))


def _within(weights: Floats, low: Floats, high: Floats, total: int) -> Floats:
    """clip(c * weights, low, high) with c such that the sum is `total`."""

    def excess(log_c: float) -> float:
        return float(np.clip(np.exp(log_c) * weights, low, high).sum() - total)

    ends = float(np.log(low / weights).min()) - 1.0, float(np.log(high / weights).max()) + 1.0
    log_c = ends[0] if excess(ends[0]) >= 0 else ends[1] if excess(ends[1]) <= 0 else optimize.brentq(excess, *ends)
    clipped: Floats = np.clip(np.exp(log_c) * weights, low, high)
    return clipped


def _whole(shares: Floats, high: Floats, total: int) -> list[int]:
    """Whole numbers with the same sum: the largest remainders are rounded up."""
    counts = np.floor(shares + 1e-9)
    for index in np.argsort(counts - shares, kind="stable"):
        if counts.sum() < total and counts[index] < high[index]:
            counts[index] += 1
    return [int(count) for count in counts]


def draw(members: Mapping[str, Sequence[str]], allocation: Mapping[str, int], seed: int) -> dict[str, list[str]]:
    """Stratum -> sampled query ids, without replacement."""
    rng = np.random.default_rng(seed)
    return {
        name: [members[name][i] for i in sorted(rng.permutation(len(members[name]))[: allocation[name]])]
        for name in allocation
    }


class StratifiedEstimate(Record):
    """A population mean from a stratified sample."""

    mean: float
    standard_error: float
    interval: Interval
    """t with Satterthwaite's degrees of freedom."""
    degrees_of_freedom: float
    """Infinite when nothing was left to chance."""
    queries: int


def stratified_mean(
    samples: Mapping[str, ArrayLike], sizes: Mapping[str, int], *, confidence: float = 0.95, finite: bool = True
) -> StratifiedEstimate:
    """sum W_h ybar_h with variance sum W_h^2 (1 - n_h / N_h) s_h^2 / n_h, W_h = N_h / N.

    Cochran (1977), sections 5.3 and 5.4. The plain mean of a Neyman sample is biased towards the strata that were
    drawn more; these weights undo it. `finite=False` drops 1 - n_h / N_h: right when the listed queries are themselves
    a sample of those to come. Paired designs: pass differences per query. Raises InputError for a stratum with fewer
    than 2 values (unless it holds only 1 query), or names that differ.
    """
    if samples.keys() != sizes.keys():
        raise InputError(f"samples and sizes name different strata: {sorted(samples.keys() ^ sizes.keys())[0]!r}")
    total = sum(sizes.values())
    mean, parts, freedoms, queries = 0.0, [], [], 0
    for name, given in samples.items():
        values, size = np.asarray(given, dtype=np.float64), sizes[name]
        n = len(values)
        if n > size or n < min(2, size):
            raise InputError(f"stratum {name!r} of {size} queries has {n} values: expected 2 or more, at most {size}")
        left = 1.0 - n / size if finite else 1.0
        variance = float(values.var(ddof=1)) if n > 1 else 0.0
        mean += size / total * float(values.mean())
        parts.append((size / total) ** 2 * left * variance / n)
        freedoms.append(max(1, n - 1))
        queries += n
    variance = math.fsum(parts)
    bottom = math.fsum(part**2 / freedom for part, freedom in zip(parts, freedoms, strict=True))
    freedom = variance**2 / bottom if bottom > 0 else math.inf
    error = math.sqrt(variance)
    width = float(stats.t.ppf(0.5 + confidence / 2.0, freedom)) * error
    return StratifiedEstimate(
        mean=mean,
        standard_error=error,
        interval=Interval(mean - width, mean + width),
        degrees_of_freedom=freedom,
        queries=queries,
    )
