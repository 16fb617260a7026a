"""Supervised training of a network, as a method of the one solver loop."""

import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, distributed

from dipct.errors import ConfigurationError, ShapeError
from dipct.evaluation import psnr
from dipct.generator import Network, ParameterLayout, Precision, apply_network
from dipct.pretrain.pairs import Pair, TrainingPairs
from dipct.pretrain.processes import place
from dipct.pretrain.seeds import check_whole
from dipct.solver import Adam, Method, OneCycle, Status

# The training loss is shown as an average over about so many steps.
_AVERAGED_STEPS = 50
_VALIDATED_AT_ONCE = 8


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained; the defaults are those of Barbano et al. (arXiv 2111.11926).

    Attributes:
        steps: how many.
        batch: pairs in a step, of all processes together.
        learning_rate: highest rate of the one-cycle schedule.
        weight_decay: of Adam.
        clip: longest gradient.
        validation_images: how many images the validation PSNR is the mean of.
        validate_every: steps between two validations.
        precision: of the network's arithmetic.

    Raises:
        ConfigurationError: impossible numbers.
    """

    steps: int = 4000
    batch: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 1e-5
    clip: float = 1.0
    validation_images: int = 32
    validate_every: int = 100
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Validate the fields that nothing else does."""
        for name in ("steps", "batch", "validation_images", "validate_every"):
            check_whole(getattr(self, name), name, least=1)


class SupervisedTraining(Method):
    """Minimise the mean squared difference of network images and targets, by Adam.

    The batch of a step is a function of the step's number, so that training resumes exactly.
    Where ``torch.distributed`` is initialised, every process takes its share of each batch and
    the gradients are averaged: the result is that of one process with the whole batch, up to
    rounding. The estimate is the parameter vector with the highest validation PSNR.

    Figures: ``training_loss`` (running mean), ``validation_psnr_db``, ``best_step``.

    Attributes:
        fbp_psnr_db: of the networks' inputs on the validation images; NaN where they are noise.

    Args:
        network: the architecture.
        training: pairs to train on.
        validation: pairs to validate on.
        settings: how.
        initial: first parameters, [P].

    Raises:
        ShapeError: parameters or pairs that do not fit the network.
        ConfigurationError: a batch that the processes cannot share, or impossible settings.
    """

    def __init__(
        self,
        network: Network,
        training: TrainingPairs,
        validation: TrainingPairs,
        settings: TrainingSettings,
        initial: Tensor,
    ) -> None:
        size = ParameterLayout(network.parameters).size
        if tuple(initial.shape) != (size,):
            raise ShapeError(
                f"The network has {size} parameters; the initial ones have shape "
                f"{tuple(initial.shape)}."
            )
        for pairs in (training, validation):
            if pairs.channels != network.in_channels:
                raise ShapeError(
                    f"The network takes {network.in_channels} channels, the pairs' inputs have "
                    f"{pairs.channels}."
                )
        self.network, self.training, self.validation = network, training, validation
        self.settings, self.fbp_psnr_db = settings, math.nan
        self._initial = initial.detach().to(training.device)
        self._rank, self._world = place()
        if settings.batch % self._world:
            raise ConfigurationError(
                f"A batch of {settings.batch} cannot be shared by {self._world} processes; use a "
                "multiple."
            )
        self._adam = Adam(
            settings.learning_rate,
            schedule=OneCycle(settings.steps),
            clip=settings.clip,
            weight_decay=settings.weight_decay,
        )
        self._batches: Generator[Pair, None, None] | None = None
        self._following = -1

    def start(self) -> dict[str, Tensor]:
        """See :meth:`Method.start`."""
        theta = self._initial
        quality, fbp = self._validate(theta)
        self.fbp_psnr_db = float(fbp)
        return {
            "theta": theta,
            "step": torch.tensor(0),
            "training_loss": torch.tensor(0.0, dtype=torch.float64),
            "validation_psnr_db": quality,
            "best": theta,
            "best_psnr_db": quality,
            "best_step": torch.tensor(0),
            **self._adam.start(theta),
        }

    def step(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Method.step`."""
        step = int(tensors["step"])
        pair = self._batch(step)
        theta = tensors["theta"].detach().requires_grad_()
        with torch.enable_grad():
            images = apply_network(
                self.network, theta, pair.inputs, precision=self.settings.precision
            )
            loss = (images - pair.targets).square().mean()
        (gradient,) = torch.autograd.grad(loss, theta)
        gradient, loss = self._mean(gradient), self._mean(loss.detach().double())
        theta, averages = self._adam.update(theta.detach(), tensors, gradient, step)
        weight = 1 / min(step + 1, _AVERAGED_STEPS)
        following = {
            **tensors,
            **averages,
            "theta": theta,
            "step": torch.tensor(step + 1),
            # On the host also after a checkpoint, which is read to the device.
            "training_loss": torch.lerp(tensors["training_loss"].cpu(), loss.cpu(), weight),
        }
        if (step + 1) % self.settings.validate_every == 0 or step + 1 == self.settings.steps:
            quality, _ = self._validate(theta)
            following["validation_psnr_db"] = quality
            if quality > tensors["best_psnr_db"]:
                following |= {
                    "best": theta,
                    "best_psnr_db": quality,
                    "best_step": torch.tensor(step + 1),
                }
        return following

    def estimate(self, tensors: dict[str, Tensor]) -> Tensor:
        """The parameters with the highest validation PSNR, [P]."""
        return tensors["best"]

    def figures(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Method.figures`."""
        return {name: tensors[name] for name in ("training_loss", "validation_psnr_db")} | {
            "best_step": tensors["best_step"]
        }

    def outcome(self, figures: dict[str, Tensor]) -> Status | None:
        """Training goes on to its last step."""
        return None

    def close(self) -> None:
        """End the processes that draw images."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _batch(self, step: int) -> Pair:
        if self._batches is None or self._following != step:
            self.close()
            self._batches = self.training.stream(
                step,
                self.settings.steps,
                self.settings.batch // self._world,
                rank=self._rank,
                world=self._world,
            )
        # Whatever interrupts the drawing, the next call opens the stream anew.
        self._following = -1
        pair = next(self._batches)
        self._following = step + 1
        return pair

    @torch.no_grad()
    def _validate(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean PSNR of the network's images and of its inputs, in dB."""
        indices = range(self.settings.validation_images)[self._rank :: self._world]
        total = torch.zeros(2, dtype=torch.float64)
        for start in range(0, len(indices), _VALIDATED_AT_ONCE):
            pair = self.validation.batch(indices[start : start + _VALIDATED_AT_ONCE])
            images = apply_network(
                self.network, theta, pair.inputs, precision=self.settings.precision
            )
            # The filtered back-projection is the last channel, and noise is none.
            last = pair.inputs[:, -1:]
            for i, given in enumerate((images, last)):
                total[i] += sum(_psnrs(given, pair.targets))
        total = self._mean(total.to(theta.device)).cpu() * self._world
        quality, fbp = total / self.settings.validation_images
        has_fbp = self.validation.settings.input != "noise"
        return quality, fbp if has_fbp else torch.tensor(math.nan)

    def _mean(self, value: Tensor) -> Tensor:
        if self._world == 1:
            return value
        distributed.all_reduce(value)
        return value / self._world


def _psnrs(images: Tensor, targets: Tensor) -> Iterable[float]:
    for image, target in zip(images.cpu().numpy(), targets.cpu().numpy(), strict=True):
        # Where training has diverged: a figure of the iteration, not an error.
        yield psnr(image[0], target[0]) if np.isfinite(image).all() else math.nan
