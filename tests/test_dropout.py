"""Dropout of channels, and fitting under it."""

import pytest
import torch

from dipct.errors import ConfigurationError
from dipct.generator import NetworkGenerator, UNet, channel_dropout
from dipct.objective import DataTerm, GaussianFidelity, Objective
from dipct.operator import Identity
from dipct.solver import Adam, DropoutOptimiser, GeneratorFit, LastIterate, iterate

F64 = torch.float64


@pytest.fixture(scope="module")
def generator():
    z = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    return NetworkGenerator(UNet((4, 4), (0, 2), normalisation=False), z, (8, 8))


def draw(generator, rate, number=1, seed=0):
    return channel_dropout(generator.layout, rate, number, torch.Generator().manual_seed(seed))


class Dropping(UNet):
    """The same network with channels dropped where they are made."""

    factors: dict

    def __call__(self, parameters, z):
        from dipct.generator import unet

        class Layers(unet._Layers):
            def convolve(layers, block, number, x, *, stride=1):
                made = super().convolve(block, number, x, stride=stride)
                kept = self.factors.get(f"{block}.convolution_{number}.bias")
                return made if kept is None else made * kept[None, :, None, None]

        original, unet._Layers = unet._Layers, Layers
        try:
            return super().__call__(parameters, z)
        finally:
            unet._Layers = original


def test_scaled_parameters_drop_channels(generator):
    theta = generator.initial(1)
    factors = draw(generator, 0.5)[0]
    network = Dropping((4, 4), (0, 2), normalisation=False)
    named = generator.layout.split(factors)
    network.factors = {
        name: values
        for name, values in named.items()
        if name.endswith("bias") and not name.startswith(("skip", "outc"))
    }
    assert any((values == 0).any() for values in network.factors.values())
    dropping = NetworkGenerator(network, generator.z, (8, 8))
    assert torch.allclose(generator(theta * factors), dropping(theta), atol=1e-6)
    assert not torch.allclose(generator(theta), dropping(theta), atol=1e-3)


def test_factors_have_mean_one_and_share_a_channel(generator):
    factors = draw(generator, 0.2, number=4000)
    dropped = generator.layout.split(factors)["up_1.convolution_2.weight"]
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert torch.equal(dropped, dropped[:, :, :1, :1, :1].expand_as(dropped))
    assert abs(float(dropped[:, :, 0, 0, 0].mean()) - 1) < 0.02
    named = generator.layout.split(factors)
    assert torch.equal(named["up_1.convolution_2.bias"], dropped[:, :, 0, 0, 0])
    assert (named["outc.convolution_1.weight"] == 1).all()
    assert (draw(generator, 0.0) == 1).all()


def fit(generator, rate, steps=60, seed=0, state=None):
    target = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(5))
    objective = Objective([(1.0, DataTerm(Identity((1, 8, 8)), GaussianFidelity(target, 0.1)))])
    optimiser = DropoutOptimiser(Adam(1e-2), generator.layout, rate, seed=seed)
    method = GeneratorFit(
        generator, objective, generator.initial(2), optimiser=optimiser, selection=LastIterate()
    )
    return iterate(method, max_iterations=steps, state=state)


def test_fitting_under_dropout_improves_the_images_with_channels_dropped(generator):
    target = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(5))
    factors = draw(generator, 0.2, number=30, seed=9)

    def error(theta):
        return float((generator(theta * factors) - target).square().mean())

    under = fit(generator, 0.2, steps=150).state.tensors["chosen"]
    without = fit(generator, 0.0, steps=150).state.tensors["chosen"]
    assert error(under) < error(without)


def test_without_dropout_nothing_changes(generator):
    plain = GeneratorFit(
        generator,
        Objective(
            [
                (
                    1.0,
                    DataTerm(
                        Identity((1, 8, 8)),
                        GaussianFidelity(
                            torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(5)), 0.1
                        ),
                    ),
                )
            ]
        ),
        generator.initial(2),
        optimiser=Adam(1e-2),
        selection=LastIterate(),
    )
    assert torch.equal(iterate(plain, max_iterations=60).value, fit(generator, 0.0).value)


def test_it_is_resumed_to_the_same_bits(generator):
    whole, half = fit(generator, 0.3), fit(generator, 0.3, steps=30)
    rest = fit(generator, 0.3, state=half.state)
    assert torch.equal(whole.value, rest.value)
    assert not torch.equal(whole.value, fit(generator, 0.3, seed=1).value)


def test_wrong_rates_and_networks_are_refused(generator):
    for rate in (-0.1, 1.0, 2.0):
        with pytest.raises(ConfigurationError, match="rate"):
            draw(generator, rate)
        with pytest.raises(ConfigurationError, match="rate"):
            DropoutOptimiser(Adam(1e-2), generator.layout, rate, seed=0)
    from dipct.generator import DeepDecoder

    decoder = DeepDecoder(4, 2)
    layout = NetworkGenerator(decoder, torch.zeros(decoder.input_shape((8, 8))), (8, 8)).layout
    with pytest.raises(ConfigurationError, match="no convolutions larger"):
        channel_dropout(layout, 0.1, 1, torch.Generator())
