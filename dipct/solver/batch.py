"""Sums, norms and checks over one batch element at a time."""

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, DataError
from dipct.operator.base import LinearOperator
from dipct.shapes import check_shape


def inner(one: Tensor, other: Tensor, ndim: int) -> Tensor:
    """Inner product over the last ``ndim`` axes, summed in double precision, [...]."""
    return (one * other).flatten(-ndim).sum(-1, dtype=torch.float64)


def norm(x: Tensor, ndim: int) -> Tensor:
    """Euclidean norm over the last ``ndim`` axes, summed in double precision, [...]."""
    return torch.linalg.vector_norm(x.flatten(-ndim), dim=-1, dtype=torch.float64)


def per_element(numbers: Tensor, like: Tensor, ndim: int) -> Tensor:
    """Reshape one number per batch element, [...], so that it multiplies ``like``."""
    return numbers.reshape(*numbers.shape, *(1,) * ndim).to(like.dtype)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient that is 0 where the denominator is 0."""
    positive = denominator > 0
    return torch.where(positive, numerator / torch.where(positive, denominator, 1.0), 0.0)


def check_projections(operator: LinearOperator, projections: Tensor) -> Tensor:
    """Projections detached from any graph, after checks of shape and values.

    Raises:
        ShapeError: the projections do not end in the operator's range.
        DataError: they are not finite.
    """
    _check_ending(projections, operator.range_shape, f"The projections for {operator!r}")
    _check_finite(projections, "projections")
    return projections.detach()


def initial_image(operator: LinearOperator, projections: Tensor, initial: Tensor | None) -> Tensor:
    """The starting image with the batch axes of the projections; zero by default.

    Raises:
        ShapeError: the initial image does not fit the operator or the batch.
        DataError: it is not finite.
    """
    shape = (*batch_shape(operator, projections), *operator.domain_shape)
    if initial is None:
        return projections.new_zeros(shape)
    _check_ending(initial, operator.domain_shape, "The initial image")
    _check_finite(initial, "initial image")
    return initial.detach().to(projections.dtype).expand(shape).contiguous()


def batch_shape(operator: LinearOperator, projections: Tensor) -> tuple[int, ...]:
    """Leading axes of projections."""
    return tuple(projections.shape[: projections.ndim - len(operator.range_shape)])


def check_matched(operator: LinearOperator, method: str) -> None:
    """Raise unless the adjoint is the exact transpose."""
    if not operator.matched:
        raise ConfigurationError(
            f"{method} needs the exact transpose of the operator; the adjoint of {operator!r} is "
            "only an approximation. Use a matrix operator, or SIRT."
        )


def _check_ending(x: Tensor, shape: tuple[int, ...], name: str) -> None:
    check_shape(x, " ".join(["...", *map(str, shape)]), name=name)


def _check_finite(x: Tensor, name: str) -> None:
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise DataError(f"{bad} of {x.numel()} values of the {name} are NaN or infinite.")
