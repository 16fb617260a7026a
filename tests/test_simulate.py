from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import io
from small_scans import PIXELS, matrix_scan, small_scan

from dipct import GaussianNoise, PoissonNoise, Scan, example_scan, read_run, simulate
from dipct.errors import (
    ConfigurationError,
    DataError,
    DipctError,
    FileFormatError,
    GeometryError,
    InsufficientMemoryError,
)
from dipct.measurement.digest import scan_digest
from dipct.measurement.grid import Grid
from dipct.measurement.nominal import columns_across, cwi_walnut_slice, nominal_scan
from dipct.operator.ray_tracing import assemble_matrix
from dipct.phantom import default_peak, make_phantom, phantom_names
from dipct.pipeline import reconstruct
from dipct.run import write_run

KINDS = tuple(PIXELS)


# Geometries


@pytest.mark.parametrize(("pixels", "columns"), [(28, 41), (128, 183)])
def test_columns_cover_the_diagonal(pixels, columns):
    geometry, grid = nominal_scan("parallel", pixels=pixels)
    assert geometry.n_columns == columns == columns_across(grid)
    assert geometry.column_spacing == grid.pixel_size
    assert geometry.n_columns * geometry.column_spacing >= np.hypot(*grid.size)


@pytest.mark.parametrize("kind", KINDS)
def test_nominal_scans_are_sized_to_the_field_of_view(kind):
    geometry, grid = nominal_scan(kind, pixels=PIXELS[kind], views=9)
    assert grid.shape == (PIXELS[kind],) * (3 if kind == "cone" else 2)
    assert grid.size[0] == pytest.approx(50.1) and geometry.n_views == 9
    steps = np.diff(np.unwrap(geometry.angles))
    np.testing.assert_allclose(steps, (np.pi if kind == "parallel" else 2 * np.pi) / 9)


@pytest.mark.parametrize("kind", ["parallel", "fan", "cone"])
def test_the_detector_sees_the_corners_of_the_image(kind):
    geometry, grid = nominal_scan(kind, pixels=PIXELS[kind], views=7)
    rays = geometry.rays()
    origins, directions = rays.origins[..., :2], rays.directions[..., :2]
    across = origins[..., 0] * directions[..., 1] - origins[..., 1] * directions[..., 0]
    distances = across / np.linalg.norm(directions, axis=-1)
    reach = np.hypot(*grid.size[:2]) / 2
    # The outermost rays run through the middle of their cells.
    half_cell = reach / (geometry.detector_shape[-1] / 2)
    assert distances.max() > reach - half_cell and distances.min() < -reach + half_cell


def test_the_walnut_problem_has_the_published_size():
    geometry = cwi_walnut_slice(60)
    assert (geometry.n_views, geometry.n_columns, geometry.n_rows) == (60, 128, 9)
    assert geometry.projection_shape == (60, 128)
    assert int(np.prod(geometry.projection_shape)) == 7680
    assert Grid((501, 501)).n_pixels == 251001
    assert nominal_scan("cwi-walnut")[1].shape == (501, 501)
    # Nine slices of 0.1 mm about the orbit's plane.
    np.testing.assert_allclose(geometry.z_bounds, (-0.45, 0.45))


def test_every_ray_of_the_walnut_problem_meets_the_stack():
    geometry, grid = nominal_scan("cwi-walnut", pixels=32, views=60)
    lengths = np.asarray(assemble_matrix(geometry, grid, dtype=np.float64).sum(axis=1))
    assert lengths.shape == (7680, 1)
    # All rays cross the field of view, and none leaves the stack on the way.
    assert lengths.min() > 30 and lengths.max() < 50.1 * np.sqrt(2) * 1.001


@pytest.mark.slow
def test_the_full_walnut_matrix_has_the_published_shape():
    geometry, grid = nominal_scan("cwi-walnut", views=60)
    assert assemble_matrix(geometry, grid).shape == (7680, 251001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "spiral"}, "must be one of parallel, fan, cone, cwi-walnut; got 'spiral'"),
        ({"kind": "fan", "pixels": 0}, "number of pixels must be positive; got 0"),
        ({"kind": "fan", "views": -2}, "number of views must be positive; got -2"),
    ],
)
def test_impossible_nominal_scans_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        nominal_scan(**options)


# Data


@pytest.mark.parametrize("kind", KINDS)
def test_without_oversampling_the_data_are_the_matrix_times_the_truth(kind):
    scan = small_scan(kind, noise=0, views=5)
    matrix = assemble_matrix(scan.geometry, scan.grid, dtype=np.float64)
    exact = np.float32(matrix @ scan.truth.ravel().astype(np.float64))
    np.testing.assert_allclose(scan.projections.ravel(), exact, rtol=3e-7, atol=1e-9)
    assert scan.noise is None and scan.length_unit == "mm"


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_is_the_mean_over_the_fine_pixels(kind):
    scan = small_scan(kind, noise=0, views=3, oversampling=3, source="ellipses", seed=4)
    grid = scan.grid
    fine = Grid(tuple(3 * n for n in grid.shape), grid.pixel_size / 3, grid.center)
    image = make_phantom("ellipses", fine, seed=4)
    means = image.reshape([n for size in grid.shape for n in (size, 3)])
    means = means.mean(axis=tuple(range(1, 2 * grid.ndim, 2)))
    np.testing.assert_allclose(scan.truth, means, rtol=1e-5, atol=1e-7)
    matrix = assemble_matrix(scan.geometry, fine, dtype=np.float64)
    np.testing.assert_allclose(
        scan.projections.ravel(), matrix @ image.ravel().astype(np.float64), rtol=1e-6, atol=1e-7
    )
    coarse = assemble_matrix(scan.geometry, grid, dtype=np.float64) @ scan.truth.ravel()
    # The discretisation error that oversampling is there for.
    assert np.abs(coarse - scan.projections.ravel()).max() > 1e-3 * scan.projections.max()


@pytest.mark.parametrize("name", phantom_names())
@pytest.mark.parametrize("kind", ["fan", "cone"])
def test_every_phantom_can_be_scanned(name, kind):
    scan = simulate(name, geometry=kind, pixels=8, views=2)
    assert scan.truth.shape == scan.grid.shape and np.ptp(scan.truth) > 0
    assert name in scan.truth_source and scan.metadata["origin"] == "simulated"


@pytest.mark.parametrize("level", [0.01, 0.05, 0.3])
def test_white_noise_is_a_share_of_the_mean_line_integral(level):
    clean = small_scan(noise=0, views=180).projections.astype(np.float64)
    scan = small_scan(noise=level, views=180)
    std = level * np.abs(clean).mean()
    assert isinstance(scan.noise, GaussianNoise) and scan.noise.std == pytest.approx(std, rel=1e-6)
    noise = scan.projections - clean
    n = noise.size
    assert noise.std() == pytest.approx(std, rel=5 / np.sqrt(2 * n))
    assert abs(noise.mean()) < 5 * std / np.sqrt(n)
    # White: neighbours know nothing of each other, and the noise nothing of the signal.
    for other in (np.roll(noise, 1, axis=1), np.roll(noise, 1, axis=0), clean):
        assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(n)


def test_five_percent_is_the_default():
    scan = simulate("discs", pixels=16, views=4)
    clean = simulate("discs", pixels=16, views=4, noise=0)
    assert scan.noise.std == pytest.approx(0.05 * np.abs(clean.projections).mean(), rel=1e-6)


@pytest.mark.parametrize("photons", [300.0, 1e5])
def test_photon_noise_is_poisson(photons):
    clean = small_scan(noise=0, views=180).projections.astype(np.float64)
    scan = small_scan(noise=None, counts=photons, views=180)
    assert isinstance(scan.noise, PoissonNoise) and scan.noise.photons == photons
    counts = photons * np.exp(-scan.projections.astype(np.float64))
    # Every projection is the logarithm of a whole number of photons.
    tolerance = 1e-6 * photons
    assert np.all(np.abs(counts - np.maximum(np.round(counts), 0.5)) < max(1e-3, tolerance))
    expected = photons * np.exp(-clean)
    scaled = (counts - expected) / np.sqrt(expected)
    n = scaled.size
    assert abs(scaled.mean()) < 5 / np.sqrt(n)
    assert scaled.var() == pytest.approx(1, abs=5 * np.sqrt((2 + 1 / expected.min()) / n))


def test_a_seed_decides_everything():
    def made(seed):
        return small_scan(source="ellipses", seed=seed)

    assert scan_digest(made(3)) == scan_digest(made(3))
    assert not np.array_equal(made(3).truth, made(4).truth)
    fixed = [small_scan(source="shepp-logan", seed=seed) for seed in (0, 1)]
    np.testing.assert_array_equal(fixed[0].truth, fixed[1].truth)
    assert not np.array_equal(fixed[0].projections, fixed[1].projections)


def test_no_global_random_state_is_touched():
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    small_scan(source="walnut")
    assert np.random.random() == expected  # noqa: NPY002


# The example


def test_the_example_is_a_walnut_in_the_walnut_scanner():
    scan = example_scan("walnut", pixels=24)
    assert scan.geometry.kind == "cone-slice" and scan.geometry.projection_shape == (60, 128)
    assert scan.grid.shape == (24, 24) and "walnut" in scan.truth_source
    assert scan_digest(simulate("example:walnut", pixels=24)) == scan_digest(scan)
    by_hand = simulate("walnut", geometry="cwi-walnut", pixels=24, views=60, noise=0.05)
    assert scan_digest(by_hand) == scan_digest(scan)
    assert scan_digest(example_scan("walnut", pixels=24, seed=1)) != scan_digest(scan)


def test_the_example_may_be_scanned_otherwise():
    scan = simulate("example:walnut", geometry="parallel", pixels=16, views=4)
    assert scan.geometry.kind == "parallel"


@pytest.mark.parametrize("make", [example_scan, lambda name: simulate(f"example:{name}")])
def test_an_unknown_example_is_refused(make):
    with pytest.raises(ConfigurationError, match="no example 'nut'; there are: example:walnut"):
        make("nut")


# Pictures and arrays


def picture_scan(path, **options):
    return simulate(path, pixels=16, views=4, noise=0, oversampling=1, **options)


def ramp(dtype, top):
    values = np.linspace(0, 1, 256).reshape(16, 16)
    return (values * top).astype(dtype)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("a.png", ramp(np.uint8, 255)),
        ("a.bmp", ramp(np.uint8, 255)),
        ("a.png", ramp(np.uint16, 65535)),
        ("a.tif", ramp(np.uint16, 65535)),
        ("a.npy", ramp(np.uint8, 255)),
    ],
    ids=["png 8", "bmp 8", "png 16", "tiff 16", "npy 8"],
)
def test_white_of_a_picture_attenuates_as_a_phantom(tmp_path, name, array):
    path = tmp_path / name
    np.save(path, array) if name.endswith("npy") else io.imsave(path, array, check_contrast=False)
    scan = picture_scan(path)
    expected = array / np.iinfo(array.dtype).max * default_peak(scan.grid)
    np.testing.assert_allclose(scan.truth, expected, rtol=1e-5)
    assert scan.truth_source == f"simulated object: picture {name}"


@pytest.mark.parametrize("name", ["a.tif", "a.npy"])
@pytest.mark.parametrize("top", [0.04, 3.0])
def test_real_numbers_are_attenuation(tmp_path, name, top):
    path, array = tmp_path / name, ramp(np.float32, top)
    np.save(path, array) if name.endswith("npy") else tifffile.imwrite(path, array)
    np.testing.assert_allclose(picture_scan(path).truth, array, rtol=1e-6)
    np.testing.assert_allclose(picture_scan(str(path)).truth, array, rtol=1e-6)
    np.testing.assert_allclose(picture_scan(array).truth, array, rtol=1e-6)


@pytest.mark.parametrize("n_channels", [3, 4])
@pytest.mark.parametrize(
    ("name", "dtype"), [("a.png", np.uint8), ("a.tif", np.uint8), ("a.tif", np.uint16)]
)
def test_colours_become_luminance(tmp_path, name, dtype, n_channels):
    top = np.iinfo(dtype).max
    colours = np.random.default_rng(1).integers(0, top, (16, 16, n_channels)).astype(dtype)
    io.imsave(tmp_path / name, colours, check_contrast=False)
    scan = picture_scan(tmp_path / name)
    grey = colours[..., :3] @ np.array([0.2126, 0.7152, 0.0722]) / top
    np.testing.assert_allclose(scan.truth, grey * default_peak(scan.grid), rtol=1e-5)


def test_a_palette_is_colours_and_one_bit_is_black_and_white(tmp_path):
    colours = np.zeros((16, 16, 3), np.uint8)
    colours[4:9, 2:5] = (255, 0, 0)
    Image.fromarray(colours).quantize(4).save(tmp_path / "a.png")
    Image.fromarray(colours[..., 0] > 0).save(tmp_path / "b.png")
    red, white = (picture_scan(tmp_path / name).truth for name in ("a.png", "b.png"))
    peak = default_peak(nominal_scan("parallel", pixels=16)[1])
    shape = colours[..., 0] / 255
    np.testing.assert_allclose(red, 0.2126 * peak * shape, rtol=1e-5)
    np.testing.assert_allclose(white, peak * shape, rtol=1e-5)


def test_grey_with_transparency_is_grey(tmp_path):
    grey = ramp(np.uint8, 255)
    Image.fromarray(np.stack([grey, 255 - grey], -1), "LA").save(tmp_path / "a.png")
    scan = picture_scan(tmp_path / "a.png")
    np.testing.assert_allclose(scan.truth, grey / 255 * default_peak(scan.grid), rtol=1e-5)


def test_a_picture_that_is_not_square_keeps_its_aspect(tmp_path):
    io.imsave(tmp_path / "a.png", np.full((20, 40), 200, np.uint8), check_contrast=False)
    truth = picture_scan(tmp_path / "a.png").truth
    filled = np.argwhere(truth > 0.5 * truth.max())
    assert np.ptp(filled[:, 0]) + 1 == 8 and np.ptp(filled[:, 1]) + 1 == 16
    assert filled[:, 0].min() == 4
    assert not truth[:4].any() and not truth[12:].any()


def test_a_tiff_stack_is_a_volume(tmp_path):
    volume = np.random.default_rng(2).random((12, 12, 12), np.float32)
    tifffile.imwrite(tmp_path / "a.tif", volume)
    scan = simulate(
        tmp_path / "a.tif", geometry="cone", pixels=12, views=3, noise=0, oversampling=1
    )
    np.testing.assert_allclose(scan.truth, volume, rtol=1e-6)


def test_the_image_of_a_run_can_be_scanned(tmp_path):
    run = reconstruct(small_scan(), method="fbp")
    write_run(run, tmp_path / "run.h5")
    scan = simulate(
        tmp_path / "run.h5", pixels=25, views=3, noise=0, oversampling=1, geometry="fan"
    )
    np.testing.assert_allclose(scan.truth, read_run(tmp_path / "run.h5").image, rtol=1e-6)


def test_bad_pictures_are_refused(tmp_path):
    io.imsave(tmp_path / "good.png", ramp(np.uint8, 255), check_contrast=False)
    tifffile.imwrite(tmp_path / "good.tif", ramp(np.float32, 1.0))
    cut = []
    for good in ("good.png", "good.tif"):
        contents = (tmp_path / good).read_bytes()
        for kept in (0, 20, 60, 300, len(contents) - 30):
            if kept < len(contents):
                cut.append(f"{kept}-{good}")
                (tmp_path / cut[-1]).write_bytes(contents[:kept])
    for name in ("text.png", "text.tif", "text.npy", "text.txt", "text.h5"):
        (tmp_path / name).write_text("no picture")
    np.save(tmp_path / "complex.npy", np.ones((4, 4), complex))
    np.save(tmp_path / "deep.npy", np.ones((4, 4, 4, 4)))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    names = [*cut, "text.png", "text.tif", "text.npy", "text.txt", "text.h5"]
    for name in [*names, "complex.npy", "deep.npy", "objects.npy", "missing.png"]:
        with pytest.raises(FileFormatError, match=name):
            picture_scan(tmp_path / name)
    np.save(tmp_path / "nan.npy", np.full((4, 4), np.nan))
    with pytest.raises(DataError, match=r"nan\.npy: the image holds NaN"):
        picture_scan(tmp_path / "nan.npy")
    with pytest.raises(DataError, match="NaN or infinite"):
        picture_scan(np.full((4, 4), np.inf))


def test_an_image_cannot_be_scanned_as_a_volume():
    with pytest.raises(ConfigurationError, match="scans a volume"):
        simulate(np.ones((8, 8)), geometry="cone", pixels=8, views=2)
    with pytest.raises(ConfigurationError, match="scans an image"):
        simulate(np.ones((8, 8, 8)), geometry="fan", pixels=8, views=2)


# Geometry of another scan


def test_geometry_and_grid_are_taken_over():
    like = small_scan("fan", views=12)
    scan = simulate("ellipses", geometry=like, oversampling=1, noise=0)
    assert scan.geometry is like.geometry and scan.grid == like.grid
    fewer = simulate("ellipses", geometry=like, views=4, pixels=12)
    np.testing.assert_array_equal(fewer.geometry.angles, like.geometry.angles[::3])
    assert fewer.grid == like.grid.resized(12)


def test_a_scan_by_matrix_can_be_imitated():
    like = matrix_scan(small_scan(views=6))
    scan = simulate("ellipses", geometry=like, noise=0)
    product = like.geometry.matrix @ scan.truth.ravel()
    np.testing.assert_allclose(scan.projections.ravel(), product, rtol=1e-5, atol=1e-7)
    with pytest.raises(GeometryError, match="Another grid cannot be used"):
        simulate("ellipses", geometry=like, pixels=10)


def test_units_are_taken_over():
    like = small_scan(views=4)
    like = replace(like, length_unit="pixel", truth=None, truth_source="")
    assert isinstance(like, Scan) and simulate("discs", geometry=like).length_unit == "pixel"


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 0.1, "counts": 100.0}, "not both"),
        ({"noise": -0.1}, "noise level.*-0.1"),
        ({"noise": float("nan")}, "noise level.*nan"),
        ({"noise": 1e300}, "noise level.*1e[+]300"),
        ({"counts": 0.0}, "photon counts.*0"),
        ({"counts": float("inf")}, "photon counts.*inf"),
        ({"oversampling": 0}, "oversampling"),
        ({"seed": -1}, "seed"),
        ({"pixels": 0}, "pixels"),
        ({"views": 0}, "views"),
        ({"geometry": "helix"}, "helix"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        simulate("discs", **options)


def test_an_unknown_phantom_is_refused_with_near_names():
    with pytest.raises(ConfigurationError, match=r"'wallnut'.*Did you mean walnut"):
        simulate("wallnut")


@pytest.mark.parametrize(
    "options",
    [
        {"pixels": 10**6},
        {"pixels": 10**11},
        {"views": 10**12},
        {"oversampling": 10**6},
        {"geometry": "cone", "pixels": 10**5},
        {"geometry": "cwi-walnut", "pixels": 10**7},
    ],
    ids=str,
)
def test_what_cannot_fit_into_memory_is_refused_before_any_work(options):
    with pytest.raises(InsufficientMemoryError, match="GiB are free") as caught:
        simulate("discs", **options)
    assert isinstance(caught.value, MemoryError | DipctError)
