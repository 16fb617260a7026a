"""A generator whose images differ from a given one in a region only."""

import torch
from torch import Tensor

from dipct.errors import ShapeError
from dipct.generator.base import Generator


class RegionGenerator(Generator):
    """``theta -> image + region * (G(theta) - image)``.

    Outside the region its images are those given, to the bit, whatever the parameters.

    Args:
        generator: G.
        image: what stays, [*batch C H W].
        region: where the image may differ, true or false, [H W] or [*batch H W].

    Raises:
        ShapeError: an image or a region that do not fit the generator, or a region that is empty.
    """

    def __init__(self, generator: Generator, image: Tensor, region: Tensor) -> None:
        shape = generator.range_shape
        if tuple(image.shape[-len(shape) :]) != shape:
            raise ShapeError(
                f"The image must be [... {' '.join(map(str, shape))}], as those of the generator; "
                f"got {tuple(image.shape)}."
            )
        is_right = region.dtype == torch.bool and tuple(region.shape[-2:]) == shape[-2:]
        if not is_right or not bool(region.any()):
            raise ShapeError(
                f"The region must hold true or false for each of {shape[-2]} x {shape[-1]} pixels "
                f"and be true somewhere; got {tuple(region.shape)} of {region.dtype}."
            )
        self.generator, self._image, self._region = generator, image, region.unsqueeze(-3)
        self.layout = generator.layout
        self.domain_shape, self.range_shape = generator.domain_shape, shape

    def initial(self, seed: int) -> Tensor:
        """See :meth:`Generator.initial`."""
        return self.generator.initial(seed)

    def _apply(self, theta: Tensor) -> Tensor:
        made = self.generator(theta)
        return torch.where(self._region.to(made.device), made, self._image.to(made))
