"""Conjugate gradients against dense solutions, and what they say when they cannot solve."""

import math

import pytest
import torch

from dipct.errors import ConfigurationError, DataError, DtypeError, ShapeError
from dipct.linalg import (
    LowRankPlusDiagonal,
    Outcome,
    Preconditioner,
    conjugate_gradients,
    pivoted_cholesky,
)

N = 40
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13}
both_dtypes = pytest.mark.parametrize("dtype", list(ROUNDING), ids=["float32", "float64"])


def gaussian(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def matrix_with(values, dtype=torch.float64):
    """A symmetric matrix with given eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    vectors = torch.linalg.qr(gaussian(len(values), len(values), seed=1)).Q
    matrix = (vectors * values) @ vectors.T
    return ((matrix + matrix.T) / 2).to(dtype)


def spread(condition, n=N, dtype=torch.float64):
    """Eigenvalues evenly spread in the logarithm."""
    return matrix_with(torch.logspace(0, -math.log10(condition), n), dtype)


def few_large(noise, n=N, dtype=torch.float64):
    """Fast decay above a floor, as of a covariance plus noise."""
    return matrix_with(torch.logspace(0, -12, n, dtype=torch.float64) + noise, dtype)


def product(matrix):
    return lambda block: block @ matrix.to(block.dtype).T


def near(matrix, noise, rank=8):
    """A preconditioner of a matrix with noise on its diagonal."""
    without = matrix - noise * torch.eye(len(matrix), dtype=matrix.dtype)
    return pivoted_cholesky(lambda i: without[i], without.diagonal(), rank, noise)


def true_residuals(matrix, right, value):
    matrix, right, value = matrix.double(), right.double(), value.double()
    return (right - value @ matrix.T).norm(dim=1) / right.norm(dim=1)


def textbook(matrix, right, value, steps):
    """The plain recursion, which never looks at the true residual again."""
    residual = right - value @ matrix
    direction, energy = residual, (residual**2).sum(dim=1, keepdim=True)
    for _ in range(steps):
        image = direction @ matrix
        length = energy / (direction * image).sum(dim=1, keepdim=True)
        value, residual = value + length * direction, residual - length * image
        before, energy = energy, (residual**2).sum(dim=1, keepdim=True)
        direction = residual + energy / before * direction
    return value, residual


@both_dtypes
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("reorthogonalise", [False, True])
def test_solution_is_the_dense_one(reorthogonalise, preconditioned, dtype):
    matrix, right = few_large(1e-2, dtype=dtype), gaussian(5, N, dtype=dtype)
    tolerance = 10 * ROUNDING[dtype]
    solution = conjugate_gradients(
        product(matrix),
        right,
        tolerance=tolerance,
        preconditioner=near(matrix, 1e-2) if preconditioned else None,
        reorthogonalise=reorthogonalise,
    )
    exact = torch.linalg.solve(matrix.double(), right.double().T).T
    error = (solution.value.double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert solution.converged, solution.advice
    assert solution.advice == ""
    assert set(solution.outcomes) == {Outcome.CONVERGED}
    assert solution.value.dtype == solution.residuals.dtype == dtype
    # The error is the residual times at most the condition number, 101.
    assert error.max() < 101 * (tolerance + ROUNDING[dtype])
    residuals = true_residuals(matrix, right, solution.value)
    assert residuals.max() <= tolerance + ROUNDING[dtype]
    assert (residuals - solution.residuals).abs().max() < ROUNDING[dtype]
    # The law tells a wrong solution.
    assert (right.double() @ matrix.double() - exact).norm() > exact.norm() / 2


def test_as_many_steps_as_eigenvalues():
    matrix = matrix_with([1.0] * 10 + [2.0] * 20 + [5.0] * 10)
    solution = conjugate_gradients(product(matrix), gaussian(3, N), tolerance=1e-10)
    assert solution.iterations.tolist() == [3, 3, 3]


def test_each_right_hand_side_has_its_own_steps():
    matrix = spread(100)
    eigenvector = torch.linalg.eigh(matrix).eigenvectors[:, 3]
    right = torch.stack(
        [1e6 * gaussian(N), torch.zeros(N).double(), eigenvector, gaussian(N, seed=2)]
    )
    seen = []

    def apply(block):
        seen.append(len(block))
        return block @ matrix

    together = conjugate_gradients(apply, right, tolerance=1e-6)
    assert together.converged
    assert together.iterations[1:3].tolist() == [0, 1]
    assert (together.value[1] == 0).all()
    assert together.residuals[1] == 0
    assert (len(seen), sum(seen)) == (together.passes, together.products)
    # Those that have converged take no further products: one each step, one to confirm.
    assert together.products == together.iterations.sum() + 3
    assert seen[:2] == [3, 1]
    for row in range(4):
        alone = conjugate_gradients(product(matrix), right[row : row + 1], tolerance=1e-6)
        assert alone.iterations[0] == together.iterations[row]
        torch.testing.assert_close(alone.value[0], together.value[row], rtol=1e-4, atol=0)


def test_preconditioner_saves_steps():
    matrix, right = few_large(1e-3, 100), gaussian(4, 100)
    plain = conjugate_gradients(product(matrix), right)
    better = conjugate_gradients(product(matrix), right, preconditioner=near(matrix, 1e-3, 20))
    assert plain.converged
    assert better.converged
    assert 3 * better.iterations.max() < plain.iterations.min()


class Wrong(Preconditioner):
    """A preconditioner whose inverse is a given function."""

    def __init__(self, solve):
        self._solve = solve

    def solve(self, block):
        return self._solve(block)

    def apply(self, block):
        raise NotImplementedError

    def log_det(self):
        raise NotImplementedError

    def sample(self, number, seed):
        raise NotImplementedError


def test_any_positive_definite_preconditioner_leads_to_the_solution():
    matrix, right = spread(50), gaussian(2, N)
    other = spread(9).roll((3, 3), (0, 1))
    solution = conjugate_gradients(
        product(matrix), right, preconditioner=Wrong(product(other)), tolerance=1e-9
    )
    assert solution.converged
    assert true_residuals(matrix, right, solution.value).max() <= 1.1e-9


def test_negative_preconditioner_is_reported():
    matrix = spread(50)
    solution = conjugate_gradients(
        product(matrix), gaussian(2, N), preconditioner=Wrong(lambda block: -block)
    )
    assert set(solution.outcomes) == {Outcome.PRECONDITIONER}
    assert "preconditioner is not positive definite" in solution.advice


def test_the_true_residual_decides():
    """The recursive residual falls below any tolerance; the true one stops at rounding."""
    matrix, right = spread(1e4, dtype=torch.float32), gaussian(3, N, dtype=torch.float32)
    _, recursive = textbook(matrix, right, torch.zeros_like(right), 600)
    assert (recursive.norm(dim=1) / right.norm(dim=1)).max() < 1e-7
    solution = conjugate_gradients(product(matrix), right, tolerance=1e-7)
    assert set(solution.outcomes) == {Outcome.ROUNDING}
    residuals = true_residuals(matrix, right, solution.value)
    assert residuals.min() > 1e-5
    torch.testing.assert_close(solution.residuals.double(), residuals, rtol=0.5, atol=0)
    assert "More iterations cannot help" in solution.advice


@pytest.mark.parametrize("reorthogonalise", [False, True])
def test_residuals_that_drift_are_replaced(reorthogonalise):
    """A first x far away leaves its rounding in the plain recursion for ever."""
    matrix, right = spread(30, dtype=torch.float32), gaussian(3, N, dtype=torch.float32)
    far = 1e4 * gaussian(3, N, seed=5, dtype=torch.float32)
    plain, recursive = textbook(matrix, right, far, 60)
    assert recursive.norm() < 1e-6 * right.norm()
    assert true_residuals(matrix, right, plain).max() > 1e-4
    settings = {"tolerance": 1e-5, "reorthogonalise": reorthogonalise}
    solution = conjugate_gradients(product(matrix), right, initial=far, **settings)
    assert solution.converged
    assert true_residuals(matrix, right, solution.value).max() < 2e-5
    # Replaced in time they lose little of the pace; parted, they would start anew.
    double = conjugate_gradients(
        product(matrix.double()), right.double(), initial=far.double(), **settings
    )
    assert solution.iterations.max() <= 1.4 * double.iterations.max()


def test_first_x():
    matrix, right = spread(100), gaussian(3, N)
    exact = torch.linalg.solve(matrix, right.T).T
    solution = conjugate_gradients(product(matrix), right, initial=exact)
    assert solution.iterations.tolist() == [0, 0, 0]
    assert (solution.passes, solution.products) == (1, 3)
    torch.testing.assert_close(solution.value, exact)
    start = exact + 1e-3 * gaussian(3, N, seed=4)
    before = start.clone()
    near_by = conjugate_gradients(product(matrix), right, initial=start, tolerance=1e-4)
    assert near_by.converged
    assert torch.equal(start, before)
    # Of a right-hand side of zero the solution is zero, wherever it starts.
    none = conjugate_gradients(product(matrix), 0 * right, initial=exact)
    assert none.converged
    assert (none.value == 0).all()


def test_refining_what_reduced_precision_left():
    matrix, right = spread(30, dtype=torch.float32), gaussian(3, N, dtype=torch.float32)
    coarse = conjugate_gradients(
        product(matrix), right, tolerance=2e-2, product_dtype=torch.bfloat16
    )
    assert coarse.converged
    fine = conjugate_gradients(product(matrix), right, initial=coarse.value, tolerance=1e-5)
    whole = conjugate_gradients(product(matrix), right, tolerance=1e-5)
    assert fine.converged
    assert fine.iterations.max() < whole.iterations.max()


@pytest.mark.parametrize("lowest", [-0.5, -1e-3])
@both_dtypes
def test_indefinite_map_is_reported(lowest, dtype):
    values = torch.linspace(0.5, 1, N)
    values[7] = lowest
    solution = conjugate_gradients(product(matrix_with(values, dtype)), gaussian(3, N, dtype=dtype))
    assert not solution.converged
    assert set(solution.outcomes) == {Outcome.INDEFINITE}
    assert lowest * (1 + 1e-4) <= solution.curvature < 0
    assert "not positive definite" in solution.advice
    assert f"{solution.curvature:.3g}" in solution.advice
    definite = conjugate_gradients(
        product(matrix_with(values.abs(), dtype)), gaussian(3, N, dtype=dtype), tolerance=1e-2
    )
    assert definite.converged
    assert definite.curvature >= abs(lowest) * (1 - 1e-3)


@both_dtypes
@pytest.mark.parametrize("steps", [3, 200])
def test_singular_map_is_not_called_indefinite(steps, dtype):
    values = torch.linspace(0.1, 1, N)
    values[:5] = 0
    matrix = matrix_with(values, dtype)
    solution = conjugate_gradients(
        product(matrix), gaussian(3, N, dtype=dtype), max_iterations=steps
    )
    assert not solution.converged
    assert Outcome.INDEFINITE not in solution.outcomes
    assert (solution.residuals > 0.1).all()
    assert torch.isfinite(solution.value).all()
    within = conjugate_gradients(
        product(matrix), gaussian(3, N, dtype=dtype) @ matrix, tolerance=1e-4
    )
    assert within.converged


def test_zero_map():
    solution = conjugate_gradients(lambda block: 0 * block, gaussian(2, N))
    assert set(solution.outcomes) == {Outcome.ROUNDING}
    assert "singular" in solution.advice
    assert solution.residuals.tolist() == pytest.approx([1, 1])


UNSYMMETRIC = {
    "perturbed": lambda matrix: matrix + 0.05 * gaussian(N, N, seed=8) / N**0.5,
    "rows moved by one": lambda matrix: matrix.roll(1, 0) + 2 * torch.eye(N).double(),
    "weighted": lambda matrix: torch.linspace(0.5, 1.5, N).double()[:, None] * matrix,
    "skew part": lambda matrix: matrix + 0.3 * (gaussian(N, N) - gaussian(N, N).T),
}


@pytest.mark.parametrize("wrong", UNSYMMETRIC.values(), ids=UNSYMMETRIC.keys())
def test_map_that_is_not_symmetric_is_reported(wrong):
    matrix, right = spread(20), gaussian(3, N)
    assert conjugate_gradients(product(matrix), right, tolerance=1e-9).asymmetry < 1e-15
    solution = conjugate_gradients(
        product(wrong(matrix)), right, tolerance=1e-9, max_iterations=200
    )
    assert solution.asymmetry > 1e-4
    residuals = true_residuals(wrong(matrix), right, solution.value)
    torch.testing.assert_close(solution.residuals, residuals, rtol=1e-6, atol=1e-14)
    blamed = Outcome.INDEFINITE in solution.outcomes or "not symmetric" in solution.advice
    assert solution.converged != blamed


def test_divergence_returns_the_last_x_that_was_checked():
    skew = gaussian(N, N, dtype=torch.float32)
    skew = skew - skew.T + 1e-30 * torch.eye(N)
    right = torch.eye(N)[:2]
    solution = conjugate_gradients(product(skew), right)
    assert set(solution.outcomes) == {Outcome.DIVERGED}
    assert solution.residuals.tolist() == [1, 1]
    assert "The residuals grew" in solution.advice


def test_too_few_steps_are_not_blamed_on_the_map():
    matrix, right = spread(1e3), gaussian(3, N)
    solution = conjugate_gradients(product(matrix), right, max_iterations=5)
    assert set(solution.outcomes) == {Outcome.UNFINISHED}
    assert solution.iterations.tolist() == [5, 5, 5]
    torch.testing.assert_close(solution.residuals, true_residuals(matrix, right, solution.value))
    assert "Allow more iterations" in solution.advice
    assert "3 of 3" in solution.advice


def generalised_values(matrix, preconditioner):
    """Eigenvalues of P^-1/2 K P^-1/2, ascending."""
    dense = preconditioner.apply(torch.eye(len(matrix), dtype=matrix.dtype))
    factor = torch.linalg.cholesky(dense)
    half = torch.linalg.solve_triangular(factor, matrix, upper=False)
    return torch.linalg.eigvalsh(torch.linalg.solve_triangular(factor, half.T, upper=False))


def test_lanczos_matrix_has_the_eigenvalues_of_the_preconditioned_map():
    n = 12
    matrix, right = spread(50, n), gaussian(2, n)
    preconditioner = LowRankPlusDiagonal(gaussian(n, 2, seed=3), 0.3)
    settings = {"tolerance": 1e-13, "reorthogonalise": True, "keep_lanczos": True}
    plain = conjugate_gradients(product(matrix), right, **settings)
    other = conjugate_gradients(product(matrix), right, preconditioner=preconditioner, **settings)
    for solution, exact in (
        (plain, torch.linalg.eigvalsh(matrix)),
        (other, generalised_values(matrix, preconditioner)),
    ):
        for tridiagonal in solution.lanczos:
            assert len(tridiagonal.diagonal) == len(tridiagonal.off_diagonal) + 1 == n
            nodes, weights = tridiagonal.nodes_and_weights()
            torch.testing.assert_close(nodes, exact, rtol=1e-8, atol=1e-10)
            assert float(weights.sum()) == pytest.approx(1)
    assert not torch.allclose(
        other.lanczos[0].nodes_and_weights()[0], torch.linalg.eigvalsh(matrix), rtol=0.1
    )
    assert conjugate_gradients(product(matrix), right).lanczos is None


def test_lanczos_matrix_of_few_steps_has_the_moments_of_the_map():
    """With v = b / |b|, ``v^T K^j v`` is ``e_1^T T^j e_1`` up to j = 2 m - 1."""
    matrix, right = spread(50), gaussian(1, N)
    solution = conjugate_gradients(product(matrix), right, max_iterations=4, keep_lanczos=True)
    nodes, weights = solution.lanczos[0].nodes_and_weights()
    vector = right[0] / right.norm()
    for power in range(9):
        moment = float(vector @ torch.linalg.matrix_power(matrix, power) @ vector)
        same = float((weights * nodes**power).sum()) == pytest.approx(moment, rel=1e-10)
        assert same == (power < 8)


def test_reorthogonalising_restores_the_convergence_of_half_precision():
    matrix, right = few_large(1e-3, 200, torch.float32), gaussian(4, 200, dtype=torch.float32)
    exact = conjugate_gradients(
        product(matrix.double()), right.double(), tolerance=0.1, reorthogonalise=True
    )
    half = {"tolerance": 0.1, "product_dtype": torch.float16}
    seen = set()

    def apply(block):
        seen.add(block.dtype)
        return block @ matrix.to(block.dtype)

    kept = conjugate_gradients(apply, right, reorthogonalise=True, **half)
    plain = conjugate_gradients(apply, right, **half)
    assert seen == {torch.float16}
    assert kept.converged
    assert kept.value.dtype == torch.float32
    assert kept.iterations.max() <= exact.iterations.max() + 1
    assert plain.iterations.min() > 1.2 * exact.iterations.max()
    assert true_residuals(matrix, right, kept.value).max() < 0.12


def test_reduced_precision_says_where_it_ends_and_returns_nothing_worse_than_it_knows():
    matrix, right = spread(1e4, dtype=torch.float32), gaussian(4, N, dtype=torch.float32)
    solution = conjugate_gradients(
        product(matrix), right, tolerance=1e-4, product_dtype=torch.bfloat16
    )
    assert not solution.converged
    assert solution.rounding == torch.finfo(torch.bfloat16).eps
    assert true_residuals(matrix, right, solution.value).max() <= 1.1
    assert "rounding of 7.8e-03" in solution.advice


@both_dtypes
@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_scale_of_the_map_changes_nothing(factor, dtype):
    matrix, right = few_large(1e-2, dtype=dtype), gaussian(3, N, dtype=dtype)
    for preconditioned in (False, True):
        one, other = (
            conjugate_gradients(
                product(scale * matrix),
                right,
                tolerance=1e-4,
                preconditioner=near(scale * matrix, scale * 1e-2) if preconditioned else None,
            )
            for scale in (1, factor)
        )
        assert one.converged
        assert other.converged
        torch.testing.assert_close(one.value, other.value * factor, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_scale_of_the_right_hand_sides_changes_nothing(factor):
    matrix, right = spread(10, dtype=torch.float32), gaussian(3, N, dtype=torch.float32)
    one = conjugate_gradients(product(matrix), right, tolerance=1e-4)
    other = conjugate_gradients(product(matrix), right * factor, tolerance=1e-4)
    assert other.converged
    assert torch.equal(one.iterations, other.iterations)
    torch.testing.assert_close(one.value, other.value / factor, rtol=1e-2, atol=1e-3)


def test_map_that_returns_its_own_vectors():
    right = gaussian(3, N)
    solution = conjugate_gradients(lambda block: block, right, reorthogonalise=True)
    assert solution.converged
    torch.testing.assert_close(solution.value, right)


def test_report():
    reported = []
    solution = conjugate_gradients(
        product(spread(100)), gaussian(3, N), report=lambda *figures: reported.append(figures)
    )
    assert [step for step, _ in reported] == list(range(1, int(solution.iterations.max()) + 1))
    assert reported[-1][1] <= 1e-6 < reported[-2][1]


def test_gradients_are_left_behind():
    matrix = spread(10).requires_grad_()
    solution = conjugate_gradients(product(matrix), gaussian(2, N).requires_grad_())
    assert not solution.value.requires_grad
    assert not solution.residuals.requires_grad


@pytest.mark.parametrize(
    "setting",
    [
        {"tolerance": 0.0},
        {"tolerance": math.nan},
        {"tolerance": math.inf},
        {"max_iterations": 0},
        {"product_dtype": torch.int32},
    ],
    ids=str,
)
def test_impossible_settings(setting):
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        conjugate_gradients(product(spread(10)), gaussian(1, N), **setting)


@pytest.mark.parametrize(
    ("right", "error"),
    [
        (gaussian(N), ShapeError),
        (gaussian(2, 3, N), ShapeError),
        (gaussian(0, N), ShapeError),
        (gaussian(2, N).half(), DtypeError),
        (gaussian(2, N).numpy(), DtypeError),
        (gaussian(2, N) * math.nan, DataError),
    ],
)
def test_wrong_right_hand_sides(right, error):
    with pytest.raises(error, match="right"):
        conjugate_gradients(lambda block: block, right)


@pytest.mark.parametrize(
    ("initial", "error"),
    [
        (gaussian(3, N), ShapeError),
        (gaussian(2, N).float(), DtypeError),
        (gaussian(2, N) / 0, DataError),
    ],
)
def test_wrong_initial_vectors(initial, error):
    with pytest.raises(error, match="initial"):
        conjugate_gradients(lambda block: block, gaussian(2, N), initial=initial)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda block: block[0], ShapeError),
        (lambda block: block[:, 1:], ShapeError),
        (lambda block: block.float(), DtypeError),
        (lambda block: block.numpy(), DtypeError),
        (lambda block: block * math.nan, DataError),
    ],
)
def test_wrong_products(wrong, error):
    with pytest.raises(error, match="result of apply "):
        conjugate_gradients(wrong, gaussian(2, N))
    with pytest.raises(error, match=r"result of preconditioner\.solve"):
        conjugate_gradients(lambda block: block, gaussian(2, N), preconditioner=Wrong(wrong))
