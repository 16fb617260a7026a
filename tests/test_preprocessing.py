"""Preprocessing: each correction undoes a known fault, and refuses what it cannot mend."""

import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import io, sparse

from dipct.errors import DataError, GeometryError, ShapeError
from dipct.measurement.geometry import (
    ConeGeometry,
    ConeSliceGeometry,
    FanGeometry,
    MatrixGeometry,
    ParallelGeometry,
    VectorGeometry,
)
from dipct.measurement.geometry.cone_slice import box_lengths
from dipct.measurement.grid import Grid
from dipct.measurement.preprocessing import (
    correct_beam_hardening,
    estimate_noise_std,
    field_of_view_mask,
    find_bad_pixels,
    find_rotation_axis,
    fit_beam_hardening,
    interpolate_bad_pixels,
    line_integrals,
    remove_rings,
    transmission,
)

HALF_TURN = np.arange(180) * np.pi / 180
FULL_TURN = np.arange(360) * np.pi / 180


@pytest.fixture
def data_root():
    root = os.environ.get("DIPCT_DATA")
    if not root:
        pytest.skip("DIPCT_DATA is not set: measured data are needed")
    return Path(root)


def _disc_sinogram(angles, n_columns, axis=None, n_discs=30, seed=1, smooth=False):
    """Parallel-beam sinogram of discs, or of Gaussian blobs, from its closed form."""
    rng = np.random.default_rng(seed)
    axis = (n_columns - 1) / 2 if axis is None else axis
    position = (np.arange(n_columns) - axis) / (n_columns / 2)
    sinogram = np.zeros((len(angles), n_columns))
    for _ in range(n_discs):
        radius = rng.uniform(0.05, 0.4)
        distance = rng.uniform(0, 0.9 - radius)
        centre = distance * np.cos(angles - rng.uniform(0, 2 * np.pi))
        offset = position - centre[:, None]
        value = rng.uniform(0.2, 1)
        if smooth:
            sinogram += value * radius * np.exp(-2 * (offset / radius) ** 2)
        else:
            sinogram += 2 * value * np.sqrt(np.maximum(radius**2 - offset**2, 0))
    return sinogram


# Flat field and logarithm


def _counts(shape=(6, 4, 32), seed=0):
    rng = np.random.default_rng(seed)
    detector = shape[1:]
    dark = rng.uniform(90, 110, detector)
    beam = rng.uniform(2e4, 3e4, detector)
    integrals = rng.uniform(0, 2, shape)
    return dark + beam * np.exp(-integrals), dark + beam, dark, integrals


@pytest.mark.parametrize("shape", [(6, 4, 32), (6, 32)])
@pytest.mark.parametrize("n_frames", [None, 1, 5])
def test_flat_field_and_logarithm_give_the_line_integrals(shape, n_frames):
    counts, flat, dark, integrals = _counts(shape)
    if n_frames:
        # Frames that scatter around the mean by deviations that cancel.
        deviation = np.linspace(-50, 50, n_frames)[:, None] if n_frames > 1 else np.zeros((1, 1))
        deviation = deviation.reshape(-1, *(1,) * flat.ndim)
        flat, dark = flat + deviation, dark + deviation[::-1]
    found = line_integrals(transmission(counts, flat, dark))
    assert found.dtype == np.float32 and found.shape == shape
    np.testing.assert_allclose(found, integrals, atol=2e-6)
    swapped = line_integrals(transmission(counts, flat, np.zeros_like(dark)))
    assert np.max(np.abs(swapped - integrals)) > 1e-3


def test_flats_not_above_the_darks_are_named():
    counts, flat, dark, _ = _counts()
    flat[2, 7] = dark[2, 7]
    flat[3, 1] = 0.0
    with pytest.raises(DataError, match=r"2 of 128 detector pixels.*first at \(2, 7\)"):
        transmission(counts, flat, dark)
    with pytest.raises(DataError, match="127 of 128"):
        transmission(counts, dark, flat)
    flat[0, 0] = np.nan
    with pytest.raises(DataError, match="3 of 128"):
        transmission(counts, flat, dark)


def test_known_bad_pixels_are_interpolated_through():
    counts, flat, dark, integrals = _counts()
    smooth = np.broadcast_to(np.linspace(0.5, 1.5, 32), integrals.shape)
    counts = dark + (flat - dark) * np.exp(-smooth)
    flat[2, 7] = 0.0
    counts[:, 2, 7] = np.nan
    bad = np.zeros((4, 32), dtype=bool)
    bad[2, 7] = True
    fraction = transmission(counts, flat, dark, bad_pixels=bad)
    assert np.array_equal(np.isnan(fraction), np.broadcast_to(bad, fraction.shape))
    np.testing.assert_allclose(line_integrals(fraction), smooth, atol=1e-5)
    with pytest.raises(DataError, match="1 of 128"):
        transmission(counts, flat, dark, bad_pixels=np.roll(bad, 1))
    with pytest.raises(ShapeError, match="bad_pixels"):
        transmission(counts, flat, dark, bad_pixels=bad[:2])


def test_counts_that_are_not_finite_are_named():
    counts, flat, dark, _ = _counts()
    counts[3, 2, 1] = np.inf
    with pytest.raises(DataError, match=r"1 of 768 counts.*\(3, 2, 1\)"):
        transmission(counts, flat, dark)


def test_frames_of_another_detector_are_refused():
    counts, flat, dark, _ = _counts()
    with pytest.raises(ShapeError, match="flats"):
        transmission(counts, flat[:, :-1], dark)
    with pytest.raises(ShapeError, match="darks"):
        transmission(counts, flat, dark[None, None])
    with pytest.raises(ShapeError, match="darks"):
        transmission(counts, flat, np.zeros((0, 4, 32)))
    with pytest.raises(ShapeError, match="counts"):
        transmission(counts[0, 0], flat, dark)
    with pytest.raises(DataError, match="real"):
        transmission(counts * 1j, flat, dark)


def test_transmissions_without_a_logarithm_are_interpolated_if_few():
    smooth = np.exp(-np.broadcast_to(np.linspace(0.5, 1.5, 50), (20, 50)))
    fraction = smooth.copy()
    fraction[4, 10], fraction[5, 11] = 0.0, -0.01
    np.testing.assert_allclose(line_integrals(fraction), -np.log(smooth), atol=1e-6)
    fraction[:, :5] = 0.0
    with pytest.raises(DataError, match=r"10\.2%"):
        line_integrals(fraction)
    mask = np.zeros(50, dtype=bool)
    mask[:5] = True
    kept = line_integrals(fraction, bad_pixels=mask)
    np.testing.assert_allclose(kept[:, :5], np.broadcast_to(kept[:, 5:6], (20, 5)))
    with pytest.raises(ShapeError, match="bad_pixels"):
        line_integrals(fraction, bad_pixels=mask[:-1])


# Bad pixels


@pytest.mark.parametrize("detector", [(64,), (24, 64)])
def test_bad_pixels_are_found_and_good_ones_are_not(detector):
    rng = np.random.default_rng(2)
    profile = 2e4 * (1 + 0.2 * np.sin(np.linspace(0, 3, 64)))
    frames = np.broadcast_to(profile, (9, *detector)) + 100 * rng.standard_normal((9, *detector))
    assert not find_bad_pixels(frames).any()
    dead, hot, broken, stuck = ((..., c) for c in (5, 20, 33, 50))
    frames[dead] = 0.0
    frames[hot] *= 3
    frames[2:3][broken] = np.nan
    frames[stuck] = frames[0][stuck]
    found = find_bad_pixels(frames)
    assert found.shape == detector
    expected = np.zeros(detector, dtype=bool)
    expected[..., [5, 20, 33, 50]] = True
    # On a two-dimensional detector whole columns are bad, and must be seen all the same.
    assert np.array_equal(found, expected)


def test_bad_pixels_of_flats_without_noise():
    frames = np.full((3, 40), 2e4)
    assert not find_bad_pixels(frames).any()
    frames[:, 7] = 1e4
    assert np.flatnonzero(find_bad_pixels(frames)).tolist() == [7]


@pytest.mark.parametrize("options", [{"window": 4}, {"window": 1}, {"threshold": 0.0}])
def test_impossible_options_of_bad_pixels(options):
    with pytest.raises(DataError, match="odd window"):
        find_bad_pixels(np.ones((3, 20)), **options)


@pytest.mark.parametrize("shape", [(5, 30), (5, 3, 30)])
def test_interpolation_is_exact_for_straight_lines(shape):
    rng = np.random.default_rng(3)
    line = np.broadcast_to(np.linspace(1, 4, 30), shape) * rng.uniform(1, 2, (5, *shape[1:-1], 1))
    mask = np.zeros(shape[1:], dtype=bool)
    mask[..., 10:14] = True
    broken = np.where(mask, 99.0, line)
    np.testing.assert_allclose(interpolate_bad_pixels(broken, mask), line)
    assert broken.max() == 99.0, "the input must stay as it is"
    shifted = interpolate_bad_pixels(broken, np.roll(mask, 1, axis=-1))
    assert np.max(np.abs(shifted - line)) > 1
    per_value = np.zeros(shape, dtype=bool)
    per_value[2, ..., 10:14] = True
    single = interpolate_bad_pixels(broken, per_value)
    np.testing.assert_allclose(single[2], line[2])
    np.testing.assert_array_equal(single[[0, 1, 3, 4]], broken[[0, 1, 3, 4]])


def test_a_detector_line_without_good_pixels_is_refused():
    mask = np.zeros((3, 30), dtype=bool)
    mask[1] = True
    with pytest.raises(DataError, match=r"\(0, 1\)"):
        interpolate_bad_pixels(np.ones((5, 3, 30)), mask)
    with pytest.raises(ShapeError, match="mask"):
        interpolate_bad_pixels(np.ones((5, 3, 30)), mask[:, :-1])


# Rotation axis


@pytest.mark.parametrize("axis", [127.5, 110.0, 118.3, 140.77])
@pytest.mark.parametrize("angles", [HALF_TURN, FULL_TURN, np.linspace(0, np.pi, 181)])
def test_the_rotation_axis_is_found_to_a_fraction_of_a_pixel(axis, angles):
    rng = np.random.default_rng(4)
    sinogram = _disc_sinogram(angles, 256, axis)
    sinogram += 0.01 * sinogram.mean() * rng.standard_normal(sinogram.shape)
    assert find_rotation_axis(sinogram, angles) == pytest.approx(axis, abs=0.1)
    mirrored = find_rotation_axis(sinogram[:, ::-1], angles)
    assert mirrored == pytest.approx(255 - axis, abs=0.1)


def test_the_rotation_axis_of_truncated_noisy_and_stacked_projections():
    rng = np.random.default_rng(5)
    sinogram = _disc_sinogram(FULL_TURN, 256, 118.3)
    cropped = sinogram[:, 60:190]
    assert find_rotation_axis(cropped, FULL_TURN) == pytest.approx(58.3, abs=0.1)
    noisy = sinogram + 0.1 * sinogram.mean() * rng.standard_normal(sinogram.shape)
    assert find_rotation_axis(noisy, FULL_TURN) == pytest.approx(118.3, abs=0.1)
    stack = np.stack([_disc_sinogram(HALF_TURN, 256, 118.3, seed=s) for s in range(3)], axis=1)
    assert find_rotation_axis(stack, HALF_TURN) == pytest.approx(118.3, abs=0.1)


def test_the_centroid_needs_few_views_but_the_whole_object():
    angles = np.arange(12) * np.pi / 12
    sinogram = _disc_sinogram(angles, 256, 118.3)
    with pytest.raises(DataError, match="centroid"):
        find_rotation_axis(sinogram, angles)
    found = find_rotation_axis(sinogram, angles, method="centroid")
    assert found == pytest.approx(118.3, abs=0.05)
    cropped = find_rotation_axis(sinogram[:, 60:190], angles, method="centroid")
    assert abs(cropped - 58.3) > 0.5


def test_the_order_of_views_does_not_matter():
    order = np.random.default_rng(6).permutation(len(HALF_TURN))
    sinogram = _disc_sinogram(HALF_TURN, 256, 118.3)
    expected = find_rotation_axis(sinogram, HALF_TURN)
    assert find_rotation_axis(sinogram[order], HALF_TURN[order]) == pytest.approx(expected)
    # Angles that do not belong to the views lead elsewhere.
    assert abs(find_rotation_axis(sinogram[order], HALF_TURN) - 118.3) > 1


def test_scans_that_do_not_tell_the_axis_are_refused():
    sinogram = _disc_sinogram(HALF_TURN, 256)
    with pytest.raises(DataError, match="half a turn"):
        find_rotation_axis(sinogram[:120], HALF_TURN[:120])
    noise = np.random.default_rng(7).standard_normal(sinogram.shape)
    for hopeless in (noise, sinogram + sinogram.mean() * noise):
        with pytest.raises(DataError, match="do not match"):
            find_rotation_axis(hopeless, HALF_TURN)
    with pytest.raises(DataError, match="do not match"):
        find_rotation_axis(np.zeros_like(sinogram), HALF_TURN)
    with pytest.raises(ShapeError, match="180 views need"):
        find_rotation_axis(sinogram, HALF_TURN[:-1])
    with pytest.raises(GeometryError, match="degrees"):
        find_rotation_axis(sinogram, np.rad2deg(HALF_TURN))
    with pytest.raises(DataError, match="degrees"):
        find_rotation_axis(sinogram[:4], HALF_TURN[:4], method="centroid")
    sinogram[3, 3] = np.nan
    with pytest.raises(DataError, match="NaN"):
        find_rotation_axis(sinogram, HALF_TURN)


def test_the_rotation_axis_of_the_measured_tooth(data_root):
    with h5py.File(data_root / "tooth_aps" / "tooth.h5") as file:
        names = ("data", "data_white", "data_dark", "theta")
        exchange = {name: file[f"exchange/{name}"][:] for name in names}
    angles = np.deg2rad(exchange["theta"])
    projections = line_integrals(
        transmission(exchange["data"], exchange["data_white"], exchange["data_dark"])
    )
    expected = np.load(data_root / "tooth_aps" / "tooth_sino_row0.npz")
    reference = next(v for v in expected.values() if v.shape == (181, 640))
    np.testing.assert_allclose(projections[:, 0], reference, atol=1e-4)
    for method in ("opposite", "centroid"):
        assert find_rotation_axis(projections, angles, method=method) == pytest.approx(296, abs=1)
    assert find_rotation_axis(projections[..., 180:400], angles) == pytest.approx(116, abs=1)


# Rings


@pytest.mark.parametrize("rows", [False, True])
def test_stripes_are_removed_and_the_rest_is_kept(rows):
    rng = np.random.default_rng(8)
    clean = _disc_sinogram(HALF_TURN, 256, smooth=False)
    if rows:
        clean = np.stack([clean, 0.5 * clean], axis=1)
    stripes = np.zeros(256)
    columns = rng.choice(np.arange(10, 246, 6), 12, replace=False)
    stripes[columns] = rng.choice([-1, 1], 12) * 0.1 * clean.max()
    corrected = remove_rings(clean + stripes)
    assert corrected.shape == clean.shape and corrected.dtype == np.float32
    before = np.linalg.norm(stripes + 0 * clean)
    assert np.linalg.norm(corrected - clean) < 0.25 * before
    # A clean sinogram is changed little.
    assert np.linalg.norm(remove_rings(clean) - clean) < 0.005 * np.linalg.norm(clean)
    # Stripes wider than half the window stay.
    wide = np.where(abs(np.arange(256) - 128) < 5, 0.1 * clean.max(), 0.0)
    assert np.linalg.norm(remove_rings(clean + wide) - clean) > 0.7 * np.linalg.norm(
        wide + 0 * clean
    )


@pytest.mark.parametrize("window", [4, 1, 301])
def test_impossible_ring_windows(window):
    with pytest.raises(DataError, match="window"):
        remove_rings(np.ones((10, 256)), window=window)


# Beam hardening


def _hardened(lengths):
    """Two photon energies with attenuation 0.06 and 0.02 per mm."""
    return -np.log(0.5 * np.exp(-0.06 * lengths) + 0.5 * np.exp(-0.02 * lengths))


def test_linearisation_restores_proportionality_to_length():
    lengths = np.linspace(0, 70, 200)
    measured = _hardened(lengths)
    fit = fit_beam_hardening(measured, lengths, degree=4)
    corrected = correct_beam_hardening(measured[None], fit.coefficients)[0]
    straight = fit_beam_hardening(measured, lengths, degree=1)
    assert fit.residual_std < 0.01
    assert straight.residual_std > 5 * fit.residual_std
    assert fit.attenuation == pytest.approx(0.04, rel=0.03)
    np.testing.assert_allclose(corrected, fit.attenuation * lengths, atol=0.03)
    assert fit.coefficients[0] == pytest.approx(1.0)
    # Another unit of length changes the attenuation only.
    other = fit_beam_hardening(measured, lengths / 10, degree=4)
    assert other.attenuation == pytest.approx(10 * fit.attenuation)
    np.testing.assert_allclose(other.coefficients, fit.coefficients, rtol=1e-6)


def test_polynomials_that_do_not_rise_are_refused():
    with pytest.raises(DataError, match=r"slope .* at 2"):
        correct_beam_hardening(np.linspace(0, 2, 20)[None], [1.0, -0.4])
    # A dip inside the range, although the slope is positive at both ends.
    with pytest.raises(DataError, match="rise"):
        correct_beam_hardening(np.linspace(0, 2, 20)[None], [1.0, -1.2, 0.42])
    correct_beam_hardening(np.linspace(0, 1, 20)[None], [1.0, -0.4])
    lengths = np.linspace(0, 10, 50)
    with pytest.raises(DataError, match="rise"):
        fit_beam_hardening(-0.04 * lengths - 0.1, lengths, degree=1)
    with pytest.raises(DataError, match="rise"):
        fit_beam_hardening(lengths, np.sin(lengths / 3) + 0.2 * (lengths > 0), degree=3)


def test_beam_hardening_refuses_bad_input():
    lengths = np.linspace(0, 10, 50)
    with pytest.raises(ShapeError):
        fit_beam_hardening(lengths, lengths[:-1])
    with pytest.raises(DataError, match="finite"):
        fit_beam_hardening(np.where(lengths > 5, np.nan, lengths), lengths)
    with pytest.raises(DataError, match=">= 0"):
        fit_beam_hardening(lengths, lengths - 1)
    with pytest.raises(DataError, match="positive"):
        fit_beam_hardening(lengths, 0 * lengths)
    with pytest.raises(DataError, match="all zero"):
        fit_beam_hardening(0 * lengths, lengths)
    with pytest.raises(DataError, match="degree"):
        fit_beam_hardening(lengths, lengths, degree=0)
    for coefficients in ([], [np.nan], [[1.0]]):
        with pytest.raises(DataError, match="coefficients"):
            correct_beam_hardening(lengths[None], coefficients)


HTC_ANGLES = np.deg2rad(np.arange(721) * 0.5)


def _htc_sinogram(root, name):
    file = io.loadmat(
        root / "htc2022" / f"htc2022_{name}_full.mat", squeeze_me=True, struct_as_record=False
    )
    return file["CtDataFull"].sinogram


def test_beam_hardening_of_a_measured_acrylic_disc(data_root):
    sinogram = _htc_sinogram(data_root, "solid_disc")
    file = io.loadmat(data_root / "htc2022" / "htc2022_solid_disc_full_recon_fbp_seg.mat")
    disc = next(v for k, v in file.items() if not k.startswith("__")).astype(bool)
    y, x = Grid(disc.shape, 0.14832232).axes()
    centre = np.array(
        [np.broadcast_to(x, disc.shape)[disc].mean(), y[:, None].repeat(512, 1)[disc].mean()]
    )
    radius = 35.0
    assert np.sqrt(disc.sum() / np.pi) * 0.14832232 == pytest.approx(radius, abs=0.3)
    rays = FanGeometry(HTC_ANGLES, 560, 0.2, 410.66, 143.08).rays()
    direction = rays.directions[..., :2] / np.linalg.norm(rays.directions, axis=-1, keepdims=True)
    offset = centre - rays.origins[..., :2]
    distance = np.abs(offset[..., 0] * direction[..., 1] - offset[..., 1] * direction[..., 0])
    chords = 2 * np.sqrt(np.maximum(radius**2 - distance**2, 0))
    fits = [fit_beam_hardening(sinogram, chords, degree=d) for d in (1, 2, 3)]
    assert fits[1].residual_std / fits[1].attenuation < 0.6 * (
        fits[0].residual_std / fits[0].attenuation
    )
    assert fits[2].attenuation == pytest.approx(0.0409, rel=0.2)


# Field of view


def test_the_field_of_view_of_full_scans_is_a_disc():
    grid = Grid((61, 81), 0.5)
    y, x = grid.axes()
    radius = np.hypot(x[None], y[:, None])
    parallel = ParallelGeometry(FULL_TURN, 40, 0.5)
    np.testing.assert_array_equal(field_of_view_mask(parallel, grid), radius <= 10)
    # Shifted by two columns, one side reaches only to 9.
    shifted = field_of_view_mask(replace(parallel, column_offset=1.0), grid)
    np.testing.assert_array_equal(shifted, radius <= 9)
    fan = FanGeometry(FULL_TURN, 40, 1.0, 60.0, 30.0)
    inside = 60 * np.sin(np.arctan(20 / 90))
    found = field_of_view_mask(fan, grid)
    ring = np.abs(radius - inside) < 0.05
    np.testing.assert_array_equal(found[~ring], (radius <= inside)[~ring])
    assert found.any() and not found.all()


def test_the_field_of_view_of_a_limited_scan_is_larger():
    grid = Grid((61, 81), 0.5)
    full = field_of_view_mask(ParallelGeometry(FULL_TURN, 40, 0.5), grid)
    one = field_of_view_mask(ParallelGeometry(np.zeros(1), 40, 0.5), grid)
    _, x = grid.axes()
    np.testing.assert_array_equal(one, np.broadcast_to(np.abs(x) <= 10, grid.shape))
    assert np.all(one[full]) and one.sum() > full.sum()


def test_pixels_behind_the_source_are_not_seen():
    geometry = FanGeometry(np.zeros(1), 40, 1.0, 5.0, 30.0)
    grid = Grid((61, 9), 0.5)
    y, _ = grid.axes()
    assert not field_of_view_mask(geometry, grid)[y < -5].any()


def test_the_cone_beam_field_of_view_agrees_with_its_vectors_and_its_rays():
    geometry = ConeGeometry(FULL_TURN[::10], 12, 24, 1.0, 1.2, 60.0, 30.0, 0.7, -0.4)
    grid = Grid((11, 13, 15), 1.0)
    mask = field_of_view_mask(geometry, grid)
    vectors = VectorGeometry(geometry.vectors(), 12, 24)
    np.testing.assert_array_equal(field_of_view_mask(vectors, grid), mask)
    assert mask.any() and not mask.all()
    # A voxel so small that only rays through its centre could meet it lies between the outermost
    # rays exactly if a larger voxel around it is met in every view.
    rays = geometry.rays()
    z, y, x = grid.axes()
    for index in np.ndindex(3, 3, 3):
        index = tuple(5 * i for i in index)
        centre = np.array([x[index[2]], y[index[1]], z[index[0]]])
        met = (box_lengths(rays, centre - 0.5, centre + 0.5) > 0).any(axis=(1, 2)).all()
        # The box reaches half a voxel further than its centre.
        assert met or not mask[index]
    assert mask[5, 6, 7] and not mask[0, 6, 0]


def test_the_field_of_view_of_a_cone_slice_uses_the_columns():
    cone = ConeGeometry(FULL_TURN[::10], 12, 24, 1.0, 1.0, 60.0, 30.0)
    piece = ConeSliceGeometry(cone.vectors(), 12, 24, np.full((36, 24), 5.5), (-1.0, 1.0))
    fan = FanGeometry(FULL_TURN[::10], 24, 1.0, 60.0, 30.0)
    grid = Grid((31, 31), 1.0)
    np.testing.assert_array_equal(field_of_view_mask(piece, grid), field_of_view_mask(fan, grid))


def test_the_field_of_view_of_a_system_matrix():
    matrix = np.zeros((4, 6))
    matrix[0, [0, 1]] = 1.0
    matrix[1, [2, 3]] = 1.0
    matrix[2, [1, 2]] = 1.0
    matrix[3, [5]] = 1.0
    geometry = MatrixGeometry(sparse.csr_matrix(matrix), 2)
    expected = np.array([[0, 1, 1], [0, 0, 0]], dtype=bool)
    np.testing.assert_array_equal(field_of_view_mask(geometry, Grid((2, 3))), expected)
    with pytest.raises(GeometryError, match="6 pixels"):
        field_of_view_mask(geometry, Grid((2, 2)))


def test_grid_and_geometry_must_have_the_same_dimension():
    with pytest.raises(GeometryError, match="an image"):
        field_of_view_mask(ParallelGeometry(HALF_TURN, 40), Grid((4, 4, 4)))
    with pytest.raises(GeometryError, match="a volume"):
        field_of_view_mask(ConeGeometry(HALF_TURN, 4, 40, 1, 1, 9, 9), Grid((4, 4)))


# Noise level


@pytest.mark.parametrize(
    ("smooth", "n_views", "level", "low", "high"),
    [
        (True, 180, 0.05, 0.97, 1.03),
        (True, 180, 0.01, 0.97, 1.03),
        (True, 180, 0.003, 0.97, 1.04),
        (True, 20, 0.05, 0.94, 1.06),
        (False, 180, 0.05, 0.97, 1.05),
        (False, 180, 0.01, 1.0, 1.12),
        (False, 20, 0.05, 0.95, 1.1),
        (False, 20, 0.01, 1.2, 1.8),
    ],
)
def test_error_of_the_noise_level(smooth, n_views, level, low, high):
    rng = np.random.default_rng(9)
    sinogram = _disc_sinogram(np.arange(n_views) * np.pi / n_views, 256, smooth=smooth)
    std = level * np.abs(sinogram).mean()
    estimate = estimate_noise_std(sinogram + std * rng.standard_normal(sinogram.shape))
    assert low < estimate.std / std < high
    assert 0 < estimate.standard_error < 0.15 * estimate.std


def test_the_standard_error_is_the_scatter_of_the_estimate():
    rng = np.random.default_rng(10)
    estimates = [estimate_noise_std(rng.standard_normal((60, 64))) for _ in range(60)]
    scatter = np.std([e.std for e in estimates])
    stated = np.sqrt(np.mean([e.standard_error**2 for e in estimates]))
    assert stated == pytest.approx(scatter, rel=0.35)
    assert np.mean([e.std for e in estimates]) == pytest.approx(1.0, abs=0.01)


def test_noise_is_estimated_in_stacks_and_from_few_views():
    rng = np.random.default_rng(11)
    stack = 0.02 * rng.standard_normal((30, 6, 80)) + np.linspace(0, 1, 80)
    assert estimate_noise_std(stack).std == pytest.approx(0.02, rel=0.05)
    few = 0.02 * rng.standard_normal((2, 400)) + np.linspace(0, 1, 400)
    estimate = estimate_noise_std(few)
    assert estimate.std == pytest.approx(0.02, rel=0.15)
    assert "views" not in estimate.method


def test_neighbouring_columns_that_share_light_need_the_spacing():
    rng = np.random.default_rng(12)
    white = rng.standard_normal((200, 201))
    shared = (white[:, 1:] + 0.3 * white[:, :-1]) / np.hypot(1, 0.3)
    assert estimate_noise_std(shared).std == pytest.approx(1.0, abs=0.03)
    assert estimate_noise_std(shared, spacing=1).std < 0.85


def test_projections_without_a_noise_level_are_refused():
    with pytest.raises(DataError, match="no noise"):
        estimate_noise_std(np.zeros((20, 60)))
    with pytest.raises(DataError, match="differences are left"):
        estimate_noise_std(np.random.default_rng(0).random((4, 12)))
    with pytest.raises(DataError, match="columns"):
        estimate_noise_std(np.ones((40, 4)))
    with pytest.raises(DataError, match="spacing"):
        estimate_noise_std(np.ones((40, 40)), spacing=0)
    with pytest.raises(DataError, match="NaN"):
        estimate_noise_std(np.full((40, 40), np.nan))


def test_the_noise_of_measured_air(data_root):
    sinogram = _htc_sinogram(data_root, "ta")
    air = estimate_noise_std(sinogram[:, :24])
    # The scatter over all air values, which includes their slow drift, is 0.0044.
    assert sinogram[:, :20].std() == pytest.approx(0.0044, abs=1e-4)
    assert air.std == pytest.approx(0.0044, rel=0.12)
    # Fewer photons arrive behind the disc.
    assert estimate_noise_std(sinogram).std > 1.3 * air.std
