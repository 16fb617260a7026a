"""Implicit networks: the image as a function of where a pixel is."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.generator.network import Network
from dipct.generator.parameters import Kind, Parameter
from dipct.generator.unet import Output

# Of the frequencies [cycles per image], where the image has pixels enough for them.
_FREQUENCY_STD = 10.0
# Beyond half the sampling rate of the image frequencies fold back: four standard deviations.
_PIXELS_PER_STD = 8.0


class ImplicitNetwork(Network):
    """A perceptron with sines, applied to the Fourier features of every pixel's position.

    Sitzmann et al. (NeurIPS 2020, arXiv 2006.09661) on the features of Tancik et al. (NeurIPS 2020,
    arXiv 2006.10739), see :func:`fourier_features`. The features already oscillate, so that the
    first layer has no large factor on its frequencies: with it a fresh network is white noise.

    Blocks: ``layer_1`` ... from the features on, ``outc``.

    Args:
        features: length of the feature vector of a pixel.
        width: of every layer.
        layers: number of layers with sines.
        out_channels: channels of the image.
        frequency: factor of what goes into the sines after the first layer.
        output: what follows the last layer.

    Raises:
        ConfigurationError: numbers that are not positive, or another output.
    """

    last_block = "outc"

    def __init__(
        self,
        features: int = 512,
        width: int = 256,
        layers: int = 4,
        *,
        out_channels: int = 1,
        frequency: float = 1.0,
        output: Output = "sigmoid",
    ) -> None:
        if min(features, width, layers, out_channels) < 1 or not 0 < frequency < math.inf:
            raise ConfigurationError(
                "features, width, layers and out_channels must be one or more and the frequency "
                f"positive; got {features}, {width}, {layers}, {out_channels} and {frequency}."
            )
        if output not in ("identity", "sigmoid"):
            raise ConfigurationError(f"output must be identity or sigmoid; got {output!r}.")
        self.in_channels, self.width, self.layers = features, width, layers
        self.out_channels, self.frequency, self.output = out_channels, frequency, output
        sizes = [features, *[width] * layers]
        found = []
        for i in range(1, layers + 1):
            found += _linear(f"layer_{i}", sizes[i - 1], sizes[i])
        self.parameters = (*found, *_linear(self.last_block, width, out_channels))

    def input_shape(self, image_shape: tuple[int, int]) -> tuple[int, int, int]:
        """See :meth:`Network.input_shape`: the features of every pixel."""
        return (self.in_channels, *image_shape)

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Weights that leave what goes into every sine with a variance of about one.

        Uniform in ``±sqrt(6 / n) / frequency`` for n inputs (Sitzmann et al., section 3.2); biases
        in ``±1 / sqrt(n)``.
        """
        random = torch.Generator().manual_seed(seed)
        values: dict[str, Tensor] = {}
        inputs = 1
        for parameter in self.parameters:
            if parameter.kind is Kind.CONVOLUTION:
                inputs = parameter.shape[1]
                after_sines = parameter.block != "layer_1"
                bound = math.sqrt(6 / inputs) / (self.frequency if after_sines else 1.0)
            else:
                bound = 1 / math.sqrt(inputs)
            draw = torch.rand(parameter.shape, generator=random)
            values[parameter.name] = bound * (2 * draw - 1)
        return values

    def __call__(self, parameters: Mapping[str, Tensor], z: Tensor) -> Tensor:
        """See :meth:`Network.__call__`."""
        x = z.flatten(2)
        for i in range(1, self.layers + 1):
            x = _apply(parameters, f"layer_{i}", x)
            x = torch.sin(x if i == 1 else self.frequency * x)
        x = _apply(parameters, self.last_block, x).unflatten(2, z.shape[2:])
        return torch.sigmoid(x) if self.output == "sigmoid" else x


def fourier_features(
    image_shape: tuple[int, int],
    *,
    frequencies: int = 256,
    std: float | None = None,
    seed: int = 0,
) -> Tensor:
    """Cosines and sines of random frequencies at the centre of every pixel.

    ``cos(2 pi b^T v), sin(2 pi b^T v)`` with positions v in the unit square and ``b ~ N(0,
    std^2)`` (Tancik et al., arXiv 2006.10739, section 6).

    Args:
        image_shape: rows and columns.
        frequencies: how many.
        std: of both components of a frequency [cycles per image]; default: 10, as of Tancik et
            al. and Thiagarajan et al. (arXiv 2109.14274: variance 100), or an eighth of the
            pixels of the shorter side if that is less: higher frequencies would fold back.
        seed: of the frequencies.

    Returns:
        float32 [2 * frequencies, H, W].

    Raises:
        ConfigurationError: no pixel, no frequency, or a deviation that is not positive.
    """
    if std is None:
        std = min(_FREQUENCY_STD, min(image_shape) / _PIXELS_PER_STD)
    if min(*image_shape, frequencies) < 1 or not 0 < std < math.inf:
        raise ConfigurationError(
            "Fourier features need pixels, frequencies and a positive std; got "
            f"{tuple(image_shape)}, {frequencies} and {std}."
        )
    random = torch.Generator().manual_seed(seed)
    b = std * torch.randn(frequencies, 2, generator=random, dtype=torch.float64)
    axes = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in image_shape]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    phase = 2 * math.pi * torch.einsum("fk,khw->fhw", b, positions)
    return torch.cat([phase.cos(), phase.sin()]).float()


def _linear(block: str, inputs: int, outputs: int) -> list[Parameter]:
    """A layer on the features of every pixel: a convolution of its size."""
    shape = (outputs, inputs, 1, 1)
    return [
        Parameter(f"{block}.convolution_1.weight", shape, block, Kind.CONVOLUTION),
        Parameter(f"{block}.convolution_1.bias", (outputs,), block, Kind.BIAS),
    ]


def _apply(parameters: Mapping[str, Tensor], block: str, x: Tensor) -> Tensor:
    """A layer on the features of every pixel, [N C pixels]."""
    weight, bias = (parameters[f"{block}.convolution_1.{part}"] for part in ("weight", "bias"))
    # A product of matrices is faster than a convolution of one pixel.
    matrices = weight.flatten(1).expand(len(x), -1, -1)
    return torch.baddbmm(bias[:, None], matrices, x.to(weight.dtype))
