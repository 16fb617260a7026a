"""The U-Net of the Deep Image Prior in tomography."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.generator.group_norm import group_norm
from dipct.generator.network import Network
from dipct.generator.parameters import Kind, Parameter

Output = Literal["identity", "sigmoid"]
Upsampling = Literal["bilinear", "nearest"]

_SLOPE = 0.2
# Beyond this the sigmoid is flat in single precision, and a gradient would never come back.
_SIGMOID_LIMIT = 15.0
_IN_GROUPS, _DOWN_GROUPS, _UP_GROUPS = 2, 4, 2


class UNet(Network):
    """U-Net with strided down-sampling and interpolating up-sampling.

    The architecture of Baguer, Leuschner & Schmidt (Inverse Problems 36, 2020) and Barbano et
    al. (arXiv 2111.11926): every scale halves the image by a strided convolution, the way back
    doubles it by interpolation and joins a narrow skip connection of the same size. A scale
    without skip connection still joins one channel of zeros (which normalisation then shifts)
    and keeps the parameters of its connection, unused, as the published networks do.

    Blocks: ``inc``, ``down_1`` ... from fine to coarse, ``skip_1``, ``up_1`` ... from coarse to
    fine, ``outc``.

    Args:
        channels: channels of each scale, from the finest.
        skip_channels: channels of the skip connection of each scale, taken from the end: the
            last entries belong to the coarsest scales that have one; the first is never used.
        in_channels: channels of the input.
        out_channels: channels of the image.
        normalisation: whether group normalisation follows every convolution but the last.
        output: what follows the last convolution.
        ceiling: largest value of a sigmoid.
        upsampling: interpolation; ``nearest`` also has a deterministic gradient on GPUs.

    Raises:
        ConfigurationError: impossible channels or ceiling.
    """

    last_block = "outc"

    def __init__(
        self,
        channels: Sequence[int],
        skip_channels: Sequence[int],
        *,
        in_channels: int = 1,
        out_channels: int = 1,
        normalisation: bool = True,
        output: Output = "identity",
        ceiling: float = 1.0,
        upsampling: Upsampling = "bilinear",
    ) -> None:
        if len(channels) < 1 or len(skip_channels) != len(channels):
            raise ConfigurationError(
                "A U-Net needs channels and skip_channels for the same scales, at least one; got "
                f"{tuple(channels)} and {tuple(skip_channels)}."
            )
        groups = _DOWN_GROUPS if normalisation else 1
        if (
            min(in_channels, out_channels) < 1
            or min(skip_channels) < 0
            or any(c < 1 or c % groups for c in channels)
        ):
            raise ConfigurationError(
                f"Channels must be multiples of {groups}, skip channels zero or more, input "
                f"and output channels one or more; got {tuple(channels)}, {tuple(skip_channels)}, "
                f"{in_channels} and {out_channels}."
            )
        if output not in ("identity", "sigmoid") or upsampling not in ("bilinear", "nearest"):
            raise ConfigurationError(
                "output must be identity or sigmoid, upsampling bilinear or nearest; got "
                f"{output!r} and {upsampling!r}."
            )
        if not 0 < ceiling < math.inf:
            raise ConfigurationError(f"ceiling must be positive and finite; got {ceiling}.")
        self.ceiling = ceiling
        self.channels, self.skip_channels = tuple(channels), tuple(skip_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.normalisation = normalisation
        self.output, self.upsampling = output, upsampling
        self.parameters = tuple(self._list_parameters())

    @property
    def scales(self) -> int:
        """Number of scales."""
        return len(self.channels)

    @property
    def encoder_blocks(self) -> tuple[str, ...]:
        """Blocks on the way from fine to coarse."""
        return ("inc", *(f"down_{i}" for i in range(1, self.scales)))

    def input_shape(self, image_shape: tuple[int, int]) -> tuple[int, int, int]:
        """See :meth:`Network.input_shape`: the size of the image."""
        smallest = 2 ** (self.scales - 1)
        # On a single coarsest pixel a group of one channel has nothing to be normalised by.
        if (
            self.normalisation
            and self.channels[-1] == _DOWN_GROUPS
            and max(image_shape) <= smallest
        ):
            smallest += 1
        if min(image_shape) < smallest:
            raise ShapeError(
                f"A U-Net of {self.scales} scales needs images of at least {smallest} x {smallest} "
                f"pixels; got {image_shape[0]} x {image_shape[1]}. Use a smaller network."
            )
        return (self.in_channels, *image_shape)

    def _list_parameters(self) -> list[Parameter]:
        channels = self.channels
        found = self._layer("inc", 1, self.in_channels, channels[0])
        for i in range(1, self.scales):
            found += self._layer(f"down_{i}", 1, channels[i - 1], channels[i])
            found += self._layer(f"down_{i}", 2, channels[i], channels[i])
        for i in range(1, self.scales):
            fine, coarse = channels[-1 - i], channels[-i]
            joined = max(self.skip_channels[-i], 1)
            skip = self._layer(f"skip_{i}", 1, fine, joined, kernel=1)
            found += [replace(p, used=self.skip_channels[-i] > 0) for p in skip]
            if self.normalisation:
                found += _norm(f"up_{i}", "normalisation_0", coarse + joined)
            found += self._layer(f"up_{i}", 1, coarse + joined, fine)
            found += self._layer(f"up_{i}", 2, fine, fine)
        return found + _convolution("outc", "convolution_1", channels[0], self.out_channels, 1)

    def _layer(
        self, block: str, number: int, inputs: int, outputs: int, kernel: int = 3
    ) -> list[Parameter]:
        found = _convolution(block, f"convolution_{number}", inputs, outputs, kernel)
        return found + (_norm(block, f"normalisation_{number}", outputs) * self.normalisation)

    def __call__(self, parameters: Mapping[str, Tensor], z: Tensor) -> Tensor:
        """See :meth:`Network.__call__`."""
        layers = _Layers(parameters, self.normalisation)
        x = layers("inc", 1, z, groups=_IN_GROUPS)
        passed = [x]
        for i in range(1, self.scales):
            x = layers(f"down_{i}", 1, x, groups=_DOWN_GROUPS, stride=2)
            x = layers(f"down_{i}", 2, x, groups=_DOWN_GROUPS)
            passed.append(x)
        for i in range(1, self.scales):
            fine = passed[-1 - i]
            x = self._upsample(x, tuple(fine.shape[-2:]))
            x = torch.cat([x, self._skip(layers, i, fine)], dim=1)
            x = layers.normalise(f"up_{i}", 0, x, groups=1)
            x = layers(f"up_{i}", 1, x, groups=_UP_GROUPS)
            x = layers(f"up_{i}", 2, x, groups=_UP_GROUPS)
        x = layers.convolve("outc", 1, x)
        if self.output == "sigmoid":
            x = self.ceiling * torch.sigmoid(x.clamp(-_SIGMOID_LIMIT, _SIGMOID_LIMIT))
        return x

    def _upsample(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        align = True if self.upsampling == "bilinear" else None
        x = F.interpolate(x, scale_factor=2, mode=self.upsampling, align_corners=align)
        if x.dtype == torch.bfloat16 and x.requires_grad:
            # The gradient comes as a part of that of the joined channels; the interpolation's own
            # is several times faster for one that is whole in memory.
            x.register_hook(lambda g: g.contiguous(memory_format=torch.channels_last))
        # Odd sizes: twice the coarse size is one more than the fine one.
        return x[..., : size[0], : size[1]]

    def _skip(self, layers: "_Layers", i: int, fine: Tensor) -> Tensor:
        if self.skip_channels[-i] == 0:
            return torch.zeros_like(fine[:, :1])
        return layers(f"skip_{i}", 1, fine, groups=1)


class _Layers:
    """Layers of a network applied by the name of their block and their number in it."""

    def __init__(self, parameters: Mapping[str, Tensor], normalisation: bool) -> None:
        self._parameters, self._normalisation = parameters, normalisation

    def __call__(
        self, block: str, number: int, x: Tensor, *, groups: int, stride: int = 1
    ) -> Tensor:
        """Convolution, normalisation, leaky ReLU."""
        x = self.convolve(block, number, x, stride=stride)
        return F.leaky_relu(self.normalise(block, number, x, groups=groups), _SLOPE)

    def convolve(self, block: str, number: int, x: Tensor, *, stride: int = 1) -> Tensor:
        name = f"{block}.convolution_{number}"
        weight, bias = self._parameters[f"{name}.weight"], self._parameters[f"{name}.bias"]
        if x.dtype != weight.dtype:
            # The exact 1 x 1 mixture at the end of a reduced network, for which torch has no fast
            # convolution in channels-last memory.
            pixels = x.permute(0, 2, 3, 1).to(weight.dtype)
            return (pixels @ weight[..., 0, 0].T + bias).permute(0, 3, 1, 2)
        padding = weight.shape[-1] // 2
        return F.conv2d(x, weight, bias, stride=stride, padding=padding)

    def normalise(self, block: str, number: int, x: Tensor, *, groups: int) -> Tensor:
        if not self._normalisation:
            return x
        name = f"{block}.normalisation_{number}"
        weight, bias = self._parameters[f"{name}.weight"], self._parameters[f"{name}.bias"]
        return group_norm(x, groups, weight, bias)


def _convolution(block: str, layer: str, inputs: int, outputs: int, kernel: int) -> list[Parameter]:
    shape = (outputs, inputs, kernel, kernel)
    return [
        Parameter(f"{block}.{layer}.weight", shape, block, Kind.CONVOLUTION),
        Parameter(f"{block}.{layer}.bias", (outputs,), block, Kind.BIAS),
    ]


def _norm(block: str, layer: str, channels: int) -> list[Parameter]:
    return [
        Parameter(f"{block}.{layer}.{part}", (channels,), block, Kind.NORMALISATION)
        for part in ("weight", "bias")
    ]
