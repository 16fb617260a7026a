"""Pairs of network input and target: training images scanned as the target task scans."""

import math
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dipct.device import find_device
from dipct.errors import ConfigurationError, ShapeError
from dipct.operator.base import LinearOperator
from dipct.pretrain.drawing import Drawn, SampleDrawer, draw_ahead
from dipct.pretrain.images import TrainingImages
from dipct.pretrain.seeds import check_whole
from dipct.solver.batch import check_matched, per_element
from dipct.solver.image_scale import image_scale

NetworkInput = Literal["fbp", "noise", "both"]


@dataclass(frozen=True)
class PairSettings:
    """How images become pairs.

    Attributes:
        noise_level: standard deviation of the white noise, as a share of the mean absolute line
            integral of each image.
        input: what the network is fed with: the filtered back-projection, noise, or noise and
            the filtered back-projection as two channels.
        seed: of the noise.

    Raises:
        ConfigurationError: an impossible value.
    """

    noise_level: float = 0.05
    input: NetworkInput = "fbp"
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_whole(self.seed, "seed")
        if self.input not in get_args(NetworkInput):
            raise ConfigurationError(
                f"input must be one of {', '.join(get_args(NetworkInput))}; got {self.input!r}."
            )
        if not (math.isfinite(self.noise_level) and self.noise_level >= 0):
            raise ConfigurationError(
                "noise_level must be a share of the mean line integral, 0 or larger; got "
                f"{self.noise_level}."
            )


@dataclass(frozen=True)
class Pair:
    """A batch to train on, of order one.

    Images are divided by their scale, of :func:`dipct.solver.image_scale.image_scale`; noise is
    not.

    Attributes:
        inputs: what the network is fed with, [B C H W].
        targets: what it is to make of it, [B 1 H W].
        scales: what the images were divided by, [B].
    """

    inputs: Tensor
    targets: Tensor
    scales: Tensor


class TrainingPairs:
    """Pairs of network input and target for supervised pretraining, by index.

    Every image is scanned by the target task's own ray transform, with white noise, and brought
    to order one by a scale found from the noisy projections alone, as in a reconstruction. A
    batch is a function of its indices, so that training resumes exactly: indices, seed and fold
    decide every random number, and the same batch gives the same bits on one machine. A sample
    in a batch of another size may differ in rounding.

    Attributes:
        images: the training images.
        operator: the ray transform, on the device.
        filtered_back_projection: of the same scan; None for noise as input.
        settings: how images become pairs.
        device: where the pairs are made.
        workers: processes that draw images ahead of time; 0 draws them in this one.
    """

    def __init__(
        self,
        images: TrainingImages,
        operator: LinearOperator,
        filtered_back_projection: LinearOperator | None = None,
        *,
        noise_level: float = 0.05,
        input: NetworkInput = "fbp",
        seed: int = 0,
        device: torch.device | str | None = None,
        workers: int = 0,
    ) -> None:
        """Check that everything fits.

        Args:
            images: the training images.
            operator: the ray transform, with an exact adjoint.
            filtered_back_projection: of the same scan; not needed for noise as input.
            noise_level: see :class:`PairSettings`, as the next two.
            input: what the network is fed with.
            seed: of the noise.
            device: where to make the pairs; default: where the operator is.
            workers: processes that draw images ahead of time in :meth:`stream`. They are fresh
                ones: a script that asks for them needs the usual
                ``if __name__ == "__main__":``.

        Raises:
            ShapeError: images, operator and filtered back-projection that do not fit together.
            ConfigurationError: no filtered back-projection where one is needed, an operator
                without exact adjoint, or impossible settings.
            DeviceUnavailableError: no such device on this machine.
        """
        self.settings = PairSettings(noise_level, input, seed)
        check_whole(workers, "workers")
        check_matched(operator, "The scale of training pairs")
        if operator.domain_shape != images.grid.image_shape:
            raise ShapeError(
                f"{operator!r} takes images of shape {operator.domain_shape}; the training images "
                f"have {images.grid.image_shape}. Draw them on the grid of the scan."
            )
        self.filtered_back_projection = None
        if input != "noise":
            self.filtered_back_projection = _fitting(filtered_back_projection, operator)
        self.images, self.workers = images, int(workers)
        self.device = find_device(str(device or operator.device or "cpu"))
        self.operator = operator.to(self.device)
        self._drawer = SampleDrawer(
            images,
            operator.range_shape,
            seed=seed,
            network_noise=input != "fbp",
        )

    @property
    def channels(self) -> int:
        """Number of channels C of the network's input."""
        return 2 if self.settings.input == "both" else 1

    def batch(self, indices: Sequence[int]) -> Pair:
        """The pairs of some indices.

        Args:
            indices: 0 or larger, at least one, in any order.

        Returns:
            One pair for every index, in their order, in the operator's floating-point type.

        Raises:
            ConfigurationError: no index, or an impossible one.
        """
        if not len(indices):
            raise ConfigurationError("A batch needs at least one index; got none.")
        for index in indices:
            check_whole(index, "index")
        return self._pair(self._drawer.draw(indices))

    def stream(
        self, start: int, stop: int, batch: int, *, rank: int = 0, world: int = 1
    ) -> Generator[Pair, None, None]:
        """The batches of training steps, with the images drawn ahead of time.

        Step k has the indices from ``k * batch * world``; each rank takes the ``batch`` of them
        from ``rank * batch`` on, so that the ranks together train on the joint batch.

        The workers end with the generator: close it where a loop may be left early
        (``contextlib.closing``).

        Args:
            start: first step.
            stop: the step after the last one.
            batch: pairs of one rank in one step.
            rank: of this process.
            world: number of processes that train together.

        Returns:
            A generator of the batches of steps ``start`` to ``stop - 1``.

        Raises:
            ConfigurationError: impossible numbers.
        """
        check_whole(start, "start")
        check_whole(stop, "stop", least=start)
        check_whole(batch, "batch", least=1)
        check_whole(world, "world", least=1)
        check_whole(rank, "rank")
        if rank >= world:
            raise ConfigurationError(f"rank must be below world, {world}; got {rank}.")
        first = [(step * world + rank) * batch for step in range(start, stop)]
        return self._stream([range(index, index + batch) for index in first])

    def describe(self) -> dict[str, Any]:
        """What the pairs are, in plain values, for a checkpoint."""
        return {
            "images": self.images.describe(),
            **asdict(self.settings),
            "domain_shape": list(self.operator.domain_shape),
            "range_shape": list(self.operator.range_shape),
        }

    def _stream(self, batches: Sequence[Sequence[int]]) -> Generator[Pair, None, None]:
        drawn_ahead = draw_ahead(
            self._drawer, batches, workers=self.workers, pinned=self.device.type == "cuda"
        )
        try:
            for drawn in drawn_ahead:
                yield self._pair(drawn)
        finally:
            drawn_ahead.close()

    @torch.no_grad()
    def _pair(self, drawn: Drawn) -> Pair:
        dtype = self.operator.dtype or torch.float32
        images, noise, inputs = (
            part.to(device=self.device, dtype=dtype, non_blocking=True) for part in drawn
        )
        clean = self.operator(images)
        ndim = len(self.operator.range_shape)
        std = self.settings.noise_level * clean.abs().flatten(-ndim).mean(-1)
        projections = clean + per_element(std, clean, ndim) * noise
        scales = image_scale(self.operator, projections)
        divisors = per_element(scales, images, 3)
        if self.filtered_back_projection is not None:
            fbp = self.filtered_back_projection(projections) / divisors
            inputs = torch.cat([inputs, fbp], dim=1)
        return Pair(inputs, images / divisors, scales)


def _fitting(
    filtered_back_projection: LinearOperator | None, operator: LinearOperator
) -> LinearOperator:
    """The filtered back-projection if it maps back what the operator maps."""
    if filtered_back_projection is None:
        raise ConfigurationError(
            "There is no filtered back-projection to feed the network with; hand one over, or use "
            "input noise."
        )
    shapes = filtered_back_projection.range_shape, filtered_back_projection.domain_shape
    if shapes != (operator.domain_shape, operator.range_shape):
        raise ShapeError(
            f"{filtered_back_projection!r} does not map the projections of {operator!r} back to "
            "its images. Make both of one scan."
        )
    return filtered_back_projection
