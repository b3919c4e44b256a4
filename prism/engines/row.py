"""Texts being written: what may come next, which token is taken, what can be shown of it; greedy, in any engine.

`write_batch` goes token by token, or draft by draft, over a `BatchState`: a model's memory of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal, Protocol

from prism.engines.base import WritePiece
from prism.engines.model_thread import Check

MIN_SHARED_TOKENS = 16
"""A shared prefix shorter than this costs more to set up than it saves."""
_LONGEST_GRAM = 3
FIRST_REACH, MAX_REACH = 4, 12
"""Tokens of a text's first draft, and of any."""
_WINDOW_TOKENS, _CONTEXT_TOKENS = 32, 8


class Lookup:
    """Drafts the next tokens of a text from its own past: what followed the last three (two, one) tokens before."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def draft(self, ids: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens; a repetition that reaches the end of the text is taken to go on."""
        for end in range(self._indexed + 1, len(ids)):
            for gram in range(1, min(_LONGEST_GRAM, end) + 1):
                self._after[tuple(ids[end - gram : end])] = end
        self._indexed = max(len(ids) - 1, 0)
        for gram in range(_LONGEST_GRAM, 0, -1):
            start = self._after.get(tuple(ids[-gram:]))
            if start is not None:
                return _continued(ids, start, count)
        return []


def _continued(ids: Sequence[int], start: int, count: int) -> list[int]:
    draft = list(ids[start : start + count])
    while len(draft) < count:
        draft.append(draft[len(draft) - (len(ids) - start)])
    return draft


class TextStream:
    """Token ids -> text, piece by piece: only complete characters, ending with the first stop string.

    Decodes a window of recent tokens, so the work is linear overall. The window may begin inside a character: UTF-8
    resynchronises after it, and what the window shows of its own beginning was emitted before.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop_strings: Collection[str]) -> None:
        self._decode = decode
        self._stop_strings = stop_strings
        self._tail_chars = max(map(len, stop_strings), default=1) - 1
        self._tail = ""
        self._window: list[int] = []
        self._shown = 0
        self.stopped = False
        """A stop string has been completed."""

    def push(self, token: int) -> str:
        """The text that this token completes; up to and including a stop string."""
        self._window.append(token)
        decoded = self._decode(self._window)
        text = decoded.rstrip("\ufffd")  # as servers do: what may still become a character waits for the next token
        piece, self._shown = text[self._shown :], max(len(text), self._shown)
        if len(self._window) > _WINDOW_TOKENS and text == decoded:
            del self._window[:-_CONTEXT_TOKENS]
            self._shown = len(self._decode(self._window))
        return self._until_stop(piece)

    def _until_stop(self, piece: str) -> str:
        recent = self._tail + piece
        ends = [at + len(stop) for stop in self._stop_strings if stop and (at := recent.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return piece[: min(ends) - len(self._tail)]
        self._tail = recent[-self._tail_chars :] if self._tail_chars else ""
        return piece


class BatchRow:
    """One text being written."""

    def __init__(self, index: int, ids: Sequence[int], limit: int, text: TextStream) -> None:
        self.index = index
        self.ids = list(ids)
        """The prompt and everything written."""
        self.limit = limit
        """`ids` never grows past this."""
        self.finish: Literal["stop", "length"] | None = None
        self._text = text
        self._lookup = Lookup()
        self._reach = FIRST_REACH
        self._silent = 0
        """Tokens that have not shown as text yet."""

    def draft(self, room: int) -> list[int]:
        """Tokens that may come next: few where drafts failed, many where they held."""
        return self._lookup.draft(self.ids, min(self._reach, room, self.limit - len(self.ids) - 1))

    def accept(self, draft: Sequence[int], answers: Sequence[int]) -> list[int]:
        """The model's own tokens as far as the draft foresaw them, and the one after.

        `answers`: the most likely token after the last one written, and after each of the draft.
        """
        matched = next((at for at, token in enumerate(draft) if token != answers[at]), len(draft))
        if draft:
            self._reach = min(self._reach * 2, MAX_REACH) if matched == len(draft) else max(matched, 1)
        return list(answers[: matched + 1])

    def take(self, tokens: Sequence[int], stop_ids: Collection[int]) -> WritePiece:
        """Append what was written, up to where it stops; the piece may be empty."""
        text = ""
        for token in tokens:
            if token in stop_ids:
                self.finish = "stop"
                break
            self.ids.append(token)
            self._silent += 1
            text += self._text.push(token)
            if self._text.stopped or len(self.ids) >= self.limit:
                self.finish = "stop" if self._text.stopped else "length"
                break
        shown = self._silent if text or self.finish else 0
        self._silent -= shown
        return WritePiece(self.index, text, shown, self.finish)


class BatchState(Protocol):
    """A model's memory of a batch of rows."""

    def start(self, prompts: Sequence[Sequence[int]], check: Check) -> list[list[int]]:
        """Read the prompts; the most likely next token of each, as a list of one."""

    def step(self, feeds: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[int]]:
        """Read each row's feed from its position on; the most likely token after every fed token."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""


def write_batch(
    state: BatchState, rows: list[BatchRow], *, stop_ids: Collection[int], context: int, speculate: bool, check: Check
) -> Iterator[WritePiece]:
    """Pieces of the texts of all rows, interleaved, until each is finished.

    `context`: tokens the model reads and writes together; `speculate`: feed drafts, which a text's own past suggests.
    """
    first = state.start([row.ids for row in rows], check)
    runs = [row.accept([], best) for row, best in zip(rows, first, strict=True)]
    while True:
        for row, run in zip(rows, runs, strict=True):
            piece = row.take(run, stop_ids)
            if piece.text or piece.finish:
                yield piece
        going = [at for at, row in enumerate(rows) if row.finish is None]
        if not going:
            return
        if len(going) < len(rows):
            state.keep(going)
            rows = [rows[at] for at in going]
        check()
        room = context - max(len(row.ids) for row in rows) if speculate else 0
        drafts = [row.draft(room) for row in rows]
        feeds = [[row.ids[-1], *draft] for row, draft in zip(rows, drafts, strict=True)]
        answers = state.step(feeds, [len(row.ids) - 1 for row in rows])
        runs = [row.accept(draft, best) for row, draft, best in zip(rows, drafts, answers, strict=True)]


def shared_length(prompts: Collection[Sequence[int]]) -> int:
    """Length of the prefix worth computing once, 0 for none. Leaves at least one token of every prompt."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts, key=tuple), max(prompts, key=tuple)  # what these two share, all share
    length = common_length(first, last, min(map(len, prompts)) - 1)
    return length if length >= MIN_SHARED_TOKENS else 0


def common_length(first: Sequence[int], second: Sequence[int], limit: int) -> int:
    """With how many same tokens two sequences begin, at most `limit`, which neither is shorter than."""
    return next((at for at in range(limit) if first[at] != second[at]), limit)
