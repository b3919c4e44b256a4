"""Records -> tokenized rows, in training order, with every dropped record counted and named."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prism.errors import InputError
from prism.template import Part, Supervised, Template
from prism.text import stable_id
from prism.training.recipe import PartWeights
from prism.types import Document, Example

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
    weights: list[float]
    """What the cross-entropy of each target counts, from the label to the end of the row."""


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


def make_row(
    example: Example, template: Template, max_tokens: int, lm: bool, part_weights: PartWeights | None = None
) -> Row:
    """Tokenize one record. Raises InputError with the reason when it must be dropped."""
    sequence = _supervise(example, template, max_tokens)
    position = sequence.parts.index(Part.LABEL)
    distils = "distill" in example.losses and example.teacher_score is not None
    counts = _counts(part_weights or PartWeights(), distils) if "sft" in example.losses else {}
    pairs = list(zip(sequence.ids, sequence.parts, strict=True))
    teacher = example.teacher_score if distils and example.teacher_score is not None else float("nan")
    return Row(
        input_ids=sequence.ids,
        labels=[id_ if counts.get(part) else IGNORED for id_, part in pairs],
        lm_labels=[id_ if lm and part is Part.TEXT else IGNORED for id_, part in pairs],
        label_position=position,
        teacher_score=teacher,
        query=int(stable_id(example.query_id or example.query), 16) % 2**31,
        weights=[counts.get(part, 0.0) for _, part in pairs[position:]],
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
    examples: Iterable[Example],
    template: Template,
    *,
    max_tokens: int,
    lm_share: float,
    seed: int,
    drops: Drops,
    part_weights: PartWeights | None = None,
) -> Iterator[Row]:
    """Tokenized rows in the order of the records; what cannot be used goes into `drops`."""
    rng = random.Random(seed)
    for number, example in enumerate(examples, 1):
        lm = rng.random() < lm_share
        try:
            yield make_row(example, template, max_tokens, lm, part_weights)
        except InputError as error:
            drops.add(str(error), number, example)
