"""Records -> tokenized rows, in the order of the records, with every dropped record counted and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prism.errors import InputError
from prism.parallel import ordered
from prism.template import Part, Supervised, Template
from prism.text import stable_id
from prism.training.recipe import PartWeights
from prism.types import Document, Example

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100
"""torch's cross-entropy skips this label."""
_RECORDS_AT_ONCE = 500
_EVEN = PartWeights()


class Row(NamedTuple):
    """One training sequence, not yet padded."""

    input_ids: NDArray[np.int32]
    """[tokens]."""
    label_position: int
    """Where the label stands; the logits one step before it are the score."""
    teacher_score: float
    """NaN when the record does not distil."""
    query: int
    """Equal for the documents of one query."""
    weights: NDArray[np.float32]
    """[tokens from the label to the end]: what the cross-entropy of each counts. 0: the token is no target.

    The label counts where no teacher scores it; with a soft teacher its cross-entropy would fight the distillation.
    """

    @property
    def labels(self) -> NDArray[np.int32]:
        """[tokens]: cross-entropy targets; IGNORED where nothing counts."""
        targets = np.full_like(self.input_ids, IGNORED)
        counted = np.flatnonzero(self.weights) + self.label_position
        targets[counted] = self.input_ids[counted]
        return targets


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


class _Rendering(NamedTuple):
    """What every process that makes rows needs."""

    template: Template
    max_tokens: int
    part_weights: PartWeights


def make_row(example: Example, template: Template, max_tokens: int, part_weights: PartWeights = _EVEN) -> Row:
    """Tokenize one record. Raises InputError with the reason when it must be dropped."""
    sequence = _supervise(example, template, max_tokens)
    position = sequence.parts.index(Part.LABEL)
    distils = "distill" in example.losses and example.teacher_score is not None
    counts = _counts(part_weights, distils) if "sft" in example.losses else {}
    teacher = example.teacher_score if distils and example.teacher_score is not None else float("nan")
    return Row(
        input_ids=np.asarray(sequence.ids, dtype=np.int32),
        label_position=position,
        teacher_score=teacher,
        query=int(stable_id(example.query_id or example.query), 16) % 2**31,
        weights=np.asarray([counts.get(part, 0.0) for part in sequence.parts[position:]], dtype=np.float32),
    )


def _counts(weights: PartWeights, distils: bool) -> dict[Part, float]:
    """With a soft teacher the label's own cross-entropy would fight the distillation: it does not count then."""
    return {
        Part.LABEL: weights.label if weights.label_with_teacher or not distils else 0.0,
        Part.CONTRIBUTION: weights.contribution,
        Part.EVIDENCE: weights.evidence,
        Part.WRITTEN: weights.tags,
    }


def _supervise(example: Example, template: Template, max_tokens: int) -> Supervised:
    if not example.query.strip() or not example.document.strip():
        raise InputError("blank query or document")
    if not example.losses:
        raise InputError("no losses")
    too_long = f"prompt and target exceed {max_tokens} tokens"
    try:
        sequence = template.supervise(
            example.query,
            Document(text=example.document, title=example.title),
            example.verdict,
            contribution=example.contribution,
            evidence=example.evidence,
            max_tokens=max_tokens,
        )
    except InputError as error:  # query and target alone leave no room: one reason, whatever the numbers
        raise InputError(too_long) from error
    if sequence.truncation and example.verdict == "yes":
        raise InputError(too_long)  # the evidence may be in what was cut
    return sequence


def rows(
    examples: Iterable[Example],
    template: Template,
    *,
    max_tokens: int,
    drops: Drops,
    part_weights: PartWeights = _EVEN,
    workers: int | None = None,
) -> Iterator[Row]:
    """Tokenized rows in the order of the records; what cannot be used goes into `drops`.

    Records are rendered in `workers` processes (default: one for each core, where there are enough records); neither
    rows nor drops depend on how many there are.
    """
    rendering = _Rendering(template, max_tokens, part_weights)
    numbered = enumerate(examples, 1)
    for made, left_out in ordered(_render, rendering, numbered, chunk=_RECORDS_AT_ONCE, workers=workers):
        for reason, number, example in left_out:
            drops.add(reason, number, example)
        yield from made


def _render(rendering: _Rendering, some: list[tuple[int, Example]]) -> tuple[list[Row], list[tuple[str, int, Example]]]:
    made: list[Row] = []
    left_out: list[tuple[str, int, Example]] = []
    for number, example in some:
        try:
            made.append(make_row(example, *rendering))
        except InputError as error:
            left_out.append((str(error), number, example))
    return made, left_out


def as_dataset(found: Sequence[Row], arranged: Iterable[tuple[int, int]]) -> Dataset:
    """Rows in training order, as (row, number of its batch), in flat arrays: a few bytes a token."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    places = list(arranged)
    ordered_rows = [found[index] for index, _ in places]

    def flat(name: str) -> Any:
        parts = [getattr(row, name) for row in ordered_rows]
        ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return pa.LargeListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(parts)))

    columns = {
        "input_ids": flat("input_ids"),
        "weights": flat("weights"),
        "label_position": pa.array([row.label_position for row in ordered_rows]),
        "teacher_score": pa.array([row.teacher_score for row in ordered_rows], type=pa.float64(), from_pandas=False),
        "query": pa.array([row.query for row in ordered_rows]),
        "batch": pa.array([batch for _, batch in places]),
    }
    return Dataset(InMemoryTable.from_pydict(columns)).with_format("numpy")
