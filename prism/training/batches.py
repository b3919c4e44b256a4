"""Which rows are computed together: the order of training, batches by length, and rows put into tensors."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from prism.training.dataset import IGNORED
from prism.training.losses import comparable_pairs

if TYPE_CHECKING:
    from torch import Tensor

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


# --- order -----------------------------------------------------------------------------------------------------------


def order(lengths: list[int], batch_size: int, accumulation: int, *, shuffle: bool, seed: int) -> list[int]:
    """A training order with little padding, reproducible, so that a run resumes exactly.

    The rows of one optimizer step are drawn at random (with `shuffle` off: as the data has them) and only
    then sorted by length into its `accumulation` batches. Grouping whole steps by length would put the long rows
    together, which are the ones with verdict yes: each step would then push all scores one way.
    """
    indices = list(range(len(lengths)))
    if shuffle:
        random.Random(seed).shuffle(indices)
    size = batch_size * accumulation
    steps = (indices[start : start + size] for start in range(0, len(indices), size))
    return [index for step in steps for index in sorted(step, key=lengths.__getitem__)]


def order_by_query(queries: list[int], *, shuffle: bool, seed: int) -> list[int]:
    """A training order that keeps the documents of a query together, for losses that compare them.

    Queries come in random order (with `shuffle` off: as the data first names them). Where a batch ends within a query,
    its documents are compared in two parts.
    """
    members: dict[int, list[int]] = {}
    for index, query in enumerate(queries):
        members.setdefault(query, []).append(index)
    groups = list(members.values())
    if shuffle:
        random.Random(seed).shuffle(groups)
    return [index for group in groups for index in group]


def filled(arranged: Sequence[int], size: int) -> list[int]:
    """The last step made whole, from the front: no process is left without rows, and all take part in every step."""
    missing = -len(arranged) % size
    return [*arranged, *(arranged[index % len(arranged)] for index in range(missing))]


def deal(arranged: Sequence[int], share: int, processes: int) -> list[int]:
    """The same order, dealt out: of a step's `processes` x `share` rows each process gets every so-many-th one.

    Processes then get rows of about the same lengths and wait little for each other.
    """
    size = share * processes
    steps = (arranged[start : start + size] for start in range(0, len(arranged), size))
    return [index for step in steps for process in range(processes) for index in step[process::processes]]


# --- batches by a budget of tokens -----------------------------------------------------------------------------------


def token_batches(
    lengths: Sequence[int], budget: int, *, packed: bool = False, units: Sequence[int] | None = None, least: int = 1
) -> list[list[int]]:
    """Rows cut into batches of similar length that cost at most `budget` tokens each: lists of positions in `lengths`.

    A batch costs rows x its longest row (what padding makes of it), or the sum of its rows where it is `packed`. A row
    that is longer than the budget gets a batch of its own: nothing is cut. Rows with equal `units` (documents of one
    query) stay together. At least `least` batches, as far as there are units: processes that train together need
    equally many.
    """
    members: dict[int, list[int]] = {}
    for position in range(len(lengths)):
        members.setdefault(position if units is None else units[position], []).append(position)
    longest_first = sorted(members.values(), key=lambda group: -max(lengths[position] for position in group))

    def cost(group: Sequence[int]) -> int:
        sizes = [lengths[position] for position in group]
        return sum(sizes) if packed else max(sizes) * len(sizes)

    batches: list[list[int]] = []
    for group in longest_first:
        if batches and cost([*batches[-1], *group]) <= budget:
            batches[-1] += group
        else:
            batches.append(list(group))
    while len(batches) < min(least, len(longest_first)):
        batches = _one_more(batches, members, units)
    return batches


def _one_more(batches: list[list[int]], members: dict[int, list[int]], units: Sequence[int] | None) -> list[list[int]]:
    """The batch of most units cut in two."""
    split = [list(dict.fromkeys(p if units is None else units[p] for p in batch)) for batch in batches]
    widest = max(range(len(batches)), key=lambda number: len(split[number]))
    names, half = split[widest], len(split[widest]) // 2
    halves = [[p for name in part for p in members[name]] for part in (names[:half], names[half:])]
    return [*batches[:widest], *halves, *batches[widest + 1 :]]


def numbered(
    lengths: Sequence[int],
    share: int,
    processes: int,
    budget: int,
    *,
    packed: bool = False,
    units: Sequence[int] | None = None,
) -> list[int]:
    """For rows in training order, `share` for each process in turn: in which batch of its step each is computed.

    Every process finds the same numbers by itself, and all have equally many batches in a step.
    """
    numbers = [0] * len(lengths)
    chunks = [range(start, min(start + share, len(lengths))) for start in range(0, len(lengths), share)]
    for first in range(0, len(chunks), processes):
        step = chunks[first : first + processes]

        def cut(chunk: range, least: int) -> list[list[int]]:
            own = None if units is None else [units[place] for place in chunk]
            return token_batches([lengths[place] for place in chunk], budget, packed=packed, units=own, least=least)

        most = max(len(cut(chunk, 1)) for chunk in step)
        for chunk in step:
            for number, batch in enumerate(cut(chunk, most)):
                for position in batch:
                    numbers[chunk[position]] = number
    return numbers


# --- tensors ---------------------------------------------------------------------------------------------------------


def collator(pad_id: int, *, packed: bool = False, grouped: bool = False) -> Collate:
    """Rows into a batch: padded on the right, or (`packed`) one after another in a single sequence [1, T].

    `score_rows` and `score_positions` say where in the batch the logits that give the score are: one place before the
    label. Packed rows are told apart by their `position_ids`, which begin at 0 in each. `counts`: what each term of the
    loss is a mean over. `grouped`: rows that carry the number of their `batch` become {"batches": [...]}, one batch for
    each number.
    """
    collate: Collate = functools.partial(_batch, _pack if packed else functools.partial(_pad, pad_id))
    return functools.partial(_group, collate) if grouped else collate


def _group(collate: Collate, rows: list[dict[str, Any]]) -> dict[str, Any]:
    ranked = sorted(rows, key=lambda row: row["batch"])
    return {"batches": [collate(list(batch)) for _, batch in groupby(ranked, key=lambda row: row["batch"])]}


def _batch(shape: Collate, rows: list[dict[str, Any]]) -> dict[str, Any]:
    batch = {**shape(rows), **_targets(rows)}
    return {**batch, "counts": counts(batch)}


def counts(batch: dict[str, Tensor]) -> dict[str, float]:
    """What each term is a mean over: rows with a teacher, pairs of a query, queries, weights of targets."""
    distilled = ~batch["teacher_scores"].isnan()
    pairs_BB = comparable_pairs(batch["queries"][distilled])
    return {
        **dict.fromkeys(("distill", "distill_ce", "distill_logit"), float(distilled.sum())),
        "margin": float(pairs_BB.sum()),
        # Of several rows of a query the first has one after it and none before it.
        "listwise": float((pairs_BB.any(1) & ~pairs_BB.any(0)).sum()),
        "sft": float(batch["label_weights"].double().sum()),
    }


def _pad(pad_id: int, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    import torch

    sizes = [len(row["input_ids"]) for row in batch]
    ids = np.full((len(batch), max(sizes)), pad_id, dtype=np.int64)
    weights = np.zeros(ids.shape, dtype=np.float32)
    for index, (row, size) in enumerate(zip(batch, sizes, strict=True)):
        ids[index, :size] = row["input_ids"]
        weights[index, row["label_position"] : size] = row["weights"]
    lengths = torch.tensor(sizes)
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": (torch.arange(max(sizes))[None] < lengths[:, None]).long(),
        "labels": torch.from_numpy(np.where(weights > 0, ids, IGNORED)),
        "label_weights": torch.from_numpy(weights),
        "score_rows": torch.arange(len(batch)),
        "score_positions": torch.tensor([int(row["label_position"]) - 1 for row in batch]),
    }


def _pack(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    import torch

    sizes = [len(row["input_ids"]) for row in batch]
    starts = np.cumsum([0, *sizes[:-1]])
    ids = np.concatenate([np.asarray(row["input_ids"], dtype=np.int64) for row in batch])
    weights = np.zeros(len(ids), dtype=np.float32)  # 0 at the start of each row: nothing is predicted from another
    for start, size, row in zip(starts, sizes, batch, strict=True):
        weights[start + row["label_position"] : start + size] = row["weights"]
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "position_ids": torch.from_numpy(np.concatenate([np.arange(size) for size in sizes]))[None],
        "labels": torch.from_numpy(np.where(weights > 0, ids, IGNORED))[None],
        "label_weights": torch.from_numpy(weights)[None],
        "score_rows": torch.zeros(len(batch), dtype=torch.long),
        "score_positions": torch.tensor(
            [int(start) + int(row["label_position"]) - 1 for start, row in zip(starts, batch, strict=True)]
        ),
    }


def _targets(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    import torch

    return {
        "queries": torch.tensor([int(row["query"]) for row in batch]),
        "teacher_scores": torch.tensor([float(row["teacher_score"]) for row in batch], dtype=torch.float32),
    }
