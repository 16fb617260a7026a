"""The generator of an inversion, and its fit to a query."""

import torch
from torch import Tensor

from dipct.generator import (
    Batching,
    DeepDecoder,
    Generator,
    ImplicitNetwork,
    NetworkGenerator,
    PixelImage,
    UNet,
    fourier_features,
)
from dipct.inversion_settings import InversionSettings
from dipct.objective import ImageFidelity, Objective
from dipct.solver import Adam, GeneratorFit, LowestObjective

# A U-Net of four steps down and up (arXiv 2010.12046, section 4, which does not say how wide), with
# fewer where images are small: the coarsest image has at least so many pixels along a side.
_CHANNELS = (16, 32, 32, 32, 32)
_SKIP_CHANNELS = 16
_INPUT_CHANNELS = 32
_COARSEST = 4
# On a CPU small convolutions wait for calls as well, but those of large images for memory.
_PIXELS_TOGETHER = 64 * 64
_LAYERS = 4
_DECODER_LEVELS = 4


def query_generator(
    settings: InversionSettings,
    image_shape: tuple[int, ...],
    *,
    pixel_output: str = "sigmoid",
) -> Generator:
    """A generator of images from zero to one.

    Args:
        settings: which, and the seed of its input.
        image_shape: [C H W].
        pixel_output: of the generator pixels: identity where the optimiser keeps to the box.

    Raises:
        ShapeError: images that are too small for the network.
    """
    channels, height, width = image_shape
    plane = (height, width)
    random = torch.Generator().manual_seed(settings.seed)
    if settings.generator == "pixels":
        return PixelImage(image_shape, output=pixel_output)
    # Networks this small keep a GPU waiting for calls.
    batching: Batching = "vmap" if settings.device.startswith("cuda") else "loop"
    if settings.generator == "inr":
        features = fourier_features(
            plane,
            frequencies=2 * settings.width,
            std=settings.frequency_std,
            seed=settings.seed,
        )
        implicit = ImplicitNetwork(len(features), settings.width, _LAYERS, out_channels=channels)
        return NetworkGenerator(implicit, features, plane, batching=batching)
    if settings.generator == "deep-decoder":
        decoder = DeepDecoder(
            settings.width, _DECODER_LEVELS, out_channels=channels, image_shape=plane
        )
        z = torch.rand(decoder.input_shape(plane), generator=random)
        return NetworkGenerator(decoder, z, plane, batching=batching)
    scales = len(_CHANNELS)
    while scales > 2 and min(plane) < _COARSEST * 2 ** (scales - 1):
        scales -= 1
    unet = UNet(
        _CHANNELS[:scales],
        (0, *(_SKIP_CHANNELS for _ in range(scales - 1))),
        in_channels=_INPUT_CHANNELS,
        out_channels=channels,
        output="sigmoid",
    )
    # Uniform in [-1, 1] (arXiv 2109.14274, section 4).
    z = 2 * torch.rand(unet.input_shape(plane), generator=random) - 1
    if height * width <= _PIXELS_TOGETHER:
        batching = "vmap"
    return NetworkGenerator(unet, z, plane, batching=batching)


def fit_to_queries(
    generator: Generator, queries: Tensor, initial: Tensor, *, learning_rate: float
) -> GeneratorFit:
    """The fit that makes a generator show the queries.

    Args:
        generator: as of :func:`query_generator`.
        queries: [B C H W].
        initial: first parameters, [B P].
        learning_rate: of Adam.
    """
    return GeneratorFit(
        generator,
        Objective([(1.0, ImageFidelity(queries, distance="mean-square"))]),
        initial,
        optimiser=Adam(learning_rate),
        selection=LowestObjective(),
        loss_scale=1.0,
    )
