"""Settings of records made of question-passage sets, as recipes spell them."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from prism.records import Settings


class Cap(Settings):
    """How much of a set is used."""

    questions: int | None = Field(default=None, ge=1)
    """At most, in all."""
    per_passage: int | None = Field(default=None, ge=1)
    """At most, on one passage."""


class HeldOut(Settings):
    """Documents kept out of training, to measure on: groups of one positive and its hardest negatives."""

    share: float = Field(default=0.03, gt=0.0, lt=0.5)
    """Of the documents."""
    groups: int = Field(default=60, ge=1)
    """For each kind of query in each language, at most."""
    negatives: int = Field(default=9, ge=1)


class Windows(Settings):
    """Documents are cut into windows of whole sentences, of a size drawn for each text, whatever is asked about it."""

    shortest: int = Field(default=100, ge=20)
    """Characters; shorter windows are left out. A character of a script without spaces counts three times."""
    smallest: int = Field(default=350, ge=50)
    """The least a text is cut to."""
    largest: int = Field(default=4000, ge=100)

    @model_validator(mode="after")
    def _ordered(self) -> Windows:
        if not self.shortest <= self.smallest <= self.largest:
            raise ValueError("windows need shortest <= smallest <= largest")
        return self


class Qa(Settings):
    """Records made of question-passage sets (`prism.data.qa`)."""

    files: tuple[Path, ...] = Field(min_length=1)
    """Question-passage JSONL and what `prism.files.qa_sets` reads; sections of documentation get queries by rule."""
    exclude: tuple[Path, ...] = ()
    """Evaluation sets (BEIR folders or JSONL): passages and questions that touch them are left out."""
    caps: dict[str, Cap] = Field(default_factory=dict)
    """By set: the name of its file up to the first dot."""
    limit: int | None = Field(default=None, ge=10)
    """So many questions in all, drawn by hash: for short runs."""
    rule_queries: int = Field(default=10_000, ge=0)
    """Made by rule from sections that come without questions."""
    keywords: float = Field(default=0.25, ge=0.0, le=1.0)
    """Share of the questions that are asked as keywords."""
    titles: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of the documents that show their title, where they have one."""
    windows: Windows = Windows()
    hard: int = Field(default=3, ge=0)
    """Negatives per query from the ranks of BM25 and the dense model in turn."""
    easy: int = Field(default=1, ge=0)
    """Random negatives per query."""
    depth: int = Field(default=30, ge=1)
    """How far down a ranking negatives are looked for."""
    dense: str | None = None
    """Sentence-transformers model: `minilm`, a folder, a hub id. Default: BM25 alone."""
    dense_languages: tuple[str, ...] = ("en",)
    """Languages the dense model reads; the others are ranked by BM25 alone (on pairs of characters for zh and ja)."""
    likely_relevant: float = Field(default=0.5, gt=0.0, le=1.0)
    """A mined negative that the teacher gives this probability or more is left out."""
    held_out: HeldOut = HeldOut()
