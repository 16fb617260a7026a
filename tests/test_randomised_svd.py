"""Randomised singular value decomposition against dense ones, and angles between subspaces."""

import math

import pytest
import torch

from dipct.errors import ConfigurationError, DataError, DtypeError, ShapeError
from dipct.linalg import randomised_svd, subspace_overlap

RANK = 12
DECAYS = {
    "fast": lambda i: 0.7**i,
    "slow": lambda i: (1 + i) ** -0.5,
    "nearly flat": lambda i: 1 - i / 200,
    "pairs": lambda i: 0.9 ** (i // 2),
    "cliff": lambda i: torch.where(i < RANK, 1 - i / 50, 1e-4 * 0.9**i),
}
SHAPES = [(60, 150), (150, 60), (80, 80)]
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}

both_dtypes = pytest.mark.parametrize("dtype", list(ROUNDING), ids=["float32", "float64"])
every_decay = pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS.keys())


def random_orthonormal(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64)).Q


def matrix_with(values, m, n, dtype=torch.float64):
    """A matrix with given singular values and random singular vectors."""
    left, right = random_orthonormal(m, len(values), 1), random_orthonormal(n, len(values), 2)
    return ((left * values) @ right.T).to(dtype)


def decaying(decay, m=60, n=150, dtype=torch.float64, number=None):
    values = decay(torch.arange(number or min(m, n), dtype=torch.float64))
    return matrix_with(values, m, n, dtype)


def decompose(matrix, rank=RANK, adjoint=None, **settings):
    transposed = matrix.T if adjoint is None else adjoint
    settings = {"tolerance": 1e-4, "max_passes": 41, **settings}
    return randomised_svd(
        lambda block: block @ matrix.T,
        lambda block: block @ transposed.T,
        matrix.shape[1],
        rank,
        dtype=matrix.dtype,
        device="cpu",
        **settings,
    )


def true_residuals(matrix, triplets):
    """Relative residual norms in double precision, from the matrix and the vectors alone."""
    matrix = matrix.double()
    left, values, right = (x.double() for x in (triplets.left, triplets.values, triplets.right))
    forward = (matrix @ right - left * values).norm(dim=0)
    backward = (matrix.T @ left - right * values).norm(dim=0)
    return (forward**2 + backward**2).sqrt() / values[0]


def distance_from_orthonormal(columns):
    return float((columns.T @ columns - torch.eye(columns.shape[1], dtype=columns.dtype)).norm())


@both_dtypes
@every_decay
@pytest.mark.parametrize("shape", SHAPES, ids=["wide", "tall", "square"])
def test_triplets_are_those_of_the_dense_decomposition(shape, decay, dtype):
    matrix = decaying(decay, *shape, dtype=dtype)
    triplets = decompose(matrix)
    exact = torch.linalg.svdvals(matrix.double())
    assert triplets.converged
    assert triplets.advice == ""
    assert triplets.left.shape == (shape[0], RANK)
    assert triplets.right.shape == (shape[1], RANK)
    assert triplets.values.dtype == triplets.left.dtype == triplets.right.dtype == dtype
    # A residual bounds the distance to a singular value: Weyl.
    assert (triplets.values.double() - exact[:RANK]).abs().max() <= 1e-4 * exact[0]
    assert distance_from_orthonormal(triplets.left) < 10 * ROUNDING[dtype]
    assert distance_from_orthonormal(triplets.right) < 10 * ROUNDING[dtype]


@both_dtypes
@every_decay
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_the_tolerance_is_honoured(tolerance, decay, dtype):
    matrix = decaying(decay, dtype=dtype)
    triplets = decompose(matrix, tolerance=tolerance)
    residuals = true_residuals(matrix, triplets)
    assert triplets.converged
    assert residuals.max() <= tolerance + ROUNDING[dtype]
    assert (residuals - triplets.residuals).abs().max() < ROUNDING[dtype]


def test_reported_residuals_are_true_before_convergence():
    matrix = decaying(DECAYS["nearly flat"])
    triplets = decompose(matrix, max_passes=7)
    assert not triplets.converged
    assert triplets.residuals.max() > 1e-2
    torch.testing.assert_close(triplets.residuals, true_residuals(matrix, triplets))
    assert "more passes" in triplets.advice


def test_vectors_span_the_leading_spaces():
    matrix = decaying(DECAYS["cliff"])
    triplets = decompose(matrix, tolerance=1e-9)
    left, _, right = torch.linalg.svd(matrix)
    assert subspace_overlap(triplets.left, left[:, :RANK].contiguous()).min() > 1 - 1e-9
    assert subspace_overlap(triplets.right, right[:RANK].T).min() > 1 - 1e-9
    assert subspace_overlap(triplets.right, right[1 : RANK + 1].T).min() < 0.1


def test_small_values_are_not_lost_by_squaring():
    """Products with A^T A would know nothing below 3e-4 of the largest in single precision."""
    matrix = decaying(lambda i: 10.0 ** (-i / 4), dtype=torch.float32)
    triplets = decompose(matrix, rank=20, tolerance=1e-6)
    exact = 10.0 ** (-torch.arange(20) / 4)
    assert triplets.converged
    assert ((triplets.values - exact).abs() / exact)[:17].max() < 0.05


@both_dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=["wide", "tall", "square"])
def test_rank_deficient(shape, dtype):
    matrix = decaying(DECAYS["slow"], *shape, dtype=dtype, number=5)
    triplets = decompose(matrix)
    assert triplets.converged
    exact = DECAYS["slow"](torch.arange(5, dtype=dtype))
    torch.testing.assert_close(triplets.values[:5], exact, rtol=0, atol=ROUNDING[dtype])
    assert triplets.values[5:].abs().max() < ROUNDING[dtype]
    assert distance_from_orthonormal(triplets.left) < 10 * ROUNDING[dtype]
    assert distance_from_orthonormal(triplets.right) < 10 * ROUNDING[dtype]


@both_dtypes
@pytest.mark.parametrize("shape", [(9, 30), (30, 9), (9, 9), (1, 5), (5, 1)])
def test_all_triplets(shape, dtype):
    matrix = decaying(DECAYS["slow"], *shape, dtype=dtype)
    triplets = decompose(matrix, rank=min(shape))
    assert triplets.converged
    restored = (triplets.left * triplets.values) @ triplets.right.T
    torch.testing.assert_close(restored, matrix, rtol=0, atol=ROUNDING[dtype])


def test_oversampling_beyond_the_size_of_the_map():
    matrix = decaying(DECAYS["slow"], 20, 14)
    triplets = decompose(matrix, oversampling=50)
    assert triplets.converged
    assert triplets.passes == 3


def test_tolerance_below_rounding_is_not_reached():
    triplets = decompose(decaying(DECAYS["slow"], dtype=torch.float32), tolerance=1e-12)
    assert not triplets.converged
    assert triplets.residuals.max() < 1e-5
    assert distance_from_orthonormal(triplets.right) < 1e-4
    whole = decompose(decaying(DECAYS["slow"], 9, 9), rank=9, tolerance=1e-30)
    assert not whole.converged


def test_long_vectors_in_single_precision():
    """Householder QR alone leaves them 2e-5 from orthonormal here, and gets nowhere near 1e-6."""
    n = 300_000
    matrix = decaying(DECAYS["fast"], 20, 20, dtype=torch.float32)
    group, weights = torch.arange(n) % 20, torch.linspace(0.5, 1.5, n) / (n / 20) ** 0.5
    triplets = randomised_svd(
        lambda block: (block * weights).reshape(len(block), -1, 20).sum(dim=1) @ matrix.T,
        lambda block: (block @ matrix)[:, group] * weights,
        n,
        4,
        oversampling=2,
        tolerance=1e-6,
        dtype=torch.float32,
        device="cpu",
    )
    assert triplets.converged
    assert distance_from_orthonormal(triplets.right.double()) < 1e-6
    lengths = torch.zeros(20).index_add(0, group, weights**2).sqrt()
    exact = torch.linalg.svdvals(matrix * lengths)
    torch.testing.assert_close(triplets.values, exact[:4], rtol=0, atol=1e-5)


def test_zero_map():
    triplets = decompose(torch.zeros(30, 40, dtype=torch.float64))
    assert triplets.converged
    assert (triplets.values == 0).all()
    assert distance_from_orthonormal(triplets.right) < 1e-12


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_scale_of_the_map_changes_nothing(factor):
    matrix = decaying(DECAYS["slow"], dtype=torch.float32)
    one, other = decompose(matrix), decompose(matrix * factor)
    assert one.passes == other.passes
    torch.testing.assert_close(one.values * factor, other.values, rtol=1e-4, atol=0)


NOISE = 0.01 * torch.randn(60, 150, generator=torch.Generator().manual_seed(3)).double()
WRONG = {
    "twice as large": lambda matrix: 2 * matrix.T,
    "wrong sign": lambda matrix: -matrix.T,
    "one percent larger": lambda matrix: 1.01 * matrix.T,
    "perturbed": lambda matrix: (matrix + NOISE).T,
    "rows moved by one": lambda matrix: matrix.T.roll(1, 0),
    "weighted": lambda matrix: torch.linspace(0.9, 1.1, 150).double()[:, None] * matrix.T,
    "zero": lambda matrix: 0 * matrix.T,
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("decay", ["fast", "slow"])
def test_wrong_adjoint_never_converges(decay, wrong):
    matrix = decaying(DECAYS[decay])
    assert decompose(matrix, tolerance=1e-3).adjoint_error < 1e-12
    triplets = decompose(matrix, adjoint=wrong(matrix), tolerance=1e-3)
    assert not triplets.converged
    assert triplets.adjoint_error > 1e-3
    assert "adjoint is not the transpose" in triplets.advice


def test_unfinished_iteration_is_not_blamed_on_the_adjoint():
    triplets = decompose(decaying(DECAYS["nearly flat"]), max_passes=3)
    assert not triplets.converged
    assert triplets.adjoint_error < 1e-12
    assert "adjoint" not in triplets.advice


def test_repeatable():
    matrix = decaying(DECAYS["slow"])
    one, same, other = (decompose(matrix, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(one.left, same.left)
    assert torch.equal(one.right, same.right)
    assert not torch.equal(one.right, other.right)
    # The sign does not depend on the seed either.
    torch.testing.assert_close(one.right, other.right, rtol=0, atol=1e-2)
    torch.testing.assert_close(one.left, other.left, rtol=0, atol=1e-2)


def test_neither_reads_nor_changes_the_global_generator():
    matrix = decaying(DECAYS["slow"])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = decompose(matrix)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(one.right, decompose(matrix).right)


def test_largest_entry_of_each_right_vector_is_positive():
    right = decompose(decaying(DECAYS["slow"])).right
    largest = right.gather(0, right.abs().argmax(dim=0, keepdim=True))
    assert (largest > 0).all()


@pytest.mark.parametrize("block_size", [None, 1, 5, 1000])
def test_blocks_are_bounded_and_products_counted(block_size):
    matrix = decaying(DECAYS["slow"])
    seen = []

    def counted(transposed):
        def product(block):
            seen.append(len(block))
            return block @ transposed

        return product

    triplets = randomised_svd(
        counted(matrix.T),
        counted(matrix),
        matrix.shape[1],
        RANK,
        block_size=block_size,
        dtype=matrix.dtype,
        device="cpu",
    )
    assert max(seen) <= (block_size or RANK + 10)
    assert sum(seen) == triplets.products
    whole = decompose(matrix, tolerance=1e-3, max_passes=20)
    assert triplets.passes == whole.passes
    torch.testing.assert_close(triplets.values, whole.values)


@pytest.mark.parametrize("max_passes", [3, 4, 5, 8])
def test_passes_and_sweeps(max_passes):
    reported = []
    triplets = decompose(
        decaying(DECAYS["nearly flat"]),
        max_passes=max_passes,
        report=lambda *figures: reported.append(figures),
    )
    assert triplets.passes == max_passes - (max_passes + 1) % 2
    assert [sweep for sweep, _ in reported] == list(range(1, (triplets.passes - 1) // 2 + 1))
    assert reported[-1][1] == float(triplets.residuals.max())


def test_a_larger_basis_needs_no_more_passes():
    matrix = decaying(DECAYS["nearly flat"], 200, 300)
    passes = [
        decompose(matrix, basis_blocks=blocks, max_passes=81, tolerance=1e-3).passes
        for blocks in (2, 3, 8)
    ]
    assert passes == sorted(passes, reverse=True)
    assert passes[0] > passes[-1]


def test_map_that_needs_a_gradient_leaves_none():
    matrix = decaying(DECAYS["fast"]).requires_grad_()
    triplets = decompose(matrix)
    assert not triplets.right.requires_grad
    assert not triplets.values.requires_grad


@pytest.mark.parametrize(
    "setting",
    [
        {"rank": 0},
        {"rank": 151},
        {"rank": 61},
        {"oversampling": -1},
        {"tolerance": 0.0},
        {"tolerance": math.nan},
        {"tolerance": math.inf},
        {"max_passes": 2},
        {"block_size": 0},
        {"basis_blocks": 1},
    ],
    ids=str,
)
def test_impossible_settings(setting):
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        decompose(decaying(DECAYS["fast"]), **setting)


def test_no_columns():
    with pytest.raises(ConfigurationError, match="n_columns"):
        decompose(torch.zeros(3, 0), rank=1)


def test_other_types_are_refused():
    with pytest.raises(DtypeError, match="float32 or float64"):
        decompose(torch.eye(20, dtype=torch.float16))


def attempt(apply, apply_adjoint):
    return randomised_svd(apply, apply_adjoint, 8, 3, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda block: block[0], ShapeError),
        (lambda block: block.T[:, :1], ShapeError),
        (lambda block: block[:, :7], ShapeError),
        (lambda block: block.double(), DtypeError),
        (lambda block: block.numpy(), DtypeError),
        (lambda block: block / 0, DataError),
        (lambda block: block * math.nan, DataError),
    ],
)
def test_wrong_products(wrong, error):
    assert attempt(lambda block: block, lambda block: block).converged
    with pytest.raises(error, match="apply_adjoint"):
        attempt(lambda block: block, wrong)
    if wrong(torch.ones(1, 8)).shape != (1, 7):
        with pytest.raises(error, match="result of apply "):
            attempt(wrong, lambda block: block)


def test_products_that_become_infinite_late():
    calls = []

    def apply(block):
        calls.append(block)
        return block / (len(calls) < 2)

    with pytest.raises(DataError, match="must be finite"):
        attempt(apply, lambda block: block)


@both_dtypes
def test_overlap_of_known_angles(dtype):
    angles = torch.tensor([0.1, 0.5, 1.2, math.pi / 2], dtype=torch.float64)
    basis = random_orthonormal(40, 8, 0)
    one, other = basis[:, :4], basis[:, :4] * angles.cos() + basis[:, 4:] * angles.sin()
    # Other columns of the same spans: the angles are between the spaces.
    mixing = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    overlap = subspace_overlap((one @ mixing[0]).to(dtype), (other @ mixing[1]).to(dtype))
    torch.testing.assert_close(overlap, angles.cos().to(dtype), rtol=0, atol=ROUNDING[dtype])


def test_overlap_of_same_and_orthogonal_spaces():
    basis = random_orthonormal(20, 6, 0)
    scaled = basis[:, :3] * torch.tensor([1e-9, 1.0, 1e9], dtype=torch.float64)
    torch.testing.assert_close(subspace_overlap(basis[:, :3], scaled), torch.ones(3).double())
    assert subspace_overlap(basis[:, :3], scaled).max() <= 1
    assert subspace_overlap(basis[:, :3], basis[:, 3:]).max() < 1e-12


def test_overlap_refuses_what_spans_nothing():
    basis = random_orthonormal(20, 3, 0)
    with pytest.raises(ShapeError, match="as many columns"):
        subspace_overlap(basis, basis[:, :2])
    with pytest.raises(ShapeError, match="n K"):
        subspace_overlap(basis[:, 0], basis[:, 0])
    with pytest.raises(ShapeError, match="between 1 and n = 3"):
        subspace_overlap(torch.ones(3, 5), torch.ones(3, 5))
    with pytest.raises(DtypeError, match="one type"):
        subspace_overlap(basis, basis.float())
    with pytest.raises(DataError, match="b must have linearly independent"):
        subspace_overlap(basis, basis[:, [0, 1, 1]])
    with pytest.raises(DataError, match="a must have linearly independent"):
        subspace_overlap(0 * basis, basis)
    with pytest.raises(DataError, match="finite"):
        subspace_overlap(basis * math.nan, basis)
