"""Where things are: every geometry finds an asymmetric phantom where it really was.

The projections are closed forms, and for the circular scans along rays computed here from the
documented convention, so that no error in the geometry can cancel one in the ray transform.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from catalogue import one_thread  # noqa: F401
from scipy.sparse.linalg import lsqr

from dipct.measurement import (
    ConeGeometry,
    ConeSliceGeometry,
    FanGeometry,
    Grid,
    MatrixGeometry,
    ParallelGeometry,
    VectorGeometry,
)
from dipct.operator import RayTransform, to_scipy
from dipct.operator.ray_tracing import assemble_matrix
from dipct.operator.traced import TracedRayTransform

# Over a full turn a shifted detector only blurs; over little more than half of one it displaces.
ANGLES = 0.2 + np.linspace(0, np.deg2rad(200), 50, endpoint=False)
IMAGE = Grid((30, 34), 0.5, (0.3, -0.2))
VOLUME = Grid((14, 16, 18), 1.0, (0.3, -0.2, 0.4))
STACK = (-1.25, 1.25)

DISCS = (
    ((4.1, 2.7), 1.7, 1.0),
    ((-2.4, 4.6), 1.4, 0.8),
    ((-4.3, -2.2), 2.0, 0.6),
)
BALLS = (
    ((4.1, 2.9, 2.6), 2.2, 1.0),
    ((-2.6, 4.0, -2.2), 2.0, 0.8),
    ((-3.9, -3.4, 1.1), 2.4, 0.6),
)


# --- the phantom's projections in closed form ---------------------------------------------------


def ball_lengths(origins, directions, center, radius):
    unit = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    offset = origins - np.asarray(center)
    squared = (offset**2).sum(-1) - (offset * unit).sum(-1) ** 2
    return 2 * np.sqrt(np.maximum(radius**2 - squared, 0))


def cylinder_lengths(origins, directions, center, radius, bounds):
    """Chords in an upright cylinder between two heights."""
    offset, flat = origins[..., :2] - np.asarray(center), directions[..., :2]
    a, b = (flat**2).sum(-1), (offset * flat).sum(-1)
    root = np.sqrt(np.maximum(b**2 - a * ((offset**2).sum(-1) - radius**2), 0))
    enter, leave = (-b - root) / a, (-b + root) / a
    z, dz = origins[..., 2], np.where(directions[..., 2] == 0, 1e-30, directions[..., 2])
    ends = np.sort([(bounds[0] - z) / dz, (bounds[1] - z) / dz], axis=0)
    span = np.minimum(leave, ends[1]) - np.maximum(enter, ends[0])
    return np.maximum(span, 0) * np.linalg.norm(directions, axis=-1)


def project(origins, directions, *, planar, bounds=(-1e6, 1e6)):
    if planar:
        return sum(
            value * cylinder_lengths(origins, directions, center, radius, bounds)
            for center, radius, value in DISCS
        )
    return sum(
        value * ball_lengths(origins, directions, center, radius) for center, radius, value in BALLS
    )


def documented_rays(geometry):
    """The rays of a circular scan as the documentation of ``Geometry`` words them."""
    origins = np.zeros((*geometry.projection_shape, 3))
    directions = np.zeros_like(origins)
    for index in np.ndindex(*geometry.projection_shape):
        theta = geometry.angles[index[0]]
        toward = np.array([np.sin(theta), -np.cos(theta), 0.0])
        along = np.array([np.cos(theta), np.sin(theta), 0.0])
        u = (index[-1] - (geometry.n_columns - 1) / 2) * geometry.column_spacing
        u += geometry.column_offset
        if isinstance(geometry, ParallelGeometry):
            origins[index], directions[index] = u * along, toward
            continue
        cell = u * along - geometry.origin_detector * toward
        if isinstance(geometry, ConeGeometry):
            v = (index[1] - (geometry.n_rows - 1) / 2) * geometry.row_spacing
            cell[2] = v + geometry.row_offset
        origins[index] = geometry.source_origin * toward
        directions[index] = cell - origins[index]
    return origins, directions


# --- the scans ----------------------------------------------------------------------------------


def wobbled(geometry):
    """Vectors near those of a circular scan, as after a calibration."""
    vectors = geometry.vectors().copy()
    wobble = 0.1 * np.random.default_rng(1).standard_normal(vectors.shape)
    wobble[:, 6:] *= 0.1
    if geometry.is_planar:
        wobble[:, 2::3] = 0
    if geometry.beam == "parallel":
        wobble[:, :3] *= 0.1
    return vectors + wobble


@cache
def scan(name):
    """Geometry, grid and exact projections."""
    parallel = ParallelGeometry(ANGLES, 19, 1.2, 0.17)
    fan = FanGeometry(ANGLES, 21, 1.9, 60.0, 35.0, 0.27)
    cone = ConeGeometry(ANGLES[::2], 14, 17, 2.9, 2.9, 60.0, 35.0, 0.27, -0.19)
    slanted = wobbled(cone)
    slanted[:, :3] = ParallelGeometry(ANGLES[::2], 1).vectors()[:, :3] + [0, 0, 0.15]
    slanted[:, 6:] *= 0.66
    lifted = fan.vectors().copy()
    lifted[:, 2] += 1.2
    lifted[:, 11] = 0.9
    rows = np.random.default_rng(2).integers(0, 5, (len(ANGLES), 21))
    geometry = {
        "parallel": parallel,
        "fan": fan,
        "cone": cone,
        "planar parallel vectors": VectorGeometry(wobbled(parallel), 1, 19, "parallel", True),
        "planar fan vectors": VectorGeometry(wobbled(fan), 1, 21, "cone", True),
        "cone vectors": VectorGeometry(wobbled(cone), 14, 17),
        "parallel vectors": VectorGeometry(slanted, 14, 17, "parallel"),
        "cone slice": ConeSliceGeometry(lifted, 5, 21, rows, STACK),
        "matrix": fan,
    }[name]
    grid = IMAGE if geometry.is_planar else VOLUME
    if isinstance(geometry, ParallelGeometry | FanGeometry | ConeGeometry):
        rays = documented_rays(geometry)
    else:
        rays = geometry.rays().origins, geometry.rays().directions
    bounds = geometry.z_bounds or (-1e6, 1e6)
    return geometry, grid, project(*rays, planar=geometry.is_planar, bounds=bounds)


NAMES = (
    "parallel",
    "fan",
    "cone",
    "planar parallel vectors",
    "planar fan vectors",
    "cone vectors",
    "parallel vectors",
    "cone slice",
    "matrix",
)


# --- the check ----------------------------------------------------------------------------------


def reconstruct(operator, projections):
    solution = lsqr(to_scipy(operator), projections.ravel(), iter_lim=20)[0]
    return solution.reshape(operator.domain_shape[1:])


def misplacement(image, grid):
    """Largest distance of a part of the phantom from its true place, in pixels.

    Infinite where its mass is not there, by half of it.
    """
    # Row 0 is at the top, where y is largest: written out, not taken from the grid.
    h = grid.pixel_size
    world = {
        0: lambda k, n: grid.center[0] + (k + 0.5 - n / 2) * h,
        1: lambda k, n: grid.center[1] + (n / 2 - k - 0.5) * h,
        2: lambda k, n: grid.center[2] + (k + 0.5 - n / 2) * h,
    }
    index = np.indices(image.shape)[::-1]
    places = [world[a](index[a], image.shape[-1 - a]) for a in range(image.ndim)]
    worst = 0.0
    for center, radius, value in DISCS if image.ndim == 2 else BALLS:
        away = np.sqrt(sum((p - c) ** 2 for p, c in zip(places, center, strict=True)))
        weight = np.where(away < radius + 2.2 * h, np.maximum(image, 0), 0)
        measure = np.pi * radius**2 if image.ndim == 2 else 4 / 3 * np.pi * radius**3
        share = weight.sum() * h**image.ndim / (value * measure)
        if not 0.6 < share < 1.5:
            return np.inf
        centroid = [np.sum(weight * p) / weight.sum() for p in places]
        worst = max(worst, float(np.linalg.norm(np.subtract(centroid, center))) / h)
    return worst


def changed(geometry, change):
    """The same kind of scan with per-view vectors changed by a function."""
    vectors = change(geometry.vectors().copy())
    if isinstance(geometry, ConeSliceGeometry):
        return replace(geometry, view_vectors=vectors)
    n_rows = 1 if geometry.is_planar else geometry.n_rows
    return VectorGeometry(vectors, n_rows, geometry.n_columns, geometry.beam, geometry.is_planar)


def operator_of(name, geometry, grid, projector):
    if name == "matrix":
        given = assemble_matrix(geometry, grid, projector=projector, dtype=np.float64)
        geometry = MatrixGeometry(given, geometry.n_columns, geometry.angles)
    return RayTransform(geometry, grid, projector=projector)


@pytest.mark.parametrize("projector", ["siddon", "joseph"])
@pytest.mark.parametrize("name", NAMES)
def test_phantom_is_found_where_it_was(name, projector):
    geometry, grid, projections = scan(name)
    image = reconstruct(operator_of(name, geometry, grid, projector), projections)
    assert misplacement(image, grid) < 0.5


@pytest.mark.parametrize("name", ["fan", "cone slice"])
def test_phantom_is_found_without_a_stored_matrix(name):
    geometry, grid, projections = scan(name)
    image = reconstruct(TracedRayTransform(geometry, grid), projections)
    assert misplacement(image, grid) < 0.5


def mirrored_angle(vectors):
    """Turn the scanner the other way: the image of y -> -y, columns reversed."""
    vectors[:, 1::3] *= -1
    return vectors


def half_a_column(vectors):
    vectors[:, 3:6] += vectors[:, 6:9] / 2
    return vectors


def half_a_column_back(vectors):
    vectors[:, 3:6] -= vectors[:, 6:9] / 2
    return vectors


def reversed_columns(vectors):
    vectors[:, 6:9] *= -1
    return vectors


def swapped_axes(vectors):
    for first in range(0, 12, 3):
        vectors[:, [first, first + 1]] = vectors[:, [first + 1, first]]
    return vectors


MISTAKES = (mirrored_angle, half_a_column, half_a_column_back, reversed_columns, swapped_axes)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_mistakes_are_noticed(name, mistake):
    geometry, grid, projections = scan(name)
    operator = operator_of(name, changed(geometry, mistake), grid, "siddon")
    assert misplacement(reconstruct(operator, projections), grid) > 0.5


@pytest.mark.parametrize("name", ["cone", "cone vectors", "parallel vectors"])
def test_mistakes_along_the_rows_are_noticed(name):
    geometry, grid, projections = scan(name)

    def half_a_row(vectors):
        vectors[:, 3:6] += vectors[:, 9:12] / 2
        return vectors

    def reversed_rows(vectors):
        vectors[:, 9:12] *= -1
        return vectors

    for mistake in (half_a_row, reversed_rows):
        operator = RayTransform(changed(geometry, mistake), grid)
        assert misplacement(reconstruct(operator, projections), grid) > 0.5


@pytest.mark.parametrize("name", ["parallel", "fan", "cone"])
def test_negative_angles_are_noticed(name):
    geometry, grid, projections = scan(name)
    backwards = RayTransform(replace(geometry, angles=-geometry.angles), grid)
    assert misplacement(reconstruct(backwards, projections), grid) > 0.5


@pytest.mark.parametrize("turned", [np.flipud, np.fliplr, np.transpose], ids=lambda f: f.__name__)
def test_turned_images_are_noticed(turned):
    square = Grid((32, 32), 0.5)
    geometry, _, projections = scan("fan")
    image = reconstruct(RayTransform(geometry, square), projections)
    assert misplacement(image, square) < 0.5
    assert misplacement(turned(image), square) > 0.5


@pytest.mark.parametrize("projector", ["siddon", "joseph"])
@pytest.mark.parametrize("name", NAMES)
def test_matrix_gives_the_analytic_projections(name, projector):
    geometry, grid, projections = scan(name)
    views = np.arange(0, geometry.n_views, 5)
    geometry, projections = geometry.select_views(views), projections[views]
    finer = 2 if grid.ndim == 2 else 4
    grid = Grid(tuple(finer * n for n in grid.shape), grid.pixel_size / finer, grid.center)
    fine = Grid(tuple(2 * n for n in grid.shape), grid.pixel_size / 2, grid.center)
    axes = np.meshgrid(*fine.axes(), indexing="ij", sparse=True)[::-1]
    drawn = sum(
        value * (sum((a - c) ** 2 for a, c in zip(axes, center, strict=True)) <= radius**2)
        for center, radius, value in (DISCS if grid.ndim == 2 else BALLS)
    )
    split = [size for n in grid.shape for size in (n, 2)]
    image = drawn.reshape(split).mean(tuple(range(1, 2 * grid.ndim, 2)))
    matrix = assemble_matrix(geometry, grid, projector=projector, dtype=np.float64)
    found = (matrix @ image.ravel()).reshape(projections.shape)
    # Edges of balls a few voxels wide, seen by single rays, are as sharp as this.
    limit = 0.05 if geometry.is_planar else 0.1
    size = np.linalg.norm(projections)
    assert np.linalg.norm(found - projections) < limit * size
    moved = assemble_matrix(changed(geometry, half_a_column), grid, projector=projector)
    found = (moved @ image.ravel()).reshape(projections.shape)
    assert np.linalg.norm(found - projections) > 2 * limit * size
