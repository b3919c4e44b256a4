"""How a reranker ends with its script, and what a process forked off after it was loaded gets: real scripts, run.

Every script runs with warnings as errors and Python's development mode, which tell of loops and sockets left open.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from prism.engines.loop import LoopThread
from prism.errors import EngineError
from studies.server_process import server

ROOT = Path(__file__).parents[1]
LOAD = """
import asyncio, os, signal, sys, threading
from prism import Reranker
from prism.errors import EngineError
def load():
    return Reranker.load({path!r}, template="prism", dtype="float32", device="cpu", self_test=False, **{more!r})
def score(reranker):
    return reranker.rerank("when?", ["The harbour froze."], evidence=False)[0].score
"""
FORK = """
def in_child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        work()
        sys.exit(7)  # as scripts end: with all that runs then
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def refused(call):
    try:
        call()
    except EngineError as error:
        assert "was forked: load it in each process" in str(error) and "\\n" not in str(error), error
        return
    raise AssertionError("not refused")
"""


class Scripts:
    def __init__(self, path: Path, **more: str) -> None:
        self._load = LOAD.format(path=str(path), more=more)

    def start(self, text: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "2",  # as on any machine: pools of one thread end without waiting
            "PYTHONPATH": str(ROOT),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        command = [sys.executable, "-u", "-X", "dev", "-c", self._load + text]  # -u: nothing is printed twice by a fork
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=environment
        )

    def run(self, text: str) -> tuple[int, str, str]:
        """Exit status, standard output and error, but for progress bars and what asyncio says of a slow machine."""
        with self.start(text) as process:
            out, errors = process.communicate(timeout=300)
        slow = re.compile(r"Executing <.* took [\d.]+ seconds$")
        lines = [line for line in errors.splitlines() if "Loading weights" not in line and not slow.match(line)]
        return process.returncode, out, "\n".join(lines)


@pytest.fixture(scope="module")
def hf(tiny_checkpoint: Path) -> Scripts:
    return Scripts(tiny_checkpoint)


@pytest.fixture(scope="module")
def openai(tiny_checkpoint: Path) -> Iterator[Scripts]:
    with server([sys.executable, str(ROOT / "tests" / "completion_server.py")], ready="/v1/models") as running:
        yield Scripts(tiny_checkpoint, engine="openai", base_url=f"{running.url}/v1")


# --- the end of a script ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["hf", "openai"])
def test_a_script_that_closes_nothing_ends_in_silence(engine: str, request: pytest.FixtureRequest) -> None:
    scripts: Scripts = request.getfixturevalue(engine)
    at_module_level = "reranker = load()\nprint(0 < score(reranker) < 1)"
    assert scripts.run(at_module_level) == (0, "True\n", "")


@pytest.mark.slow
def test_nor_does_one_that_drops_it_in_a_function_or_raises(hf: Scripts) -> None:
    dropped = """
def main():
    reranker = load()
    score(reranker)
main()
import gc; gc.collect()
print([thread.name for thread in threading.enumerate() if "prism" in thread.name])
"""
    assert hf.run(dropped) == (0, "[]\n", "")
    status, out, errors = hf.run("reranker = load()\nscore(reranker)\nraise ValueError('of the script')")
    assert (status, out) == (1, "")
    assert errors.splitlines()[-1] == "ValueError: of the script"
    assert errors.count("Traceback") == 1
    assert "Exception ignored" not in errors


@pytest.mark.slow
def test_ctrl_c_in_a_call_ends_the_script_at_once(hf: Scripts) -> None:
    text = """
reranker = load()
score(reranker)
print("begun", flush=True)
while True:
    reranker.rerank("when?", [f"The harbour froze {n} times. " * 40 for n in range(400)], threshold=0)
"""
    with hf.start(text) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT  # as Python ends by a KeyboardInterrupt that nobody caught
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert "Exception ignored" not in errors


# --- forked processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["hf", "openai"])
def test_a_forked_process_is_told_and_ends_and_its_parent_goes_on(engine: str, request: pytest.FixtureRequest) -> None:
    scripts: Scripts = request.getfixturevalue(engine)
    text = (
        FORK
        + """
with load() as reranker:
    before = score(reranker)
    print(in_child(lambda: refused(lambda: score(reranker))))
    print(in_child(lambda: refused(lambda: asyncio.run(reranker.arerank("when?", ["It froze."])))))
    print(in_child(reranker.close))
    print(in_child(lambda: asyncio.run(reranker.aclose())))
    print(in_child(lambda: None))
    print(score(reranker) == before)
"""
    )
    assert scripts.run(text) == (0, "7\n7\n7\n7\n7\nTrue\n", "")


@pytest.mark.slow
def test_a_process_forked_in_the_middle_of_a_call_and_before_the_first(hf: Scripts) -> None:
    text = (
        FORK
        + """
reranker = load()
print(in_child(lambda: refused(lambda: score(reranker))))  # nothing was computed yet
documents = [f"The harbour froze {n} times. " * 20 for n in range(60)]
busy = threading.Thread(target=lambda: reranker.rerank("when?", documents, evidence=False))
busy.start()
print(in_child(lambda: refused(lambda: score(reranker))))
busy.join()
def own():
    with load() as mine:
        print(0 < score(mine) < 1, flush=True)
print(in_child(own))  # what the message asks for
"""
    )
    assert hf.run(text) == (0, "7\n7\nTrue\n7\n", "")


# --- the thread under both -------------------------------------------------------------------------------------------


def test_a_loop_that_is_dropped_takes_its_thread_along() -> None:
    import gc

    loop = LoopThread("dropped")
    assert loop.run_blocking(_one) == 1
    [thread] = [thread for thread in threading.enumerate() if thread.name == "dropped"]
    del loop
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_closing_cancels_what_runs_and_refuses_what_comes() -> None:
    import asyncio

    cleaned = threading.Event()

    async def for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    async def main() -> None:
        loop = LoopThread("closed")
        waiting = asyncio.create_task(loop.run(for_ever))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(loop.close)
        loop.close()
        with pytest.raises(EngineError, match="closed before this was finished"):
            await waiting
        with pytest.raises(EngineError, match="the engine is closed"):
            await loop.run(for_ever)

    asyncio.run(main())
    assert cleaned.is_set()


async def _one() -> int:
    return 1
