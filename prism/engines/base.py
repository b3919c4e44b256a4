"""The engine protocol: two batched, cancellable, async operations over token ids; and what every engine refuses."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal, NamedTuple, Protocol

from prism.errors import DocumentError, EngineError, InputError


class LabelLogits(NamedTuple):
    """Log-probabilities of the two labels at the first answer position, up to a constant that both share."""

    yes: float
    no: float


class ScoreOutput(NamedTuple):
    """Answer of `Engine.score`: one entry per prompt, in order."""

    labels: list[LabelLogits | DocumentError]
    cached_tokens: int
    """Prompt tokens that were not computed again thanks to a shared prefix."""


class WriteRequest(NamedTuple):
    """One text to write: the prompt ids (label token included) and its token limit."""

    ids: Sequence[int]
    max_tokens: int


class WritePiece(NamedTuple):
    """A piece of one written text. The last piece of each request carries `finish`."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls here
    """Position of the request in the call."""
    text: str
    tokens: int
    finish: Literal["stop", "length"] | None
    """`stop`: the end-of-turn token (no part of `text`) or a stop string (its last part, so the parser sees the closing
    tag); `length`: the token limit."""


Emit = Callable[[WritePiece], None]


class Engine(Protocol):
    """What `Reranker` needs of a model. Cancelling the awaiting task stops the work.

    An engine that does not batch across calls says so by `one_at_a_time = True`: see `prism.engines.turns`.
    """

    async def score(self, prompts: Sequence[Sequence[int]]) -> ScoreOutput:
        """One forward pass per prompt; reads the two label logits after its last token.

        Raises LabelMissing when the backend withholds a label, EngineError when it fails as a whole.
        """
        ...

    def write(self, requests: Sequence[WriteRequest]) -> AsyncIterator[WritePiece]:
        """Greedy continuations, interleaved as they are written."""
        ...

    async def aclose(self) -> None:
        """Free the model. Calling twice is harmless."""
        ...


def require_prompts(requests: Sequence[WriteRequest]) -> None:
    """Raises InputError for a text to write after nothing."""
    for index, request in enumerate(requests):
        if not request.ids:
            raise InputError(f"write request {index} has an empty prompt; render it with the template first")


def unscorable(ids: Sequence[int], context: float, reader: str = "the model") -> DocumentError | None:
    """Why a prompt cannot be scored where `reader` reads `context` tokens, if it cannot."""
    if not ids:
        return DocumentError("the prompt is empty, expected at least one token; render it with the template first")
    if len(ids) > context:
        return DocumentError(
            f"the prompt has {len(ids)} tokens, {reader} reads at most {context}; shorten the document"
        )
    return None


def refuse_nan(labels: Sequence[LabelLogits | DocumentError], computed_in: str) -> None:
    """Raises EngineError for label logits that are no numbers; `computed_in`: what overflows, and what to try."""
    for index, label in enumerate(labels):
        if isinstance(label, LabelLogits) and not (math.isfinite(label.yes) and math.isfinite(label.no)):
            raise EngineError(
                f"prompt {index} has label logits yes={label.yes}, no={label.no}, expected finite numbers; "
                f"the weights are broken or {computed_in}"
            )
