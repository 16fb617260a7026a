"""Preconditioners against dense matrices; each law also rejects what is wrong on purpose."""

import math

import pytest
import torch

from dipct.errors import ConfigurationError, DataError, DtypeError, ShapeError
from dipct.linalg import LowRankPlusDiagonal, low_rank_plus_diagonal, pivoted_cholesky

N = 14
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-12}
both_dtypes = pytest.mark.parametrize("dtype", list(ROUNDING), ids=["float32", "float64"])


def gaussian(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def positive(n, seed=5, dtype=torch.float64):
    return gaussian(n, seed=seed).abs().add(0.3).to(dtype)


def semidefinite(values, dtype=torch.float64):
    """A symmetric matrix with given eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    vectors = torch.linalg.qr(gaussian(len(values), len(values), seed=1)).Q
    matrix = (vectors * values) @ vectors.T
    return ((matrix + matrix.T) / 2).to(dtype)


def decaying(n=60, dtype=torch.float64, rate=0.7):
    return semidefinite(rate ** torch.arange(n, dtype=torch.float64), dtype)


def dense(preconditioner):
    """The matrix, from what a preconditioner is made of and not from what it does."""
    factor, diagonal = preconditioner.factor.double(), preconditioner.diagonal.double()
    return factor @ factor.T + torch.diag(diagonal)


def nystrom(matrix, rank, diagonal=1.0, **settings):
    return low_rank_plus_diagonal(
        lambda block: block @ matrix.T,
        len(matrix),
        rank,
        diagonal,
        dtype=matrix.dtype,
        device="cpu",
        **settings,
    )


def cholesky(matrix, rank, noise=1.0, **settings):
    return pivoted_cholesky(lambda i: matrix[:, i], matrix.diagonal(), rank, noise, **settings)


def covariance_scores(samples, matrix):
    """How many standard errors the second moments are from a matrix, [n n]: Isserlis."""
    moments = samples.T @ samples / len(samples)
    variance = matrix.diagonal() * matrix.diagonal()[:, None] + matrix**2
    return (moments - matrix) / (variance / len(samples)).sqrt()


def broken_laws(preconditioner, matrix):
    """What a preconditioner gets wrong about the matrix that it should be."""
    dtype = preconditioner.factor.dtype
    block = gaussian(6, len(matrix), seed=9, dtype=dtype)
    laws = {
        "apply": (preconditioner.apply(block), block.double() @ matrix),
        "solve": (preconditioner.solve(block), torch.linalg.solve(matrix, block.double().T).T),
        "log_det": (
            torch.tensor(preconditioner.log_det(), dtype=torch.float64),
            torch.linalg.slogdet(matrix).logabsdet,
        ),
    }
    broken = {
        name
        for name, (value, exact) in laws.items()
        if (value.double() - exact).norm() > 10 * ROUNDING[dtype] * exact.norm().clamp_min(1)
    }
    scores = covariance_scores(preconditioner.sample(20_000, seed=3).double(), matrix)
    # More than five standard errors in one of a hundred moments: once in ten thousand times.
    return broken | ({"sample"} if scores.abs().max() > 5 else set())


class TransposedFactor(LowRankPlusDiagonal):
    def sample(self, number, seed):
        other = LowRankPlusDiagonal(self.factor.mT.contiguous(), self.diagonal)
        return other.sample(number, seed)


class DiagonalNotRooted(LowRankPlusDiagonal):
    def sample(self, number, seed):
        return LowRankPlusDiagonal(self.factor, self.diagonal**2).sample(number, seed)


class WithoutFactor(LowRankPlusDiagonal):
    def sample(self, number, seed):
        return LowRankPlusDiagonal(0 * self.factor, self.diagonal).sample(number, seed)


class HalfDeterminant(LowRankPlusDiagonal):
    def log_det(self):
        return super().log_det() / 2


class WithoutNoiseDeterminant(LowRankPlusDiagonal):
    def log_det(self):
        return super().log_det() - float(self.diagonal.log().sum())


class WoodburySign(LowRankPlusDiagonal):
    def solve(self, block):
        return 2 * block / self.diagonal - super().solve(block)


class WithoutDiagonal(LowRankPlusDiagonal):
    def apply(self, block):
        return super().apply(block) - self.diagonal * block


WRONG = {
    TransposedFactor: "sample",
    DiagonalNotRooted: "sample",
    WithoutFactor: "sample",
    HalfDeterminant: "log_det",
    WithoutNoiseDeterminant: "log_det",
    WoodburySign: "solve",
    WithoutDiagonal: "apply",
}


@both_dtypes
@pytest.mark.parametrize("k", [0, 1, 5, N, N + 4])
def test_laws(k, dtype):
    preconditioner = LowRankPlusDiagonal(gaussian(N, k, dtype=dtype), positive(N, dtype=dtype))
    assert broken_laws(preconditioner, dense(preconditioner)) == set()
    assert preconditioner.advice == ""


@pytest.mark.parametrize("wrong", WRONG, ids=lambda kind: kind.__name__)
def test_laws_tell_what_is_wrong(wrong):
    preconditioner = wrong(gaussian(N, N), positive(N))
    assert broken_laws(preconditioner, dense(preconditioner)) == {WRONG[wrong]}


def test_one_number_for_the_diagonal():
    one = LowRankPlusDiagonal(gaussian(N, 3), 0.25)
    other = LowRankPlusDiagonal(gaussian(N, 3), torch.full((N,), 0.25).double())
    assert torch.equal(one.diagonal, other.diagonal)
    assert one.log_det() == other.log_det()


@both_dtypes
def test_types_are_kept(dtype):
    preconditioner = LowRankPlusDiagonal(gaussian(N, 3, dtype=dtype), 0.25)
    block = gaussian(2, N, dtype=dtype)
    for result in (
        preconditioner.apply(block),
        preconditioner.solve(block),
        preconditioner.sample(2, 0),
    ):
        assert (result.dtype, result.shape) == (dtype, (2, N))
    assert isinstance(preconditioner.log_det(), float)
    assert preconditioner.sample(0, 0).shape == (0, N)


def test_quadratic_form_of_samples_keeps_its_precision():
    """Of ``v^T P^-1 v`` plain Woodbury in single precision leaves few digits here."""
    n = 400
    factor = torch.linalg.qr(gaussian(n, 20)).Q * torch.logspace(0, 2.5, 20)
    single = LowRankPlusDiagonal(factor.float(), positive(n, dtype=torch.float32))
    double = LowRankPlusDiagonal(single.factor.double(), single.diagonal.double())
    samples = single.sample(100, 0)
    exact = (samples.double() * double.solve(samples.double())).sum(dim=1)

    def error(solved):
        return float((((samples * solved).sum(dim=1) - exact) / exact).abs().mean())

    assert error(single.solve(samples)) < 1e-5
    assert error(single._woodbury(samples)) > 10 * error(single.solve(samples))


def test_determinant_of_graded_factor_in_single_precision():
    factor = (gaussian(N, 6) * 10.0 ** torch.arange(-3, 3)).float()
    preconditioner = LowRankPlusDiagonal(factor, positive(N, dtype=torch.float32))
    exact = float(torch.linalg.slogdet(dense(preconditioner)).logabsdet)
    assert preconditioner.log_det() == pytest.approx(exact, rel=1e-10)


def test_samples_are_repeatable():
    preconditioner = LowRankPlusDiagonal(gaussian(N, 3), 0.25)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = preconditioner.sample(4, 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, preconditioner.sample(4, 7))
    assert not torch.equal(one, preconditioner.sample(4, 8))


@both_dtypes
@pytest.mark.parametrize("build", [nystrom, cholesky], ids=["Nyström", "Cholesky"])
def test_matrix_of_low_rank_is_found_whole(build, dtype):
    factor = gaussian(60, 6, dtype=dtype)
    matrix, noise = factor @ factor.T, positive(60, dtype=dtype)
    preconditioner = build(matrix, 10, noise)
    assert preconditioner.advice == ""
    assert preconditioner.factor.shape[1] in (6, 7)
    exact = matrix.double() + torch.diag(noise.double())
    assert (dense(preconditioner) - exact).norm() < ROUNDING[dtype] * exact.norm()
    # It is a low-rank part of rank six: five do not do.
    five = build(matrix, 5, noise)
    assert (dense(five) - exact).norm() > 1e-2 * exact.norm()


@both_dtypes
@pytest.mark.parametrize("rate", [0.7, 0.95])
def test_nystrom_is_nearly_the_best_of_its_rank(rate, dtype):
    matrix, rank = decaying(rate=rate, dtype=dtype), 12
    errors = []
    for seed in range(5):
        preconditioner = nystrom(matrix, rank, seed=seed)
        assert preconditioner.factor.shape == (60, rank)
        part = (preconditioner.factor @ preconditioner.factor.T).double()
        errors.append(float(torch.linalg.matrix_norm(matrix.double() - part, 2)))
        # A Nyström approximation lies below its matrix.
        assert torch.linalg.eigvalsh(matrix.double() - part)[0] > -10 * ROUNDING[dtype]
    best = rate**rank
    assert max(errors) < 1.4 * best + ROUNDING[dtype]
    assert min(errors) > best - ROUNDING[dtype]


def test_nystrom_takes_two_products_with_a_block():
    seen = []

    def apply(block):
        seen.append(len(block))
        return block @ decaying()

    low_rank_plus_diagonal(apply, 60, 12, 1.0, oversampling=4, dtype=torch.float64, device="cpu")
    assert seen == [16, 16]


@both_dtypes
@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_scale_of_the_matrix_changes_nothing(factor, dtype):
    matrix = decaying(dtype=dtype)
    for build in (nystrom, cholesky):
        one, other = build(matrix, 8), build(factor * matrix, 8, factor)
        torch.testing.assert_close(
            dense(other) / factor, dense(one), rtol=0, atol=10 * ROUNDING[dtype]
        )
        assert other.log_det() == pytest.approx(one.log_det() + 60 * math.log(factor), rel=1e-4)


@both_dtypes
def test_zero_matrix(dtype):
    for build in (nystrom, cholesky):
        preconditioner = build(torch.zeros(N, N, dtype=dtype), 4, 0.5)
        assert preconditioner.factor.shape == (N, 0)
        assert preconditioner.advice == ""
        assert preconditioner.log_det() == pytest.approx(N * math.log(0.5))


@pytest.mark.parametrize("rank", [1, 3, 60])
def test_seed_of_nystrom(rank):
    matrix = decaying(rate=0.99)
    one, same, other = (nystrom(matrix, rank, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(one.factor, same.factor)
    assert not torch.equal(one.factor, other.factor)


def test_indefinite_matrix_is_reported_and_survived():
    values = 0.7 ** torch.arange(60, dtype=torch.float64)
    values[2] = -0.4
    preconditioner = nystrom(semidefinite(values), 12)
    assert "not positive semidefinite" in preconditioner.advice
    assert broken_laws(preconditioner, dense(preconditioner)) == set()
    # Nothing is amplified, and what is above the negative eigenvalue is there.
    found = torch.linalg.eigvalsh(preconditioner.factor @ preconditioner.factor.T)
    assert found[-1] == pytest.approx(1, abs=0.2)
    assert found[-2] == pytest.approx(0.7, abs=0.2)
    matrix = torch.eye(20, dtype=torch.float64)
    matrix[3, 7] = matrix[7, 3] = 2
    pivoted = cholesky(matrix, 20)
    assert "not positive semidefinite" in pivoted.advice
    assert broken_laws(pivoted, dense(pivoted)) == set()
    assert pivoted.factor.abs().max() <= 1


def test_map_that_is_not_symmetric_is_reported():
    assert "not symmetric" in nystrom(decaying() + 1e-3 * gaussian(60, 60), 12).advice
    assert nystrom(decaying(), 12).advice == ""


def test_noise_of_reduced_precision_is_left_out():
    matrix = decaying(dtype=torch.float32)
    preconditioner = low_rank_plus_diagonal(
        lambda block: (block.bfloat16() @ matrix.bfloat16()).float(),
        60,
        40,
        0.1,
        dtype=torch.float32,
        device="cpu",
    )
    part = preconditioner.factor @ preconditioner.factor.T
    assert torch.linalg.matrix_norm(matrix - part, 2) < 0.05
    assert preconditioner.factor.shape[1] < 40


@both_dtypes
def test_pivoted_cholesky_is_greedy_and_knows_what_is_left(dtype):
    matrix, asked = decaying(dtype=dtype), []

    def column(i):
        asked.append(i)
        return matrix[:, i]

    preconditioner = pivoted_cholesky(column, matrix.diagonal(), 9, 1.0)
    part = (preconditioner.factor @ preconditioner.factor.T).double()
    left = matrix.double() - part
    assert len(asked) == len(set(asked)) == 9
    assert asked[0] == int(matrix.diagonal().argmax())
    # Chosen columns are exact, and what is left is positive semidefinite.
    assert left[:, asked].abs().max() < ROUNDING[dtype]
    assert torch.linalg.eigvalsh(left)[0] > -ROUNDING[dtype]
    for size in (1, 4, 8):
        factor = preconditioner.factor[:, :size].double()
        remaining = matrix.double().diagonal() - (factor**2).sum(dim=1)
        assert remaining[asked[size]] > remaining.max() - ROUNDING[dtype]


def test_inexact_columns_are_not_asked_for_twice():
    matrix, asked = decaying(dtype=torch.float32), []

    def column(i):
        asked.append(i)
        return matrix[:, i] * (1 - 2e-4)

    pivoted_cholesky(column, matrix.diagonal(), 40, 1.0)
    assert len(asked) == len(set(asked)) == 40


def test_pivoted_cholesky_stops_at_its_tolerance():
    matrix = decaying()
    preconditioner = cholesky(matrix, 60, tolerance=1e-2)
    rank = preconditioner.factor.shape[1]
    trace = float(matrix.trace())
    left = [trace - float((preconditioner.factor[:, :k] ** 2).sum()) for k in (rank - 1, rank)]
    assert left[1] <= 1e-2 * trace < left[0]


def test_pivoted_cholesky_of_full_rank_is_the_matrix():
    matrix = decaying(rate=0.95)
    part = cholesky(matrix, 60).factor
    torch.testing.assert_close(part @ part.T, matrix, rtol=0, atol=1e-12)


@pytest.mark.parametrize("build", [nystrom, cholesky], ids=["Nyström", "Cholesky"])
def test_preconditioned_map_is_better_conditioned(build):
    matrix, noise = decaying(), 1e-4
    preconditioner = build(matrix, 25, noise)
    whole = matrix + noise * torch.eye(60).double()
    eigenvalues = torch.linalg.eigvals(preconditioner.solve(whole)).real
    assert eigenvalues.max() / eigenvalues.min() < 10
    assert torch.linalg.cond(whole) > 1e3


@pytest.mark.parametrize(
    ("factor", "diagonal", "error"),
    [
        (gaussian(N), 1.0, ShapeError),
        (gaussian(N, 2).half(), 1.0, DtypeError),
        (gaussian(N, 2) * math.nan, 1.0, DataError),
        (gaussian(N, 2), positive(N - 1), ShapeError),
        (gaussian(N, 2), positive(N)[:, None], ShapeError),
        (gaussian(N, 2), positive(N).float(), DtypeError),
        (gaussian(N, 2), 0.0, DataError),
        (gaussian(N, 2), -1.0, DataError),
        (gaussian(N, 2), math.inf, DataError),
        (gaussian(N, 2), positive(N) - 0.5, DataError),
    ],
)
def test_wrong_parts(factor, diagonal, error):
    with pytest.raises(error, match=r"factor|diagonal"):
        LowRankPlusDiagonal(factor, diagonal)


@pytest.mark.parametrize(
    ("block", "error"),
    [
        (gaussian(N), ShapeError),
        (gaussian(2, N + 1), ShapeError),
        (gaussian(2, N).float(), DtypeError),
    ],
)
def test_wrong_blocks(block, error):
    preconditioner = LowRankPlusDiagonal(gaussian(N, 2), 1.0)
    for method in (preconditioner.apply, preconditioner.solve):
        with pytest.raises(error, match="block"):
            method(block)
    with pytest.raises(ConfigurationError, match="number"):
        preconditioner.sample(-1, 0)


@pytest.mark.parametrize(
    "setting", [{"rank": 0}, {"rank": 61}, {"rank": 4, "oversampling": -1}], ids=str
)
def test_impossible_settings_of_nystrom(setting):
    with pytest.raises(ConfigurationError, match=list(setting)[-1]):
        nystrom(decaying(), **setting)


@pytest.mark.parametrize(
    "setting", [{"rank": 0}, {"rank": 61}, {"rank": 4, "tolerance": -1.0}], ids=str
)
def test_impossible_settings_of_pivoted_cholesky(setting):
    with pytest.raises(ConfigurationError, match=list(setting)[-1]):
        cholesky(decaying(), **setting)


def test_wrong_types_and_shapes_are_refused():
    with pytest.raises(DtypeError, match="float32 or float64"):
        nystrom(torch.eye(20).half(), 3)
    with pytest.raises(DtypeError, match="diagonal_of_matrix"):
        cholesky(torch.eye(20).half(), 3)
    with pytest.raises(DataError, match="must be positive"):
        nystrom(torch.eye(20), 3, 0.0)
    with pytest.raises(DtypeError, match="noise_diagonal"):
        cholesky(torch.eye(20), 3, positive(20))
    with pytest.raises(DataError, match="not negative"):
        cholesky(-torch.eye(20), 3)
    with pytest.raises(ConfigurationError, match="n must be"):
        low_rank_plus_diagonal(abs, 0, 1, 1.0, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda i: torch.eye(20)[i, 1:], ShapeError),
        (lambda i: torch.eye(20)[[i]], ShapeError),
        (lambda i: torch.eye(20)[i].double(), DtypeError),
        (lambda i: torch.eye(20)[i].numpy(), DtypeError),
        (lambda i: torch.eye(20)[i] * math.nan, DataError),
        (lambda i: torch.eye(20)[i] * 1.1, DataError),
        (lambda i: torch.eye(20)[i - 1], DataError),
    ],
)
def test_wrong_columns(wrong, error):
    with pytest.raises(error, match="column"):
        pivoted_cholesky(wrong, torch.ones(20), 3, 1.0)
