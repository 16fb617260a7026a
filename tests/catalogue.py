"""Small instances of every operator, with a dense twin computed another way where there is one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import odl
import pytest
import torch
from odl.applications import tomo
from scalar_tracing import scalar_matrix, scalar_slice_matrix
from scipy import sparse

from dipct.generator import (
    DeepDecoder,
    ImplicitNetwork,
    NetworkGenerator,
    PixelImage,
    SingularValues,
    Subspace,
    UNet,
)
from dipct.measurement import (
    ConeGeometry,
    ConeSliceGeometry,
    FanGeometry,
    Grid,
    MatrixGeometry,
    ParallelGeometry,
    VectorGeometry,
)
from dipct.operator import (
    LOGITS,
    FeatureOperator,
    Gradient,
    Identity,
    Jacobian,
    LinearOperator,
    Mask,
    MatrixOperator,
    Operator,
    PixelAverage,
    RayTransform,
    from_scipy,
    stack,
)
from dipct.operator.astra_ray import AstraRayTransform
from dipct.operator.fdk import FDK
from dipct.operator.filtered_backprojection import FilteredBackProjection
from dipct.operator.odl_bridge import from_odl, to_odl
from dipct.operator.symmetric_ray import SymmetricRayTransform
from dipct.operator.traced import TracedRayTransform

F32, F64 = torch.float32, torch.float64
BOTH = (F32, F64)

ANGLES = 0.237 + np.arange(5) * 1.19
IMAGE = Grid((8, 10), 0.9, (0.21, -0.33))
VOLUME = Grid((4, 6, 7), 1.1, (0.21, -0.33, 0.17))


def _perturbed(geometry, seed):
    """Per-view vectors near those of a geometry, still planar where it is."""
    noise = 0.05 * np.random.default_rng(seed).standard_normal((geometry.n_views, 12))
    if geometry.is_planar:
        noise[:, 2::3] = 0
    return geometry.vectors() + noise


def _geometries():
    parallel = ParallelGeometry(ANGLES, 9, 1.13, 0.17)
    fan = FanGeometry(ANGLES, 9, 1.71, 17.3, 9.1, 0.27)
    cone = ConeGeometry(ANGLES[:3], 3, 6, 1.9, 1.7, 17.3, 9.1, 0.27, -0.19)
    tilt = np.array([0.0, 0.0, 0.31])
    parallel_3d = np.concatenate([parallel.vectors()[:3, :3] + tilt, _perturbed(cone, 3)[:, 3:]], 1)
    rows = np.array([[0, 1, 2, 1, 1.5, 0.25], [1, 1, 1, 1, 1, 1], [2, 1, 0, 1, 0.75, 2]])
    height = 3 * IMAGE.pixel_size
    rng = np.random.default_rng(8)
    values = sparse.random(3 * 6, IMAGE.n_pixels, 0.3, "csr", random_state=rng)
    return {
        "parallel": (parallel, IMAGE),
        "fan": (fan, IMAGE),
        "cone": (cone, VOLUME),
        "planar fan vectors": (VectorGeometry(_perturbed(fan, 1), 1, 9, "cone", True), IMAGE),
        "planar parallel vectors": (
            VectorGeometry(_perturbed(parallel, 2), 1, 9, "parallel", True),
            IMAGE,
        ),
        "cone vectors": (VectorGeometry(_perturbed(cone, 4), 3, 6), VOLUME),
        "parallel vectors": (VectorGeometry(parallel_3d, 3, 6, "parallel"), VOLUME),
        "cone slice": (
            ConeSliceGeometry(cone.vectors(), 3, 6, rows, (-height / 2, height / 2)),
            IMAGE,
        ),
        "matrix": (MatrixGeometry(values, 6), IMAGE),
    }


GEOMETRIES = _geometries()
"""Every kind of geometry by name, each with a grid it fits."""


def _symmetric_scans():
    full, half = np.arange(4) * np.pi / 2 + 0.21, np.arange(2) * np.pi / 2 + 0.13
    cone = ConeGeometry(full, 3, 6, 1.6, 1.7, 40.0, 25.0, 0.31, 0.2)
    return {
        "fan, even": (FanGeometry(full, 9, 1.9, 40.0, 25.0, 0.31), Grid((6, 6), 1.3)),
        "fan, odd": (FanGeometry(full[[2, 0, 3, 1]], 9, 1.9, 40.0, 25.0), Grid((5, 5), 1.3)),
        "parallel, half a turn": (ParallelGeometry(half, 9, 1.1), Grid((6, 6), 1.3)),
        "parallel, a turn, offset": (ParallelGeometry(full, 9, 1.1, 0.2), Grid((5, 5), 1.3)),
        "cone": (cone, Grid((3, 5, 5), 1.3, (0.0, 0.0, 0.4))),
    }


SYMMETRIC = _symmetric_scans()
"""Scans that repeat themselves every quarter turn, each with a grid that does too."""


def traced(name, projector):
    """The dense system matrix of a geometry, one ray at a time."""
    geometry, grid = GEOMETRIES[name]
    if name == "matrix":
        return geometry.matrix.toarray()
    if name == "cone slice":
        return scalar_slice_matrix(geometry, grid, projector)
    return scalar_matrix(geometry.rays(), grid, projector)


class Waves(Operator):
    """A smooth nonlinear operator: products of sines of a linear map, and a squared norm."""

    def __init__(self, dtype, domain_shape=(1, 3, 4), range_shape=(2, 3)):
        rng = np.random.default_rng(11)
        n, m = int(np.prod(domain_shape)), int(np.prod(range_shape))
        self.domain_shape, self.range_shape = domain_shape, range_shape
        self.weights = torch.from_numpy(rng.standard_normal((m, n)) / np.sqrt(n)).to(dtype)

    def _apply(self, x):
        flat = x.flatten(-len(self.domain_shape))
        mixed = flat @ self.weights.T
        result = torch.sin(mixed) * mixed.flip(-1) + 0.1 * flat.square().sum(-1, keepdim=True)
        return result.unflatten(-1, self.range_shape)


@dataclass(frozen=True)
class Entry:
    """One operator of the catalogue.

    Attributes:
        name: for people.
        build: makes it in a floating-point type.
        dtypes: those it can be made in.
        dense: its matrix computed another way, float64.
        twice: whether it has second derivatives.
        nested: whether it differentiates in forward mode itself, which torch cannot nest in its
            older forward mode (in ``torch.func`` it can).
        rounding: largest relative error next to the dense twin in float64.
    """

    name: str
    build: Callable[[torch.dtype], Operator]
    dtypes: tuple[torch.dtype, ...] = BOTH
    dense: Callable[[], np.ndarray] | None = None
    twice: bool = True
    nested: bool = False
    rounding: float = 1e-12


def ray(name, projector="siddon", dtype=F64):
    """The stored ray transform of a geometry of the catalogue."""
    return RayTransform(*GEOMETRIES[name], projector=projector, dtype=dtype)


def _rays():
    for name in GEOMETRIES:
        for projector in ("siddon", "joseph"):
            yield Entry(
                f"{projector} {name}",
                lambda dtype, n=name, p=projector: ray(n, p, dtype),
                dense=lambda n=name, p=projector: traced(n, p),
                # Chords in corners are differences of nearly equal numbers.
                rounding=1e-10,
            )


def difference_matrix(shape):
    """Forward differences along each axis, zero across the border, entry by entry."""
    index = np.arange(np.prod(shape)).reshape(shape)
    parts = []
    for axis in range(len(shape)):
        part = np.zeros((index.size, index.size))
        for position in np.ndindex(*shape):
            if position[axis] + 1 < shape[axis]:
                after = tuple(p + (a == axis) for a, p in enumerate(position))
                part[index[position], index[position]] = -1
                part[index[position], index[after]] = 1
        parts.append(part)
    return np.concatenate(parts)


def averaging_matrix(shape, factor):
    """Means over squares or cubes of pixels, entry by entry."""
    coarse = tuple(n // factor for n in shape)
    rows = np.arange(np.prod(coarse)).reshape(coarse)
    columns = np.arange(np.prod(shape)).reshape(shape)
    matrix = np.zeros((rows.size, columns.size))
    for position in np.ndindex(*shape):
        row = rows[tuple(p // factor for p in position)]
        matrix[row, columns[position]] = 1 / factor ** len(shape)
    return matrix


DENSE = np.random.default_rng(5).standard_normal((6, 12)) * (
    np.random.default_rng(6).uniform(size=(6, 12)) < 0.6
)
OTHER = np.random.default_rng(7).standard_normal((6, 12))
SQUARE = np.random.default_rng(9).standard_normal((12, 12))


def matrix(values, dtype, domain=(1, 3, 4), range_=(2, 3)):
    """A stored matrix as an operator."""
    return MatrixOperator(sparse.csr_matrix(values), domain, range_, dtype=dtype)


def _square(dtype):
    return matrix(SQUARE, dtype, range_=(1, 3, 4))


def _algebra():
    def a(dtype):
        return matrix(DENSE, dtype)

    def b(dtype):
        return matrix(OTHER, dtype)

    linear = {
        "matrix": (a, lambda: DENSE),
        "composition": (lambda t: a(t) @ _square(t), lambda: DENSE @ SQUARE),
        "sum": (lambda t: a(t) + b(t), lambda: DENSE + OTHER),
        "difference": (lambda t: a(t) - b(t), lambda: DENSE - OTHER),
        "multiple": (lambda t: -2.5 * a(t), lambda: -2.5 * DENSE),
        "negative": (lambda t: -a(t), lambda: -DENSE),
        "adjoint": (lambda t: a(t).T, lambda: DENSE.T),
        "stack": (
            lambda t: stack([a(t), b(t), 2 * a(t)]),
            lambda: np.concatenate([DENSE, OTHER, 2 * DENSE]),
        ),
        "gradient of a composition": (
            lambda t: Gradient((1, 3, 4)) @ _square(t),
            lambda: difference_matrix((3, 4)) @ SQUARE,
        ),
        "from scipy": (
            lambda t: from_scipy(sparse.csr_matrix(DENSE), (1, 3, 4), (2, 3), dtype=t),
            lambda: DENSE,
        ),
    }
    for name, (build, dense) in linear.items():
        yield Entry(name, build, dense=dense)
    nonlinear = {
        "nonlinear": Waves,
        "nonlinear composition": lambda t: Waves(t) @ _square(t),
        "linear of nonlinear": lambda t: matrix(DENSE[:, :6], t, (2, 3), (6,)) @ Waves(t),
        "nonlinear sum": lambda t: Waves(t) + a(t),
        "nonlinear difference": lambda t: a(t) - Waves(t),
        "nonlinear multiple": lambda t: 3 * Waves(t),
        "nonlinear stack": lambda t: stack([Waves(t), a(t)]),
    }
    for name, build in nonlinear.items():
        yield Entry(name, build)


def _jacobian(dtype):
    generator = torch.Generator().manual_seed(4)
    point = torch.randn((1, 3, 4), generator=generator, dtype=F64).to(dtype)
    return Jacobian(Waves(dtype), point)


def _jacobian_dense():
    jacobian = _jacobian(F64)
    operator, point = jacobian.operator, jacobian.point
    columns = []
    for k in range(12):
        unit = torch.zeros(12, dtype=F64)
        unit[k] = 1e-4
        up, down = (operator(point + s * unit.reshape(1, 3, 4)) for s in (1, -1))
        columns.append((up - down).flatten().numpy() / 2e-4)
    return np.stack(columns, 1)


def odl_ray_transform():
    """ODL's parallel-beam ray transform, run by ASTRA on the CPU."""
    space = odl.uniform_discr([-4, -4], [4, 4], (8, 8), dtype="float32")
    return tomo.RayTransform(
        space, tomo.parallel_beam_geometry(space, num_angles=5), impl="astra_cpu"
    )


def _odl_gradient():
    return odl.Gradient(odl.uniform_discr([0, 0], [1, 1.5], (3, 4)), pad_mode="symmetric")


_FLOAT64 = (F64,)
"""For operators that follow their input: the checks then use float64."""


def _others():
    yield Entry("gradient 2-D", lambda _: Gradient((1, 5, 4)), _FLOAT64, _dense_gradient(5, 4))
    yield Entry("gradient line", lambda _: Gradient((1, 1, 6)), _FLOAT64, _dense_gradient(1, 6))
    yield Entry(
        "gradient 3-D", lambda _: Gradient((1, 3, 4, 2)), _FLOAT64, _dense_gradient(3, 4, 2)
    )
    yield Entry("jacobian", _jacobian, dense=_jacobian_dense, rounding=1e-6, nested=True)
    yield Entry(
        "batched jacobian",
        lambda t: Waves(t).linearize(torch.linspace(-1, 1, 24, dtype=t).reshape(2, 1, 3, 4))[1],
        nested=True,
    )
    yield Entry("ODL ray transform", lambda t: from_odl(odl_ray_transform(), dtype=t), (F32,))
    yield Entry("ODL gradient", lambda t: from_odl(_odl_gradient(), dtype=t))
    yield Entry(
        "linear through ODL",
        lambda t: from_odl(to_odl(matrix(DENSE, t)), dtype=t),
        dense=lambda: DENSE,
    )
    yield Entry(
        "linear through weighted ODL spaces",
        lambda t: from_odl(
            to_odl(
                matrix(DENSE, t),
                odl.uniform_discr([0, 0], [1, 1], (3, 4), dtype=str(t)[6:]),
                odl.rn((2, 3), weighting=3.0, dtype=str(t)[6:]),
            ),
            dtype=t,
        ),
        dense=lambda: DENSE,
    )
    yield Entry(
        "nonlinear through ODL",
        lambda t: from_odl(to_odl(Waves(t)), dtype=t),
        twice=False,
        nested=True,
    )
    for projector, name in (("siddon", "parallel"), ("siddon", "fan"), ("joseph", "parallel")):
        yield Entry(
            f"ASTRA {projector} {name}",
            lambda _, n=name, p=projector: AstraRayTransform(*GEOMETRIES[n], projector=p),
            (F32,),
            lambda n=name, p=projector: traced(n, p),
        )
    yield Entry(
        "ASTRA in a composition",
        lambda _: Gradient(IMAGE.image_shape) @ AstraRayTransform(*GEOMETRIES["fan"]).T,
        (F32,),
    )
    for name in ("parallel", "fan", "cone slice"):
        yield Entry(
            f"FBP {name}",
            lambda _, n=name: FilteredBackProjection(*GEOMETRIES[n], filter="hann"),
            _FLOAT64,
        )
    for name in ("fan", "cone", "cone slice", "matrix"):
        yield Entry(
            f"traced {name}",
            lambda t, n=name: TracedRayTransform(*GEOMETRIES[n], dtype=t),
            dense=lambda n=name: traced(n, "siddon"),
            rounding=1e-10,
        )
    for name, (geometry, grid) in SYMMETRIC.items():
        yield Entry(
            f"symmetric {name}",
            lambda t, g=geometry, r=grid: SymmetricRayTransform(g, r, dtype=t),
            dense=lambda g=geometry, r=grid: scalar_matrix(g.rays(), r, "siddon"),
            rounding=1e-10,
        )
    yield Entry("FDK", lambda _: FDK(*GEOMETRIES["cone"]), _FLOAT64)
    for shape, factor in (((5, 4), 1), ((6, 8), 2), ((3, 6, 9), 3)):
        size = "x".join(map(str, shape))
        known = np.random.default_rng(len(shape)).uniform(size=(1, *shape)) < 0.4
        yield Entry(
            f"identity {size}",
            lambda _, s=shape: Identity((1, *s)),
            _FLOAT64,
            lambda s=shape: np.eye(int(np.prod(s))),
        )
        yield Entry(
            f"mask {size}",
            lambda _, k=known: Mask(k),
            _FLOAT64,
            lambda k=known: np.eye(k.size)[k.ravel()],
        )
        yield Entry(
            f"pixel average {size}",
            lambda _, s=shape, f=factor: PixelAverage((1, *s), f),
            _FLOAT64,
            lambda s=shape, f=factor: averaging_matrix(s, f),
        )


def _dense_gradient(*shape):
    return lambda: difference_matrix(shape)


class Around(Operator):
    """A generator near its initial parameters: ``(G(theta_0 + s x)) / s``.

    Networks of ReLUs have kinks, and no remainder is of second order across one. With a small s
    the steps of the checks, taken along normal numbers, rarely meet any; the derivative stays
    that of the generator.
    """

    def __init__(self, generator, scale=5e-4):
        self.generator, self.scale = generator, scale
        self.start = self.generator.initial(1).to(generator.dtype)
        self.domain_shape = self.generator.domain_shape
        self.range_shape = self.generator.range_shape

    def _apply(self, x):
        return self.generator(self.start + self.scale * x) / self.scale


def network_generator(network, image_shape, dtype=F64, seed=0):
    """A network with an input of normal numbers."""
    shape = network.input_shape(image_shape)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return NetworkGenerator(network, z.to(dtype), image_shape)


_NETWORKS = {
    "U-Net, sigmoid": (UNet((2, 2), (0, 0), normalisation=False, output="sigmoid"), (4, 5)),
    "U-Net, normalisation, skips, odd": (UNet((4, 8, 4), (0, 4, 4)), (9, 11)),
    "U-Net, nearest": (UNet((4, 4), (0, 1), upsampling="nearest"), (5, 6)),
    "U-Net, two input channels": (UNet((4, 4), (0, 2), in_channels=2), (6, 5)),
    "deep decoder": (DeepDecoder(3, 3, image_shape=(7, 10)), (7, 10)),
    "U-Net, colours": (UNet((4, 4), (0, 1), out_channels=3, output="sigmoid"), (6, 5)),
    "deep decoder, colours": (DeepDecoder(3, 2, out_channels=2, output="identity"), (6, 8)),
    "implicit network": (ImplicitNetwork(6, 5, 2, out_channels=3, frequency=2.0), (4, 5)),
}


def _around(network, image_shape, dtype):
    return Around(network_generator(network, image_shape, dtype))


def pretrained(network, image_shape, dtype=F64):
    """A network with parameters that are no longer its initial ones."""
    generator = network_generator(network, image_shape, dtype)
    noise = torch.randn(generator.n_parameters, generator=torch.Generator().manual_seed(13))
    return generator, (generator.initial(1) + 0.1 * noise).to(dtype)


def random_basis(n, dimension, dtype=F64, every=1):
    """Normal numbers, [n dimension], in every so many rows."""
    basis = torch.randn(n, dimension, generator=torch.Generator().manual_seed(14), dtype=F64)
    basis[torch.arange(n) % every != 0] = 0
    return basis.to(dtype)


def _restricted():
    def subspace(dtype):
        generator, theta = pretrained(UNet((4, 4), (0, 2)), (6, 5), dtype)
        return Around(Subspace(generator, theta, random_basis(theta.numel(), 7, dtype)))

    def sparse_subspace(dtype):
        return Subspace(
            PixelImage((1, 4, 5), output="sigmoid"),
            torch.linspace(-1, 1, 20, dtype=dtype),
            random_basis(20, 4, dtype, every=3),
        )

    def singular_values(dtype, rank=None):
        return Around(SingularValues(*pretrained(UNet((4, 4), (0, 2)), (6, 5), dtype), rank=rank))

    yield Entry("subspace of a U-Net", subspace, _FLOAT64)
    yield Entry("sparse subspace of a sigmoid", sparse_subspace)
    yield Entry("singular values of a U-Net", singular_values, _FLOAT64)
    yield Entry("singular values, rank 2", lambda t: singular_values(t, 2), _FLOAT64)


class SmoothClassifier(torch.nn.Module):
    """A classifier without kinks, with an activation that writes into its input."""

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(15)
        self.first = torch.nn.Conv2d(2, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.activation = torch.nn.SiLU(inplace=True)
        self.second = torch.nn.Conv2d(4, 3, 3, stride=2)
        self.head = torch.nn.Linear(3, 5)
        with torch.no_grad():
            for values in self.parameters():
                values.copy_(0.5 * torch.randn(values.shape, generator=random))
            self.norm.running_mean += 0.1
            self.norm.running_var += 0.3

    def forward(self, x):
        hidden = self.activation(self.norm(self.first(x)))
        return self.head(torch.tanh(self.second(hidden)).mean((2, 3)))


def _features():
    for layers in (("activation",), ("norm", "second", LOGITS)):
        yield Entry(
            f"features {', '.join(layers)}",
            lambda t, n=layers: FeatureOperator(
                SmoothClassifier().to(t), n, (2, 6, 7), mean=(0.4, 0.5), std=(0.2, 0.3)
            ),
            _FLOAT64,
        )


def _generators():
    # In float32 a step is either large enough to cross kinks or lost in rounding.
    for name, (network, shape) in _NETWORKS.items():
        yield Entry(name, lambda t, n=network, s=shape: _around(n, s, t), (F64,))
    fan_network = UNet((4, 4), (0, 1))
    yield Entry(
        "ray transform of a U-Net",
        lambda t: ray("fan", dtype=t) @ _around(fan_network, IMAGE.shape, t),
        (F64,),
    )
    for shape in ((1, 4, 5), (1, 2, 3, 4)):
        size = "x".join(map(str, shape[1:]))
        yield Entry(
            f"pixel image {size}",
            lambda _, s=shape: PixelImage(s),
            _FLOAT64,
            lambda s=shape: np.eye(int(np.prod(s))),
        )
        yield Entry(
            f"sigmoid pixel image {size}",
            lambda _, s=shape: PixelImage(s, output="sigmoid"),
            _FLOAT64,
        )
    yield Entry(
        "matrix after a pixel image",
        lambda t: matrix(DENSE, t) @ PixelImage((1, 3, 4)),
        dense=lambda: DENSE,
    )


ENTRIES = {
    e.name: e
    for e in (*_rays(), *_algebra(), *_others(), *_generators(), *_restricted(), *_features())
}


@cache
def build(name: str, dtype: torch.dtype) -> Operator:
    """The operator of a name; made once, since operators never change."""
    return ENTRIES[name].build(dtype)


def names(*, linear: bool | None = None, dtype: torch.dtype | None = None) -> list[str]:
    """Names of the operators that are linear (or not) and can be made in a type."""
    return [
        name
        for name, entry in ENTRIES.items()
        if (dtype is None or dtype in entry.dtypes)
        and (linear is None or isinstance(build(name, entry.dtypes[-1]), LinearOperator) == linear)
    ]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads only wait for each other on tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
