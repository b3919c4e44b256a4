"""Progress where no terminal is: lines now and then, with a clock of our own."""

from __future__ import annotations

import re

import pytest

from prism.reports.bar import ProgressLines, progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_every_half_minute_says_how_long_the_rest_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: 18 in the 41 s since the first line are 2.3 s each, 20 left: 46 s."""
    clock = Clock()
    lines = ProgressLines(50, "answers", 30, clock)
    said = []
    for moment, count in ((110, 4), (120, 4), (130, 4), (150, 4), (171, 14)):
        clock.now = moment
        lines.advance(count)
        said.append(capsys.readouterr().err)
    assert said == ["", "", "answers: 12 of 50\n", "", "answers: 30 of 50, about 1 min left\n"]


def test_what_an_earlier_run_left_does_not_promise_that_the_rest_is_as_fast(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """900 pass in the first second, then one takes ten. By hand: 3 in 30 s, 94 left: 15 min 40 s."""
    clock = Clock()
    lines = ProgressLines(1000, "lines", 30, clock)
    clock.now = 101
    for done in range(1, 901):
        lines.reached(done, "lines")
    for done in range(901, 907):
        clock.now += 10
        lines.reached(done, "lines")
    assert capsys.readouterr().err == "lines: 903 of 1,000\nlines: 906 of 1,000, about 16 min left\n"


def test_another_count_begins_anew(capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: 1 in 60 s, 7 left: 7 min."""
    clock = Clock()
    lines = ProgressLines(10, "lines", 30, clock)
    for moment, done in ((200, 1), (260, 2), (320, 3)):  # nothing to judge its pace by, at first
        clock.now = moment
        lines.reached(done, "a", ", $0.1000 spent")
    assert capsys.readouterr().err == ("a: 2 of 10, $0.1000 spent\na: 3 of 10, about 7 min left, $0.1000 spent\n")


def test_more_than_was_foreseen_or_an_unknown_number_is_counted_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for total in (3, None):
        ProgressLines(total, "records", every_s=0).advance(4000)
        assert capsys.readouterr().err == "records: 4,000\n"
    ProgressLines(3, "records", every_s=0).reached(0, "records")
    assert capsys.readouterr().err == ""


def test_a_command_whose_output_is_piped_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("answers", 3, every_s=0) as advance:
        for _ in range(3):
            advance(1)
    told = capsys.readouterr()
    assert told.out == ""
    assert re.findall(r"answers: (\d) of 3(.*)\n", told.err) == [
        ("1", ""),
        ("2", ", about 0 min left"),
        ("3", ", about 0 min left"),
    ]
