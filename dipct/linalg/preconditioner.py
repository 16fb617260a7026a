"""Preconditioners of symmetric positive definite maps: a low-rank part plus a diagonal."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, DataError, DtypeError
from dipct.linalg.products import BlockMap, product_of_block
from dipct.linalg.subspaces import check_dtype, inner_products, orthonormal_rows
from dipct.shapes import check_shape

# Draws from P must not repeat the numbers that P was made of: with one seed for both, traces
# estimated with them are biased. Generators on CPUs take no more than 32 bits of a seed.
_ANOTHER_STREAM = 0x5BD1E995
# Below a thousand roundings a wrong sign or an asymmetry can be rounding alone.
_ROUNDINGS = 1000


class Preconditioner(ABC):
    """A symmetric positive definite matrix P [n n] near another one, cheap to invert."""

    @abstractmethod
    def solve(self, block: Tensor) -> Tensor:
        """``P^-1`` on a block of vectors, [k n] -> [k n]."""

    @abstractmethod
    def apply(self, block: Tensor) -> Tensor:
        """P on a block of vectors, [k n] -> [k n]."""

    @abstractmethod
    def log_det(self) -> float:
        """Logarithm of the determinant of P."""

    @abstractmethod
    def sample(self, number: int, seed: int) -> Tensor:
        """Vectors drawn from the normal distribution N(0, P), [number n]."""


class LowRankPlusDiagonal(Preconditioner):
    """``P = F F^T + D`` with a thin factor F and a positive diagonal D.

    With ``G = D^-1/2 F`` the inverse is ``P^-1 = D^-1/2 (I - G (I + G^T G)^-1 G^T) D^-1/2``
    (Woodbury) and the determinant ``|D| |I + G^T G|`` (Sylvester): Golub & Van Loan, Matrix
    Computations, 4th edition, section 2.1.4. The small matrix ``I + G^T G`` is factorised by
    Cholesky in double precision on the CPU; no eigenvalue of it is below one.

    Attributes:
        factor: F, [n k].
        diagonal: D, [n].
        advice: what to do about a low-rank part that could not be found as asked; empty if it
            was. P is a valid preconditioner in any case.

    Args:
        factor: F, [n k]; k may be zero.
        diagonal: positive, [n], or one number for all.
        advice: see above.

    Raises:
        ShapeError: shapes that do not fit.
        DtypeError: the factor is neither float32 nor float64, or the diagonal has another type
            or device.
        DataError: values that are not finite, or a diagonal that is not positive.
    """

    def __init__(self, factor: Tensor, diagonal: Tensor | float, *, advice: str = "") -> None:
        check_shape(factor, "n k", name="factor")
        check_dtype(factor.dtype, "factor")
        if not torch.isfinite(factor).all():
            raise DataError("factor must be finite; it holds NaN or infinite values.")
        self.factor = factor
        self.diagonal = _positive_diagonal(diagonal, factor[:, :0].sum(dim=1), "diagonal")
        self.advice = advice
        # Its rounding would be that of P: the small matrix is formed in double precision once.
        wide = factor.mT.to("cpu", torch.float64) / self.diagonal.to("cpu", torch.float64).sqrt()
        small = torch.eye(len(wide), dtype=torch.float64) + inner_products(wide, wide)
        self._cholesky = torch.linalg.cholesky(small)

    def solve(self, block: Tensor) -> Tensor:
        """``P^-1`` on a block of vectors, [k n] -> [k n].

        One step of iterative refinement in the type of the block follows: without it the
        rounding of ``D^-1 b`` stays along F, where ``P^-1 b`` is small (Higham, Accuracy and
        Stability of Numerical Algorithms, 2nd edition, section 12.2).

        Raises:
            ShapeError: the vectors do not have length n.
            DtypeError: the block has another type or device than the factor.
        """
        self._check(block)
        solution = self._woodbury(block)
        return solution + self._woodbury(block - self._multiply(solution))

    def apply(self, block: Tensor) -> Tensor:
        """P on a block of vectors, [k n] -> [k n].

        Raises:
            ShapeError: the vectors do not have length n.
            DtypeError: the block has another type or device than the factor.
        """
        self._check(block)
        return self._multiply(block)

    def log_det(self) -> float:
        """Logarithm of the determinant of P, in double precision."""
        small = 2 * self._cholesky.diagonal().log().sum()
        return float(self.diagonal.to("cpu", torch.float64).log().sum() + small)

    def sample(self, number: int, seed: int) -> Tensor:
        """``D^1/2 e + F f`` with standard normal e and f: vectors from N(0, P), [number n].

        Args:
            number: how many.
            seed: of e and f.

        Raises:
            ConfigurationError: the number is negative.
        """
        if number < 0:
            raise ConfigurationError(f"number must be at least 0; got {number}.")
        generator = torch.Generator().manual_seed(seed)
        independent, shared = (
            torch.randn(number, length, generator=generator, dtype=self.factor.dtype)
            for length in self.factor.shape
        )
        return (
            independent.to(self.factor) * self.diagonal.sqrt()
            + shared.to(self.factor) @ self.factor.mT
        )

    def _woodbury(self, block: Tensor) -> Tensor:
        scaled = block / self.diagonal
        weights = torch.cholesky_solve(inner_products(scaled, self.factor.mT).mT, self._cholesky)
        return scaled - weights.mT.to(block) @ self.factor.mT / self.diagonal

    def _multiply(self, block: Tensor) -> Tensor:
        weights = inner_products(block, self.factor.mT).to(block)
        return block * self.diagonal + weights @ self.factor.mT

    def _check(self, block: Tensor) -> None:
        check_shape(block, "k n", name="block", n=len(self.factor))
        if (block.dtype, block.device) != (self.factor.dtype, self.factor.device):
            raise DtypeError(
                f"block must have the type and device of the preconditioner, "
                f"{self.factor.dtype} on {self.factor.device}; got {block.dtype} on "
                f"{block.device}. Convert one of them."
            )


def low_rank_plus_diagonal(
    apply: BlockMap,
    n: int,
    rank: int,
    diagonal: Tensor | float,
    *,
    oversampling: int = 10,
    seed: int = 0,
    dtype: torch.dtype,
    device: torch.device | str,
) -> LowRankPlusDiagonal:
    """Preconditioner of ``K = S + D`` from two products of S with a block of vectors.

    S is symmetric positive semidefinite. Its products with a Gaussian block span a space with
    orthonormal basis Q; the Nyström approximation ``S Q (Q^T S Q)^+ Q^T S`` is decomposed and its
    leading eigenvalues are kept: Halko, Martinsson & Tropp, "Finding structure with randomness",
    SIAM Review 53 (2011), algorithms 4.1 and 5.5. In place of its Cholesky factor the
    eigenvalues of ``Q^T S Q`` are taken, floored at zero: those that are negative tell how
    inexact they all are, and nothing below their size is kept.

    Args:
        apply: S on a block of vectors, [k n] -> [k n]. It is S = K - D, not K.
        n: length of the vectors.
        rank: number of eigenvalues kept; fewer where S has a smaller rank.
        diagonal: D, positive, [n], or one number for all.
        oversampling: vectors beyond the rank in the block.
        seed: of the Gaussian block.
        dtype: of the vectors, float32 or float64.
        device: of the vectors.

    Returns:
        The preconditioner. Its ``advice`` says so if S is not symmetric or has negative
        eigenvalues.

    Raises:
        ConfigurationError: a setting is impossible; among them a rank above n.
        ShapeError: a product or the diagonal has the wrong shape.
        DtypeError: one of them has another type or device than ``dtype`` and ``device``; or
            ``dtype`` is neither float32 nor float64.
        DataError: a product is not finite, or the diagonal is not positive and finite.
    """
    _check_rank(rank, n)
    if oversampling < 0:
        raise ConfigurationError(f"oversampling must be at least 0; got {oversampling}.")
    check_dtype(dtype, "dtype")
    noise = _positive_diagonal(diagonal, torch.zeros(n, dtype=dtype, device=device), "diagonal")
    width = min(rank + oversampling, n)
    generator = torch.Generator().manual_seed(seed + _ANOTHER_STREAM)
    start = torch.randn(width, n, generator=generator, dtype=dtype).to(device)
    basis, _ = orthonormal_rows(product_of_block(apply, "apply", start, n))
    images = product_of_block(apply, "apply", basis, n)
    small = inner_products(images, basis)
    values, vectors = torch.linalg.eigh((small + small.mT) / 2)
    lowest, highest = float(values[0]), float(values[-1])
    rounding = torch.finfo(dtype).eps
    kept = values > max(width * rounding * highest, -lowest)
    rotation = (vectors[:, kept] / values[kept].sqrt()).mT
    rows = rotation.to(images) @ images
    _, directions = torch.linalg.eigh(inner_products(rows, rows))
    rows = directions[:, -rank:].mT.to(rows) @ rows
    advice = ""
    asymmetry = float((small - small.mT).abs().max()) / max(float(small.abs().max()), 1e-300)
    if asymmetry > _ROUNDINGS * rounding:
        advice = (
            f"The low-rank part is that of a map that is not symmetric: inner products with it "
            f"differ by {asymmetry:.1e} of the largest when its vectors are exchanged. Correct it."
        )
    elif lowest < -_ROUNDINGS * rounding * highest:
        advice = (
            f"The map without the diagonal is not positive semidefinite: it has an eigenvalue of "
            f"{lowest:.1e} or less, and at least one of {highest:.1e}. What is below the size of "
            f"the former was left out. Check that apply is the matrix less the diagonal, or take "
            f"a smaller diagonal."
        )
    return LowRankPlusDiagonal(rows.mT.contiguous(), noise, advice=advice)


def pivoted_cholesky(
    column: Callable[[int], Tensor],
    diagonal_of_matrix: Tensor,
    rank: int,
    noise_diagonal: Tensor | float,
    *,
    tolerance: float = 0.0,
) -> LowRankPlusDiagonal:
    """Preconditioner of ``K = S + D`` from single columns of S.

    The first columns of the Cholesky factor of S, a symmetric positive semidefinite matrix, each
    for the largest diagonal entry that the earlier ones left: Harbrecht, Peters & Schneider,
    "On the low-rank approximation by the pivoted Cholesky decomposition", Applied Numerical
    Mathematics 62 (2012), algorithm 1. What is left has the trace of the diagonal that is left.

    Args:
        column: column i of S, i -> [n].
        diagonal_of_matrix: the diagonal of S, [n]. It sets type and device.
        rank: most columns.
        noise_diagonal: D, positive, [n], or one number for all.
        tolerance: it stops where the trace that is left is at most this share of the whole.

    Returns:
        The preconditioner. Its ``advice`` says so if S has negative eigenvalues.

    Raises:
        ConfigurationError: a setting is impossible; among them a rank above n.
        ShapeError: a column or a diagonal has the wrong shape.
        DtypeError: one of them has another type or device than ``diagonal_of_matrix``; or that
            is neither float32 nor float64.
        DataError: values that are not finite, a diagonal of D that is not positive, one of S
            that is negative, or a column that does not fit the diagonal of S.
    """
    check_shape(diagonal_of_matrix, "n", name="diagonal_of_matrix")
    n, dtype = len(diagonal_of_matrix), diagonal_of_matrix.dtype
    _check_rank(rank, n)
    if not 0 <= tolerance < 1:
        raise ConfigurationError(f"tolerance must be in [0, 1); got {tolerance}.")
    check_dtype(dtype, "diagonal_of_matrix")
    noise = _positive_diagonal(noise_diagonal, diagonal_of_matrix, "noise_diagonal")
    if not (torch.isfinite(diagonal_of_matrix).all() and (diagonal_of_matrix >= 0).all()):
        raise DataError(
            "diagonal_of_matrix must be finite and not negative: no positive semidefinite matrix "
            "has a negative diagonal entry."
        )
    rounding = torch.finfo(dtype).eps
    left = diagonal_of_matrix.clone()
    largest, trace = float(left.max()), float(left.sum())
    rows = left.new_empty(rank, n)
    size, advice = 0, ""
    while size < rank:
        pivot = int(left.argmax())
        if left[pivot] <= n * rounding * largest or left.sum() <= tolerance * trace:
            break
        entries = _column(column, pivot, diagonal_of_matrix)
        earlier = rows[:size]
        rows[size] = (entries - earlier[:, pivot] @ earlier) / left[pivot].sqrt()
        left -= rows[size] ** 2
        # Exactly zero but for rounding, which must not be chosen again.
        left[pivot] = 0
        size += 1
        lowest = float(left.min())
        if lowest < -_ROUNDINGS * rounding * largest:
            size -= 1
            advice = (
                f"The matrix without the noise is not positive semidefinite: after {size + 1} "
                f"columns a diagonal entry is {lowest:.1e}, where the largest was {largest:.1e}. "
                f"The first {size} columns are used. Check that column gives the matrix less the "
                f"noise."
            )
            break
    return LowRankPlusDiagonal(rows[:size].mT.contiguous(), noise, advice=advice)


def _column(column: Callable[[int], Tensor], index: int, diagonal: Tensor) -> Tensor:
    """A column of the caller's matrix, checked."""

    def row(block: Tensor) -> Tensor:
        entries = column(index)
        return entries[None] if isinstance(entries, Tensor) else entries

    entries = product_of_block(row, "column", diagonal[None], len(diagonal))[0]
    difference = float((entries[index] - diagonal[index]).abs())
    if difference > torch.finfo(diagonal.dtype).eps ** 0.5 * float(diagonal.max()):
        raise DataError(
            f"Entry {index} of column {index} must be that of diagonal_of_matrix, "
            f"{float(diagonal[index]):.6g}; got {float(entries[index]):.6g}. Give the diagonal "
            f"and the columns of one matrix, both without the noise."
        )
    return entries


def _positive_diagonal(diagonal: Tensor | float, like: Tensor, name: str) -> Tensor:
    """A diagonal given as a vector or a number, [n], with the type and device of another."""
    if not isinstance(diagonal, Tensor):
        diagonal = torch.full_like(like, diagonal)
    check_shape(diagonal, "n", name=name, n=len(like))
    if (diagonal.dtype, diagonal.device) != (like.dtype, like.device):
        raise DtypeError(
            f"{name} must have the type and device of the vectors, {like.dtype} on "
            f"{like.device}; got {diagonal.dtype} on {diagonal.device}. Convert it."
        )
    if not (torch.isfinite(diagonal).all() and (diagonal > 0).all()):
        raise DataError(
            f"{name} must be positive and finite: without it the preconditioner has no inverse. "
            f"Its smallest entry is {float(diagonal.min()):.3g}."
        )
    return diagonal


def _check_rank(rank: int, n: int) -> None:
    if n < 1:
        raise ConfigurationError(f"n must be at least 1; got {n}.")
    if not 1 <= rank <= n:
        raise ConfigurationError(f"rank must be between 1 and n = {n}; got {rank}.")
