"""The llama.cpp engine: scores and writes with a GGUF file, on a laptop, without torch.

Sequence 0 holds what all prompts of a call begin with; it stays for the next call, which takes of it what fits. Every
prompt or text is a sequence of its own that goes on from there, and is forgotten afterwards.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from pydantic import Field

from prism.engines.base import (
    Emit,
    LabelLogits,
    ScoreOutput,
    WritePiece,
    WriteRequest,
    refuse_nan,
    require_prompts,
    unscorable,
)
from prism.engines.llama_context import BATCH_TOKENS, SEQUENCES, Context, Run, Wants
from prism.engines.model_thread import Check, ModelThread
from prism.engines.row import MIN_SHARED_TOKENS, BatchRow, TextStream, common_length, shared_length, write_batch
from prism.engines.settings import EngineOptions
from prism.errors import DocumentError, EngineError

_T = TypeVar("_T")
_TRUNK = 0
"""The sequence that the others go on from."""


class LlamaCppOptions(EngineOptions):
    context: int | None = Field(default=None, ge=1)
    """Tokens that a prompt and its text can have; None: as many as the template allows."""
    threads: int | None = Field(default=None, ge=1)
    """None: the physical cores, or `OMP_NUM_THREADS`."""
    sequences: int = Field(default=SEQUENCES, ge=2)
    """Prompts or texts held at once, and what they all begin with."""
    batch_tokens: int = Field(default=BATCH_TOKENS, ge=1)
    """Read at once."""
    exact: bool = False
    """Keys and values are held in float32, not float16, and attention is plain."""
    speculate: bool = True
    """Draft tokens from the text's own past."""


class LlamaCppEngine:
    """Scores and writes with a model that llama.cpp holds."""

    one_at_a_time = True

    def __init__(
        self,
        context: Context,
        *,
        label_ids: tuple[int, int],
        stop_ids: Collection[int],
        stop_strings: Collection[str],
        decode: Callable[[list[int]], str],
        speculate: bool = True,
    ) -> None:
        """`label_ids`: (yes, no). `speculate`: draft tokens from the text's own past."""
        self._memory = _Memory(context)
        self._label_ids = label_ids
        self._stop_ids = frozenset(stop_ids)
        self._text = partial(TextStream, decode, tuple(stop_strings))
        self._speculate = speculate
        self._worker = ModelThread("prism-llamacpp")

    async def score(self, prompts: Sequence[Sequence[int]]) -> ScoreOutput:
        """See `Engine.score`. A prompt that is empty or too long answers a DocumentError."""
        return await self._worker.run(partial(self._score, [tuple(ids) for ids in prompts]))

    def write(self, requests: Sequence[WriteRequest]) -> AsyncGenerator[WritePiece, None]:
        """See `Engine.write`. A stop string is the last thing in `text`; a stop id is not in it."""
        require_prompts(requests)
        return self._worker.stream(partial(self._write, list(requests)))

    async def aclose(self) -> None:
        """Stop the work under way, wait for the worker to leave, free the model. Calling twice is harmless."""
        await self._worker.aclose()
        self._memory.context.close()

    # -- on the worker thread

    def _live(self) -> _Memory:
        if self._worker.closed:
            raise EngineError("the engine was closed while this call waited for its turn")
        return self._memory

    def _score(self, prompts: list[tuple[int, ...]], check: Check) -> ScoreOutput:
        """Equal prompts are computed once."""
        memory = self._live()
        known: dict[tuple[int, ...], LabelLogits | DocumentError] = {}
        fitting: dict[tuple[int, ...], None] = {}
        for ids in prompts:
            if problem := unscorable(ids, memory.context.context):
                known[ids] = problem
            else:
                fitting[ids] = None
        before = memory.computed
        with memory.call():
            shared = memory.trunk(list(fitting), check)
            for batch in memory.fitting(fitting, [len(ids) - shared for ids in fitting], memory.context.batch_tokens):
                runs = memory.go_on(batch, shared)
                known |= zip(batch, (one for (one,) in memory.read(runs, self._labels, check)), strict=True)
                memory.drop(runs)
        labels = [known[ids] for ids in prompts]
        refuse_nan(labels, "the file is damaged: export it again")
        asked = sum(len(ids) for ids in prompts if ids in fitting)
        return ScoreOutput(labels, cached_tokens=asked - (memory.computed - before))

    def _labels(self, logits_V: Any) -> LabelLogits:
        yes, no = self._label_ids
        return LabelLogits(float(logits_V[yes]), float(logits_V[no]))

    def _write(self, requests: list[WriteRequest], check: Check, emit: Emit) -> None:
        memory = self._live()
        rows = []
        for index, request in enumerate(requests):
            limit = min(len(request.ids) + request.max_tokens, memory.context.context)
            if limit <= len(request.ids):
                emit(WritePiece(index, "", 0, "length"))
            else:
                rows.append(BatchRow(index, request.ids, limit, self._text()))
        shared = shared_length([row.ids for row in rows])
        for batch in memory.fitting(rows, [row.limit - shared for row in rows], memory.context.cells - shared):
            with memory.call():
                for piece in write_batch(
                    _Rows(memory),
                    batch,
                    stop_ids=self._stop_ids,
                    context=memory.context.context,
                    speculate=self._speculate,
                    check=check,
                ):
                    emit(piece)


class _Memory:
    """The sequences of a context: the trunk, and those of one call."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.computed = 0
        """Tokens read so far."""
        self._trunk: tuple[int, ...] = ()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Afterwards only the trunk is held; nothing, when the call fails: how far it came is not known."""
        try:
            yield
        except BaseException:
            self._trunk = ()
            self.context.clear()
            raise
        for sequence in range(_TRUNK + 1, self.context.sequences):
            self.context.forget(sequence)

    def trunk(self, prompts: Sequence[Sequence[int]], check: Check) -> int:
        """Read what all prompts begin with, as far as it is not held from the call before; how many tokens that is.

        A prompt alone begins with what it shares with that call.
        """
        if not prompts:
            return 0
        first = tuple(prompts[0])
        kept = common_length(self._trunk, first, min(len(self._trunk), len(first) - 1))
        shared = shared_length(prompts) if len(prompts) > 1 else kept if kept >= MIN_SHARED_TOKENS else 0
        kept = min(kept, shared)
        self.context.forget(_TRUNK, kept)
        self._trunk = first[:kept]
        if shared > kept:
            self.read([Run(_TRUNK, kept, first[kept:shared], Wants.NOTHING)], lambda _: None, check)
            self._trunk = first[:shared]
        return shared

    def fitting(self, items: Iterable[_T], tokens: Sequence[int], most: int) -> Iterator[list[_T]]:
        """The items in batches of at most `most` tokens, or of one, for which there are sequences."""
        batch: list[_T] = []
        used = 0
        for item, size in zip(items, tokens, strict=True):
            if batch and (used + size > most or len(batch) == self.context.sequences - 1):
                yield batch
                batch, used = [], 0
            batch.append(item)
            used += size
        if batch:
            yield batch

    def go_on(self, prompts: Sequence[Sequence[int]], shared: int) -> list[Run]:
        """Runs of sequences of their own that hold the trunk already."""
        runs = []
        for sequence, ids in enumerate(prompts, _TRUNK + 1):
            if shared:
                self.context.share(_TRUNK, sequence, shared)
            runs.append(Run(sequence, shared, ids[shared:], Wants.LAST))
        return runs

    def drop(self, runs: Iterable[Run]) -> None:
        """Forget the sequences of these runs."""
        for run in runs:
            self.context.forget(run.sequence)

    def read(self, runs: Sequence[Run], take: Callable[[Any], _T], check: Check) -> list[list[_T]]:
        """By run: what `take` makes of the logits [V] after each token that it wants them for."""
        taken: list[list[_T]] = [[] for _ in runs]
        for batch in _batches(runs, self.context.batch_tokens, self.context.batch_outputs):
            check()
            found = iter(self.context.read([run for _, run in batch]))
            for at, run in batch:
                taken[at] += [take(next(found)) for _ in range(_outputs(run))]
                self.computed += len(run.ids)
        return taken


def _outputs(run: Run) -> int:
    return len(run.ids) if run.wants is Wants.EVERY else run.wants.value


def _batches(runs: Sequence[Run], tokens: int, outputs: int) -> Iterator[list[tuple[int, Run]]]:
    """The runs, cut where a batch is full, with their places."""
    batch: list[tuple[int, Run]] = []
    free, free_outputs = tokens, outputs
    for at, run in enumerate(runs):
        while run.ids:
            room = min(free, free_outputs) if run.wants is Wants.EVERY else free
            whole = len(run.ids) <= room and _outputs(run) <= free_outputs
            if not room or (len(run.ids) <= room and not whole):
                yield batch
                batch, free, free_outputs = [], tokens, outputs
                continue
            wants = run.wants if whole or run.wants is Wants.EVERY else Wants.NOTHING
            part = run._replace(ids=run.ids[:room], wants=wants)
            batch.append((at, part))
            free, free_outputs = free - len(part.ids), free_outputs - _outputs(part)
            run = run._replace(ids=run.ids[room:], start=run.start + len(part.ids))
    if batch:
        yield batch


class _Rows:
    """Texts being written: a sequence each."""

    def __init__(self, memory: _Memory) -> None:
        self._memory = memory
        self._sequences: list[int] = []

    def start(self, prompts: Sequence[Sequence[int]], check: Check) -> list[list[int]]:
        runs = self._memory.go_on(prompts, self._memory.trunk(prompts, check))
        self._sequences = [run.sequence for run in runs]
        return self._memory.read(runs, _best, check)

    def step(self, feeds: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[int]]:
        runs = [Run(*place, Wants.EVERY) for place in zip(self._sequences, starts, feeds, strict=True)]
        for run in runs:  # drafts that did not hold
            self._memory.context.forget(run.sequence, run.start)
        return self._memory.read(runs, _best, _no_check)

    def keep(self, rows: Sequence[int]) -> None:
        for sequence in set(self._sequences) - {self._sequences[row] for row in rows}:
            self._memory.context.forget(sequence)
        self._sequences = [self._sequences[row] for row in rows]


def _best(logits_V: Any) -> int:
    """The most likely token. Raises EngineError for logits that are no numbers."""
    best = int(logits_V.argmax())
    if not math.isfinite(logits_V[best]):
        raise EngineError("the model computed NaN or infinity while writing: the file is broken")
    return best


def _no_check() -> None:
    """`write_batch` has asked already."""
