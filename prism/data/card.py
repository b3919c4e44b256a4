"""The data card of a build: what is in the files, what was left out and why, who agreed with whom, what it cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from prism.files.jsonl import Drops, Row, dumps, report_path
from prism.outputs import write_text
from prism.text import printable
from prism.types import Example, Record

if TYPE_CHECKING:
    from prism.data.balance import Balanced


class Sources(Record):
    """The files that go in."""

    labels: Path
    """Pairs with `verdict` or `label`, and what the panel said: `votes`, `failures`, `vote_share` (`prism label`)."""
    scores: Path | None = None
    """Pairs with `teacher_score`, as `prism data score` writes them."""
    targets: Path | None = None
    """Pairs with `contribution` and `evidence`."""


class Rules(Record):
    """What is done with them."""

    yes_from: int | None = None
    """Labels from here on mean yes, a juror's too. None: the panel's verdict stands; labels and votes of 1 mean yes."""
    min_majority: float = Field(default=0.0, ge=0.0, le=1.0)
    """Pairs are left out when a smaller share of the votes is behind the verdict."""
    power: float = Field(default=1.0, gt=0.0)
    """Teacher scores become `score ** power` (`prism data fit`)."""
    splits: dict[str, float] = Field(default_factory=lambda: {"train": 0.95, "dev": 0.05})
    salt: str = ""
    balance_total: int | None = Field(default=None, ge=1)
    """Balance scores and lengths down to about this many records."""
    require_targets: bool = False
    """Leave out a yes without contribution and evidence; by default it trains the label alone."""


class Tally:
    """Counts taken while records pass."""

    def __init__(self, yes_from: int) -> None:
        self._yes_from = yes_from
        self.read = 0
        self.records: Counter[tuple[str, str]] = Counter()
        """(split, verdict)."""
        self.facets: dict[str, Counter[str]] = {name: Counter() for name in ("losses", "source", "language", "targets")}
        self.queries: dict[str, set[int]] = {}
        self.teacher: Counter[tuple[str, str]] = Counter()
        """(panel's verdict, teacher's side of 0.5), before balancing."""
        self.jurors: dict[str, Counter[str]] = {}
        self.majorities: list[float] = []

    def agreement(self, example: Example) -> None:
        """One record that passed the checks."""
        if example.teacher_score is not None:
            self.teacher[example.verdict, "yes" if example.teacher_score >= 0.5 else "no"] += 1
        if example.vote_share is not None:
            self.majorities.append(majority_share(example.vote_share))
        for juror, label in (example.votes or {}).items():
            agrees = label is not None and (label >= self._yes_from) == (example.verdict == "yes")
            said = "failed" if label is None else "agrees" if agrees else "differs"
            self.jurors.setdefault(juror, Counter())[said] += 1

    def written(self, split: str, record: Mapping[str, Any]) -> None:
        """One record in its file."""
        self.records[split, record["verdict"]] += 1
        self.queries.setdefault(split, set()).add(hash(record["query"]))
        self.facets["losses"]["+".join(record["losses"])] += 1
        self.facets["source"][record.get("source") or "unknown"] += 1
        self.facets["language"][record.get("language") or "unknown"] += 1
        if record["verdict"] == "yes":
            self.facets["targets"]["written" if record.get("evidence") else "label only"] += 1


def majority_share(vote_share: float) -> float:
    """Share of the votes behind the verdict, from the share that is yes."""
    return max(vote_share, 1.0 - vote_share)


def write_card(
    folder: Path, sources: Sources, rules: Rules, tally: Tally, drops: Drops, balanced: Balanced | None
) -> Row:
    """`card.json` and `card.md`; returns the former."""
    card: Row = {
        "made": datetime.now(UTC).date().isoformat(),
        "inputs": {name: str(path) for name, path in sources if path is not None},
        "rules": rules.model_dump(mode="json", exclude_none=True),
        "labels_read": tally.read,
        "splits": {
            split: {"queries": len(queries), **{v: tally.records[split, v] for v in ("yes", "no")}}
            for split, queries in sorted(tally.queries.items())
        },
        **{name: dict(counts.most_common(50)) for name, counts in tally.facets.items()},
        "dropped": drops.report(),
        "agreement": {
            "teacher_and_panel": _teacher_agreement(tally.teacher),
            "jurors": {juror: dict(said) for juror, said in sorted(tally.jurors.items())},
            "mean_majority": round(sum(tally.majorities) / len(tally.majorities), 4) if tally.majorities else None,
        },
        "balance": balanced and _cells(balanced),
        "cost": _costs(path for _, path in sources if path is not None),
    }
    before = _read(folder / "card.json")
    if {**before, "made": None} == {**json.loads(dumps(card)), "made": None}:
        card["made"] = before["made"]  # the same build again
    write_text(folder / "card.json", dumps(card, indent=2) + "\n")
    write_text(folder / "card.md", render(card))
    return card


def _teacher_agreement(pairs: Counter[tuple[str, str]]) -> Row | None:
    """Share of agreement and Cohen's kappa (1960) of the teacher's side of 0.5 with the panel."""
    total = pairs.total()
    if not total:
        return None
    observed = (pairs["yes", "yes"] + pairs["no", "no"]) / total
    panel = sum(n for (said, _), n in pairs.items() if said == "yes") / total
    teacher = sum(n for (_, said), n in pairs.items() if said == "yes") / total
    expected = panel * teacher + (1 - panel) * (1 - teacher)
    kappa = None if expected == 1.0 else round((observed - expected) / (1 - expected), 4)
    confusion = {f"panel {a}, teacher {b}": pairs[a, b] for a in ("yes", "no") for b in ("yes", "no")}
    return {"pairs": total, "agreement": round(observed, 4), "kappa": kappa, **confusion}


def _cells(balanced: Balanced) -> Row:
    cells = {cell.describe(10): [n, balanced.after[cell]] for cell, n in sorted(balanced.before.items())}
    return {"cap": balanced.cap, "cells": cells}


def _costs(paths: Iterable[Path]) -> Row:
    """What earlier stages report to have spent, by the file they made.

    `prism data` and `prism write-targets` put FILE.report.json beside each file, `prism label` a report.json beside its
    labels.
    """
    found: Row = {}
    for path in paths:
        beside, general = report_path(path), path.with_name("report.json")
        report = _read(beside) or _read(general)
        paid = {name: report[name] for name in ("paid_usd", "uncertain_usd", "cost_usd") if name in report}
        if cost := report.get("cost") or paid:
            found[path.name] = cost
    return found


def _read(path: Path) -> Row:
    if not path.is_file():
        return {}
    report = json.loads(path.read_text(encoding="utf-8"))
    return report if isinstance(report, dict) else {}


# --- Markdown --------------------------------------------------------------------------------------------------------


def render(card: Row) -> str:
    """The card for people."""
    splits = card["splits"]
    inputs = ", ".join(f"`{_cell(path)}` ({name})" for name, path in card["inputs"].items())
    parts = [
        "# Data card\n",
        f"Made {card['made']} from {inputs}.\n",
        f"{card['labels_read']:,} labelled pairs were read, {sum(s['yes'] + s['no'] for s in splits.values()):,} are in"
        " the files.\n",
        _table(("split", "queries", "yes", "no"), [(n, s["queries"], s["yes"], s["no"]) for n, s in splits.items()]),
    ]
    for name in ("losses", "targets", "source", "language"):
        parts.append(_section(name, (name, "records"), card[name].items()))
    dropped = [(reason, found["count"], found["first"][0]) for reason, found in card["dropped"].items()]
    parts.append(_section("dropped", ("reason", "records", "first"), dropped))
    parts += _agreement(card["agreement"])
    if card["balance"]:
        rows = [(cell, *counts) for cell, counts in card["balance"]["cells"].items()]
        parts.append(_section(f"balance, at most {card['balance']['cap']} a cell", ("cell", "before", "after"), rows))
    costs = [(name, json.dumps(cost) if isinstance(cost, dict) else cost) for name, cost in card["cost"].items()]
    parts.append(_section("cost", ("file", "spent on it"), costs))
    rules = [(name, json.dumps(value)) for name, value in card["rules"].items()]
    parts.append(_section("rules", ("rule", "value"), rules))
    return "\n".join(part for part in parts if part)


def _agreement(agreement: Row) -> list[str]:
    teacher = agreement["teacher_and_panel"]
    jurors = [
        (juror, said.get("agrees", 0), said.get("differs", 0), said.get("failed", 0))
        for juror, said in agreement["jurors"].items()
    ]
    mean = agreement["mean_majority"]
    return [
        _section("teacher and panel", ("measure", "value"), teacher.items()) if teacher else "",
        _section("jurors and the verdict", ("juror", "agrees", "differs", "failed"), jurors),
        f"Mean share of the votes behind the verdict: {mean}.\n" if mean is not None else "",
    ]


def _section(title: str, header: Sequence[str], rows: Any) -> str:
    found = list(rows)
    return f"## {title.capitalize()}\n\n{_table(header, found)}" if found else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(_cell(value) for value in line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    """Text of others in a table: one line, no markup of theirs."""
    shown = f"{value:,}" if isinstance(value, int) else str(value)
    return printable(" ".join(shown.split())).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
