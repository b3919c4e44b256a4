"""Ways measured in turns: what fails is a row, what was measured stays, and nothing is divided by zero."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from prism.evaluation.turns import Turns, rate, ratio


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
