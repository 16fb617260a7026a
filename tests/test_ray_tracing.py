"""System matrices against closed forms, ASTRA, and a tracer written one number at a time."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import astra
import numpy as np
import pytest
from catalogue import ANGLES, GEOMETRIES, IMAGE, traced
from scalar_tracing import scalar_matrix, scalar_slice_matrix
from scipy import sparse

from dipct.errors import ConfigurationError, GeometryError, InsufficientMemoryError, ShapeError
from dipct.measurement import (
    ConeGeometry,
    ConeSliceGeometry,
    FanGeometry,
    Grid,
    MatrixGeometry,
    ParallelGeometry,
    VectorGeometry,
)
from dipct.measurement.geometry.cone_slice import box_lengths
from dipct.operator import RayTransform
from dipct.operator.matrix_cache import cached_matrix, default_cache_folder, matrix_key
from dipct.operator.ray_tracing import assemble_matrix, estimate_nonzeros

POSITIONED = [name for name in GEOMETRIES if name != "matrix"]
PROJECTORS = ("siddon", "joseph")
MANY = 0.0371 + np.linspace(0, 2 * np.pi, 23, endpoint=False)


def exact(geometry, grid, projector="siddon"):
    return assemble_matrix(geometry, grid, projector=projector, dtype=np.float64)


def scans():
    """Generic rays through grids of every shape: off centre, oblong, finely and coarsely cut."""
    parallel = ParallelGeometry(MANY, 31, 0.53, 0.117)
    fan = FanGeometry(MANY, 31, 1.03, 41.3, 23.7, 0.217)
    cone = ConeGeometry(MANY[:7], 6, 9, 1.91, 2.03, 41.3, 23.7, 0.217, -0.31)
    slanted = np.concatenate([cone.vectors()[:, :3] + [0, 0, 37.0], cone.vectors()[:, 3:]], 1)
    slanted[:, 5] -= 25
    return {
        "parallel": (parallel, Grid((16, 16))),
        "parallel, wide, off centre": (parallel, Grid((9, 21), 0.61, (1.3, -2.1))),
        "fan": (fan, Grid((16, 16))),
        "fan, tall, off centre": (fan, Grid((27, 8), 0.61, (-1.7, 1.1))),
        "fan, one pixel": (fan, Grid((1, 1), 7.0)),
        "cone": (cone, Grid((5, 7, 8), 1.3)),
        "cone, off centre": (cone, Grid((8, 5, 6), 1.3, (1.0, -0.7, 0.6))),
        "steep cone": (VectorGeometry(slanted, 6, 9), Grid((6, 7, 5), 1.3)),
    }


SCANS = scans()


def box_of(geometry, grid):
    rays = geometry.rays()
    lower, upper = grid.lower, grid.upper
    if grid.ndim == 2:
        lower, upper = np.append(lower, -1.0), np.append(upper, 1.0)
    return box_lengths(rays, lower, upper).ravel()


# --- closed forms -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCANS)
def test_path_lengths_add_up_to_the_chord_of_the_box(name):
    geometry, grid = SCANS[name]
    chords = box_of(geometry, grid)
    assert np.count_nonzero(chords) > 0.1 * chords.size
    sums = np.asarray(exact(geometry, grid).sum(1)).ravel()
    np.testing.assert_allclose(sums, chords, rtol=1e-12, atol=1e-12 * chords.max())


def test_box_lengths_of_hand_computed_rays():
    geometry = VectorGeometry(
        [
            [-5, 0.5, 0, 5, 0.5, 0, 0, 1, 0, 0, 0, 1],
            [-5, -5, 0, 5, 5, 0, -1, 1, 0, 0, 0, 1],
            [-5, 2.5, 0, 5, 2.5, 0, 0, 1, 0, 0, 0, 1],
            [-5, -5, -5, 5, 5, 5, -1, 1, 0, 0, 0, 1],
        ],
        1,
        1,
    )
    lower, upper = np.array([-1, -2, -3.0]), np.array([1, 2, 3.0])
    found = box_lengths(geometry.rays(), lower, upper).ravel()
    np.testing.assert_allclose(found, [2, 2 * np.sqrt(2), 0, 2 * np.sqrt(3)], rtol=1e-15)


@pytest.mark.parametrize("projector", PROJECTORS)
@pytest.mark.parametrize("name", ["parallel", "fan", "cone"])
def test_disc_converges_with_the_grid(name, projector):
    geometry = SCANS[name][0]
    center, radius = np.array([0.7, -0.4, 0.2]), 2.6
    rays = geometry.rays()
    offset = rays.origins - center
    unit = rays.directions / np.linalg.norm(rays.directions, axis=-1, keepdims=True)
    if name != "cone":
        offset = offset * [1, 1, 0]
    distance_2 = (offset**2).sum(-1) - (offset * unit).sum(-1) ** 2
    chords = 2 * np.sqrt(np.maximum(radius**2 - distance_2, 0)).ravel()
    errors = []
    for n in (12, 24, 48) if name != "cone" else (6, 12, 24):
        grid = Grid((n,) * (2 if name != "cone" else 3), 8.0 / n)
        fine = Grid(tuple(4 * m for m in grid.shape), grid.pixel_size / 4)
        axes = np.meshgrid(*fine.axes(), indexing="ij")[::-1]
        squares = sum((a - c) ** 2 for a, c in zip(axes, center[: grid.ndim], strict=True))
        inside = (squares <= radius**2).astype(float)
        split = [size for m in grid.shape for size in (m, 4)]
        image = inside.reshape(split).mean(tuple(range(1, 2 * grid.ndim, 2)))
        found = exact(geometry, grid, projector) @ image.ravel()
        errors.append(np.linalg.norm(found - chords) / np.linalg.norm(chords))
    assert errors[2] < (0.07 if name == "cone" else 0.03)
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


@pytest.mark.parametrize("projector", PROJECTORS)
def test_axis_parallel_rays_through_pixel_centres(projector):
    geometry = ParallelGeometry([0.0, np.pi / 2], 4, 0.5)
    matrix = exact(geometry, Grid((4, 4), 0.5), projector).toarray().reshape(2, 4, 4, 4)
    for k in range(4):
        down, across = np.zeros((4, 4)), np.zeros((4, 4))
        # At angle 0 column k looks down image column k; a quarter turn on, along rows from below.
        down[:, k] = 0.5
        across[3 - k] = 0.5
        np.testing.assert_allclose(matrix[0, k], down, atol=1e-12)
        np.testing.assert_allclose(matrix[1, k], across, atol=1e-12)


@pytest.mark.parametrize("turn", [1, 3, 5, 7])
@pytest.mark.parametrize("beam", ["parallel", "fan"])
@pytest.mark.parametrize(("n", "pixel_size"), [(8, 1.0), (10, 0.1), (33, 1.0), (14, 0.3)])
def test_diagonal_rays_stay_on_the_diagonal(turn, beam, n, pixel_size):
    angle = turn * np.pi / 4
    geometry = {
        "parallel": ParallelGeometry([angle], 1),
        "fan": FanGeometry([angle], 1, 1.0, 50 * pixel_size, 40 * pixel_size),
    }[beam]
    found = exact(geometry, Grid((n, n), pixel_size)).toarray().reshape(n, n)
    diagonal = np.sqrt(2) * pixel_size * np.eye(n)
    # The ray direction (sin a, -cos a) falls to the right (rows run downwards) for odd-odd turns.
    expected = diagonal if turn % 4 == 1 else diagonal[::-1]
    np.testing.assert_allclose(found, expected, atol=1e-9 * pixel_size)


def test_space_diagonal_stays_on_the_diagonal():
    for pixel_size in (1.0, 0.1, 0.3):
        for n in (4, 5, 7):
            step = np.array([1.0, -1.0, 1.0])
            vectors = np.concatenate(
                [-50 * pixel_size * step, 40 * pixel_size * step, [1, 1, 0], [0, 0, 1]]
            )
            geometry = VectorGeometry(vectors[None], 1, 1)
            found = exact(geometry, Grid((n, n, n), pixel_size)).toarray().reshape(n, n, n)
            expected = np.zeros((n, n, n))
            expected[(np.arange(n),) * 3] = np.sqrt(3) * pixel_size
            np.testing.assert_allclose(found, expected, atol=1e-8 * pixel_size)


def test_what_lies_behind_the_source_is_not_seen():
    geometry = FanGeometry([0.3], 5, 1.0, 30.0, 20.0)
    ahead, behind = (
        Grid((8, 8), 1.0, tuple(s * 20 * geometry.vectors()[0, :2] / 30)) for s in (0.5, 3)
    )
    for projector in PROJECTORS:
        assert exact(geometry, ahead, projector).nnz > 5
        assert exact(geometry, behind, projector).nnz == 0
    cone = ConeGeometry([0.3], 3, 5, 1.0, 1.0, 30.0, 20.0)
    away = Grid((4, 4, 4), 1.0, (*behind.center, 0.0))
    assert exact(cone, away).nnz == 0
    assert exact(ParallelGeometry([0.3], 5), behind).nnz > 5


# --- another tracer -----------------------------------------------------------------------------


@pytest.mark.parametrize("projector", PROJECTORS)
@pytest.mark.parametrize(
    "name", ["fan, tall, off centre", "parallel, wide, off centre", "steep cone"]
)
def test_agrees_with_a_scalar_tracer(name, projector):
    geometry, grid = SCANS[name]
    geometry = geometry.select_views(np.arange(4))
    found, expected = (
        exact(geometry, grid, projector),
        scalar_matrix(geometry.rays(), grid, projector),
    )
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-11)
    other = {"siddon": "joseph", "joseph": "siddon"}[projector]
    assert np.abs(exact(geometry, grid, other).toarray() - expected).max() > 0.1


@pytest.mark.parametrize("name", [*SCANS, *(f"catalogue {name}" for name in GEOMETRIES)])
def test_matrix_is_well_formed_and_within_its_estimate(name):
    geometry, grid = SCANS.get(name) or GEOMETRIES[name.removeprefix("catalogue ")]
    for projector in PROJECTORS:
        matrix = assemble_matrix(geometry, grid, projector=projector)
        assert matrix.shape == (np.prod(geometry.projection_shape), grid.n_pixels)
        assert matrix.dtype == np.float32
        assert matrix.indices.dtype == matrix.indptr.dtype == np.int32
        assert matrix.has_canonical_format
        matrix.check_format(full_check=True)
        assert matrix.data.min() > 0
        assert matrix.nnz <= estimate_nonzeros(geometry, grid, projector)


def test_estimate_is_a_bound_also_where_every_ray_runs_diagonally():
    geometry, grid = ParallelGeometry([np.pi / 4 + 1e-3], 9, 0.1), Grid((100, 100))
    assert exact(geometry, grid).nnz <= estimate_nonzeros(geometry, grid)


# --- ASTRA --------------------------------------------------------------------------------------


def astra_matrix(kind, geometry, grid):
    vectors = geometry.vectors()[:, [0, 1, 3, 4, 6, 7]]
    (x0, y0), (x1, y1) = grid.lower, grid.upper
    volume = astra.create_vol_geom(*grid.shape, x0, x1, y0, y1)
    form = "parallel_vec" if geometry.beam == "parallel" else "fanflat_vec"
    projections = astra.create_proj_geom(form, geometry.n_columns, vectors)
    projector = astra.create_projector(kind, projections, volume)
    identifier = astra.projector.matrix(projector)
    matrix = astra.matrix.get(identifier)
    astra.matrix.delete(identifier)
    astra.projector.delete(projector)
    return matrix


@pytest.mark.parametrize(
    ("name", "projector", "kind"),
    [
        ("parallel", "siddon", "line"),
        ("parallel", "joseph", "linear"),
        ("parallel, wide, off centre", "siddon", "line"),
        ("parallel, wide, off centre", "joseph", "linear"),
        ("fan", "siddon", "line_fanflat"),
        ("fan, tall, off centre", "siddon", "line_fanflat"),
    ],
)
def test_agrees_with_astra(name, projector, kind):
    geometry, grid = SCANS[name]
    ours, theirs = exact(geometry, grid, projector), astra_matrix(kind, geometry, grid)
    scale = np.abs(ours.data).max()
    # ASTRA computes in float32; a length is off by a few ulp of the distances.
    assert abs(ours - theirs).max() < 5e-4 * scale
    image = np.random.default_rng(0).random(grid.n_pixels)
    projected = ours @ image
    np.testing.assert_allclose(theirs @ image, projected, atol=1e-5 * projected.max())
    shifted = replace(geometry, column_offset=geometry.column_offset + 0.05)
    assert abs(exact(shifted, grid, projector) - theirs).max() > 0.02 * scale


@pytest.mark.parametrize("name", ["parallel", "fan", "fan, tall, off centre"])
def test_astra_turned_the_other_way_disagrees(name):
    geometry, grid = SCANS[name]
    kind = "line" if geometry.beam == "parallel" else "line_fanflat"
    mirrored = replace(geometry, angles=-geometry.angles)
    assert abs(exact(mirrored, grid) - astra_matrix(kind, geometry, grid)).max() > 0.5


# --- cone slices --------------------------------------------------------------------------------


def walnut(seed=3, n_slices=5, source_height=2.0, row_spacing=1.9):
    """A small scan after the walnut data: per-view vectors, source above the middle."""
    angles = np.linspace(0, 2 * np.pi, 6, endpoint=False) + 0.111
    cone = ConeGeometry(angles, 13, 9, row_spacing, 2.3, 33.0, 66.5, 0.31, -0.2)
    vectors = cone.vectors().copy()
    vectors[:, 2] += source_height
    vectors += 0.02 * np.random.default_rng(seed).standard_normal(vectors.shape)
    full = VectorGeometry(vectors, 13, 9)
    chosen = ConeSliceGeometry.from_scan(
        full, voxel_size=0.6, slice_z=0.6, n_slices=n_slices, volume_shape=(15, 16, 16)
    )
    return full, chosen, Grid((16, 16), 0.6)


@pytest.mark.parametrize("projector", PROJECTORS)
@pytest.mark.parametrize("n_slices", [3, 5])
def test_collapsed_slice_matrix_is_the_replicated_stack(projector, n_slices):
    full, chosen, grid = walnut(n_slices=n_slices)
    collapsed = exact(chosen, grid, projector).toarray()
    stack = Grid((n_slices, *grid.shape), grid.pixel_size)
    selected = np.zeros((full.n_views, full.n_rows, full.n_columns), dtype=bool)
    view, column = np.ogrid[: full.n_views, : full.n_columns]
    selected[view, chosen.rows.astype(int), column] = True
    # Rows of a boolean mask come by (view, row, column), ours by (view, column).
    order = np.argwhere(selected)
    order = np.lexsort((order[:, 2], order[:, 0]))
    brute = exact(full, stack, projector)[selected.ravel()].toarray()[order]
    brute = brute.reshape(len(brute), n_slices, -1).sum(1)
    np.testing.assert_allclose(collapsed, brute, atol=1e-10)
    np.testing.assert_allclose(collapsed, scalar_slice_matrix(chosen, grid, projector), atol=1e-10)
    assert collapsed.max() > 0.5


@pytest.mark.parametrize("projector", PROJECTORS)
def test_slices_with_fractional_rows_clip_rays_that_leave_the_stack(projector):
    _, chosen, grid = walnut(source_height=6.0)
    rows = np.random.default_rng(0).uniform(0, 12, chosen.rows.shape)
    fractional = replace(chosen, rows=rows, stack_bounds=(-0.3, 0.3))
    collapsed = exact(fractional, grid, projector).toarray()
    np.testing.assert_allclose(
        collapsed, scalar_slice_matrix(fractional, grid, projector), atol=1e-10
    )
    unclipped = exact(replace(fractional, stack_bounds=(-50.1, 50.1)), grid, projector)
    assert unclipped.sum() > 1.5 * collapsed.sum()


def test_slice_with_level_rays_is_a_fan_beam():
    fan = FanGeometry(ANGLES, 9, 1.71, 17.3, 9.1, 0.27)
    level = ConeSliceGeometry(fan.vectors(), 1, 9, np.zeros((5, 9)), (-0.45, 0.45))
    for projector in PROJECTORS:
        np.testing.assert_allclose(
            exact(level, IMAGE, projector).toarray(), exact(fan, IMAGE, projector).toarray()
        )
        above = exact(replace(level, stack_bounds=(2.0, 3.0)), IMAGE, projector)
        assert above.nnz == 0


def test_chosen_rows_see_the_largest_share_of_the_slice():
    full, chosen, _ = walnut()
    volume = Grid((15, 16, 16), 0.6)
    index = int(np.argmin(np.abs(volume.axes()[0] - 0.6)))
    indicator = np.zeros(volume.shape)
    indicator[index] = 1
    matrix = exact(full, volume)
    in_slice = (matrix @ indicator.ravel()).reshape(full.projection_shape)
    in_volume = (matrix @ np.ones(volume.n_pixels)).reshape(full.projection_shape)
    share = np.divide(in_slice, in_volume, out=np.zeros_like(in_slice), where=in_volume > 0)
    best = share.max(1)
    found = np.take_along_axis(share, chosen.rows.astype(int)[:, None], 1)[:, 0]
    np.testing.assert_allclose(found, best, rtol=1e-9)
    assert best.min() > 0
    for step in (-1, 1):
        beside = np.clip(chosen.rows.astype(int)[:, None] + step, 0, 12)
        assert np.mean(np.take_along_axis(share, beside, 1)[:, 0] < best - 1e-6) > 0.9


def test_first_of_equally_good_rows_is_chosen():
    full, chosen, _ = walnut(source_height=0.6, row_spacing=0.4)
    half = np.array([4.8, 4.8, 4.5])
    rays = full.rays()
    low, high = np.append(-half[:2], 0.3), np.append(half[:2], 0.9)
    share = box_lengths(rays, low, high) / box_lengths(rays, -half, half)
    ties = share > 1 - 1e-9
    assert np.all(ties.sum(1) > 1)
    np.testing.assert_array_equal(chosen.rows, ties.argmax(1))


def test_select_measured_takes_the_chosen_rows():
    full, chosen, _ = walnut()
    views, rows, columns = np.meshgrid(
        *(np.arange(n) for n in full.projection_shape), indexing="ij"
    )
    numbered = views * 1000.0 + rows * 10 + 0.1 * columns
    measured = chosen.select_measured(numbered)
    expected = numbered[:, 0] + 10 * chosen.rows
    np.testing.assert_allclose(measured, expected)
    fractional = replace(chosen, rows=np.minimum(chosen.rows + 0.25, 12))
    np.testing.assert_allclose(
        fractional.select_measured(numbered), numbered[:, 0] + 10 * fractional.rows
    )
    with pytest.raises(ShapeError, match="R=13"):
        chosen.select_measured(numbered[:, :12])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slice_z": 40.0}, "outside the stack"),
        ({"slice_z": np.nan}, "outside the stack"),
        ({"slice_z": 9.0, "n_slices": 31}, "No ray"),
        ({"n_slices": 0}, "n_slices"),
        ({"voxel_size": -1.0}, "voxel_size"),
    ],
)
def test_slices_that_cannot_be_seen_are_refused(change, message):
    full, _, _ = walnut()
    options = {"voxel_size": 0.6, "slice_z": 0.6, "n_slices": 5, "volume_shape": (15, 16, 16)}
    with pytest.raises(GeometryError, match=message):
        ConeSliceGeometry.from_scan(full, **(options | change))
    with pytest.raises(GeometryError, match="cone-beam"):
        ConeSliceGeometry.from_scan(replace(full, beam="parallel"), **options)


# --- refusals -----------------------------------------------------------------------------------


def test_system_matrices_pass_through():
    values = sparse.random(12, 20, 0.4, "csr", random_state=np.random.default_rng(2))
    geometry = MatrixGeometry(values, 4)
    found = assemble_matrix(geometry, Grid((4, 5)), dtype=np.float64)
    np.testing.assert_array_equal(found.toarray(), values.toarray())
    assert estimate_nonzeros(geometry, Grid((4, 5))) == values.nnz
    with pytest.raises(ShapeError):
        RayTransform(geometry, Grid((5, 5)))


@pytest.mark.parametrize(
    "name", ["fan", "planar fan vectors", "cone", "cone vectors", "cone slice"]
)
def test_source_inside_the_grid_is_refused(name):
    geometry, grid = GEOMETRIES[name]
    around = Grid(tuple(9 * n for n in grid.shape), grid.pixel_size)
    with pytest.raises(GeometryError, match=r"source of view \d+ lies inside.*check the units"):
        assemble_matrix(geometry, around)
    assert assemble_matrix(geometry, grid).nnz > 0


@pytest.mark.parametrize("name", POSITIONED)
def test_grids_of_the_wrong_dimension_are_refused(name):
    geometry, grid = GEOMETRIES[name]
    wrong = Grid((3, 3, 3)) if grid.ndim == 2 else Grid((3, 3))
    with pytest.raises(GeometryError, match=f"needs a {grid.ndim}-D grid"):
        assemble_matrix(geometry, wrong)
    with pytest.raises(ConfigurationError, match="projector"):
        assemble_matrix(geometry, grid, projector="bilinear")


def test_rays_out_of_the_plane_are_refused():
    vectors = np.array([[0.0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0]])
    upright = ConeSliceGeometry(
        [[0.0, 0, 9, 0, 0, -9, 1, 0, 0, 0, 1, 0]], 1, 1, np.zeros((1, 1)), (-1, 1)
    )
    with pytest.raises(GeometryError, match="along z"):
        assemble_matrix(upright, Grid((4, 4), 1.0, (9.0, 0.0)))
    with pytest.raises(GeometryError, match="z = 0"):
        VectorGeometry(vectors, 1, 1, "parallel", planar=True)


@pytest.mark.parametrize("projector", PROJECTORS)
def test_absurd_scans_are_refused_before_any_work(projector):
    geometry = ConeGeometry(MANY, 4000, 4000, 0.1, 0.1, 5000.0, 1000.0)
    with pytest.raises(InsufficientMemoryError, match=r"non-zeros.*GiB.*Use fewer views") as error:
        assemble_matrix(geometry, Grid((2000, 2000, 2000), 0.1), projector=projector)
    assert isinstance(error.value, MemoryError)


# --- cache --------------------------------------------------------------------------------------


@pytest.fixture
def fan():
    return GEOMETRIES["fan"]


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", POSITIONED)
def test_cached_matrix_is_the_assembled_one(name, tmp_path, caplog):
    geometry, grid = GEOMETRIES[name]
    first = cached_matrix(geometry, grid, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    os.utime(path, ns=(stamp - 10**12, stamp - 10**12))
    contents = path.read_bytes()
    second = cached_matrix(geometry, grid, folder=tmp_path)
    expected = assemble_matrix(geometry, grid)
    for matrix in (first, second):
        np.testing.assert_array_equal(matrix.toarray(), expected.toarray())
        assert matrix.dtype == np.float32
        assert matrix.indices.dtype == np.int32
    assert path.read_bytes() == contents
    assert path.stat().st_mtime_ns > stamp - 10**11, "use is recorded"
    assert not caplog.records


def test_cache_is_really_read(fan, tmp_path):
    geometry, grid = fan
    matrix = cached_matrix(geometry, grid, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    np.savez(path, data=3 * matrix.data, indices=matrix.indices, indptr=matrix.indptr)
    again = cached_matrix(geometry, grid, folder=tmp_path)
    np.testing.assert_array_equal(again.data, 3 * matrix.data)
    operator = RayTransform(geometry, grid, cache=tmp_path)
    np.testing.assert_array_equal(operator.to_matrix().numpy(), 3 * matrix.toarray())


def changed_scans():
    geometry, grid = GEOMETRIES["fan"]
    nudged = geometry.angles.copy()
    nudged[2] += 1e-9
    slice_geometry, slice_grid = GEOMETRIES["cone slice"]
    low, high = slice_geometry.stack_bounds
    rows = slice_geometry.rows.copy()
    rows[1, 2] += 1e-9
    return {
        "angle": ((geometry, grid), (replace(geometry, angles=nudged), grid)),
        "offset": ((geometry, grid), (replace(geometry, column_offset=0.27000001), grid)),
        "column": ((geometry, grid), (geometry.crop_detector(0, 8), grid)),
        "view": ((geometry, grid), (geometry.select_views(np.array([0, 1, 2, 4, 3])), grid)),
        "pixel size": ((geometry, grid), (geometry, replace(grid, pixel_size=0.90000001))),
        "centre": ((geometry, grid), (geometry, replace(grid, center=(0.21, -0.33000001)))),
        "shape": ((geometry, grid), (geometry, Grid((10, 8), 0.9, grid.center))),
        "row": ((slice_geometry, slice_grid), (replace(slice_geometry, rows=rows), slice_grid)),
        "stack": (
            (slice_geometry, slice_grid),
            (replace(slice_geometry, stack_bounds=(low, high + 1e-9)), slice_grid),
        ),
    }


@pytest.mark.parametrize("change", changed_scans())
def test_every_change_of_the_scan_misses_the_cache(change, tmp_path):
    before, after = changed_scans()[change]
    cached_matrix(*before, folder=tmp_path)
    cached_matrix(*after, folder=tmp_path)
    assert len(files_in(tmp_path)) == 2


def test_key_tells_projector_and_type_apart(fan):
    keys = {
        matrix_key(*fan, projector, dtype)
        for projector in PROJECTORS
        for dtype in (np.float32, np.float64)
    }
    assert len(keys) == 4
    again = matrix_key(replace(fan[0]), replace(fan[1]), "siddon", np.float32)
    assert again in keys


DAMAGES = {
    "truncated": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "foreign": lambda whole: b"not a matrix at all",
    "a bit flipped": lambda whole: whole[:2000] + bytes([whole[2000] ^ 8]) + whole[2001:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_files_are_rebuilt(damage, fan, tmp_path, caplog):
    expected = cached_matrix(*fan, folder=tmp_path).toarray()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    with caplog.at_level(logging.WARNING):
        found = cached_matrix(*fan, folder=tmp_path)
    np.testing.assert_array_equal(found.toarray(), expected)
    assert "damaged" in caplog.text
    assert files_in(tmp_path) == [path.name]
    caplog.clear()
    np.testing.assert_array_equal(cached_matrix(*fan, folder=tmp_path).toarray(), expected)
    assert not caplog.records


def test_no_flipped_byte_gives_a_wrong_matrix(tmp_path, caplog):
    scan = (ParallelGeometry([0.3], 2), Grid((2, 2)))
    expected = cached_matrix(*scan, folder=tmp_path).toarray()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        broken = bytearray(whole)
        broken[position] ^= 0x11
        path.write_bytes(broken)
        np.testing.assert_array_equal(cached_matrix(*scan, folder=tmp_path).toarray(), expected)
    assert "damaged" in caplog.text


def test_matrix_of_another_scan_under_the_name_is_noticed(fan, tmp_path, caplog):
    expected = cached_matrix(*fan, folder=tmp_path).toarray()
    (path,) = tmp_path.iterdir()
    larger = assemble_matrix(fan[0], Grid((20, 20), 0.5))
    np.savez(path, data=larger.data, indices=larger.indices, indptr=larger.indptr)
    np.testing.assert_array_equal(cached_matrix(*fan, folder=tmp_path).toarray(), expected)
    assert "damaged" in caplog.text


def test_folder_that_cannot_be_written_to_is_only_logged(fan, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for folder in (blocked, blocked / "below"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = cached_matrix(*fan, folder=folder)
        np.testing.assert_array_equal(found.toarray(), assemble_matrix(*fan).toarray())
        assert "could not be kept" in caplog.text
    assert blocked.read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_folder_for_reading_only_is_read(fan, tmp_path, caplog):
    cached_matrix(*fan, folder=tmp_path)
    tmp_path.chmod(0o500)
    try:
        cached_matrix(*fan, folder=tmp_path)
        assert not caplog.records
    finally:
        tmp_path.chmod(0o700)


def test_environment_variable_names_the_folder(fan, tmp_path, monkeypatch):
    monkeypatch.setenv("DIPCT_CACHE", str(tmp_path / "kept"))
    assert default_cache_folder() == tmp_path / "kept"
    RayTransform(*fan, cache=True)
    assert len(files_in(tmp_path / "kept")) == 1
    RayTransform(*fan)
    monkeypatch.delenv("DIPCT_CACHE")
    assert "dipct" in str(default_cache_folder())


def test_given_matrices_are_not_kept(tmp_path):
    cached_matrix(*GEOMETRIES["matrix"], folder=tmp_path)
    assert files_in(tmp_path) == []


def test_oldest_files_make_room(tmp_path, monkeypatch, fan):
    monkeypatch.setattr("dipct.operator.matrix_cache._LIMIT_BYTES", 10**4)
    sizes = []
    for k in range(6):
        cached_matrix(fan[0].select_views(np.array([0, 1, 2, 3, k % 5])), fan[1], folder=tmp_path)
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert max(sizes) <= 10**4
    assert 1 <= len(files_in(tmp_path)) < 5


def test_threads_share_a_cache(fan, tmp_path, caplog):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: cached_matrix(*fan, folder=tmp_path).toarray(), range(12)))
    for matrix in found:
        np.testing.assert_array_equal(matrix, assemble_matrix(*fan).toarray())
    (name,) = files_in(tmp_path)
    assert name.endswith(".npz")
    assert not caplog.records


def test_catalogue_covers_every_geometry_with_its_twin():
    for name in GEOMETRIES:
        assert np.count_nonzero(traced(name, "siddon")) > 50


@pytest.mark.parametrize("projector", ["siddon", "joseph"])
@pytest.mark.parametrize("n", [32, 33])
def test_rays_along_borders_have_their_middle_where_the_object_has(n, projector):
    # Pixel-wide columns: on an even grid every ray of these views runs along a border.
    angles = np.array([0.0, np.pi / 2, np.pi, 3 * np.pi / 2, 0.3])
    geometry, grid = ParallelGeometry(angles, n + 15 - n % 2, 1.0), Grid((n, n))
    y, x = grid.axes()
    image = ((x[None] / 12) ** 2 + (y[:, None] / 8) ** 2 < 1).astype(np.float64)
    matrix = assemble_matrix(geometry, grid, projector=projector, dtype=np.float64)
    sinogram = (matrix @ image.ravel()).reshape(geometry.projection_shape)
    column = np.arange(geometry.n_columns) - (geometry.n_columns - 1) / 2
    np.testing.assert_allclose(sinogram @ column / sinogram.sum(1), 0, atol=1e-6)
    one_sided = np.roll(sinogram, 1, axis=1)
    assert np.all(np.abs(one_sided @ column / one_sided.sum(1)) > 0.4)


def test_rays_along_edges_of_voxels_belong_to_all_four():
    geometry = VectorGeometry(
        np.array([[0.0, -50, 0, 0, 50, 0, 1, 0, 0, 0, 0, 1]]), 1, 1, "cone", False
    )
    volume = assemble_matrix(geometry, Grid((4, 4, 4)), dtype=np.float64).toarray().reshape(4, 4, 4)
    expected = np.zeros((4, 4, 4))
    expected[1:3, :, 1:3] = 0.25
    np.testing.assert_allclose(volume, expected, atol=1e-12)
