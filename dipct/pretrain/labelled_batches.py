"""Batches of labelled images, changed at random, as a function of the step."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.pretrain.seeds import check_whole

_SEEDS_APART = 1_000_003


@dataclass(frozen=True)
class LabelledTrainingSettings:
    """What every training on labelled images is told.

    Attributes:
        steps: how many.
        batch: images in a step.
        learning_rate: highest rate of the one-cycle schedule of Adam.
        weight_decay: of Adam.
        flip: mirror images at random from left to right.
        shift: move images at random by up to so many pixels.
        noise: add Gaussian noise of a standard deviation drawn from zero to this one for each
            image.
        seed: of batches and of what is random in them.

    Raises:
        ConfigurationError: impossible values.
    """

    steps: int = 1000
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    flip: bool = True
    shift: int = 2
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        check_whole(self.steps, "steps", least=1)
        check_whole(self.batch, "batch", least=2)
        check_whole(self.shift, "shift", least=0)
        check_whole(self.seed, "seed", least=0)
        if not 0 <= self.noise < math.inf:
            raise ConfigurationError(f"noise must be zero or more; got {self.noise}.")


class LabelledBatches:
    """Batches of one pass over all images after another, each pass in an order of its own.

    Args:
        images: from zero to one, [N C H W].
        labels: classes, int64 [N].
        settings: how many in a batch, and how they are changed.

    Raises:
        ShapeError: not one label for each image.
        ConfigurationError: fewer images than a batch.
    """

    def __init__(self, images: Tensor, labels: Tensor, settings: LabelledTrainingSettings) -> None:
        if images.ndim != 4 or labels.shape != images.shape[:1]:
            raise ShapeError(
                "Training takes images [N C H W] with one label each; got "
                f"{tuple(images.shape)} and {tuple(labels.shape)}."
            )
        if len(images) < settings.batch:
            raise ConfigurationError(
                f"{len(images)} images are fewer than a batch of {settings.batch}."
            )
        self.images, self.labels, self.settings = images, labels, settings

    def check_classes(self, classes: int) -> None:
        """Raise a :class:`ConfigurationError` unless all labels are among so many classes."""
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= classes:
            raise ConfigurationError(
                f"Labels must be classes from 0 to {classes - 1}; got "
                f"{int(self.labels.min())} to {int(self.labels.max())}."
            )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images [B C H W] and labels [B] of a step."""
        number, batch, settings = len(self.images), self.settings.batch, self.settings
        per_pass = number // batch
        random = torch.Generator().manual_seed(settings.seed + _SEEDS_APART * (step // per_pass))
        order = torch.randperm(number, generator=random)
        chosen = order[(step % per_pass) * batch :][:batch].to(self.images.device)
        random.manual_seed(settings.seed + _SEEDS_APART * (step + 1) + 1)
        images = self.images[chosen]
        if settings.flip:
            mirrored = torch.rand(batch, generator=random).to(images.device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        if settings.shift:
            images = _shifted(images, settings.shift, random)
        if settings.noise:
            stds = settings.noise * torch.rand(batch, 1, 1, 1, generator=random)
            images = images + (stds * torch.randn(images.shape, generator=random)).to(images)
        return images, self.labels[chosen]


def _shifted(images: Tensor, most: int, random: torch.Generator) -> Tensor:
    """Each image moved by whole pixels, its border repeated."""
    number, _, height, width = images.shape
    moves = torch.randint(-most, most + 1, (number, 2, 1), generator=random).to(images.device)
    rows = (torch.arange(height, device=images.device) + moves[:, 0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + moves[:, 1]).clamp(0, width - 1)
    which = torch.arange(number, device=images.device)[:, None, None]
    # Indices apart from a slice put the channels last.
    return images[which, :, rows[:, :, None], columns[:, None]].movedim(-1, 1)
