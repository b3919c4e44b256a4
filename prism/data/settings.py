"""Settings of pairs made without an LLM, as recipes spell them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from prism.types import Record


class Stage(Record):
    """A stretch of the curriculum. Order in the recipe is order in training."""

    max_chars: int = Field(ge=100)
    """Length of the document windows."""
    queries: int = Field(ge=1)
    hard: int = Field(ge=0)
    """BM25 negatives per query."""
    easy: int = Field(default=0, ge=0)
    """Random negatives per query: what makes lexical matching appear early."""
    human: int = Field(default=1, ge=0)
    """How often each human question is seen."""
    headed: float = Field(default=0.0, ge=0.0, le=1.0)
    """This share of the passages under a heading or title is asked about before all others: more queries are titles and
    headings, which are most like what people type."""
    foreign: int = Field(default=0, ge=0)
    """Queries in other languages than English, on top of `queries`; half of them in scripts without spaces."""


class HeldOut(Record):
    """Documents kept out of training, to measure on."""

    share: float = Field(default=0.05, gt=0.0, lt=0.5)
    queries: int = Field(default=400, ge=10)
    negatives: int = 9
    max_chars: int = 420


class Pairs(Record):
    """Pairs made from corpora without an LLM."""

    root: Path = Path("../shared/data")
    corpora: tuple[Literal["techdocs", "pubmedqa", "covidqa", "qed", "cmrc2018"], ...]
    texts: tuple[Path, ...] = ()
    """JSONL files of further sections (`prism.data.sources.own_texts`)."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    held_out: HeldOut = HeldOut()
