"""Generators: their parameters, their images next to networks written another way, derivatives."""

import itertools

import numpy as np
import pytest
import torch
from catalogue import F32, F64, network_generator, one_thread  # noqa: F401
from scipy import stats
from torch import nn

from dipct.errors import (
    ConfigurationError,
    DataError,
    DeviceUnavailableError,
    DtypeError,
    ShapeError,
)
from dipct.generator import (
    NETWORKS,
    DeepDecoder,
    Kind,
    NetworkGenerator,
    Parameter,
    ParameterLayout,
    PixelImage,
    UNet,
    has_bfloat16,
    make_network,
)
from dipct.operator import Gradient, LinearOperator
from dipct.operator.checks import derivative_mismatch

# Torch itself still uses what it deprecates, on the first forward-mode derivative in a process.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

CPU = torch.device("cpu")
needs_bfloat16 = pytest.mark.skipif(
    not has_bfloat16(CPU), reason="this CPU has no bfloat16 instructions"
)

SMALL_NETWORKS = {
    "no normalisation": (
        UNet((4, 4), (0, 2), normalisation=False, output="sigmoid"),
        (9, 8),
    ),
    "normalisation": (UNet((4, 8, 4), (0, 0, 4)), (9, 11)),
    "two inputs": (UNet((4, 8), (0, 2), in_channels=2, upsampling="nearest"), (8, 7)),
    "deep decoder": (DeepDecoder(6, 3, image_shape=(9, 11)), (9, 11)),
}
every_network = pytest.mark.parametrize(
    ("network", "shape"), SMALL_NETWORKS.values(), ids=SMALL_NETWORKS
)


def random(shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def parameters_near_initial(generator, seed=0, dtype=F64, batch=()):
    """Initial parameters that are moved, so that no normalisation is the identity."""
    moved = 0.1 * random((*batch, generator.n_parameters), seed + 100)
    return (generator.initial(seed) + moved).to(dtype)


def relative_difference(found, expected):
    return float((found - expected).norm() / expected.norm())


# --- counts -------------------------------------------------------------------------------------

PUBLISHED = {
    "small": (28, 76_905, 76_608),
    "128": (32, 451_694, 448_704),
    "walnut": (32, 2_973_880, 2_964_096),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_counts_are_the_published_ones(name):
    side, n_parameters, n_weights = PUBLISHED[name]
    network = make_network(name)
    generator = network_generator(network, (side, side), F32)
    assert generator.n_parameters == n_parameters == sum(p.size for p in network.parameters)
    # The published priors leave out the convolutions of skip connections that are not joined:
    # they do not move the image, and so their gradient is exactly zero.
    theta = generator.initial(0)
    used = generator.vjp(theta, random(generator.range_shape, 1, F32)) != 0
    unused_blocks = [
        block
        for block in generator.layout.blocks
        if not bool((used & generator.layout.mask(blocks=[block])).any())
    ]
    assert unused_blocks == [
        f"skip_{i}" for i in range(1, network.scales) if network.skip_channels[-i] == 0
    ]
    convolutions = generator.layout.mask(kinds={Kind.CONVOLUTION})
    unused = generator.layout.mask(blocks=unused_blocks)
    assert int((convolutions & ~unused).sum()) == n_weights
    assert int((convolutions & unused).sum()) == sum(
        network.channels[-1 - int(block.removeprefix("skip_"))] for block in unused_blocks
    )


@pytest.mark.parametrize(("channels", "published"), [(64, 25_536), (128, 100_224)])
def test_deep_decoder_counts_are_the_published_ones(channels, published):
    network = DeepDecoder(channels)
    # The paper counts three colours.
    assert sum(p.size for p in network.parameters) == published - 2 * channels
    assert network.input_shape((512, 512)) == (channels, 16, 16)


def test_presets_pass_their_options_on():
    assert make_network("small").output == "sigmoid"
    assert make_network("small", output="identity").output == "identity"
    assert make_network("128", upsampling="nearest").upsampling == "nearest"
    more = ParameterLayout(make_network("small", in_channels=2).parameters)
    assert more.size == 76_905 + 32 * 9
    with pytest.raises(ConfigurationError, match="small, 128, walnut"):
        make_network("large")


# --- the same networks written with torch.nn ----------------------------------------------------


def centre_crop(x, shape, *, shift=0):
    (top, left) = ((n - m) // 2 for n, m in zip(x.shape[-2:], shape, strict=True))
    top, left = top + shift * (x.shape[-2] > shape[0]), left + shift * (x.shape[-1] > shape[1])
    return x[..., top : top + shape[0], left : left + shape[1]]


class ReferenceUNet(nn.Module):
    """The U-Net of the papers out of torch's layers; ``fault`` names what to do wrongly."""

    def __init__(self, like, fault=None):
        super().__init__()
        channels, joined = like.channels, [max(s, 1) for s in like.skip_channels]
        self.like, self.fault, normalised = like, fault, like.normalisation

        def layer(inputs, outputs, groups, stride=1, kernel=3):
            mode = "replicate" if fault == "padding" else "zeros"
            slope = 0.01 if fault == "slope" else 0.2
            convolution = nn.Conv2d(
                inputs, outputs, kernel, stride, padding=kernel // 2, padding_mode=mode
            )
            norm = [nn.GroupNorm(groups, outputs)] if normalised else []
            return [convolution, *norm, nn.LeakyReLU(slope)]

        down_groups, up_groups = (2, 2) if fault == "groups of down" else (4, 2)
        up_groups = 4 if fault == "groups of up" else up_groups
        self.inc = nn.Sequential(*layer(like.in_channels, channels[0], 2))
        self.down = nn.ModuleList(
            nn.Sequential(*layer(a, b, down_groups, 2), *layer(b, b, down_groups))
            for a, b in itertools.pairwise(channels)
        )
        self.skip, self.up = nn.ModuleList(), nn.ModuleList()
        for coarse, fine, s in reversed(
            list(zip(channels[1:], channels[:-1], joined[1:], strict=True))
        ):
            self.skip.append(nn.Sequential(*layer(fine, s, 1, kernel=1)))
            first = [nn.GroupNorm(1, coarse + s)] if normalised else []
            self.up.append(
                nn.Sequential(
                    *first, *layer(coarse + s, fine, up_groups), *layer(fine, fine, up_groups)
                )
            )
        self.outc = nn.Sequential(nn.Conv2d(channels[0], 1, 1))
        mode, align = like.upsampling, {"bilinear": fault != "corners", "nearest": None}
        self.enlarge = nn.Upsample(scale_factor=2, mode=mode, align_corners=align[mode])

    def load(self, tensors):
        """Take parameters by name; all of them, into layers of the same shape."""
        blocks = {"inc": self.inc, "outc": self.outc}
        for kind in ("down", "skip", "up"):
            blocks |= {f"{kind}_{i}": block for i, block in enumerate(getattr(self, kind), 1)}
        taken = set()
        for block, layers in blocks.items():
            number = 0
            for module in layers:
                number += isinstance(module, nn.Conv2d)
                kind = "convolution" if isinstance(module, nn.Conv2d) else "normalisation"
                for part, parameter in module.named_parameters():
                    name = f"{block}.{kind}_{number}.{part}"
                    assert parameter.shape == tensors[name].shape
                    parameter.data = tensors[name].clone()
                    taken.add(name)
        assert taken == set(tensors)
        return self

    def forward(self, z):
        passed = [self.inc(z)]
        for down in self.down:
            passed.append(down(passed[-1]))
        x = passed.pop()
        used = [s > 0 and self.fault != "skips" for s in reversed(self.like.skip_channels)]
        for skip, up, is_used in zip(self.skip, self.up, used, strict=False):
            fine = passed.pop()
            x, side = self.enlarge(x), skip(fine) if is_used else torch.zeros_like(fine[:, :1])
            if self.fault == "skips":
                side = torch.zeros_like(skip(fine))
            x = centre_crop(x, fine.shape[-2:], shift=int(self.fault == "crop"))
            x = up(torch.cat([x, side], 1))
        x = self.outc(x)
        return x.clamp(-15, 15).sigmoid() if self.like.output == "sigmoid" else x


class ReferenceDecoder(nn.Module):
    """The deep decoder out of torch's layers; ``fault`` names what to do wrongly."""

    def __init__(self, like, shape, fault=None):
        super().__init__()
        k, self.fault, self.output = like.in_channels, fault, like.output
        self.sizes = [tuple(shape)]
        for _ in range(like.levels - 1):
            self.sizes.append(tuple((n + 1) // 2 for n in self.sizes[-1]))
        # In training mode batch normalisation of one image normalises each channel.
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(k, k, 1, bias=False), nn.BatchNorm2d(k))
            for _ in range(like.levels)
        )
        self.outc = nn.Conv2d(k, 1, 1, bias=False)
        self.enlarge = nn.Upsample(
            scale_factor=2, mode="bilinear", align_corners=fault == "corners"
        )

    def load(self, tensors):
        values = iter(tensors.values())
        for parameter in self.parameters():
            value = next(values)
            assert parameter.shape == value.shape
            parameter.data = value.clone()
        assert next(values, None) is None
        return self

    def forward(self, z):
        x = z
        for size, (mix, normalise) in zip(
            [*self.sizes[-2::-1], None], [tuple(level) for level in self.levels], strict=True
        ):
            x = mix(x)
            if size is not None:
                x = self.enlarge(x)
                x = x if self.fault == "crop" else x[..., : size[0], : size[1]]
            x = normalise(x).relu() if self.fault == "order" else normalise(x.relu())
        x = centre_crop(self.outc(x), self.sizes[0])
        return x.sigmoid() if self.output == "sigmoid" else x


def disagreement(network, shape, fault=None):
    """Largest relative difference between a network and its reference."""
    generator = network_generator(network, shape)
    theta = parameters_near_initial(generator)
    if isinstance(network, UNet):
        reference = ReferenceUNet(network, fault)
    else:
        reference = ReferenceDecoder(network, shape, fault)
    reference = reference.double().load(generator.layout.split(theta))
    with torch.no_grad():
        expected = reference(generator.z[None])[0]
    found = generator(theta)
    assert found.shape == expected.shape == (1, *shape)
    return float((found - expected).abs().max() / expected.std())


REFERRED = {
    "small": (make_network("small"), ((28, 28), (29, 29), (37, 50))),
    "128": (make_network("128"), ((28, 28), (29, 29), (37, 50))),
    "walnut": (make_network("walnut"), ((37, 50),)),
    "no skips": (UNet((4, 8, 12, 8), (0, 0, 0, 0)), ((28, 28), (29, 29), (37, 50), (8, 9))),
    "all skips": (UNet((8, 4, 12), (5, 1, 3)), ((28, 28), (29, 29), (37, 50), (4, 5))),
    "nearest, sigmoid, two inputs": (
        UNet((8, 4, 4), (0, 4, 0), in_channels=2, output="sigmoid", upsampling="nearest"),
        ((28, 28), (29, 29), (37, 50)),
    ),
    "one scale": (UNet((4,), (0,)), ((5, 6),)),
}
UNET_CASES = [(name, shape) for name, (_, shapes) in REFERRED.items() for shape in shapes]


@pytest.mark.parametrize(("name", "shape"), UNET_CASES, ids=str)
def test_unet_equals_the_reference(name, shape):
    assert disagreement(REFERRED[name][0], shape) < 1e-10


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("crop", "small"),
        ("crop", "128"),
        ("padding", "small"),
        ("padding", "128"),
        ("groups of down", "128"),
        ("groups of up", "128"),
        ("slope", "small"),
        ("corners", "128"),
        ("skips", "small"),
        ("skips", "all skips"),
    ],
)
def test_wrong_unets_differ_from_the_reference(fault, name):
    assert disagreement(REFERRED[name][0], (29, 29), fault) > 1e-3


DECODERS = {
    (28, 28): DeepDecoder(8, 3),
    (32, 64): DeepDecoder(5, 4, output="identity"),
    (29, 29): DeepDecoder(8, 4, image_shape=(29, 29)),
    (37, 50): DeepDecoder(6, 5, image_shape=(37, 50), output="identity"),
    (3, 2): DeepDecoder(4, 1),
}


@pytest.mark.parametrize("shape", DECODERS, ids=str)
def test_deep_decoder_equals_the_reference(shape):
    assert disagreement(DECODERS[shape], shape) < 1e-10


@pytest.mark.parametrize("fault", ["crop", "order", "corners"])
def test_wrong_deep_decoders_differ_from_the_reference(fault):
    assert disagreement(DECODERS[37, 50], (37, 50), fault) > 1e-3


def test_image_shape_changes_nothing_where_it_is_not_needed():
    given, free = DeepDecoder(4, 3, image_shape=(16, 20)), DeepDecoder(4, 3)
    one, other = (network_generator(network, (16, 20)) for network in (given, free))
    theta = parameters_near_initial(one)
    assert torch.equal(one(theta), other(theta))


# --- initial parameters -------------------------------------------------------------------------


def initial_departure(tensors):
    """How far values are from torch's default: a p-value, and the largest value of its bound.

    Weights and biases of convolutions should be uniform in ``±1 / sqrt(fan in)``.
    """
    scaled = {"weight": [], "bias": []}
    for name, tensor in tensors.items():
        layer, part = name.rsplit(".", 1)
        if "convolution" in layer:
            fan_in = tensors[f"{layer}.weight"][0].numel()
            scaled[part].append(tensor.flatten() * fan_in**0.5)
    parts = [torch.cat(values).numpy() for values in scaled.values() if values]
    p_value = min(stats.kstest(part, "uniform", (-1, 2)).pvalue for part in parts)
    return p_value, max(np.abs(part).max() for part in parts)


def is_default(tensors):
    p_value, largest = initial_departure(tensors)
    return p_value > 1e-3 and largest <= 1 + 1e-6


INITIALISED = {name: make_network(name) for name in ("small", "128")} | {
    "deep decoder": DeepDecoder(64)
}


@pytest.mark.parametrize("network", INITIALISED.values(), ids=INITIALISED)
def test_initial_parameters_are_uniform_within_the_fan_in(network):
    layout = ParameterLayout(network.parameters)
    tensors = layout.split(layout.join(network.initial(3)))
    assert is_default(tensors)
    drawn = torch.cat(
        [tensors[p.name].flatten() for p in network.parameters if p.kind is Kind.CONVOLUTION]
    )
    assert abs(float(drawn.mean())) < 5 * float(drawn.std()) / len(drawn) ** 0.5
    normalisations = [p for p in network.parameters if p.kind is Kind.NORMALISATION]
    assert bool(normalisations) == ("normalisation" in " ".join(tensors))
    for parameter in normalisations:
        assert (tensors[parameter.name] == parameter.name.endswith("weight")).all()


def torch_default(network):
    """What torch draws for the same network by itself."""
    reference = ReferenceUNet(network)
    names = [p.name for p in network.parameters if p.block == "down_1"]
    return dict(zip(names, (p.detach() for p in reference.down[0].parameters()), strict=True))


def test_torch_draws_from_the_same_distribution():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert is_default(torch_default(make_network("128")))


WRONG_INITIAL = {
    "too large": lambda name, t, generator: 1.05 * t,
    "too small": lambda name, t, generator: 0.9 * t,
    "shifted": lambda name, t, generator: t.abs(),
    "normal": lambda name, t, generator: (
        torch.randn(t.shape, generator=generator) * t.std(correction=0)
    ),
    "biases of another size": lambda name, t, generator: t * (0.5 if "bias" in name else 1.0),
    "biases zero": lambda name, t, generator: t * ("bias" not in name),
}


@pytest.mark.parametrize("wrong", WRONG_INITIAL.values(), ids=WRONG_INITIAL)
def test_wrong_initial_parameters_are_rejected(wrong):
    generator = torch.Generator().manual_seed(0)
    tensors = make_network("128").initial(3)
    assert not is_default({n: wrong(n, t, generator) for n, t in tensors.items()})


@pytest.mark.parametrize(
    "generator",
    [*(network_generator(*case) for case in SMALL_NETWORKS.values()), PixelImage((1, 4, 5))],
    ids=[*SMALL_NETWORKS, "pixels"],
)
def test_initial_parameters_depend_on_the_seed_alone(generator):
    state = torch.get_rng_state()
    first = generator.initial(10)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(generator.initial(10), first)
    other = generator.initial(11)
    drawn = ~generator.layout.mask(kinds={Kind.NORMALISATION})
    assert (other[drawn] != first[drawn]).float().mean() > 0.99
    assert first.shape == (generator.n_parameters,) and first.dtype == F32 and first.device == CPU


# --- layout -------------------------------------------------------------------------------------

LAYOUT = ParameterLayout(SMALL_NETWORKS["normalisation"][0].parameters)
A_WEIGHT = LAYOUT.parameters[0].name


@pytest.mark.parametrize("batch", [(), (3,), (2, 1)], ids=str)
def test_join_is_the_inverse_of_split(batch):
    theta = random((*batch, LAYOUT.size))
    tensors = LAYOUT.split(theta)
    assert list(tensors) == [p.name for p in LAYOUT.parameters]
    for parameter in LAYOUT.parameters:
        assert tensors[parameter.name].shape == (*batch, *parameter.shape)
    assert torch.equal(LAYOUT.join(tensors), theta)
    assert torch.equal(LAYOUT.join(dict(reversed(tensors.items()))), theta)
    # Another order of the parameters is another vector.
    backwards = ParameterLayout(LAYOUT.parameters[::-1])
    assert not torch.equal(backwards.join(tensors), theta)
    assert torch.equal(backwards.split(backwards.join(tensors))[A_WEIGHT], tensors[A_WEIGHT])


def test_split_gives_views_in_order():
    theta = torch.arange(LAYOUT.size)
    tensors = LAYOUT.split(theta)
    assert torch.equal(torch.cat([t.flatten() for t in tensors.values()]), theta)
    for tensor in tensors.values():
        assert tensor.untyped_storage().data_ptr() == theta.untyped_storage().data_ptr()
        tensor.zero_()
    assert not theta.any()


def test_blocks_are_in_order_with_their_sizes():
    assert list(LAYOUT.blocks) == [
        "inc", "down_1", "down_2", "skip_1", "up_1", "skip_2", "up_2", "outc",
    ]  # fmt: skip
    assert sum(LAYOUT.blocks.values()) == LAYOUT.size
    assert LAYOUT.blocks["inc"] == 4 * 9 + 4 + 4 + 4
    assert LAYOUT.blocks["outc"] == 4 + 1


@pytest.mark.parametrize(
    ("blocks", "kinds"),
    [
        (None, None),
        (["down_1", "outc"], None),
        (None, {Kind.CONVOLUTION}),
        (None, {Kind.BIAS, Kind.NORMALISATION}),
        ({"up_2"}, {Kind.NORMALISATION}),
        ([], None),
        (None, set()),
    ],
    ids=["all", "blocks", "kind", "kinds", "block and kind", "no block", "no kind"],
)
def test_masks_mark_the_chosen_parameters(blocks, kinds):
    mask = LAYOUT.mask(blocks=blocks, kinds=kinds)
    assert mask.dtype == torch.bool and mask.shape == (LAYOUT.size,)
    for parameter, marked in zip(LAYOUT.parameters, LAYOUT.split(mask).values(), strict=True):
        layer, part = parameter.name.split(".")[1:]
        kind = {"weight": Kind.CONVOLUTION, "bias": Kind.BIAS}[part]
        kind = Kind.NORMALISATION if layer.startswith("normalisation") else kind
        wanted = kinds is None or kind in kinds
        wanted = wanted and (blocks is None or parameter.name.split(".")[0] in blocks)
        assert (marked == wanted).all(), parameter.name


def test_layout_refuses_what_does_not_fit():
    tensors = LAYOUT.split(random(LAYOUT.size))
    for wrong in (random(LAYOUT.size + 1), random((LAYOUT.size, 1)), torch.tensor(1.0)):
        with pytest.raises(ShapeError, match=f"P={LAYOUT.size}"):
            LAYOUT.split(wrong)
    with pytest.raises(ConfigurationError, match=rf"missing \['{A_WEIGHT}'\].*unknown none"):
        LAYOUT.join({n: t for n, t in tensors.items() if n != A_WEIGHT})
    with pytest.raises(ConfigurationError, match=r"unknown \['more'\]"):
        LAYOUT.join(tensors | {"more": torch.zeros(1)})
    for wrong in (torch.zeros(4, 1, 9), torch.zeros(4, 1, 3, 4), torch.zeros(3)):
        with pytest.raises(ShapeError, match=A_WEIGHT):
            LAYOUT.join(tensors | {A_WEIGHT: wrong})
    with pytest.raises(ConfigurationError, match=r"no block down_9.*inc, down_1"):
        LAYOUT.mask(blocks=["inc", "down_9"])
    twice = Parameter("a", (2,), "a", Kind.BIAS)
    for parameters in ([twice, twice], []):
        with pytest.raises(ConfigurationError, match="unique"):
            ParameterLayout(parameters)


# --- batches ------------------------------------------------------------------------------------


def equals_one_by_one(generator, thetas, parts):
    """Whether the images of a batch are, bit for bit, those of its elements."""
    items = thetas.reshape(-1, generator.n_parameters)
    one_by_one = [part(theta) for part, theta in zip(parts, items, strict=True)]
    return torch.equal(generator(thetas).flatten(end_dim=-4), torch.stack(one_by_one))


class Shuffled(NetworkGenerator):
    """Gives every element of a batch the image of its neighbour."""

    def _apply(self, theta):
        return super()._apply(theta).roll(1, 0) if theta.ndim > 1 else super()._apply(theta)


@every_network
@pytest.mark.parametrize("batch", [(3,), (2, 2)], ids=str)
def test_a_batch_of_parameters_equals_one_by_one(network, shape, batch):
    generator = network_generator(network, shape, F32)
    thetas = parameters_near_initial(generator, dtype=F32, batch=batch)
    parts = [generator] * int(np.prod(batch))
    assert generator(thetas).shape == (*batch, 1, *shape)
    assert equals_one_by_one(generator, thetas, parts)
    assert not equals_one_by_one(Shuffled(network, generator.z, shape), thetas, parts)


@every_network
@pytest.mark.parametrize("batch", [(3,), (2, 2)], ids=str)
def test_a_batch_of_inputs_equals_one_by_one(network, shape, batch):
    input_shape = network.input_shape(shape)
    z = random((*batch, *input_shape), 5, F32)
    generator = NetworkGenerator(network, z, shape)
    thetas = parameters_near_initial(generator, dtype=F32, batch=batch)
    parts = [NetworkGenerator(network, one, shape) for one in z.reshape(-1, *input_shape)]
    assert equals_one_by_one(generator, thetas, parts)
    assert not equals_one_by_one(Shuffled(network, z, shape), thetas, parts)
    assert not equals_one_by_one(generator, thetas, parts[::-1])
    for wrong in (thetas[0, 0] if len(batch) > 1 else thetas[0], thetas[:1], thetas[None]):
        with pytest.raises(ShapeError, match="one input for each element"):
            generator(wrong)


# --- derivatives --------------------------------------------------------------------------------


def finite_difference(generator, theta, v, step=1e-7):
    return (generator(theta + step * v) - generator(theta - step * v)) / (2 * step)


@every_network
def test_derivatives_equal_finite_differences(network, shape):
    generator = network_generator(network, shape)
    theta = parameters_near_initial(generator)
    v, w = random(theta.shape, 1), random(generator.range_shape, 2)
    pushed = finite_difference(generator, theta, v)
    assert relative_difference(generator.jvp(theta, v), pushed) < 1e-6
    pulled = generator.vjp(theta, w)
    scale = float(pushed.norm() * w.norm())
    assert abs(float((pulled * v).sum() - (pushed * w).sum())) < 1e-6 * scale
    # The derivative at another point, or of another input, is not the same.
    assert relative_difference(generator.jvp(1.01 * theta, v), pushed) > 1e-4
    other = network_generator(network, shape, seed=1)
    assert relative_difference(other.jvp(theta, v), pushed) > 1e-3
    assert abs(float((other.vjp(theta, w) * v).sum() - (pushed * w).sum())) > 1e-5 * scale


class Stretched(NetworkGenerator):
    """Its directional derivatives are a little too long."""

    def jvp(self, x, v):
        return 1.001 * super().jvp(x, v)


@every_network
def test_forward_and_backward_derivatives_agree_in_single_precision(network, shape):
    generator = network_generator(network, shape, F32)
    theta = parameters_near_initial(generator, dtype=F32)
    assert product_mismatch(generator, theta) < 2e-5
    assert product_mismatch(Stretched(network, generator.z, shape), theta) > 1e-4
    double = generator.to(dtype=F64)
    v, w = random(theta.shape, 3, F32), random(generator.range_shape, 4, F32)
    exact = double.jvp(theta.double(), v.double())
    assert relative_difference(generator.jvp(theta, v), exact) < 1e-4
    exact = double.vjp(theta.double(), w.double())
    assert relative_difference(generator.vjp(theta, w), exact) < 1e-4


def product_mismatch(generator, theta):
    """``|<J v, J v> - <v, J^T J v>| / |J v|^2``, in which nothing cancels."""
    v = random(theta.shape, 1, theta.dtype)
    forward = generator.jvp(theta, v)
    backward = generator.vjp(theta, forward)
    squared = float(forward.double().square().sum())
    return abs(squared - float((v.double() * backward.double()).sum())) / squared


@every_network
def test_tangents_may_be_mapped_over(network, shape):
    generator = network_generator(network, shape)
    theta = parameters_near_initial(generator)
    tangents = random((4, *theta.shape), 1)
    cotangents = random((4, *generator.range_shape), 2)
    pushed = torch.vmap(lambda v: generator.jvp(theta, v))(tangents)
    looped = torch.stack([generator.jvp(theta, v) for v in tangents])
    torch.testing.assert_close(pushed, looped, rtol=1e-10, atol=1e-11)
    assert relative_difference(pushed.flip(0), looped) > 0.1
    pulled = torch.vmap(lambda w: generator.vjp(theta, w))(cotangents)
    looped = torch.stack([generator.vjp(theta, w) for w in cotangents])
    torch.testing.assert_close(pulled, looped, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_inputs_in_channels_last_memory_are_differentiated(channels, dtype):
    network, shape = UNet((4, 8), (0, 2), in_channels=channels), (8, 6)
    z = random((1, channels, *shape), 5, dtype)
    last = z.to(memory_format=torch.channels_last)
    assert last.stride() != (channels * 48, 48, 6, 1)
    generators = [NetworkGenerator(network, one[0], shape) for one in (z, last)]
    theta = parameters_near_initial(generators[0], dtype=dtype)
    assert derivative_mismatch(generators[1]) < (2e-5 if dtype == F32 else 1e-12)
    v = random(theta.shape, 6, dtype)
    torch.testing.assert_close(generators[1].jvp(theta, v), generators[0].jvp(theta, v))
    torch.testing.assert_close(generators[1](theta), generators[0](theta))
    swapped = NetworkGenerator(network, z[0].flip(-1), shape)
    assert relative_difference(swapped.jvp(theta, v), generators[0].jvp(theta, v)) > 1e-3


# --- bfloat16 -----------------------------------------------------------------------------------

REDUCED_NETWORKS = {
    "small": (make_network("small"), (28, 28)),
    "128": (make_network("128"), (32, 40)),
    "deep decoder": (DeepDecoder(32, 4, image_shape=(29, 40)), (29, 40)),
}
every_reduced_network = pytest.mark.parametrize(
    ("network", "shape"), REDUCED_NETWORKS.values(), ids=REDUCED_NETWORKS
)


def deviation(found, expected):
    """Difference relative to the contrast of the image."""
    return float((found - expected).norm() / (expected - expected.mean()).norm())


@every_reduced_network
def test_networks_all_at_once_are_those_one_after_another(network, shape):
    apart = network_generator(network, shape, F64)
    together = NetworkGenerator(network, apart.z, shape, batching="vmap")
    theta = torch.stack([apart.initial(seed) for seed in range(3)]).double()
    found = []
    for generator in (apart, together):
        at = theta.clone().requires_grad_()
        image = generator(at)
        found.append((image.detach(), *torch.autograd.grad(image.square().sum(), at)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(one.abs().max()))
    assert together.with_precision("float32").batching == "vmap"
    # Not all are the same network.
    assert deviation(found[0][0][0], found[0][0][1]) > 0.1


def test_batching_is_one_of_two_and_not_in_bfloat16():
    exact = network_generator(*REDUCED_NETWORKS["deep decoder"], F32)
    for settings, message in (
        ({"batching": "all"}, "loop or vmap"),
        ({"batching": "vmap", "precision": "bfloat16"}, "no vmap"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            NetworkGenerator(exact.network, exact.z, exact.range_shape[1:], **settings)


@needs_bfloat16
@every_reduced_network
def test_bfloat16_is_close_to_float32(network, shape):
    exact = network_generator(network, shape, F32)
    reduced = exact.with_precision("bfloat16")
    theta = exact.initial(2)
    image = reduced(theta)
    assert image.dtype == F32 and image.is_contiguous()
    assert 1e-5 < deviation(image, exact(theta)) < 0.1
    assert deviation(reduced(exact.initial(3)), exact(theta)) > 0.5
    assert torch.equal(reduced.with_precision("float32")(theta), exact(theta))
    batch = torch.stack([theta, exact.initial(3)])
    assert torch.equal(reduced(batch), torch.stack([reduced(one) for one in batch]))


@needs_bfloat16
def test_the_last_block_stays_in_single_precision():
    exact = network_generator(make_network("128"), (32, 40), F32)
    reduced, theta = exact.with_precision("bfloat16"), exact.initial(2)
    # Far less than the spacing of bfloat16 next to the bias.
    moved = theta + 1e-5 * (torch.arange(theta.numel()) == theta.numel() - 1)
    shift = torch.full((1, 32, 40), 1e-5)
    torch.testing.assert_close(reduced(moved) - reduced(theta), shift, rtol=0.05, atol=0)
    assert torch.equal(reduced(moved.bfloat16().float()), reduced(theta.bfloat16().float()))


def cosine(one, other):
    return float((one * other).sum() / (one.norm() * other.norm()))


@needs_bfloat16
@every_reduced_network
def test_gradients_in_bfloat16_point_the_same_way(network, shape):
    exact = network_generator(network, shape, F32)
    start = exact.initial(2)
    # Of the image's own mean: the gradient of a constant would hide all others.
    pattern = torch.linspace(-0.5, 0.5, shape[0])[:, None].expand(1, *shape)

    def gradient(generator, pattern):
        theta = start.clone().requires_grad_()
        residual = generator(theta) - exact(start).mean() - pattern
        (found,) = torch.autograd.grad(residual.square().sum(), theta)
        assert found.dtype == F32
        return found

    reduced, expected = exact.with_precision("bfloat16"), gradient(exact, pattern)
    assert cosine(gradient(reduced, pattern), expected) > 0.98
    assert cosine(gradient(reduced, pattern.flip(-2)), expected) < 0.5


@needs_bfloat16
def test_jacobians_in_bfloat16_are_refused():
    network, shape = SMALL_NETWORKS["normalisation"]
    generator = network_generator(network, shape, F32).with_precision("bfloat16")
    theta = generator.initial(0)
    with pytest.raises(DtypeError, match=r"with_precision\(.float32.\)"):
        generator.jvp(theta, theta)
    _, jacobian = generator.linearize(theta)
    with pytest.raises(DtypeError, match="several per cent"):
        jacobian(theta)
    assert generator.with_precision("float32").jvp(theta, theta).norm() > 0


@needs_bfloat16
def test_bfloat16_is_for_single_precision():
    network, shape = SMALL_NETWORKS["normalisation"]
    with pytest.raises(DtypeError, match=r"float64.*precision float32"):
        network_generator(network, shape).with_precision("bfloat16")
    with pytest.raises(DtypeError, match="float64"):
        network_generator(network, shape, F32).with_precision("bfloat16").to(dtype=F64)


@pytest.mark.skipif(has_bfloat16(CPU), reason="this CPU has bfloat16 instructions")
def test_bfloat16_is_refused_where_it_is_slow():
    with pytest.raises(DeviceUnavailableError, match="precision float32"):
        network_generator(*SMALL_NETWORKS["normalisation"], F32).with_precision("bfloat16")


def test_other_precisions_are_refused():
    with pytest.raises(ConfigurationError, match="float16"):
        network_generator(*SMALL_NETWORKS["normalisation"], F32).with_precision("float16")


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(31, 64), (64, 16), (1, 1)], ids=str)
def test_images_too_small_for_the_scales_are_refused(shape):
    with pytest.raises(ShapeError, match=r"at least 32 x 32.*smaller network"):
        make_network("walnut").input_shape(shape)
    with pytest.raises(ShapeError, match="at least 32 x 32"):
        NetworkGenerator(make_network("walnut"), torch.zeros(1, *shape), shape)


def test_one_coarsest_pixel_needs_more_than_one_channel_in_a_group():
    with pytest.raises(ShapeError, match="at least 5 x 5"):
        UNet((4, 4, 4), (0, 0, 0)).input_shape((4, 4))
    assert UNet((4, 4, 4), (0, 0, 0)).input_shape((5, 5)) == (1, 5, 5)
    assert UNet((4, 4, 4), (0, 0, 0), normalisation=False).input_shape((4, 4)) == (1, 4, 4)


def test_an_empty_batch_gives_an_empty_batch():
    generator = network_generator(UNet((4, 4), (0, 0)), (4, 6))
    assert generator(torch.zeros(0, generator.n_parameters, dtype=generator.dtype)).shape == (
        0,
        1,
        4,
        6,
    )


def test_the_input_must_be_a_tensor():
    with pytest.raises(DtypeError, match="torch tensor; got ndarray"):
        NetworkGenerator(UNet((4, 4), (0, 0)), np.zeros((1, 4, 6)), (4, 6))


def test_the_smallest_images_are_made():
    for network, shape in ((UNet((8, 8, 8), (0, 0, 1)), (4, 4)), (DeepDecoder(4, 3), (8, 8))):
        generator = network_generator(network, shape)
        image = generator(parameters_near_initial(generator))
        assert bool(torch.isfinite(image).all()) and float(image.std()) > 0


def test_deep_decoders_refuse_sizes_they_cannot_make():
    with pytest.raises(ShapeError, match=r"at least 33 x 33.*fewer levels"):
        DeepDecoder(4, 6, image_shape=(32, 64))
    with pytest.raises(ShapeError, match=r"at least 33 x 33.*fewer levels"):
        DeepDecoder(4, 6).input_shape((32, 64))
    assert DeepDecoder(4, 6, image_shape=(33, 64)).input_shape((33, 64)) == (4, 2, 2)
    with pytest.raises(ShapeError, match=r"multiples of 32.*image_shape=\(501, 501\)"):
        DeepDecoder(4, 6).input_shape((501, 501))
    assert DeepDecoder(4, 6, image_shape=(501, 480)).input_shape((501, 480)) == (4, 16, 15)
    with pytest.raises(ShapeError, match="made for images of 501 x 480"):
        DeepDecoder(4, 6, image_shape=(501, 480)).input_shape((480, 501))


@every_network
def test_inputs_of_another_shape_are_refused(network, shape):
    channels, rows, columns = network.input_shape(shape)
    for wrong in (
        (channels + 1, rows, columns),
        (channels, rows + 1, columns),
        (channels, rows, columns - 1),
        (rows, columns),
        (2, 1),
    ):
        with pytest.raises(ShapeError, match=f"{channels} {rows} {columns}"):
            NetworkGenerator(network, torch.zeros(wrong), shape)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UNet((), ()),
        lambda: UNet((4, 4), (0,)),
        lambda: UNet((4, 6), (0, 0)),
        lambda: UNet((0, 4), (0, 0)),
        lambda: UNet((4, 0), (0, 0), normalisation=False),
        lambda: UNet((4, 4), (0, -1)),
        lambda: UNet((4, 4), (0, 0), in_channels=0),
        lambda: UNet((4, 4), (0, 0), output="relu"),
        lambda: UNet((4, 4), (0, 0), upsampling="bicubic"),
        lambda: DeepDecoder(0),
        lambda: DeepDecoder(4, 0),
        lambda: DeepDecoder(4, output="relu"),
        lambda: PixelImage((1, 4, 4), output="relu"),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(ConfigurationError, match="got"):
        make()
    assert UNet((3, 5), (0, 0), normalisation=False).scales == 2


def test_parameters_of_another_size_or_type_are_refused():
    generator = network_generator(*SMALL_NETWORKS["normalisation"])
    with pytest.raises(ShapeError, match=str(generator.n_parameters)):
        generator(torch.zeros(generator.n_parameters + 1, dtype=F64))
    with pytest.raises(DtypeError, match="float64"):
        generator(generator.initial(0))


# --- pixels -------------------------------------------------------------------------------------

every_image_shape = pytest.mark.parametrize("shape", [(1, 4, 5), (1, 2, 3, 4)], ids=str)
every_output = pytest.mark.parametrize("output", ["identity", "sigmoid"])


@every_image_shape
def test_the_parameters_are_the_pixels(shape):
    generator = PixelImage(shape)
    assert (generator.n_parameters, generator.range_shape) == (int(np.prod(shape)), shape)
    theta = random(generator.n_parameters)
    assert torch.equal(generator(theta), theta.reshape(shape))
    bounded, values = PixelImage(shape, output="sigmoid"), theta.reshape(shape).numpy()
    np.testing.assert_allclose(bounded(theta).numpy(), 1 / (1 + np.exp(-values)))
    assert generator.layout.blocks == {"pixels": generator.n_parameters}
    assert bool(generator.layout.mask(kinds={Kind.PIXELS}).all())


def test_only_the_pixels_themselves_are_linear():
    plain, bounded = PixelImage((1, 4, 5)), PixelImage((1, 4, 5), output="sigmoid")
    assert isinstance(plain, PixelImage) and isinstance(bounded, PixelImage)
    for operator in (plain, plain.to(dtype=F32), Gradient((1, 4, 5)) @ plain):
        assert isinstance(operator, LinearOperator)
    for operator in (bounded, bounded.to(dtype=F32), Gradient((1, 4, 5)) @ bounded):
        assert not isinstance(operator, LinearOperator)


def test_the_image_does_not_share_memory_with_the_parameters():
    for output in ("identity", "sigmoid"):
        generator = PixelImage((1, 2, 3), output=output)
        theta = torch.linspace(0.1, 0.9, 6)
        kept, image = theta.clone(), generator(theta)
        generator.parameters_of(image).zero_()
        assert float(image.min()) > 0
        image.zero_()
        assert torch.equal(theta, kept)


@every_image_shape
@every_output
@pytest.mark.parametrize("batch", [(), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_parameters_of_an_image_give_the_image(shape, output, batch, dtype):
    generator = PixelImage(shape, output=output)
    image = torch.rand((*batch, *shape), generator=torch.Generator().manual_seed(3), dtype=dtype)
    theta = generator.parameters_of(image)
    assert theta.shape == (*batch, generator.n_parameters) and theta.dtype == dtype
    torch.testing.assert_close(
        generator(theta), image, rtol=0, atol=1e-6 if dtype == F32 else 1e-12
    )
    other = PixelImage(shape, output="sigmoid" if output == "identity" else "identity")
    assert relative_difference(other(theta), image) > 0.1


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_images_at_the_ends_of_the_sigmoid_get_finite_parameters(dtype):
    generator = PixelImage((1, 1, 3), output="sigmoid")
    image = torch.tensor([[[0.0, 0.5, 1.0]]], dtype=dtype)
    theta = generator.parameters_of(image)
    assert theta.tolist() == [-15, 0, 15]
    assert 0 < float((generator(theta) - image).abs().max()) < 4e-7
    free = PixelImage((1, 1, 3)).parameters_of(3 * image - 1)
    assert free.tolist() == [-1, 0.5, 2]


@every_output
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_images_that_are_not_finite_have_no_parameters(output, bad):
    image = torch.full((1, 2, 3), 0.5)
    image[0, 1, 1] = bad
    with pytest.raises(DataError, match="finite"):
        PixelImage((1, 2, 3), output=output).parameters_of(image)


@pytest.mark.parametrize("bad", [-1e-3, 1.001])
def test_images_outside_the_sigmoid_are_refused(bad):
    image = torch.full((1, 2, 3), 0.5)
    image[0, 0, 0] = bad
    with pytest.raises(DataError, match=f"{bad:.4g}"):
        PixelImage((1, 2, 3), output="sigmoid").parameters_of(image)
    assert PixelImage((1, 2, 3)).parameters_of(image)[0] == image[0, 0, 0]


def test_pixel_images_refuse_what_does_not_fit():
    generator = PixelImage((1, 2, 3))
    for shape in ((2, 3), (2, 1, 2, 3), (1, 0, 3), (1, 2, 3, 4, 5), ()):
        with pytest.raises(ShapeError, match="image_shape must be"):
            PixelImage(shape)
    for wrong in (torch.zeros(2, 3), torch.zeros(1, 3, 2), torch.zeros(6)):
        with pytest.raises(ShapeError, match="1 2 3"):
            generator.parameters_of(wrong)
    for wrong in (torch.zeros(1, 2, 3, dtype=torch.int64), np.zeros((1, 2, 3)), None):
        with pytest.raises(DtypeError, match="floating-point"):
            generator.parameters_of(wrong)


@every_output
def test_pixel_images_begin_almost_constant(output):
    generator = PixelImage((1, 40, 50), output=output)
    image = generator(generator.initial(0))
    expected = {"identity": (0.0, 0.01), "sigmoid": (0.5, 0.0025)}[output]
    assert float(image.mean()) == pytest.approx(expected[0], abs=5 * expected[1] / 2000**0.5)
    assert float(image.std()) == pytest.approx(expected[1], rel=0.1)
