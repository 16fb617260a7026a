"""Log-determinants by stochastic Lanczos quadrature against dense ones, and their honesty."""

import math

import pytest
import torch

from dipct.errors import ConfigurationError, DataError, DtypeError, ShapeError
from dipct.linalg import (
    LowRankPlusDiagonal,
    Preconditioner,
    Tridiagonal,
    log_determinant,
    low_rank_plus_diagonal,
    pivoted_cholesky,
)

NOISE = 1e-2
both_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64], ids=["float32", "float64"]
)


def gaussian(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def matrix_with(values, dtype=torch.float64):
    """A symmetric matrix with given eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    vectors = torch.linalg.qr(gaussian(len(values), len(values), seed=1)).Q
    matrix = (vectors * values) @ vectors.T
    return ((matrix + matrix.T) / 2).to(dtype)


def covariance(n=40, dtype=torch.float64):
    """Fast decay above a floor, as of a covariance plus noise."""
    return matrix_with(10 * 0.6 ** torch.arange(n, dtype=torch.float64) + NOISE, dtype)


def exact(matrix):
    return float(torch.linalg.slogdet(matrix.double()).logabsdet)


def estimate(matrix, preconditioner=None, **settings):
    return log_determinant(
        lambda block: block @ matrix.T,
        len(matrix),
        preconditioner=preconditioner,
        dtype=matrix.dtype,
        device="cpu",
        **settings,
    )


def without_noise(matrix):
    return matrix - NOISE * torch.eye(len(matrix), dtype=matrix.dtype)


def nystrom(matrix, rank=6):
    part = without_noise(matrix)
    return low_rank_plus_diagonal(
        lambda block: block @ part, len(matrix), rank, NOISE, dtype=matrix.dtype, device="cpu"
    )


def cholesky(matrix, rank=6):
    part = without_noise(matrix)
    return pivoted_cholesky(lambda i: part[i], part.diagonal(), rank, NOISE)


PRECONDITIONERS = {"none": lambda matrix: None, "Nyström": nystrom, "Cholesky": cholesky}
every_preconditioner = pytest.mark.parametrize(
    "build", PRECONDITIONERS.values(), ids=PRECONDITIONERS.keys()
)


def scores(matrix, preconditioner=None, seeds=6, **settings):
    """How many standard errors estimates with different seeds are from the truth."""
    results = [estimate(matrix, preconditioner, seed=seed, **settings) for seed in range(seeds)]
    assert all(result.converged for result in results)
    return torch.tensor([(r.value - exact(matrix)) / r.standard_error for r in results])


def agrees(scores):
    """Whether scores can be those of estimates without bias: each, and all together."""
    return bool(scores.abs().max() < 3.5 and scores.mean().abs() * len(scores) ** 0.5 < 3.5)


@both_dtypes
@every_preconditioner
def test_estimates_are_within_their_standard_errors(build, dtype):
    matrix = covariance(dtype=dtype)
    assert agrees(scores(matrix, build(matrix), probes=30))


class Identity(Preconditioner):
    """No preconditioner, with probes of one's own."""

    def __init__(self, probes):
        self.probes = probes

    def solve(self, block):
        return block

    def apply(self, block):
        return block

    def log_det(self):
        return 0.0

    def sample(self, number, seed):
        return self.probes[:number]


class WrongProbes(LowRankPlusDiagonal):
    """Probes from N(0, I): their mean of ``v^T P^-1 v`` is not n."""

    def sample(self, number, seed):
        return gaussian(number, len(self.factor), seed=seed)


class WrongDeterminant(LowRankPlusDiagonal):
    def log_det(self):
        return super().log_det() + 2.0


class WrongScale(LowRankPlusDiagonal):
    def solve(self, block):
        return 1.1 * super().solve(block)


@pytest.mark.parametrize("wrong", [WrongProbes, WrongDeterminant, WrongScale])
def test_wrong_preconditioners_are_told_by_the_standard_error(wrong):
    matrix = covariance()
    right = nystrom(matrix, 8)
    assert agrees(scores(matrix, right, probes=100))
    assert not agrees(scores(matrix, wrong(right.factor, right.diagonal), probes=100))


def test_biased_probes_are_told_by_the_standard_error():
    """Entries uniform on [0, 1] have a mean: their quadratic forms hold the sum of the matrix."""
    matrix = covariance()
    generator = torch.Generator().manual_seed(3)
    biased = torch.rand(600, 40, generator=generator, dtype=torch.float64)
    groups = [Identity(probes) for probes in biased.reshape(6, 100, 40)]
    results = [estimate(matrix, group, probes=100) for group in groups]
    assert not agrees(torch.tensor([(r.value - exact(matrix)) / r.standard_error for r in results]))


@both_dtypes
def test_samples_are_the_dense_quadratic_forms(dtype):
    matrix = covariance(dtype=dtype)
    for preconditioner in (nystrom(matrix), Identity(gaussian(5, 40, dtype=dtype))):
        result = estimate(matrix, preconditioner, probes=5, seed=3, tolerance=1e-6)
        dense = preconditioner.apply(torch.eye(40, dtype=dtype)).double()
        half = torch.linalg.cholesky(dense)
        inner = torch.linalg.solve_triangular(half, matrix.double(), upper=False)
        inner = torch.linalg.solve_triangular(half, inner.T, upper=False)
        values, vectors = torch.linalg.eigh(inner)
        probes = preconditioner.sample(5, 3).double()
        directions = torch.linalg.solve_triangular(half, probes.T, upper=False)
        directions = directions / directions.norm(dim=0)
        forms = ((vectors.T @ directions) ** 2 * values.log()[:, None]).sum(dim=0)
        expected = exact(dense) + 40 * forms
        torch.testing.assert_close(result.samples, expected, rtol=1e-4, atol=0)
        assert result.value == pytest.approx(float(result.samples.mean()))
        assert result.standard_error == pytest.approx(float(result.samples.std()) / 5**0.5)


def test_mean_weight_varies_less_than_that_of_each_probe():
    matrix = covariance()
    preconditioner = LowRankPlusDiagonal(gaussian(40, 2), 0.3)
    result = estimate(matrix, preconditioner, probes=400)
    probes = preconditioner.sample(400, 0)
    weights = (probes * preconditioner.solve(probes)).sum(dim=1) / 40
    forms = result.samples - preconditioner.log_det()
    assert float(weights.mean()) == pytest.approx(1, abs=0.05)
    assert (weights * forms).std() > 1.5 * forms.std()


def test_standard_errors_are_honest():
    """Of intervals of Student's distribution with 7 degrees of freedom 95 of 100 hold the truth."""
    matrix = matrix_with(torch.logspace(0, -2, 12))
    preconditioner = LowRankPlusDiagonal(torch.zeros(12, 0).double(), 0.2)
    for other in (None, preconditioner):
        covered = [
            abs(result.value - exact(matrix)) < 2.365 * result.standard_error
            for result in (estimate(matrix, other, probes=8, seed=seed) for seed in range(50))
        ]
        assert 43 <= sum(covered) < 50
    many = estimate(matrix, preconditioner, probes=1600)
    groups = many.samples.reshape(200, 8)
    intervals = 2.365 * groups.std(dim=1) / 8**0.5
    covered = ((groups.mean(dim=1) - exact(matrix)).abs() < intervals).double().mean()
    assert 0.9 < covered < 0.99
    # Half as long they are not.
    shorter = ((groups.mean(dim=1) - exact(matrix)).abs() < intervals / 2).double().mean()
    assert shorter < 0.85


def test_more_probes_err_less():
    errors = [estimate(covariance(), probes=probes).standard_error for probes in (50, 200)]
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.2)


def test_preconditioner_saves_steps_and_spread():
    matrix = covariance()
    plain, better = estimate(matrix), estimate(matrix, nystrom(matrix, 12))
    assert 2 * better.iterations.max() <= plain.iterations.min()
    assert better.standard_error < plain.standard_error / 5
    assert better.value == pytest.approx(exact(matrix), rel=1e-2)


@both_dtypes
def test_what_all_probes_agree_on_is_known_exactly(dtype):
    """A multiple of the identity, and of the preconditioner."""
    factor = gaussian(20, 4, dtype=dtype)
    preconditioner = LowRankPlusDiagonal(factor, 0.5)
    whole = preconditioner.apply(torch.eye(20, dtype=dtype))
    for matrix, other in ((torch.eye(20, dtype=dtype), None), (whole, preconditioner)):
        result = estimate(3 * matrix, other)
        assert result.converged
        assert result.value == pytest.approx(exact(3 * matrix), rel=1e-5)
        assert result.standard_error < 1e-4
        assert result.iterations.max() <= 3


@pytest.mark.parametrize("n", [1, 2, 3])
def test_small_maps_need_as_many_steps_as_they_have_eigenvalues(n):
    matrix = matrix_with(torch.arange(1, n + 1))
    result = estimate(matrix, probes=500, tolerance=1e-15)
    assert result.converged
    assert result.iterations.max() <= n
    assert result.value == pytest.approx(math.log(math.factorial(n)), abs=0.1)


def test_samples_fall_with_every_step():
    matrix = covariance()
    samples = torch.stack(
        [estimate(matrix, probes=4, max_iterations=m).samples for m in range(1, 11)]
    )
    assert (samples.diff(dim=0) < 0).all()


def test_too_few_steps_are_reported():
    matrix = covariance()
    result = estimate(matrix, max_iterations=4)
    assert not result.converged
    assert result.passes == 4
    assert result.change > result.tolerance
    assert "Allow more iterations" in result.advice
    assert result.value > exact(matrix) + 3 * result.standard_error
    assert "inf" in estimate(matrix, max_iterations=1).advice
    assert estimate(matrix).advice == ""


def test_what_is_missing_is_of_the_size_of_the_tolerance():
    matrix = matrix_with(torch.logspace(0, -4, 100))
    fine = estimate(matrix, probes=6, tolerance=1e-12)
    missing = []
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5):
        coarse = estimate(matrix, probes=6, tolerance=tolerance)
        assert coarse.converged
        assert coarse.change <= tolerance
        missing.append(float(((coarse.samples - fine.samples) / fine.samples).abs().max()))
        assert missing[-1] < 2 * tolerance
    assert missing[0] > 1e-3


def test_settled_probes_take_no_further_products():
    matrix = torch.diag(torch.logspace(0, -2, 40, dtype=torch.float64))
    axes = torch.eye(40, dtype=torch.float64)
    probes = torch.stack([axes[0], gaussian(40), axes[3] + axes[5]])
    seen = []

    def apply(block):
        seen.append(len(block))
        return block @ matrix

    result = log_determinant(
        apply, 40, probes=3, preconditioner=Identity(probes), dtype=torch.float64, device="cpu"
    )
    assert result.iterations[[0, 2]].tolist() == [1, 2]
    assert seen == [3, 2] + [1] * (int(result.iterations[1]) - 2)
    assert (result.passes, result.products) == (len(seen), sum(seen))
    assert result.products == result.iterations.sum()


@both_dtypes
@pytest.mark.parametrize("lowest", [-0.1, 0.0])
def test_map_that_is_not_positive_definite_is_reported(lowest, dtype):
    values = torch.linspace(0.2, 1, 30)
    values[4] = lowest
    matrix = matrix_with(values, dtype)
    for preconditioner in (None, LowRankPlusDiagonal(torch.zeros(30, 0, dtype=dtype), 0.5)):
        result = estimate(matrix, preconditioner, tolerance=1e-12)
        assert not result.converged
        assert result.indefinite == "map"
        assert math.isnan(result.value)
        assert math.isnan(result.standard_error)
        assert 2 * lowest - 1e-4 < result.lowest < 1e-6
        assert "The map is not positive definite" in result.advice


def test_eigenvalue_below_rounding_is_not_taken_for_known():
    values = torch.linspace(0.2, 1, 30, dtype=torch.float64)
    values[4] = 1e-17
    result = estimate(torch.diag(values), probes=2, tolerance=1e-12)
    assert result.indefinite == "map"
    assert "to the precision of the type" in result.advice


def test_preconditioner_that_is_not_positive_definite_is_reported():
    class Negative(Identity):
        def solve(self, block):
            return torch.cat([block[:, :20], -block[:, 20:]], dim=1)

    for probes in (gaussian(8, 40), gaussian(8, 40) * (torch.arange(40) < 20)):
        result = estimate(covariance(), Negative(probes), probes=8)
        assert not result.converged
        assert result.indefinite == "preconditioner"
        assert "preconditioner is not positive definite" in result.advice


def test_map_that_is_not_symmetric_is_reported():
    matrix = covariance()
    assert estimate(matrix).asymmetry < 1e-14
    assert estimate(matrix, nystrom(matrix)).asymmetry < 1e-12
    for preconditioner in (None, nystrom(matrix)):
        result = estimate(matrix + 1e-3 * gaussian(40, 40), preconditioner)
        assert not result.converged
        assert result.asymmetry > 1e-4
        assert "not symmetric" in result.advice or result.indefinite


@both_dtypes
@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_scale_of_the_map_only_adds(factor, dtype):
    matrix = covariance(dtype=dtype)
    one = estimate(matrix, probes=4, max_iterations=30)
    other = estimate(matrix * factor, probes=4, tolerance=1e-5, max_iterations=30)
    shift = 40 * math.log(factor)
    torch.testing.assert_close(other.samples - shift, one.samples, rtol=1e-2, atol=0)


def test_map_that_returns_its_own_vectors():
    result = log_determinant(lambda block: block, 20, dtype=torch.float64, device="cpu")
    assert result.converged
    assert result.value == pytest.approx(0, abs=1e-12)
    preconditioner = LowRankPlusDiagonal(gaussian(20, 4), gaussian(20, seed=2).abs() + 0.5)
    copied = estimate(torch.eye(20, dtype=torch.float64), preconditioner)
    returned = log_determinant(
        lambda block: block,
        20,
        preconditioner=preconditioner,
        dtype=torch.float64,
        device="cpu",
    )
    torch.testing.assert_close(returned.samples, copied.samples)


def test_repeatable():
    matrix = covariance()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = (estimate(matrix, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.samples, same.samples)
    assert not torch.equal(one.samples, other.samples)


def test_gauss_quadrature_of_a_known_matrix():
    """Of the Jacobi matrix of the Legendre polynomials: Golub & Welsch."""
    order = torch.arange(1, 5, dtype=torch.float64)
    matrix = Tridiagonal(torch.zeros(5).double(), order / (4 * order**2 - 1).sqrt())
    nodes, weights = matrix.nodes_and_weights()
    for power in range(11):
        integral = (1 + (-1) ** power) / 2 / (power + 1)
        same = float((weights * nodes**power).sum()) == pytest.approx(integral, abs=1e-12)
        assert same == (power < 10)


@pytest.mark.parametrize(
    "setting",
    [
        {"probes": 1},
        {"max_iterations": 0},
        {"tolerance": 0.0},
        {"tolerance": math.nan},
    ],
    ids=str,
)
def test_impossible_settings(setting):
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        estimate(covariance(), **setting)


def test_no_vectors():
    with pytest.raises(ConfigurationError, match="n must be"):
        log_determinant(lambda block: block, 0, dtype=torch.float64, device="cpu")
    with pytest.raises(DtypeError, match="float32 or float64"):
        estimate(torch.eye(20).half())


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda block: block[0], ShapeError),
        (lambda block: block[:, 1:], ShapeError),
        (lambda block: block.float(), DtypeError),
        (lambda block: block * math.nan, DataError),
    ],
)
def test_wrong_products(wrong, error):
    class WrongSolve(Identity):
        def solve(self, block):
            return wrong(block)

    class WrongSample(Identity):
        def sample(self, number, seed):
            return wrong(self.probes)

    probes = gaussian(4, 40)
    with pytest.raises(error, match="result of apply "):
        log_determinant(wrong, 40, probes=4, dtype=torch.float64, device="cpu")
    with pytest.raises(error, match=r"preconditioner\.solve"):
        estimate(covariance(), WrongSolve(probes), probes=4)
    with pytest.raises(error, match=r"preconditioner\.sample"):
        estimate(covariance(), WrongSample(probes), probes=4)


def test_a_preconditioner_and_probes_of_one_seed_bias_nothing():
    """Far more eigenvalues above the diagonal than the rank: common random numbers would show."""
    n, scaled = 300, []
    basis = torch.linalg.qr(
        torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ).Q
    values = 1000 * torch.arange(1, n + 1, dtype=torch.float64) ** -0.5
    signal = (basis * values) @ basis.T
    exact = float((values + 1).log().sum())
    for seed in range(8):
        near = low_rank_plus_diagonal(
            lambda block: block @ signal, n, 30, 1.0, seed=seed, dtype=torch.float64, device="cpu"
        )
        found = log_determinant(
            lambda block: block @ signal + block,
            n,
            probes=20,
            preconditioner=near,
            max_iterations=150,
            seed=seed,
            dtype=torch.float64,
            device="cpu",
        )
        scaled.append((found.value - exact) / found.standard_error)
    assert abs(sum(scaled) / len(scaled)) < 3.5 / len(scaled) ** 0.5
