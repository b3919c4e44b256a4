"""Records -> tokenized rows, in training order, with every dropped record counted and named."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from prism.errors import InputError
from prism.template import Part, Supervised, Template
from prism.text import stable_id
from prism.types import Document, Example

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""torch's cross-entropy skips this label."""


class Row(NamedTuple):
    """One training sequence, not yet padded."""

    input_ids: list[int]
    labels: list[int]
    """Cross-entropy targets: the written part, and the label token where no teacher score exists. The rest is IGNORED.

    With a soft teacher the label's cross-entropy would fight the distillation term, so that token is masked.
    """
    lm_labels: list[int]
    """Language-model targets on the query and document texts; all IGNORED for most records."""
    label_position: int
    """Where the label stands; the logits one step before it are the score."""
    teacher_score: float
    """NaN when the record does not distil."""
    query: int
    """Equal for the documents of one query."""


class Drops:
    """Counts of dropped records by reason, with the first few named."""

    def __init__(self, named: int = 20) -> None:
        self.counts: Counter[str] = Counter()
        self.named: list[str] = []
        self._limit = named

    def add(self, reason: str, number: int, example: Example) -> None:
        self.counts[reason] += 1
        if len(self.named) < self._limit:
            self.named.append(f"record {number} (query {example.query[:60]!r}, document {example.doc_id!r}): {reason}")


def make_row(example: Example, template: Template, max_tokens: int, lm: bool) -> Row:
    """Tokenize one record. Raises InputError with the reason when it must be dropped."""
    sequence = _supervise(example, template, max_tokens)
    position = sequence.parts.index(Part.LABEL)
    distils = "distill" in example.losses and example.teacher_score is not None
    writes = "sft" in example.losses
    labels, lm_labels = [], []
    for id_, part in zip(sequence.ids, sequence.parts, strict=True):
        wanted = (part is Part.WRITTEN and writes) or (part is Part.LABEL and writes and not distils)
        labels.append(id_ if wanted else IGNORED)
        lm_labels.append(id_ if lm and part is Part.TEXT else IGNORED)
    teacher = example.teacher_score if distils and example.teacher_score is not None else float("nan")
    query = int(stable_id(example.query_id or example.query), 16) % 2**31
    return Row(sequence.ids, labels, lm_labels, position, teacher, query)


def _supervise(example: Example, template: Template, max_tokens: int) -> Supervised:
    if not example.query.strip() or not example.document.strip():
        raise InputError("blank query or document")
    if not example.losses:
        raise InputError("no losses")
    sequence = template.supervise(
        example.query,
        Document(text=example.document, title=example.title),
        example.verdict,
        contribution=example.contribution,
        evidence=example.evidence,
        max_tokens=max_tokens,
    )
    if sequence.truncation and example.verdict == "yes":
        raise InputError(f"prompt and target exceed {max_tokens} tokens")  # the evidence may be in what was cut
    return sequence


def rows(
    examples: Iterable[Example], template: Template, *, max_tokens: int, lm_share: float, seed: int, drops: Drops
) -> Iterator[Row]:
    """Tokenized rows in the order of the records; what cannot be used goes into `drops`."""
    rng = random.Random(seed)
    for number, example in enumerate(examples, 1):
        lm = rng.random() < lm_share
        try:
            yield make_row(example, template, max_tokens, lm)
        except InputError as error:
            drops.add(str(error), number, example)


def order(lengths: list[int], batch_size: int, accumulation: int, *, shuffle: bool, seed: int) -> list[int]:
    """A training order with little padding, reproducible, so that a run resumes exactly.

    The rows of one optimizer step are drawn at random (with `shuffle` off: as the data has them, a curriculum) and only
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


def collator(pad_id: int, *, packed: bool = False) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """Rows into a batch: padded on the right, or (`packed`) one after another in a single sequence [1, T].

    `score_rows` and `score_positions` say where in the batch the logits that give the score are: one place before the
    label. Packed rows are told apart by their `position_ids`, which begin at 0 in each.
    """
    return _pack if packed else functools.partial(_pad, pad_id)


def _pad(pad_id: int, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    import torch

    longest = max(len(row["input_ids"]) for row in batch)

    def pad(key: str, value: int) -> Tensor:
        return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in batch])

    lengths = torch.tensor([len(row["input_ids"]) for row in batch])
    return {
        "input_ids": pad("input_ids", pad_id),
        "attention_mask": (torch.arange(longest)[None] < lengths[:, None]).long(),
        "labels": pad("labels", IGNORED),
        "lm_labels": pad("lm_labels", IGNORED),
        "score_rows": torch.arange(len(batch)),
        "score_positions": torch.tensor([row["label_position"] - 1 for row in batch]),
        **_targets(batch),
    }


def _pack(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    import torch

    lengths = [len(row["input_ids"]) for row in batch]
    starts = [sum(lengths[:index]) for index in range(len(batch))]

    def join(key: str) -> Tensor:
        return torch.tensor([[id_ for row in batch for id_ in row[key]]])

    labels, lm_labels = join("labels"), join("lm_labels")
    labels[0, starts] = lm_labels[0, starts] = IGNORED  # nothing is predicted from the row before
    return {
        "input_ids": join("input_ids"),
        "attention_mask": torch.ones(1, sum(lengths), dtype=torch.long),
        "position_ids": torch.tensor([[position for length in lengths for position in range(length)]]),
        "labels": labels,
        "lm_labels": lm_labels,
        "score_rows": torch.zeros(len(batch), dtype=torch.long),
        "score_positions": torch.tensor(
            [start + row["label_position"] - 1 for start, row in zip(starts, batch, strict=True)]
        ),
        **_targets(batch),
    }


def _targets(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    import torch

    return {
        "queries": torch.tensor([row["query"] for row in batch]),
        "teacher_scores": torch.tensor([row["teacher_score"] for row in batch], dtype=torch.float32),
    }
