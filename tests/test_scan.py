"""Scans: their parts fit together and stay in step, and their noise is what it says it is."""

from dataclasses import replace

import numpy as np
import pytest
from catalogue import GEOMETRIES, IMAGE, VOLUME

from dipct.errors import DataError, GeometryError, ShapeError
from dipct.measurement import (
    ConeGeometry,
    FanGeometry,
    GaussianNoise,
    Grid,
    MatrixGeometry,
    ParallelGeometry,
    PoissonNoise,
    Scan,
)
from dipct.measurement.geometry.cone_slice import box_lengths

TURN = np.linspace(0, 2 * np.pi, 12, endpoint=False)
LOWER, UPPER = np.array([-1.0, -2.0, -1.5]), np.array([3.0, 1.0, 0.5])


def box(geometry):
    """Exact projections of an off-centre box."""
    return box_lengths(geometry.rays(), LOWER, UPPER)


def make(name="fan", **changes):
    geometry, grid = GEOMETRIES[name]
    values = {"projections": box(geometry), "geometry": geometry, "grid": grid}
    return Scan(**(values | changes))


POSITIONED = [name for name in GEOMETRIES if name != "matrix"]
positioned = pytest.mark.parametrize("name", POSITIONED)


# --- data and geometry in step ------------------------------------------------------------------


@positioned
def test_selected_views_stay_in_step(name):
    scan = make(name)
    chosen = scan.select_views([2, 0])
    np.testing.assert_allclose(chosen.projections, box(chosen.geometry), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(chosen.projections, scan.projections[[2, 0]])
    assert not np.allclose(chosen.projections, box(scan.select_views([0, 2]).geometry))


@positioned
def test_cropped_columns_stay_in_step(name):
    scan = make(name)
    n = scan.projections.shape[-1]
    cropped = scan.crop_detector(2, n - 1)
    np.testing.assert_allclose(cropped.projections, box(cropped.geometry), rtol=1e-5, atol=1e-5)
    shifted = scan.crop_detector(1, n - 2)
    assert not np.allclose(cropped.projections, box(shifted.geometry), atol=0.1)


@positioned
@pytest.mark.parametrize("factor", [2, 3])
def test_binned_data_are_means_of_the_joined_cells(name, factor):
    scan = make(name)
    binned = scan.bin_detector(factor)
    assert binned.projections.shape == binned.geometry.projection_shape
    planar = scan.geometry.is_planar
    for index in np.ndindex(binned.projections.shape):
        cells = [slice(index[0], index[0] + 1)]
        cells += [slice(factor * i, factor * (i + 1)) for i in index[1:]]
        assert len(cells) == (2 if planar else 3)
        expected = scan.projections[tuple(cells)].mean()
        np.testing.assert_allclose(binned.projections[index], expected, rtol=1e-5, atol=1e-6)


def test_binned_projections_are_those_of_the_binned_geometry():
    # Line integrals of a box across its middle are linear in the column, so means are exact.
    geometry = ParallelGeometry([0.02], 12, 0.1, 0.3)
    scan = Scan(box(geometry), geometry, Grid((8, 8)))
    for factor in (2, 3, 4, 5):
        binned = scan.bin_detector(factor)
        np.testing.assert_allclose(binned.projections, box(binned.geometry), atol=1e-5)
    assert np.ptp(scan.projections) < 0.1


@positioned
def test_changes_can_be_chained(name):
    scan = make(name).select_views([0, 2]).crop_detector(1, 5).bin_detector(2)
    assert scan.projections.shape == scan.geometry.projection_shape
    assert scan.geometry.n_views == 2
    assert scan.projections.shape[-1] == 2


def test_matrix_scan_changes_with_its_data():
    geometry, grid = GEOMETRIES["matrix"]
    image = np.random.default_rng(0).random(grid.n_pixels)
    data = (geometry.matrix @ image).reshape(geometry.projection_shape)
    scan = Scan(data, geometry, grid).select_views([2, 1]).crop_detector(0, 5).bin_detector(2)
    expected = (scan.geometry.matrix @ image).reshape(scan.projections.shape)
    np.testing.assert_allclose(scan.projections, expected, rtol=1e-5, atol=1e-6)


def test_boolean_masks_choose_views():
    scan = make()
    mask = np.array([True, False, False, True, True])
    np.testing.assert_array_equal(scan.select_views(mask).projections, scan.projections[[0, 3, 4]])


@pytest.mark.parametrize(
    "indices",
    [[], [5], [-1], [0.0, 1.0], [[0, 1]], [True, False], [0, 99]],
    ids=str,
)
def test_impossible_views_are_refused(indices):
    with pytest.raises(GeometryError, match=r"View indices must lie in 0\.\.4"):
        make().select_views(indices)


# --- fewer views --------------------------------------------------------------------------------


def turn(n, *, closing):
    """A scan of a full turn, with or without a last view that repeats the first."""
    angles = np.linspace(0, 2 * np.pi, n + closing, endpoint=closing)
    geometry = ParallelGeometry(angles, 2)
    numbered = np.arange(n + closing)[:, None] * np.ones(2)
    return Scan(numbered, geometry, Grid((2, 2)))


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("n", [1, 5, 20, 60, 360, 720])
def test_equispaced_views(n, closing):
    scan = turn(720, closing=closing).equispaced_views(n)
    assert scan.geometry.n_views == n
    np.testing.assert_allclose(scan.geometry.angles, np.arange(n) * 2 * np.pi / n, atol=1e-12)
    np.testing.assert_array_equal(scan.projections[:, 0], np.arange(n) * 720 // n)


def test_equispaced_views_that_do_not_divide_are_nearly_even():
    chosen = turn(720, closing=False).equispaced_views(7).geometry.angles
    steps = np.diff([*chosen, 2 * np.pi])
    assert np.ptp(steps) <= 2 * np.pi / 720 + 1e-12


def test_all_views_are_all_views():
    scan = turn(20, closing=True)
    np.testing.assert_array_equal(scan.equispaced_views(21).projections, scan.projections)
    for n in (0, 22, -1):
        with pytest.raises(GeometryError, match="21 views"):
            scan.equispaced_views(n)


@pytest.mark.parametrize(("degrees", "n"), [(90, 181), (0.4, 1), (0.5, 2), (180, 361), (999, 720)])
def test_angular_range(degrees, n):
    scan = turn(720, closing=False).angular_range(degrees)
    assert scan.geometry.n_views == n
    np.testing.assert_array_equal(scan.projections[:, 0], np.arange(n))


def test_angular_range_of_scans_that_turn_the_other_way_or_start_elsewhere():
    angles = 3.0 - np.deg2rad(np.arange(0.0, 200.0, 10))
    geometry = FanGeometry(angles, 2, 1.0, 9.0, 3.0)
    data = np.arange(20)[:, None] * np.ones(2)
    scan = Scan(data, geometry, Grid((2, 2)))
    assert scan.angular_range(90).geometry.n_views == 10
    general = GEOMETRIES["planar fan vectors"][0]
    assert make("planar fan vectors").angular_range(100).geometry.n_views == 2
    np.testing.assert_allclose(np.diff(general.angles), 1.19, atol=0.05)
    for degrees in (0, -5, np.nan):
        with pytest.raises(GeometryError, match="degrees"):
            scan.angular_range(degrees)


# --- noise under change -------------------------------------------------------------------------


def noisy(noise, geometry, n_draws=400, seed=0):
    """Many noisy projections of the same lines, [draws *projection_shape]."""
    rng = np.random.default_rng(seed)
    clean = 0.5 * box(geometry)
    return clean, np.stack([noise.sample(clean, rng) for _ in range(n_draws)])


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("name", ["fan", "cone"])
@pytest.mark.parametrize("kind", ["number", "per value", "per column"])
def test_gaussian_noise_after_binning_is_the_noise_of_the_binned_data(name, kind, factor):
    geometry, grid = GEOMETRIES[name]
    shape = geometry.projection_shape
    std = {
        "number": 0.3,
        "per value": np.random.default_rng(1).uniform(0.1, 0.5, shape),
        "per column": np.linspace(0.1, 0.5, shape[-1]),
    }[kind]
    noise = GaussianNoise(std)
    clean, draws = noisy(noise, geometry)
    binned = Scan(clean, geometry, grid, noise).bin_detector(factor)
    measured = np.stack(
        [Scan(draw, geometry, grid).bin_detector(factor).projections for draw in draws]
    ).std(0)
    claimed = binned.noise.std_of(binned.projections)
    assert claimed.shape == measured.shape
    np.testing.assert_allclose(measured / claimed, 1.0, atol=5 / np.sqrt(2 * len(draws)))
    mean_ratio = np.mean(measured / claimed)
    assert mean_ratio == pytest.approx(1.0, abs=0.03)
    assert abs(np.mean(measured / (claimed * np.sqrt(factor))) - 1) > 0.1


@pytest.mark.parametrize("kind", ["number", "per value"])
def test_poisson_noise_after_binning_is_the_noise_of_the_binned_data(kind):
    geometry, grid = GEOMETRIES["cone"]
    photons = 5000.0
    if kind == "per value":
        photons = np.random.default_rng(1).uniform(4900, 5100, geometry.projection_shape)
    noise = PoissonNoise(photons)
    rng = np.random.default_rng(0)
    clean = np.full(geometry.projection_shape, 1.0)
    draws = [noise.sample(clean, rng) for _ in range(400)]
    scans = [Scan(draw, geometry, grid, noise).bin_detector(3) for draw in draws]
    measured = np.stack([scan.projections for scan in scans]).std(0)
    claimed = scans[0].noise.std_of(np.full(measured.shape, 1.0))
    assert np.mean(measured / claimed) == pytest.approx(1.0, abs=0.05)


def test_noise_per_value_follows_views_and_columns():
    geometry, grid = GEOMETRIES["fan"]
    std = np.arange(1.0, 46.0).reshape(5, 9)
    for cls, field in ((GaussianNoise, "std"), (PoissonNoise, "photons")):
        scan = Scan(box(geometry), geometry, grid, cls(std))
        chosen = scan.select_views([3, 1]).crop_detector(2, 6)
        np.testing.assert_array_equal(getattr(chosen.noise, field), std[[3, 1], 2:6])
        by_column = Scan(box(geometry), geometry, grid, cls(std[0])).crop_detector(2, 6)
        np.testing.assert_array_equal(
            np.broadcast_to(getattr(by_column.noise, field), (5, 4)), np.tile(std[0, 2:6], (5, 1))
        )
    plain = Scan(box(geometry), geometry, grid).bin_detector(2)
    assert plain.noise is None


@pytest.mark.parametrize("shape", [(8,), (9, 5), (5, 1, 9), (2, 5, 9)], ids=str)
def test_noise_of_another_shape_is_refused(shape):
    for noise in (GaussianNoise(np.ones(shape)), PoissonNoise(np.ones(shape))):
        with pytest.raises(ShapeError, match=r"noise.*does not broadcast.*\(5, 9\)"):
            make(noise=noise)


# --- noise itself -------------------------------------------------------------------------------


def test_gaussian_noise_has_its_mean_and_standard_deviation():
    clean = np.linspace(0, 2, 10)
    std = np.linspace(0.1, 1.0, 10)
    draws = np.stack([GaussianNoise(std).sample(clean, rng) for rng in streams(4000)])
    np.testing.assert_allclose(draws.mean(0), clean, atol=5 * std.max() / np.sqrt(4000))
    np.testing.assert_allclose(draws.std(0), std, rtol=0.06)
    np.testing.assert_array_equal(GaussianNoise(std).std_of(clean), std)
    np.testing.assert_array_equal(GaussianNoise(0.5).std_of(clean), np.full(10, 0.5))


def test_poisson_noise_has_its_mean_and_standard_deviation():
    clean = np.linspace(0, 3, 10)
    noise = PoissonNoise(1e4)
    draws = np.stack([noise.sample(clean, rng) for rng in streams(4000)])
    std = noise.std_of(clean)
    np.testing.assert_allclose(std, np.exp(clean / 2) / 100)
    # The logarithm of a count is low by half its relative variance.
    np.testing.assert_allclose(draws.mean(0), clean + std**2 / 2, atol=5 * std.max() / 60)
    np.testing.assert_allclose(draws.std(0), std, rtol=0.06)
    counts = 1e4 * np.exp(-draws)
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-6)
    np.testing.assert_allclose(counts.var(0), counts.mean(0), rtol=0.12)


def test_no_photon_at_all_is_still_a_number():
    noise = PoissonNoise(10.0)
    projections = noise.sample(np.full((50, 50), 8.0), np.random.default_rng(0))
    assert np.all(np.isfinite(projections))
    assert projections.max() == pytest.approx(np.log(20))


@pytest.mark.parametrize("noise", [GaussianNoise(0.1), PoissonNoise(1e3)], ids=lambda n: n.kind)
def test_the_seed_decides(noise):
    clean = np.ones((3, 4))
    one, same, other = (noise.sample(clean, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    noise.sample(clean, np.random.default_rng(3))
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def streams(n):
    return (np.random.default_rng([7, k]) for k in range(n))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, np.array([1.0, 0.0])], ids=str)
def test_impossible_noise_is_refused(value):
    with pytest.raises(DataError, match="standard deviation"):
        GaussianNoise(value)
    with pytest.raises(DataError, match="photon count"):
        PoissonNoise(value)


def test_noise_describes_itself():
    assert GaussianNoise(0.25).describe() == "Gaussian, standard deviation 0.25"
    assert "0.25 to 0.5" in GaussianNoise(np.array([0.25, 0.5])).describe()
    assert "4096 photons" in PoissonNoise(4096).describe()
    assert "10 to 20 photons" in PoissonNoise(np.array([10.0, 20.0])).describe()


# --- validation ---------------------------------------------------------------------------------


def test_a_scan_keeps_what_it_was_given():
    geometry, grid = GEOMETRIES["fan"]
    truth = np.random.default_rng(0).random(grid.shape)
    scan = make(truth=truth, truth_source="drawn", metadata={"exposure": 3})
    assert scan.projections.dtype == scan.truth.dtype == np.float32
    assert scan.metadata == {"exposure": "3"}
    assert scan.length_unit == "mm"
    np.testing.assert_allclose(scan.truth, truth, rtol=1e-6)
    assert make(projections=np.ones((5, 9), dtype=np.int32)).projections.dtype == np.float32
    same = scan.with_grid(Grid(grid.shape, grid.pixel_size, grid.center))
    assert same is scan
    elsewhere = scan.with_grid(grid.resized(20))
    assert elsewhere.truth is None
    assert elsewhere.truth_source == ""
    np.testing.assert_array_equal(elsewhere.projections, scan.projections)
    assert elsewhere.geometry is geometry


def with_value(value):
    projections = np.ones((5, 9))
    projections[2, 3] = value
    return projections


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"projections": np.ones((9, 5))}, ShapeError, r"\(5, 9\) \(views, columns\).*Transpose"),
        ({"projections": np.ones((5, 1, 9))}, ShapeError, r"\(5, 9\)"),
        ({"projections": np.ones(45)}, ShapeError, r"\(5, 9\)"),
        ({"projections": with_value(np.nan)}, DataError, r"1 of 45.*\(2, 3\).*Mask"),
        ({"projections": with_value(np.inf)}, DataError, "NaN or infinite"),
        ({"projections": np.ones((5, 9), dtype=complex)}, DataError, "real numbers"),
        ({"projections": np.full((5, 9), "1")}, DataError, "real numbers"),
        ({"projections": np.ones((5, 9), dtype=bool)}, DataError, "real numbers"),
        ({"grid": VOLUME}, GeometryError, "an image"),
        ({"truth": np.ones(IMAGE.shape)}, DataError, "truth_source"),
        ({"truth": np.ones((10, 8)), "truth_source": "x"}, ShapeError, r"\(8, 10\)"),
        ({"truth": np.full(IMAGE.shape, np.nan), "truth_source": "x"}, DataError, "truth"),
        ({"length_unit": "cm"}, DataError, "'mm' or 'pixel'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, error, message):
    with pytest.raises(error, match=message) as caught:
        make(**changes)
    assert isinstance(caught.value, ValueError)


def test_volumes_need_cone_beams_and_matrices_their_own_grid():
    with pytest.raises(GeometryError, match="a volume"):
        make("cone", grid=IMAGE)
    with pytest.raises(ShapeError, match=r"\(views, rows, columns\)"):
        make("cone", projections=np.ones((3, 6, 3)))
    geometry, grid = GEOMETRIES["matrix"]
    data = np.ones(geometry.projection_shape)
    scan = Scan(data, geometry, grid)
    with pytest.raises(GeometryError, match=r"80 pixels.*Another grid"):
        scan.with_grid(Grid((9, 9)))
    assert isinstance(scan.geometry, MatrixGeometry)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_values_beyond_single_precision_are_refused():
    with pytest.raises(DataError, match="infinite"):
        make(projections=with_value(1e300))


def test_cropping_beyond_the_detector_is_refused():
    with pytest.raises(GeometryError, match="first < last"):
        make().crop_detector(0, 10)
    with pytest.raises(GeometryError, match="binning"):
        make().bin_detector(10)
    cone = ConeGeometry(TURN, 2, 9, 1.0, 1.0, 30.0, 20.0)
    with pytest.raises(GeometryError, match="binning"):
        Scan(np.ones((12, 2, 9)), cone, VOLUME).bin_detector(3)


def test_an_angular_range_may_pass_through_zero():
    degrees = np.mod(np.arange(350, 390, 2.0), 360)
    geometry = FanGeometry(np.deg2rad(degrees), 5, 1.0, 50.0, 40.0)
    scan = Scan(np.arange(100.0).reshape(20, 5), geometry, Grid((4, 4)))
    kept = scan.angular_range(20)
    np.testing.assert_array_equal(kept.projections, scan.projections[:11])
    whole = np.arange(0.0, 361.0, 30)
    turn = replace(geometry, angles=np.deg2rad(whole))
    scan = Scan(np.zeros((13, 5)), turn, Grid((4, 4)))
    assert scan.angular_range(90).geometry.n_views == 4
