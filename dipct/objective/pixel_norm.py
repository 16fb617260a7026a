"""How far the pixels of an image are from grey: the norms that keep values small."""

import math

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.objective.objective import Term
from dipct.shapes import check_shape


class PixelNorm(Term):
    """Mean over all pixels and channels of ``|x - centre|^exponent``.

    With exponent two the l2 prior that Deep Dream and DeepInversion have beside total variation
    (Yin et al., CVPR 2020, eq. 3), around grey instead of black; with a larger one, six in
    Mahendran & Vedaldi (CVPR 2015), the alpha-norm that only keeps pixels from leaving their
    range. A mean and not a sum, so that a weight means the same for every size of image.

    Args:
        image_shape: [C H W] or [1 Z H W].
        exponent: alpha, one or more.
        centre: grey: a number, or one for each channel, [C].

    Raises:
        ShapeError: another kind of shape, or a centre that does not fit the channels.
        ConfigurationError: an exponent below one, or a centre that is not finite.
    """

    name = "pixel norm"

    def __init__(
        self, image_shape: tuple[int, ...], *, exponent: float = 2.0, centre: float | Tensor = 0.5
    ) -> None:
        if len(image_shape) not in (3, 4) or (len(image_shape) == 4 and image_shape[0] != 1):
            raise ShapeError(
                f"The pixel norm needs a shape (C, H, W) or (1, Z, H, W); got {image_shape}."
            )
        if not 1 <= exponent < math.inf:
            raise ConfigurationError(f"exponent must be finite and 1 or more; got {exponent}.")
        grey = torch.as_tensor(centre)
        if grey.ndim > 0:
            check_shape(grey, "C", name="The centre", C=image_shape[0])
            grey = grey.reshape(-1, *(1,) * (len(image_shape) - 1))
        if not bool(torch.isfinite(grey).all()):
            raise ConfigurationError(f"centre must be finite; got {centre}.")
        self._image_shape, self._centre, self.exponent = tuple(image_shape), grey, exponent

    def value(self, image: Tensor) -> Tensor:
        """See :meth:`Term.value`."""
        check_shape(image, " ".join(["...", *map(str, self._image_shape)]), name="The image")
        distances = (image - self._centre.to(image)).abs()
        return distances.pow(self.exponent).flatten(-len(self._image_shape)).mean(-1)
