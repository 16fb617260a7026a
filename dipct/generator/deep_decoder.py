"""The deep decoder: an image prior with few parameters and no filters larger than a pixel."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.generator.network import Network
from dipct.generator.parameters import Kind, Parameter
from dipct.generator.unet import Output


class DeepDecoder(Network):
    """Deep decoder (Heckel & Hand, ICLR 2019, arXiv 1810.03982, section 2).

    A level mixes the channels of every pixel (1 x 1 convolution without bias), doubles the image
    by bilinear interpolation, and applies ReLU and a normalisation of each channel over its
    pixels with affine parameters; the last level keeps the size. One more mixture makes the
    image. With k channels and d levels these are ``d k^2 + 2 d k + k`` parameters for an image of
    one channel.

    The input is small: its sides are those of the image divided by ``2^(levels - 1)`` and rounded
    up. Where that leaves a remainder, a level whose doubled image is larger than needed drops its
    last row or column, so every level has the size of the image divided and rounded up.

    Blocks: ``level_1`` ... from coarse to fine, ``outc``.

    Args:
        channels: channels of the input and of every level.
        levels: number of levels, one more than there are doublings.
        out_channels: channels of the image.
        image_shape: rows and columns of the image; needed only if ``2^(levels - 1)`` does not
            divide them, since the input alone does not say how much is to be dropped.
        output: what follows the last convolution; a sigmoid as published.

    Raises:
        ConfigurationError: impossible channels, levels or output.
        ShapeError: ``image_shape`` is too small for the levels.
    """

    last_block = "outc"

    def __init__(
        self,
        channels: int = 128,
        levels: int = 6,
        *,
        out_channels: int = 1,
        image_shape: tuple[int, int] | None = None,
        output: Output = "sigmoid",
    ) -> None:
        if min(channels, levels, out_channels) < 1:
            raise ConfigurationError(
                "A deep decoder needs one channel, level and output channel or more; got "
                f"channels={channels}, levels={levels} and out_channels={out_channels}."
            )
        if output not in ("identity", "sigmoid"):
            raise ConfigurationError(f"output must be identity or sigmoid; got {output!r}.")
        self.in_channels, self.out_channels = channels, out_channels
        self.levels, self.output = levels, output
        self.image_shape = None if image_shape is None else tuple(image_shape)
        self.parameters = tuple(self._list_parameters())
        if image_shape is not None:
            self.input_shape(image_shape)

    def input_shape(self, image_shape: tuple[int, int]) -> tuple[int, int, int]:
        """See :meth:`Network.input_shape`: the size of the image divided and rounded up."""
        factor = 2 ** (self.levels - 1)
        size = f"{image_shape[0]} x {image_shape[1]}"
        if self.image_shape is not None and tuple(image_shape) != self.image_shape:
            raise ShapeError(
                f"This deep decoder was made for images of {self.image_shape[0]} x "
                f"{self.image_shape[1]} pixels; got {size}."
            )
        if self.image_shape is None and any(n % factor for n in image_shape):
            raise ShapeError(
                f"A deep decoder of {self.levels} levels needs to know images whose sides are not "
                f"multiples of {factor}; got {size}. Make it with "
                f"image_shape={tuple(image_shape)}."
            )
        rows, columns = self._level_shape(0, image_shape)
        # A single row could only be repeated, and the normalisation then removes it.
        if min(rows, columns) < 2:
            raise ShapeError(
                f"A deep decoder of {self.levels} levels needs images of at least {factor + 1} x "
                f"{factor + 1} pixels; got {size}. Use fewer levels."
            )
        return (self.in_channels, rows, columns)

    def __call__(self, parameters: Mapping[str, Tensor], z: Tensor) -> Tensor:
        """See :meth:`Network.__call__`."""
        x = z
        for i in range(1, self.levels + 1):
            x = F.conv2d(x, parameters[f"level_{i}.convolution_1.weight"])
            if i < self.levels:
                x = self._upsample(x, i)
            weight, bias = (
                parameters[f"level_{i}.normalisation_1.{part}"] for part in ("weight", "bias")
            )
            x = F.group_norm(F.relu(x), self.in_channels, weight, bias)
        weight = parameters["outc.convolution_1.weight"]
        x = F.conv2d(x.to(weight.dtype), weight)
        return torch.sigmoid(x) if self.output == "sigmoid" else x

    def _upsample(self, x: Tensor, level: int) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        if self.image_shape is None:
            return x
        rows, columns = self._level_shape(level, self.image_shape)
        return x[..., :rows, :columns]

    def _level_shape(self, level: int, image_shape: tuple[int, int]) -> tuple[int, int]:
        factor = 2 ** (self.levels - 1 - level)
        rows, columns = (-(-n // factor) for n in image_shape)
        return rows, columns

    def _list_parameters(self) -> list[Parameter]:
        k = self.in_channels
        found = []
        for i in range(1, self.levels + 1):
            block = f"level_{i}"
            found += [
                Parameter(f"{block}.convolution_1.weight", (k, k, 1, 1), block, Kind.CONVOLUTION),
                Parameter(f"{block}.normalisation_1.weight", (k,), block, Kind.NORMALISATION),
                Parameter(f"{block}.normalisation_1.bias", (k,), block, Kind.NORMALISATION),
            ]
        shape = (self.out_channels, k, 1, 1)
        return [*found, Parameter("outc.convolution_1.weight", shape, "outc", Kind.CONVOLUTION)]
