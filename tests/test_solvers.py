"""CGLS, SIRT and primal-dual total variation against closed forms, SciPy and ODL."""

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import nnls

from dipct.errors import ConfigurationError, ShapeError
from dipct.measurement.geometry import ParallelGeometry
from dipct.measurement.grid import Grid
from dipct.objective import GaussianFidelity, PoissonFidelity, total_variation
from dipct.operator.base import LinearOperator
from dipct.operator.matrix import MatrixOperator
from dipct.operator.ray_tracing import assemble_matrix
from dipct.solver import (
    CGLS,
    SIRT,
    PrimalDualTV,
    Status,
    attainable_discrepancy,
    iterate,
    tv_weight_by_discrepancy,
)

STD = 0.2


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only cost time on problems this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def matrix_operator(matrix, domain, range_shape, dtype=torch.float64):
    return MatrixOperator(sparse.csr_matrix(matrix), domain, range_shape, dtype=dtype)


def random_operator(m, domain, seed=0):
    n = int(np.prod(domain))
    return matrix_operator(np.random.default_rng(seed).random((m, n)), domain, (1, m))


def dense(operator):
    return operator.to_matrix().numpy()


def scan(n=16, views=8, pixel_size=1.0, noise=STD, dtype=torch.float64, seed=0):
    """A sparse-view scan of a disc and a bar: operator, noisy projections, image."""
    geometry = ParallelGeometry(
        np.linspace(0, np.pi, views, endpoint=False), int(1.5 * n), pixel_size
    )
    grid = Grid((n, n), pixel_size)
    matrix = assemble_matrix(geometry, grid, dtype=np.float64)
    operator = MatrixOperator(matrix, grid.image_shape, geometry.projection_shape, dtype=dtype)
    rows, columns = np.indices((n, n)) / n - 0.5
    image = 1.0 * (rows**2 + (columns + 0.05) ** 2 < 0.16) + 0.5 * (np.abs(columns - 0.1) < 0.1)
    image = torch.as_tensor(image / pixel_size, dtype=dtype)[None]
    draw = torch.as_tensor(np.random.default_rng(seed).standard_normal(geometry.projection_shape))
    return operator, operator(image) + noise * draw.to(dtype), image


def objective(operator, fidelity, weight, image, isotropic=False):
    return float(
        fidelity.value(operator(image)) + weight * total_variation(image, isotropic=isotropic)
    )


def relative(one, other):
    return float((one - other).norm() / other.norm())


class Mismatched(LinearOperator):
    """The right map with an adjoint that is a little off, and that says it is matched."""

    def __init__(self, operator):
        self.operator = operator
        self.domain_shape, self.range_shape = operator.domain_shape, operator.range_shape

    def _apply(self, x):
        return self.operator(x)

    def _apply_adjoint(self, y):
        return self.operator.adjoint(y).roll(1, -1)


# CGLS


def test_cgls_is_the_least_squares_solution():
    operator = random_operator(40, (1, 4, 5))
    y = torch.randn(1, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solution = iterate(CGLS(operator, y, tolerance=1e-12), max_iterations=100, every=1)
    expected = torch.from_numpy(np.linalg.lstsq(dense(operator), y[0].numpy(), rcond=None)[0])
    assert solution.status is Status.CONVERGED
    assert relative(solution.value.flatten(), expected) < 1e-8
    wrong = iterate(CGLS(Mismatched(operator), y, tolerance=1e-12), max_iterations=100)
    assert wrong.status is not Status.CONVERGED or relative(wrong.value.flatten(), expected) > 0.01


def test_cgls_from_zero_is_the_minimum_norm_solution():
    operator = random_operator(10, (1, 4, 5))
    y = torch.ones(1, 10, dtype=torch.float64)
    solution = iterate(CGLS(operator, y, tolerance=1e-12), max_iterations=100, every=1)
    expected = torch.from_numpy(np.linalg.pinv(dense(operator)) @ y[0].numpy())
    assert relative(solution.value.flatten(), expected) < 1e-8
    start = torch.ones(1, 4, 5, dtype=torch.float64)
    other = iterate(CGLS(operator, y, start, tolerance=1e-12), max_iterations=100, every=1)
    assert relative(other.value.flatten(), expected) > 0.01
    assert float(other.history["relative_residual"][-1]) < 1e-8


def test_cgls_residual_falls_and_converged_elements_stand_still():
    operator = random_operator(40, (1, 4, 5))
    easy = operator(torch.ones(1, 4, 5, dtype=torch.float64))
    y = torch.stack([0 * easy, easy, easy + torch.linspace(0, 9, 40, dtype=torch.float64)])
    method = CGLS(operator, y, tolerance=1e-8)
    solution = iterate(method, max_iterations=60, every=1)
    history = solution.history["relative_residual"]
    assert solution.status is Status.CONVERGED
    assert bool((history.diff(dim=0) <= 1e-12).all())
    assert bool((solution.value[0] == 0).all())
    done = int((solution.history["normal_residual"][:, 1] <= 1e-8).nonzero()[0])
    assert done < solution.iterations
    early = iterate(method, max_iterations=done, every=1)
    assert torch.equal(early.value[1], solution.value[1])
    assert not torch.equal(early.value[2], solution.value[2])


# SIRT


def test_sirt_is_the_weighted_least_squares_solution():
    operator = random_operator(60, (1, 2, 3))
    y = torch.randn(1, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    method = SIRT(operator, y, nonnegative=False, relaxation=1.9, tolerance=1e-12)
    solution = iterate(method, max_iterations=5000, every=50)
    a = dense(operator)
    root = 1 / np.sqrt(a.sum(1))
    expected = np.linalg.lstsq(root[:, None] * a, root * y[0].numpy(), rcond=None)[0]
    assert solution.status is Status.CONVERGED
    assert relative(solution.value.flatten(), torch.from_numpy(expected)) < 1e-6
    unweighted = np.linalg.lstsq(a, y[0].numpy(), rcond=None)[0]
    assert relative(torch.from_numpy(unweighted), torch.from_numpy(expected)) > 1e-3


def test_sirt_keeps_the_truth_of_noiseless_data():
    operator, _, truth = scan()
    y = operator(truth)
    solution = iterate(SIRT(operator, y, initial=truth), max_iterations=20)
    assert relative(solution.value, truth) < 1e-12
    moved = iterate(SIRT(operator, 1.1 * y, initial=truth), max_iterations=20)
    assert relative(moved.value, truth) > 0.01


def test_sirt_with_nonnegativity_is_nonnegative_least_squares():
    operator = random_operator(60, (1, 2, 3))
    signed = torch.tensor([[[1.0, -1.0, 2.0], [-0.5, 0.5, 0.1]]], dtype=torch.float64)
    y = operator(signed)
    method = SIRT(operator, y, relaxation=1.9, tolerance=1e-12)
    solution = iterate(method, max_iterations=5000, every=50)
    a = dense(operator)
    root = 1 / np.sqrt(a.sum(1))
    expected, _ = nnls(root[:, None] * a, root * y[0].numpy())
    assert 0 < (expected == 0).sum() < 6
    np.testing.assert_allclose(solution.value.flatten(), expected, atol=1e-6)


def test_sirt_leaves_out_empty_rays_and_pixels():
    matrix = np.array([[1.0, 1, 0], [0, 1, 0], [0, 0, 0]])
    operator = matrix_operator(matrix, (1, 1, 3), (1, 3))
    y = torch.tensor([[3.0, 2.0, 5.0]], dtype=torch.float64)
    solution = iterate(SIRT(operator, y, tolerance=1e-12), max_iterations=500)
    np.testing.assert_allclose(solution.value.flatten(), [1, 2, 0], atol=1e-6)


def test_sirt_refuses_what_cannot_converge():
    operator = random_operator(4, (1, 2, 2))
    y = torch.ones(1, 4, dtype=torch.float64)
    for relaxation in (0.0, 2.0, -1.0):
        with pytest.raises(ConfigurationError, match="between 0 and 2"):
            SIRT(operator, y, relaxation=relaxation)
    with pytest.raises(ConfigurationError, match="nonnegative"):
        SIRT(-operator, y)


# Total variation


def solve_tv(operator, fidelity, weight, *, tolerance=1e-8, max_iterations=20000, **options):
    method = PrimalDualTV(operator, fidelity, weight, tolerance=tolerance, **options)
    return iterate(method, max_iterations=max_iterations, every=50)


@pytest.mark.parametrize("isotropic", [False, True])
def test_tv_denoising_of_a_step(isotropic):
    """Both sides of a noiseless step move towards each other by weight std^2 / length."""
    identity = matrix_operator(sparse.identity(10), (1, 1, 10), (1, 10))
    y = torch.tensor([[1.0] * 4 + [3.0] * 6], dtype=torch.float64)
    solution = solve_tv(identity, GaussianFidelity(y, 0.5), 2.0, isotropic=isotropic)
    shift = 2.0 * 0.5**2
    expected = [1 + shift / 4] * 4 + [3 - shift / 6] * 6
    assert solution.status is Status.CONVERGED
    np.testing.assert_allclose(solution.value.flatten(), expected, atol=1e-4)


def test_tv_with_a_tiny_weight_is_nonnegative_least_squares():
    operator = random_operator(40, (1, 3, 3))
    y = torch.randn(1, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solution = solve_tv(operator, GaussianFidelity(y, 1.0), 1e-9, tolerance=1e-10)
    expected, _ = nnls(dense(operator), y[0].numpy())
    assert 0 < (expected == 0).sum() < 9
    np.testing.assert_allclose(solution.value.flatten(), expected, atol=1e-5)
    free = solve_tv(operator, GaussianFidelity(y, 1.0), 0.0, nonnegative=False, tolerance=1e-12)
    expected = np.linalg.lstsq(dense(operator), y[0].numpy(), rcond=None)[0]
    np.testing.assert_allclose(free.value.flatten(), expected, atol=1e-4)


def odl_minimiser(operator, y, std, weight, isotropic, iterations=2000):
    """The same problem solved by ODL's own PDHG on NumPy arrays."""
    import odl
    from odl.functionals import (
        GroupL1Norm,
        IndicatorNonnegativity,
        L1Norm,
        L2NormSquared,
        SeparableSum,
    )
    from odl.solvers import pdhg

    n = operator.domain_shape[1]
    # Cells of unit size: norms are then plain sums over pixels.
    space = odl.uniform_discr([0, 0], [n, n], (n, n))
    data = odl.rn(y.numel())
    matrix = operator.to_scipy()

    class Projector(odl.Operator):
        def __init__(self):
            super().__init__(space, data, linear=True)

        def _call(self, x):
            return matrix @ x.asarray().ravel()

        @property
        def adjoint(self):
            return BackProjector()

    class BackProjector(odl.Operator):
        def __init__(self):
            super().__init__(data, space, linear=True)

        def _call(self, y):
            return (matrix.T @ y.asarray()).reshape(n, n)

        @property
        def adjoint(self):
            return Projector()

    # Symmetric padding repeats the border pixel: forward differences vanish there.
    gradient = odl.Gradient(space, method="forward", pad_mode="symmetric")
    k = odl.BroadcastOperator(Projector(), gradient)
    distance = L2NormSquared(data).translated(data.element(y.numpy().ravel()))
    misfit = (0.5 / std**2) * distance
    l1 = GroupL1Norm(gradient.range) if isotropic else L1Norm(gradient.range)
    step = 0.95 / np.sqrt(operator.norm() ** 2 + 8)
    x = space.zero()
    balance = 0.003
    pdhg(
        x,
        IndicatorNonnegativity(space),
        SeparableSum(misfit, weight * l1),
        k,
        iterations,
        tau=step * balance,
        sigma=step / balance,
    )
    return torch.from_numpy(np.asarray(x.asarray()).copy())[None]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:odl")
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:odl")
@pytest.mark.parametrize("isotropic", [False, True])
def test_same_minimiser_as_odl(isotropic):
    operator, y, _ = scan()
    fidelity, weight = GaussianFidelity(y, STD), 15.0
    ours = solve_tv(operator, fidelity, weight, isotropic=isotropic, tolerance=1e-6)
    theirs = odl_minimiser(operator, y, STD, weight, isotropic)
    assert ours.status is Status.CONVERGED
    assert relative(ours.value, theirs) < 1e-3
    value, other = (
        objective(operator, fidelity, weight, x, isotropic) for x in (ours.value, theirs)
    )
    assert value == pytest.approx(other, rel=1e-5)
    assert float(ours.history["objective"][-1]) == pytest.approx(value, rel=1e-10)
    # A weight 5 % off, or the other total variation, has visibly another minimiser.
    off = solve_tv(operator, fidelity, 1.05 * weight, isotropic=isotropic, tolerance=1e-6)
    assert relative(off.value, theirs) > 1e-3
    wrong = solve_tv(operator, fidelity, weight, isotropic=not isotropic, tolerance=1e-6)
    assert relative(wrong.value, theirs) > 1e-3


FIDELITIES = {
    "gaussian": lambda y: GaussianFidelity(y, STD),
    "weighted": lambda y: GaussianFidelity(y, STD * (1 + 0.2 * y.abs())),
    "poisson": lambda y: PoissonFidelity(0.2 * y, 2000.0),
}


@pytest.mark.parametrize("kind", FIDELITIES)
@pytest.mark.parametrize("options", [{}, {"isotropic": True}, {"nonnegative": False}])
def test_gap_bounds_the_excess_of_the_objective(kind, options):
    operator, y, _ = scan()
    fidelity, weight = FIDELITIES[kind](y), 15.0
    best = solve_tv(operator, fidelity, weight, tolerance=1e-5, **options)
    assert best.status is Status.CONVERGED
    lowest = float(best.history["objective"][-1])
    rough = iterate(
        PrimalDualTV(operator, fidelity, weight, tolerance=0.0, **options),
        max_iterations=150,
        every=10,
    )
    excess = rough.history["objective"] - lowest
    gap = rough.history["gap"]
    assert bool((gap[1:] >= excess[1:] * (1 - 1e-9)).all())
    assert bool((gap >= -1e-9).all())
    assert float(gap[-1]) < 0.05 * float(gap[1])
    # With a wrong transpose the dual point certifies nothing, and the gap does not close.
    wrong = PrimalDualTV(Mismatched(operator), fidelity, weight, tolerance=1e-3, **options)
    assert iterate(wrong, max_iterations=500, every=50).status is not Status.CONVERGED


@pytest.mark.parametrize("kind", FIDELITIES)
def test_no_small_change_improves_the_minimiser(kind):
    operator, y, _ = scan()
    fidelity, weight = FIDELITIES[kind](y), 15.0
    solution = solve_tv(operator, fidelity, weight, tolerance=1e-6)
    lowest = objective(operator, fidelity, weight, solution.value)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-1):
        for _ in range(10):
            change = torch.randn(solution.value.shape, generator=generator, dtype=torch.float64)
            moved = (solution.value + size * change).clamp(min=0)
            assert objective(operator, fidelity, weight, moved) > lowest
    # From an image that is not the minimiser a change does improve.
    start = solution.value + 0.1
    assert objective(operator, fidelity, weight, 0.5 * (start + solution.value)) < objective(
        operator, fidelity, weight, start
    )


def test_units_of_length_change_nothing_but_units():
    """1/mm to 1/cm: pixel size a tenth, image and 1 / weight ten times, same projections."""
    options = {"max_iterations": 60, "every": 10}
    mm, y, _ = scan(pixel_size=1.0)
    cm, _, _ = scan(pixel_size=0.1)

    def run(operator, weight, initial=None):
        method = PrimalDualTV(operator, GaussianFidelity(y, STD), weight, initial=initial)
        return iterate(method, **options)

    one, other = run(mm, 15.0), run(cm, 1.5)
    assert relative(other.value, 10 * one.value) < 1e-6
    for name in ("objective", "fidelity", "relative_gap"):
        np.testing.assert_allclose(one.history[name], other.history[name], rtol=1e-5)
    assert relative(run(cm, 15.0).value, 10 * one.value) > 1e-2
    sirt = [iterate(SIRT(a, y), max_iterations=20).value for a in (mm, cm)]
    assert relative(sirt[1], 10 * sirt[0]) < 1e-10
    cgls = [iterate(CGLS(a, y), max_iterations=8).value for a in (mm, cm)]
    assert relative(cgls[1], 10 * cgls[0]) < 1e-10


def test_float32_reaches_the_default_tolerance_in_some_hundred_iterations():
    operator, y, truth = scan(n=48, views=20, dtype=torch.float32)
    solution = iterate(
        PrimalDualTV(operator, GaussianFidelity(y, STD), 15.0), max_iterations=1000, every=20
    )
    assert solution.status is Status.CONVERGED
    assert float(solution.history["relative_gap"][-1]) <= 1e-4
    cgls = iterate(CGLS(operator, y), max_iterations=12)
    assert relative(solution.value, truth) < relative(cgls.value, truth)


def test_upper_bound_is_a_constraint():
    operator, y, _ = scan()
    fidelity = GaussianFidelity(y, STD)
    free = solve_tv(operator, fidelity, 15.0)
    largest = float(free.value.max())
    bounded = solve_tv(operator, fidelity, 15.0, upper=0.8 * largest, tolerance=1e-6)
    assert float(bounded.value.max()) == pytest.approx(0.8 * largest, abs=1e-6)
    assert float(bounded.history["objective"][-1]) > float(free.history["objective"][-1])
    # A bound above the largest value changes nothing.
    loose = solve_tv(operator, fidelity, 15.0, upper=3 * largest)
    assert relative(loose.value, free.value) < 1e-3


def test_tv_of_volumes_and_batched_weights():
    operator = random_operator(30, (1, 3, 3, 3))
    y = operator(torch.ones(2, 1, 3, 3, 3, dtype=torch.float64) * torch.rand(2, 1, 3, 3, 3))
    fidelity = GaussianFidelity(y, 0.1, range_shape=(1, 30))
    weights = torch.tensor([1.0, 30.0])
    both = solve_tv(operator, fidelity, weights, tolerance=1e-7)
    assert both.status is Status.CONVERGED
    for k in range(2):
        alone = solve_tv(operator, GaussianFidelity(y[k], 0.1), float(weights[k]), tolerance=1e-7)
        a, b = (s.history["objective"][-1] for s in (both, alone))
        assert float(a[k]) == pytest.approx(float(b), rel=1e-6)
    assert float(both.history["total_variation"][-1][1]) < float(
        both.history["total_variation"][-1][0]
    )


def test_empty_rays_pixels_and_data():
    matrix = np.array([[1.0, 1, 0], [0, 1, 0], [0, 0, 0]])
    operator = matrix_operator(matrix, (1, 1, 3), (1, 3))
    y = torch.tensor([[3.0, 2.0, 0.5]], dtype=torch.float64)
    solution = solve_tv(operator, GaussianFidelity(y, 1.0), 0.0, tolerance=1e-8)
    assert solution.status is Status.CONVERGED
    np.testing.assert_allclose(solution.value.flatten()[:2], [1, 2], atol=1e-3)
    nothing = solve_tv(operator, GaussianFidelity(0 * y, 1.0), 1.0)
    assert nothing.status is Status.CONVERGED
    assert bool((nothing.value == 0).all())


def test_impossible_tv_problems_are_refused():
    operator, y, _ = scan()
    fidelity = GaussianFidelity(y, STD)

    class Unmatched(Mismatched):
        matched = False

    with pytest.raises(ConfigurationError, match="transpose"):
        PrimalDualTV(Unmatched(operator), fidelity, 1.0)
    with pytest.raises(ConfigurationError, match="transpose"):
        CGLS(Unmatched(operator), y)
    for weight in (-1.0, float("nan"), torch.ones(3)):
        with pytest.raises(ConfigurationError, match="tv_weight"):
            PrimalDualTV(operator, fidelity, weight)
    with pytest.raises(ConfigurationError, match="upper"):
        PrimalDualTV(operator, fidelity, 1.0, upper=0.0)
    with pytest.raises(ConfigurationError, match="maps images to zero"):
        PrimalDualTV(0.0 * operator, fidelity, 1.0)
    with pytest.raises(ShapeError):
        PrimalDualTV(operator, GaussianFidelity(y.T.contiguous(), STD), 1.0)
    with pytest.raises(ShapeError):
        PrimalDualTV(operator, fidelity, 1.0, initial=torch.ones(1, 3, 3, dtype=torch.float64))


# Discrepancy principle


@pytest.mark.parametrize("kind", ["gaussian", "weighted"])
def test_weight_by_discrepancy(kind):
    operator, _, truth = scan(n=24, views=16)
    std = STD if kind == "gaussian" else STD * (1 + 0.1 * operator(truth))
    draw = torch.as_tensor(np.random.default_rng(1).standard_normal(operator.range_shape))
    fidelity = GaussianFidelity(operator(truth) + std * draw, std)
    choice = tv_weight_by_discrepancy(operator, fidelity)
    assert abs(choice.ratio - 1) <= 0.02
    assert 1 <= len(choice.trail) <= 7
    assert choice.trail[-1] == (choice.weight, choice.ratio)
    afresh = solve_tv(operator, fidelity, choice.weight, tolerance=1e-5)
    assert float(fidelity.discrepancy(operator(afresh.value))) == pytest.approx(1, abs=0.03)
    twice = solve_tv(operator, fidelity, 2 * choice.weight, tolerance=1e-5)
    assert float(fidelity.discrepancy(operator(twice.value))) > 1.03


def test_weight_by_discrepancy_for_counts():
    operator, _, truth = scan(n=24, views=16, pixel_size=0.1)
    eta = 0.02 * operator(truth)
    counts = torch.as_tensor(np.random.default_rng(0).poisson(1e4 * torch.exp(-eta).numpy()))
    fidelity = PoissonFidelity(-torch.log(counts.double() / 1e4), 1e4)
    choice = tv_weight_by_discrepancy(operator, fidelity)
    assert abs(choice.ratio - 1) <= 0.02
    # The first guess does not matter for where the search ends.
    other = tv_weight_by_discrepancy(operator, fidelity, first_weight=30 * choice.weight)
    assert other.weight == pytest.approx(choice.weight, rel=0.25)


def test_the_least_discrepancy_is_not_looked_for_below_what_is_enough():
    operator, y, _ = scan()
    fidelity = GaussianFidelity(y, STD)
    least = attainable_discrepancy(operator, fidelity)
    early = attainable_discrepancy(operator, fidelity, enough=0.8)
    assert least < early <= 0.8
    assert attainable_discrepancy(operator, fidelity, enough=least / 2) == least


def test_weight_by_discrepancy_says_why_it_cannot_be_reached():
    operator, y, _ = scan()
    with pytest.raises(ConfigurationError, match="larger than all structure"):
        tv_weight_by_discrepancy(operator, GaussianFidelity(y, 100.0))
    contradicting = y + 5 * torch.as_tensor(np.random.default_rng(0).standard_normal(y.shape))
    with pytest.raises(ConfigurationError, match="contradict"):
        tv_weight_by_discrepancy(
            operator, GaussianFidelity(contradicting, 0.01), tolerance=1e-2, max_iterations=300
        )
    with pytest.raises(ShapeError, match="each of them"):
        batched = GaussianFidelity(torch.stack([y, y]), STD, range_shape=operator.range_shape)
        tv_weight_by_discrepancy(operator, batched)
