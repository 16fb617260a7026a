"""Finite-difference gradient of images and volumes."""

import torch
from torch import Tensor

from dipct.errors import ShapeError
from dipct.operator.base import LinearOperator, apply_linear


class Gradient(LinearOperator):
    """Forward differences between neighbouring pixels, zero across the border.

    Component ``k`` of the range holds ``x[i + 1] - x[i]`` along the ``k``-th image axis, without
    division by the pixel size. ``norm()`` never exceeds ``sqrt(4 * ndim)``.

    Args:
        image_shape: ``(1, H, W)`` or ``(1, Z, H, W)``.

    Raises:
        ShapeError: not the shape of an image or volume with its channel axis.
    """

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        if len(image_shape) not in (3, 4) or image_shape[0] != 1:
            raise ShapeError(
                f"Gradient needs an image shape (1, H, W) or (1, Z, H, W); got {image_shape}."
            )
        self.domain_shape = tuple(image_shape)
        self.range_shape = (len(image_shape) - 1, *image_shape[1:])

    def _apply(self, x: Tensor) -> Tensor:
        return apply_linear(x, self._difference, self._divergence)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return apply_linear(y, self._divergence, self._difference)

    def _difference(self, x: Tensor) -> Tensor:
        ndim = self.range_shape[0]
        image = x.squeeze(-ndim - 1)
        out = image.new_zeros((*image.shape[:-ndim], *self.range_shape))
        for k in range(ndim):
            axis, n = k - ndim, image.shape[k - ndim]
            component = out.select(-ndim - 1, k)
            torch.sub(
                image.narrow(axis, 1, n - 1),
                image.narrow(axis, 0, n - 1),
                out=component.narrow(axis, 0, n - 1),
            )
        return out

    def _divergence(self, y: Tensor) -> Tensor:
        """The exact transpose: minus the backward-difference divergence."""
        ndim = self.range_shape[0]
        out = y.new_zeros((*y.shape[: -ndim - 1], *self.domain_shape[1:]))
        for k in range(ndim):
            axis, n = k - ndim, out.shape[k - ndim]
            inner = y.select(-ndim - 1, k).narrow(axis, 0, n - 1)
            out.narrow(axis, 1, n - 1).add_(inner)
            out.narrow(axis, 0, n - 1).sub_(inner)
        return out.unsqueeze(-ndim - 1)
