"""The field of view: the pixels that every view sees."""

import numpy as np

from dipct.errors import GeometryError
from dipct.measurement.geometry import Geometry, MatrixGeometry
from dipct.measurement.grid import Grid


def field_of_view_mask(geometry: Geometry, grid: Grid) -> np.ndarray:
    """Pixels whose centre is projected onto the detector in every view.

    Outside this region the views are truncated and the image is not determined by the data. The
    centre is projected with the per-view vectors, so that the answer holds for every geometry;
    for a full scan it is a disc (parallel and fan beam). A slice of a cone-beam scan is tested
    along the detector columns only. A scan given by its matrix sees a pixel in a view if the
    view's rows hold a non-zero for it.

    Args:
        geometry: of the scan.
        grid: where the reconstruction lies.

    Returns:
        True inside the field of view, [*grid.shape].

    Raises:
        GeometryError: a planar geometry with a volume, or the other way round, or a matrix of
            another grid.
    """
    if grid.ndim != (2 if geometry.is_planar else 3):
        raise GeometryError(
            f"A {geometry.kind} geometry with detector shape {geometry.detector_shape} measures "
            f"{'an image' if geometry.is_planar else 'a volume'}; got a grid of shape {grid.shape}."
        )
    if isinstance(geometry, MatrixGeometry):
        return _seen_by_matrix(geometry, grid)
    axes = grid.axes()
    y, x = axes[-2][:, None], axes[-1][None, :]
    heights = axes[0] if grid.ndim == 3 else np.zeros(1)
    half_columns = geometry.detector_shape[-1] / 2
    half_rows = np.inf if geometry.is_planar else geometry.detector_shape[0] / 2
    views = [_projection(v, geometry.beam == "parallel") for v in geometry.vectors()]
    mask = np.ones((len(heights), *grid.shape[-2:]), dtype=bool)
    for seen, z in zip(mask, heights, strict=True):
        for column, row, depth in views:
            distance = _affine(depth, x, y, z)
            seen &= distance > 0
            seen &= np.abs(_affine(column, x, y, z)) <= half_columns * distance
            if np.isfinite(half_rows):
                seen &= np.abs(_affine(row, x, y, z)) <= half_rows * distance
            if not seen.any():
                break
    return mask.reshape(grid.shape)


def _projection(vectors: np.ndarray, parallel: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Perspective projection of one view, as three affine functions of the world coordinates.

    Column and row, counted from the detector's centre, are the first and the second divided by
    the third, which is positive in front of the source. Each is (constant, x, y, z).
    """
    source, centre, u, v = vectors.reshape(4, 3)
    normal = np.cross(u, v)
    dual_u = np.cross(v, normal) / (u @ np.cross(v, normal))
    dual_v = np.cross(normal, u) / (v @ np.cross(normal, u))
    if parallel:
        # Along the ray direction to the detector plane: x + t source, normal . (x - centre) = 0.
        slide = np.eye(3) - np.outer(source, normal) / (normal @ source)
        column, row = dual_u @ slide, dual_v @ slide
        return (
            np.concatenate([[-column @ centre], column]),
            np.concatenate([[-row @ centre], row]),
            np.array([1.0, 0.0, 0.0, 0.0]),
        )
    # The ray source + t (x - source) meets the plane at t = 1 / depth(x).
    depth = normal / (normal @ (centre - source))
    depth = np.concatenate([[-depth @ source], depth])
    column, row = (
        np.concatenate([[-dual @ source], dual]) + (source - centre) @ dual * depth
        for dual in (dual_u, dual_v)
    )
    return column, row, depth


def _affine(function: np.ndarray, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    constant, along_x, along_y, along_z = function
    return constant + along_z * z + along_x * x + along_y * y


def _seen_by_matrix(geometry: MatrixGeometry, grid: Grid) -> np.ndarray:
    if geometry.matrix.shape[1] != grid.n_pixels:
        raise GeometryError(
            f"The scan's system matrix is for {geometry.matrix.shape[1]} pixels, the grid "
            f"{grid.shape} has {grid.n_pixels}."
        )
    mask = np.ones(grid.n_pixels, dtype=bool)
    n = geometry.n_columns
    for view in range(geometry.n_views):
        rows = geometry.matrix[view * n : (view + 1) * n]
        mask &= np.bincount(rows.indices[rows.data != 0], minlength=grid.n_pixels) > 0
    return mask.reshape(grid.shape)
