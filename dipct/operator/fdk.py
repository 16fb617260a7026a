"""Approximate reconstruction of circular cone-beam scans.

Reference:
    L. A. Feldkamp, L. C. Davis and J. W. Kress, Practical cone-beam algorithm, Journal of the
    Optical Society of America A 1 (1984).
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dipct.errors import GeometryError
from dipct.measurement.geometry import Geometry
from dipct.measurement.grid import Grid
from dipct.operator.base import LinearOperator, apply_linear
from dipct.operator.filtered_backprojection import (
    check_depth,
    check_real,
    detector_extension,
    like,
    projection_coefficients,
)
from dipct.operator.ramp_filter import Filter, filter_columns, ramp_response
from dipct.operator.view_weights import view_weights

_VOXELS_PER_STEP = 2**19


class FDK(LinearOperator):
    """Feldkamp, Davis and Kress: from projections ``(A, R, D)`` to the volume, 1/mm.

    Fan-beam filtered backprojection in which every detector row is treated as a fan in its own
    tilted plane. It is exact in the plane of the source and for what does not change along
    ``z``; far from that plane the attenuation comes out low. The source is taken to move near a
    circle about ``z``, with the detector columns across and the rows along the axis; small
    deviations are in the per-view vectors and are followed. Views are weighted as in
    :class:`FilteredBackProjection`; views of the same angle, also at different heights, are
    averaged.

    Voxel-driven with bilinear interpolation; the work goes by a few views and by slabs of slices,
    so that little more memory than for data and volume is needed. The operator follows the
    floating-point type and the device of its input.

    Attributes:
        geometry: the scan.
        grid: the volume's grid.
    """

    def __init__(
        self,
        geometry: Geometry,
        grid: Grid,
        *,
        filter: Filter = "ram-lak",
        frequency_scaling: float = 1.0,
    ) -> None:
        """Prepare weights and filter.

        Args:
            geometry: circular cone beam, or per-view vectors of a divergent beam near a circle.
            grid: a 3-D grid.
            filter: ``"ram-lak"``, ``"shepp-logan"``, ``"cosine"``, ``"hamming"`` or ``"hann"``.
            frequency_scaling: cut-off of the filter as a share of the Nyquist frequency.

        Raises:
            GeometryError: a planar scan, a parallel beam, or a source inside the grid.
            ConfigurationError: unknown filter or impossible cut-off.
        """
        vectors = geometry.vectors()
        if geometry.is_planar:
            raise GeometryError(
                f"FDK reconstructs volumes; this {geometry.kind} scan is planar. Use "
                "FilteredBackProjection."
            )
        if geometry.beam != "cone":
            raise GeometryError(
                "FDK needs a divergent beam; this scan has a parallel one. Reconstruct its "
                "detector rows slice by slice with FilteredBackProjection."
            )
        if grid.ndim != 3:
            raise GeometryError(f"FDK reconstructs a volume; got a grid of shape {grid.shape}.")
        _, self._n_rows, n_columns = geometry.projection_shape
        self.geometry, self.grid = geometry, grid
        self.domain_shape, self.range_shape = geometry.projection_shape, grid.image_shape
        column, row, depth = projection_coefficients(vectors, geometry.detector_shape, "cone")
        check_depth(depth, grid)
        self._weights = view_weights(vectors, n_columns, geometry.beam)
        self._extension = detector_extension(vectors, column, depth, n_columns, geometry.beam)
        self._n_filtered = n_columns + sum(self._extension)
        self._response = ramp_response(self._n_filtered, filter, frequency_scaling)
        self._coefficients = np.stack([column + self._extension[0] * depth, row, depth], 1)

    def _apply(self, x: Tensor) -> Tensor:
        check_real(x, self)
        return apply_linear(x, self._reconstruct, self._project)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        check_real(y, self)
        return apply_linear(y, self._project, self._reconstruct)

    def _reconstruct(self, x: Tensor) -> Tensor:
        projections = x.reshape(-1, *self.domain_shape)
        batch = len(projections)
        response = like(self._response, x)
        volume = x.new_zeros((batch, *self.grid.shape))
        for views in self._view_chunks(batch):
            weighted = projections[:, views] * self._view_weights(views, x)
            extended = torch.nn.functional.pad(weighted, self._extension)
            # Positions off the detector are moved onto the zeros beside it.
            filtered = torch.nn.functional.pad(filter_columns(extended, response), (1, 2, 1, 2))
            flat = filtered.flatten(1)
            for slab in self._slabs(batch):
                out = volume[:, slab]
                for index, share in self._neighbours(views, slab, x):
                    values = flat.index_select(1, index.flatten()).view(-1, *index.shape)
                    out += values.mul_(share).sum(1)
        return volume.reshape(*x.shape[:-3], *self.range_shape)

    def _project(self, y: Tensor) -> Tensor:
        """The exact transpose of :meth:`_reconstruct`."""
        _, n_rows, n_columns = self.domain_shape
        volume = y.reshape(-1, *self.grid.shape)
        batch = len(volume)
        response = like(self._response, y)
        projections = y.new_empty((batch, *self.domain_shape))
        for views in self._view_chunks(batch):
            n_views = views.stop - views.start
            padded = y.new_zeros((batch, n_views, n_rows + 3, self._n_filtered + 3))
            flat = padded.view(batch, -1)
            for slab in self._slabs(batch):
                values = volume[:, None, slab]
                for index, share in self._neighbours(views, slab, y):
                    flat.index_add_(1, index.flatten(), (values * share).flatten(1))
            filtered = filter_columns(padded[..., 1:-2, 1:-2], response)
            kept = filtered.narrow(-1, self._extension[0], n_columns)
            projections[:, views] = kept * self._view_weights(views, y)
        return projections.reshape(*y.shape[:-4], *self.domain_shape)

    def _view_weights(self, views: slice, like_: Tensor) -> Tensor:
        """Weights before the filter, with the cosine of each ray's slope, [V R D]."""
        directions = self.geometry.rays(views).directions
        in_plane = np.linalg.norm(directions[..., :2], axis=-1)
        cosine = in_plane / np.linalg.norm(directions, axis=-1)
        return like(self._weights[views, None] * cosine, like_)

    def _view_chunks(self, batch: int) -> list[slice]:
        """Several views at a time where the volume is small."""
        step = max(1, _VOXELS_PER_STEP // max(1, batch * self.grid.n_pixels))
        return _split(self.domain_shape[0], step)

    def _slabs(self, batch: int) -> list[slice]:
        n_z, h, w = self.grid.shape
        return _split(n_z, max(1, _VOXELS_PER_STEP // max(1, batch * h * w)))

    def _neighbours(
        self, views: slice, slab: slice, like_: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The four cells around each voxel's projection with their share of the voxel's value.

        The indices are into the flattened projections of these views, padded by one cell before
        and two after each detector axis; both are [V Z H W].
        """
        z, y, x = (like(axis, like_) for axis in self.grid.axes())
        coefficients = self._coefficients[views]
        n_rows, n_columns = self._n_rows + 3, self._n_filtered + 3
        u, v, depth = (_affine(coefficients[:, i], x, y, z[slab]) for i in range(3))
        inverse = depth.reciprocal()
        u = (u * inverse).clamp_(-1, self._n_filtered)
        v = (v * inverse).clamp_(-1, self._n_rows)
        u_low, v_low = u.floor(), v.floor()
        u_share, v_share = u - u_low, v - v_low
        first = torch.arange(len(coefficients), device=x.device) * (n_rows * n_columns)
        index = (v_low.long() + 1) * n_columns + (u_low.long() + 1 + first[:, None, None, None])
        weight = inverse.square()
        upper = v_share * weight
        for add, part in ((0, weight - upper), (n_columns, upper)):
            right = part * u_share
            yield index + add, part - right
            yield index + (add + 1), right


def _affine(coefficients: np.ndarray, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Affine functions [V 4] on a slab, [V Z H W], or [V 1 H W] where ``z`` does not matter."""
    c = like(coefficients, x)[:, :, None, None, None]
    plane = (c[:, 0] + c[:, 2] * y[:, None]) + c[:, 1] * x
    return plane + c[:, 3] * z[:, None, None] if np.any(coefficients[:, 3]) else plane


def _split(n: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, n)) for first in range(0, n, step)]
