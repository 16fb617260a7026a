"""To and from ODL operators; the only module that imports odl.

ODL spaces carry inner products with weights (a cell volume, say), so that an ODL adjoint is not
always the transpose. The bridge translates between the two: towards dipct the adjoint is the
plain transpose, towards ODL it is the adjoint in ODL's weighted spaces.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipct.errors import BackendUnavailableError, ShapeError
from dipct.operator.base import LinearOperator, Operator, apply_linear

try:
    import odl
except ImportError as error:
    raise BackendUnavailableError(
        f"ODL cannot be loaded ({error}). Install odl, or use dipct's own operators."
    ) from error


def to_odl(operator: Operator, domain: Any = None, range: Any = None) -> Any:
    """An operator as an ``odl.Operator`` between tensor spaces.

    Args:
        operator: any operator; a linear one keeps its adjoint, any other its derivative.
        domain: ODL space of shape ``domain_shape`` (a leading axis of length 1 may be left
            out); an unweighted ``odl.rn`` by default.
        range: ODL space of shape ``range_shape``, likewise.

    Raises:
        ShapeError: a space has another shape.
    """
    name = str(operator.dtype or torch.float32).removeprefix("torch.")
    if domain is None:
        domain = odl.rn(operator.domain_shape, dtype=name)
    if range is None:
        range = odl.rn(operator.range_shape, dtype=name)
    for space, shape in ((domain, operator.domain_shape), (range, operator.range_shape)):
        if tuple(space.shape) != shape and (1, *space.shape) != shape:
            raise ShapeError(f"The ODL space has shape {space.shape}; the operator's is {shape}.")
    return _ToOdl(operator, domain, range)


def from_odl(operator: Any, *, dtype: torch.dtype = torch.float32) -> Operator:
    """An ODL operator between array spaces as an operator on tensors.

    Args:
        operator: an ``odl.Operator`` whose domain and range have shapes; with a derivative if
            it is not linear.
        dtype: floating-point type of its inputs and outputs.

    Returns:
        A :class:`LinearOperator` if ``operator.is_linear``. Spaces of two axes get a channel
        axis in the domain, so that images are (1, H, W).
    """
    cls = _LinearFromOdl if operator.is_linear else _FromOdl
    return cls(operator, dtype)


def _weight(space: Any) -> float:
    """The constant weight of a space's inner product."""
    one, ramp = space.one(), np.linspace(1.0, 2.0, int(np.prod(space.shape)))
    weight = float(space.inner(one, one)) / ramp.size
    weighted_sum = float(space.inner(one, space.element(ramp.reshape(space.shape))))
    if not np.isclose(weighted_sum, weight * ramp.sum(), rtol=1e-4):
        raise BackendUnavailableError(
            f"The inner product of {space!r} weighs its entries differently; the bridge to ODL "
            "needs one weight for all. Use spaces with a constant weighting."
        )
    return weight


class _ToOdl(odl.Operator):
    def __init__(self, operator: Operator, domain: Any, range: Any) -> None:
        super().__init__(domain, range, linear=isinstance(operator, LinearOperator))
        self.operator = operator

    def _tensor(self, element: Any, shape: tuple[int, ...]) -> Tensor:
        array = np.ascontiguousarray(element.asarray())
        dtype, device = self.operator.dtype, self.operator.device
        return torch.as_tensor(array).reshape(shape).to(dtype=dtype, device=device)

    def _call(self, x: Any) -> Any:
        value = self.operator(self._tensor(x, self.operator.domain_shape))
        return self.range.element(value.detach().cpu().numpy().reshape(self.range.shape))

    def derivative(self, point: Any) -> Any:
        """The derivative at a point as a linear ODL operator."""
        if self.is_linear:
            return self
        _, jacobian = self.operator.linearize(self._tensor(point, self.operator.domain_shape))
        return _ToOdl(jacobian, self.domain, self.range)

    @property
    def adjoint(self) -> Any:
        """The adjoint in ODL's weighted inner products."""
        if not isinstance(self.operator, LinearOperator):
            raise NotImplementedError("Only linear operators have an adjoint; use derivative(x).")
        factor = _weight(self.range) / _weight(self.domain)
        transpose = self.operator.T if factor == 1 else factor * self.operator.T
        return _ToOdl(transpose, self.range, self.domain)


class _FromOdl(Operator):
    def __init__(self, operator: Any, dtype: torch.dtype) -> None:
        self.operator = operator
        shape = tuple(operator.domain.shape)
        self.domain_shape = (1, *shape) if len(shape) == 2 else shape
        self.range_shape = tuple(operator.range.shape)
        # Turns ODL's adjoint, in weighted inner products, into the transpose.
        self.unweight = _weight(operator.domain) / _weight(operator.range)
        self.like = torch.empty(0, dtype=dtype)

    def _array(self, x: Tensor, space: Any) -> Any:
        return space.element(x.detach().cpu().numpy().reshape(space.shape))

    def _over_batch(self, function, x: Tensor, ndim: int, out_shape) -> Tensor:  # noqa: ANN001
        batch = x.shape[: x.ndim - ndim]
        items = x.reshape(-1, *x.shape[x.ndim - ndim :])
        results = np.stack([np.array(function(item).asarray()) for item in items])
        return torch.from_numpy(results).to(self.like).reshape(*batch, *out_shape)

    def _forward(self, x: Tensor) -> Tensor:
        return self._over_batch(
            lambda item: self.operator(self._array(item, self.operator.domain)),
            x,
            len(self.domain_shape),
            self.range_shape,
        )

    def _push(self, point: Tensor, v: Tensor) -> Tensor:
        derivative = self.operator.derivative(self._array(point, self.operator.domain))
        return self._transport(derivative, v, self.domain_shape, self.range_shape)

    def _pull(self, point: Tensor, w: Tensor) -> Tensor:
        derivative = self.operator.derivative(self._array(point, self.operator.domain))
        pulled = self._transport(derivative.adjoint, w, self.range_shape, self.domain_shape)
        return self.unweight * pulled

    def _transport(self, linear: Any, x: Tensor, shape: tuple[int, ...], out_shape) -> Tensor:  # noqa: ANN001
        return self._over_batch(
            lambda item: linear(self._array(item, linear.domain)), x, len(shape), out_shape
        )

    def _apply(self, x: Tensor) -> Tensor:
        return _OdlFunction.apply(x, self)  # type: ignore[return-value]


class _OdlFunction(torch.autograd.Function):
    """A nonlinear ODL operator with its first derivative."""

    @staticmethod
    def forward(x: Tensor, owner: _FromOdl) -> Tensor:
        return owner._forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.owner = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (point,) = ctx.saved_tensors
        return _OdlDerivative.apply(point, gradient, ctx.owner, "_pull"), None  # type: ignore[return-value]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (point,) = ctx.saved_tensors
        return _OdlDerivative.apply(point, tangent, ctx.owner, "_push")  # type: ignore[return-value]

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, owner: _FromOdl
    ) -> tuple[Tensor, int]:
        return _OdlFunction.apply(x.movedim(in_dims[0] or 0, 0), owner), 0  # type: ignore[return-value]


class _OdlDerivative(torch.autograd.Function):
    """The derivative of an ODL operator, or its transpose, at each batch element's own point.

    ODL has no second derivatives, hence no backward; torch raises if one is asked for.
    """

    @staticmethod
    def forward(points: Tensor, vectors: Tensor, owner: _FromOdl, direction: str) -> Tensor:
        apply = getattr(owner, direction)
        n = len(owner.domain_shape)
        batch = points.shape[: points.ndim - n]
        if not batch:
            return apply(points, vectors)
        pairs = zip(
            points.reshape(-1, *owner.domain_shape),
            vectors.reshape(-1, *vectors.shape[len(batch) :]),
            strict=True,
        )
        results = torch.stack([apply(point, vector) for point, vector in pairs])
        return results.reshape(*batch, *results.shape[1:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        points: Tensor,
        vectors: Tensor,
        owner: _FromOdl,
        direction: str,
    ) -> tuple[Tensor, int]:
        moved = [
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip((points, vectors), in_dims, strict=False)
        ]
        return _OdlDerivative.apply(*moved, owner, direction), 0  # type: ignore[return-value]


class _LinearFromOdl(_FromOdl, LinearOperator):
    """A linear ODL operator; the transpose undoes the weights of its spaces."""

    def _apply(self, x: Tensor) -> Tensor:
        return apply_linear(x, self._forward, self._backward)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return apply_linear(y, self._backward, self._forward)

    def _backward(self, y: Tensor) -> Tensor:
        return self.unweight * self._transport(
            self.operator.adjoint, y, self.range_shape, self.domain_shape
        )
