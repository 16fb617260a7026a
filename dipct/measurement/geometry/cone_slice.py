"""One slice of a cone-beam scan as an imaging problem of its own: the walnut rule."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from dipct.errors import GeometryError
from dipct.measurement.geometry.base import (
    Beam,
    Geometry,
    Rays,
    check_columns,
    check_counts,
    check_factor,
    check_positive,
)
from dipct.measurement.geometry.vectors import VectorGeometry, angles_of_vectors, check_vectors
from dipct.shapes import check_shape


@dataclass(frozen=True, eq=False)
class ConeSliceGeometry(Geometry):
    """A planar image seen by one detector row per view and column of a cone-beam scan.

    The object is taken as constant along ``z`` over a thin stack of slices and as empty outside
    it, so that a ray meets the image along its path inside the stack: the walnut rule of
    Barbano et al. (2022), https://arxiv.org/abs/2203.00479.

    Attributes:
        view_vectors: [A 12], mm, of the cone-beam scan; the detector centre is the one of all
            ``n_rows`` rows.
        n_rows: number of detector rows of the cone-beam scan.
        n_columns: number of detector columns D.
        rows: detector row used by each view and column, possibly fractional, [A D].
        stack_bounds: lower and upper ``z`` of the stack, mm.
    """

    kind: ClassVar[str] = "cone-slice"
    beam: ClassVar[Beam] = "cone"  # type: ignore[misc]

    view_vectors: np.ndarray
    n_rows: int
    n_columns: int
    rows: np.ndarray
    stack_bounds: tuple[float, float]

    def __post_init__(self) -> None:
        """Validate the fields."""
        object.__setattr__(self, "view_vectors", check_vectors(self.view_vectors))
        check_counts(n_rows=self.n_rows, n_columns=self.n_columns)
        rows = np.array(self.rows, dtype=np.float64)
        expected = (len(self.view_vectors), self.n_columns)
        if rows.shape != expected or not np.all((rows >= 0) & (rows <= self.n_rows - 1)):
            raise GeometryError(
                f"rows must be one detector row from 0 to {self.n_rows - 1} per view and column, "
                f"shape {expected}; got shape {rows.shape}."
            )
        rows.setflags(write=False)
        object.__setattr__(self, "rows", rows)
        low, high = (float(z) for z in self.stack_bounds)
        if not low < high:
            raise GeometryError(f"stack_bounds must be rising z values in mm; got {low}, {high}.")
        object.__setattr__(self, "stack_bounds", (low, high))

    @classmethod
    def from_scan(
        cls,
        geometry: VectorGeometry,
        *,
        voxel_size: float,
        slice_z: float,
        n_slices: int,
        volume_shape: tuple[int, int, int],
    ) -> "ConeSliceGeometry":
        """Choose for each view and column the row that sees the slice best.

        The row is the one whose ray has the largest share of its path through the scanned
        volume inside the slice of interest.

        Args:
            geometry: the cone-beam scan, already reduced to the rows to choose from.
            voxel_size: edge of a voxel, mm.
            slice_z: ``z`` of the centre of the slice of interest, mm.
            n_slices: slices in the stack, centred on ``z = 0``.
            volume_shape: voxels of the whole volume, ``(Z, H, W)``, centred on the origin.

        Raises:
            GeometryError: not a cone-beam scan, the slice is outside the stack, or no ray of
                the scan meets it.
        """
        check_positive(voxel_size=voxel_size)
        check_counts(n_slices=n_slices)
        if geometry.beam != "cone" or geometry.is_planar:
            raise GeometryError("A slice is chosen from a cone-beam scan with detector rows.")
        bound = n_slices * voxel_size / 2
        if not abs(slice_z) <= bound:
            raise GeometryError(
                f"The slice at z = {slice_z} mm lies outside the stack of {n_slices} slices, "
                f"which reaches to {bound:g} mm; use more slices."
            )
        depth, height, width = (n * voxel_size for n in volume_shape)
        half = np.array([width, height, depth]) / 2
        rays = geometry.rays()
        in_volume = box_lengths(rays, -half, half)
        low, high = slice_z - voxel_size / 2, slice_z + voxel_size / 2
        in_slice = box_lengths(
            rays, np.array([-half[0], -half[1], low]), np.array([half[0], half[1], high])
        )
        share = np.divide(in_slice, in_volume, out=np.zeros_like(in_slice), where=in_volume > 0)
        if not share.any():
            raise GeometryError(
                f"No ray of the scan meets the slice at z = {slice_z} mm; choose other detector "
                "rows or another slice."
            )
        return cls(
            geometry.vectors(),
            geometry.n_rows,
            geometry.n_columns,
            # Where several rows see nothing but the slice, rounding must not choose among them.
            share.round(9).argmax(axis=1),
            (-bound, bound),
        )

    @property
    def n_views(self) -> int:
        """Number of views A."""
        return len(self.view_vectors)

    @property
    def detector_shape(self) -> tuple[int, ...]:
        """``(D,)``."""
        return (self.n_columns,)

    @property
    def angles(self) -> np.ndarray:  # type: ignore[override]
        """Angle of the source about the z axis, [A], rad."""
        return angles_of_vectors(self.view_vectors)

    @property
    def z_bounds(self) -> tuple[float, float]:
        """Lower and upper ``z`` of the stack, mm."""
        return self.stack_bounds

    def vectors(self) -> np.ndarray:
        """Per-view vectors of the cone-beam scan, [A 12], mm."""
        return self.view_vectors

    def rays(self, views: slice | np.ndarray | None = None) -> Rays:
        """The one ray of each view and column, [V D 3]."""
        chosen = slice(None) if views is None else views
        vectors, rows = self.view_vectors[chosen], self.rows[chosen]
        u = np.arange(self.n_columns) - (self.n_columns - 1) / 2
        v = rows - (self.n_rows - 1) / 2
        source, centre, u_step, v_step = (vectors[:, None, i : i + 3] for i in (0, 3, 6, 9))
        cells = centre + u[None, :, None] * u_step + v[:, :, None] * v_step
        return Rays(np.broadcast_to(source, cells.shape), cells - source)

    def select_measured(self, projections: np.ndarray) -> np.ndarray:
        """Take the measured values of the chosen rows out of a stack of projections.

        Args:
            projections: [A R D].

        Returns:
            [A D]; fractional rows are interpolated.

        Raises:
            ShapeError: another shape.
        """
        check_shape(
            projections,
            "A R D",
            name="projections",
            A=self.n_views,
            R=self.n_rows,
            D=self.n_columns,
        )
        low = np.floor(self.rows).astype(int)
        high = np.minimum(low + 1, self.n_rows - 1)
        weight = self.rows - low
        view, column = np.ogrid[: self.n_views, : self.n_columns]
        chosen = projections[view, low, column]
        if np.any(weight > 0):
            chosen = (1 - weight) * chosen + weight * projections[view, high, column]
        return chosen

    def select_views(self, indices: np.ndarray) -> "ConeSliceGeometry":
        """Keep the views with the given indices, in the given order."""
        return replace(self, view_vectors=self.view_vectors[indices], rows=self.rows[indices])

    def bin_detector(self, factor: int) -> "ConeSliceGeometry":
        """Join ``factor`` neighbouring columns to one, at the mean of their rows."""
        check_factor(factor, self.n_columns)
        n = self.n_columns // factor
        rows = self.rows[:, : n * factor].reshape(self.n_views, n, factor).mean(2)
        binned = self._full_detector()._resampled((0, factor, n), (0, 1, self.n_rows))
        return replace(self, view_vectors=binned.view_vectors, n_columns=n, rows=rows)

    def crop_detector(self, first: int, last: int) -> "ConeSliceGeometry":
        """Keep the detector columns ``first`` to ``last - 1``."""
        check_columns(first, last, self.n_columns)
        cropped = self._full_detector().crop_detector(first, last)
        return replace(
            self,
            view_vectors=cropped.view_vectors,
            n_columns=last - first,
            rows=self.rows[:, first:last],
        )

    def summary(self) -> dict[str, Any]:
        """See :meth:`Geometry.summary`."""
        low, high = self.stack_bounds
        return super().summary() | {
            "detector rows used": f"{self.rows.min():g} to {self.rows.max():g} of {self.n_rows}",
            "stack": f"z from {low:g} to {high:g}",
        }

    def _full_detector(self) -> VectorGeometry:
        return VectorGeometry(self.view_vectors, self.n_rows, self.n_columns)


def box_lengths(rays: Rays, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Length of each ray inside an axis-parallel box, mm.

    Args:
        rays: lines, [... 3].
        lower: lowest corner of the box, [3], mm.
        upper: highest corner of the box, [3], mm.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        first = (lower - rays.origins) / rays.directions
        second = (upper - rays.origins) / rays.directions
    # A ray along a face gives 0/0; it is inside or outside for all t.
    parallel = rays.directions == 0
    inside = (rays.origins >= lower) & (rays.origins <= upper)
    enter = np.where(parallel, np.where(inside, -np.inf, np.inf), np.minimum(first, second))
    leave = np.where(parallel, np.where(inside, np.inf, -np.inf), np.maximum(first, second))
    span = np.maximum(leave.min(-1) - enter.max(-1), 0.0)
    return span * np.linalg.norm(rays.directions, axis=-1)
