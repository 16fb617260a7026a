"""Directions in which the parameters of a network moved while it was trained."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, DataError, DtypeError
from dipct.shapes import check_shape

# Values converted to double precision at once: 128 MiB.
_CHUNK = 2**24
_ORTHONORMAL = 1e-3


def principal_directions(snapshots: Tensor, dimension: int) -> Tensor:
    """Leading left singular vectors of the matrix whose columns are snapshots of parameters.

    The basis of subspace DIP (Barbano et al., TMLR 2024, arXiv 2302.10279); as there,
    no mean is subtracted. Computed from the S x S matrix of inner products in double precision,
    so that only the result is as large as the snapshots. That resolves singular values down to
    1.2e-7 of the Frobenius norm, which is also how exact float32 snapshots are (a little less far
    for more than 4000); smaller ones count as zero.

    Args:
        snapshots: parameters at S times, [S P], float32 or float64.
        dimension: number of directions K.

    Returns:
        Orthonormal columns in the order of falling singular values, [P K]; their signs mean
        nothing.

    Raises:
        ShapeError: not a matrix.
        DtypeError: not a float32 or float64 tensor.
        DataError: values that are not finite.
        ConfigurationError: no dimension, or one above the numerical rank of the snapshots.
    """
    _check_matrix(snapshots, "S P", "The snapshots")
    _check_count(dimension, "The dimension")
    snapshots = snapshots.detach()
    gram = sum(part @ part.T for part in _column_parts(snapshots))
    eigenvalues, vectors = torch.linalg.eigh(gram)
    # Eigenvalues are squared singular values, and are found to some roundings of the largest.
    eps = torch.finfo(torch.float64).eps
    share = max(torch.finfo(torch.float32).eps ** 2, len(snapshots) ** 0.5 * eps)
    rank = int((eigenvalues > share * gram.trace()).sum())
    if dimension > rank:
        raise ConfigurationError(
            f"These {snapshots.shape[0]} snapshots of {snapshots.shape[1]} parameters span {rank} "
            f"dimensions to rounding error; got dimension={dimension}. The largest possible is "
            f"{rank}; take more snapshots for more."
        )
    leading = slice(-dimension, None)
    mixture = (vectors[:, leading] * eigenvalues[leading].rsqrt()).flip(-1)
    # Rounding in the inner products leaves directions of small singular values not quite
    # orthogonal to the large ones. The factor is triangular: leading directions stay leading.
    directions = (part.T @ mixture for part in _column_parts(snapshots))
    factor = torch.linalg.cholesky(sum(part.T @ part for part in directions))
    mixture = torch.linalg.solve_triangular(factor.mT, mixture, upper=True, left=False)
    result = snapshots.new_empty(snapshots.shape[1], dimension)
    rows = result.split(_width(snapshots.shape[0]))
    for part, target in zip(_column_parts(snapshots), rows, strict=True):
        target.copy_(part.T @ mixture)
    return result


def sparsify(basis: Tensor, kept: int) -> Tensor:
    """Keep the rows of an orthonormal basis with the largest leverage scores.

    A leverage score is the squared norm of a row: how much of the parameter lies in the subspace
    (Barbano et al., TMLR 2024, arXiv 2302.10279). The columns are not made orthonormal
    again.

    Args:
        basis: orthonormal columns, [P K], float32 or float64.
        kept: number of rows to keep, K ... P.

    Returns:
        The basis with the other rows zero, [P K].

    Raises:
        ShapeError: not a matrix.
        DtypeError: not a float32 or float64 tensor.
        DataError: values that are not finite, or columns that are not orthonormal.
        ConfigurationError: another number of rows.
    """
    _check_matrix(basis, "P K", "The basis")
    _check_count(kept, "The number of kept rows")
    basis = basis.detach()
    n, dimension = basis.shape
    if not dimension <= kept <= n:
        raise ConfigurationError(
            f"Of a basis of {dimension} directions for {n} parameters {dimension} to {n} rows can "
            f"be kept; got {kept}."
        )
    products = sum(part @ part.T for part in _column_parts(basis.T))
    error = float((products - torch.eye(dimension).to(products)).abs().max())
    if error > _ORTHONORMAL:
        raise DataError(
            "Leverage scores are those of orthonormal columns; the inner products of these are off "
            f"by up to {error:.3g}. Take principal_directions or torch.linalg.qr of them first."
        )
    scores = torch.linalg.vector_norm(basis, dim=1)
    chosen = scores.argsort(descending=True, stable=True)[:kept]
    result = torch.zeros_like(basis)
    result[chosen] = basis[chosen]
    return result


def _column_parts(matrix: Tensor) -> Iterator[Tensor]:
    """Slices of the columns of a matrix in double precision, of a bounded size."""
    for part in matrix.split(_width(matrix.shape[0]), dim=1):
        yield part.to(torch.float64)


def _width(rows: int) -> int:
    return max(_CHUNK // rows, 1)


def _check_matrix(matrix: Tensor, pattern: str, name: str) -> None:
    if not isinstance(matrix, Tensor) or matrix.dtype not in (torch.float32, torch.float64):
        kind = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
        raise DtypeError(f"{name} must be a float32 or float64 tensor; got {kind}.")
    check_shape(matrix, pattern, name=name)
    if not matrix.numel():
        raise DataError(f"{name} must have values; got shape {tuple(matrix.shape)}.")
    if not all(bool(torch.isfinite(end)) for end in matrix.detach().aminmax()):
        raise DataError(f"{name} must be finite; some values are not.")


def _check_count(count: int, name: str) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigurationError(f"{name} must be a whole number of 1 or more; got {count!r}.")
