"""Dropout of channels, as a random scaling of the parameters that make them."""

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.generator.parameters import Kind, ParameterLayout


def channel_dropout(
    layout: ParameterLayout, rate: float, number: int, generator: torch.Generator
) -> Tensor:
    """Factors of the parameters that drop whole channels of convolutions.

    A channel behind a convolution is linear in its filters and its bias: dropping it with
    probability ``rate``, and dividing it by ``1 - rate`` otherwise, is the same as doing that to
    them (Tompson et al., CVPR 2015, for dropping channels). Convolutions of 1 x 1 are left alone.

    Args:
        layout: of the parameters.
        rate: probability of dropping a channel.
        number: of independent draws.
        generator: of random numbers, on the device where the factors shall be.

    Returns:
        float32, [number P].

    Raises:
        ConfigurationError: a rate outside [0, 1), or a network without larger convolutions.
    """
    if not 0 <= rate < 1:
        raise ConfigurationError(f"rate must be in [0, 1); got {rate}.")
    device, parts = generator.device, []
    kept: dict[str, Tensor] = {}
    for parameter in layout.parameters:
        layer = parameter.name.rpartition(".")[0]
        if parameter.kind is Kind.CONVOLUTION and max(parameter.shape[2:]) > 1:
            draw = torch.rand(number, parameter.shape[0], generator=generator, device=device)
            kept[layer] = (draw >= rate) / (1 - rate)
        of_channels = kept.get(layer)
        if of_channels is None:
            parts.append(torch.ones(number, parameter.size, device=device))
            continue
        each = parameter.size // parameter.shape[0]
        parts.append(of_channels.repeat_interleave(each, dim=1))
    if not kept:
        raise ConfigurationError(
            "This network has no convolutions larger than 1 x 1, whose channels could be dropped."
        )
    return torch.cat(parts, dim=1)
