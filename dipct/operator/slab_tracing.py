"""Rays through pixels: exact lengths (Siddon) and interpolation (Joseph).

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

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import sparse

Projector = Literal["siddon", "joseph"]
PROJECTORS: tuple[str, ...] = ("siddon", "joseph")

# Pixels a ray may be off by rounding; one closer to a corner than this goes through the corner.
_ROUNDING = 1e-9
# Entries smaller than this share of the largest are rounding, not path length.
_NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Entries:
    """Matrix entries of a run of rays: entries per ray, their columns and values."""

    counts: np.ndarray
    columns: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class IndexRays:
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


def trace_rays(rays: IndexRays, projector: Projector, n_pixels: int) -> Entries:
    """Trace rays through an image (two axes) or a volume (three).

    Args:
        rays: N rays in index coordinates.
        projector: ``"siddon"`` or ``"joseph"``.
        n_pixels: number of pixels or voxels.

    Returns:
        The rays' matrix entries, in the unit of ``rays.length``.
    """
    trace = {
        ("siddon", 2): _siddon_plane,
        ("joseph", 2): _joseph_plane,
        ("siddon", 3): _siddon_space,
        ("joseph", 3): _joseph_space,
    }[projector, rays.start.shape[1]]
    beside = _beside_borders(rays) if projector == "siddon" else [rays]
    return _mean([trace(each) for each in beside], n_pixels)


def _beside_borders(rays: IndexRays) -> list[IndexRays]:
    """The rays, or copies of them where some run along a border between pixels.

    The pixels on both sides of the border have the same claim to such a ray. Displaced to either
    side by next to nothing, and averaged, it belongs to each of them by half.
    """
    copies = [rays]
    for axis in range(1, rays.start.shape[1]):
        slope = rays.step[:, axis] / rays.step[:, 0]
        at = rays.start[:, axis] - rays.start[:, 0] * slope
        level = np.abs(slope) * rays.sizes.max() < _ROUNDING
        along = level & (np.abs(at - np.round(at)) < _ROUNDING)
        if along.any():
            shift = np.zeros_like(rays.start)
            shift[along, axis] = 4 * _ROUNDING
            copies = [
                replace(copy, start=copy.start + sign * shift)
                for copy in copies
                for sign in (-1, 1)
            ]
    return copies


def _mean(parts: list[Entries], n_pixels: int) -> Entries:
    """Average of the same rays' entries."""
    if len(parts) == 1:
        return parts[0]
    total = None
    for part in parts:
        starts = np.concatenate([[0], np.cumsum(part.counts)])
        shape = (len(part.counts), n_pixels)
        rows = sparse.csr_matrix((part.values, part.columns, starts), shape=shape)
        total = rows if total is None else total + rows
    assert total is not None
    return Entries(np.diff(total.indptr), total.indices, total.data / len(parts))


def _compress(columns: np.ndarray, values: np.ndarray) -> Entries:
    """Drop empty entries of [N S K] candidates, keeping the order within each ray.

    So are those that only rounding has made: a row of nothing else would be no row of zeros.
    """
    n = len(values)
    columns, values = columns.reshape(n, -1), values.reshape(n, -1)
    keep = values > _NEGLIGIBLE * values.max(initial=0.0)
    return Entries(keep.sum(1), columns[keep], values[keep])


def _slab_crossings(rays: IndexRays) -> tuple[np.ndarray, np.ndarray]:
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


def _siddon_plane(rays: IndexRays) -> Entries:
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


def _slab_centres(rays: IndexRays) -> tuple[np.ndarray, np.ndarray]:
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


def _joseph_plane(rays: IndexRays) -> Entries:
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


def _siddon_space(rays: IndexRays) -> Entries:
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


def _joseph_space(rays: IndexRays) -> Entries:
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
