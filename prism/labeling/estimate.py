"""What a run would cost, before anything is asked."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path

from prism.catalogue import CATALOGUE, find
from prism.labeling.label_pairs import BadLine, LabelPair, Repeated, read_label_pairs
from prism.labeling.local import OwnModels, look_around
from prism.labeling.panel import ApiJuror, Juror, LocalJuror, Panel
from prism.labeling.store import Store
from prism.llm.chat import estimate_tokens
from prism.location import MINI
from prism.merge import base_of
from prism.types import Record, Usage


class JurorCost(Record):
    """One juror's part."""

    name: str
    questions: int
    """Pairs it has no vote on yet."""
    usage: Usage
    """Estimated: a quarter of the prompt's bytes, and the answer the rubric expects."""
    expected_usd: Decimal
    most_usd: Decimal
    """With every answer as long as it may be."""
    spent_usd: Decimal
    """What earlier runs into the directory paid."""
    key: str
    """What is known of its key."""
    seconds: float | None
    """What is left will take, if it goes on as its answers in the directory did; None without such answers."""
    observer: bool
    """Its votes decide nothing."""
    missing: str | None
    """The base model that a reranker of this machine has to be given by `prism pull` first."""


class CostEstimate(Record):
    """The whole panel's: an upper bound for a sequential panel, which asks fewer."""

    pairs: int
    repeated: int
    bad_lines: tuple[str, ...]
    """The first few."""
    bad_line_count: int
    sequential: bool
    jurors: tuple[JurorCost, ...]
    served: OwnModels | None
    """What is here of what `--start-local` serves; None without it."""


def estimate_cost(
    panel: Panel, pairs: Path, out: Path, limit: int | None = None, *, start_local: bool = False
) -> CostEstimate:
    """Read the pairs once and count tokens for every vote that `out` does not hold. Nothing is asked or written.

    `start_local`: also look for what serves the panel's own models. Raises PanelError where it has none.
    """
    served = look_around(panel, out / "servers") if start_local else None
    file = out / "votes.sqlite"
    store = Store(file) if file.is_file() else None
    counts = {"pairs": 0, "repeated": 0}
    bad: list[str] = []
    bad_count = 0
    sums = {juror.name: [0, 0] for juror in panel.jurors}
    try:
        for item in read_label_pairs(pairs):
            if isinstance(item, BadLine):
                bad_count += 1
                bad += [f"line {item.line}: {item.problem}"] if len(bad) < 20 else []
            elif isinstance(item, Repeated):
                counts["repeated"] += 1
            elif limit is not None and counts["pairs"] == limit:
                break
            else:
                counts["pairs"] += 1
                _add(panel, item, store, sums)
        jurors = tuple(_juror(panel, juror, sums[juror.name], store) for juror in panel.jurors)
    finally:
        if store:
            store.close()
    return CostEstimate(
        **counts,
        bad_lines=tuple(bad),
        bad_line_count=bad_count,
        sequential=bool(panel.sequential),
        jurors=jurors,
        served=served,
    )


def _add(panel: Panel, pair: LabelPair, store: Store | None, sums: dict[str, list[int]]) -> None:
    known = store.votes_on(pair.id, panel.rubric.key) if store else {}
    tokens = estimate_tokens(panel.rubric.messages(pair.query, pair.document)) if pair.has_text else 0
    for name, sum_ in sums.items():
        if name not in known:
            sum_[0] += 1
            sum_[1] += tokens


def _juror(panel: Panel, juror: Juror, sums: list[int], store: Store | None) -> JurorCost:
    questions, tokens = sums
    expected = most = Usage()
    price, key, seconds = None, "none needed", None
    if isinstance(juror, ApiJuror):
        price = juror.price
        longest = juror.max_answer_tokens or panel.rubric.max_answer_tokens
        expected = Usage(prompt_tokens=tokens, written_tokens=questions * panel.rubric.expected_answer_tokens)
        most = Usage(prompt_tokens=tokens, written_tokens=questions * longest)
        provider = panel.providers[juror.provider]
        pace = store.seconds_an_answer(juror.name, panel.rubric.key) if store else None
        seconds = None if pace is None else questions * pace / provider.concurrency
        variable = provider.key_env
        if variable:
            key = f"{variable} is set" if os.environ.get(variable) else f"{variable} IS NOT SET"
    return JurorCost(
        name=juror.name,
        questions=questions,
        usage=expected,
        expected_usd=price.cost(expected) if price else Decimal(0),
        most_usd=price.cost(most) if price else Decimal(0),
        spent_usd=store.spent(juror=juror.name).total_usd if store else Decimal(0),
        key=key,
        seconds=seconds,
        observer=juror.observer,
        missing=_missing(juror) if isinstance(juror, LocalJuror) else None,
    )


def _missing(juror: LocalJuror) -> str | None:
    name = base_of(MINI) if juror.model == "mini" else juror.model
    base = CATALOGUE.get(name)
    return name if base and find(base) is None else None
