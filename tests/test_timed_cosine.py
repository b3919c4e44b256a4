"""The learning rate of runs that end by the clock, against values by hand."""

from __future__ import annotations

import pytest

from prism.training.optimizer import TimedCosine
from prism.training.recipe import Optimizer


class Clock:
    """Tells the time that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def timed(clock: Clock, steps: int = 1000, seconds: float = 100.0) -> TimedCosine:
    return TimedCosine(Optimizer(warmup_steps=4, min_lr_share=0.2), steps, seconds, clock)


def test_warm_up_is_linear_whatever_the_clock_says(clock):
    rate = timed(clock)
    clock.now = 50.0
    assert [rate(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_half_of_the_time_is_half_of_the_cosine(clock):
    rate = timed(clock)
    clock.now = 50.0
    assert rate(4) == pytest.approx(0.6)  # 0.2 + 0.8 * (1 + cos(pi / 2)) / 2
    assert not rate.over
    clock.now = 100.0
    assert rate(5) == pytest.approx(0.2)
    assert rate.over


def test_steps_that_run_out_first_end_it_too(clock):
    rate = timed(clock, steps=12)
    assert rate(8) == pytest.approx(0.6)  # 4 of the 8 steps after the warm-up
    assert rate(12) == pytest.approx(0.2)


def test_time_spent_survives_in_another_process_with_another_clock(clock):
    rate = timed(clock)
    clock.now = 30.0
    rate(10)
    other = Clock()
    other.now = 1e6
    resumed = timed(other)
    resumed.__dict__.update(rate.__dict__)  # as LambdaLR stores and loads it
    other.now += 20.0
    resumed(11)
    assert resumed.spent_s == pytest.approx(50.0)
