"""What a model computes on: the device, the dtype, and the threads of a CPU.

Each choice is checked before any weight is read: a device that is not there, or a dtype it does not multiply, is one
line that says what is there. torch is imported when something is asked of it: commands read their options without.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from prism.errors import EngineError, InputError, in_one_line

if TYPE_CHECKING:
    import torch

Dtype = Literal["auto", "float32", "bfloat16", "int8"]
"""int8: weights and activations of the linear layers in 8-bit integers, on CPUs."""

_INT8_CPUS = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Features of which one is needed: without them sums of byte products saturate, and are no faster."""
_BF16_CPUS = ("amx_bf16", "avx512_bf16")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machine:
    """What this machine computes with, as torch tells."""

    cards: tuple[str, ...] = ()
    """Names of the CUDA devices, cuda:0 first."""
    cards_with_bf16: tuple[int, ...] = ()
    no_cuda: str | None = None
    """Why no card can be used, where that is known: no driver, one that is too old, another build of torch."""
    driver_fails: bool = False
    """There is a card, it is the driver that does not serve it."""
    mps: bool = False
    cpu: frozenset[str] = frozenset()
    """Features of the processor, in torch's words."""

    @classmethod
    def here(cls) -> Machine:
        """Asks torch."""
        import torch

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        problem = " ".join(str(said[0].message).split()) if said else None
        return cls(
            cards=tuple(torch.cuda.get_device_name(index) for index in range(count)),
            cards_with_bf16=tuple(index for index in range(count) if _card_multiplies_bf16(index)),
            no_cuda=None if count else problem or _no_cuda(),
            driver_fails=problem is not None and not count,
            mps=torch.backends.mps.is_available(),
            cpu=_cpu_features(),
        )

    @property
    def devices(self) -> str:
        """The names that can be asked for."""
        cards = [f"cuda:{index} ({name})" for index, name in enumerate(self.cards)]
        return ", ".join([*cards, *(["mps"] if self.mps else []), "cpu"])


def choose_device(requested: str = "auto", machine: Machine | None = None) -> torch.device:
    """`auto`: the first GPU if there is one, else the CPU. Raises InputError for a device that is not there."""
    import torch

    here = machine or Machine.here()
    if requested == "auto":
        if here.driver_fails:
            _logger.warning("the GPU is not used, the CPU is: %s", here.no_cuda)
        return torch.device("cuda" if here.cards else "mps" if here.mps else "cpu")
    try:
        device = torch.device(requested)
    except RuntimeError as error:
        raise InputError(f"no device {requested!r}: expected auto or one of {here.devices}") from error
    if problem := _absent(device, here):
        raise InputError(f"device {requested!r} cannot be used: {problem}; available: {here.devices}, or auto")
    return device


def _absent(device: torch.device, here: Machine) -> str | None:
    """Why a device cannot be used, if it cannot."""
    if device.type == "cuda":
        if not here.cards:
            return here.no_cuda or "no CUDA device was found"
        if (device.index or 0) >= len(here.cards):
            return f"there is no card with that number, {len(here.cards)} can be seen"
        return None
    if device.type == "mps":
        return None if here.mps else "Metal (mps) is on Macs with Apple's own processors"
    if device.type == "cpu":
        return None
    import torch

    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return in_one_line(error, 200)
    return None


def choose_dtype(device: torch.device | str, requested: Dtype = "auto", machine: Machine | None = None) -> torch.dtype:
    """`auto`: bfloat16 where the hardware multiplies it natively, else float32. int8: see `engines.linear`.

    Raises InputError for a dtype that the device does not multiply.
    """
    import torch

    here, chosen = machine or Machine.here(), torch.device(device)
    if requested not in get_args(Dtype):
        raise InputError(f"no dtype {requested!r}: expected {', '.join(get_args(Dtype))}")
    bf16 = _multiplies_bf16(chosen, here)
    if requested == "auto":
        return torch.bfloat16 if bf16 else torch.float32
    if requested == "bfloat16" and chosen.type == "cuda" and not bf16:
        raise InputError(f"{here.cards[chosen.index or 0]} has no bfloat16: use dtype float32 or auto")
    if requested == "int8" and chosen.type != "cpu":
        raise InputError(f"dtype int8 is for CPUs, got device {chosen}: use auto, or device cpu")
    if requested == "int8" and not here.cpu.intersection(_INT8_CPUS):
        raise InputError(f"dtype int8 needs a CPU with one of {', '.join(_INT8_CPUS)}, which this one lacks: use auto")
    chosen_dtype: torch.dtype = getattr(torch, requested)
    return chosen_dtype


def _multiplies_bf16(device: torch.device, here: Machine) -> bool:
    if device.type == "cuda":
        return (device.index or 0) in here.cards_with_bf16
    return device.type == "cpu" and bool(here.cpu.intersection(_BF16_CPUS))


def _card_multiplies_bf16(index: int) -> bool:
    import torch

    with torch.cuda.device(index):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _cpu_features() -> frozenset[str]:
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    return frozenset(name for name, has in capabilities.items() if has is True)


def _no_cuda() -> str:
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is a build without CUDA"
    return "torch finds no CUDA device (`nvidia-smi` shows whether the driver does)"


def place(model: Any, device: torch.device, name: str) -> Any:
    """The model on the device. Raises EngineError where it does not fit, or the device does not work."""
    import torch

    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        gib = sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 2**30
        raise EngineError(
            f"{name} takes {gib:.1f} GiB and does not fit on {device}: free memory there, or use another device"
        ) from error
    except RuntimeError as error:
        raise EngineError(f"{device} does not work: {' '.join(str(error).split())[:200]}: use device cpu") from error


# --- threads ---------------------------------------------------------------------------------------------------------


def cpu_threads() -> int:
    """With how many threads to compute: torch's own number (the physical cores, or what OMP_NUM_THREADS or the program
    said), but no more than this process is given."""
    import torch

    allowed = min(torch.get_num_threads(), usable_cpus(), cgroup_cpus())
    return max(1, math.ceil(allowed))


def cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """`cpu_threads` for programs without torch: the physical cores, or what OMP_NUM_THREADS says."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    places = (topology.glob(f"cpu[0-9]*/topology/{name}") for name in ("physical_package_id", "core_id"))
    found = [[path.read_text().strip() for path in sorted(paths)] for paths in places]
    physical = len(set(zip(*found, strict=True))) or math.inf  # no such files: not on Linux
    wanted = int(asked) if asked.isdecimal() else physical
    return max(1, math.ceil(min(wanted, usable_cpus(), cgroup_cpus())))


def usable_cpus() -> int:
    """CPUs this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cgroup_cpus(mounted: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Processors that the control groups of this process allow (a container's `--cpus`); infinity without a limit."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    allowed = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mounted / controllers if controllers else mounted
        folder = root / path.lstrip("/")
        for level in (root, *(up for up in (folder, *folder.parents) if root in up.parents)):
            allowed = min(allowed, _quota(level))
    return allowed


def _quota(group: Path) -> float:
    """Processors that one control group allows, in either version's files."""
    try:
        if (both := group / "cpu.max").is_file():
            quota, period = both.read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8").strip() for name in ("quota", "period")
            )
    except OSError:
        return math.inf
    return int(quota) / int(period) if quota not in ("max", "-1") else math.inf


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch computes with so many threads where this is called from; afterwards with as many as before."""
    import torch

    before = torch.get_num_threads()
    if count != before:
        _leave_pool_to_parent()
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)


@cache
def _leave_pool_to_parent() -> None:
    """`set_num_threads` makes a pool whose end waits for its threads. A process that is forked off has none of them and
    crashes there (torch 2.13) unless it asks for a pool of its own first."""
    import torch

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(torch.get_num_threads()))


_GRAIN = 32_768
"""Elements that torch gives a thread at least."""
_MOST_CPUS = 256


class IdleTeam:
    """A thread with one more OpenMP threads than there are processors, all asleep."""

    def __init__(self, count: int) -> None:
        ready, end = threading.Event(), threading.Event()
        thread = threading.Thread(target=_hold, args=(count, ready, end), name="prism-idle", daemon=True)
        thread.start()
        ready.wait()
        weakref.finalize(self, _let_go, end, thread)


def _hold(count: int, ready: threading.Event, end: threading.Event) -> None:
    import torch

    try:
        with threads(count):
            torch.zeros(count * _GRAIN).add_(1)
    finally:
        ready.set()
    end.wait()


def _let_go(end: threading.Event, thread: threading.Thread) -> None:
    """Ends the thread and waits until it has: one that wakes while the interpreter goes away is torn down by force."""
    end.set()
    if thread is not threading.current_thread():
        thread.join(_LAST_MOMENTS_S)


_LAST_MOMENTS_S = 2.0
_lock = threading.Lock()
_KEPT = {-1: 1 << 30, -2: 64 << 20, -4: 0, -8: 1}
"""M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX of malloc.h: no block is a mapping of its own, and threads that
start from now on take theirs from the main heap: their own hold 64 MB, and go when they are empty."""
_shared: weakref.ReferenceType[IdleTeam] | None = None


def short_waits() -> object | None:
    """While what is returned is kept, threads that wait for each other soon sleep instead of spinning.

    GNU OpenMP, which torch brings on Linux, lets a thread spin for milliseconds at the end of each parallel loop. When
    something else takes a processor, two of our threads may share the other: the one that has work waits until the one
    that only spins is put aside, at every loop, and a call takes ten to forty times as long. With more threads than
    processors in the process it spins a hundred times only (its manual, GOMP_SPINCOUNT); so we keep some, asleep. That
    needs no setting in the environment, which would hold for whatever else runs here, and ends with the engine.
    None where there is nothing to do: another OpenMP, one processor, or a wait policy that the user has set.
    """
    global _shared
    cpus = usable_cpus()
    if not 1 < cpus <= _MOST_CPUS or {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys() or not _has_libgomp():
        return None
    with _lock:
        team = _shared() if _shared else None
        if team is None:
            team = IdleTeam(cpus + 1)
            _shared = weakref.ref(team)
        return team


def keep_memory() -> bool:
    """What is freed in this process stays with it for the next time instead of going back at once: up to a gigabyte at
    the end of the heap, and below something that is in use all of it, until `give_memory_back`.

    Every layer of a model takes and frees tens of megabytes. glibc gives each of them back to the system, which has to
    clear its pages again before the next layer may write: a tenth of the CPU's time. False where there is
    nothing to do: another C library, or settings of malloc's that the user has made (MALLOC_..., GLIBC_TUNABLES).
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    mallopt = None if chosen or sys.platform != "linux" else getattr(ctypes.CDLL(None), "mallopt", None)
    taken = [mallopt(option, value) for option, value in _KEPT.items()] if mallopt else [0]
    return all(taken)


def give_memory_back() -> None:
    """What is free in this process goes back to the system, a model that is done with too; nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def _has_libgomp() -> bool:
    try:
        return "libgomp" in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
