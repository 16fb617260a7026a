"""L-BFGS: minimisers, its direction and line search, kinks, resuming, divergence."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import optimize

from dipct.errors import ConfigurationError, ShapeError
from dipct.generator import NetworkGenerator, PixelImage, Subspace, UNet
from dipct.measurement import Grid, ParallelGeometry
from dipct.objective import (
    DataTerm,
    GaussianFidelity,
    Objective,
    PoissonFidelity,
    TotalVariation,
)
from dipct.operator import RayTransform
from dipct.operator.base import Operator
from dipct.solver import (
    LBFGS,
    Adam,
    GeneratorFit,
    GeneratorLoss,
    IterationState,
    LastIterate,
    PrimalDualTV,
    Status,
    iterate,
)

F32, F64 = torch.float32, torch.float64
SHAPE, STD, K = (1, 6, 6), 0.03, 8
GEOMETRY = ParallelGeometry(0.1 + np.arange(9) * math.pi / 9, 9, 1 / 6)


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


def data(dtype=F64):
    clean = ray()(truth())
    return (clean + STD * normal(*clean.shape, seed=1)).to(dtype)


def pixel_loss(tv=0.0, *, fidelity=None, scale=None):
    fidelity = GaussianFidelity(data(), STD) if fidelity is None else fidelity
    terms = [(1.0, DataTerm(ray(), fidelity)), (tv, TotalVariation(SHAPE))]
    return GeneratorLoss(PixelImage(SHAPE), Objective(terms), scale)


def subspace(dtype=F32):
    network = NetworkGenerator(
        UNet((4, 4), (0, 2)), 0.1 * normal(*SHAPE, seed=2, dtype=dtype), SHAPE[1:]
    )
    theta = network.initial(0).to(dtype)
    basis = torch.linalg.qr(normal(theta.numel(), K, seed=3))[0]
    return Subspace(network, theta, basis.to(dtype))


def fit(operator=None, *, dtype=F32, tv=1.0, optimiser=None, **settings):
    """A fit of a network on a subspace."""
    operator = ray(dtype) if operator is None else operator
    terms = [
        (1.0, DataTerm(operator, GaussianFidelity(data(dtype), STD))),
        (tv, TotalVariation(SHAPE)),
    ]
    optimiser = LBFGS(memory=4) if optimiser is None else optimiser
    initial = torch.zeros(K, dtype=dtype)
    return GeneratorFit(subspace(dtype), Objective(terms), initial, optimiser=optimiser, **settings)


def pixel_fit(tv=0.0, *, optimiser=None, **settings):
    loss = pixel_loss(tv)
    initial = loss.generator.initial(0).double()
    optimiser = LBFGS() if optimiser is None else optimiser
    return GeneratorFit(loss.generator, loss.objective, initial, optimiser=optimiser, **settings)


def path(optimiser, loss, theta, steps):
    """Points and memories, first to last."""
    points, memories = [theta], [optimiser.start(theta)]
    for step in range(steps):
        here = loss.differentiate(points[-1])
        theta, memory = optimiser.step(points[-1], memories[-1], here, loss, step)
        points.append(theta)
        memories.append(memory)
    return points, memories


def start(seed=5):
    return normal(math.prod(SHAPE), seed=seed)


class Tripping(Operator):
    """An operator that returns something else from one of its calls on."""

    def __init__(self, at, bad, dtype=F32):
        self.operator, self.at, self.bad, self.calls = ray(dtype), at, bad, 0
        self.domain_shape, self.range_shape = SHAPE, self.operator.range_shape

    def _apply(self, x):
        self.calls += 1
        y = self.operator(x)
        return y * self.bad if self.calls >= self.at else y


def dense(operator):
    units = torch.eye(math.prod(SHAPE), dtype=F64).reshape(-1, *SHAPE)
    return torch.stack([operator(unit).flatten() for unit in units], 1)


def test_the_minimiser_is_that_of_the_normal_equations():
    solution = iterate(pixel_fit(), max_iterations=300, every=50)
    matrix = dense(ray())
    expected = torch.linalg.solve(matrix.T @ matrix, matrix.T @ data().flatten())
    torch.testing.assert_close(solution.value.flatten(), expected, rtol=1e-6, atol=1e-6)
    wrong = torch.linalg.solve(matrix.T @ matrix, matrix.T @ ray()(truth()).flatten())
    assert not torch.allclose(solution.value.flatten(), wrong, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
@pytest.mark.parametrize("memory", [2, 10])
def test_the_minimum_is_that_of_scipy(kind, memory):
    fidelity = None if kind == "gaussian" else PoissonFidelity(data(), 1000.0)
    loss = pixel_loss(fidelity=fidelity)

    def value_and_slopes(theta):
        there = loss.differentiate(torch.from_numpy(theta))
        return loss.scale * float(there.objective), there.gradient.numpy()

    options = {"maxcor": memory, "maxiter": 3000, "maxfun": 5000, "ftol": 0, "gtol": 1e-10}
    expected = optimize.minimize(
        value_and_slopes, start().numpy(), jac=True, method="L-BFGS-B", options=options
    )
    points, memories = path(LBFGS(memory=memory), loss, start(), 2 * expected.nit + 20)
    found = loss.scale * float(loss.evaluate(points[-1]).objective)
    assert found == pytest.approx(expected.fun, rel=1e-9)
    torch.testing.assert_close(points[-1], torch.from_numpy(expected.x), rtol=1e-4, atol=1e-4)
    halfway = loss.scale * float(loss.evaluate(points[10]).objective)
    assert halfway > expected.fun * (1 + 1e-6)
    assert int(memories[-1]["network_passes"]) < 5 * expected.nfev


def inverse_hessian(changes, responses):
    """The dense matrix by BFGS updates (Nocedal & Wright, equation 6.17)."""
    changes, responses = changes.numpy(), responses.numpy()
    n = changes.shape[1]
    matrix = np.eye(n) * (changes[-1] @ responses[-1]) / (responses[-1] @ responses[-1])
    for s, y in zip(changes, responses, strict=True):
        left = np.eye(n) - np.outer(s, y) / (s @ y)
        matrix = left @ matrix @ left.T + np.outer(s, s) / (s @ y)
    return torch.from_numpy(matrix)


def angle(one, other):
    return 1 - float(one @ other / (one.norm() * other.norm()))


@pytest.mark.parametrize("memory", [1, 3, 20])
def test_steps_go_along_the_direction_of_the_dense_matrix(memory):
    loss = pixel_loss()
    points, memories = path(LBFGS(memory=memory), loss, start(), 12)
    for i in range(1, 12):
        count = int(memories[i]["n_pairs"])
        assert count == min(i, memory)
        changes = memories[i]["parameter_changes"][-count:]
        responses = memories[i]["gradient_changes"][-count:]
        gradients = [loss.differentiate(point).gradient for point in points[i - 1 : i + 1]]
        torch.testing.assert_close(changes[-1], points[i] - points[i - 1])
        torch.testing.assert_close(responses[-1], gradients[1] - gradients[0])
        step = points[i + 1] - points[i]
        assert angle(step, -inverse_hessian(changes, responses) @ gradients[1]) < 1e-10
        assert angle(step, -gradients[1]) > 1e-6
        if count > 1:
            wrong = inverse_hessian(changes[:-1], responses[:-1]) @ gradients[1]
            assert angle(step, -wrong) > 1e-6


@pytest.mark.parametrize("rate", [1e-8, 1e-3, 1.0, 30.0, 1e6])
@pytest.mark.parametrize("tv", [0.0, 3.0])
def test_every_step_has_the_weak_wolfe_conditions(rate, tv):
    loss = pixel_loss(tv)
    points, _ = path(LBFGS(learning_rate=rate, max_evaluations=40), loss, start(), 15)
    for before, after in itertools.pairwise(points):
        one, two, step = loss.differentiate(before), loss.differentiate(after), after - before
        fall = loss.scale * float(one.objective - two.objective)
        slope = float(one.gradient @ step)
        assert slope < 0
        assert fall >= -1e-4 * slope * (1 - 1e-6)
        assert float(two.gradient @ step) >= 0.9 * slope * (1 + 1e-6)


def test_the_first_step_does_not_depend_on_the_unit_of_the_loss():
    found = []
    for scale in (1e-6, 1.0, 1e6):
        points, _ = path(LBFGS(), pixel_loss(scale=scale), start(), 1)
        found.append(points[-1])
        fell = [float(pixel_loss().evaluate(point).objective) for point in points]
        assert fell[1] < 0.6 * fell[0]


@pytest.mark.parametrize("tv", [1.0, 10.0])
def test_kinks_of_total_variation_do_not_stop_it_early(tv):
    solution = iterate(pixel_fit(tv), max_iterations=300, every=1)
    objective = solution.history["objective"]
    assert bool((objective.diff() <= 0).all())
    method = PrimalDualTV(ray(), GaussianFidelity(data(), STD), tv, nonnegative=False)
    best = iterate(method, max_iterations=5000, every=50)
    assert best.status is Status.CONVERGED
    excess = objective / best.history["objective"][-1] - 1
    assert -1e-4 < float(excess[-1]) < 1e-3
    # Steps of steepest descent are far behind.
    slow = iterate(pixel_fit(tv, optimiser=Plain()), max_iterations=60, every=60)
    behind = slow.history["objective"][-1] / best.history["objective"][-1] - 1
    assert float(behind) > 5 * float(excess[60])


class Plain(LBFGS):
    """Steepest descent: every step forgets its pairs."""

    def step(self, theta, memory, here, loss, step):
        return super().step(theta, memory | {"n_pairs": torch.tensor(0)}, here, loss, step)


def test_where_no_trial_is_better_the_pairs_are_forgotten_and_then_it_stays():
    loss = pixel_loss()
    points, memories = path(LBFGS(), loss, start(), 5)
    theta, memory = points[-1], memories[-1]
    assert int(memory["n_pairs"]) == 5
    here = loss.differentiate(theta)
    far = LBFGS(learning_rate=1e6, max_evaluations=1)
    stayed, forgotten = far.step(theta, memory, here, loss, 5)
    assert torch.equal(stayed, theta)
    assert (int(forgotten["n_pairs"]), bool(forgotten["stays"])) == (0, False)
    # Steepest descent comes next ...
    moved, learned = LBFGS().step(theta, forgotten, here, loss, 6)
    assert angle(moved - theta, -here.gradient) < 1e-12
    assert int(learned["n_pairs"]) == 1
    # ... and where it fails, too, nothing is tried any more.
    stayed, stuck = far.step(theta, forgotten, here, loss, 6)
    assert torch.equal(stayed, theta) and bool(stuck["stays"])
    stayed, after = LBFGS().step(theta, stuck, here, loss, 7)
    assert torch.equal(stayed, theta)
    assert int(after["network_passes"]) == int(stuck["network_passes"]) + 1


def test_at_a_stationary_point_it_stays():
    fidelity = GaussianFidelity(torch.zeros_like(data()), STD)
    loss, theta = pixel_loss(1.0, fidelity=fidelity), torch.zeros(36, dtype=F64)
    points, memories = path(LBFGS(), loss, theta, 3)
    assert all(torch.equal(point, theta) for point in points)
    assert int(memories[-1]["network_passes"]) == 3


def test_an_ascent_direction_is_replaced_by_steepest_descent():
    loss, theta = pixel_loss(), start()
    here = loss.differentiate(theta)
    memory = LBFGS().start(theta)
    # A pair of negative curvature makes a matrix that is not positive definite.
    changes, responses = memory["parameter_changes"].clone(), memory["gradient_changes"].clone()
    changes[-1], responses[-1] = here.gradient, -here.gradient
    bad = memory | {
        "parameter_changes": changes,
        "gradient_changes": responses,
        "n_pairs": torch.tensor(1),
    }
    moved, after = LBFGS().step(theta, bad, here, loss, 1)
    assert angle(moved - theta, -here.gradient) < 1e-12
    assert int(after["n_pairs"]) == 1
    assert float(loss.evaluate(moved).objective) < float(here.objective)


def test_network_passes_are_counted_and_reported():
    counting = Tripping(math.inf, 1.0)
    method = fit(counting)
    tensors = method.start()
    for _ in range(6):
        counting.calls = 0
        before, tensors = int(tensors["network_passes"]), method.step(tensors)
        assert int(tensors["network_passes"]) - before == counting.calls >= 1
    solution = iterate(fit(), max_iterations=6, every=2)
    passes = solution.history["network_passes"]
    assert passes.shape == (4,)
    assert int(passes[0]) == 0 and int(passes[-1]) == int(tensors["network_passes"])
    adam = iterate(fit(optimiser=Adam()), max_iterations=2, every=1)
    assert "network_passes" not in adam.history


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
    whole = iterate(fit(), max_iterations=20, every=3)
    for stop in (0, 1, 7, 12):
        part = iterate(fit(), max_iterations=stop, every=3)
        rest = iterate(fit(), max_iterations=20, every=3, state=part.state)
        assert differs(rest, whole) == set()
    forgetful = part.state.tensors | {"n_pairs": torch.tensor(0)}
    state = IterationState(12, forgetful, part.state.history)
    assert "theta" in differs(iterate(fit(), max_iterations=20, every=3, state=state), whole)


def test_states_of_another_memory_are_refused():
    state = iterate(fit(), max_iterations=2).state
    with pytest.raises(ConfigurationError, match="another method"):
        iterate(fit(optimiser=LBFGS(memory=5)), max_iterations=4, state=state)


def test_a_network_on_a_subspace_is_fitted():
    solution = iterate(fit(tv=0.5), max_iterations=40, every=1)
    objective = solution.history["objective"]
    assert bool((objective.diff() <= 0).all())
    adam = fit(tv=0.5, optimiser=Adam(3e-2))
    passes = int(solution.history["network_passes"][-1])
    other = iterate(adam, max_iterations=passes, every=1).history["objective"]
    assert float(objective[-1]) < float(other.min()) < float(objective[0])
    assert solution.value.dtype == F32


@pytest.mark.parametrize("at", [3, 5, 9, 20])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite_end_a_fit_as_diverged(at, bad):
    selection = LastIterate()
    solution = iterate(fit(Tripping(at, bad), selection=selection), max_iterations=40, every=2)
    assert solution.status is Status.DIVERGED
    valid = iterate(fit(selection=selection), max_iterations=solution.iterations, every=2)
    assert torch.equal(solution.value, valid.value)
    assert all(bool(torch.isfinite(values).all()) for values in solution.history.values())


@pytest.mark.parametrize("part", ["objective", "gradient"])
def test_a_point_that_is_not_finite_is_not_hidden(part):
    loss, theta = pixel_loss(), start()
    here = loss.differentiate(theta)
    here = type(here)(**(vars(here) | {part: getattr(here, part) * math.nan}))
    moved, _ = LBFGS().step(theta, LBFGS().start(theta), here, loss, 0)
    assert bool(torch.isnan(moved).all())


def test_trials_that_overflow_are_too_far():
    # 1e25 squared is infinite in single precision.
    pixels = PixelImage(SHAPE)
    objective = Objective([(1.0, DataTerm(ray(F32), GaussianFidelity(data(F32), STD)))])
    method = GeneratorFit(
        pixels,
        objective,
        pixels.initial(0),
        optimiser=LBFGS(learning_rate=1e25, max_evaluations=60),
    )
    solution = iterate(method, max_iterations=10, every=1)
    assert solution.status is Status.MAX_ITERATIONS
    objective = solution.history["objective"]
    assert float(objective[-1]) < 0.1 * float(objective[0])


def test_inputs_are_left_alone():
    loss = pixel_loss(1.0)
    points, memories = path(LBFGS(memory=3), loss, start(), 5)
    theta, memory, here = points[-1], memories[-1], loss.differentiate(points[-1])
    given = {"theta": theta, "gradient": here.gradient, **memory}
    kept = {name: tensor.clone() for name, tensor in given.items()}
    moved, _ = LBFGS(memory=3).step(theta, memory, here, loss, 5)
    assert all(torch.equal(given[name], kept[name]) for name in given)
    assert not torch.equal(moved, theta)


@pytest.mark.parametrize(
    "settings",
    [
        {"memory": 0},
        {"max_evaluations": 0},
        {"learning_rate": 0.0},
        {"learning_rate": -1.0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        LBFGS(**settings)


def test_batches_are_refused():
    loss = pixel_loss()
    with pytest.raises(ShapeError, match="one by one"):
        GeneratorFit(loss.generator, loss.objective, torch.zeros(2, 36), optimiser=LBFGS())
