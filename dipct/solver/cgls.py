"""Conjugate gradients for least squares."""

import torch
from torch import Tensor

from dipct.operator.base import LinearOperator
from dipct.solver.batch import (
    check_matched,
    check_projections,
    initial_image,
    inner,
    norm,
    per_element,
    ratio,
)
from dipct.solver.iteration import Method
from dipct.solver.solution import Status


class CGLS(Method):
    """Minimise ``|A x - y|^2`` by conjugate gradients on the normal equations.

    The recursion keeps the residual ``y - A x`` and never forms ``A^T A`` (Bjorck, Numerical
    Methods for Least Squares Problems, SIAM 1996, algorithm 7.4.1). Early iterates are smooth:
    the number of iterations regularises. Batch elements have their own step sizes and stand
    still once they have converged.

    Figures: ``relative_residual`` ``|A x - y| / |y|`` and ``normal_residual``
    ``|A^T (A x - y)| / |A^T y|``, by which the iteration stops.

    Args:
        operator: A, with an exact adjoint.
        projections: y, [... *range_shape].
        initial: first image, [... *domain_shape]; default zero.
        tolerance: of ``normal_residual``.

    Raises:
        ShapeError: shapes that do not fit.
        DataError: values that are not finite.
        ConfigurationError: an operator without exact adjoint.
    """

    def __init__(
        self,
        operator: LinearOperator,
        projections: Tensor,
        initial: Tensor | None = None,
        *,
        tolerance: float = 1e-6,
    ) -> None:
        check_matched(operator, "CGLS")
        self.operator = operator
        self.projections = check_projections(operator, projections)
        self.initial = initial_image(operator, projections, initial)
        self.tolerance = tolerance
        self._image_ndim, self._ndim = len(operator.domain_shape), len(operator.range_shape)
        self._data_norm = norm(self.projections, self._ndim)
        self._gradient_norm = norm(operator.adjoint(self.projections), self._image_ndim)

    def start(self) -> dict[str, Tensor]:
        """See :meth:`Method.start`."""
        residual = self.projections - self.operator(self.initial)
        gradient = self.operator.adjoint(residual)
        return {
            "image": self.initial,
            "residual": residual,
            "direction": gradient,
            "squared_gradient": inner(gradient, gradient, self._image_ndim),
        }

    def step(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Method.step`."""
        direction, squared = tensors["direction"], tensors["squared_gradient"]
        active = squared.sqrt() > self.tolerance * self._gradient_norm
        projected = self.operator(direction)
        length = ratio(squared, inner(projected, projected, self._ndim))
        length = torch.where(active, length, 0.0)
        image = tensors["image"] + per_element(length, direction, self._image_ndim) * direction
        residual = tensors["residual"] - per_element(length, projected, self._ndim) * projected
        gradient = self.operator.adjoint(residual)
        new_squared = torch.where(active, inner(gradient, gradient, self._image_ndim), squared)
        weight = per_element(ratio(new_squared, squared), direction, self._image_ndim)
        return {
            "image": image,
            "residual": residual,
            "direction": gradient + weight * direction,
            "squared_gradient": new_squared,
        }

    def estimate(self, tensors: dict[str, Tensor]) -> Tensor:
        """See :meth:`Method.estimate`."""
        return tensors["image"]

    def figures(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Method.figures`."""
        return {
            "relative_residual": ratio(norm(tensors["residual"], self._ndim), self._data_norm),
            "normal_residual": ratio(tensors["squared_gradient"].sqrt(), self._gradient_norm),
        }

    def outcome(self, figures: dict[str, Tensor]) -> Status | None:
        """See :meth:`Method.outcome`."""
        converged = bool((figures["normal_residual"] <= self.tolerance).all())
        return Status.CONVERGED if converged else None
