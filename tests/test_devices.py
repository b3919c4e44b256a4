"""Which device, dtype and threads a model gets: on this machine, and on machines that are described."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from prism import devices
from prism.checkpoint import Checkpoint
from prism.cli import app
from prism.devices import Machine, cgroup_cpus, choose_device, choose_dtype, cpu_threads, threads
from prism.errors import InputError
from prism.reranker import Reranker

PLAIN = Machine(no_cuda="torch 2.13.0+cpu is a build without CUDA")
CARDS = Machine(cards=("H200", "Tesla P40"), cards_with_bf16=(0,))
OLD_DRIVER = Machine(no_cuda="The NVIDIA driver on your system is too old (found version 11040).", driver_fails=True)
MAC = Machine(mps=True, no_cuda="torch 2.13.0 is a build without CUDA")


@pytest.mark.parametrize(
    ("machine", "requested", "expected"),
    [
        (PLAIN, "auto", "cpu"),
        (PLAIN, "cpu", "cpu"),
        (CARDS, "auto", "cuda"),
        (CARDS, "cuda", "cuda"),
        (CARDS, "cuda:1", "cuda:1"),
        (OLD_DRIVER, "auto", "cpu"),
        (MAC, "auto", "mps"),
        (MAC, "mps", "mps"),
    ],
)
def test_devices_that_are_there(machine: Machine, requested: str, expected: str) -> None:
    assert choose_device(requested, machine) == torch.device(expected)


@pytest.mark.parametrize(
    ("machine", "requested", "said"),
    [
        (PLAIN, "cuda", ("build without CUDA", "available: cpu")),
        (PLAIN, "cuda:1", ("build without CUDA",)),
        (PLAIN, "mps", ("Metal", "available: cpu")),
        (PLAIN, "gpu", ("no device 'gpu'", "cpu")),
        (PLAIN, "", ("no device ''",)),
        (PLAIN, "xpu", ("cannot be used",)),
        (CARDS, "cuda:2", ("2 can be seen", "cuda:0 (H200)", "cuda:1 (Tesla P40)")),
        (OLD_DRIVER, "cuda", ("driver on your system is too old",)),
        (MAC, "cuda", ("available: mps, cpu",)),
    ],
)
def test_a_device_that_is_not_there_is_one_line(machine: Machine, requested: str, said: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        choose_device(requested, machine)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_a_driver_that_is_too_old_is_told_once_and_the_cpu_taken(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "prism.devices"):
        choose_device("auto", OLD_DRIVER)
        choose_device("auto", PLAIN)
    assert [record.getMessage() for record in caplog.records] == [
        "the GPU is not used, the CPU is: The NVIDIA driver on your system is too old (found version 11040)."
    ]


VNNI = Machine(cpu=frozenset({"avx2", "avx512_vnni"}))
BF16 = Machine(cpu=frozenset({"avx512_bf16", "avx512_vnni"}))


@pytest.mark.parametrize(
    ("device", "requested", "machine", "expected"),
    [
        ("cpu", "auto", PLAIN, torch.float32),
        ("cpu", "auto", VNNI, torch.float32),
        ("cpu", "auto", BF16, torch.bfloat16),
        ("cpu", "bfloat16", PLAIN, torch.bfloat16),
        ("cpu", "float32", BF16, torch.float32),
        ("cpu", "int8", VNNI, torch.int8),
        ("cuda", "auto", CARDS, torch.bfloat16),
        ("cuda:1", "auto", CARDS, torch.float32),
        ("mps", "auto", MAC, torch.float32),
    ],
)
def test_dtypes(device: str, requested: devices.Dtype, machine: Machine, expected: torch.dtype) -> None:
    assert choose_dtype(device, requested, machine) is expected


@pytest.mark.parametrize(
    ("device", "requested", "machine", "said"),
    [
        ("cuda:1", "bfloat16", CARDS, "Tesla P40 has no bfloat16"),
        ("cuda", "int8", CARDS, "int8 is for CPUs"),
        ("cpu", "int8", PLAIN, "needs a CPU with one of avx512_vnni"),
        ("cpu", "float16", PLAIN, "no dtype 'float16'"),
    ],
)
def test_a_dtype_that_is_not_multiplied_is_one_line(device: str, requested: str, machine: Machine, said: str) -> None:
    with pytest.raises(InputError, match=said):
        choose_dtype(device, requested, machine)  # type: ignore[arg-type]


def test_this_machine() -> None:
    assert choose_device().type in ("cpu", "cuda", "mps")
    assert choose_dtype("cpu") in (torch.float32, torch.bfloat16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "nonsense"])
def test_commands_and_python_say_it_alike(tiny_checkpoint: Path, device: str) -> None:
    with pytest.raises(InputError, match="device"):
        Reranker.load(str(tiny_checkpoint), template="prism", device=device)
    for command in (["rerank", "q", "-"], ["demo"], ["serve", "--port", "0"]):
        options = ["--model", str(tiny_checkpoint), "--template", "prism", "--device", device]
        done = CliRunner().invoke(app, [*command, *options], input="a document\n")
        assert done.exit_code == 2, done.output
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert device in lines[0]


def test_a_checkpoint_refuses_before_it_reads_weights(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.load(tiny_checkpoint, template="prism")
    with pytest.raises(InputError, match="expected auto"):
        checkpoint.load_model(device="nonsense")


# -- threads


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n", encoding="utf-8")


def test_processors_a_container_is_given(tmp_path: Path) -> None:
    own = tmp_path / "self"
    own.write_text("0::/pod/box\n", encoding="utf-8")
    assert cgroup_cpus(tmp_path, own) == math.inf
    group(tmp_path, "pod/box", cpu__max="max 100000")
    assert cgroup_cpus(tmp_path, own) == math.inf
    group(tmp_path, "pod", cpu__max="150000 100000")  # a limit higher up holds too
    assert cgroup_cpus(tmp_path, own) == 1.5
    group(tmp_path, "pod/box", cpu__max="50000 100000")
    assert cgroup_cpus(tmp_path, own) == 0.5


def test_a_container_that_sees_only_its_own_group(tmp_path: Path) -> None:
    own = tmp_path / "self"
    own.write_text("0::/\n", encoding="utf-8")
    group(tmp_path, ".", cpu__max="200000 100000")
    assert cgroup_cpus(tmp_path, own) == 2


def test_processors_under_the_older_control_groups(tmp_path: Path) -> None:
    own = tmp_path / "self"
    own.write_text("7:memory:/box\n3:cpu,cpuacct:/box\n", encoding="utf-8")
    group(tmp_path, "cpu,cpuacct/box", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert cgroup_cpus(tmp_path, own) == math.inf
    group(tmp_path, "cpu,cpuacct/box", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    assert cgroup_cpus(tmp_path, own) == 3


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_cpus(tmp_path, tmp_path / "missing") == math.inf


def test_threads_are_restored_also_after_an_error() -> None:
    before = torch.get_num_threads()
    inside = []
    with pytest.raises(ZeroDivisionError), threads(before + 1):
        inside.append(torch.get_num_threads() // 0)
    with threads(before + 1):
        inside.append(torch.get_num_threads())
    assert inside == [before + 1]
    assert torch.get_num_threads() == before


def test_no_more_threads_than_the_program_allows() -> None:
    with threads(1):
        assert cpu_threads() == 1


def test_engines_share_their_idle_threads() -> None:
    first = devices.short_waits()
    if first is None:
        pytest.skip("one processor, another OpenMP, or a wait policy in the environment")
    before = torch.get_num_threads()
    assert devices.short_waits() is first
    assert torch.get_num_threads() == before


def test_idle_threads_end_with_their_last_user() -> None:
    known = set(threading.enumerate())
    before = torch.get_num_threads()
    team = devices.IdleTeam(3)
    (thread,) = set(threading.enumerate()) - known
    assert thread.is_alive()
    assert torch.get_num_threads() == before
    del team
    thread.join(timeout=10)
    assert not thread.is_alive()


_LOADS_AND_CLOSES = """
import asyncio, torch
from transformers import LlamaConfig, LlamaForCausalLM
from prism import devices
from prism.engines.hf import HfEngine, HfOptions
def held():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
async def use():
    config = LlamaConfig(vocab_size=40_000, hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    where = {"label_ids": (1, 2), "stop_ids": (), "stop_strings": (), "pad_id": 0, "decode": str}
    engine = HfEngine(LlamaForCausalLM(config).eval(), **where, options=HfOptions(threads=1))
    later = torch.ones(100_000)  # what lies above the weights, and stays
    await engine.score([[1, 2]])
    await engine.aclose()
    return later
kept, before = devices.keep_memory(), held()
later = asyncio.run(use())
print(int(kept), held() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_a_model_that_is_closed_leaves_its_memory_to_the_system() -> None:
    """Its two matrices of the vocabulary are 82 MB; code and threads of a first call stay, some megabytes."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    asked = [sys.executable, "-c", _LOADS_AND_CLOSES]
    done = subprocess.run(asked, env=own, capture_output=True, text=True, check=True, timeout=120)
    kept, left_kb = done.stdout.split()
    assert kept == "1"
    assert int(left_kb) < 41_000


_TAKES_AND_FREES = """
import resource, sys, threading, torch
from prism import devices
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for megabytes in (40, 9, 55):
        for _ in range(20):
            torch.ones(megabytes << 18)
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
found, kept = [], devices.keep_memory()
for _ in range(4):
    thread = threading.Thread(target=faults); thread.start(); thread.join()
print(int(kept), min(found[1:]))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_memory_that_was_freed_is_not_cleared_again_for_the_next_layer() -> None:
    """Page faults of a later thread: at most the pages of the largest block, not those of every block.

    Until the heap is large enough for each order of blocks, that may take more than one.
    """

    def run(**set_: str) -> tuple[int, int]:
        kept_apart = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        asked = [sys.executable, "-c", _TAKES_AND_FREES]
        done = subprocess.run(asked, env=kept_apart | set_, capture_output=True, text=True, check=True, timeout=120)
        kept, faults = done.stdout.split()
        return int(kept), int(faults)

    pages = 55 * 256
    kept, faults = run()
    assert kept == 1
    assert faults < pages
    untouched, usual = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert untouched == 0  # the user's own setting stands
    assert usual > 10 * pages
