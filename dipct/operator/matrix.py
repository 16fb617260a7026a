"""A linear operator given by a sparse matrix, with its transpose stored beside it."""

import warnings
from typing import Any, Self

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from dipct.device import find_device
from dipct.errors import DtypeError, ShapeError
from dipct.operator.base import LinearOperator, apply_linear


class MatrixOperator(LinearOperator):
    """Multiplication by a sparse matrix on flattened tensors.

    Matrix and transpose are both stored by rows (CSR) with 32-bit indices: a product with a
    transposed view, or with 64-bit indices, is many times slower.

    Attributes:
        matrix: CSR, [prod(range_shape) prod(domain_shape)].
        transpose: CSR of the transpose.
    """

    def __init__(
        self,
        matrix: sparse.spmatrix | sparse.sparray,
        domain_shape: tuple[int, ...],
        range_shape: tuple[int, ...],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Store a matrix and its transpose.

        Args:
            matrix: any SciPy sparse matrix, [prod(range_shape) prod(domain_shape)].
            domain_shape: shape of one input.
            range_shape: shape of one output.
            dtype: ``torch.float32`` or ``torch.float64``.
            device: where to store it.

        Raises:
            ShapeError: the matrix does not map between the two spaces.
            DtypeError: another floating-point type; sparse products have only the two.
            DeviceUnavailableError: no such device on this machine.
        """
        expected = (int(np.prod(range_shape)), int(np.prod(domain_shape)))
        if matrix.shape != expected:
            raise ShapeError(
                f"A matrix from {tuple(domain_shape)} to {tuple(range_shape)} has shape "
                f"{expected}; got {matrix.shape}."
            )
        check_stored_dtype(dtype)
        device = find_device(device)
        self.domain_shape, self.range_shape = tuple(domain_shape), tuple(range_shape)
        values = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
        rows = sparse.csr_matrix(matrix, dtype=values)
        if not rows.has_canonical_format:
            rows = rows.copy()
            rows.sum_duplicates()
        self.matrix = _to_torch(rows).to(device)
        self.transpose = _to_torch(rows.T.tocsr()).to(device)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """A copy on another device or in another floating-point type."""
        if dtype is not None:
            check_stored_dtype(dtype)
        return super().to(device, dtype)

    @property
    def n_nonzeros(self) -> int:
        """Number of stored entries of the matrix."""
        return int(self.matrix.values().numel())

    def to_scipy(self) -> sparse.csr_matrix:
        """The matrix as SciPy CSR; shares memory where it can."""
        m = self.matrix.cpu()
        parts = (m.values().numpy(), m.col_indices().numpy(), m.crow_indices().numpy())
        return sparse.csr_matrix(parts, shape=tuple(m.shape))

    def _apply(self, x: Tensor) -> Tensor:
        return apply_linear(x, self._multiply, self._multiply_transpose)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return apply_linear(y, self._multiply_transpose, self._multiply)

    def _multiply(self, x: Tensor) -> Tensor:
        return _product(self.matrix, x, len(self.domain_shape), self.range_shape)

    def _multiply_transpose(self, y: Tensor) -> Tensor:
        return _product(self.transpose, y, len(self.range_shape), self.domain_shape)


def _product(matrix: Tensor, x: Tensor, ndim: int, out_shape: tuple[int, ...]) -> Tensor:
    batch = x.shape[: x.ndim - ndim]
    flat = x.reshape(-1, matrix.shape[1])
    if len(flat) == 1:
        return (matrix @ flat[0]).reshape(*batch, *out_shape)
    # The product wants the batch innermost, the images' layout has it outermost.
    return (matrix @ flat.T.contiguous()).T.reshape(*batch, *out_shape)


def _to_torch(matrix: sparse.csr_matrix) -> Tensor:
    parts: list[Any] = [
        torch.from_numpy(matrix.indptr.astype(np.int32, copy=False)),
        torch.from_numpy(matrix.indices.astype(np.int32, copy=False)),
        torch.from_numpy(matrix.data),
    ]
    # Torch 2.11 warns where these checks are not asked for by this switch.
    checks = torch.sparse.check_sparse_tensor_invariants(True)
    with warnings.catch_warnings(), checks:
        # Torch says once in a process that its CSR layout is in beta.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support", category=UserWarning)
        return torch.sparse_csr_tensor(*parts, size=matrix.shape)


def check_stored_dtype(dtype: torch.dtype) -> None:
    """Raise a :class:`DtypeError` unless a sparse matrix can be stored in ``dtype``."""
    if dtype not in (torch.float32, torch.float64):
        raise DtypeError(
            f"Sparse matrices are stored in float32 or float64; got {dtype}. Convert the image "
            "before and the projections after the product."
        )
