"""The Jacobian of an operator as a linear operator, never formed as a matrix."""

import torch
from torch import Tensor

from dipct.operator.base import LinearOperator, Operator, apply_linear


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

    @property
    def matched(self) -> bool:  # type: ignore[override]
        """Whether every linear part of the operator has an exact adjoint."""
        return _is_matched(self.operator)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Jacobian":
        """The Jacobian of the moved operator at the moved point."""
        return Jacobian(self.operator.to(device, dtype), self.point.to(device, dtype))

    def _apply(self, x: Tensor) -> Tensor:
        return apply_linear(x, self._push, self._pull)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return apply_linear(y, self._pull, self._push)

    def _push(self, x: Tensor) -> Tensor:
        def push(v: Tensor) -> Tensor:
            return self.operator.jvp(self.point, v)

        return _over_batch(push, x, len(self.domain_shape))

    def _pull(self, y: Tensor) -> Tensor:
        def pull(w: Tensor) -> Tensor:
            return self.operator.vjp(self.point, w)

        return _over_batch(pull, y, len(self.range_shape))


def _is_matched(value: object) -> bool:
    if isinstance(value, LinearOperator) and not value.matched:
        return False
    if isinstance(value, Operator):
        return all(_is_matched(part) for part in vars(value).values())
    if isinstance(value, tuple | list):
        return all(_is_matched(part) for part in value)
    return True


def _over_batch(function, x: Tensor, ndim: int) -> Tensor:  # noqa: ANN001
    """Map a function of ``ndim`` axes over the leading axes of ``x``."""
    batch = x.shape[: x.ndim - ndim]
    if not batch:
        return function(x)
    mapped = torch.vmap(function)(x.reshape(-1, *x.shape[len(batch) :]))
    return mapped.reshape(*batch, *mapped.shape[1:])
