"""Ways measured in turns: what fails is a row, what was measured stays, and nothing is divided by zero."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from studies.turns import Turns, rate, ratio


def working(value: str) -> Callable[[], str]:
    return lambda: value


def failing() -> Callable[[], str]:
    raise ValueError("no such\nmodel")


def failing_later(after: int) -> Callable[[], int]:
    calls: list[int] = []

    def run() -> int:
        calls.append(1)
        if len(calls) > after:
            raise MemoryError("no memory left")
        return len(calls)

    return run


def dying() -> Callable[[], str]:
    return lambda: os._exit(9)  # type: ignore[return-value]


def variable() -> Callable[[], str]:
    return lambda: os.environ.get("PRISM_TEST_TURNS", "unset")


def test_a_failed_way_is_a_row_and_the_others_go_on() -> None:
    ways = {
        "good": partial(working, "done"),
        "never ready": failing,
        "fails in the third turn": partial(failing_later, 2),
        "dies": dying,
    }
    seen: list[list[int]] = []
    with Turns(ways) as turns:
        turns.rounds(3, lambda: seen.append([len(way.times_s) for way in turns.ways]))
    good, never, later, dead = turns.ways
    assert good.result == "done"
    assert good.error is None
    assert good.ready_s is not None
    assert never.error == "ValueError: no such model"
    assert later.error == "MemoryError: no memory left"
    assert later.result == 2  # of its last turn; the first of the two warmed up
    assert dead.error is not None
    assert "BrokenProcessPool" in dead.error
    assert seen == [[1, 0, 1, 0], [2, 0, 1, 0], [3, 0, 1, 0]]


def test_each_way_has_its_own_environment() -> None:
    with Turns({"set": variable, "not": variable}, {"set": {"PRISM_TEST_TURNS": "yes"}}) as turns:
        turns.rounds(1)
    assert [way.result for way in turns.ways] == ["yes", "unset"]
    assert "PRISM_TEST_TURNS" not in os.environ


def test_median_and_worst() -> None:
    with Turns({"one": partial(working, "")}) as turns:
        (way,) = turns.ways
        assert way.median_s is None
        assert way.worst_s is None
    way.times_s = [3.0, 1.0, 2.0]
    assert (way.median_s, way.worst_s) == (2.0, 3.0)


def test_rates_and_ratios_of_nothing() -> None:
    assert rate(10, 4.0) == 2.5
    assert rate(10, 0.0) is None
    assert rate(10, None) is None
    assert ratio(6.0, 4.0) == 1.5
    assert ratio(6.0, 0.0) is None  # nothing was written by the way compared with
    assert ratio(None, 4.0) is None
    assert ratio(6.0, None) is None


KILLED = {
    "a way of Turns": """
from studies.turns import Turns
import os, time
def prepare(): return lambda: print(os.getpid(), flush=True)
if __name__ == "__main__":
    with Turns({"one": prepare}) as turns:
        turns.rounds(1, lambda: time.sleep(60))
""",
    "a worker of ordered": """
from prism.parallel import ordered
import os, time
def work(state, some): print(os.getpid(), flush=True); time.sleep(60)
if __name__ == "__main__":
    list(ordered(work, None, range(4), chunk=1, workers=2))
""",
}


@pytest.mark.skipif(sys.platform != "linux", reason="processes are told by /proc")
@pytest.mark.parametrize("script", KILLED.values(), ids=KILLED)
def test_no_process_outlives_a_parent_that_was_killed(script: str, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(script, encoding="utf-8")
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root), str(root / "eval")))}
    parent = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    children = {Path("/proc") / parent.stdout.readline().strip() for _ in range(2)}
    assert all(child.is_dir() for child in children)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline, f"{children} outlived their parent"
        time.sleep(0.05)
    parent.stdout.close()


def alive(process: Path) -> bool:
    """A zombie that nobody waits for is dead."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
