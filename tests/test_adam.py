"""Adam, its schedules and clipping, against PyTorch's own."""

import math

import pytest
import torch

from dipct.errors import ConfigurationError
from dipct.solver import Adam, CosineDecay, OneCycle, WarmUp

N = 6


def quadratic(seed=0, batch=()):
    """Gradient of a random convex quadratic, [... N]."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(N, N, generator=generator, dtype=torch.float64)
    centre = torch.randn(*batch, N, generator=generator, dtype=torch.float64)
    return lambda theta: (theta - centre) @ (root @ root.T)


def ours(adam, gradient, theta, steps=20):
    """All parameters, first to last."""
    averages, path = adam.start(theta), [theta]
    for step in range(steps):
        theta, averages = adam.update(theta, averages, gradient(theta), step)
        path.append(theta)
    return torch.stack(path)


def torchs(gradient, theta, rates, steps=20, *, factor=None, clip=None, **options):
    """The same by PyTorch, with a parameter group for every number."""
    numbers = [torch.nn.Parameter(value.clone()) for value in theta]
    groups = [{"params": [p], "lr": float(r)} for p, r in zip(numbers, rates, strict=True)]
    optimiser = torch.optim.Adam(groups, **options)
    schedule = factor and torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    path = [theta]
    for _ in range(steps):
        for number, slope in zip(numbers, gradient(path[-1]), strict=True):
            number.grad = slope.clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(numbers, clip)
        optimiser.step()
        if schedule:
            schedule.step()
        path.append(torch.stack([number.detach() for number in numbers]))
    return torch.stack(path)


def start(*batch, seed=9):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, N, generator=generator, dtype=torch.float64)


def same(one, other, tolerance=1e-12):
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "options", [{}, {"betas": (0.5, 0.9)}, {"betas": (0.0, 0.0)}, {"epsilon": 1e-2}]
)
def test_steps_are_those_of_torch(options):
    gradient, theta = quadratic(), start()
    given = {"eps" if name == "epsilon" else name: value for name, value in options.items()}
    expected = torchs(gradient, theta, [0.03] * N, **given)
    assert same(ours(Adam(0.03, **options), gradient, theta), expected)
    wrong = Adam(0.03, **options | {"betas": (0.8, 0.99)})
    assert not same(ours(wrong, gradient, theta), expected)


def test_a_rate_for_every_parameter_and_none_for_frozen_ones():
    gradient, theta = quadratic(), start()
    rates = torch.tensor([0.1, 0.0, 1e-3, 0.03, 0.0, 0.5], dtype=torch.float64)
    path = ours(Adam(rates), gradient, theta)
    assert same(path, torchs(gradient, theta, rates))
    assert not same(path, torchs(gradient, theta, rates.flip(0)))
    moves = (path != theta).any(0)
    assert torch.equal(moves, rates > 0)


def test_frozen_parameters_do_not_shorten_the_gradient_of_others():
    # PyTorch's frozen parameters have no gradient, and clipping does not see them.
    slopes = torch.tensor([3.0, 4.0, 1e6, 0.0, 0.0, 0.0], dtype=torch.float64)
    rates = torch.tensor([0.1, 0.1, 0.0, 0.1, 0.1, 0.1], dtype=torch.float64)
    theta = start()
    adam = Adam(rates, clip=1.0)
    _, averages = adam.update(theta, adam.start(theta), slopes, 0)
    assert averages["gradient_mean"][:2].tolist() == pytest.approx([0.06, 0.08], rel=1e-12)


def warm_up_factor(step):
    return 0.25 * (step + 1) if step < 4 else 1.0


def cosine_factor(step):
    """Three steps up while the cosine waits at one, then down to zero at step 15."""
    rise = [1 / 3, 2 / 3, 1.0]
    if step < 3:
        return rise[step]
    return 0.5 + 0.5 * math.cos(math.pi * (step - 3) / 12) if step < 15 else 0.0


def plain_cosine_factor(step):
    return 0.5 + 0.5 * math.cos(math.pi * step / 15) if step < 15 else 0.0


SCHEDULES = [
    (WarmUp(4), warm_up_factor),
    (CosineDecay(15, 3), cosine_factor),
    (CosineDecay(15), plain_cosine_factor),
]


@pytest.mark.parametrize(("schedule", "factor"), SCHEDULES)
def test_schedules_are_those_of_torch(schedule, factor):
    gradient, theta = quadratic(), start()
    path = ours(Adam(0.1, schedule=schedule), gradient, theta)
    assert same(path, torchs(gradient, theta, [0.1] * N, factor=factor))
    late = torchs(gradient, theta, [0.1] * N, factor=lambda step: factor(step + 1))
    assert not same(path, late)
    factors = [schedule(step) for step in range(20)]
    assert factors == pytest.approx([factor(step) for step in range(20)], abs=1e-15)
    assert min(factors) >= 0
    assert max(factors) == 1


@pytest.mark.parametrize("clip", [0.1, 3.0, 1e3])
def test_clipping_is_that_of_torch(clip):
    gradient, theta = quadratic(), start()
    slopes = gradient(theta)
    length = float(slopes.norm())
    assert 3.0 < length < 1e3
    adam = Adam(0.1, clip=clip, betas=(0.0, 0.0))
    # Without averaging the mean is the clipped gradient itself.
    _, averages = adam.update(theta, adam.start(theta), slopes, 0)
    clipped = averages["gradient_mean"]
    assert same(clipped, slopes * min(1.0, clip / length))
    expected = torch.nn.Parameter(theta.clone())
    expected.grad = slopes.clone()
    torch.nn.utils.clip_grad_norm_([expected], clip)
    # PyTorch adds 1e-6 to the length.
    assert same(clipped, expected.grad, 1.01e-6 / length)
    assert torch.equal(clipped, slopes) == (clip > length)


def test_clipped_steps_are_those_of_torch():
    gradient, theta = quadratic(), start()
    expected = torchs(gradient, theta, [0.1] * N, clip=0.5)
    assert same(ours(Adam(0.1, clip=0.5), gradient, theta), expected, 1e-5)
    assert not same(ours(Adam(0.1), gradient, theta), expected, 1e-3)


def test_a_zero_gradient_is_not_divided_by_its_length():
    theta = start()
    adam = Adam(clip=1.0)
    moved, averages = adam.update(theta, adam.start(theta), torch.zeros(N, dtype=torch.float64), 0)
    assert torch.equal(moved, theta)
    assert bool(torch.isfinite(averages["gradient_mean"]).all())


@pytest.mark.parametrize("rate", [0.1, torch.linspace(0, 0.1, N, dtype=torch.float64)])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_elements_of_a_batch_are_independent(rate, clip):
    adam = Adam(rate, schedule=CosineDecay(15, 3), clip=clip)
    generator = torch.Generator().manual_seed(4)
    slopes = torch.randn(20, 2, 3, N, generator=generator, dtype=torch.float64)
    # Of different lengths: what is common to the batch would show.
    slopes = slopes * torch.logspace(-2, 2, 6, dtype=torch.float64).reshape(2, 3, 1)
    theta = start(2, 3)

    def run(theta, slopes):
        averages = adam.start(theta)
        for step, slope in enumerate(slopes):
            theta, averages = adam.update(theta, averages, slope, step)
        return theta

    together = run(theta, slopes)
    for i in range(2):
        for j in range(3):
            assert same(together[i, j], run(theta[i, j], slopes[:, i, j]), 1e-14)
    assert not same(together[0, 0], run(theta[0, 0], slopes[:, 1, 0]))


def test_inputs_are_left_alone():
    theta, slopes = start(2), start(2, seed=3)
    adam = Adam(torch.linspace(0, 0.1, N, dtype=torch.float64), clip=0.5, schedule=WarmUp(3))
    theta, averages = adam.update(theta, adam.start(theta), slopes, 0)
    given = {"theta": theta, "slopes": slopes, "rate": adam.learning_rate, **averages}
    kept = {name: tensor.clone() for name, tensor in given.items()}
    moved, _ = adam.update(theta, averages, slopes, 1)
    assert all(torch.equal(given[name], kept[name]) for name in given)
    assert not torch.equal(moved, theta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_keep_the_type(dtype):
    theta = start().to(dtype)
    for rate in (0.1, torch.full((N,), 0.1), torch.full((N,), 0.1, dtype=torch.float64)):
        adam = Adam(rate, schedule=WarmUp(2), clip=0.1)
        moved, averages = adam.update(theta, adam.start(theta), theta, 0)
        assert {t.dtype for t in (moved, *averages.values())} == {dtype}


def test_huge_gradients_are_not_finite_in_silence():
    # What overflows must stay visible, for the loop to end as diverged.
    theta = start()
    adam = Adam(0.1, clip=1.0)
    slopes = torch.full((N,), math.nan, dtype=torch.float64)
    moved, _ = adam.update(theta, adam.start(theta), slopes, 0)
    assert bool(torch.isnan(moved).all())


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.0},
        {"learning_rate": -1e-3},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"learning_rate": torch.zeros(3)},
        {"learning_rate": torch.tensor([1e-3, -1e-3])},
        {"learning_rate": torch.tensor([1e-3, math.nan])},
        {"clip": 0.0},
        {"clip": -1.0},
        {"clip": math.nan},
        {"betas": (1.0, 0.999)},
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.999)},
        {"betas": (0.9, math.nan)},
        {"epsilon": 0.0},
        {"epsilon": math.nan},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        Adam(**settings)


@pytest.mark.parametrize("total", [10, 100])
def test_one_cycle_is_that_of_torch(total):
    number = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([number], 1.0)
    torchs_own = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 1.0, total_steps=total, cycle_momentum=False
    )
    expected = []
    for _ in range(total):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        torchs_own.step() if len(expected) < total else None
    ours = [OneCycle(total)(step) for step in range(total)]
    assert ours == pytest.approx(expected, rel=1e-9)
    assert [OneCycle(total, rising=0.5)(step) for step in range(total)] != pytest.approx(expected)


def test_weight_decay_is_that_of_torch():
    gradient, theta = quadratic(), start()
    rates = torch.full((N,), 0.03, dtype=torch.float64)
    options = {"weight_decay": 0.1}
    expected = torchs(gradient, theta, rates, **options)
    assert same(ours(Adam(0.03, **options), gradient, theta), expected)
    assert not same(ours(Adam(0.03), gradient, theta), expected, 1e-4)
