"""Natural gradient: its Fisher matrix, steps and damping, kinks, resuming, divergence."""

import functools
import math

import numpy as np
import pytest
import torch

from dipct.errors import ConfigurationError, ShapeError
from dipct.generator import NetworkGenerator, PixelImage, Subspace, UNet
from dipct.measurement import Grid, ParallelGeometry
from dipct.objective import DataTerm, GaussianFidelity, Objective, TotalVariation
from dipct.operator import RayTransform
from dipct.operator.base import Operator
from dipct.solver import (
    Adam,
    GeneratorFit,
    GeneratorLoss,
    IterationState,
    LastIterate,
    NaturalGradient,
    PrimalDualTV,
    Status,
    iterate,
    natural_gradient,
)

F32, F64 = torch.float32, torch.float64
SHAPE, STD, K = (1, 6, 6), 0.03, 5
GEOMETRY = ParallelGeometry(0.1 + np.arange(9) * math.pi / 9, 9, 1 / 6)
N = math.prod(SHAPE)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only cost time on problems this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(*shape, seed, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype)


@functools.cache
def ray(dtype=F64):
    return RayTransform(GEOMETRY, Grid(SHAPE[1:], 1 / 6), dtype=dtype)


def truth():
    image = torch.zeros(SHAPE, dtype=F64)
    image[:, 1:4, 2:5] = 1
    return image


def stds(dtype=F64):
    """A standard deviation of its own for every ray."""
    return (STD * torch.linspace(0.5, 2, 81, dtype=F64).reshape(9, 9)).to(dtype)


def data(dtype=F64):
    clean = ray()(truth())
    return (clean + stds() * normal(*clean.shape, seed=1)).to(dtype)


def dense(operator):
    units = torch.eye(N, dtype=F64).reshape(-1, *SHAPE)
    return torch.stack([operator(unit).flatten() for unit in units], 1)


def objective(operator=None, *, dtype=F64, tv=0.0, weight=1.0, std=None):
    operator = ray(dtype) if operator is None else operator
    fidelity = GaussianFidelity(data(dtype), stds(dtype) if std is None else std)
    return Objective([(tv, TotalVariation(SHAPE)), (weight, DataTerm(operator, fidelity))])


def subspace(dtype=F64):
    network = NetworkGenerator(
        UNet((4, 4), (0, 2)), 0.1 * normal(*SHAPE, seed=2, dtype=dtype), SHAPE[1:]
    )
    theta = network.initial(0).to(dtype)
    basis = torch.linalg.qr(normal(theta.numel(), K, seed=3))[0]
    return Subspace(network, theta, basis.to(dtype))


def network_loss(*, scale=None, **settings):
    return GeneratorLoss(subspace(), objective(**settings), scale)


def pixel_loss(*, scale=None, **settings):
    return GeneratorLoss(PixelImage(SHAPE), objective(**settings), scale)


def fit(operator=None, *, dtype=F32, tv=1.0, optimiser=None, **settings):
    """A fit of a network on a subspace."""
    optimiser = NaturalGradient(probes=8, every=3) if optimiser is None else optimiser
    problem = objective(operator, dtype=dtype, tv=tv)
    initial = torch.zeros(K, dtype=dtype)
    return GeneratorFit(subspace(dtype), problem, initial, optimiser=optimiser, **settings)


def path(optimiser, loss, theta, steps):
    """Points and memories, first to last."""
    points, memories = [theta], [optimiser.start(theta)]
    for step in range(steps):
        here = loss.differentiate(points[-1])
        theta, memory = optimiser.step(points[-1], memories[-1], here, loss, step)
        points.append(theta)
        memories.append(memory)
    return points, memories


class Tripping(Operator):
    """An operator that returns something else from one of its calls on."""

    def __init__(self, at, bad, dtype=F32):
        self.operator, self.at, self.bad, self.calls = ray(dtype), at, bad, 0
        self.domain_shape, self.range_shape = SHAPE, self.operator.range_shape

    def _apply(self, x):
        self.calls += 1
        y = self.operator(x)
        return y * self.bad if self.calls >= self.at else y


def fisher(loss, theta, *, std=None, factor=None):
    """The definition, with the whole Jacobian."""
    data = loss.data_term
    jacobian = torch.func.jacrev(lambda c: data.operator(loss.generator(c)).flatten())(theta)
    whitened = jacobian / (data.fidelity.std if std is None else std).flatten()[:, None]
    weight = dict((term.name, weight) for weight, term in loss.objective.terms)["fidelity"]
    return (loss.scale * weight if factor is None else factor) * whitened.T @ whitened


def largest_score(estimate, expected, probes):
    """Largest deviation of an entry in units of its standard deviation (Wishart)."""
    diagonal = expected.diagonal()
    spread = ((diagonal[:, None] * diagonal + expected.square()) / probes).sqrt()
    return float(((estimate - expected) / spread).abs().max())


@pytest.mark.parametrize("scale", [None, 1.0])
def test_the_fisher_matrix_is_that_of_the_definition(scale, monkeypatch):
    loss = network_loss(weight=2.5, tv=1.0, scale=scale)
    theta, probes = 0.3 * normal(K, seed=4), 1000
    estimate = NaturalGradient(probes=probes).fisher(theta, loss, 0)
    expected = fisher(loss, theta)
    assert largest_score(estimate, expected, probes) < 4.5
    wrong = {
        "one standard deviation": fisher(loss, theta, std=torch.full((9, 9), STD, dtype=F64)),
        "variance": fisher(loss, theta, std=stds().square()),
        "no weight": expected / 2.5,
        "elsewhere": fisher(loss, theta + 0.3),
    }
    if scale is None:
        wrong["no scale"] = fisher(loss, theta, factor=2.5)
    for what, matrix in wrong.items():
        assert largest_score(estimate, matrix, probes) > 6, what
    # In parts, where all at once would not fit in memory.
    monkeypatch.setattr(natural_gradient, "_NUMBERS_AT_ONCE", 81 * 150)
    estimate = NaturalGradient(probes=probes).fisher(theta, loss, 0)
    assert largest_score(estimate, expected, probes) < 4.5


def test_probes_are_those_of_seed_and_step():
    loss, theta = network_loss(), normal(K, seed=4)
    first = NaturalGradient(seed=3).fisher(theta, loss, 7)
    assert torch.equal(first, NaturalGradient(seed=3).fisher(theta, loss, 7))
    assert not torch.equal(first, NaturalGradient(seed=3).fisher(theta, loss, 8))
    assert not torch.equal(first, NaturalGradient(seed=4).fisher(theta, loss, 7))
    before = torch.get_rng_state()
    NaturalGradient().fisher(theta, loss, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_estimates_are_averaged_without_bias_from_the_start():
    loss, optimiser = network_loss(), NaturalGradient(probes=3, every=2, decay=0.8)
    points, memories = path(optimiser, loss, torch.zeros(K, dtype=F64), 6)
    estimates = [optimiser.fisher(points[step], loss, step) for step in (0, 2, 4)]
    weights = [0.8**2, 0.8, 1.0]
    mean = sum(w * e for w, e in zip(weights, estimates, strict=True)) / sum(weights)
    memory = memories[-1]
    assert int(memory["fisher_estimates"]) == 3
    found = memory["fisher_mean"] / (1 - 0.8**3)
    torch.testing.assert_close(found, mean, rtol=1e-10, atol=0)


def plane_step(loss, theta, matrix, damping, last):
    """Minimiser of the model in the span of natural gradient and last change, densely."""
    gradient = loss.differentiate(theta).gradient
    identity = torch.eye(len(theta), dtype=F64)
    exact = fisher(loss, theta) + damping * identity
    natural = torch.linalg.solve(matrix + damping * identity, gradient)
    plane = torch.stack([natural / natural.norm(), last / last.norm()], 1)
    plane = plane if bool(last.any()) else plane[:, :1]
    shares = torch.linalg.solve(plane.T @ exact @ plane, -plane.T @ gradient)
    change = plane @ shares
    return change, float(gradient @ change + change @ exact @ change / 2)


def test_steps_minimise_the_model_in_the_plane():
    loss, optimiser = network_loss(), NaturalGradient(probes=6, damping=1.0)
    points, memories = path(optimiser, loss, torch.zeros(K, dtype=F64), 12)
    factors = set()
    for i in range(12):
        after = memories[i + 1]
        matrix = after["fisher_mean"] / (1 - 0.95 ** int(after["fisher_estimates"]))
        damping, last = float(memories[i]["damping"]), memories[i]["last_change"]
        unit = float(matrix.diagonal().mean())
        change, predicted = plane_step(loss, points[i], matrix, damping * unit, last)
        objectives = [loss.evaluate(points[i] + d).objective for d in (0 * change, change)]
        actual = loss.scale * float(objectives[1] - objectives[0])
        if actual > 0:
            # Taken back: the damping rises by at least the square of a bad step's factor.
            assert float(after["damping"]) >= 2 * damping
            continue
        torch.testing.assert_close(after["last_change"], change, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(points[i + 1], points[i] + change, rtol=1e-6, atol=1e-12)
        ratio = actual / predicted
        expected = 0.5 if ratio > 0.75 else 2.0 if ratio < 0.25 else 1.0
        assert float(after["damping"]) == pytest.approx(expected * damping)
        factors.add(expected)
        if i > 0:
            without, _ = plane_step(loss, points[i], matrix, damping * unit, 0 * last)
            assert not torch.allclose(change, without, rtol=1e-3)
    assert 0.5 in factors


def test_the_minimiser_is_that_of_the_normal_equations():
    loss = pixel_loss()
    points, memories = path(NaturalGradient(), loss, normal(N, seed=5), 60)
    matrix, weights = dense(ray()), stds().flatten() ** -2
    normal_matrix = matrix.T @ (weights[:, None] * matrix)
    expected = torch.linalg.solve(normal_matrix, matrix.T @ (weights * data().flatten()))
    torch.testing.assert_close(points[-1], expected, rtol=1e-6, atol=1e-6)
    unweighted = torch.linalg.solve(matrix.T @ matrix, matrix.T @ data().flatten())
    assert not torch.allclose(points[-1], unweighted, rtol=1e-2, atol=1e-2)
    assert min(float(memory["damping"]) for memory in memories) < 1e-6
    # There a step is the gradient, and one or two derivatives of the model.
    passes = [int(memory["network_passes"]) for memory in memories]
    assert passes[59] - passes[51] <= 3 * 8


def test_damping_has_a_floor():
    optimiser = NaturalGradient(least_damping=1.0, damping=10.0)
    _, memories = path(optimiser, pixel_loss(), normal(N, seed=5), 10)
    assert float(memories[-1]["damping"]) == 1.0


@pytest.mark.parametrize("change", [{"scale": 1e-4}, {"weight": 10.0, "std": math.sqrt(10)}])
def test_the_path_does_not_depend_on_the_scale_of_the_loss(change):
    # The same objective once more, in other factors.
    if "std" in change:
        change = {"weight": 10.0, "std": stds() * change["std"]}
    start = torch.zeros(K, dtype=F64)
    expected, _ = path(NaturalGradient(probes=8), network_loss(), start, 10)
    found, _ = path(NaturalGradient(probes=8), network_loss(**change), start, 10)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-5, atol=1e-9)
    other, _ = path(NaturalGradient(probes=8), network_loss(weight=10.0, tv=5.0), start, 10)
    assert not torch.allclose(torch.stack(other), torch.stack(expected), rtol=1e-2)


def overshooting(optimiser):
    """A network's loss, parameters where the least damped step raises it, and its value there."""
    loss = network_loss()
    for seed in range(30):
        theta = normal(K, seed=seed)
        here, matrix = loss.differentiate(theta), optimiser.fisher(theta, loss, 0)
        damping = optimiser.damping * float(matrix.diagonal().mean())
        change, _ = plane_step(loss, theta, matrix, damping, torch.zeros_like(theta))
        if float(loss.evaluate(theta + change).objective) > 1.01 * float(here.objective):
            return loss, theta, here
    raise AssertionError("no step of this problem overshoots")


def test_a_step_that_raises_the_loss_is_taken_back_and_damped():
    once = NaturalGradient(damping=1e-8, max_evaluations=1)
    loss, theta, here = overshooting(once)
    stayed, memory = once.step(theta, once.start(theta), here, loss, 0)
    assert torch.equal(stayed, theta)
    assert float(memory["damping"]) == pytest.approx(4e-8)
    assert not bool(memory["last_change"].any())
    often = NaturalGradient(damping=1e-8, max_evaluations=30)
    moved, memory = often.step(theta, often.start(theta), here, loss, 0)
    assert float(loss.evaluate(moved).objective) < float(here.objective)
    assert float(memory["damping"]) > 1e-8
    torch.testing.assert_close(moved - theta, memory["last_change"])


@pytest.mark.parametrize("tv", [1.0, 10.0])
def test_the_objective_with_total_variation_never_rises(tv):
    method = GeneratorFit(
        PixelImage(SHAPE), objective(tv=tv), normal(N, seed=5), optimiser=NaturalGradient()
    )
    solution = iterate(method, max_iterations=60, every=1)
    values = solution.history["objective"]
    assert bool((values.diff() <= 0).all())
    exact = PrimalDualTV(ray(), GaussianFidelity(data(), stds()), tv, nonnegative=False)
    best = iterate(exact, max_iterations=5000, every=50).history["objective"][-1]
    assert -1e-4 < float(values[-1] / best) - 1 < 0.015
    # Without the gradient of total variation it would end in its minimiser.
    without = iterate(
        GeneratorFit(
            PixelImage(SHAPE), objective(), normal(N, seed=5), optimiser=NaturalGradient()
        ),
        max_iterations=60,
    )
    assert float(objective(tv=tv)(without.value)) > 1.1 * float(values[-1])


def test_a_network_on_a_subspace_is_fitted():
    optimiser = NaturalGradient(probes=10)
    solution = iterate(fit(tv=0.5, optimiser=optimiser), max_iterations=25, every=1)
    values = solution.history["objective"]
    assert bool((values.diff() <= 0).all())
    steps = 25
    adam = iterate(fit(tv=0.5, optimiser=Adam(3e-2)), max_iterations=steps, every=1)
    assert float(values[-1]) < float(adam.history["objective"].min()) < float(values[0])
    assert solution.value.dtype == F32


def test_network_passes_are_counted_and_reported():
    # Forward calls of the operator, of which one serves all probes of an estimate.
    counting = Tripping(math.inf, 1.0)
    method = fit(counting)
    tensors = method.start()
    for step in range(7):
        counting.calls = 0
        before, tensors = int(tensors["network_passes"]), method.step(tensors)
        spent = int(tensors["network_passes"]) - before
        # The composition is asked for its value along with every forward-mode derivative.
        assert spent == counting.calls + (8 - 1) * (step % 3 == 0)
    solution = iterate(fit(), max_iterations=7, every=2)
    passes = solution.history["network_passes"]
    assert passes.shape == (5,)
    assert int(passes[0]) == 0 and int(passes[-1]) == int(tensors["network_passes"])


def differs(one, other):
    """Names of tensors or histories that are not bit-identical."""
    pairs = [
        (one.state.tensors, other.state.tensors),
        (one.history, other.history),
        ({"value": one.value}, {"value": other.value}),
    ]
    found = set()
    for a, b in pairs:
        assert a.keys() == b.keys()
        found |= {k for k in a if not torch.equal(a[k], b[k]) or a[k].dtype != b[k].dtype}
    return found


def test_resuming_is_bit_identical():
    whole = iterate(fit(), max_iterations=14, every=3)
    for stop in (0, 1, 7, 9):
        part = iterate(fit(), max_iterations=stop, every=3)
        rest = iterate(fit(), max_iterations=14, every=3, state=part.state)
        assert differs(rest, whole) == set()
    for name in ("last_change", "fisher_mean"):
        forgetful = part.state.tensors | {name: torch.zeros_like(part.state.tensors[name])}
        state = IterationState(9, forgetful, part.state.history)
        assert "theta" in differs(iterate(fit(), max_iterations=14, every=3, state=state), whole)


@pytest.mark.parametrize("at", [3, 4, 6, 13, 20])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite_end_a_fit_as_diverged(at, bad):
    selection = LastIterate()
    solution = iterate(fit(Tripping(at, bad), selection=selection), max_iterations=20, every=2)
    assert solution.status is Status.DIVERGED
    valid = iterate(fit(selection=selection), max_iterations=solution.iterations, every=2)
    assert torch.equal(solution.value, valid.value)
    assert all(bool(torch.isfinite(values).all()) for values in solution.history.values())


@pytest.mark.parametrize("part", ["objective", "gradient"])
def test_a_point_that_is_not_finite_is_not_hidden(part):
    loss, theta, optimiser = network_loss(), torch.zeros(K, dtype=F64), NaturalGradient()
    here = loss.differentiate(theta)
    here = type(here)(**(vars(here) | {part: getattr(here, part) * math.nan}))
    moved, _ = optimiser.step(theta, optimiser.start(theta), here, loss, 0)
    assert bool(torch.isnan(moved).all())


def test_at_a_stationary_point_it_stays():
    fidelity = GaussianFidelity(torch.zeros_like(data()), STD)
    terms = [(1.0, DataTerm(ray(), fidelity)), (1.0, TotalVariation(SHAPE))]
    loss, theta = GeneratorLoss(PixelImage(SHAPE), Objective(terms)), torch.zeros(N, dtype=F64)
    points, _ = path(NaturalGradient(), loss, theta, 3)
    assert all(torch.equal(point, theta) for point in points)


def test_data_of_no_weight_leave_descent_of_the_rest():
    loss = pixel_loss(weight=0.0, tv=1.0)
    points, _ = path(NaturalGradient(probes=2), loss, normal(N, seed=5), 20)
    values = [float(loss.evaluate(point).objective) for point in points]
    assert values[-1] < 0.5 * values[0]
    assert max(np.diff(values)) <= 0


def test_inputs_are_left_alone():
    loss, optimiser = network_loss(tv=1.0), NaturalGradient(probes=5)
    points, memories = path(optimiser, loss, torch.zeros(K, dtype=F64), 4)
    theta, memory, here = points[-1], memories[-1], loss.differentiate(points[-1])
    given = {"theta": theta, "gradient": here.gradient, **memory}
    kept = {name: tensor.clone() for name, tensor in given.items()}
    moved, _ = optimiser.step(theta, memory, here, loss, 4)
    assert all(torch.equal(given[name], kept[name]) for name in given)
    assert not torch.equal(moved, theta)


@pytest.mark.parametrize(
    "settings",
    [
        {"probes": 0},
        {"every": 0},
        {"max_evaluations": 0},
        {"seed": -1},
        {"decay": 1.0},
        {"decay": -0.1},
        {"decay": math.nan},
        {"damping_factor": 1.0},
        {"damping_factor": 0.0},
        {"damping": 0.0},
        {"damping": math.inf},
        {"damping": math.nan},
        {"least_damping": 0.0},
        {"least_damping": 1000.0},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        NaturalGradient(**settings)


def test_problems_that_do_not_fit_are_refused():
    pixels = PixelImage(SHAPE)
    with pytest.raises(ShapeError, match="one by one"):
        GeneratorFit(pixels, objective(), torch.zeros(2, N), optimiser=NaturalGradient())
    large = PixelImage((1, 101, 100))
    smoothing = Objective([(1.0, TotalVariation((1, 101, 100)))])
    with pytest.raises(ConfigurationError, match="Subspace"):
        GeneratorFit(large, smoothing, large.initial(0), optimiser=NaturalGradient())
    smoothing = Objective([(1.0, TotalVariation(SHAPE))])
    method = GeneratorFit(pixels, smoothing, pixels.initial(0), optimiser=NaturalGradient())
    with pytest.raises(ConfigurationError, match="data term"):
        iterate(method, max_iterations=1)
