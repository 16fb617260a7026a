"""To and from SciPy's linear operators."""

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator as ScipyLinearOperator
from scipy.sparse.linalg import aslinearoperator
from torch import Tensor

from dipct.errors import ShapeError
from dipct.operator.base import LinearOperator, apply_linear


def to_scipy(operator: LinearOperator) -> ScipyLinearOperator:
    """A linear operator as SciPy sees it: on flat NumPy vectors.

    Args:
        operator: any linear operator, with or without a stored matrix.

    Returns:
        Shape [prod(range_shape) prod(domain_shape)], in the operator's floating-point type.
    """
    dtype = operator.dtype or torch.float64

    def on_vectors(function, shape):  # noqa: ANN001, ANN202
        def apply(columns: np.ndarray) -> np.ndarray:
            batch = torch.as_tensor(np.ascontiguousarray(columns.T), dtype=dtype)
            image = batch.reshape(*batch.shape[:-1], *shape).to(operator.device)
            result = function(image).reshape(*batch.shape[:-1], -1)
            return result.detach().cpu().numpy().T

        return apply

    forward = on_vectors(operator, operator.domain_shape)
    backward = on_vectors(operator.adjoint, operator.range_shape)
    n, m = (int(np.prod(s)) for s in (operator.domain_shape, operator.range_shape))
    return ScipyLinearOperator(
        (m, n),
        matvec=lambda x: forward(np.ravel(x)),
        rmatvec=lambda y: backward(np.ravel(y)),
        matmat=forward,
        rmatmat=backward,
        dtype=torch.empty(0, dtype=dtype).numpy().dtype,
    )


def from_scipy(
    operator: object,
    domain_shape: tuple[int, ...],
    range_shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
) -> LinearOperator:
    """A SciPy linear operator, sparse or dense matrix as an operator on shaped tensors.

    A sparse matrix is better served by :class:`dipct.operator.MatrixOperator`, which stores it
    for fast products.

    Args:
        operator: anything ``scipy.sparse.linalg.aslinearoperator`` takes.
        domain_shape: shape of one input.
        range_shape: shape of one output.
        dtype: floating-point type of its inputs and outputs.

    Raises:
        ShapeError: the operator does not map between the two spaces.
    """
    return _FromScipy(aslinearoperator(operator), domain_shape, range_shape, dtype)


class _FromScipy(LinearOperator):
    def __init__(
        self,
        operator: ScipyLinearOperator,
        domain_shape: tuple[int, ...],
        range_shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None:
        expected = (int(np.prod(range_shape)), int(np.prod(domain_shape)))
        if operator.shape != expected:
            raise ShapeError(
                f"An operator from {tuple(domain_shape)} to {tuple(range_shape)} has shape "
                f"{expected}; got {operator.shape}."
            )
        self.operator = operator
        self.domain_shape, self.range_shape = tuple(domain_shape), tuple(range_shape)
        self.like = torch.empty(0, dtype=dtype)

    def _apply(self, x: Tensor) -> Tensor:
        return apply_linear(x, self._forward, self._backward)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return apply_linear(y, self._backward, self._forward)

    def _forward(self, x: Tensor) -> Tensor:
        return self._on_columns(self.operator.matmat, x, self.domain_shape, self.range_shape)

    def _backward(self, y: Tensor) -> Tensor:
        return self._on_columns(self.operator.rmatmat, y, self.range_shape, self.domain_shape)

    def _on_columns(self, function, x, shape, out_shape) -> Tensor:  # noqa: ANN001
        batch = x.shape[: x.ndim - len(shape)]
        columns = x.detach().cpu().reshape(-1, int(np.prod(shape))).numpy().T
        result = np.ascontiguousarray(np.asarray(function(columns)).T)
        return torch.from_numpy(result).to(self.like).reshape(*batch, *out_shape)
