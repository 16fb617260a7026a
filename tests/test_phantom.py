"""Phantoms: values, orientation, independence of the resolution, seeds, errors."""

import numpy as np
import pytest

from dipct.errors import ConfigurationError
from dipct.measurement.grid import Grid
from dipct.phantom import (
    DISCS,
    default_peak,
    disc_centers,
    discs,
    ellipses,
    find_phantom,
    make_phantom,
    noise_disc,
    phantom_names,
    random_ellipses,
    random_ellipsoids,
    random_rectangles,
    rectangles,
    seeded_phantom_names,
    shepp_logan,
    shepp_logan_ellipsoids,
    walnut,
)
from dipct.phantom.ellipses import BALL_RADIUS, WALNUT_DISC_RADIUS
from dipct.phantom.ellipsoids import Ellipsoid, rotation_in_plane, sampler
from dipct.phantom.noise_masks import DISC_RADIUS
from dipct.phantom.random_field import RandomField
from dipct.phantom.sampling import render, unit_axes, unit_scale
from dipct.phantom.walnut import Walnut
from dipct.phantom.walnut_kernel import smooth_maximum, smooth_minimum

FIELD_OF_VIEW = 50.1
SEEDED = ("ellipses", "ellipses-in-disc", "noise-disc", "rectangles", "walnut")
# White noise has no limit as pixels get smaller: its own tests say what holds instead.
FUNCTIONS_OF_POSITION = [name for name in phantom_names() if name != "noise-disc"]


def square(n, ndim=2):
    return Grid((n,) * ndim, FIELD_OF_VIEW / n)


def pooled(image, factor):
    h, w = image.shape
    return image.reshape(h // factor, factor, w // factor, factor).mean(axis=(1, 3))


def brightest_point_of(image, grid, value):
    """World coordinates (x, y, ...) of the centre of mass of the pixels with one value."""
    weight = (np.abs(image - value) < 0.01).astype(float)
    assert weight.any()
    mesh = np.meshgrid(*grid.axes(), indexing="ij")
    return np.array([(weight * axis).sum() / weight.sum() for axis in reversed(mesh)])


# ---------------------------------------------------------------- every phantom


@pytest.mark.parametrize("name", phantom_names())
@pytest.mark.parametrize("shape", [(48, 48), (33, 61), (61, 33), (24, 32, 32), (1, 20, 30)])
def test_range_dtype_and_shape(name, shape):
    grid = Grid(shape, 0.8)
    image = make_phantom(name, grid, peak=2.0)
    assert image.shape == shape
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert image.min() >= 0.0
    assert 0.4 < image.max() <= 2.0


@pytest.mark.parametrize("name", phantom_names())
def test_default_peak_is_that_of_the_measured_walnut(name):
    grid = square(64)
    assert default_peak(grid) == pytest.approx(0.0699, abs=1e-4)
    image = make_phantom(name, grid)
    np.testing.assert_allclose(
        image, make_phantom(name, grid, peak=1.0) * np.float32(3.5 / FIELD_OF_VIEW), rtol=1e-6
    )
    assert 14 * image.max() <= 1.0


@pytest.mark.parametrize("name", phantom_names())
def test_attenuation_times_length_does_not_depend_on_the_unit_of_length(name):
    in_mm = make_phantom(name, Grid((40, 40), 1.0))
    in_cm = make_phantom(name, Grid((40, 40), 0.1))
    np.testing.assert_allclose(in_cm * 0.1, in_mm, atol=1e-6)


@pytest.mark.parametrize("name", phantom_names())
def test_image_moves_with_the_grid(name):
    centred = make_phantom(name, Grid((40, 40), 1.0))
    moved = make_phantom(name, Grid((40, 40), 1.0, center=(16.0, -8.0)))
    np.testing.assert_allclose(moved, centred, atol=1e-5)


@pytest.mark.parametrize("name", SEEDED)
@pytest.mark.parametrize("ndim", [2, 3])
def test_seed_decides_the_image(name, ndim):
    grid = square(32, ndim)
    first = make_phantom(name, grid, seed=4)
    np.testing.assert_array_equal(first, make_phantom(name, grid, seed=4))
    other = make_phantom(name, grid, seed=5)
    assert np.abs(first - other).mean() > 0.1 * first.mean()


@pytest.mark.parametrize("name", SEEDED)
def test_global_random_state_is_neither_used_nor_changed(name):
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = make_phantom(name, square(24), seed=3)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(first, make_phantom(name, square(24), seed=3))


@pytest.mark.parametrize("name", FUNCTIONS_OF_POSITION)
def test_same_phantom_at_every_resolution(name):
    coarse = make_phantom(name, square(64), seed=2, peak=1.0)
    for factor in (2, 5):
        fine = pooled(make_phantom(name, square(64 * factor), seed=2, peak=1.0), factor)
        assert np.abs(fine - coarse).mean() < 0.01
        assert np.corrcoef(fine.ravel(), coarse.ravel())[0, 1] > 0.99
        flipped = fine[::-1]
        assert np.abs(flipped - coarse).mean() > 0.01
        shifted = np.roll(fine, 1, axis=1)
        assert np.abs(shifted - coarse).mean() > 1.5 * np.abs(fine - coarse).mean()


@pytest.mark.parametrize("name", ["discs", "shepp-logan", "walnut"])
def test_image_is_the_central_slice_of_the_volume(name):
    image = make_phantom(name, square(40), seed=1, peak=1.0)
    volume = make_phantom(name, Grid((7, 40, 40), FIELD_OF_VIEW / 40), seed=1, peak=1.0)
    np.testing.assert_allclose(volume[3], image, atol=2e-4)
    assert np.abs(volume[0] - image).max() > 0.1


@pytest.mark.parametrize("sample", [sampler(DISCS), Walnut(0)], ids=["discs", "walnut"])
def test_small_blocks_give_the_same_volume(sample):
    grid = square(24, 3)
    whole = render(sample, grid, 2)
    for max_samples in (1, 500, 10_000):
        np.testing.assert_allclose(render(sample, grid, 2, max_samples), whole, atol=2e-3)


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize(
    "grid",
    [
        Grid((160, 160), 0.3),
        Grid((120, 160), 0.3, center=(7.0, -4.0)),
        Grid((20, 96, 96), 0.5, center=(3.0, 2.0, 11.0)),
    ],
)
def test_discs_lie_where_the_axes_say(grid):
    image = discs(grid)
    for disc, center in zip(DISCS, disc_centers(grid), strict=True):
        found = brightest_point_of(image, grid, disc.value)
        np.testing.assert_allclose(found, center, atol=0.5 * grid.pixel_size)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image[::-1],
        lambda image: image[:, ::-1],
        lambda image: image.T,
        lambda image: image[::-1, ::-1],
        lambda image: np.roll(image, 1, axis=0),
    ],
    ids=["upside down", "mirrored", "transposed", "turned", "shifted"],
)
def test_wrongly_oriented_discs_are_noticed(change):
    grid = Grid((160, 160), 0.3)
    image = change(discs(grid))
    errors = [
        np.abs(brightest_point_of(image, grid, disc.value) - center).max()
        for disc, center in zip(DISCS, disc_centers(grid), strict=True)
    ]
    assert max(errors) > 0.5 * grid.pixel_size


def test_row_zero_is_the_top():
    # The bright disc lies at x > 0, y > 0: in the upper right quarter of the array.
    image = discs(square(64))
    row, column = np.unravel_index(np.argmax(image), image.shape)
    assert row < 32 < column


def test_sum_of_a_disc_is_its_area():
    grid = square(200)
    ball = Ellipsoid(1.0, (0.2, -0.1, 0.0), (0.3, 0.3, 0.3))
    area = render(sampler([ball]), grid, 4).sum() * grid.pixel_size**2
    assert area == pytest.approx(np.pi * (0.3 * unit_scale(grid)) ** 2, rel=2e-3)


def test_ellipse_turns_counter_clockwise():
    x = y = np.array([-0.4, 0.0, 0.4])
    rising = Ellipsoid(1.0, (0.0, 0.0, 0.0), (0.7, 0.1, 1.0), rotation_in_plane(np.pi / 4))
    inside = rising.contains(np.zeros(1), y, x)[0]
    assert inside[2, 2] and inside[0, 0]
    assert not inside[0, 2] and not inside[2, 0]


def test_bounding_box_holds_the_ellipsoid():
    parts = random_ellipsoids(np.random.default_rng(0))[:20]
    axis = np.linspace(-1, 1, 60)
    for part in parts:
        inside = part.contains(axis, axis, axis)
        np.testing.assert_array_equal(sampler([part])(axis, axis, axis), part.value * inside)


def test_unit_axes_use_one_scale_and_descend_in_y():
    grid = Grid((10, 20, 40), 0.5, center=(1.0, 2.0, 3.0))
    z, y, x = unit_axes(grid, 2)
    assert (len(z), len(y), len(x)) == (10, 40, 80)
    assert np.all(np.diff(y) < 0) and np.all(np.diff(x) > 0) and np.all(np.diff(z) > 0)
    assert x.max() == pytest.approx(1 - 1 / 80)
    assert y.max() == pytest.approx(0.5 - 1 / 80)
    assert z.max() == pytest.approx(0.25 - 1 / 40)


# ---------------------------------------------------------------- Shepp-Logan


@pytest.mark.parametrize(
    ("x", "y", "value"),
    [
        (0.0, 0.90, 1.0),  # skull
        (0.0, -0.906, 1.0),
        (0.0, 0.75, 0.2),  # brain
        (0.22, 0.0, 0.0),  # right ventricle
        (-0.22, 0.0, 0.0),  # left ventricle
        (0.0, 0.45, 0.3),  # upper ellipse
        (0.0, -0.1, 0.3),
        (-0.08, -0.605, 0.3),
        (0.0, -0.605, 0.3),
        (0.06, -0.605, 0.3),
        (0.30, 0.25, 0.0),  # the ventricles lean outwards with rising y
        (-0.32, 0.30, 0.0),
        (0.30, -0.25, 0.2),
        (0.95, 0.0, 0.0),
        (0.0, -0.95, 0.0),
    ],
)
def test_shepp_logan_values(x, y, value):
    grid = Grid((400, 400), 2 / 400)
    rows, columns = grid.axes()
    image = shepp_logan(grid)
    found = image[np.argmin(np.abs(rows - y)), np.argmin(np.abs(columns - x))]
    assert found == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_shepp_logan_agrees_with_odl(ndim):
    odl = pytest.importorskip("odl")
    # ODL puts the outermost pixel centres, not the image's edges, at -1 and 1.
    axis = np.linspace(-1, 1, 65)
    space = odl.uniform_discr([-1] * ndim, [1] * ndim, (65,) * ndim)
    theirs = odl.core.phantom.shepp_logan(space, modified=True).asarray().T
    z = axis if ndim == 3 else np.zeros(1)
    ours = sampler(shepp_logan_ellipsoids())(z, axis, axis).reshape(theirs.shape)
    assert np.mean(np.abs(ours - theirs) > 1e-6) < 2e-3
    assert np.mean(np.abs(ours[..., ::-1, :] - theirs) > 1e-6) > 1e-2


def test_shepp_logan_lies_as_in_scikit_image():
    data = pytest.importorskip("skimage.data")
    theirs = data.shepp_logan_phantom()
    ours = shepp_logan(Grid(theirs.shape))
    assert np.abs(ours - theirs).mean() < 0.01
    assert np.abs(ours[::-1] - theirs).mean() > 0.01


# ---------------------------------------------------------------- random ellipses, rectangles


def test_ellipse_statistics():
    drawn = [random_ellipses(np.random.default_rng(seed)) for seed in range(200)]
    counts = np.array([len(parts) for parts in drawn])
    assert counts.max() <= 70
    assert counts.mean() == pytest.approx(40, abs=2)
    parts = [part for image in drawn for part in image]
    values = np.array([part.value for part in parts])
    assert -0.4 <= values.min() and values.max() <= 1.0
    assert values.mean() == pytest.approx(0.3, abs=0.02)
    centers = np.array([part.center[:2] for part in parts])
    assert np.abs(centers).max() <= 0.9
    semi_axes = np.array([part.semi_axes[:2] for part in parts])
    assert semi_axes.mean() == pytest.approx(0.2, abs=0.01)
    assert semi_axes.std() == pytest.approx(0.2, abs=0.01)


def test_ellipses_in_disc_statistics():
    d = WALNUT_DISC_RADIUS
    rng = np.random.default_rng(0)
    parts = [part for _ in range(150) for part in random_ellipses(rng, d)]
    radii = np.linalg.norm([part.center[:2] for part in parts], axis=1)
    assert radii.max() <= d
    assert radii.mean() == pytest.approx(2 * d / 3, abs=0.01)
    assert np.mean([part.semi_axes[:2] for part in parts]) == pytest.approx(0.2 * d, abs=0.005)


def test_ellipsoids_keep_to_their_ball():
    rng = np.random.default_rng(0)
    drawn = [random_ellipsoids(rng) for _ in range(20)]
    counts = [len(parts) for parts in drawn]
    assert max(counts) <= 210
    assert np.mean(counts) == pytest.approx(120, abs=10)
    for part in drawn[0]:
        arms = part.rotation * np.asarray(part.semi_axes)
        ends = np.asarray(part.center)[:, None] + np.concatenate([arms, -arms], axis=1)
        assert np.linalg.norm(ends, axis=0).max() <= BALL_RADIUS + 1e-9
        np.testing.assert_allclose(part.rotation @ part.rotation.T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_ellipses_reach_from_zero_to_one(seed):
    image = ellipses(square(128), seed=seed)
    assert image.min() == 0.0
    assert image.max() == 1.0
    assert 0.95 < ellipses(square(200), seed=seed).max() <= 1.0


def test_rectangle_statistics():
    rng = np.random.default_rng(0)
    drawn = [random_rectangles(rng, 5, 2) for _ in range(300)]
    parts = [part for image in drawn for part in image]
    values = np.array([part.value for part in parts])
    half_sides = np.array([part.half_sides for part in parts])
    centers = np.array([part.center for part in parts])
    assert values.min() >= 0.5 and values.max() <= 1.0
    assert half_sides.min() >= 0.1 and half_sides.max() <= 0.8
    assert np.abs(centers).max() <= 0.75
    for image in drawn:
        # Two orientations at right angles: all angles agree modulo 90 degrees, but for the spread.
        phases = np.exp(4j * np.array([part.angle for part in image]))
        assert np.abs(phases.mean()) > 0.8


def test_rectangles_have_flat_inside_and_smooth_edges():
    image = rectangles(square(128), seed=3, n_rectangles=1)
    flat = (image == 0) | (image == 1)
    assert flat.mean() > 0.9
    assert np.unique(np.round(image[~flat] * 64)).size > 8


# ---------------------------------------------------------------- walnut


@pytest.mark.parametrize("seed", range(4))
def test_walnut_looks_like_the_scanned_ones(seed):
    grid = square(250)
    image = walnut(grid, seed=seed)
    pixels = np.argwhere(image > 0.3)
    height, width = (pixels.max(axis=0) - pixels.min(axis=0) + 1) * grid.pixel_size
    assert 33 <= max(height, width) <= 37
    assert min(height, width) >= 30
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert np.all(border == 0)
    # The scanned walnut has 105 mm2 of shell and 218 mm2 of kernel by the same thresholds.
    shell = (image > 0.65).sum() * grid.pixel_size**2
    kernel = ((image > 0.48) & (image < 0.62)).sum() * grid.pixel_size**2
    assert 80 < shell < 140
    assert 160 < kernel < 350
    # Both kernel halves are there: left and right of the septum, with air inside the shell.
    for half in (image[:, :125], image[:, 125:]):
        assert ((half > 0.52) & (half < 0.62)).sum() * grid.pixel_size**2 > 80
    rows, columns = grid.axes()
    hollow = np.hypot(rows[:, None], columns) < 11
    assert 0.1 < np.mean(image[hollow] < 0.1) < 0.7


def test_walnut_closes_at_both_ends():
    volume = walnut(Grid((48, 48, 48), FIELD_OF_VIEW / 48))
    assert volume[0].max() == 0 and volume[-1].max() == 0
    along = volume.max(axis=(1, 2)) > 0.3
    length = np.flatnonzero(along).size * FIELD_OF_VIEW / 48
    assert 35 < length < 47


@pytest.mark.slow
def test_walnut_at_full_size_is_the_same_nut():
    coarse = walnut(square(126), seed=0)
    fine = pooled(walnut(square(504), seed=0), 4)
    assert np.abs(fine - coarse).mean() < 0.005
    assert np.abs(pooled(walnut(square(504), seed=1), 4) - coarse).mean() > 0.05


# ---------------------------------------------------------------- noise in a disc


def distance_from_centre(grid):
    _, y, x = unit_axes(grid)
    return np.hypot(y[:, None], x)


@pytest.mark.parametrize("shape", [(128, 128), (90, 150), (150, 90)])
def test_noise_disc_is_uniform_in_a_disc(shape):
    grid = Grid(shape, 0.7, (3.0, -5.0))
    image = noise_disc(grid, seed=1)
    distance, pixel = distance_from_centre(grid), 2 / max(shape)
    assert np.all(image[distance > DISC_RADIUS + pixel] == 0)
    inside = image[distance < DISC_RADIUS - pixel]
    counts = np.histogram(inside, bins=10, range=(0, 1))[0]
    expected = inside.size / 10
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(expected))


def autocorrelation(image, grid, shift):
    """Of neighbouring pixels of the square inside the disc, one or more columns apart."""
    inside = np.abs(np.array(np.meshgrid(*unit_axes(grid)[1:], indexing="ij"))).max(axis=0) < 0.6
    square_ = image[np.ix_(inside.any(axis=1), inside.any(axis=0))]
    return np.corrcoef(square_[:, shift:].ravel(), square_[:, :-shift].ravel())[0, 1]


def test_noise_disc_is_white():
    grid = square(200)
    image = noise_disc(grid)
    limit = 5 / np.sqrt(120 * 119)
    assert max(abs(autocorrelation(image, grid, shift)) for shift in (1, 2, 5)) < limit
    assert abs(autocorrelation(walnut(grid), grid, 1)) > limit
    assert abs(autocorrelation((image + np.roll(image, 1, axis=1)) / 2, grid, 1)) > limit


@pytest.mark.parametrize("factor", [2, 5])
def test_noise_disc_depends_on_the_resolution_as_white_noise_does(factor):
    grid = square(60)
    inside = distance_from_centre(grid) < DISC_RADIUS - 2 / 60
    coarse = noise_disc(grid)[inside]
    fine = pooled(noise_disc(square(60 * factor)), factor)[inside]
    assert abs(np.corrcoef(coarse, fine)[0, 1]) < 5 / np.sqrt(inside.sum())
    assert coarse.std() == pytest.approx(1 / np.sqrt(12), rel=0.05)
    assert fine.std() == pytest.approx(coarse.std() / factor, rel=0.07)


# ---------------------------------------------------------------- building blocks


def test_random_field_equals_the_sum_of_its_waves():
    field = RandomField.draw(np.random.default_rng(0), 0.1, 0.5, 20)
    z, y, x = np.linspace(-1, 1, 3), np.linspace(1, -1, 7), np.linspace(-1, 1, 5)
    points = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).transpose(2, 1, 0, 3)
    expected = np.sqrt(2 / 20) * np.cos(points @ field.wave_vectors.T + field.phases).sum(axis=-1)
    np.testing.assert_allclose(field(z, y, x), expected, atol=1e-4)


def test_random_field_has_unit_variance_and_keeps_to_its_band():
    field = RandomField.draw(np.random.default_rng(1), 0.05, 0.2, 64)
    wavelengths = 2 * np.pi / np.linalg.norm(field.wave_vectors, axis=1)
    assert wavelengths.min() >= 0.05 and wavelengths.max() <= 0.2
    axis = np.linspace(-2, 2, 60)
    values = field(axis, axis, axis)
    assert values.mean() == pytest.approx(0, abs=0.05)
    assert values.std() == pytest.approx(1, abs=0.05)


def test_smooth_minimum_and_maximum_bound_the_sharp_ones():
    a, b = np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-1, 1, 41))
    low, high = smooth_minimum(a, b, 0.2), smooth_maximum(a, b, 0.2)
    sharp = np.minimum(a, b)
    assert np.all(low <= sharp + 1e-12) and np.all(low >= sharp - 0.05 - 1e-6)
    apart = np.abs(a - b) > 0.2
    np.testing.assert_allclose(low[apart], sharp[apart], atol=1e-12)
    np.testing.assert_allclose(high, -smooth_minimum(-a, -b, 0.2))
    assert np.all(high >= np.maximum(a, b) - 1e-12)


# ---------------------------------------------------------------- names and errors


@pytest.mark.parametrize("name", ["Shepp-Logan", "shepp_logan", " SHEPP LOGAN "])
def test_spelling_of_names_is_forgiving(name):
    np.testing.assert_array_equal(
        make_phantom(name, square(16)), make_phantom("shepp-logan", square(16))
    )


def test_names():
    assert set(SEEDED) == set(seeded_phantom_names()) < set(phantom_names())
    assert find_phantom(" Noise_DISC") == "noise-disc"


@pytest.mark.parametrize(
    ("name", "expected"), [("walnt", "walnut"), ("shep-logan", "shepp-logan"), ("disks", "discs")]
)
def test_unknown_name_gets_a_near_one(name, expected):
    with pytest.raises(ConfigurationError, match=rf"Did you mean .*{expected}"):
        make_phantom(name, square(16))


def test_unknown_name_without_a_near_one_lists_all():
    with pytest.raises(ConfigurationError) as caught:
        make_phantom("xyz", square(16))
    assert "Did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in phantom_names())


@pytest.mark.parametrize("peak", [0.0, -1.0, np.nan, np.inf])
def test_impossible_peak(peak):
    with pytest.raises(ConfigurationError, match="peak"):
        make_phantom("discs", square(16), peak=peak)


@pytest.mark.parametrize("seed", [-1, 1.5, True, None])
def test_impossible_seed(seed):
    with pytest.raises(ConfigurationError, match="seed"):
        make_phantom("walnut", square(16), seed=seed)
