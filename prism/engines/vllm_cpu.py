"""What vLLM's processes find in their environment, and how vLLM is set up on a CPU."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GUARD = "PRISM_VLLM_GUARD"
"""Set for processes that an engine of ours started."""
_STARTING = threading.Lock()
_BLOCK_TOKENS = 32
"""The CPU's own default of 128 is longer than instruction and query together, so that nothing would be shared."""
_STEP_TOKENS = 8192
"""The CPU's own default of 2048 is a dozen passages: half as many documents a second on two cores."""
_FEW_CORES = 4
_ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""Apart from its worker, vLLM's core waits for it busily: on two cores a third of the documents a second."""
_PARALLEL = ("tensor", "pipeline", "data")
_OPENMP = ("libgomp", "libiomp", "libomp")


@contextmanager
def own_environment() -> Iterator[None]:
    """While vLLM starts, `os.environ` is that of its processes, which read it then; afterwards it is what it was, also
    where vLLM itself changed it: whatever else this process starts inherits nothing of it.

    What the user has set stays. What another thread sets meanwhile is lost; a second engine waits for its turn.
    """
    with _STARTING:
        before = dict(os.environ)
        os.environ[GUARD] = "1"
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            yield
        finally:
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)


def cpu_threading(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment of vLLM's processes on a CPU; what the user has set stays.

    All of few cores: vLLM leaves one to its scheduler, here too much of the machine. Intel's OpenMP where it is
    installed: with GNU's, the many short parallel sections of n-gram drafts cost up to a third of the time.
    """
    added = {}
    cores = _cores()
    if 0 < len(cores) <= _FEW_CORES and "VLLM_CPU_OMP_THREADS_BIND" not in environment:
        added["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    loaded = [entry for entry in environment.get("LD_PRELOAD", "").split(":") if entry]
    library = Path(sys.prefix, "lib", "libiomp5.so")  # where the package intel-openmp puts it
    if library.is_file() and not any(Path(entry).name.startswith(_OPENMP) for entry in loaded):
        added["LD_PRELOAD"] = ":".join([*loaded, str(library)])
    return added


def _cores() -> list[int]:
    """Those this process may run on; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def cpu_settings(arguments: Mapping[str, Any], config: Mapping[str, Any], *, plain_attention: bool) -> dict[str, Any]:
    """Fields of `AsyncEngineArgs` in place of vLLM's own defaults. `config`: the model's."""
    settings: dict[str, Any] = {"max_num_batched_tokens": _STEP_TOKENS}
    if 0 < len(_cores()) <= _FEW_CORES and not any(arguments.get(f"{way}_parallel_size") for way in _PARALLEL):
        settings["distributed_executor_backend"] = _ONE_PROCESS
    if plain_attention:
        settings["block_size"] = _BLOCK_TOKENS
    if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        settings["kv_cache_memory_bytes"] = cache_bytes(arguments, config)
    return settings


def cache_bytes(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Room for two of the longest sequences, at least 1 GiB. Left alone, vLLM takes nine tenths of all memory."""
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    values = 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * size
    context = arguments["max_model_len"] or config["max_position_embeddings"]
    return int(max(1 << 30, 2 * context * values * (4 if arguments["dtype"] == "float32" else 2)))
