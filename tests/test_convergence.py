"""Figures of a history: steady value, rise time, loss."""

import numpy as np
import pytest

from dipct.errors import ConfigurationError, ShapeError
from dipct.evaluation import convergence

STEPS = np.arange(0, 1001, 10)


def rising(steady=30.0, start=10.0, time=100.0):
    return steady - (steady - start) * np.exp(-STEPS / time)


def test_an_exponential_has_the_figures_of_its_formula():
    found = convergence(STEPS, rising())
    assert (found.initial_db, found.maximum_db) == (10.0, rising()[-1])
    assert found.steady_db == pytest.approx(30, abs=0.01)
    # 20 exp(-t / 100) < 0.1 from t = 530 on.
    assert found.rise_step == 530
    assert found.loss_db == 0 and found.baseline_step is None
    assert convergence(STEPS, rising(time=50)).rise_step < found.rise_step


@pytest.mark.parametrize(("baseline", "expected"), [(20.0, 70), (10.0, 0), (40.0, None)])
def test_the_baseline_is_reached_where_it_is(baseline, expected):
    assert convergence(STEPS, rising(), baseline_db=baseline).baseline_step == expected


def test_what_is_gained_and_lost_again_is_told():
    values = rising() - np.maximum(STEPS - 500, 0) / 100
    found = convergence(STEPS, values)
    assert found.loss_db == pytest.approx(values.max() - values[-1]) and found.loss_db > 4
    assert found.maximum_db > found.steady_db > found.final_db
    # The steady value is that of the last 15 % of the steps.
    assert found.steady_db == np.median(values[STEPS >= 850])
    assert convergence(STEPS, values, last_share=0.5).steady_db > found.steady_db


def test_repeats_are_their_median_at_every_step():
    repeats = np.stack([rising(), rising() - 5, np.full(len(STEPS), 99.0)])
    assert convergence(STEPS, repeats) == convergence(STEPS, rising())
    assert convergence(STEPS, repeats[:2]) != convergence(STEPS, rising())


def test_a_single_record_is_all_there_is():
    found = convergence([0], [12.0], baseline_db=11.0)
    assert (found.steady_db, found.rise_step, found.baseline_step) == (12.0, 0, 0)


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((1, 2, 101)), np.float64(1)])
def test_histories_of_other_lengths_are_refused(values):
    with pytest.raises(ShapeError, match="101 steps"):
        convergence(STEPS, values)


@pytest.mark.parametrize("wrong", [{"steps": STEPS[::-1]}, {"last_share": 0.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="must rise"):
        convergence(**{"steps": STEPS, "psnr_db": rising(), **wrong})
