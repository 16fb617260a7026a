"""The Jacobian of an operator as a linear operator, never formed as a matrix."""

import torch
from torch import Tensor

from dipct.operator.base import LinearOperator, Operator


class Jacobian(LinearOperator):
    """Derivative of an operator at a point.

    Attributes:
        operator: what is differentiated.
        point: where, [... *operator.domain_shape].
        value: the operator's value there.
    """

    def __init__(self, operator: Operator, point: Tensor) -> None:
        self.operator = operator
        self.point = point.detach()
        self.value = operator(self.point)
        self.domain_shape, self.range_shape = tuple(point.shape), tuple(self.value.shape)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Jacobian":
        """The Jacobian of the moved operator at the moved point."""
        return Jacobian(self.operator.to(device, dtype), self.point.to(device, dtype))

    def _apply(self, x: Tensor) -> Tensor:
        def push(v: Tensor) -> Tensor:
            return torch.func.jvp(self.operator, (self.point,), (v,))[1]

        return _over_batch(push, x, len(self.domain_shape))

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        def pull(w: Tensor) -> Tensor:
            return torch.func.vjp(self.operator, self.point)[1](w)[0]

        return _over_batch(pull, y, len(self.range_shape))


def _over_batch(function, x: Tensor, ndim: int) -> Tensor:  # noqa: ANN001
    """Map a function of ``ndim`` axes over the leading axes of ``x``."""
    batch = x.shape[: x.ndim - ndim]
    if not batch:
        return function(x)
    mapped = torch.vmap(function)(x.reshape(-1, *x.shape[len(batch) :]))
    return mapped.reshape(*batch, *mapped.shape[1:])
