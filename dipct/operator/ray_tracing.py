"""Sparse system matrices of scans: their rays in index coordinates, traced view by view."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
from scipy import sparse

from dipct.errors import ConfigurationError, GeometryError, InsufficientMemoryError
from dipct.measurement.geometry import Geometry, MatrixGeometry, Rays
from dipct.measurement.grid import Grid
from dipct.operator.slab_tracing import PROJECTORS, Entries, IndexRays, Projector, trace_rays

_SLABS_PER_CHUNK = 2**17
_THREADS = 4


def assemble_matrix(
    geometry: Geometry,
    grid: Grid,
    *,
    projector: Projector = "siddon",
    dtype: type[np.floating] = np.float32,
) -> sparse.csr_matrix:
    """Assemble the ray transform of a scan as a sparse matrix.

    Args:
        geometry: the scan.
        grid: the image grid, 2-D for planar geometries, else 3-D.
        projector: ``"siddon"`` for exact intersection lengths, ``"joseph"`` for linear
            interpolation along the fastest axis.
        dtype: floating-point type of the values; the tracing itself is in float64.

    Returns:
        [m n] with ``m`` the number of measured values and ``n`` of pixels, int32 indices sorted
        within each row, values in mm. A :class:`MatrixGeometry` gives its own matrix.

    Raises:
        GeometryError: grid and geometry do not fit together, or the source is inside the grid.
        InsufficientMemoryError: the matrix is estimated not to fit into free memory.
    """
    if projector not in PROJECTORS:
        raise ConfigurationError(f"projector must be one of {PROJECTORS}; got {projector!r}.")
    if isinstance(geometry, MatrixGeometry):
        return geometry.matrix.astype(dtype)
    check_fit(geometry, grid)
    _check_memory(geometry, grid, projector)

    def run(rays: Rays) -> Entries:
        entries = trace_rays(_to_index_rays(rays, geometry, grid), projector, grid.n_pixels)
        return Entries(
            entries.counts, entries.columns.astype(np.int32), entries.values.astype(dtype)
        )

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(run, _ray_chunks(geometry, grid)))
    counts = np.concatenate([part.counts for part in parts])
    row_starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=row_starts[1:])
    columns = np.concatenate([part.columns for part in parts])
    values = np.concatenate([part.values for part in parts])
    shape = (len(counts), grid.n_pixels)
    matrix = sparse.csr_matrix((values, columns, row_starts.astype(np.int32)), shape=shape)
    matrix.has_canonical_format = False
    matrix.sum_duplicates()
    return matrix


def estimate_nonzeros(geometry: Geometry, grid: Grid, projector: Projector = "siddon") -> int:
    """Upper bound of the non-zeros of :func:`assemble_matrix`, without tracing."""
    if isinstance(geometry, MatrixGeometry):
        return int(geometry.matrix.nnz)
    per_slab = {("siddon", 2): 2, ("joseph", 2): 2, ("siddon", 3): 3, ("joseph", 3): 4}
    n_rays = int(np.prod(geometry.projection_shape))
    return int(n_rays * max(grid.shape) * per_slab[projector, grid.ndim])


def check_fit(geometry: Geometry, grid: Grid) -> None:
    """Raise a :class:`GeometryError` unless the scan's rays can be traced through the grid."""
    if geometry.is_planar != (grid.ndim == 2):
        raise GeometryError(
            f"A {geometry.kind} geometry with detector shape {geometry.detector_shape} needs a "
            f"{'2-D' if geometry.is_planar else '3-D'} grid; got {grid.shape}."
        )
    if geometry.beam == "cone":
        sources = geometry.vectors()[:, : grid.ndim]
        inside = np.all((sources > grid.lower) & (sources < grid.upper), axis=1)
        if inside.any():
            view = int(inside.argmax())
            raise GeometryError(
                f"The source of view {view} lies inside the image grid, at {sources[view]} mm; "
                "check the units of distances and pixel size."
            )


def _check_memory(geometry: Geometry, grid: Grid, projector: Projector) -> None:
    entries = estimate_nonzeros(geometry, grid, projector)
    # Column index and value, while assembling (twice) or as matrix and transpose.
    needed, free = 16 * entries, psutil.virtual_memory().available
    if entries >= 2**31 or needed > free:
        raise InsufficientMemoryError(
            f"The system matrix of {int(np.prod(geometry.projection_shape))} rays through "
            f"{grid.n_pixels} pixels would hold up to {entries:.2e} non-zeros and need "
            f"{needed / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free and 2^31 entries are the "
            "limit. Use fewer views, detector binning or a coarser grid, or a matrix-free "
            "operator (backend 'traced' or 'astra')."
        )


def _ray_chunks(geometry: Geometry, grid: Grid) -> Iterator[Rays]:
    """Runs of views small enough for their intermediate arrays to stay in cache."""
    slabs_per_view = int(np.prod(geometry.detector_shape)) * max(grid.shape)
    n_views = max(1, _SLABS_PER_CHUNK // slabs_per_view)
    n_rays = max(1, _SLABS_PER_CHUNK // max(grid.shape))
    for first in range(0, geometry.n_views, n_views):
        rays = geometry.rays(slice(first, min(first + n_views, geometry.n_views)))
        origins, directions = rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)
        for start in range(0, len(origins), n_rays):
            part = slice(start, start + n_rays)
            yield Rays(origins[part], directions[part])


def _to_index_rays(rays: Rays, geometry: Geometry, grid: Grid) -> IndexRays:
    """Change to index coordinates and put the fastest axis first."""
    d, h = grid.ndim, grid.pixel_size
    # Array order: (row, column) or (slice, row, column); rows run against y.
    order = [1, 0] if d == 2 else [2, 1, 0]
    sign = np.where(np.array(order) == 1, -1.0, 1.0)
    first_edge = np.where(sign > 0, grid.lower[order], grid.upper[order])
    start = (rays.origins[:, order] - first_edge) * sign / h
    step = rays.directions[:, order] * sign / h
    length = np.linalg.norm(rays.directions, axis=1)
    if geometry.beam == "cone":
        length[_is_behind_source(rays, grid)] = 0.0
    if np.any(np.all(step == 0, axis=1)):
        raise GeometryError("A ray runs along z and never crosses the plane of the image.")
    fastest = np.abs(step).argmax(1)
    axes = (fastest[:, None] + np.arange(d)) % d
    sizes = np.array(grid.shape)
    strides = np.array([int(np.prod(grid.shape[i + 1 :])) for i in range(d)])

    def reorder(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, axes, 1)

    limits = slice_offset = None
    if geometry.z_bounds is not None:
        low, high = geometry.z_bounds
        z, dz = rays.origins[:, 2], rays.directions[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = np.sort(np.stack([(low - z) / dz, (high - z) / dz], 1), axis=1)
        level = dz == 0
        ends[level] = np.where((z[level] >= low) & (z[level] <= high), 1, -1)[:, None] * np.array(
            [-np.inf, np.inf]
        )
        limits = ends
        middle, half = (low + high) / 2, (high - low) / 2
        slice_offset = (np.stack([(z - middle) / h, dz / h], 1), half / h)
    return IndexRays(
        reorder(start),
        reorder(step),
        sizes[axes],
        strides[axes],
        length,
        limits,
        slice_offset,
    )


def _is_behind_source(rays: Rays, grid: Grid) -> np.ndarray:
    """Which rays could meet the grid only behind their origin, [N]."""
    origins, directions = rays.origins[:, : grid.ndim], rays.directions[:, : grid.ndim]
    # One pixel more, since interpolation reaches beyond the border.
    lower, upper = grid.lower - grid.pixel_size, grid.upper + grid.pixel_size
    with np.errstate(divide="ignore", invalid="ignore"):
        leave = np.maximum((lower - origins) / directions, (upper - origins) / directions)
    return np.where(directions == 0, np.inf, leave).min(1) < 0
