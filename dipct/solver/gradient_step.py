"""Plain steps along a gradient in pixel space: its signs in a box, or its smoothed pattern."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.generator.pixels import PixelImage
from dipct.shapes import check_shape
from dipct.solver.loss import Evaluation, GeneratorLoss
from dipct.solver.optimiser import Optimiser


@dataclass(frozen=True, eq=False)
class ProjectedSignStep(Optimiser):
    """Projected gradient descent in the maximum norm, for adversarial images.

    ``theta - learning_rate sign(gradient)``, moved to the nearest point within ``radius`` of
    ``centre`` and within the bounds (Madry et al., ICLR 2018, section 2.1). The parameters are
    pixels, as in :class:`dipct.generator.LinearPixelImage`.

    Attributes:
        learning_rate: by which every pixel moves in one step.
        radius: by which a pixel differs from the centre at most.
        centre: parameters of the query, [... P], as many as are fitted.
        bounds: least and largest value of a pixel.
    """

    learning_rate: float
    radius: float
    centre: Tensor
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf or not 0 < self.radius < math.inf:
            raise ConfigurationError(
                "learning_rate and radius must be positive and finite; got "
                f"{self.learning_rate} and {self.radius}."
            )
        low, high = self.bounds
        if not low < high:
            raise ConfigurationError(
                f"bounds must be a lower and a higher value; got {low}, {high}."
            )
        if not bool(((self.centre >= low) & (self.centre <= high)).all()):
            raise ConfigurationError(
                f"centre must lie within the bounds, {low} to {high}; it has values from "
                f"{float(self.centre.min()):.6g} to {float(self.centre.max()):.6g}. Scale or clip "
                "the query, or give its bounds."
            )

    def check(self, theta: Tensor) -> None:
        """See :meth:`Optimiser.check`: the first parameters are in the ball and the bounds."""
        pattern = " ".join(map(str, theta.shape))
        check_shape(self.centre, pattern, name="The centre of the projected steps")
        if not torch.equal(self.project(theta), theta):
            raise ConfigurationError(
                f"The first parameters must lie within {self.radius} of the centre and within the "
                "bounds, since they may be the result. Begin at the centre, or project them with "
                "the method project."
            )

    def start(self, theta: Tensor) -> dict[str, Tensor]:
        """Nothing is remembered; see :meth:`Optimiser.start`."""
        return {}

    def step(
        self,
        theta: Tensor,
        memory: dict[str, Tensor],
        here: Evaluation,
        loss: GeneratorLoss,
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`Optimiser.step`."""
        gradient = here.gradient
        assert gradient is not None
        # The sign of NaN is zero in torch: a fit that has diverged would look settled.
        signs = torch.where(gradient.isnan(), gradient, gradient.sign())
        return self.project(theta - self.learning_rate * signs), {}

    def project(self, theta: Tensor) -> Tensor:
        """The nearest parameters in the ball and the bounds.

        Args:
            theta: [... P].

        Returns:
            [... P].
        """
        centre, (low, high) = self.centre.to(theta), self.bounds
        least = (centre - self.radius).clamp(min=low)
        return theta.clamp(least, (centre + self.radius).clamp(max=high))


class NormalisedStep(Optimiser):
    """Gradient descent with steps of one size: minus the ascent of Deep Dream.

    The gradient of every element of a batch is divided by its mean absolute value (Mordvintsev,
    Olah & Tyka, Inceptionism, 2015, and its published notebook). With several ``scales`` it is
    smoothed by a Gaussian of each width, each result is divided by its own mean absolute value,
    and their mean is taken: coarse patterns then grow as fast as fine ones, for which Deep Dream
    resizes the image. A gradient of zero makes no step. Nothing keeps pixels within a range: for
    that take their logits, as in :class:`dipct.generator.SigmoidPixelImage`.

    Args:
        learning_rate: mean change of a parameter in a step with one scale.
        shape: of the image, whose flat pixels or logits the parameters are, [C H W] or [1 Z H W].
        scales: standard deviations of the Gaussians [pixels]; zero takes the gradient as it is.

    Raises:
        ConfigurationError: a learning rate that is not positive, or no scales, or negative ones.
        ShapeError: another kind of shape.
    """

    def __init__(
        self, learning_rate: float, shape: tuple[int, ...], *, scales: Sequence[float] = (0.0,)
    ) -> None:
        if not 0 < learning_rate < math.inf:
            raise ConfigurationError(
                f"learning_rate must be positive and finite; got {learning_rate}."
            )
        if not scales or not all(0 <= width < math.inf for width in scales):
            raise ConfigurationError(
                f"scales must be one or more widths, zero or larger and finite; got {list(scales)}."
            )
        self.learning_rate, self.scales = learning_rate, tuple(scales)
        self._pixels = PixelImage(shape)
        self._smoothing = [self._matrices(width) for width in self.scales]

    def check(self, theta: Tensor) -> None:
        """See :meth:`Optimiser.check`."""
        check_shape(theta, "... P", name="The parameters", P=self._pixels.n_parameters)

    def start(self, theta: Tensor) -> dict[str, Tensor]:
        """Nothing is remembered; see :meth:`Optimiser.start`."""
        return {}

    def step(
        self,
        theta: Tensor,
        memory: dict[str, Tensor],
        here: Evaluation,
        loss: GeneratorLoss,
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`Optimiser.step`."""
        assert here.gradient is not None
        return theta - self.learning_rate * self.direction(here.gradient), {}

    def direction(self, gradient: Tensor) -> Tensor:
        """The gradient, smoothed and of unit size.

        Args:
            gradient: [... P].

        Returns:
            [... P].
        """
        found = [_of_unit_size(self._smoothed(gradient, each)) for each in self._smoothing]
        return torch.stack(found).mean(0)

    def _matrices(self, width: float) -> list[Tensor]:
        """The Gaussian along each axis of the image, [side side]; none for width zero."""
        if width == 0:
            return []
        return [
            torch.from_numpy(ndimage.gaussian_filter1d(np.eye(side), width, 0, mode="nearest"))
            for side in self._pixels.range_shape[1:]
        ]

    def _smoothed(self, gradient: Tensor, matrices: list[Tensor]) -> Tensor:
        image = gradient.unflatten(-1, self._pixels.range_shape)
        for axis, matrix in enumerate(matrices, -len(matrices)):
            image = (image.movedim(axis, -1) @ matrix.T.to(image)).movedim(-1, axis)
        return image.flatten(-len(self._pixels.range_shape))


def _of_unit_size(gradient: Tensor) -> Tensor:
    """Divided by the mean absolute value of each element of the batch, where it is not zero."""
    size = gradient.abs().mean(-1, keepdim=True)
    return gradient / torch.where(size == 0, 1.0, size)
