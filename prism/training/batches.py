"""An epoch cut into optimizer steps and batches: which rows are computed together, and their tensors.

steps_of : order of training -> `Steps`, which cuts a step when it is asked for it -> rows -> tensors
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prism.errors import DataError
from prism.training.recipe import TERMS, Recipe
from prism.training.rows import Row, Rows

if TYPE_CHECKING:
    from torch import Tensor

Order = NDArray[np.int64]
"""Numbers of rows in the order of training; also some that follow each other in it."""
Collate = Callable[[Sequence[Row]], dict[str, Any]]


def steps_of(recipe: Recipe, rows: Rows, pad_id: int, processes: int = 1) -> Steps:
    """An epoch of the recipe. Raises DataError when a loss that compares documents would never see two of one query."""
    schedule, by_query = recipe.schedule, recipe.losses.by_query
    share = schedule.batch_size * schedule.accumulation
    if by_query:
        arranged = order_by_query(rows.queries, shuffle=schedule.shuffle, seed=recipe.seed)
        _require_groups(rows, arranged, share if schedule.tokens_per_batch else schedule.batch_size)
    else:
        arranged = order(rows.lengths, share * processes, shuffle=schedule.shuffle, seed=recipe.seed)
    if processes > 1:
        arranged = filled(arranged, share * processes)
        arranged = arranged if by_query else deal(arranged, share, processes)
    return Steps(
        rows,
        arranged,
        share=share,
        processes=processes,
        cut=_by_rows(schedule.batch_size) if schedule.tokens_per_batch is None else _by_tokens(recipe, rows),
        collate=collator(pad_id, packed=schedule.packing),
    )


def _require_groups(rows: Rows, arranged: Order, size: int) -> None:
    for start in range(0, len(arranged), size):
        some = arranged[start : start + size]
        queries = rows.queries[some[~np.isnan(rows.teacher_scores[some])]]
        if len(np.unique(queries)) < len(queries):
            return
    raise DataError(
        "losses.margin and losses.listwise compare documents of one query, and no query has two records with a"
        " teacher_score: give more documents a query, or set these weights to 0"
    )


# --- order -----------------------------------------------------------------------------------------------------------


def order(lengths: NDArray[np.int32], step_size: int, *, shuffle: bool, seed: int) -> Order:
    """A training order with little padding, reproducible, so that a run resumes exactly.

    The `step_size` rows of one optimizer step are drawn at random (with `shuffle` off: as the data has them) and only
    then sorted by length. Grouping whole steps by length would put the long rows together, which are the ones with
    verdict yes: each step would then push all scores one way.
    """
    drawn = np.arange(len(lengths), dtype=np.int64)
    if shuffle:
        random.Random(seed).shuffle(drawn)  # type: ignore[arg-type]  # an array is a mutable sequence of numbers
    for start in range(0, len(drawn), step_size):
        step = drawn[start : start + step_size]
        step[:] = step[np.argsort(lengths[step], kind="stable")]
    return drawn


def order_by_query(queries: NDArray[np.int32], *, shuffle: bool, seed: int) -> Order:
    """A training order that keeps the documents of a query together, for losses that compare them.

    Queries come in random order (with `shuffle` off: as the data first names them). Where a batch ends within a query,
    its documents are compared in two parts.
    """
    members: dict[int, list[int]] = {}
    for index, query in enumerate(queries.tolist()):
        members.setdefault(query, []).append(index)
    groups = list(members.values())
    if shuffle:
        random.Random(seed).shuffle(groups)
    return np.array([index for group in groups for index in group], dtype=np.int64)


def filled(arranged: Order, size: int) -> Order:
    """The last step made whole, from the front: no process is left without rows, and all take part in every step."""
    return np.resize(arranged, len(arranged) + -len(arranged) % size)


def deal(arranged: Order, share: int, processes: int) -> Order:
    """The same order, dealt out: of a step's `processes` x `share` rows each process gets every so-many-th one.

    Processes then get rows of about the same lengths and wait little for each other.
    """
    return arranged.reshape(-1, share, processes).swapaxes(1, 2).reshape(-1)


# --- steps -----------------------------------------------------------------------------------------------------------

Cut = Callable[[Order, int], list[Order]]
"""(rows of a process in a step, how many batches at least) -> batches."""


class StepItem(dict[str, Any]):
    """What a process computes in an optimizer step: "batches" of tensors; "totals": what the terms of all processes are
    means over.

    Between processes it travels as arrays: tensors would take a file each, and a process may open only so many.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _item, ([_converted(batch, _array) for batch in self["batches"]], self["totals"])


def _item(batches: list[dict[str, Any]], totals: dict[str, float]) -> StepItem:
    return StepItem(batches=[_converted(batch, _tensor) for batch in batches], totals=totals)


def _converted(batch: dict[str, Any], convert: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, dict | int) else convert(value) for name, value in batch.items()}


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.numpy()


def _tensor(array: NDArray[Any]) -> Tensor:
    import torch

    return torch.from_numpy(array)


class Steps:
    """A data set whose items are what a process computes in an optimizer step, cut into batches when asked for.

    Item number `step` x `processes` + `process`. A run resumes at any item without looking at those before it, and
    every process finds by itself what all of them compute: nothing is asked around.
    """

    def __init__(
        self, rows: Rows, arranged: Order, *, share: int, cut: Cut, collate: Collate, processes: int = 1
    ) -> None:
        """`arranged`: `share` rows for each process in turn; one process may find fewer in its last step."""
        self.rows, self.arranged = rows, arranged
        self.step_size = share * processes
        self._share, self._cut, self._collate, self._processes = share, cut, collate, processes

    def __len__(self) -> int:
        return -(-len(self.arranged) // self._share)

    def __getitem__(self, item: int) -> StepItem:
        step = self._step(item)
        collated = [self._collate(self._rows_at(batch)) for batch in step[item % self._processes]]
        found = [batch["counts"] for batch in collated]
        for process, batches in enumerate(step):
            if process != item % self._processes:
                found += [counts(self._rows_at(batch)) for batch in batches]
        return StepItem(batches=collated, totals={name: sum(one[name] for one in found) for name in TERMS})

    def batches(self, item: int) -> list[Order]:
        """The rows of each batch. All processes have equally many in a step: none waits for one that is done."""
        return self._step(item)[item % self._processes]

    def _step(self, item: int) -> list[list[Order]]:
        """The batches of every process in the step of this item. Raises IndexError beyond the last one."""
        if not 0 <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        first = item - item % self._processes
        shares = [self._rows_of(number) for number in range(first, first + self._processes)]
        most = max(len(self._cut(some, 1)) for some in shares)
        return [self._cut(some, most) for some in shares]

    def _rows_at(self, batch: Order) -> list[Row]:
        return [self.rows[index] for index in batch]

    def _rows_of(self, item: int) -> Order:
        return self.arranged[item * self._share : (item + 1) * self._share]


def _by_rows(size: int) -> Cut:
    return lambda some, _least: [some[start : start + size] for start in range(0, len(some), size)]


def _by_tokens(recipe: Recipe, rows: Rows) -> Cut:
    budget, packed, by_query = recipe.schedule.tokens_per_batch, recipe.schedule.packing, recipe.losses.by_query
    assert budget is not None  # asked for

    def cut(some: Order, least: int) -> list[Order]:
        units = rows.queries[some].tolist() if by_query else None
        found = token_batches(rows.lengths[some].tolist(), budget, packed=packed, units=units, least=least)
        return [some[np.sort(places)] for places in found]

    return cut


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
    longest = {unit: max(lengths[position] for position in group) for unit, group in members.items()}
    batches: list[list[int]] = []
    widest = taken = 0  # of the last batch: its longest row, and the sum of its rows
    for unit in sorted(members, key=lambda unit: -longest[unit]):
        group, own = members[unit], sum(lengths[position] for position in members[unit])
        cost = taken + own if packed else widest * (len(batches[-1]) + len(group)) if batches else 0
        if batches and cost <= budget:
            batches[-1] += group
            taken += own
        else:
            batches.append(list(group))
            widest, taken = longest[unit], own
    while len(batches) < min(least, len(members)):
        batches = _one_more(batches, members, units)
    return batches


def _one_more(batches: list[list[int]], members: dict[int, list[int]], units: Sequence[int] | None) -> list[list[int]]:
    """The batch of most units cut in two."""
    split = [list(dict.fromkeys(p if units is None else units[p] for p in batch)) for batch in batches]
    widest = max(range(len(batches)), key=lambda number: len(split[number]))
    names, half = split[widest], len(split[widest]) // 2
    halves = [[p for name in part for p in members[name]] for part in (names[:half], names[half:])]
    return [*batches[:widest], *halves, *batches[widest + 1 :]]


# --- tensors ---------------------------------------------------------------------------------------------------------


def collator(pad_id: int, *, packed: bool = False) -> Collate:
    """Rows into a batch: padded on the right, or (`packed`) one after another in a single sequence [1, T].

    Which rows and tokens count is known here, so what a device gets are places: it never has to look for them, which
    would make this process wait for it. Places are those of hidden states [B, T, H] taken as [B x T, H].

    `score_places`, `teacher_scores`, `queries` [D]: rows with a teacher; the logits that give the score stand one place
    before the label. `target_places`, `target_ids`, `target_weights` [N]: what is predicted where, and what it counts.
    `longest`: no row has more tokens; packed ones also have `ends` [R + 1], 0 and where each row ends. `counts`: what
    each term of the loss is a mean over, and tokens.
    """
    return functools.partial(_batch, _pack if packed else functools.partial(_pad, pad_id))


Shape = Callable[[Sequence[Row]], tuple[dict[str, NDArray[Any]], NDArray[np.int64]]]
"""rows -> (arrays for the model, the place [B] at which each row begins)."""


def _batch(shape: Shape, rows: Sequence[Row]) -> dict[str, Any]:
    arrays, starts = shape(rows)
    arrays |= _distilled(rows, starts) | _targets(rows, starts)
    longest = max(len(row.input_ids) for row in rows)
    return {**_converted(arrays, _tensor), "longest": longest, "counts": counts(rows)}


def counts(rows: Sequence[Row]) -> dict[str, float]:
    """What each term is a mean over: rows with a teacher, pairs of a query, queries, weights of targets; and tokens."""
    sizes = Counter(row.query for row in rows if not np.isnan(row.teacher_score)).values()
    return {
        **dict.fromkeys(("distill", "distill_ce", "distill_logit"), float(sum(sizes))),
        "margin": float(sum(size * (size - 1) // 2 for size in sizes)),
        "listwise": float(sum(size > 1 for size in sizes)),
        "sft": float(sum(row.weights.sum(dtype=np.float64) for row in rows)),
        "tokens": float(sum(len(row.input_ids) for row in rows)),
    }


def _pad(pad_id: int, rows: Sequence[Row]) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    longest = max(len(row.input_ids) for row in rows)
    ids_BT = np.full((len(rows), longest), pad_id, dtype=np.int64)
    for index, row in enumerate(rows):
        ids_BT[index, : len(row.input_ids)] = row.input_ids
    return {"input_ids": ids_BT}, np.arange(len(rows), dtype=np.int64) * longest


def _pack(rows: Sequence[Row]) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    sizes = np.array([len(row.input_ids) for row in rows])
    starts = np.cumsum(sizes) - sizes
    ids_T = np.concatenate([row.input_ids for row in rows]).astype(np.int64)
    positions_T = np.arange(len(ids_T)) - np.repeat(starts, sizes)
    ends = np.append(starts, len(ids_T)).astype(np.int32)
    return {"input_ids": ids_T[None], "position_ids": positions_T[None], "ends": ends}, starts


def _distilled(rows: Sequence[Row], starts: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    found = [(start, row) for start, row in zip(starts, rows, strict=True) if not np.isnan(row.teacher_score)]
    return {
        "score_places": np.array([start + row.label_position - 1 for start, row in found], dtype=np.int64),
        "teacher_scores": np.array([row.teacher_score for _, row in found], dtype=np.float32),
        "queries": np.array([row.query for _, row in found], dtype=np.int64),
    }


def _targets(rows: Sequence[Row], starts: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    counted = [np.flatnonzero(row.weights) for row in rows]
    parts = list(zip(starts, rows, counted, strict=True))
    return {
        "target_places": np.concatenate([start + row.label_position - 1 + at for start, row, at in parts]),
        "target_ids": np.concatenate([row.input_ids[row.label_position + at] for _, row, at in parts]).astype(np.int64),
        "target_weights": np.concatenate([row.weights[at] for _, row, at in parts]),
    }
