"""Analytic reconstruction: position, amplitude, filters, redundancy, adjoints."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from dipct.errors import ConfigurationError, DtypeError, GeometryError, ShapeError
from dipct.measurement.geometry import (
    ConeGeometry,
    ConeSliceGeometry,
    FanGeometry,
    MatrixGeometry,
    ParallelGeometry,
    VectorGeometry,
)
from dipct.measurement.grid import Grid
from dipct.operator.checks import adjoint_mismatch, linearity_mismatch
from dipct.operator.fdk import FDK
from dipct.operator.filtered_backprojection import FilteredBackProjection
from dipct.operator.ramp_filter import FILTERS, padded_length, ramp_response
from dipct.operator.view_weights import angular_coverage, trajectory_centre, view_weights

GRID = Grid((100, 100), 0.4)
VOLUME = Grid((30, 60, 60), 0.6)


@dataclass(frozen=True)
class Ball:
    """A disc of the plane or a ball of space with its attenuation, mm and 1/mm."""

    center: tuple[float, float, float]
    radius: float
    value: float


BALLS = (
    Ball((9.0, 6.0, 2.0), 2.5, 0.04),
    Ball((-4.0, 11.0, -2.5), 3.0, 0.03),
    Ball((-10.0, -3.0, 1.0), 3.5, 0.02),
    Ball((2.0, -10.0, -1.0), 4.0, 0.05),
)


def line_integrals(geometry, balls=BALLS):
    """Closed-form integrals along the geometry's own rays; discs do not change along z."""
    rays = geometry.rays()
    n = 2 if geometry.is_planar else 3
    origins, directions = rays.origins[..., :n], rays.directions[..., :n]
    length = np.linalg.norm(directions, axis=-1)
    # A ray through a cylinder is longer than its projection on the plane.
    slope = np.linalg.norm(rays.directions, axis=-1) / length
    total = np.zeros(length.shape)
    for ball in balls:
        towards = np.asarray(ball.center)[:n] - origins
        along = (towards * directions).sum(-1) / length
        square = (towards**2).sum(-1) - along**2
        total += ball.value * 2 * np.sqrt(np.maximum(ball.radius**2 - square, 0)) * slope
    return torch.as_tensor(total)


def distances(grid, ball):
    """Distance of each pixel from a ball's centre, mm."""
    axes = np.meshgrid(*grid.axes(), indexing="ij")
    centre = ball.center[: grid.ndim][::-1]
    return np.sqrt(sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)))


def position_error(image, grid, balls=BALLS):
    """Largest distance between the centroid of a ball's bright pixels and its place, pixels.

    A ball that is not found where it should be counts as infinitely far off.
    """
    worst = 0.0
    axes = np.meshgrid(*grid.axes(), indexing="ij")
    for ball in balls:
        bright = (distances(grid, ball) < 1.8 * ball.radius) & (image > ball.value / 2)
        if not bright.any():
            return float("inf")
        weight = image[bright]
        found = [(a[bright] * weight).sum() / weight.sum() for a in axes][::-1]
        worst = max(worst, float(np.linalg.norm(np.array(found) - ball.center[: grid.ndim])))
    return worst / grid.pixel_size


def amplitude_errors(image, grid, balls=BALLS):
    """Relative error of the mean in the inner 70 % of each ball's radius."""
    return np.array(
        [image[distances(grid, ball) < 0.7 * ball.radius].mean() / ball.value - 1 for ball in balls]
    )


def field_of_view(grid):
    """What every view sees whole in the planar scans below."""
    return distances(grid, Ball((0.0, 0.0, 0.0), 1.0, 1.0)) < 18.5


def degrees(first, last, step):
    return np.deg2rad(np.arange(first, last, step, dtype=float))


def fan(angles=None, n_columns=150, spacing=0.45, offset=0.0):
    angles = degrees(0, 360, 2) if angles is None else angles
    return FanGeometry(angles, n_columns, spacing, 60.0, 40.0, offset)


def cone(angles=None, **shift):
    angles = degrees(0, 360, 3) if angles is None else angles
    return ConeGeometry(angles, 40, 80, 0.8, 0.8, 60.0, 40.0, **shift)


def cone_slice(angles=None):
    """One row of a cone beam, above the source's plane, wandering with view and column."""
    scan = cone(degrees(0, 360, 2) if angles is None else angles)
    scan = replace(scan, n_columns=150, column_spacing=0.45)
    rows = 23 + 2 * np.sin(np.arange(scan.n_views))[:, None] + np.linspace(-1, 1, 150)
    return ConeSliceGeometry(scan.vectors(), 40, 150, rows, (-50.0, 50.0))


def as_vectors(geometry):
    rows = 1 if geometry.is_planar else geometry.n_rows
    return VectorGeometry(
        geometry.vectors(), rows, geometry.n_columns, geometry.beam, geometry.is_planar
    )


def turned_vectors():
    """A fan whose detector is turned, stretched and shifted in every view."""
    vectors = fan(n_columns=170, spacing=0.5).vectors().copy()
    rng = np.random.default_rng(3)
    n = len(vectors)
    turn, stretch, shift = rng.uniform([[-0.2], [0.9], [-3]], [[0.2], [1.1], [3]], (3, n))
    u = vectors[:, 6:9]
    vectors[:, 3:6] += shift[:, None] * u
    x, y = u[:, 0].copy(), u[:, 1].copy()
    u[:, 0] = stretch * (x * np.cos(turn) - y * np.sin(turn))
    u[:, 1] = stretch * (x * np.sin(turn) + y * np.cos(turn))
    # Every other detector is read from its other end.
    u[::2] *= -1
    return VectorGeometry(vectors, 1, 170, "cone", True)


HALF_TURN = degrees(0, 180, 1.5)
PLANAR = {
    "parallel": ParallelGeometry(HALF_TURN, 101, 0.4),
    "parallel, reaching one side": ParallelGeometry(degrees(0, 360, 2), 75, 0.4, 9.0),
    "fan": fan(),
    "fan with offset": fan(offset=3.7),
    "fan, reaching one side": fan(n_columns=105, offset=15.0),
    "short scan": fan(degrees(20, 250, 2)),
    "short scan, clockwise": fan(-degrees(20, 250, 2)),
    "cropped and binned": fan(n_columns=400, spacing=0.2).crop_detector(30, 361).bin_detector(2),
    "vectors": as_vectors(fan(offset=-2.0)),
    "turned vectors": turned_vectors(),
    "parallel vectors": as_vectors(ParallelGeometry(HALF_TURN, 101, 0.4, 1.0)),
    "cone slice": cone_slice(),
    "cone slice, short scan": cone_slice(degrees(0, 220, 2)),
}
SPATIAL = {
    "cone": cone(),
    "cone with offsets": cone(column_offset=3.0, row_offset=-1.5),
    "cone, short scan": cone(degrees(30, 255, 3)),
    "cone vectors": as_vectors(cone(row_offset=1.0)),
    "cone, binned": replace(
        cone(), n_rows=80, n_columns=161, row_spacing=0.4, column_spacing=0.4
    ).bin_detector(2),
}
TINY = Grid((5, 6), 7.0)
TINY_PLANAR = {
    "parallel": ParallelGeometry(HALF_TURN[::20], 11, 4.0, 1.0),
    "parallel, reaching one side": ParallelGeometry(degrees(0, 360, 45), 7, 4.0, 8.0),
    "fan with offset": fan(degrees(0, 360, 40), 12, 5.0, 4.0),
    "short scan": fan(degrees(0, 240, 30), 12, 5.0),
    "one column": fan(degrees(0, 360, 40), 1, 5.0),
}


def fbp(geometry, data, grid=GRID, **options):
    return FilteredBackProjection(geometry, grid, **options)(data)[0].numpy()


def fdk(geometry, data, grid=VOLUME, **options):
    return FDK(geometry, grid, **options)(data)[0].numpy()


@pytest.mark.parametrize("name", PLANAR)
def test_discs_are_where_they_are_and_as_bright(name):
    image = fbp(PLANAR[name], line_integrals(PLANAR[name]))
    assert position_error(image, GRID) < 0.2
    # Seen up to 2 per mille.
    assert np.abs(amplitude_errors(image, GRID)).max() < 0.01


@pytest.mark.parametrize("name", SPATIAL)
def test_balls_are_where_they_are_and_as_bright(name):
    volume = fdk(SPATIAL[name], line_integrals(SPATIAL[name]))
    assert position_error(volume, VOLUME) < 0.2
    assert np.abs(amplitude_errors(volume, VOLUME)).max() < 0.02


def mirrored(geometry):
    if isinstance(geometry, ConeSliceGeometry | VectorGeometry):
        vectors = geometry.vectors().copy()
        vectors[:, [0, 3, 6]] *= -1
        return replace(geometry, view_vectors=vectors)
    return replace(geometry, angles=-geometry.angles)


def shifted(geometry):
    """The detector one column further along."""
    if isinstance(geometry, ConeSliceGeometry | VectorGeometry):
        vectors = geometry.vectors().copy()
        vectors[:, 3:6] += vectors[:, 6:9]
        return replace(geometry, view_vectors=vectors)
    offset = geometry.column_offset + geometry.column_spacing
    return replace(geometry, column_offset=offset)


# A full turn only blurs under a shifted detector, since the opposite views shift the other way;
# less than a turn moves the discs. The columns are as wide at the axis as 1.2 pixels or more.
SENSITIVE = {
    "parallel": (ParallelGeometry(HALF_TURN, 81, 0.5), GRID, fbp),
    "short scan": (fan(degrees(20, 250, 2), 90, 0.8), GRID, fbp),
    "vectors": (as_vectors(fan(degrees(20, 250, 2), 90, 0.8, 2.0)), GRID, fbp),
    "cone slice": (cone_slice(degrees(0, 220, 2)).bin_detector(2), GRID, fbp),
    "cone": (
        replace(cone(degrees(30, 255, 3)), column_spacing=1.2),
        VOLUME,
        fdk,
    ),
}


@pytest.mark.parametrize("wrong", ["mirrored", "shifted", "swapped"])
@pytest.mark.parametrize("name", SENSITIVE)
def test_the_position_check_rejects_a_wrong_orientation(name, wrong):
    geometry, grid, method = SENSITIVE[name]
    data = line_integrals(geometry)
    assert position_error(method(geometry, data, grid), grid) < 0.3
    if wrong == "swapped":
        image = method(geometry, data, grid).swapaxes(-1, -2)
    else:
        change = {"mirrored": mirrored, "shifted": shifted}[wrong]
        image = method(change(geometry), data, grid)
    assert position_error(image, grid) > 0.5


@pytest.mark.parametrize("pixel_size", [0.25, 0.5])
@pytest.mark.parametrize("unit", [0.1, 1.0, 30.0])
def test_attenuation_is_per_length_for_any_pixel_and_unit(pixel_size, unit):
    balls = tuple(
        Ball(tuple(c * unit for c in b.center), b.radius * unit, b.value / unit) for b in BALLS
    )
    geometry = FanGeometry(
        degrees(0, 360, 2), 140, 0.5 * unit, 45.0 * unit, 60.0 * unit, 1.3 * unit
    )
    grid = Grid((int(40 / pixel_size), int(36 / pixel_size)), pixel_size * unit, (unit, -unit))
    image = fbp(geometry, line_integrals(geometry, balls), grid)
    assert np.abs(amplitude_errors(image, grid, balls)).max() < 0.01
    assert position_error(image, grid, balls) < 0.2


@pytest.mark.parametrize("name", ["parallel", "fan", "short scan"])
def test_a_wide_disc_has_no_bias(name):
    disc = (Ball((1.0, -1.0, 0.0), 15.0, 0.02),)
    image = fbp(PLANAR[name], line_integrals(PLANAR[name], disc))
    inside = image[distances(GRID, disc[0]) < 13]
    outside = image[(distances(GRID, disc[0]) > 16) & field_of_view(GRID)]
    assert abs(inside.mean() / 0.02 - 1) < 1e-3
    assert inside.std() < 0.02 * 0.02
    assert abs(outside.mean()) < 0.02 * 0.01


def test_a_ramp_sampled_in_frequency_has_the_bias_that_ours_has_not():
    disc = (Ball((0.0, 0.0, 0.0), 15.0, 0.02),)
    geometry = PLANAR["parallel"]
    operator = FilteredBackProjection(geometry, GRID)
    inside = distances(GRID, disc[0]) < 10
    data = line_integrals(geometry, disc)
    assert abs(operator(data)[0].numpy()[inside].mean() / 0.02 - 1) < 1e-3
    operator._response = np.fft.rfftfreq(padded_length(geometry.n_columns))
    assert operator(data)[0].numpy()[inside].mean() / 0.02 - 1 < -0.02


def test_agrees_with_scikit_image():
    from skimage.transform import iradon

    grid = Grid((101, 101), 0.4)
    geometry = ParallelGeometry(HALF_TURN, 101, 0.4)
    data = line_integrals(geometry)
    ours = fbp(geometry, data, grid)
    theirs = iradon(data.numpy().T, np.rad2deg(HALF_TURN), filter_name="ramp") / 0.4
    inside = field_of_view(grid)
    gap = np.linalg.norm((ours - theirs)[inside]) / np.linalg.norm(theirs[inside])
    assert gap < 1e-5
    assert np.linalg.norm((ours.T - theirs)[inside]) / np.linalg.norm(theirs[inside]) > 0.5


def test_ram_lak_is_the_ramp_without_its_zero():
    n_columns = 200
    response = ramp_response(n_columns)
    frequency = np.fft.rfftfreq(padded_length(n_columns))
    assert np.abs(response - frequency).max() < 2e-3
    # The tail of the kernel beyond the padding, sum of 2 / (pi n)^2 over odd n.
    assert 0 < response[0] < 1 / (np.pi**2 * n_columns / 2)


@pytest.mark.parametrize(
    ("name", "half_way", "end"),
    [
        ("shepp-logan", np.sin(np.pi / 4) / (np.pi / 4), 2 / np.pi),
        ("cosine", np.cos(np.pi / 4), 0.0),
        ("hamming", 0.54, 0.08),
        ("hann", 0.5, 0.0),
    ],
)
@pytest.mark.parametrize("scaling", [1.0, 0.5])
def test_windows(name, half_way, end, scaling):
    n_columns = 192
    frequency = np.fft.rfftfreq(padded_length(n_columns))
    window = ramp_response(n_columns, name, scaling) / ramp_response(n_columns)
    at = {share: int(np.abs(frequency - share * scaling / 2).argmin()) for share in (0.5, 1.0)}
    step = 4 * (frequency[1] - frequency[0]) / scaling
    assert window[0] == pytest.approx(1.0)
    assert window[at[0.5]] == pytest.approx(half_way, abs=step)
    assert window[at[1.0] - 1] == pytest.approx(end, abs=2 * step)
    assert np.all(window[frequency > scaling / 2 + 1e-9] == 0)
    assert np.all(np.diff(window) <= 1e-12)


@pytest.mark.parametrize("name", FILTERS)
def test_filters_lower_noise_and_keep_the_mean(name):
    geometry = PLANAR["fan"]
    disc = (Ball((0.0, 0.0, 0.0), 14.0, 0.02),)
    data = line_integrals(geometry, disc)
    noise = torch.as_tensor(np.random.default_rng(0).normal(size=data.shape))
    for scaling in (1.0, 0.4):
        operator = FilteredBackProjection(geometry, GRID, filter=name, frequency_scaling=scaling)
        image = operator(data)[0].numpy()
        assert abs(image[distances(GRID, disc[0]) < 11].mean() / 0.02 - 1) < 2e-3
        if name != "ram-lak" or scaling < 1:
            plain = FilteredBackProjection(geometry, GRID)
            assert operator(noise).std() < 0.95 * plain(noise).std()


def test_short_scan_equals_full_scan():
    data = {name: line_integrals(PLANAR[name]) for name in ("fan", "short scan")}
    inside = field_of_view(GRID)
    full, short = (fbp(PLANAR[name], d, filter="hann")[inside] for name, d in data.items())
    assert np.linalg.norm(short - full) / np.linalg.norm(full) < 0.04
    # The same views without redundancy weights are far off.
    operator = FilteredBackProjection(PLANAR["short scan"], GRID, filter="hann")
    half = angular_coverage(PLANAR["short scan"].angles, 2 * np.pi).widths[:, None] / 2
    whole = view_weights(PLANAR["fan"].vectors(), 150, "cone")[:1]
    operator._weights = whole / np.deg2rad(1.0) * half
    wrong = operator(data["short scan"])[0].numpy()[inside]
    assert np.linalg.norm(wrong - full) / np.linalg.norm(full) > 0.2


def test_weights_of_both_measurements_of_a_line_add_up_to_one():
    """Sums of one direction over a short scan: the Jacobian integrates to lines over pi."""
    weights = view_weights(fan(degrees(0, 240, 0.5)).vectors(), 150, "cone")
    full = view_weights(fan(degrees(0, 360, 0.5)).vectors(), 150, "cone")
    # Every line with the same fan angle up to its sign is met once per half turn and direction.
    short_sum = weights.sum(0) + weights.sum(0)[::-1]
    full_sum = full.sum(0) + full.sum(0)[::-1]
    np.testing.assert_allclose(short_sum, full_sum, rtol=2e-3)


@pytest.mark.parametrize(
    "angles",
    [
        np.linspace(0, 2 * np.pi, 181),
        np.linspace(0, 2 * np.pi, 181)[::-1],
        np.concatenate([degrees(0, 180, 1), degrees(180, 360, 4)]),
        np.concatenate([degrees(0, 360, 2), degrees(0, 360, 2)]),
        np.random.default_rng(1).permutation(degrees(-100, 260, 2)),
        np.delete(degrees(0, 360, 2), [20, 77, 78]),
    ],
    ids=["closing", "clockwise", "uneven", "two turns", "shuffled", "dropped"],
)
@pytest.mark.parametrize("beam", ["parallel", "fan"])
def test_any_order_and_spacing_of_views(angles, beam):
    geometry = fan(angles) if beam == "fan" else ParallelGeometry(angles, 101, 0.4)
    image = fbp(geometry, line_integrals(geometry))
    assert np.abs(amplitude_errors(image, GRID)).max() < 0.01
    assert position_error(image, GRID) < 0.2


def test_coverage_widths():
    for period in (np.pi, 2 * np.pi):
        closed = angular_coverage(np.linspace(0, period, 91), period)
        assert closed.widths.sum() == pytest.approx(period)
        assert closed.widths[[0, -1]] == pytest.approx(closed.widths[1] / 2)
        assert len(closed.missing) == 0
    turns = angular_coverage(np.tile(degrees(0, 180, 3), 3) + 1e-9, np.pi)
    np.testing.assert_allclose(turns.widths, np.deg2rad(1.0))
    single = angular_coverage(np.array([0.3, 0.3]), np.pi)
    np.testing.assert_allclose(single.widths, np.pi / 2)


@pytest.mark.parametrize("first", [0.0, 0.75 * np.pi])
def test_a_missing_wedge_is_not_filled(first):
    coverage = angular_coverage(first + degrees(0, 90, 1), np.pi)
    np.testing.assert_allclose(coverage.widths, np.deg2rad(1.0))
    assert coverage.missing.shape == (1, 2)
    assert np.ptp(coverage.missing) == pytest.approx(np.pi / 2)
    geometry = ParallelGeometry(first + degrees(0, 90, 1), 101, 0.4)
    operator = FilteredBackProjection(geometry, GRID)
    empty = field_of_view(GRID)
    for ball in BALLS:
        empty &= distances(GRID, ball) > 1.5 * ball.radius
    streaks = operator(line_integrals(geometry))[0].numpy()[empty].std()
    # The weights of a plain trapezoid let the two end views draw streaks.
    operator._weights = operator._weights * np.where(np.arange(90) % 89, 1.0, 45.5)[:, None]
    assert operator(line_integrals(geometry))[0].numpy()[empty].std() > 2 * streaks


def test_the_axis_need_not_be_the_origin():
    geometry = as_vectors(fan(offset=2.0))
    shift = np.array([7.0, -4.0])
    vectors = geometry.vectors().copy()
    vectors[:, :2] += shift
    vectors[:, 3:5] += shift
    np.testing.assert_allclose(trajectory_centre(vectors[:, :2]), shift, atol=1e-9)
    data = line_integrals(geometry)
    here = fbp(geometry, data)
    there = fbp(replace(geometry, view_vectors=vectors), data, replace(GRID, center=tuple(shift)))
    np.testing.assert_allclose(there, here, atol=1e-9)
    assert np.all(trajectory_centre(vectors[:40, :2]) == 0)


@pytest.mark.parametrize("name", TINY_PLANAR)
def test_fbp_adjoint_is_the_transpose(name):
    operator = FilteredBackProjection(TINY_PLANAR[name], TINY)
    assert operator.matched
    assert adjoint_mismatch(operator) <= 1e-12
    assert linearity_mismatch(operator) < 1e-13
    matrix = torch.func.jacrev(operator)(torch.zeros(operator.domain_shape, dtype=torch.float64))
    columns = operator(
        torch.eye(matrix[0, 0, 0].numel(), dtype=torch.float64).reshape(-1, *operator.domain_shape)
    )
    torch.testing.assert_close(matrix.flatten(3).movedim(-1, 0), columns)


def tiny_fdk(**options):
    geometry = ConeGeometry(degrees(0, 360, 50), 6, 9, 5.0, 4.5, 60.0, 40.0, 1.7, -1.1)
    return FDK(geometry, Grid((4, 5, 6), 4.0), **options)


def test_fdk_adjoint_is_the_transpose():
    operator = tiny_fdk()
    assert operator.matched
    assert adjoint_mismatch(operator) <= 1e-12
    assert linearity_mismatch(operator) < 1e-13


def test_an_adjoint_of_another_scan_is_rejected():
    operator = FilteredBackProjection(TINY_PLANAR["parallel"], TINY)
    other = FilteredBackProjection(shifted(TINY_PLANAR["parallel"]), TINY)
    operator._project = other._project
    assert adjoint_mismatch(operator) > 1e-3


# Torch compiles its own rules for forward derivatives on first use.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    "operator",
    [FilteredBackProjection(TINY_PLANAR["fan with offset"], TINY), tiny_fdk()],
    ids=["fbp", "fdk"],
)
def test_batches_vmap_and_derivatives(operator):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 3, *operator.domain_shape), generator=generator, dtype=torch.float64)
    loop = torch.stack([torch.stack([operator(b) for b in a]) for a in x])
    torch.testing.assert_close(operator(x), loop)
    torch.testing.assert_close(torch.vmap(torch.vmap(operator))(x), loop)
    torch.testing.assert_close(torch.vmap(operator, in_dims=1, out_dims=1)(x), loop)
    back = torch.stack([operator.adjoint(y) for y in loop[0]])
    torch.testing.assert_close(operator.adjoint(loop)[0], back)
    value, tangent = torch.func.jvp(operator, (x[0],), (x[1],))
    torch.testing.assert_close((value, tangent), (loop[0], loop[1]))
    leaf = x[0].clone().requires_grad_()
    operator(leaf).square().sum().backward()
    torch.testing.assert_close(leaf.grad, operator.adjoint(2 * loop[0]))


@pytest.mark.parametrize(
    "operator",
    [FilteredBackProjection(TINY_PLANAR["fan with offset"], TINY), tiny_fdk()],
    ids=["fbp", "fdk"],
)
def test_type_follows_the_input(operator):
    x = torch.rand(operator.domain_shape, generator=torch.Generator().manual_seed(1))
    assert operator(x).dtype == torch.float32
    assert operator.adjoint(operator(x)).dtype == torch.float32
    torch.testing.assert_close(operator(x), operator(x.double()).float(), atol=1e-6, rtol=1e-4)
    with pytest.raises(DtypeError, match="float32 or float64"):
        operator(x.half())
    with pytest.raises(ShapeError):
        operator(x[..., :-1])


def test_slabs_and_chunks_change_nothing(monkeypatch):
    x = torch.rand((7, *TINY_PLANAR["short scan"].projection_shape), dtype=torch.float64)
    plane, space = FilteredBackProjection(TINY_PLANAR["short scan"], TINY), tiny_fdk()
    z = torch.rand((2, *space.domain_shape), dtype=torch.float64)
    expected = plane(x), plane.adjoint(plane(x)), space(z), space.adjoint(space(z))
    monkeypatch.setattr("dipct.operator.filtered_backprojection._PIXELS_PER_STEP", 100)
    monkeypatch.setattr("dipct.operator.fdk._VOXELS_PER_STEP", 50)
    found = plane(x), plane.adjoint(plane(x)), space(z), space.adjoint(space(z))
    torch.testing.assert_close(found, expected)


def test_fdk_of_a_long_cylinder_is_fan_beam_in_every_slice():
    """What does not change along z is reconstructed exactly where the rays stay on the object."""
    geometry = replace(cone(), n_rows=90)
    rays = geometry.rays()
    planar = line_integrals(replace_by_plane(geometry)).numpy()[:, None]
    length = np.linalg.norm(rays.directions, axis=-1)
    in_plane = np.linalg.norm(rays.directions[..., :2], axis=-1)
    volume = fdk(geometry, torch.as_tensor(planar * length / in_plane), VOLUME)
    image = fbp(replace_by_plane(geometry), torch.as_tensor(planar[:, 0]), Grid((60, 60), 0.6))
    for level in volume[[0, 15, 29]]:
        np.testing.assert_allclose(level, image, atol=1e-9)


def replace_by_plane(geometry):
    return FanGeometry(
        geometry.angles,
        geometry.n_columns,
        geometry.column_spacing,
        geometry.source_origin,
        geometry.origin_detector,
    )


def test_impossible_requests():
    geometry = TINY_PLANAR["parallel"]
    with pytest.raises(ConfigurationError, match="filter must be one of"):
        FilteredBackProjection(geometry, TINY, filter="ramp")
    for scaling in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigurationError, match="Nyquist"):
            FilteredBackProjection(geometry, TINY, frequency_scaling=scaling)
    with pytest.raises(GeometryError, match="Use FDK"):
        FilteredBackProjection(cone(), TINY)
    with pytest.raises(GeometryError, match="an image"):
        FilteredBackProjection(geometry, VOLUME)
    with pytest.raises(GeometryError, match="system matrix"):
        FilteredBackProjection(MatrixGeometry(sparse.eye(30, format="csr"), 6), TINY)
    with pytest.raises(GeometryError, match="source of view"):
        FilteredBackProjection(fan(), Grid((100, 100), 1.0))
    edge_on = fan().vectors().copy()
    edge_on[5, 6:9] = edge_on[5, :3]
    with pytest.raises(GeometryError, match="view 5 lies along"):
        FilteredBackProjection(VectorGeometry(edge_on, 1, 150, "cone", True), GRID)
    with pytest.raises(GeometryError, match="planar"):
        FDK(fan(), VOLUME)
    with pytest.raises(GeometryError, match="a volume"):
        FDK(cone(), GRID)
    with pytest.raises(GeometryError, match="divergent"):
        FDK(VectorGeometry(cone().vectors(), 40, 80, "parallel"), VOLUME)


@pytest.mark.skipif("DIPCT_DATA" not in os.environ, reason="DIPCT_DATA, the real data, is unset")
def test_measured_scan_agrees_with_its_own_reference():
    from dipct.measurement.readers.htc2022 import read_htc2022, read_htc2022_reference

    path = Path(os.environ["DIPCT_DATA"]) / "htc2022" / "htc2022_ta_full.mat"
    scan, (reference, _) = read_htc2022(path), read_htc2022_reference(path)
    image = fbp(scan.geometry, torch.as_tensor(scan.projections), scan.grid)

    def correlation(a):
        return np.corrcoef(a.ravel(), reference.ravel())[0, 1]

    assert correlation(image) > 0.999
    assert np.linalg.norm(image - reference) / np.linalg.norm(reference) < 0.01
    assert max(correlation(image[::-1]), correlation(image[:, ::-1]), correlation(image.T)) < 0.8
