"""Operators of the classical image problems: denoising, inpainting and super-resolution."""

import numpy as np
import torch
from torch import Tensor

from dipct.errors import ConfigurationError, DtypeError, ShapeError
from dipct.operator.base import LinearOperator, apply_linear


class Identity(LinearOperator):
    """The image itself: its data are a noisy image (denoising).

    Args:
        image_shape: ``(1, H, W)`` or ``(1, Z, H, W)``.

    Raises:
        ShapeError: not the shape of an image or volume with its channel axis.
    """

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        self.domain_shape = self.range_shape = _checked("Identity", image_shape)

    def _apply(self, x: Tensor) -> Tensor:
        # A copy: data that share memory with the image would change with it.
        return x.clone()

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return y.clone()


class Mask(LinearOperator):
    """The known pixels of an image, as a vector in row-major order (inpainting).

    Unknown pixels are left out and not set to zero, so that a data term counts the values that
    were measured and no others. ``A.adjoint(y)`` is the image with zeros in their place.

    Args:
        known: True where a pixel is known, boolean, ``[1 H W]`` or ``[1 Z H W]``.

    Raises:
        DtypeError: a mask that is not boolean.
        ShapeError: not the shape of an image or volume with its channel axis.
        ConfigurationError: no pixel is known.
    """

    def __init__(self, known: np.ndarray | Tensor) -> None:
        mask = torch.as_tensor(known)
        if mask.dtype != torch.bool:
            raise DtypeError(
                f"Mask needs booleans, True where a pixel is known; got {mask.dtype}. "
                "Compare first, e.g. mask > 0."
            )
        self.domain_shape = _checked("Mask", tuple(mask.shape))
        self._known = mask.flatten().nonzero().squeeze(-1)
        if self._known.numel() == 0:
            raise ConfigurationError(
                "The mask knows no pixel. It must be True where pixels are known; invert it with "
                "~mask if it marks the missing ones."
            )
        self.range_shape = (self._known.numel(),)

    def _apply(self, x: Tensor) -> Tensor:
        return apply_linear(x, self._take, self._put)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return apply_linear(y, self._put, self._take)

    def _take(self, x: Tensor) -> Tensor:
        return x.flatten(-len(self.domain_shape)).index_select(-1, self._known)

    def _put(self, y: Tensor) -> Tensor:
        n_pixels = int(torch.Size(self.domain_shape).numel())
        out = y.new_zeros((*y.shape[:-1], n_pixels))
        return out.index_copy_(-1, self._known, y).unflatten(-1, self.domain_shape)


class PixelAverage(LinearOperator):
    """Means over squares or cubes of pixels: a coarse image of a fine one (super-resolution).

    ``norm()`` is ``factor ** (-ndim / 2)``.

    Args:
        image_shape: of the fine image, ``(1, H, W)`` or ``(1, Z, H, W)``.
        factor: pixels along each side of a square or cube.

    Raises:
        ShapeError: not the shape of an image or volume with its channel axis, or sizes that are
            not multiples of the factor.
        ConfigurationError: a factor that is not a positive whole number.
    """

    def __init__(self, image_shape: tuple[int, ...], factor: int) -> None:
        shape = _checked("PixelAverage", image_shape)
        if isinstance(factor, bool) or not isinstance(factor, int | np.integer) or factor < 1:
            raise ConfigurationError(
                f"factor must be a whole number of pixels, 1 or more; got {factor!r}."
            )
        if any(n % factor for n in shape[1:]):
            raise ShapeError(
                f"PixelAverage divides an image into squares of {factor} pixels, but the sizes "
                f"{shape[1:]} are not multiples of {factor}. Crop or pad the image first."
            )
        self.factor = int(factor)
        self.domain_shape = shape
        self.range_shape = (1, *(n // self.factor for n in shape[1:]))

    def _apply(self, x: Tensor) -> Tensor:
        return apply_linear(x, self._average, self._spread)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return apply_linear(y, self._spread, self._average)

    def _average(self, x: Tensor) -> Tensor:
        ndim = len(self.range_shape) - 1
        blocks = [size for n in self.range_shape[1:] for size in (n, self.factor)]
        split = x.reshape(*x.shape[:-ndim], *blocks)
        return split.mean(dim=tuple(range(-2 * ndim + 1, 0, 2)))

    def _spread(self, y: Tensor) -> Tensor:
        ndim = len(self.range_shape) - 1
        out = y / self.factor**ndim
        for axis in range(-ndim, 0):
            out = out.repeat_interleave(self.factor, dim=axis)
        return out


def _checked(name: str, image_shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(image_shape)
    if len(shape) not in (3, 4) or shape[0] != 1 or min(shape) < 1:
        raise ShapeError(
            f"{name} needs an image shape (1, H, W) or (1, Z, H, W); got {shape}. The first axis "
            "is the channel axis."
        )
    return shape
