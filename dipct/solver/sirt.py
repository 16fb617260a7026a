"""Simultaneous iterative reconstruction technique."""

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.operator.base import LinearOperator
from dipct.solver.batch import check_projections, initial_image, norm, ratio
from dipct.solver.iteration import Method
from dipct.solver.solution import Status


class SIRT(Method):
    """``x <- x + relaxation C A^T R (y - A x)``, then negative pixels to zero.

    R and C hold one over the row and column sums of A (Gregor & Benson, IEEE Trans. Med. Imaging
    27, 2008); without the constraint the iteration minimises ``(y - A x)^T R (y - A x)``. Rays
    that meet no pixel and pixels that meet no ray are left out.

    Figures: ``relative_residual`` ``|A x - y| / |y|`` and ``relative_update``, the size of the
    last step over that of the image, by which the iteration stops.

    Args:
        operator: A, with nonnegative entries.
        projections: y, [... *range_shape].
        nonnegative: whether attenuation is kept at or above 0.
        relaxation: between 0 and 2.
        initial: first image, [... *domain_shape]; default zero.
        tolerance: of ``relative_update``.

    Raises:
        ShapeError: shapes that do not fit.
        DataError: values that are not finite.
        ConfigurationError: an operator with negative row or column sums, or a relaxation
            outside (0, 2).
    """

    def __init__(
        self,
        operator: LinearOperator,
        projections: Tensor,
        nonnegative: bool = True,
        relaxation: float = 1.0,
        initial: Tensor | None = None,
        *,
        tolerance: float = 1e-5,
    ) -> None:
        if not 0 < relaxation < 2:
            raise ConfigurationError(
                f"SIRT converges for a relaxation between 0 and 2; got {relaxation}."
            )
        self.operator = operator
        self.projections = check_projections(operator, projections)
        self.initial = initial_image(operator, projections, initial)
        self.nonnegative, self.relaxation, self.tolerance = nonnegative, relaxation, tolerance
        self._image_ndim, self._ndim = len(operator.domain_shape), len(operator.range_shape)
        self._data_norm = norm(self.projections, self._ndim)
        row_sums = operator(projections.new_ones(operator.domain_shape))
        column_sums = operator.adjoint(projections.new_ones(operator.range_shape))
        if bool((row_sums < 0).any() or (column_sums < 0).any()):
            raise ConfigurationError(
                f"SIRT needs an operator with nonnegative entries; {operator!r} has negative row "
                "or column sums. Use CGLS."
            )
        self._row_weights = ratio(torch.ones_like(row_sums), row_sums)
        self._column_weights = relaxation * ratio(torch.ones_like(column_sums), column_sums)

    def start(self) -> dict[str, Tensor]:
        """See :meth:`Method.start`."""
        image = self.initial.clamp(min=0) if self.nonnegative else self.initial
        return {
            "image": image,
            "residual": self.projections - self.operator(image),
            "relative_update": torch.ones_like(self._data_norm),
        }

    def step(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Method.step`."""
        back = self.operator.adjoint(self._row_weights * tensors["residual"])
        image = torch.addcmul(tensors["image"], self._column_weights, back)
        if self.nonnegative:
            image = image.clamp_(min=0)
        change = norm(image - tensors["image"], self._image_ndim)
        return {
            "image": image,
            "residual": self.projections - self.operator(image),
            "relative_update": ratio(change, norm(image, self._image_ndim)),
        }

    def estimate(self, tensors: dict[str, Tensor]) -> Tensor:
        """See :meth:`Method.estimate`."""
        return tensors["image"]

    def figures(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Method.figures`."""
        return {
            "relative_residual": ratio(norm(tensors["residual"], self._ndim), self._data_norm),
            "relative_update": tensors["relative_update"],
        }

    def outcome(self, figures: dict[str, Tensor]) -> Status | None:
        """See :meth:`Method.outcome`."""
        converged = bool((figures["relative_update"] <= self.tolerance).all())
        return Status.CONVERGED if converged else None
