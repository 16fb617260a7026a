"""Generators of pretrained networks: on an affine subspace, and of singular values."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from catalogue import (
    F32,
    F64,
    network_generator,
    one_thread,  # noqa: F401
    pretrained,
    random_basis,
)

from dipct.errors import ConfigurationError, DataError, DtypeError, ShapeError
from dipct.generator import (
    DeepDecoder,
    Kind,
    PixelImage,
    SingularValues,
    Subspace,
    UNet,
    has_bfloat16,
    principal_directions,
    sparsify,
    trajectory,
)

# Torch itself still uses what it deprecates, on the first forward-mode derivative in a process.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

NETWORKS = {
    "no normalisation": (UNet((4, 4), (0, 2), normalisation=False, output="sigmoid"), (7, 6)),
    "normalisation": (UNet((4, 8, 4), (0, 0, 4)), (9, 11)),
}
UNETS = tuple(NETWORKS)
DECODER = DeepDecoder(4, 3, image_shape=(9, 11)), (9, 11)
every_unet = pytest.mark.parametrize("name", UNETS)
both_types = pytest.mark.parametrize("dtype", [F32, F64], ids=str)
needs_bfloat16 = pytest.mark.skipif(
    not has_bfloat16(torch.device("cpu")), reason="this CPU has no bfloat16 instructions"
)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def difference(found, expected):
    return float((found - expected).norm() / expected.norm())


# --- subspace -----------------------------------------------------------------------------------

DIMENSION = 5


def restricted(name, every=1, dtype=F64):
    """A generator, its parameters, a basis of which one of so many rows is not zero."""
    if name == "pixels":
        generator = PixelImage((1, 5, 6), output="sigmoid")
        theta = normal(30, dtype=dtype)
    else:
        generator, theta = pretrained(*NETWORKS[name], dtype)
    return generator, theta, 0.1 * random_basis(theta.numel(), DIMENSION, dtype, every)


every_restriction = pytest.mark.parametrize(
    ("name", "every"), [(name, every) for name in (*UNETS, "pixels") for every in (1, 3)]
)


def dense_images(generator, theta, basis, coefficients):
    """The definition, column by column."""
    for k in range(basis.shape[1]):
        theta = theta + coefficients[k] * basis[:, k]
    return generator(theta)


@every_restriction
def test_subspace_equals_the_definition(name, every):
    generator, theta, basis = restricted(name, every)
    c = normal(DIMENSION, seed=1)
    expected = dense_images(generator, theta, basis, c)
    assert difference(Subspace(generator, theta, basis)(c), expected) < 1e-12
    assert difference(generator(theta), expected) > 1e-3, "the coefficients matter"
    wrong = {
        "basis": (theta, basis + 0.02 * normal(*basis.shape, seed=2)),
        "kept rows": (theta, basis.roll(1, 0)),
        "order": (theta, basis.flip(1)),
        "sign": (theta, -basis),
        "origin": (theta + 0.02 * normal(*theta.shape, seed=2), basis),
    }
    for what, (origin, directions) in wrong.items():
        found = Subspace(generator, origin, directions)(c)
        assert difference(found, expected) > 1e-4, what


@every_restriction
def test_subspace_derivatives_are_those_of_the_chain_rule(name, every):
    generator, theta, basis = restricted(name, every)
    subspace, c, v = Subspace(generator, theta, basis), *normal(2, DIMENSION, seed=1)
    point, w = theta + basis @ c, normal(*generator.range_shape, seed=2)
    assert difference(subspace.jvp(c, v), generator.jvp(point, basis @ v)) < 1e-11
    assert difference(subspace.vjp(c, w), basis.T @ generator.vjp(point, w)) < 1e-11
    assert difference(subspace.jvp(c, v), generator.jvp(theta, basis @ v)) > 1e-4
    _, jacobian = subspace.linearize(c)
    assert difference(jacobian.T(w), subspace.vjp(c, w)) < 1e-12


def test_subspace_has_its_coefficients_as_parameters():
    generator, theta, basis = restricted("normalisation")
    subspace = Subspace(generator, theta, basis)
    (parameter,) = subspace.layout.parameters
    assert (parameter.name, parameter.block) == ("coefficients", "subspace")
    assert (parameter.kind, parameter.shape) == (Kind.COEFFICIENTS, (DIMENSION,))
    assert subspace.domain_shape == (DIMENSION,) and subspace.n_parameters == DIMENSION
    assert subspace.range_shape == generator.range_shape
    assert torch.equal(subspace.initial(3), torch.zeros(DIMENSION))
    assert torch.equal(subspace(subspace.initial(3).double()), generator(theta))


@pytest.mark.parametrize("every", [1, 3])
def test_subspace_gives_the_parameters_of_the_network(every):
    generator, theta, basis = restricted("normalisation", every)
    subspace, c = Subspace(generator, theta, basis), normal(2, 3, DIMENSION)
    expected = theta + torch.einsum("pk,abk->abp", basis, c)
    torch.testing.assert_close(subspace.parameters(c), expected, rtol=1e-12, atol=1e-13)
    assert torch.equal(subspace(c), generator(subspace.parameters(c)))
    still = basis.abs().amax(1) == 0
    assert torch.equal(subspace.parameters(c)[..., still], expected[..., still])
    with pytest.raises(ShapeError, match=f"{DIMENSION}"):
        subspace.parameters(theta)


def test_zero_rows_of_the_basis_are_not_stored():
    generator, theta, basis = restricted("normalisation", every=10)
    sizes = [
        sum(t.numel() for t in Subspace(generator, theta, b)._tensors())
        for b in (basis, random_basis(*basis.shape))
    ]
    assert sizes[1] - sizes[0] > 0.8 * basis.numel() - theta.numel()


@every_restriction
def test_a_batch_of_coefficients_is_a_batch_of_images(name, every):
    subspace = Subspace(*restricted(name, every))
    c = normal(2, 3, DIMENSION)
    looped = torch.stack([subspace(one) for one in c.reshape(-1, DIMENSION)])
    torch.testing.assert_close(
        subspace(c), looped.reshape(2, 3, *subspace.range_shape), rtol=1e-11, atol=1e-12
    )
    assert subspace(torch.zeros(0, DIMENSION, dtype=F64)).shape == (0, *subspace.range_shape)


@every_restriction
def test_subspace_changes_its_type(name, every):
    double = Subspace(*restricted(name, every))
    single, c = double.to("cpu", F32), normal(DIMENSION)
    assert (single.dtype, double.dtype) == (F32, F64)
    assert difference(single(c.float()).double(), double(c)) < 1e-4
    with pytest.raises(DtypeError, match="float32"):
        single(c)


def test_parameters_changed_in_place_do_not_change_the_subspace():
    generator, theta, basis = restricted("normalisation")
    theta.requires_grad_()
    subspace, c = Subspace(generator, theta, basis), normal(DIMENSION)
    before = subspace(c)
    with torch.no_grad():
        theta.add_(1)
    assert torch.equal(subspace(c), before) and not before.requires_grad


@pytest.mark.parametrize(
    ("origin", "basis", "error", "match"),
    [
        (normal(29), normal(30, 2), ShapeError, r"origin.*30"),
        (normal(2, 30), normal(30, 2), ShapeError, r"origin.*30"),
        (normal(30), normal(29, 2), ShapeError, r"basis.*P=30"),
        (normal(30), normal(30), ShapeError, r"basis.*P=30"),
        (normal(30), normal(2, 30, 2), ShapeError, r"basis.*P=30"),
        (normal(30), normal(30, 0), ShapeError, r"between 1 and P=30.*\(30, 0\)"),
        (normal(30), normal(30, 31), ShapeError, r"between 1 and P=30.*\(30, 31\)"),
        (normal(30), normal(30, 2, dtype=F32), DtypeError, r"float32.*float64"),
        (torch.zeros(30, dtype=torch.int64), normal(30, 2), DtypeError, "floating-point"),
        (np.zeros(30), normal(30, 2), DtypeError, "ndarray"),
        (normal(30), np.zeros((30, 2)), DtypeError, "ndarray"),
        (normal(30), torch.zeros(30, 2, dtype=F64), DataError, "zero"),
    ],
)
def test_subspaces_that_cannot_be_are_refused(origin, basis, error, match):
    generator = PixelImage((1, 5, 6))
    with pytest.raises(error, match=match):
        Subspace(generator, origin, basis)
    assert Subspace(generator, normal(30), normal(30, 30)).n_parameters == 30


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    generator, theta, basis = restricted("normalisation", 2)
    for entry in (0, 1):
        wrong = basis.clone()
        wrong[entry, 3] = bad
        with pytest.raises(DataError, match=r"basis.*finite"):
            Subspace(generator, theta, wrong)
        with pytest.raises(DataError, match=r"snapshots.*finite"):
            principal_directions(wrong.T, 2)
        with pytest.raises(DataError, match=r"basis.*finite"):
            sparsify(wrong, 20)
    theta[-1] = bad
    with pytest.raises(DataError, match=r"origin.*finite"):
        Subspace(generator, theta, basis)
    with pytest.raises(DataError, match=r"pretrained.*finite"):
        SingularValues(generator, theta)


def test_parameters_of_another_type_than_the_network_are_refused():
    generator, theta, basis = restricted("normalisation")
    with pytest.raises(DtypeError, match=r"float64.*origin is torch\.float32"):
        Subspace(generator, theta.float(), basis.float())
    with pytest.raises(DtypeError, match=r"float64.*parameters is torch\.float32"):
        SingularValues(generator, theta.float())


# --- directions ---------------------------------------------------------------------------------


def snapshots_of(shape, dtype=F64, decay=4.0, seed=3):
    """A walk around a point far from zero whose directions differ in size."""
    walk = normal(*shape, seed=seed).cumsum(0) * torch.logspace(0, -decay, shape[1], dtype=F64)
    return (normal(shape[1], seed=seed + 1) + 0.1 * walk).to(dtype)


def cosines(one, other):
    """Of corresponding columns, up to sign."""
    return (one.double() * other.double()).sum(0).abs()


def non_orthonormality(basis):
    basis = basis.double()
    return float((basis.T @ basis - torch.eye(basis.shape[1], dtype=F64)).abs().max())


@pytest.mark.parametrize("shape", [(8, 60), (30, 200), (60, 9), (1, 40)], ids=str)
@pytest.mark.parametrize("chunk", [2**24, 70], ids=["one chunk", "chunks"])
@both_types
def test_principal_directions_are_left_singular_vectors(shape, chunk, dtype, monkeypatch):
    monkeypatch.setattr(trajectory, "_CHUNK", chunk)
    snapshots = snapshots_of(shape, dtype, decay=1.0)
    expected, values, _ = torch.linalg.svd(snapshots.double().T, full_matrices=False)
    dimension = min(*shape, 6)
    found = principal_directions(snapshots, dimension)
    assert found.shape == (shape[1], dimension) and found.dtype == dtype
    limit = 1e-6 if dtype == F32 else 1e-11
    assert non_orthonormality(found) < limit
    assert float((cosines(found, expected[:, :dimension]) - 1).abs().max()) < limit
    sizes = torch.linalg.vector_norm(snapshots.double() @ found.double(), dim=0)
    torch.testing.assert_close(sizes, values[:dimension], rtol=10 * limit, atol=0)
    if shape[0] > 1:
        centred = torch.linalg.svd((snapshots - snapshots.mean(0)).T, full_matrices=False)[0]
        assert float(cosines(found, centred[:, :dimension]).min()) < 0.9


@both_types
def test_directions_of_small_singular_values_are_orthonormal(dtype):
    left, right = (torch.linalg.qr(normal(n, 25, seed=n))[0] for n in (300, 25))
    values = torch.logspace(0, -6.5, 25, dtype=F64)
    snapshots = ((right * values) @ left.T).to(dtype)
    found = principal_directions(snapshots, 25)
    assert non_orthonormality(found) < (1e-6 if dtype == F32 else 1e-9)
    # Inner products alone would not do.
    gram = snapshots.double() @ snapshots.double().T
    eigenvalues, vectors = torch.linalg.eigh(gram)
    assert non_orthonormality(snapshots.double().T @ (vectors * eigenvalues.rsqrt())) > 1e-6
    sizes = torch.linalg.vector_norm(snapshots.double() @ found.double(), dim=0)
    torch.testing.assert_close(sizes[:20], values[:20], rtol=0.05, atol=0)


def test_fewer_directions_are_the_first_of_more():
    snapshots = snapshots_of((12, 80))
    few, more = principal_directions(snapshots, 3), principal_directions(snapshots, 9)
    assert float((cosines(few, more[:, :3]) - 1).abs().max()) < 1e-8
    assert float(cosines(few, more[:, 3:6]).max()) < 1e-4


def test_many_parameters_need_no_large_matrix():
    # A matrix of their number squared would have 10^11 entries.
    snapshots = normal(4, 300_000, dtype=F32)
    found = principal_directions(snapshots, 3)
    assert non_orthonormality(found) < 1e-6
    projected = snapshots @ found
    assert 0.7 < float(projected.norm() / snapshots.norm()) < 1


@pytest.mark.parametrize("rank", [1, 3, 7])
@both_types
def test_dimensions_above_the_rank_are_refused(rank, dtype):
    snapshots = (normal(20, rank, seed=1) @ normal(rank, 90, seed=2)).to(dtype)
    assert principal_directions(snapshots, rank).shape == (90, rank)
    with pytest.raises(ConfigurationError, match=rf"dimension={rank + 1}.*possible is {rank};"):
        principal_directions(snapshots, rank + 1)
    full = principal_directions(normal(20, 90, dtype=dtype), 20)
    assert non_orthonormality(full) < 1e-5
    with pytest.raises(ConfigurationError, match="possible is 20;"):
        principal_directions(normal(20, 90, dtype=dtype), 21)
    with pytest.raises(ConfigurationError, match="possible is 0;"):
        principal_directions(torch.zeros(3, 9, dtype=dtype), 1)


@both_types
@pytest.mark.parametrize("kept", [6, 17, 50])
def test_sparsified_bases_keep_the_rows_of_largest_leverage(kept, dtype):
    basis = torch.linalg.qr(normal(50, 6) * torch.logspace(0, -2, 50, dtype=F64)[:, None])[0]
    basis = basis.to(dtype)
    found = sparsify(basis, kept)
    # Leverage scores as the diagonal of the projection on the subspace.
    scores = np.diag((basis.double() @ basis.double().T).numpy())
    chosen = np.sort(np.argsort(scores)[-kept:])
    np.testing.assert_array_equal(found.any(1).nonzero()[:, 0].numpy(), chosen)
    assert torch.equal(found[chosen], basis[chosen]) and found.dtype == dtype
    lost = basis.square().sum() - found.square().sum()
    random_rows = basis[torch.randperm(50, generator=torch.Generator().manual_seed(0))[kept:]]
    assert float(lost) <= float(random_rows.square().sum()) + 1e-6
    assert (kept == 50) == torch.equal(found, basis)


def test_sparsified_subspaces_move_only_the_kept_parameters():
    generator, theta = pretrained(*NETWORKS["normalisation"])
    basis = sparsify(principal_directions(snapshots_of((9, theta.numel())), 4), 40)
    subspace, c = Subspace(generator, theta, basis), normal(4)
    assert int((subspace.parameters(c) != theta).sum()) == 40
    assert difference(subspace(c), dense_images(generator, theta, basis, c)) < 1e-12


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, None])
def test_counts_must_be_whole_numbers(bad):
    with pytest.raises(ConfigurationError, match="whole number"):
        principal_directions(normal(4, 9), bad)
    with pytest.raises(ConfigurationError, match="whole number"):
        sparsify(torch.eye(9, 3), bad)
    with pytest.raises(ConfigurationError, match="whole number"):
        SingularValues(*pretrained(*NETWORKS["normalisation"]), rank=bad if bad is not None else 0)


def test_bases_that_cannot_be_sparsified_are_refused():
    basis = torch.linalg.qr(normal(20, 3))[0]
    for kept in (2, 21):
        with pytest.raises(ConfigurationError, match=f"3 to 20 rows.*got {kept}"):
            sparsify(basis, kept)
    for wrong in (1.1 * basis, basis + 0.1, basis[:, [0, 0, 1]]):
        with pytest.raises(DataError, match="orthonormal"):
            sparsify(wrong, 10)
    assert sparsify(basis, 20).shape == (20, 3)


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        (normal(9), ShapeError, r"\(9,\)"),
        (normal(2, 3, 4), ShapeError, r"\(2, 3, 4\)"),
        (np.zeros((4, 9)), DtypeError, "ndarray"),
        (torch.zeros(4, 9, dtype=torch.bfloat16), DtypeError, "bfloat16"),
        (torch.zeros(0, 9), DataError, "must have values"),
        (torch.zeros(4, 0), DataError, "must have values"),
    ],
)
def test_what_is_no_matrix_is_refused(wrong, error, match):
    with pytest.raises(error, match=match):
        principal_directions(wrong, 1)
    with pytest.raises(error, match=match):
        sparsify(wrong, 1)


# --- singular values ----------------------------------------------------------------------------


def replaced_layers(network):
    """Weights of the convolutions in the up and down blocks."""
    return [
        p
        for p in network.parameters
        if p.block.split("_")[0] in ("up", "down") and p.kind is Kind.CONVOLUTION
    ]


@every_unet
@both_types
def test_singular_values_begin_with_the_pretrained_image(name, dtype):
    generator, theta = pretrained(*NETWORKS[name], dtype)
    free = SingularValues(generator, theta)
    start = free.initial(0)
    assert start.dtype == F32 and torch.equal(start, free.initial(1))
    expected = generator(theta)
    assert difference(free(start.to(dtype)), expected) < 1e-5
    assert difference(free.parameters(start.to(dtype)), theta) < 1e-6
    other = SingularValues(generator, theta.roll(1))
    for wrong in (free(1.1 * start.to(dtype)), other(start.to(dtype))):
        assert difference(wrong, expected) > 1e-3
    # Nothing that is handed out is shared.
    start.zero_()
    assert float(free.initial(0).min()) > 0


@every_unet
def test_layout_of_singular_values(name):
    generator, theta = pretrained(*NETWORKS[name])
    free, layers = SingularValues(generator, theta), replaced_layers(NETWORKS[name][0])
    assert [p.name for p in free.layout.parameters] == [
        p.name.replace("weight", "singular_values") for p in layers
    ]
    assert [p.block for p in free.layout.parameters] == [p.block for p in layers]
    assert {p.kind for p in free.layout.parameters} == {Kind.SINGULAR_VALUES}
    weights = generator.layout.split(theta)
    for values, layer in zip(free.layout.split(free.initial(0)).values(), layers, strict=True):
        expected = np.linalg.svd(
            weights[layer.name].reshape(layer.shape[0], -1).numpy(), compute_uv=False
        )
        np.testing.assert_allclose(values, expected, rtol=1e-5)


@every_unet
@pytest.mark.parametrize("rank", [1, 2, 3, 100])
def test_rank_keeps_the_leading_singular_values(name, rank):
    generator, theta = pretrained(*NETWORKS[name])
    free = SingularValues(generator, theta, rank=rank)
    weights = generator.layout.split(theta)
    for layer in replaced_layers(NETWORKS[name][0]):
        u, s, vh = np.linalg.svd(weights[layer.name].flatten(1).numpy(), full_matrices=False)
        s[rank:] = 0
        weights[layer.name] = torch.from_numpy((u * s) @ vh).reshape(layer.shape)
    expected = generator(generator.layout.join(weights))
    start = free.initial(0).double()
    assert all(p.size <= rank for p in free.layout.parameters)
    assert difference(free(start), expected) < 1e-5
    assert (difference(generator(theta), expected) > 1e-3) == (rank < 4)


@every_unet
def test_everything_else_stays_as_pretrained(name):
    generator, theta = pretrained(*NETWORKS[name])
    free = SingularValues(generator, theta, blocks=["down_1"])
    found = free.parameters(free.initial(0).double() * 1.5 + 0.1)
    moved = generator.layout.mask(blocks=["down_1"], kinds=[Kind.CONVOLUTION])
    assert torch.equal(found[~moved], theta[~moved])
    assert bool((found[moved] != theta[moved]).all())


def test_the_map_is_that_of_three_layers():
    """The factorisation as published: V^T, a scaling of channels, and U of a single pixel."""
    generator, theta = pretrained(*NETWORKS["normalisation"])
    free = SingularValues(generator, theta, rank=3)
    values = free.initial(0).double() * (1 + 0.3 * normal(free.n_parameters))
    found = generator.layout.split(free.parameters(values))
    scales = free.layout.split(values)
    for layer in replaced_layers(NETWORKS["normalisation"][0]):
        weight = generator.layout.split(theta)[layer.name]
        u, _, vh = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        x = normal(1, layer.shape[1], 8, 7)
        inner = F.conv2d(x, vh[:3].reshape(3, *layer.shape[1:]), stride=2, padding=1)
        inner = inner * scales[layer.name.replace("weight", "singular_values")][:, None, None]
        expected = F.conv2d(inner, u[:, :3, None, None])
        assert difference(F.conv2d(x, found[layer.name], stride=2, padding=1), expected) < 1e-12
        assert difference(F.conv2d(x, weight, stride=2, padding=1), expected) > 1e-2


@every_unet
def test_derivatives_by_singular_values_are_those_of_differences(name):
    generator, theta = pretrained(*NETWORKS[name])
    free = SingularValues(generator, theta)
    start, step = free.initial(0).double(), 1e-6
    w = normal(*free.range_shape)
    gradient = free.vjp(start, w)
    for k in range(0, free.n_parameters, 5):
        unit = torch.zeros_like(start)
        unit[k] = 1
        expected = (free(start + step * unit) - free(start - step * unit)) / (2 * step)
        pushed = free.jvp(start, unit)
        torch.testing.assert_close(pushed, expected, rtol=1e-6, atol=1e-8)
        assert float(gradient[k]) == pytest.approx(float((w * pushed).sum()), rel=1e-9, abs=1e-12)
        neighbour = free.jvp(start, unit.roll(1))
        assert difference(neighbour, expected) > 1e-3


@every_unet
def test_a_batch_of_singular_values_is_a_batch_of_images(name):
    free = SingularValues(*pretrained(*NETWORKS[name]))
    values = free.initial(0) + 0.1 * normal(2, 3, free.n_parameters)
    looped = torch.stack([free(one) for one in values.reshape(-1, free.n_parameters)])
    torch.testing.assert_close(
        free(values), looped.reshape(2, 3, *free.range_shape), rtol=1e-11, atol=1e-12
    )
    assert free(values[:0]).shape == (0, 3, *free.range_shape)


@every_unet
def test_singular_values_change_their_type(name):
    double = SingularValues(*pretrained(*NETWORKS[name]))
    single, start = double.to("cpu", F32), double.initial(0)
    assert (single.dtype, double.dtype) == (F32, F64)
    assert torch.equal(single.initial(0), start)
    assert difference(single(start).double(), double(start.double())) < 1e-4


def test_parameters_changed_in_place_do_not_change_singular_values():
    generator, theta = pretrained(*NETWORKS["normalisation"])
    theta.requires_grad_()
    free = SingularValues(generator, theta)
    before = free(free.initial(0).double())
    with torch.no_grad():
        theta.add_(1)
    assert torch.equal(free(free.initial(0).double()), before) and not before.requires_grad


def test_blocks_are_chosen_by_name():
    generator, theta = pretrained(*DECODER)
    with pytest.raises(ConfigurationError, match=r"up_ or down_.*level_1.*outc.*in blocks"):
        SingularValues(generator, theta)
    free = SingularValues(generator, theta, blocks=("level_3", "level_1"))
    assert list(free.layout.blocks) == ["level_1", "level_3"]
    assert difference(free(free.initial(0).double()), generator(theta)) < 1e-5
    for unknown in (["level_1", "up_1"], "up_1"):
        with pytest.raises(ConfigurationError, match=r"no block up_1; there are level_1"):
            SingularValues(generator, theta, blocks=unknown)
    with pytest.raises(ConfigurationError, match="among none"):
        SingularValues(generator, theta, blocks=())
    pixels = PixelImage((1, 3, 4))
    with pytest.raises(ConfigurationError, match="no convolution in blocks among pixels"):
        SingularValues(pixels, normal(12), blocks=["pixels"])


def test_pretrained_parameters_of_another_shape_are_refused():
    generator, theta = pretrained(*NETWORKS["normalisation"])
    for wrong in (theta[1:], theta[None]):
        with pytest.raises(ShapeError, match=f"{generator.n_parameters}"):
            SingularValues(generator, wrong)


# --- bfloat16 -----------------------------------------------------------------------------------


@needs_bfloat16
@pytest.mark.parametrize("kind", ["subspace", "singular values"])
def test_networks_in_bfloat16_can_be_restricted(kind):
    exact = network_generator(UNet((16, 16), (0, 4)), (16, 16), F32)
    theta = exact.initial(0)

    def restrict(generator):
        if kind == "subspace":
            return Subspace(generator, theta, 0.01 * random_basis(theta.numel(), 3, F32))
        return SingularValues(generator, theta)

    one, other = restrict(exact), restrict(exact.with_precision("bfloat16"))
    start, w = one.initial(0) + 0.1, normal(*one.range_shape, dtype=F32)
    assert other(start).dtype == F32
    assert 1e-6 < difference(other(start), one(start)) < 0.05
    gradient = other.vjp(start, w)
    assert gradient.dtype == F32
    assert float(F.cosine_similarity(gradient, one.vjp(start, w), dim=0)) > 0.97
    with pytest.raises(DtypeError, match="with_precision"):
        other.jvp(start, start)
