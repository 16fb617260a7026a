"""The image without a network: its pixels are the parameters."""

from abc import abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, DataError, DtypeError, ShapeError
from dipct.generator.base import Generator
from dipct.generator.parameters import Kind, Parameter
from dipct.generator.unet import Output
from dipct.operator.base import LinearOperator
from dipct.shapes import check_shape

_INITIAL_STD = 0.01
# Images at the very ends of (0, 1) get parameters of this size instead of infinite ones.
_SIGMOID_LIMIT = 15.0


class PixelImage(Generator):
    """A generator whose parameters are the pixels themselves, or their logits.

    The reference to compare networks with: it has no prior of its own. Like ``pathlib.Path``,
    calling the class makes one of its subclasses: with output ``identity`` a
    :class:`LinearPixelImage`, which is a linear operator, so that compositions with linear
    operators are linear; with ``sigmoid`` a :class:`SigmoidPixelImage`, for images in (0, 1).

    Block: ``pixels``.

    Args:
        image_shape: [C H W] or [1 Z H W].
        output: identity or sigmoid.

    Raises:
        ShapeError: another kind of shape.
        ConfigurationError: another output.
    """

    def __new__(cls, *_: Any, output: Output = "identity", **__: Any) -> Self:
        """Choose the subclass."""
        if cls is not PixelImage:
            return super().__new__(cls)
        return super().__new__(SigmoidPixelImage if output == "sigmoid" else LinearPixelImage)

    def __init__(self, image_shape: tuple[int, ...], *, output: Output = "identity") -> None:
        shape = tuple(image_shape)
        is_volume = len(shape) == 4
        if len(shape) not in (3, 4) or min(shape) < 1 or (is_volume and shape[0] != 1):
            raise ShapeError(f"image_shape must be (C, H, W) or (1, Z, H, W); got {shape}.")
        if output not in ("identity", "sigmoid"):
            raise ConfigurationError(f"output must be identity or sigmoid; got {output!r}.")
        self._set_spaces([Parameter("pixels.values", shape, "pixels", Kind.PIXELS)], shape)

    def initial(self, seed: int) -> Tensor:
        """Normal numbers of standard deviation 0.01: an image near 0, or near 0.5 for sigmoid.

        Not exactly constant, since total variation has no gradient there. Where a better start is
        known, such as a filtered back-projection, take its :meth:`parameters_of`.
        """
        generator = torch.Generator().manual_seed(seed)
        return _INITIAL_STD * torch.randn(self.n_parameters, generator=generator)

    def parameters_of(self, image: Tensor) -> Tensor:
        """The parameters that give an image.

        Args:
            image: [... *range_shape]; for sigmoid with values in [0, 1], of which those next to
                the ends are moved inwards by up to 3.1e-7.

        Returns:
            [... P].

        Raises:
            ShapeError: an image of another size.
            DtypeError: not a floating-point tensor.
            DataError: values that are not finite or, for sigmoid, outside [0, 1].
        """
        if not isinstance(image, Tensor) or not image.is_floating_point():
            kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise DtypeError(f"The image must be a floating-point tensor; got {kind}.")
        pattern = " ".join(["...", *map(str, self.range_shape)])
        check_shape(image, pattern, name=f"The image for {self!r}")
        if not bool(torch.isfinite(image).all()):
            raise DataError("The image has values that are not finite. Replace them first.")
        return self._inverse(image).flatten(-len(self.range_shape))

    @abstractmethod
    def _inverse(self, image: Tensor) -> Tensor:
        """Parameters in the shape of the image, [... *range_shape]."""

    def _reshaped(self, theta: Tensor) -> Tensor:
        return theta.unflatten(-1, self.range_shape)


class LinearPixelImage(PixelImage, LinearOperator):
    """The parameters in the shape of the image."""

    def _apply(self, theta: Tensor) -> Tensor:
        # A copy: an image that shares memory with the parameters would change with them.
        return self._reshaped(theta).clone()

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return y.clone().flatten(-len(self.range_shape))

    def _inverse(self, image: Tensor) -> Tensor:
        return image.clone()


class SigmoidPixelImage(PixelImage):
    """The sigmoid of the parameters in the shape of the image."""

    def _apply(self, theta: Tensor) -> Tensor:
        return torch.sigmoid(self._reshaped(theta))

    def _inverse(self, image: Tensor) -> Tensor:
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise DataError(
                "A sigmoid makes images in (0, 1); this one has values from "
                f"{float(image.min()):.6g} to {float(image.max()):.6g}. Scale or clip it first."
            )
        return torch.logit(image).clamp(-_SIGMOID_LIMIT, _SIGMOID_LIMIT)
