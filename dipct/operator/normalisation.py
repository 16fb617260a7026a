"""What classifiers expect of their images, done inside so that images stay from zero to one."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dipct.errors import ConfigurationError, ShapeError

Numbers = Sequence[float] | Tensor
"""One for each channel."""

NORMALISATIONS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]] | None] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": None,
}
"""Means and standard deviations by name; torchvision's weights expect those of ImageNet."""


class Normalised(nn.Module):
    """A classifier of ``(x - mean) / std`` as one of x.

    Names of its modules begin with ``model.``.

    Args:
        model: maps normalised images [N C H W] to logits [N K].
        mean: what is subtracted from each channel.
        std: what it is then divided by.

    Raises:
        ConfigurationError: not one finite number for each channel, a standard deviation that is
            not positive, or a model that is normalised already.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Numbers, std: Numbers) -> None:
        super().__init__()
        check_not_normalised(model)
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        mean, std = channel_numbers(mean, std, len(mean), like)
        self.model = model
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N K] of images [N C H W].

        Raises:
            ShapeError: images with other channels.
        """
        if x.ndim != 4 or x.shape[1] != len(self.mean):
            raise ShapeError(
                f"Images must be [N C H W] with the {len(self.mean)} channels that the "
                f"normalisation is of; got {tuple(x.shape)}."
            )
        return self.model((x - self.mean) / self.std)


def with_normalisation(model: nn.Module, name: str) -> nn.Module:
    """A classifier of images from zero to one.

    Args:
        model: the classifier of normalised images.
        name: of the normalisation: ``imagenet``, or ``none`` where the model takes images as they
            are, which gives the model itself.

    Raises:
        ConfigurationError: another name, or a model that is normalised already.
    """
    if name not in NORMALISATIONS:
        raise ConfigurationError(
            f"The normalisation must be {' or '.join(NORMALISATIONS)}; got {name!r}. For other "
            "numbers use Normalised with a mean and a standard deviation for each channel."
        )
    numbers = NORMALISATIONS[name]
    return model if numbers is None else Normalised(model, *numbers)


def check_not_normalised(model: nn.Module) -> None:
    """Raise a :class:`ConfigurationError` if a model normalises images already."""
    if any(isinstance(module, Normalised) for module in model.modules()):
        raise ConfigurationError(
            "The model normalises images already, and a second mean and standard deviation are "
            "given. Leave out one of the two."
        )


def channel_numbers(
    mean: Numbers | None, std: Numbers | None, channels: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as tensors that broadcast with images.

    Args:
        mean: one number for each channel; default: zero.
        std: likewise; default: one.
        channels: how many.
        like: of the wanted type, on the wanted device.

    Returns:
        Both as [C 1 1].

    Raises:
        ConfigurationError: not one finite number for each channel, or a standard deviation that
            is not positive.
    """
    found = []
    for name, given, default in (("mean", mean, 0.0), ("std", std, 1.0)):
        values = torch.as_tensor([default] * channels if given is None else given)
        values = values.detach().to(like.device, like.dtype).flatten()
        is_right = len(values) == channels and bool(torch.isfinite(values).all())
        if not is_right or (name == "std" and not bool((values > 0).all())):
            raise ConfigurationError(
                f"{name} must have one finite number for each of the {channels} channels"
                f"{', above zero' if name == 'std' else ''}; got {values.tolist()}."
            )
        found.append(values.reshape(-1, 1, 1))
    return found[0], found[1]
