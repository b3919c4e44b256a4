"""Whether a server rounds its logits, which a client sees in the scores alone: many documents share few of them."""

from __future__ import annotations

from collections.abc import Sequence

from prism.engines.base import LabelLogits
from prism.errors import DocumentError

_STEP = 2.0**-8
"""What bfloat16 keeps of a logit between 1 and 2 is a multiple of 2**-7, of a larger one a multiple of more."""
_TOLERANCE = 0.05
"""In steps: what log-probabilities in float32 lose."""
_LEAST_ANSWERS, _LEAST_VALUES = 16, 4
"""By chance one difference in ten looks rounded: sixteen of them do not."""


def looks_rounded(answers: Sequence[LabelLogits | DocumentError]) -> bool:
    """Whether all differences of label logits are multiples of what bfloat16 can tell apart."""
    steps = [(answer.yes - answer.no) / _STEP for answer in answers if isinstance(answer, LabelLogits)]
    if len(steps) < _LEAST_ANSWERS or len({round(step) for step in steps}) < _LEAST_VALUES:
        return False
    return all(abs(step - round(step)) < _TOLERANCE for step in steps)
