"""llama.cpp, through the C interface of llama-cpp-python: a model and its memory of token sequences.

A sequence is a run of tokens at positions 0, 1, …; sequences share what one takes from another. All of them lie in one
buffer of cells, one for each token that is held.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections import deque
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from prism.errors import CheckpointError, EngineError

_logger = logging.getLogger(__name__)

_ERROR = 4
"""Level of a line in llama.cpp's log."""
_F32 = 0
"""ggml's number of the type."""
_OUTPUTS = 128
"""After how many tokens of a batch logits can be read: their buffer is this times the vocabulary."""


SEQUENCES, BATCH_TOKENS = 64, 512
"""Usual numbers of sequences that are held, and of tokens that are read at once."""


class Wants(Enum):
    """After which tokens of a run logits are read."""

    NOTHING = 0
    LAST = 1
    EVERY = 2


class Run(NamedTuple):
    """Tokens that a sequence goes on with."""

    sequence: int
    start: int
    """Position of the first; everything before it is held."""
    ids: Sequence[int]
    wants: Wants


class Context(Protocol):
    """What the engine needs of a model and its memory."""

    context: int
    """Tokens that a sequence can hold."""
    cells: int
    """Tokens that all of them can hold."""
    sequences: int
    batch_tokens: int
    """Tokens read at once."""
    batch_outputs: int
    """Tokens of these after which logits are read."""

    def read(self, runs: Sequence[Run]) -> list[NDArray[np.float32]]:
        """Logits [V] after each token that a run wants them for, in order; they are valid until the next call.

        Together no more than `batch_tokens` and `batch_outputs`. Raises EngineError when the model fails.
        """
        ...

    def share(self, source: int, target: int, length: int) -> None:
        """Let `target`, which is empty, begin with the first `length` tokens of `source`."""
        ...

    def forget(self, sequence: int, start: int = 0) -> None:
        """Drop a sequence's tokens from position `start` on."""
        ...

    def clear(self) -> None:
        """Drop everything."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class LlamaContext:
    """`Context` by llama.cpp."""

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        threads: int,
        sequences: int = SEQUENCES,
        batch_tokens: int = BATCH_TOKENS,
        exact: bool = False,
        gpu: bool = True,
    ) -> None:
        """`context`: as far as the model was trained, if that is less. `exact`: keys and values are held in float32,
        not float16, and attention is plain. `gpu`: use one, where this build of llama.cpp knows how.

        Raises CheckpointError for a file that llama.cpp cannot read, EngineError when there is too little memory.
        """
        import llama_cpp as lib

        self._lib: Any = lib
        self._log = _log()
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        self.sequences, self.batch_tokens, self.batch_outputs = sequences, batch_tokens, min(batch_tokens, _OUTPUTS)
        lib.llama_backend_init()
        self._log.forget()
        self._model = lib.llama_model_load_from_file(str(path).encode(), self._model_settings(gpu))
        if not self._model:
            raise CheckpointError(f"llama.cpp cannot read {path}: {self._log.reason()}: is the file complete?")
        self.context = min(context, lib.llama_model_n_ctx_train(self._model))
        self.cells = self.context + batch_tokens
        self._context = lib.llama_init_from_model(self._model, self._context_settings(threads, exact))
        if not self._context:
            self.close()
            raise EngineError(
                f"llama.cpp cannot hold {self.cells} tokens of {path}: {self._log.reason()}: ask for a smaller context"
            )
        self._memory = lib.llama_get_memory(self._context)
        self._vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._batch = lib.llama_batch_init(batch_tokens, 0, 1)

    def _model_settings(self, gpu: bool) -> Any:
        settings = self._lib.llama_model_default_params()
        settings.n_gpu_layers = -1 if gpu and self._lib.llama_supports_gpu_offload() else 0
        return settings

    def _context_settings(self, threads: int, exact: bool) -> Any:
        settings = self._lib.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = self.cells, self.sequences
        settings.n_batch = settings.n_ubatch = self.batch_tokens
        settings.n_outputs_max = self.batch_outputs
        settings.n_threads = settings.n_threads_batch = threads
        if exact:  # flash attention reads float16 whatever is held
            settings.type_k = settings.type_v = _F32
            settings.flash_attn_type = self._lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.kv_unified = True  # a shared prefix is held once
        settings.no_perf = True
        return settings

    def read(self, runs: Sequence[Run]) -> list[NDArray[np.float32]]:
        """See `Context.read`."""
        batch, wanted, at = self._batch, [], 0
        for run in runs:
            for place, token in enumerate(run.ids):
                batch.token[at], batch.pos[at] = token, run.start + place
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, run.sequence
                last = place == len(run.ids) - 1
                batch.logits[at] = read = run.wants is Wants.EVERY or (run.wants is Wants.LAST and last)
                if read:
                    wanted.append(at)
                at += 1
        batch.n_tokens = at
        self._log.forget()
        if code := self._lib.llama_decode(self._context, batch):
            raise EngineError(f"llama.cpp could not read {at} tokens (code {code}): {self._log.reason()}")
        return [self._logits(at) for at in wanted]

    def _logits(self, at: int) -> NDArray[np.float32]:
        pointer = self._lib.llama_get_logits_ith(self._context, at)
        if not pointer:
            raise EngineError(f"llama.cpp gave no logits after token {at} of a batch")
        return np.ctypeslib.as_array(pointer, shape=(self._vocabulary,))

    def share(self, source: int, target: int, length: int) -> None:
        """See `Context.share`."""
        self._lib.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def forget(self, sequence: int, start: int = 0) -> None:
        """See `Context.forget`."""
        if not self._lib.llama_memory_seq_rm(self._memory, sequence, start, -1):
            raise EngineError("this model cannot take back what it has read, as engine llamacpp needs: use hf")

    def clear(self) -> None:
        """See `Context.clear`."""
        self._lib.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        """Free the model. Calling twice is harmless."""
        batch, context, model = self._batch, self._context, self._model
        self._batch = self._context = self._model = None
        if batch is not None:
            self._lib.llama_batch_free(batch)
        if context:
            self._lib.llama_free(context)
        if model:
            self._lib.llama_model_free(model)


class _Log:
    """llama.cpp's log, which is one for the whole process: errors are kept, nothing goes to standard error."""

    def __init__(self, lib: Any) -> None:
        self._errors: deque[str] = deque(maxlen=64)

        @lib.llama_log_callback  # type: ignore[untyped-decorator]
        def keep(level: int, text: bytes, _: object) -> None:
            line = " ".join(text.decode("utf-8", "replace").split())
            if level == _ERROR:
                self._errors.append(line)
            _logger.debug(line)

        self._keep = keep  # called as long as the process lives
        lib.llama_log_set(keep, ctypes.c_void_p())

    def forget(self) -> None:
        self._errors.clear()

    def reason(self, otherwise: str = "it gives no reason") -> str:
        """The first error since `forget`: later ones follow from it."""
        return self._errors[0].rpartition("error loading model: ")[2] if self._errors else otherwise


@functools.cache
def _log() -> _Log:
    import llama_cpp

    return _Log(llama_cpp)
