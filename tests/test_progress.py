import io
import re

import pytest
import torch
from rich.console import Console

from dipct.progress import ProgressDisplay, describe_figures
from dipct.solver import IterationState


class Clock:
    """Seconds that pass when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def state(iteration, **figures):
    history = {name: torch.tensor([9.0, value]) for name, value in figures.items()}
    return IterationState(iteration, {}, {"iteration": torch.tensor([0, iteration]), **history})


@pytest.fixture
def plain():
    """A display on something that is no terminal, its text, and its clock."""
    text, clock = io.StringIO(), Clock()
    return ProgressDisplay("tv", 400, console=Console(file=text), clock=clock), text, clock


def test_plain_lines_come_every_five_seconds(plain):
    display, text, clock = plain
    with display as shown:
        for iteration in range(10, 401, 10):
            clock.now += 1
            shown(state(iteration, relative_gap=1 / iteration))
    lines = text.getvalue().splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("tv: 50/400  gap 0.02  at most ")
    assert "\x1b" not in text.getvalue() and "\r" not in text.getvalue()


def test_the_time_left_follows_the_pace(plain):
    display, text, clock = plain
    with display as shown:
        shown(state(100))
        clock.now += 10
        shown(state(200))
    # A hundred iterations in ten seconds, two hundred to go.
    assert text.getvalue() == "tv: 200/400    at most 20 s left\n"


def test_going_on_from_a_checkpoint_is_timed_from_there(plain):
    display, text, clock = plain
    with display as shown:
        shown(state(390))
        clock.now += 6
        shown(state(396))
    assert "at most 4 s left" in text.getvalue()


def test_short_work_says_nothing(plain):
    display, text, clock = plain
    with display as shown:
        clock.now += 4
        shown(state(10))
    assert text.getvalue() == ""


def test_long_lines_are_not_broken(plain):
    display, text, clock = plain
    figures = dict.fromkeys(
        ("objective", "relative_residual", "relative_gap", "normal_residual"), 1.23456e-12
    )
    with display as shown:
        clock.now += 9
        shown(state(10, **figures))
    assert len(text.getvalue().splitlines()) == 1 and len(text.getvalue()) > 90


def test_a_bar_on_a_terminal():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, color_system=None)
    with ProgressDisplay("sirt", 50, console=console) as shown:
        shown(state(20, relative_residual=0.25))
        shown(state(50, relative_residual=0.125))
    last = text.getvalue().splitlines()[-1]
    assert re.search(r"sirt .*50/50 residual 0\.125 ", text.getvalue())
    assert "\x1b[" in text.getvalue() and last


def test_the_bar_ends_with_an_error():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, color_system=None)
    with pytest.raises(KeyboardInterrupt), ProgressDisplay("sirt", 50, console=console):
        raise KeyboardInterrupt
    # The cursor comes back.
    assert text.getvalue().rindex("\x1b[?25h") > text.getvalue().rindex("\x1b[?25l")


def test_the_default_is_standard_error(capsys):
    clock = Clock()
    with ProgressDisplay("cgls", 9, clock=clock) as shown:
        clock.now += 7
        shown(state(3))
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("cgls: 3/9")


def test_figures_are_the_latest_and_the_mean_of_a_batch():
    history = {
        "iteration": torch.tensor([0, 1]),
        "relative_residual": torch.tensor([[5.0, 6.0], [1.0, 2.0]]),
        "objective": torch.tensor([[0.0, 0.0], [1234.5, 1234.5]], dtype=torch.float64),
        "something": torch.tensor([0.0, 1.0]),
    }
    assert describe_figures(history) == "objective 1.23e+03  residual 1.5"
    assert describe_figures({}) == ""
