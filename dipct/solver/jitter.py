"""Fitting under jitter: the image is seen a few pixels away from where it is."""

from dataclasses import replace

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.generator.pixels import PixelImage
from dipct.shapes import check_shape
from dipct.solver.loss import Evaluation, GeneratorLoss
from dipct.solver.optimiser import Optimiser

_SEEDS_APART = 1_000_003


class Jittered(Optimiser):
    """Another optimiser that sees the loss of an image moved at random, elsewhere in every step.

    The image is moved along its rows and columns, what leaves it at one side coming in at the
    other, and the gradient is moved back: patterns that are bound to the strides of a classifier
    average out (Mordvintsev, Olah & Tyka, Inceptionism, 2015, and its published notebook; Yin et
    al., CVPR 2020). All elements of a batch are moved alike.

    The values that a selection judges are those of the image where it is, for which every step
    takes one more forward pass. Terms that compare the image with a query pixel by pixel see the
    moved image beside a query that has not moved: leave them out, or give them little weight.

    Args:
        inner: makes the steps, from the gradient alone, such as Adam.
        shape: of the image, whose flat pixels or logits the parameters are, [C H W] or [1 Z H W].
        pixels: by which the image is moved at most along each axis.
        seed: of the movements.

    Raises:
        ConfigurationError: pixels that are not whole numbers of at least one.
        ShapeError: another kind of shape.
    """

    def __init__(self, inner: Optimiser, shape: tuple[int, ...], pixels: int, *, seed: int) -> None:
        if not isinstance(pixels, int) or isinstance(pixels, bool) or pixels < 1:
            raise ConfigurationError(
                f"pixels must be a whole number of at least 1; got {pixels!r}. Without jitter take "
                "the inner optimiser itself."
            )
        self._inner, self._reach, self._seed = inner, pixels, seed
        self._pixels = PixelImage(shape)

    def check(self, theta: Tensor) -> None:
        """See :meth:`Optimiser.check`."""
        check_shape(theta, "... P", name="The parameters", P=self._pixels.n_parameters)
        self._inner.check(theta)

    def start(self, theta: Tensor) -> dict[str, Tensor]:
        """See :meth:`Optimiser.start`."""
        return self._inner.start(theta)

    def evaluate(self, theta: Tensor, loss: GeneratorLoss, step: int) -> Evaluation:
        """See :meth:`Optimiser.evaluate`: only the gradient is that of the moved image."""
        shift = self._shift(step)
        moved = self._inner.evaluate(self._moved(theta, shift), loss, step)
        assert moved.gradient is not None
        back = self._moved(moved.gradient, [-pixels for pixels in shift])
        return replace(loss.evaluate(theta), gradient=back)

    def step(
        self,
        theta: Tensor,
        memory: dict[str, Tensor],
        here: Evaluation,
        loss: GeneratorLoss,
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`Optimiser.step`."""
        return self._inner.step(theta, memory, here, loss, step)

    def _shift(self, step: int) -> list[int]:
        # A function of the step alone, so that a fit can be resumed.
        random = torch.Generator().manual_seed(self._seed + _SEEDS_APART * (step + 1))
        axes = len(self._pixels.range_shape) - 1
        return torch.randint(-self._reach, self._reach + 1, (axes,), generator=random).tolist()

    def _moved(self, theta: Tensor, shift: list[int]) -> Tensor:
        image = theta.unflatten(-1, self._pixels.range_shape)
        axes = tuple(range(-len(shift), 0))
        return torch.roll(image, shift, axes).flatten(-len(self._pixels.range_shape))
