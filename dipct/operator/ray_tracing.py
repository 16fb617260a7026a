"""Sparse system matrices by ray tracing: exact lengths (Siddon) and interpolation (Joseph).

Both projectors walk along the axis in which a ray advances fastest, one layer of pixels (a slab)
after the other. Inside a slab the ray moves by at most one pixel along every other axis, so that
it meets at most two pixels of an image and three voxels of a volume; all slabs of all rays are
therefore handled at once by array arithmetic, without sorting.

References:
    R. L. Siddon, Fast calculation of the exact radiological path for a three-dimensional CT
    array, Medical Physics 12 (1985).
    P. M. Joseph, An improved algorithm for reprojecting rays through pixel images, IEEE
    Transactions on Medical Imaging 1 (1982).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import psutil
from scipy import sparse

from dipct.errors import ConfigurationError, GeometryError, InsufficientMemoryError
from dipct.measurement.geometry import Geometry, MatrixGeometry, Rays
from dipct.measurement.grid import Grid

Projector = Literal["siddon", "joseph"]
PROJECTORS: tuple[str, ...] = ("siddon", "joseph")

_SLABS_PER_CHUNK = 2**17
# Pixels a ray may be off by rounding; one closer to a corner than this goes through the corner.
_ROUNDING = 1e-9
# Entries smaller than this share of the largest are rounding, not path length.
_NEGLIGIBLE = 1e-9
_THREADS = 4


@dataclass(frozen=True)
class _Entries:
    """Matrix entries of a run of rays: entries per ray, their columns and values."""

    counts: np.ndarray
    columns: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class _IndexRays:
    """Rays in index coordinates, axes reordered so that axis 0 is the fastest.

    Pixel ``i`` along an axis covers the interval [i, i + 1).

    Attributes:
        start: point on the ray, [N d].
        step: direction, [N d]; ``|step[:, 0]|`` is the largest.
        sizes: pixels along each axis, [N d].
        strides: distance in the flattened image between neighbours along each axis, [N d].
        length: length of the ray for a unit of its parameter, [N], mm.
        limits: parameter range inside the ``z`` bounds, [N 2]; None without bounds.
        slice_offset: position relative to the middle of the ``z`` bounds at parameter 0 and its
            slope, [N 2], and half their distance, all in pixels; None without bounds.
    """

    start: np.ndarray
    step: np.ndarray
    sizes: np.ndarray
    strides: np.ndarray
    length: np.ndarray
    limits: np.ndarray | None = None
    slice_offset: tuple[np.ndarray, float] | None = None


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
    trace = {
        ("siddon", 2): _siddon_plane,
        ("joseph", 2): _joseph_plane,
        ("siddon", 3): _siddon_space,
        ("joseph", 3): _joseph_space,
    }[projector, grid.ndim]

    def run(rays: Rays) -> _Entries:
        entries = trace(_to_index_rays(rays, geometry, grid))
        return _Entries(
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


def _to_index_rays(rays: Rays, geometry: Geometry, grid: Grid) -> _IndexRays:
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
    return _IndexRays(
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


def _compress(columns: np.ndarray, values: np.ndarray) -> _Entries:
    """Drop empty entries of [N S K] candidates, keeping the order within each ray.

    So are those that only rounding has made: a row of nothing else would be no row of zeros.
    """
    n = len(values)
    columns, values = columns.reshape(n, -1), values.reshape(n, -1)
    keep = values > _NEGLIGIBLE * values.max(initial=0.0)
    return _Entries(keep.sum(1), columns[keep], values[keep])


def _slab_crossings(rays: _IndexRays) -> tuple[np.ndarray, np.ndarray]:
    """Ray parameter at the planes between slabs, [N S+1], and which slabs exist, [N S]."""
    n_slabs = int(rays.sizes[:, 0].max())
    planes = np.arange(n_slabs + 1)
    t = (planes - rays.start[:, :1]) / rays.step[:, :1]
    if rays.limits is not None:
        # Order of the limits where they are (inf, -inf): the ray never meets the stack.
        np.minimum(t, rays.limits[:, 1:], out=t)
        np.maximum(t, rays.limits[:, :1], out=t)
        t[~np.isfinite(t).all(1)] = 0.0
    return t, planes[:-1] < rays.sizes[:, :1]


def _siddon_plane(rays: _IndexRays) -> _Entries:
    t, exists = _slab_crossings(rays)
    across = rays.start[:, 1:] + t * rays.step[:, 1:]
    length = np.abs(np.diff(t, axis=1)) * rays.length[:, None]
    length *= exists
    low = np.minimum(across[:, :-1], across[:, 1:])
    high = np.maximum(across[:, :-1], across[:, 1:])
    first, last = np.floor(low + _ROUNDING), np.floor(high - _ROUNDING)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(last > first, (high - last) / (high - low), 0.0)
    size = rays.sizes[:, 1:]
    values = np.empty((*first.shape, 2))
    values[..., 0] = length * (1 - share) * ((first >= 0) & (first < size))
    values[..., 1] = length * share * ((last >= 0) & (last < size))
    base = np.arange(first.shape[1]) * rays.strides[:, :1]
    columns = np.empty(values.shape, dtype=np.int64)
    columns[..., 0] = base + first * rays.strides[:, 1:]
    columns[..., 1] = base + last * rays.strides[:, 1:]
    return _compress(columns, values)


def _slab_centres(rays: _IndexRays) -> tuple[np.ndarray, np.ndarray]:
    """Ray parameter at the middle of each slab and path length per slab, both [N S]."""
    middles = np.arange(int(rays.sizes[:, 0].max())) + 0.5
    t = (middles - rays.start[:, :1]) / rays.step[:, :1]
    length = np.broadcast_to((rays.length / np.abs(rays.step[:, 0]))[:, None], t.shape)
    length = length * (middles < rays.sizes[:, :1])
    if rays.slice_offset is not None:
        (offset, half) = rays.slice_offset
        distance = np.abs(offset[:, :1] + t * offset[:, 1:])
        # The interpolation weights of all slices of the stack together: 1 inside, falling to 0
        # over the half pixel on either side of its surface.
        length = length * np.clip(half + 0.5 - distance, 0.0, 1.0)
    return t, length


def _joseph_plane(rays: _IndexRays) -> _Entries:
    t, length = _slab_centres(rays)
    across = rays.start[:, 1:] + t * rays.step[:, 1:] - 0.5
    first = np.floor(across)
    share = across - first
    size = rays.sizes[:, 1:]
    values = np.empty((*first.shape, 2))
    values[..., 0] = length * (1 - share) * ((first >= 0) & (first < size))
    values[..., 1] = length * share * ((first >= -1) & (first < size - 1))
    columns = np.empty(values.shape, dtype=np.int64)
    columns[..., 0] = np.arange(first.shape[1]) * rays.strides[:, :1] + first * rays.strides[:, 1:]
    columns[..., 1] = columns[..., 0] + rays.strides[:, 1:]
    return _compress(columns, values)


def _siddon_space(rays: _IndexRays) -> _Entries:
    t, exists = _slab_crossings(rays)
    length = np.abs(np.diff(t, axis=1)) * rays.length[:, None] * exists
    pixels, switch = [], []
    for axis in (1, 2):
        across = rays.start[:, axis, None] + t * rays.step[:, axis, None]
        enter, leave = across[:, :-1], across[:, 1:]
        # Slabs are numbered along the axis, which need not be the way the ray goes.
        shift = _ROUNDING * np.sign(leave - enter)
        first, last = np.floor(enter + shift), np.floor(leave - shift)
        with np.errstate(divide="ignore", invalid="ignore"):
            boundary = np.maximum(first, last)
            at = np.where(first != last, (boundary - enter) / (leave - enter), 1.0)
        pixels.append((first, last))
        switch.append(np.clip(at, 0.0, 1.0))
    one_first = switch[0] <= switch[1]
    early, late = np.minimum(*switch), np.maximum(*switch)
    middle = (
        np.where(one_first, pixels[0][1], pixels[0][0]),
        np.where(one_first, pixels[1][0], pixels[1][1]),
    )
    # The three stretches of the ray in a slab; a direction against the axis only renames them.
    stretches = [
        (pixels[0][0], pixels[1][0], early),
        (*middle, late - early),
        (pixels[0][1], pixels[1][1], 1.0 - late),
    ]
    base = np.arange(length.shape[1]) * rays.strides[:, :1]
    values = np.empty((*length.shape, 3))
    columns = np.empty(values.shape, dtype=np.int64)
    for k, (one, two, share) in enumerate(stretches):
        inside = (one >= 0) & (one < rays.sizes[:, 1:2]) & (two >= 0) & (two < rays.sizes[:, 2:])
        values[..., k] = length * share * inside
        columns[..., k] = base + one * rays.strides[:, 1:2] + two * rays.strides[:, 2:]
    return _compress(columns, values)


def _joseph_space(rays: _IndexRays) -> _Entries:
    t, length = _slab_centres(rays)
    base = np.arange(length.shape[1]) * rays.strides[:, :1]
    values = np.empty((*length.shape, 4))
    columns = np.empty(values.shape, dtype=np.int64)
    neighbours = []
    for axis in (1, 2):
        across = rays.start[:, axis, None] + t * rays.step[:, axis, None] - 0.5
        first = np.floor(across)
        neighbours.append((first, across - first))
    for k in range(4):
        weight, index, inside = length, base, np.ones(length.shape, dtype=bool)
        for axis, (first, share) in enumerate(neighbours, start=1):
            upper = k >> (axis - 1) & 1
            pixel = first + upper
            weight = weight * (share if upper else 1 - share)
            index = index + pixel * rays.strides[:, axis, None]
            inside = inside & (pixel >= 0) & (pixel < rays.sizes[:, axis, None])
        values[..., k] = weight * inside
        columns[..., k] = index
    return _compress(columns, values)
