"""Figures: what they show is what was given, readable, and written whole."""

import itertools
import subprocess
import sys
from dataclasses import replace
from functools import cache

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.text import Text

from dipct.errors import ConfigurationError, DataError
from dipct.figures import comparison_figure, run_figure, save_figure, scan_figure
from dipct.figures.geometry import seen_radius
from dipct.figures.history import draw_history, history_groups
from dipct.figures.image import (
    SCALE_BAR,
    central_sections,
    display_range,
    draw_section,
    round_length,
    symmetric_range,
)
from dipct.figures.layout import new_figure
from dipct.measurement.geometry import (
    ConeGeometry,
    ConeSliceGeometry,
    FanGeometry,
    MatrixGeometry,
    ParallelGeometry,
    VectorGeometry,
)
from dipct.measurement.grid import Grid
from dipct.measurement.noise import GaussianNoise
from dipct.measurement.preprocessing import field_of_view_mask
from dipct.measurement.scan import Scan
from dipct.operator import RayTransform
from dipct.operator.ray_tracing import assemble_matrix
from dipct.phantom import make_phantom
from dipct.run import Run

PLANE, SPACE = Grid((20, 24), 0.5, (0.0, 0.25)), Grid((6, 12, 14), 0.5)
TURN = np.linspace(0, 2 * np.pi, 18, endpoint=False)
FAN = FanGeometry(TURN, 30, 0.8, 40.0, 30.0)
CONE = ConeGeometry(TURN, 9, 22, 0.8, 0.7, 40.0, 30.0)


def geometries():
    vectors = VectorGeometry(CONE.vectors(), 9, 22)
    upside_down = CONE.vectors()
    upside_down[:, 9:12] *= -1
    return {
        "parallel": ParallelGeometry(TURN[:9], 30, 0.6, 0.2),
        "fan": FAN,
        "fan limited, turning back": FanGeometry(
            np.deg2rad(np.arange(0, -90, -5)), 30, 0.8, 40, 30
        ),
        "fan in any order": FAN.select_views(np.random.default_rng(1).permutation(18)),
        "fan of one view": FAN.select_views(np.array([4])),
        "fan of two views": FAN.select_views(np.array([4, 5])),
        "vectors planar": VectorGeometry(FAN.vectors(), 1, 30, planar=True),
        "cone-slice": ConeSliceGeometry.from_scan(
            vectors, voxel_size=0.5, slice_z=0.25, n_slices=3, volume_shape=(6, 20, 24)
        ),
        "matrix": MatrixGeometry(assemble_matrix(FAN, PLANE), 30, TURN),
        "cone": CONE,
        "vectors, rows downwards": VectorGeometry(upside_down, 9, 22),
    }


SLOW = {"fan of two views", "vectors planar", "vectors, rows downwards"}
KINDS = [
    pytest.param(kind, True, marks=[pytest.mark.slow] if kind in SLOW else [])
    for kind in geometries()
]


@cache
def scan_of(kind, truth=True, unit="mm"):
    geometry = geometries()[kind]
    grid = PLANE if geometry.is_planar else SPACE
    image = make_phantom("ellipses", grid, seed=2)
    if kind == "matrix":
        line_integrals = (geometry.matrix @ image.ravel()).reshape(geometry.projection_shape)
    else:
        line_integrals = RayTransform(geometry, grid)(torch.from_numpy(image[None])).numpy()
    noise = GaussianNoise(0.02)
    return Scan(
        noise.sample(line_integrals, np.random.default_rng(3)),
        geometry,
        grid,
        noise if truth else None,
        image if truth else None,
        "phantom ellipses, seed 2" if truth else "",
        length_unit=unit,
    )


@cache
def scan_figure_of(kind, truth=True):
    return scan_figure(scan_of(kind, truth))


LONG_HISTORY = {
    "iteration": np.arange(1, 3001),
    "objective": 1e5 / np.arange(1, 3001) + 812,
    "fidelity": 9e4 / np.arange(1, 3001) + 800,
    "gap": np.maximum(1e5 * np.exp(-np.arange(1, 3001) / 50) - 1e-6, 0),
    "step": np.full(3000, 1e-4),
    "psnr_db": 30 - 20 / np.sqrt(np.arange(1, 3001)),
    "ssim": 1 - 1 / np.sqrt(np.arange(1, 3001)),
    "log_evidence": -4e5 + 100 * np.sqrt(np.arange(1, 3001)),
}
SHORT_HISTORY = {"iteration": np.arange(3), "objective": np.array([3.0, 2.0, 1.5])}


def run_of(scan, method="cgls", history=None, error=0.1, seed=0):
    rng = np.random.default_rng(seed)
    image = scan.truth if scan.truth is not None else make_phantom("ellipses", scan.grid, seed=2)
    image = image * (1 + error * rng.standard_normal(image.shape)).astype(np.float32)
    metrics = {"relative_residual": 0.0123, "other": 7.0}
    if scan.truth is not None:
        metrics |= {"psnr_db": 31.234, "ssim": 0.9876}
    history = history or {}
    return Run(
        image=image,
        projections=scan.projections + 0.01 * rng.standard_normal(scan.projections.shape),
        scan=scan,
        configuration={"method": method},
        status="converged",
        advice="",
        iterations=len(history.get("iteration", ())),
        history=history,
        metrics=metrics,
        seed=0,
        source="example",
        input_sha256="0" * 64,
        duration_s=1.0,
        created="2026-01-01T00:00:00+00:00",
        versions={},
    )


# What a figure holds


def drawn(figure):
    figure.draw_without_rendering()
    return figure


def images(figure):
    return [image for axes in figure.axes for image in axes.images]


def colorbar_labels(figure):
    return [image.colorbar.ax.get_ylabel() for image in images(figure) if image.colorbar]


def scale_bars(figure):
    return figure.findobj(lambda artist: artist.get_gid() == SCALE_BAR)


def all_text(figure):
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def titled(figure, start):
    found = [axes for axes in figure.axes if axes.get_title().startswith(start)]
    assert len(found) == 1
    return found[0]


def misplaced_texts(figure):
    """Pairs of texts that overlap, and texts that leave the figure."""
    renderer = drawn(figure).canvas.get_renderer()
    hidden = set()
    for axes in figure.findobj(Axes):
        # Ticks beyond the limits of an axis are kept, but not drawn.
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            inside = [
                axes.axison and min(limits) <= t.get_loc() <= max(limits) for t in ticks(axis)
            ]
            for tick, shown in zip(ticks(axis), inside, strict=True):
                hidden |= set() if shown else {tick.label1, tick.label2}
    boxes = [
        (text.get_text(), text.get_window_extent(renderer).padded(-1.5))
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
    ]
    outside = [
        name
        for name, box in boxes
        if box.x0 < 0 or box.y0 < 0 or box.x1 > figure.bbox.x1 or box.y1 > figure.bbox.y1
    ]
    pairs = itertools.combinations(boxes, 2)
    return outside + [(a[0], b[0]) for a, b in pairs if a[1].overlaps(b[1])]


def ticks(axis):
    return axis.get_major_ticks() + axis.get_minor_ticks()


def test_misplaced_texts_are_found():
    figure = new_figure(4, 3)
    figure.text(0.5, 0.5, "one")
    figure.text(0.52, 0.52, "two")
    figure.text(0.97, 0.1, "out of the figure")
    assert misplaced_texts(figure) == ["out of the figure", ("one", "two")]


# Scans


@pytest.mark.parametrize(("kind", "truth"), [*KINDS, ("fan", False), ("cone", False)])
def test_scan_figure(kind, truth):
    scan = scan_of(kind, truth)
    figure = scan_figure_of(kind, truth)
    planar = scan.geometry.is_planar
    n_truth = 0 if not truth else 1 if planar else 3
    assert misplaced_texts(figure) == []
    assert len(images(figure)) == (1 if planar else 2) + n_truth
    assert len(scale_bars(figure)) == n_truth
    labels = colorbar_labels(figure)
    assert labels.count("attenuation [1/mm]") == n_truth
    assert labels.count("line integral [dimensionless]") == (1 if planar else 2)
    assert len(labels) == len(images(figure))
    facts = all_text(figure)
    assert all(label in facts for label in scan.geometry.summary())
    assert ("Gaussian, standard deviation" in facts) == truth
    assert ("phantom ellipses, seed 2" in facts) == truth


def test_sinogram_shows_the_data_with_angles_in_degrees():
    scan = scan_of("fan")
    axes = titled(scan_figure_of("fan"), "sinogram")
    np.testing.assert_array_equal(axes.images[0].get_array(), scan.projections)
    bottom, top = axes.get_ylim()
    assert bottom > top
    marks = {
        t.get_text(): y for t, y in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    }
    assert marks["0"] == 0
    assert marks["60"] == pytest.approx(3)
    assert axes.get_ylabel() == "view angle [degrees]"


def test_angles_of_unordered_views_are_those_of_the_rows():
    scan = scan_of("fan in any order")
    axes = titled(scan_figure_of("fan in any order"), "sinogram")
    for label, row in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True):
        angle = np.rad2deg(scan.geometry.angles[int(row)])
        assert float(label.get_text()) == pytest.approx(angle, rel=1e-3)


def test_scan_in_space_shows_its_central_row():
    scan = scan_of("cone")
    axes = titled(scan_figure_of("cone"), "sinogram, row 4 of 9")
    np.testing.assert_array_equal(axes.images[0].get_array(), scan.projections[:, 4])


@pytest.mark.parametrize("kind", ["cone", "vectors, rows downwards"])
def test_projection_has_z_up(kind):
    axes = titled(scan_figure_of(kind), "projection")
    row_zero, last_row = (axes.transData.transform((0, row))[1] for row in (0, 8))
    assert (row_zero < last_row) == (kind == "cone")


def test_pixels_as_unit_of_length():
    figure = scan_figure(scan_of("fan", unit="pixel"))
    assert "attenuation [1/pixel]" in colorbar_labels(figure)
    assert "pixels" in all_text(figure)
    assert "mm" not in all_text(figure)


def test_geometry_is_drawn_where_it_is():
    axes = titled(scan_figure_of("fan"), "geometry")
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    np.testing.assert_allclose(lines["source, view 0"], [[0, -40]], atol=1e-12)
    np.testing.assert_allclose(lines["source, all views"], FAN.vectors()[:, :2])
    np.testing.assert_allclose(lines["detector, view 0"], [[-12, 30], [12, 30]], atol=1e-12)
    np.testing.assert_allclose(lines["column 0"], [[-12, 30]], atol=1e-12)
    outline = next(p for p in axes.patches if p.get_label() == "image grid")
    assert (*outline.get_xy(), outline.get_width(), outline.get_height()) == (-6, -4.75, 12, 10)
    for axis in (axes.get_xlim(), axes.get_ylim()):
        assert axis[0] < -40
        assert axis[1] > 40


@pytest.mark.parametrize(("kind", "sense"), [("fan", 1), ("fan limited, turning back", -1)])
def test_arrow_turns_with_the_angles(kind, sense):
    axes = titled(scan_figure_of(kind), "geometry")
    path = next(line for line in axes.lines if len(line.get_xdata()) == 30).get_xydata()
    turned = np.diff(np.unwrap(np.arctan2(path[:, 1], path[:, 0])))
    assert np.all(turned * sense > 0)


@pytest.mark.parametrize("kind", ["fan in any order", "fan of one view"])
def test_no_arrow_where_the_scanner_does_not_turn_one_way(kind):
    axes = titled(scan_figure_of(kind), "geometry")
    assert all(len(line.get_xdata()) != 30 for line in axes.lines)


@pytest.mark.parametrize(
    "geometry",
    [
        FAN,
        FanGeometry(TURN, 30, 0.3, 40.0, 30.0, 1.0),
        ParallelGeometry(TURN, 30, 0.25, -0.4),
        VectorGeometry(ParallelGeometry(TURN, 30, 0.25).vectors(), 1, 30, "parallel", True),
    ],
    ids=["fan", "fan, offset", "parallel, offset", "vectors"],
)
def test_seen_radius_is_that_of_the_field_of_view(geometry):
    grid = Grid((200, 200), 0.12)
    # Many views, so that the region seen by all is a disc.
    many = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    full = geometry
    if not isinstance(geometry, VectorGeometry):
        full = replace(geometry, angles=many)
    else:
        full = VectorGeometry(ParallelGeometry(many, 30, 0.25).vectors(), 1, 30, "parallel", True)
    area = np.count_nonzero(field_of_view_mask(full, grid)) * grid.pixel_size**2
    assert seen_radius(geometry) == pytest.approx(np.sqrt(area / np.pi), rel=0.01)


def test_no_field_of_view_where_views_differ_or_miss_the_axis():
    vectors = FAN.vectors().copy()
    vectors[3, 3:5] += 2.0 * vectors[3, 6:8] / np.linalg.norm(vectors[3, 6:8])
    assert seen_radius(VectorGeometry(vectors, 1, 30, planar=True)) is None
    assert seen_radius(ParallelGeometry(TURN, 30, 0.25, 5.0)) is None


# Runs


@pytest.mark.parametrize(
    ("kind", "truth", "history"),
    [
        ("fan", True, LONG_HISTORY),
        pytest.param("fan", True, None, marks=pytest.mark.slow),
        ("fan limited, turning back", True, SHORT_HISTORY),
        pytest.param("fan", False, None, marks=pytest.mark.slow),
        ("fan", False, SHORT_HISTORY),
        ("matrix", False, LONG_HISTORY),
        ("cone", True, LONG_HISTORY),
        ("cone", False, None),
    ],
)
def test_run_figure(kind, truth, history):
    run = run_of(scan_of(kind, truth), history=history)
    figure = run_figure(run)
    n_sections = 1 if run.scan.geometry.is_planar else 3
    assert misplaced_texts(figure) == []
    assert len(images(figure)) == n_sections * (3 if truth else 1) + 2
    assert len(scale_bars(figure)) == n_sections * (3 if truth else 1)
    labels = colorbar_labels(figure)
    assert labels.count("attenuation [1/mm]") == n_sections * (2 if truth else 1)
    assert labels.count("error [1/mm]") == (n_sections if truth else 0)
    assert labels[-2:] == ["line integral [dimensionless]", "residual [dimensionless]"]
    n_groups = len(history_groups(run.history))
    assert len(figure.axes) == len(images(figure)) + n_groups
    title = figure.get_suptitle()
    assert title.startswith("cgls")
    assert f"{run.scan.geometry.n_views} views" in title
    assert "relative residual 0.0123" in title
    assert ("PSNR 31.23 dB, SSIM 0.988" in title) == truth
    assert ("truth: phantom ellipses, seed 2" in title) == truth


def test_run_figure_shows_image_error_and_residual():
    run = run_of(scan_of("fan"))
    figure = run_figure(run)
    image, truth, error, sinogram, residual = images(figure)
    np.testing.assert_array_equal(image.get_array(), run.image)
    np.testing.assert_array_equal(truth.get_array(), run.scan.truth)
    np.testing.assert_array_equal(error.get_array(), run.image - run.scan.truth)
    np.testing.assert_array_equal(sinogram.get_array(), run.scan.projections)
    np.testing.assert_allclose(
        residual.get_array(), run.projections - run.scan.projections, rtol=1e-6, atol=1e-7
    )
    assert image.get_clim() == truth.get_clim()
    for signed in (error, residual):
        low, high = signed.get_clim()
        assert low == -high


def test_given_limits_are_used():
    figure = run_figure(run_of(scan_of("fan")), limits=(0.1, 0.2))
    assert [image.get_clim() for image in images(figure)[:2]] == [(0.1, 0.2)] * 2


def brightest(axes):
    """Where the brightest spot of the drawn axes is: fractions from the left and the top."""
    axes.figure.canvas.draw()
    pixels = np.asarray(axes.figure.canvas.buffer_rgba())[..., :3].astype(float).sum(-1)
    box = axes.get_window_extent()
    height = pixels.shape[0]
    rows = slice(round(height - box.y1) + 2, round(height - box.y0) - 2)
    inside = pixels[rows, round(box.x0) + 2 : round(box.x1) - 2]
    row, column = np.argwhere(inside > 0.9 * inside.max()).mean(0)
    return (column + 0.5) / inside.shape[1], (row + 0.5) / inside.shape[0]


def test_images_lie_as_in_the_world():
    image = np.zeros((8, 10), np.float32)
    image[1, 7] = 1
    axes = new_figure(4, 4).add_subplot()
    (section,) = central_sections(image, Grid((8, 10), 0.5), "mm")
    draw_section(axes, section, "mm", limits=(0, 1), label="attenuation [1/mm]")
    assert brightest(axes) == pytest.approx((7.5 / 10, 1.5 / 8), abs=0.02)
    assert axes.get_xlim() == (-2.5, 2.5)
    assert axes.get_ylim() == (-2, 2)


@pytest.mark.parametrize(
    ("which", "expected"),
    [(0, (7.5 / 10, 2.5 / 8)), (1, (7.5 / 10, 4.5 / 6)), (2, (5.5 / 8, 4.5 / 6))],
    ids=["from above", "from the front", "from the side"],
)
def test_slices_lie_as_in_the_world(which, expected):
    # Voxel at the second z from below, row 2 (above the middle in y), column 7.
    volume = np.zeros((6, 8, 10), np.float32)
    volume[1, 2, 7] = 1
    central = [volume.shape[0] // 2, volume.shape[1] // 2, volume.shape[2] // 2]
    shift = [0, 0, 0]
    shift[which] = central[which] - (1, 2, 7)[which]
    moved = np.roll(volume, shift, axis=(0, 1, 2))
    section = central_sections(moved, Grid((6, 8, 10), 1.0), "mm")[which]
    axes = new_figure(4, 4).add_subplot()
    draw_section(axes, section, "mm", limits=(0, 1), label=None)
    assert brightest(axes) == pytest.approx(expected, abs=0.02)


def test_scale_bar_is_as_long_as_it_says():
    figure = run_figure(run_of(scan_of("fan", truth=False)))
    (bar,) = scale_bars(figure)
    start, end = bar.get_xdata()
    assert end - start == pytest.approx(2)
    assert "2 mm" in all_text(figure)


@pytest.mark.parametrize("shape", [(2, 30, 40), (40, 30, 4), (1, 1, 1)])
def test_extreme_volumes_stay_readable(shape):
    grid = Grid(shape, 0.1)
    scan = Scan(np.zeros((18, 9, 22)), CONE, grid, truth=np.zeros(shape), truth_source="zeros")
    assert misplaced_texts(run_figure(run_of(scan))) == []


def test_long_texts_are_broken():
    scan = replace(scan_of("fan"), truth_source="full-view FBP of 721 projections, " * 8)
    for figure in (
        scan_figure(scan),
        run_figure(run_of(scan)),
        comparison_figure([run_of(scan)] * 2),
    ):
        assert misplaced_texts(figure) == []


@pytest.mark.parametrize(
    ("largest", "expected"), [(0.5, 0.5), (0.99, 0.5), (3, 2), (10, 10), (0.012, 0.01)]
)
def test_round_length(largest, expected):
    assert round_length(largest) == pytest.approx(expected)


def test_ranges_ignore_outliers_and_exist_for_constants():
    values = np.linspace(0, 1, 10_001)
    spiked = np.concatenate([values, [1e6]])
    assert display_range(spiked) == pytest.approx((0, 1), abs=0.01)
    assert symmetric_range(spiked, -values) == pytest.approx((-1, 1), abs=0.01)
    assert display_range(np.full(5, 3.0)) == (1.5, 4.5)
    assert display_range(np.zeros(5)) == (-0.5, 0.5)
    assert symmetric_range(np.zeros(5)) == (-1, 1)
    sparse = np.zeros(1000)
    sparse[3] = -4
    assert symmetric_range(sparse) == (-4, 4)
    assert display_range(np.array([np.nan, 1.0, 2.0])) == pytest.approx((1, 2), abs=0.01)


@pytest.mark.parametrize(
    ("values", "extend"),
    [([0.2, 0.8], "neither"), ([-1, 0.5], "min"), ([0, 2], "max"), ([-1, 2], "both")],
)
def test_colorbar_says_when_values_leave_the_range(values, extend):
    axes = new_figure(3, 3).add_subplot()
    (section,) = central_sections(np.array([values]), Grid((1, 2)), "mm")
    shown = draw_section(axes, section, "mm", limits=(0, 1), label="attenuation [1/mm]")
    assert shown.colorbar.extend == extend


# Histories


def test_history_groups_and_scales():
    assert history_groups(LONG_HISTORY) == [
        ["objective", "fidelity", "gap", "step"],
        ["psnr_db"],
        ["ssim"],
        ["log_evidence"],
    ]
    for group, scale in zip(history_groups(LONG_HISTORY), ["log", *["linear"] * 3], strict=True):
        axes = new_figure(4, 3).add_subplot()
        draw_history(axes, LONG_HISTORY, group)
        assert axes.get_yscale() == scale
        for line, name in zip(axes.lines, group, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), LONG_HISTORY["iteration"])
            expected = LONG_HISTORY[name]
            if scale == "log":
                expected = np.where(expected > 0, expected, np.nan)
            np.testing.assert_array_equal(line.get_ydata(), expected)


def test_zeros_do_not_reach_a_logarithmic_axis():
    assert np.any(LONG_HISTORY["gap"] == 0)
    axes = new_figure(4, 3).add_subplot()
    draw_history(axes, LONG_HISTORY, ["gap"])
    assert axes.get_ylim()[0] > 0


def test_histories_that_cannot_be_drawn():
    assert history_groups({}) == []
    assert history_groups({"iteration": np.arange(3)}) == []
    assert history_groups({"iteration": np.arange(0), "objective": np.zeros(0)}) == []
    assert history_groups({"iteration": np.arange(2), "gap": np.full(2, np.nan)}) == []
    with pytest.raises(DataError, match="same number of values"):
        history_groups({"iteration": np.arange(3), "objective": np.ones(2)})


# Comparisons


@pytest.mark.parametrize(
    ("kind", "n"),
    [("fan", 2), pytest.param("fan", 4, marks=pytest.mark.slow), ("fan", 7), ("cone", 3)],
)
def test_comparison_with_a_truth(kind, n):
    scan = scan_of(kind)
    runs = [run_of(scan, f"method {i}", error=0.02 + 0.1 * i, seed=i) for i in range(n)]
    figure = comparison_figure(runs)
    assert misplaced_texts(figure) == []
    assert len(images(figure)) == 2 * n + 1
    assert len(scale_bars(figure)) == 2 * n + 1
    assert set(colorbar_labels(figure)) == {"attenuation [1/mm]", "error [1/mm]"}
    central = (lambda a: a) if kind == "fan" else (lambda a: a[a.shape[0] // 2])
    truth = titled(figure, "truth").images[0]
    np.testing.assert_array_equal(truth.get_array(), central(scan.truth))
    error_ranges = set()
    for i, run in enumerate(runs):
        image = titled(figure, f"method {i}\n").images[0]
        np.testing.assert_array_equal(image.get_array(), central(run.image))
        assert image.get_clim() == truth.get_clim()
        assert "PSNR 31.23 dB" in image.axes.get_title()
        error = titled(figure, f"method {i} - truth").images[0]
        np.testing.assert_array_equal(error.get_array(), central(run.image - scan.truth))
        error_ranges.add(error.get_clim())
    assert len(error_ranges) == 1
    assert "phantom ellipses, seed 2" in figure.get_suptitle()


def test_comparison_without_a_truth_is_with_the_first():
    scan = scan_of("fan", truth=False)
    runs = [run_of(scan, seed=i) for i in range(3)]
    figure = comparison_figure(runs, ["a", "b", "c"])
    assert misplaced_texts(figure) == []
    assert len(images(figure)) == 5
    difference = titled(figure, "c - a").images[0]
    np.testing.assert_array_equal(difference.get_array(), runs[2].image - runs[0].image)
    assert set(colorbar_labels(figure)) == {"attenuation [1/mm]", "difference [1/mm]"}


def test_a_truth_that_only_some_have_is_not_used():
    runs = [run_of(scan_of("fan")), run_of(scan_of("fan", truth=False), "tv", seed=1)]
    figure = comparison_figure(runs)
    assert "no truth shared by all" in figure.get_suptitle()
    assert titled(figure, "tv - cgls").images


def test_different_truths_of_one_name_are_not_shared():
    scan = scan_of("fan")
    other = replace(scan, truth=scan.truth * 2)
    assert "no truth shared" in comparison_figure([run_of(scan), run_of(other)]).get_suptitle()


def test_comparison_of_different_grids():
    scan = scan_of("fan")
    grid = Grid((10, 16), 1.0, (1.0, 0.0))
    coarse = replace(scan, grid=grid, truth=make_phantom("ellipses", grid, seed=2))
    figure = comparison_figure([run_of(scan), run_of(coarse)], ["fine", "coarse"])
    assert misplaced_texts(figure) == []
    assert titled(figure, "coarse\n").images[0].get_extent() == [-7, 9, -5, 5]
    assert titled(figure, "fine\n").images[0].get_extent() == [-6, 6, -4.75, 5.25]
    blind = replace(coarse, truth=None, truth_source="")
    figure = comparison_figure([run_of(scan), run_of(blind, "tv")])
    assert misplaced_texts(figure) == []
    assert "another grid than cgls" in all_text(figure)
    assert len(images(figure)) == 2


def test_names_of_one_method_are_numbered():
    scan = scan_of("fan")
    text = all_text(comparison_figure([run_of(scan), run_of(scan), run_of(scan, "tv")]))
    assert "cgls (1)" in text
    assert "cgls (2)" in text
    assert "tv (1)" not in text


@pytest.mark.parametrize(
    ("kinds", "units", "names", "message"),
    [
        (["fan"], ["mm"], None, "at least two reconstructions; got 1"),
        (["fan", "cone"], ["mm", "mm"], None, "2-D, 3-D"),
        (["fan", "fan"], ["mm", "pixel"], None, "mm, pixel"),
        (["fan", "fan"], ["mm", "mm"], ["one"], "2 reconstructions need as many names; got 1"),
    ],
)
def test_what_cannot_be_compared(kinds, units, names, message):
    runs = [run_of(scan_of(kind, True, unit)) for kind, unit in zip(kinds, units, strict=True)]
    with pytest.raises(DataError, match=message):
        comparison_figure(runs, names)


# Files


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("PDF", b"%PDF"), ("svg", b"<?xml")]
)
def test_save(tmp_path, suffix, start):
    path = tmp_path / f"figure.{suffix}"
    path.write_bytes(b"old")
    save_figure(scan_figure_of("fan"), path)
    assert path.read_bytes().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_png_is_the_same_every_time(tmp_path):
    run = run_of(scan_of("fan", truth=False))
    figure = run_figure(run)
    for name, drawing in (("a", figure), ("b", figure), ("c", run_figure(run))):
        save_figure(drawing, tmp_path / f"{name}.png")
    first = (tmp_path / "a.png").read_bytes()
    assert first == (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


@pytest.mark.parametrize("name", ["figure.jpg", "figure", "figure.png.h5"])
def test_unknown_suffix(tmp_path, name):
    with pytest.raises(ConfigurationError, match=r"\.png, \.pdf, \.svg"):
        save_figure(new_figure(1, 1), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(OSError, match="could not write"):
        save_figure(new_figure(1, 1), tmp_path / "missing" / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_nothing_global_changes():
    before = dict(matplotlib.rcParams)
    run = run_of(scan_of("fan"), history=LONG_HISTORY)
    drawn(run_figure(run))
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, dipct; assert 'matplotlib' not in sys.modules; import dipct.figures; "
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
