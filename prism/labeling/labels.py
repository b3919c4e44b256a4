"""From the votes in the store to one line a pair: `labels.jsonl`, in the order of the pairs file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prism.files.jsonl import write_rows
from prism.labeling.label_pairs import Item, LabelPair
from prism.labeling.panel import Panel
from prism.labeling.store import Store
from prism.types import Record, Verdict

UNDECIDED = "undecided"


class _Aggregate(Record):
    """What the votes on one pair come to."""

    label: int | None
    """The label most jurors gave, the lower of equals; None without any."""
    verdict: Verdict | None
    """None while too few voted, or while votes that could change it are missing."""
    vote_share: float | None
    """Share of the votes cast that are yes."""
    votes: dict[str, int]
    observed: dict[str, int]
    """Votes of observers, which decide nothing."""
    failures: dict[str, str]
    pending: tuple[str, ...]
    """Jurors whose missing votes could change the verdict."""


def _aggregate(panel: Panel, known: Mapping[str, tuple[int | None, str | None]]) -> _Aggregate:
    """`known`: juror -> (label, failure). Votes of jurors who are not of the panel do not count."""
    names, deciding = [juror.name for juror in panel.jurors], panel.deciding
    given = {name: known[name][0] for name in names if name in known}
    labels = {name: label for name, label in given.items() if label is not None and name in deciding}
    missing = tuple(name for name in names if name not in given and name in deciding)
    stands = panel.stop_rule()([labels.get(name) for name in names], len(missing))
    counts = Counter(labels.values())
    yes = sum(label >= panel.cut for label in labels.values())
    return _Aggregate(
        label=max(counts, key=lambda label: (counts[label], -label)) if counts else None,
        verdict=stands,
        vote_share=yes / len(labels) if labels else None,
        votes=labels,
        observed={name: label for name, label in given.items() if label is not None and name not in deciding},
        failures={name: known[name][1] or "" for name in given if known[name][1] and name in deciding},
        pending=missing if stands is None else (),
    )


def write_labels(path: Path, items: Iterable[Item], panel: Panel, store: Store) -> tuple[dict[str, int], bool]:
    """Write the whole file atomically; returns how many pairs got which verdict, and whether it was there already.

    Each line is the pair's own record, with `id`, `rubric`, and what `_Aggregate` holds.
    """
    verdicts = Counter({"yes": 0, "no": 0, UNDECIDED: 0})

    def lines() -> Iterator[dict[str, Any]]:
        for pair in items:
            if isinstance(pair, LabelPair):
                labelled = _aggregate(panel, store.votes_on(pair.id, panel.rubric.key))
                verdicts[labelled.verdict or UNDECIDED] += 1
                yield _line(pair, panel, labelled)

    written = write_rows(path, lines())
    return dict(verdicts), written.unchanged


def _line(pair: LabelPair, panel: Panel, labelled: _Aggregate) -> dict[str, Any]:
    unused = set() if labelled.observed else {"observed"}
    found = labelled.model_dump(mode="json", exclude=unused)
    return {**pair.record, "id": pair.id, "rubric": panel.rubric.key, **found}
