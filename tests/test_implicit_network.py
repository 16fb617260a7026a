"""Images as functions of the position, and networks that make colours."""

import math

import pytest
import torch

from dipct.errors import ConfigurationError, ShapeError
from dipct.generator import (
    DeepDecoder,
    ImplicitNetwork,
    NetworkGenerator,
    PixelImage,
    UNet,
    fourier_features,
)
from dipct.objective import Objective, Term, TotalVariation, total_variation
from dipct.solver import Adam, GeneratorFit, LowestObjective, iterate


def test_fourier_features_are_cosines_and_sines_at_the_centres_of_pixels():
    features = fourier_features((4, 6), frequencies=3, std=1.0, seed=5)
    assert features.shape == (6, 4, 6)
    assert torch.allclose(features[:3].square() + features[3:].square(), torch.ones(3, 4, 6))
    b = torch.randn(3, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    phase = 2 * math.pi * (b[:, 0] * 2.5 / 4 + b[:, 1] * 0.5 / 6)
    assert torch.allclose(features[:3, 2, 0].double(), phase.cos(), atol=1e-6)
    assert torch.allclose(features[3:, 2, 0].double(), phase.sin(), atol=1e-6)


def spread(image_shape, **settings):
    """Standard deviation of the frequencies, from the change between neighbouring pixels."""
    features = fourier_features(image_shape, frequencies=1000, **settings).double()
    angle = torch.atan2(features[1000:], features[:1000])
    step = torch.remainder(angle[:, 0, 1] - angle[:, 0, 0] + math.pi, 2 * math.pi) - math.pi
    return float(step.std()) * image_shape[1] / (2 * math.pi)


def test_small_images_get_frequencies_that_they_can_hold():
    assert spread((96, 96)) == pytest.approx(10.0, rel=0.1)
    assert spread((32, 32)) == pytest.approx(4.0, rel=0.1)
    assert spread((32, 32), std=2.0) == pytest.approx(2.0, rel=0.1)


def test_a_fresh_network_neither_fades_nor_saturates():
    network = ImplicitNetwork(512, 256, 5, output="identity")
    values, x = network.initial(3), fourier_features((16, 16))[None]
    for i in range(1, 6):
        weight, bias = (values[f"layer_{i}.convolution_1.{p}"] for p in ("weight", "bias"))
        x = torch.nn.functional.conv2d(x, weight, bias)
        assert 0.7 < float(x.std()) < 1.4
        x = torch.sin(x)


class Squares(Term):
    name = "squares"

    def __init__(self, wanted):
        self.wanted, self.size = wanted, wanted.numel()

    def value(self, image):
        return (image - self.wanted).square().flatten(-3).sum(-1)


def test_it_can_make_an_image_in_colours():
    shape = (24, 24)
    rows, columns = torch.meshgrid(*[torch.arange(24.0)] * 2, indexing="ij")
    disc = ((rows - 10).square() + (columns - 14).square() < 40).float()
    wanted = torch.stack([0.2 + 0.6 * disc, rows / 30, 0.5 + 0.3 * torch.sin(columns)])
    network = ImplicitNetwork(128, 64, 3, out_channels=3)
    generator = NetworkGenerator(network, fourier_features(shape, frequencies=64), shape)
    assert generator.range_shape == (3, 24, 24)
    fit = GeneratorFit(
        generator,
        Objective([(1.0, Squares(wanted))]),
        generator.initial(0),
        optimiser=Adam(1e-3),
        selection=LowestObjective(),
    )
    found = iterate(fit, max_iterations=300, every=100).value
    assert -10 * math.log10(float((found - wanted).square().mean())) > 30


@pytest.mark.parametrize(
    ("network", "z", "shape"),
    [
        (UNet((4, 4), (0, 1), out_channels=3), (1, 6, 5), (6, 5)),
        (DeepDecoder(4, 2, out_channels=3), (4, 3, 4), (6, 8)),
        (ImplicitNetwork(6, 5, 2, out_channels=3), (6, 4, 4), (4, 4)),
    ],
)
def test_networks_make_colours(network, z, shape):
    generator = NetworkGenerator(network, torch.randn(z), shape)
    image = generator(generator.initial(0))
    assert image.shape == (3, *shape)
    assert not torch.equal(image[0], image[1])
    assert generator(generator.initial(0).repeat(2, 1)).shape == (2, 3, *shape)


def test_total_variation_of_colours_is_of_all_channels_together():
    image = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    down = torch.zeros_like(image)
    right = torch.zeros_like(image)
    down[..., :-1, :] = image.diff(dim=-2)
    right[..., :-1] = image.diff(dim=-1)
    joint = (down.square() + right.square()).sum(1).sqrt().sum((1, 2))
    assert torch.allclose(total_variation(image, isotropic=True), joint)
    assert torch.allclose(TotalVariation((3, 5, 6), isotropic=True).value(image), joint)
    absolute = (down.abs() + right.abs()).sum((1, 2, 3))
    assert torch.allclose(total_variation(image), absolute)
    # One grey image in three channels varies in the same places.
    grey = image[:, :1].expand(-1, 3, -1, -1)
    one = total_variation(image[:, :1], isotropic=True)
    assert torch.allclose(total_variation(grey, isotropic=True), 3**0.5 * one)
    with pytest.raises(ShapeError):
        TotalVariation((3, 5, 6)).value(image[:, :2])


def test_pixels_in_colours():
    generator = PixelImage((3, 4, 5), output="sigmoid")
    image = torch.rand(3, 4, 5)
    assert torch.allclose(generator(generator.parameters_of(image)), image, atol=1e-6)


def test_wrong_settings_are_refused():
    for wrong in ({"width": 0}, {"frequency": 0.0}, {"out_channels": 0}):
        with pytest.raises(ConfigurationError, match="one or more"):
            ImplicitNetwork(**wrong)
    with pytest.raises(ConfigurationError, match="output must be"):
        ImplicitNetwork(output="tanh")
    with pytest.raises(ConfigurationError, match="positive std"):
        fourier_features((4, 4), std=0.0)
    with pytest.raises(ConfigurationError, match="output channel"):
        DeepDecoder(4, 2, out_channels=0)
    with pytest.raises(ConfigurationError, match="output channels one or more"):
        UNet((4,), (0,), out_channels=0)
