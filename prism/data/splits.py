"""Splits by query, decided by a hash: the same query falls on the same side in every file and every run."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from prism.errors import InputError
from prism.evidence.sentences import UNIT
from prism.files.jsonl import Drops, JsonlWriter, OnBad, read_queries
from prism.text import stable_id


def query_key(text: str) -> str:
    """What two spellings of a query share: case, width, punctuation and spaces left out."""
    return " ".join(units(text))


def units(text: str) -> list[str]:
    """Lower-cased words and numbers; single characters of scripts without spaces between words."""
    return [match.group() for match in UNIT.finditer(unicodedata.normalize("NFKC", text).casefold())]


def split_of(query: str, shares: Mapping[str, float], salt: str = "") -> str:
    """Name of the split a query belongs to.

    `shares` maps names to shares of the queries that sum to 1. Raising one share by lowering the last one only moves
    queries out of the last: a larger dev split contains the smaller one.
    """
    if not shares or any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1.0) > 1e-9:
        raise InputError(f"shares must be at least 0 and sum to 1, got {dict(shares)}")
    place = int(stable_id("split", salt, query_key(query)), 16) / 2**64
    bound = 0.0
    for name, share in shares.items():
        bound += share
        if place < bound:
            return name
    return [name for name, share in shares.items() if share > 0][-1]  # the last bound was rounded


def parse_shares(text: str) -> dict[str, float]:
    """`train=0.9,dev=0.1` as a mapping. Raises InputError when it is not that."""
    try:
        shares = {name.strip(): float(share) for name, _, share in (part.partition("=") for part in text.split(","))}
    except ValueError as error:
        raise InputError(f"splits: expected NAME=SHARE,NAME=SHARE such as train=0.9,dev=0.1, got {text!r}") from error
    if bad := [name for name in shares if not name.isidentifier()]:
        raise InputError(f"splits: {bad[0]!r} is no name for a file: use letters, digits and underscores")
    split_of("", shares)
    return shares


def split_file(
    path: Path, folder: Path, shares: Mapping[str, float], salt: str, drops: Drops, on_bad: OnBad = "fail"
) -> dict[str, int]:
    """Write `folder/NAME.jsonl` for each split; returns how many records each got."""
    with ExitStack() as files:
        outs = {name: files.enter_context(JsonlWriter(folder / f"{name}.jsonl")) for name in shares}
        for _, row in read_queries(path, drops, on_bad):
            outs[split_of(row["query"], shares, salt)].write(row)
    return {name: out.count for name, out in outs.items()}
