"""Geometries: ASTRA's conventions, one general form, and changes that keep rays where they were."""

from dataclasses import replace

import astra
import numpy as np
import pytest
from catalogue import GEOMETRIES
from scipy import sparse

from dipct.errors import GeometryError
from dipct.measurement import (
    ConeGeometry,
    ConeSliceGeometry,
    FanGeometry,
    Grid,
    MatrixGeometry,
    ParallelGeometry,
    VectorGeometry,
)
from dipct.measurement.geometry import KINDS
from dipct.measurement.geometry.base import Geometry

ANGLES = 0.1 + np.array([0.0, 0.5, 1.7, 3.9, 5.5])
POSITIONED = [name for name in GEOMETRIES if name != "matrix"]
positioned = pytest.mark.parametrize("name", POSITIONED)


def same_lines(one, other, atol=1e-12):
    """Whether rays [... 3] are the same lines, however they are parametrised."""
    first, second = (
        r.directions / np.linalg.norm(r.directions, axis=-1, keepdims=True) for r in (one, other)
    )
    parallel = np.allclose(np.cross(first, second), 0, atol=atol)
    between = np.cross(one.origins - other.origins, first)
    same_way = np.all((first * second).sum(-1) > 0)
    return parallel and same_way and np.allclose(between, 0, atol=atol * 100)


# --- ASTRA's conventions ------------------------------------------------------------------------


def astra_vectors(*description):
    return astra.geom_2vec(astra.create_proj_geom(*description))["Vectors"]


def test_parallel_vectors_are_astras():
    expected = astra_vectors("parallel", 1.2, 7, ANGLES)
    found = ParallelGeometry(ANGLES, 7, 1.2).vectors()
    np.testing.assert_allclose(found[:, [0, 1, 3, 4, 6, 7]], expected, atol=1e-12)
    assert not np.allclose(ParallelGeometry(-ANGLES, 7, 1.2).vectors()[:, :2], expected[:, :2])


def test_fan_vectors_are_astras():
    expected = astra_vectors("fanflat", 1.2, 7, ANGLES, 30.0, 20.0)
    found = FanGeometry(ANGLES, 7, 1.2, 30.0, 20.0).vectors()
    np.testing.assert_allclose(found[:, [0, 1, 3, 4, 6, 7]], expected, atol=1e-12)


def test_cone_vectors_are_astras():
    # ASTRA names the column spacing first.
    expected = astra_vectors("cone", 1.2, 1.3, 5, 7, ANGLES, 30.0, 20.0)
    found = ConeGeometry(ANGLES, 5, 7, 1.3, 1.2, 30.0, 20.0).vectors()
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_offsets_move_the_detector_as_in_astra():
    plain = astra.create_proj_geom("cone", 1.2, 1.3, 5, 7, ANGLES, 30.0, 20.0)
    shifted = astra.geom_postalignment(plain, (0.75, -0.5))["Vectors"]
    geometry = ConeGeometry(ANGLES, 5, 7, 1.3, 1.2, 30.0, 20.0, 0.75 * 1.2, -0.5 * 1.3)
    np.testing.assert_allclose(geometry.vectors(), shifted, atol=1e-12)


def test_axis_is_projected_where_the_summary_says():
    geometry = FanGeometry(ANGLES, 7, 1.2, 30.0, 20.0, 0.6)
    column = float(geometry.summary()["axis column"])
    assert column == pytest.approx(3 - 0.5)
    vectors = geometry.vectors()
    cell = vectors[:, 3:6] + (column - 3) * vectors[:, 6:9]
    source = vectors[:, :3]
    assert np.allclose(np.cross(cell - source, -source), 0, atol=1e-9)


# --- one general form ---------------------------------------------------------------------------


# A cone slice uses one row of its vectors per column and has a test of its own.
@pytest.mark.parametrize("name", [name for name in POSITIONED if name != "cone slice"])
def test_rays_of_the_vectors_are_the_rays(name):
    geometry = GEOMETRIES[name][0]
    n_rows = 1 if geometry.is_planar else geometry.detector_shape[0]
    general = VectorGeometry(
        geometry.vectors(), n_rows, geometry.n_columns, geometry.beam, geometry.is_planar
    )
    assert general.projection_shape == geometry.projection_shape
    assert general.is_planar == geometry.is_planar
    assert same_lines(general.rays(), geometry.rays())
    np.testing.assert_allclose(
        np.exp(1j * general.angles), np.exp(1j * geometry.angles), atol=1e-12
    )
    shifted = replace(general, view_vectors=general.view_vectors + 0.01 * (np.arange(12) == 3))
    assert not same_lines(shifted.rays(), geometry.rays())


@positioned
def test_rays_of_some_views_are_those_of_the_selection(name):
    geometry = GEOMETRIES[name][0]
    for views in (slice(1, 3), np.array([2, 0])):
        part = geometry.rays(views)
        whole = geometry.rays()
        np.testing.assert_array_equal(part.origins, whole.origins[views])
        np.testing.assert_array_equal(part.directions, whole.directions[views])
    chosen = geometry.select_views(np.array([2, 0]))
    np.testing.assert_array_equal(chosen.rays().directions, part.directions)
    np.testing.assert_allclose(chosen.angles % (2 * np.pi), geometry.angles[[2, 0]] % (2 * np.pi))


def test_cone_slice_rays_run_through_the_rows_it_names():
    geometry = GEOMETRIES["cone slice"][0]
    cone = GEOMETRIES["cone"][0]
    whole, chosen = cone.rays(), geometry.rays()
    for view, column in np.ndindex(geometry.projection_shape):
        row = geometry.rows[view, column]
        low, share = int(row), row - int(row)
        expected = whole.directions[view, low, column]
        if share:
            expected = (1 - share) * expected + share * whole.directions[view, low + 1, column]
        np.testing.assert_allclose(chosen.directions[view, column], expected, atol=1e-12)
    np.testing.assert_allclose(chosen.origins, whole.origins[:, 0])


@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_geometry_describes_itself(name):
    geometry = GEOMETRIES[name][0]
    assert KINDS[geometry.kind] is type(geometry)
    assert isinstance(geometry, Geometry)
    assert geometry.n_views == len(geometry.angles) == geometry.projection_shape[0]
    assert geometry.is_planar == (len(geometry.projection_shape) == 2)
    text = geometry.summary()
    assert text["geometry"] == geometry.kind
    assert text["views"].startswith(f"{geometry.n_views} views")
    again = type(geometry)(**geometry.to_dict())
    if name != "matrix":
        np.testing.assert_array_equal(again.rays().directions, geometry.rays().directions)
        assert (geometry.z_bounds is not None) == (name == "cone slice")


# --- cropping and binning -----------------------------------------------------------------------


@positioned
def test_cropped_rays_are_the_cropped_rays(name):
    geometry = GEOMETRIES[name][0]
    n = geometry.detector_shape[-1]
    whole = geometry.rays()
    for first, last in ((0, n), (1, n - 1), (2, 3), (0, 4), (n - 2, n)):
        cropped = geometry.crop_detector(first, last)
        assert cropped.projection_shape == (*geometry.projection_shape[:-1], last - first)
        expected = type(whole)(
            whole.origins[..., first:last, :], whole.directions[..., first:last, :]
        )
        assert same_lines(cropped.rays(), expected)
        if last < n:
            other = geometry.crop_detector(first + 1, last + 1)
            assert not same_lines(other.rays(), expected)


@positioned
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_binned_rays_run_through_the_middle_of_the_joined_cells(name, factor):
    geometry = GEOMETRIES[name][0]
    binned = geometry.bin_detector(factor)
    by_row = 1 if geometry.is_planar else factor
    n = geometry.detector_shape[-1] // factor
    assert binned.detector_shape[-1] == n
    whole = geometry.rays()

    def joined(values):
        """Means over the cells of each bin; those left over are dropped."""
        if not geometry.is_planar:
            rows = values.shape[1] // by_row
            values = values[:, : rows * by_row]
            values = values.reshape(len(values), rows, by_row, -1, 3).mean(2)
        values = values[..., : n * factor, :]
        return values.reshape(*values.shape[:-2], n, factor, 3).mean(-2)

    found = binned.rays()
    expected = type(whole)(joined(whole.origins), joined(whole.directions))
    assert same_lines(found, expected)
    if factor > 1:
        single = type(whole)(
            whole.origins[..., : n * factor : factor, :],
            whole.directions[..., : n * factor : factor, :],
        )
        if not geometry.is_planar:
            single = type(whole)(
                single.origins[:, ::factor][:, : binned.detector_shape[0]],
                single.directions[:, ::factor][:, : binned.detector_shape[0]],
            )
        assert not same_lines(found, single)


def test_cone_rows_are_cropped():
    geometry = GEOMETRIES["cone vectors"][0]
    whole, cropped = geometry.rays(), geometry.crop_rows(1, 3)
    assert cropped.detector_shape == (2, 6)
    expected = type(whole)(whole.origins[:, 1:3], whole.directions[:, 1:3])
    assert same_lines(cropped.rays(), expected)


def test_matrix_geometry_follows_its_data():
    values = sparse.random(3 * 7, 20, 0.5, "csr", random_state=np.random.default_rng(0))
    geometry, image = MatrixGeometry(values, 7), np.random.default_rng(1).random(20)
    data = (values @ image).reshape(3, 7)
    for changed, expected in (
        (geometry.crop_detector(2, 5), data[:, 2:5]),
        (geometry.bin_detector(2), data[:, :6].reshape(3, 3, 2).mean(2)),
        (geometry.bin_detector(3), data[:, :6].reshape(3, 2, 3).mean(2)),
        (geometry.select_views(np.array([2, 0])), data[[2, 0]]),
    ):
        assert changed.projection_shape == expected.shape
        np.testing.assert_allclose(changed.matrix @ image, expected.ravel())
    np.testing.assert_allclose(geometry.angles, np.arange(3) * 2 * np.pi / 3)
    for call in (geometry.vectors, geometry.rays):
        with pytest.raises(GeometryError, match="system matrix"):
            call()


# --- grids --------------------------------------------------------------------------------------


def test_grid_axes_by_hand():
    y, x = Grid((2, 3), 2.0, (10.0, 20.0)).axes()
    np.testing.assert_array_equal(y, [21, 19])
    np.testing.assert_array_equal(x, [8, 10, 12])
    z, y, x = Grid((2, 1, 3), 2.0, (10.0, 20.0, 30.0)).axes()
    np.testing.assert_array_equal(z, [29, 31])
    np.testing.assert_array_equal(y, [20])
    grid = Grid((2, 3), 2.0, (10.0, 20.0))
    np.testing.assert_array_equal(grid.lower, [7, 18])
    np.testing.assert_array_equal(grid.upper, [13, 22])
    assert grid.size == (6.0, 4.0)
    assert grid.image_shape == (1, 2, 3)
    assert (grid.n_pixels, grid.ndim) == (6, 2)
    assert Grid.from_dict(grid.to_dict()) == grid


def test_resized_grid_covers_the_same_field():
    grid = Grid((40, 60), 0.5, (1.0, 2.0))
    for n in (30, 60, 120):
        other = grid.resized(n)
        assert max(other.shape) == n
        np.testing.assert_allclose(other.size, grid.size)
        assert other.center == grid.center
    with pytest.raises(GeometryError):
        grid.resized(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((3,),), "shape"),
        (((3, 0),), "shape"),
        (((2, 3, 4, 5),), "shape"),
        (((3.5, 4),), "integers"),
        (((3, 4), 0.0), "pixel_size"),
        (((3, 4), -1.0), "pixel_size"),
        (((3, 4), np.nan), "pixel_size"),
        (((3, 4), 1.0, (1.0, 2.0, 3.0)), "centre"),
        (((3, 4, 5), 1.0, (1.0, 2.0)), "centre"),
        (((3, 4), 1.0, (np.inf, 0.0)), "finite"),
    ],
)
def test_impossible_grids_are_refused(arguments, message):
    with pytest.raises(GeometryError, match=message):
        Grid(*arguments)


# --- refusals -----------------------------------------------------------------------------------

VECTORS = ConeGeometry(ANGLES, 3, 4, 1.0, 1.0, 30.0, 20.0).vectors()


def with_entry(view, entry, value):
    vectors = VECTORS.copy()
    vectors[view, entry] = value
    return vectors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParallelGeometry([], 4), "at least one"),
        (lambda: ParallelGeometry([0.0, np.nan], 4), "finite"),
        (lambda: ParallelGeometry([[0.0, 1.0]], 4), "list"),
        (lambda: ParallelGeometry(np.arange(0.0, 180.0), 4), "degrees.*deg2rad"),
        (lambda: FanGeometry(np.arange(0.0, 360.0, 10), 4, 1.0, 3.0, 2.0), "degrees"),
        (lambda: ConeGeometry([0, 90, 180], 3, 4, 1.0, 1.0, 3.0, 2.0), "degrees"),
        (lambda: ParallelGeometry(ANGLES, 0), "n_columns"),
        (lambda: ParallelGeometry(ANGLES, 4.5), "n_columns"),
        (lambda: ParallelGeometry(ANGLES, 4, 0.0), "column_spacing"),
        (lambda: ParallelGeometry(ANGLES, 4, -1.0), "column_spacing"),
        (lambda: ParallelGeometry(ANGLES, 4, 1.0, np.nan), "column_offset"),
        (lambda: FanGeometry(ANGLES, 4, 0.0, 3.0, 2.0), "column_spacing"),
        (lambda: FanGeometry(ANGLES, 4, 1.0, -3.0, 2.0), "source_origin"),
        (lambda: FanGeometry(ANGLES, 4, 1.0, 3.0, -3.0), "source_detector"),
        (lambda: FanGeometry(ANGLES, 4, 1.0, 3.0, np.nan), "source_detector"),
        (lambda: FanGeometry(ANGLES, 4, 1.0, 3.0, 2.0, np.inf), "column_offset"),
        (lambda: ConeGeometry(ANGLES, 0, 4, 1.0, 1.0, 3.0, 2.0), "n_rows"),
        (lambda: ConeGeometry(ANGLES, 3, 4, 0.0, 1.0, 3.0, 2.0), "row_spacing"),
        (lambda: ConeGeometry(ANGLES, 3, 4, 1.0, 1.0, 3.0, 2.0, 0.0, np.nan), "row_offset"),
        (lambda: VectorGeometry(VECTORS[:, :11], 3, 4), r"\(A, 12\)"),
        (lambda: VectorGeometry(VECTORS[:0], 3, 4), r"\(A, 12\)"),
        (lambda: VectorGeometry(with_entry(2, 5, np.nan), 3, 4), "view 2"),
        (lambda: VectorGeometry(with_entry(1, slice(6, 9), 0.0), 3, 4), "parallel or zero"),
        (lambda: VectorGeometry(with_entry(1, slice(9, 12), VECTORS[1, 6:9]), 3, 4), "parallel"),
        (lambda: VectorGeometry(VECTORS, 3, 4, "helix"), "beam"),
        (lambda: VectorGeometry(VECTORS, 3, 4, planar=True), "one detector row"),
        (lambda: VectorGeometry(with_entry(0, 2, 1.0), 1, 4, planar=True), "z = 0"),
        (lambda: VectorGeometry(VECTORS, 3, 2.5), "n_columns"),
        (lambda: ConeSliceGeometry(VECTORS, 3, 4, np.zeros((5, 3)), (0, 1)), "rows"),
        (lambda: ConeSliceGeometry(VECTORS, 3, 4, np.full((5, 4), 2.5), (0, 1)), "rows"),
        (lambda: ConeSliceGeometry(VECTORS, 3, 4, np.full((5, 4), np.nan), (0, 1)), "rows"),
        (lambda: ConeSliceGeometry(VECTORS, 3, 4, np.zeros((5, 4)), (1, 1)), "rising"),
        (lambda: ConeSliceGeometry(VECTORS, 3, 4, np.zeros((5, 4)), (0, np.nan)), "rising"),
        (lambda: MatrixGeometry(sparse.eye(7, format="csr"), 3), "multiple"),
        (lambda: MatrixGeometry(sparse.eye(6, format="csr"), 3, ANGLES), "5 angles"),
        (lambda: MatrixGeometry(sparse.csr_matrix([[np.nan, 1]]), 1), "finite"),
        (lambda: MatrixGeometry(sparse.csr_matrix((0, 4)), 1), "got 0"),
    ],
)
def test_impossible_geometries_are_refused(make, message):
    with pytest.raises(GeometryError, match=message) as error:
        make()
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_impossible_changes_are_refused(name):
    geometry = GEOMETRIES[name][0]
    n = geometry.detector_shape[-1]
    for first, last in ((-1, 2), (2, 2), (3, 2), (0, n + 1)):
        with pytest.raises(GeometryError, match="first < last"):
            geometry.crop_detector(first, last)
    for factor in (0, -1, n + 1, 1.5):
        with pytest.raises(GeometryError, match="binning"):
            geometry.bin_detector(factor)


def test_given_arrays_are_kept_from_later_changes():
    angles = ANGLES.copy()
    geometry = ParallelGeometry(angles, 4)
    angles[0] = 9
    assert geometry.angles[0] == ANGLES[0]
    with pytest.raises(ValueError, match="read-only"):
        geometry.angles[0] = 9
    vectors = VECTORS.copy()
    general = VectorGeometry(vectors, 3, 4)
    vectors[:] = 0
    np.testing.assert_array_equal(general.view_vectors, VECTORS)
