"""Ways of doing one thing, timed in turns, as rows and as a Markdown table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from studies.turns import Way, rate, ratio


def compared(way: Way, reference: Way) -> str:
    """Scores: the largest difference from the reference's. Texts: how many are the same."""
    if way.result is None or reference.result is None or way is reference:
        return ""
    if isinstance(reference.result[0], float):
        return f"scores differ by {max(abs(a - b) for a, b in zip(way.result, reference.result, strict=True)):.4f}"
    same = sum(a == b for a, b in zip(way.result, reference.result, strict=True))
    return f"{same} of {len(reference.result)} texts the same"


def rows(measured: Sequence[Way], count: Callable[[Way], float]) -> list[dict[str, Any]]:
    """`count`: how much one run of a way does."""
    first = measured[0]
    rates = {way.name: rate(count(way), way.median_s) if way.times_s else None for way in measured}
    return [
        {
            "way": way.name,
            "per_second": rates[way.name],
            "ratio": ratio(rates[way.name], rates[first.name]),
            "median_s": way.median_s,
            "worst_s": way.worst_s,
            "ready_s": way.ready_s,
            "note": f"failed: {way.error}" if way.error else compared(way, first),
        }
        for way in measured
    ]


def table(title: str, unit: str, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    def cell(value: float | None, text: str) -> str:
        return "-" if value is None else format(value, text)

    head = [f"## {title}", "", f"| way | {unit} | against the first | median s | worst s | ready after s | |"]
    body = [
        f"| {line['way']} | {cell(line['per_second'], '.1f')} | {cell(line['ratio'], '.2f')}x |"
        f" {cell(line['median_s'], '.2f')} | {cell(line['worst_s'], '.2f')} | {cell(line['ready_s'], '.1f')} |"
        f" {line['note']} |"
        for line in lines
    ]
    return [*head, "|---|---:|---:|---:|---:|---:|---|", *body, ""]
