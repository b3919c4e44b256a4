"""What a juror gives back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from prism.types import Vote


class CastVote(NamedTuple):
    """A vote, and the call that paid for it."""

    vote: Vote
    call: int | None = None


def dated(vote: Vote, **update: object) -> Vote:
    """The vote, cast now."""
    return vote.model_copy(update={"created_at": datetime.now(UTC), **update})


def failed_vote(vote: Vote, kind: str) -> Vote:
    """A recorded failure: never a label."""
    return dated(vote, failure=kind)
