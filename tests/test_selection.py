"""Rules that select an iterate, against naive ones."""

import math
from collections import deque

import numpy as np
import pytest
import torch

from dipct.errors import ConfigurationError
from dipct.solver import (
    FirstAtNoiseLevel,
    LastIterate,
    LeastMovingVariance,
    LowestObjective,
    Status,
)
from dipct.solver.selection import Iterate

SHAPE = (1, 3, 4)


def iterates(n=60, batch=(), seed=0):
    """Made-up iterates: falling numbers with jumps, images that calm down and start again."""
    rng = np.random.default_rng(seed)
    steps = np.arange(n).reshape(n, *(1,) * len(batch))
    lows = rng.uniform(0.3, 0.8, batch) * n
    pace = 0.1 + np.abs(steps - lows) / n
    numbers = np.exp(-steps / 15) * rng.uniform(0.5, 2, (n, *batch))
    noise = rng.standard_normal((n, *batch, *SHAPE))
    images = np.cumsum(pace[..., None, None, None] * noise, axis=0)
    theta = rng.standard_normal((n, *batch, 5))
    made = [torch.from_numpy(values) for values in (theta, images, numbers, 3 * numbers)]
    return [Iterate(i, *(values[i] for values in made)) for i in range(n)]


def element(sequence, k):
    """One element of a batch."""
    return [
        Iterate(i.step, i.theta[k], i.image[k], i.objective[k], i.discrepancy[k]) for i in sequence
    ]


def feed(rule, sequence):
    """What the rule holds after each iterate, as the fit shows them; it may change nothing."""
    tensors, held = rule.start(sequence[0]), []
    assert int(tensors["chosen_step"].max()) == -1
    assert torch.equal(tensors["chosen"], sequence[0].theta)
    for iterate in sequence:
        own = {k: v for k, v in vars(iterate).items() if isinstance(v, torch.Tensor)}
        given = {**tensors, **own}
        kept = {name: value.clone() for name, value in given.items()}
        following = rule.update(tensors, iterate)
        assert all(np.array_equal(given[name], kept[name], equal_nan=True) for name in given)
        assert {k: (v.shape, v.dtype) for k, v in following.items()} == {
            k: (v.shape, v.dtype) for k, v in tensors.items()
        }
        tensors = following
        held.append(tensors)
    return held


def stop(rule, sequence):
    """Completed steps when the rule ends the fit, if it is asked after each; else None."""
    for step, tensors in enumerate(feed(rule, sequence), start=1):
        status = rule.outcome(rule.figures(tensors, step))
        if status is not None:
            return step, status
    return None


def check(rule, sequence, expected):
    """Compare with the steps a naive rule chooses after each iterate."""
    held = feed(rule, sequence)
    assert [int(t["chosen_step"]) for t in held] == expected
    for tensors, chosen in zip(held, expected, strict=True):
        assert torch.equal(tensors["chosen"], sequence[chosen].theta)


# Naive rules: the chosen step after each iterate.


def naive_lowest(sequence):
    values = [float(i.objective) for i in sequence]
    return [int(np.argmin(values[: k + 1])) for k in range(len(values))]


def naive_first(sequence, target):
    """Of the lowest objective so far, until one is at the target."""
    chosen = []
    for k in range(len(sequence)):
        values = [float(i.discrepancy) for i in sequence[: k + 1]]
        below = [j for j, value in enumerate(values) if value <= target]
        lowest = int(np.argmin([float(i.objective) for i in sequence[: k + 1]]))
        chosen.append(below[0] if below else lowest)
    return chosen


def naive_variance(sequence, window, warm_up=0):
    """Chosen steps and variances of Wang et al., algorithm 1; None until the queue is full."""
    queue, least, best = deque(maxlen=window), math.inf, None
    chosen, variances = [], []
    for k, iterate in enumerate(sequence):
        if k >= warm_up:
            queue.append(iterate.image.numpy())
        variance = None
        if len(queue) == window:
            variance = float(np.var(np.stack(queue), axis=0).sum())
            if variance < least:
                least, best = variance, k
        chosen.append(k if best is None else best)
        variances.append(variance)
    return chosen, variances


def naive_stop(sequence, window, patience, warm_up=0):
    chosen, _ = naive_variance(sequence, window, warm_up)
    return next((k + 1 for k, c in enumerate(chosen) if k - c == patience), None)


@pytest.mark.parametrize("seed", range(3))
def test_lowest_objective(seed):
    sequence = iterates(seed=seed)
    check(LowestObjective(), sequence, naive_lowest(sequence))
    assert naive_lowest(sequence) != list(range(60))
    assert stop(LowestObjective(), sequence) is None


def test_lowest_objective_passes_over_numbers_that_are_not_finite():
    sequence = iterates(6)
    values = [math.nan, 3.0, math.nan, math.inf, 2.0, 2.0]
    sequence = [
        Iterate(i.step, i.theta, i.image, torch.tensor(v, dtype=torch.float64), i.discrepancy)
        for i, v in zip(sequence, values, strict=True)
    ]
    held = feed(LowestObjective(), sequence)
    # Of equal ones the first.
    assert [int(t["chosen_step"]) for t in held] == [-1, 1, 1, 1, 4, 4]


def test_last_iterate():
    sequence = iterates()
    check(LastIterate(), sequence, list(range(60)))
    assert stop(LastIterate(), sequence) is None


@pytest.mark.parametrize("target", [0.1, 0.5, 1.0, 1e-9])
def test_first_at_noise_level(target):
    sequence = iterates()
    expected = naive_first(sequence, target)
    check(FirstAtNoiseLevel(target), sequence, expected)
    if target == 1e-9:
        assert stop(FirstAtNoiseLevel(target), sequence) is None
    else:
        # The sequence rises above the target again, which must change nothing.
        first = expected[-1]
        assert max(float(i.discrepancy) for i in sequence[first:]) > target
        assert stop(FirstAtNoiseLevel(target), sequence) == (first + 1, Status.DISCREPANCY_REACHED)
        assert naive_first(sequence, target / 3) != expected


def test_noise_level_counts_equality_and_not_nan():
    sequence = iterates(4)
    values = [math.nan, 1.0 + 1e-12, 1.0, 0.5]
    sequence = [
        Iterate(i.step, i.theta, i.image, i.objective, torch.tensor(v, dtype=torch.float64))
        for i, v in zip(sequence, values, strict=True)
    ]
    held = feed(FirstAtNoiseLevel(), sequence)
    assert [float(t["reached"]) for t in held] == [0, 0, 1, 1]
    assert [int(t["chosen_step"]) for t in held][2:] == [2, 2]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("window", "warm_up"), [(2, 0), (7, 0), (7, 9), (20, 5), (70, 0)])
def test_least_moving_variance(seed, window, warm_up):
    sequence = iterates(seed=seed)
    chosen, variances = naive_variance(sequence, window, warm_up)
    rule = LeastMovingVariance(window, 1000, warm_up)
    check(rule, sequence, chosen)
    for step, (tensors, expected) in enumerate(
        zip(feed(rule, sequence), variances, strict=True), start=1
    ):
        figures = rule.figures(tensors, step)
        shown = 0.0 if expected is None else expected
        assert float(figures["moving_variance"]) == pytest.approx(shown, rel=1e-10)
        assert float(figures["steps_since_minimum"]) == step - 1 - chosen[step - 1]
        assert all(bool(torch.isfinite(value).all()) for value in figures.values())
    if window < 70:
        # The comparison sees a window, or a warm-up, that is off by one.
        for wrong in [(window + 1, warm_up), (max(window - 1, 1), warm_up), (window, warm_up + 1)]:
            assert naive_variance(sequence, *wrong)[1] != pytest.approx(variances)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("patience", [1, 4, 15, 500])
def test_least_moving_variance_stops_after_its_patience(seed, patience):
    sequence = iterates(seed=seed)
    expected = naive_stop(sequence, 7, patience)
    found = stop(LeastMovingVariance(7, patience), sequence)
    assert found == (None if expected is None else (expected, Status.SETTLED))
    assert (expected is None) == (patience == 500)
    assert patience == 500 or naive_stop(sequence, 7, patience + 1) != expected


def test_least_moving_variance_does_not_stop_before_its_first_window():
    sequence = iterates()
    assert stop(LeastMovingVariance(20, 1), sequence) is not None
    assert stop(LeastMovingVariance(50, 1), sequence[:50]) is None
    assert stop(LeastMovingVariance(20, 1, warm_up=30), sequence[:50]) is None


def test_least_moving_variance_holds_at_the_minimum_whenever_it_is_asked():
    # A fit asks now and then only. A lower minimum that comes after the patience has ended must
    # not be taken: late in a fit images hardly change because the learning rate has fallen.
    sequence = iterates(80)
    calm = [
        Iterate(i.step, i.theta, i.image if i.step < 60 else 0 * i.image, *_numbers(i))
        for i in sequence
    ]
    expected = naive_stop(calm, 7, 8)
    assert expected is not None
    assert expected < 60
    last = feed(LeastMovingVariance(7, 8), calm)[-1]
    assert int(last["chosen_step"]) == expected - 1 - 8
    assert int(feed(LeastMovingVariance(7, 75), calm)[-1]["chosen_step"]) > 60


def _numbers(iterate):
    return iterate.objective, iterate.discrepancy


RULES = [
    LowestObjective(),
    LastIterate(),
    FirstAtNoiseLevel(0.5),
    LeastMovingVariance(7, 8),
    LeastMovingVariance(7, 1000, warm_up=3),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_elements_of_a_batch_are_separate(rule, seed):
    sequence = iterates(batch=(4,), seed=seed)
    together = feed(rule, sequence)
    last_of_all, ends = [], []
    for k in range(4):
        own = element(sequence, k)
        alone = feed(rule, own)
        ends.append(stop(rule, own))
        until = len(own) if ends[-1] is None else ends[-1][0]
        for step in range(until):
            for name in ("chosen", "chosen_step"):
                assert torch.equal(together[step][name][k], alone[step][name])
        # What it would have returned alone it returns after the others have ended, too.
        assert torch.equal(together[-1]["chosen"][k], alone[until - 1]["chosen"])
        last_of_all.append(int(together[-1]["chosen_step"][k]))
    if not isinstance(rule, LastIterate):
        assert len(set(last_of_all)) > 1
    # The fit ends with the last of its elements.
    found = stop(rule, sequence)
    if None in ends:
        assert found is None
    else:
        assert found == max(ends, key=lambda end: end[0])


def test_batches_of_two_axes():
    sequence = iterates(20, batch=(2, 3))
    for rule in RULES:
        tensors = feed(rule, sequence)[-1]
        assert tensors["chosen"].shape == (2, 3, 5)
        figures = rule.figures(tensors, 20)
        assert {value.shape for value in figures.values()} == {(2, 3)}


def test_a_rule_of_another_sequence_is_told_apart():
    """The comparison with the naive rules rejects a rule that never closes."""

    class Reopening(FirstAtNoiseLevel):
        def update(self, tensors, iterate):
            return super().update(tensors | {"reached": 0 * tensors["reached"]}, iterate)

    sequence = iterates()
    with pytest.raises(AssertionError):
        check(Reopening(0.5), sequence, naive_first(sequence, 0.5))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (FirstAtNoiseLevel, {"target": 0.0}),
        (FirstAtNoiseLevel, {"target": -1.0}),
        (FirstAtNoiseLevel, {"target": math.nan}),
        (LeastMovingVariance, {"window": 1}),
        (LeastMovingVariance, {"patience": 0}),
        (LeastMovingVariance, {"warm_up": -1}),
    ],
)
def test_impossible_settings_are_refused(kind, settings):
    with pytest.raises(ConfigurationError, match="got"):
        kind(**settings)
