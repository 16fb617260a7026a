"""The general scan: source, detector and its axes given freely for every view."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from dipct.errors import GeometryError
from dipct.measurement.geometry.base import (
    Beam,
    Geometry,
    check_columns,
    check_counts,
    check_factor,
    kept_centre,
)


@dataclass(frozen=True, eq=False)
class VectorGeometry(Geometry):
    """Twelve numbers a view, as in ASTRA's ``cone_vec`` and ``parallel3d_vec``.

    Attributes:
        view_vectors: [A 12], mm: source position (parallel beam: ray direction), detector
            centre, column step u, row step v; each as x, y, z.
        n_rows: number of detector rows R.
        n_columns: number of detector columns D.
        beam: ``"cone"`` or ``"parallel"``.
        planar: whether the scan lies in ``z = 0`` and measures an image; needs one row.
    """

    kind: ClassVar[str] = "vectors"

    view_vectors: np.ndarray
    n_rows: int
    n_columns: int
    beam: Beam = "cone"
    planar: bool = False

    def __post_init__(self) -> None:
        """Validate the fields."""
        object.__setattr__(self, "view_vectors", check_vectors(self.view_vectors))
        check_counts(n_rows=self.n_rows, n_columns=self.n_columns)
        if self.beam not in ("cone", "parallel"):
            raise GeometryError(f"beam must be 'cone' or 'parallel'; got {self.beam!r}.")
        if self.planar and self.n_rows != 1:
            raise GeometryError(f"A planar geometry has one detector row; got {self.n_rows}.")
        if self.planar and np.any(self.view_vectors[:, [2, 5, 8]] != 0):
            raise GeometryError(
                "A planar geometry has z = 0 in source, detector centre and column step; use "
                "planar=False for a scan in space."
            )

    @property
    def n_views(self) -> int:
        """Number of views A."""
        return len(self.view_vectors)

    @property
    def detector_shape(self) -> tuple[int, ...]:
        """``(D,)`` if planar, else ``(R, D)``."""
        return (self.n_columns,) if self.planar else (self.n_rows, self.n_columns)

    @property
    def angles(self) -> np.ndarray:  # type: ignore[override]
        """Angle of the source (parallel beam: ray direction) about the z axis, [A], rad."""
        return angles_of_vectors(self.view_vectors)

    def vectors(self) -> np.ndarray:
        """See :meth:`Geometry.vectors`."""
        return self.view_vectors

    def select_views(self, indices: np.ndarray) -> "VectorGeometry":
        """Keep the views with the given indices, in the given order."""
        return replace(self, view_vectors=self.view_vectors[indices])

    def bin_detector(self, factor: int) -> "VectorGeometry":
        """Join neighbouring cells to one, along columns, and along rows unless planar."""
        check_factor(factor, self.n_columns)
        row_factor = 1 if self.planar else factor
        check_factor(row_factor, self.n_rows)
        return self._resampled(
            (0, factor, self.n_columns // factor), (0, row_factor, self.n_rows // row_factor)
        )

    def crop_detector(self, first: int, last: int) -> "VectorGeometry":
        """Keep the detector columns ``first`` to ``last - 1``."""
        check_columns(first, last, self.n_columns)
        return self._resampled((first, 1, last - first), (0, 1, self.n_rows))

    def crop_rows(self, first: int, last: int) -> "VectorGeometry":
        """Keep the detector rows ``first`` to ``last - 1``."""
        check_columns(first, last, self.n_rows)
        return self._resampled((0, 1, self.n_columns), (first, 1, last - first))

    def decimate_columns(self, step: int) -> "VectorGeometry":
        """Keep one column in ``step``, unbinned, those :func:`decimated_columns` names."""
        kept = decimated_columns(self.n_columns, step)
        n = len(range(self.n_columns)[kept])
        # A kept cell stands in the middle of the ``step`` cells it replaces.
        return self._resampled((kept.start - (step - 1) / 2, step, n), (0, 1, self.n_rows))

    def _resampled(
        self, columns: tuple[float, int, int], rows: tuple[float, int, int]
    ) -> "VectorGeometry":
        """Cells given as (first, old cells per new cell, number of new cells) along each axis."""
        vectors = self.view_vectors.copy()
        u_step, v_step = vectors[:, 6:9].copy(), vectors[:, 9:12].copy()
        vectors[:, 3:6] += kept_centre(*columns, self.n_columns) * u_step
        vectors[:, 3:6] += kept_centre(*rows, self.n_rows) * v_step
        vectors[:, 6:9] *= columns[1]
        vectors[:, 9:12] *= rows[1]
        return replace(self, view_vectors=vectors, n_columns=columns[2], n_rows=rows[2])


def decimated_columns(n_columns: int, step: int) -> slice:
    """Every ``step``-th of ``n_columns`` columns, as many as fit, around the middle."""
    check_factor(step, n_columns)
    n = (n_columns - 1) // step + 1
    first = (n_columns - ((n - 1) * step + 1)) // 2
    return slice(first, first + (n - 1) * step + 1, step)


def check_vectors(vectors: np.ndarray) -> np.ndarray:
    """Validate per-view vectors and return them as float64, [A 12]."""
    array = np.array(vectors, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 12 or len(array) == 0:
        raise GeometryError(
            "View vectors must have shape (A, 12): source, detector centre, u step and v step, "
            f"each x, y, z; got {array.shape}."
        )
    if not np.all(np.isfinite(array)):
        view = int(np.argmax(~np.isfinite(array).all(1)))
        raise GeometryError(f"The vectors of view {view} are not finite; correct or drop it.")
    normals = np.cross(array[:, 6:9], array[:, 9:12])
    if np.any(np.linalg.norm(normals, axis=1) == 0):
        raise GeometryError("The u and v steps of each view must not be parallel or zero.")
    array.setflags(write=False)
    return array


def angles_of_vectors(vectors: np.ndarray) -> np.ndarray:
    """Angle about the z axis of each view's source or ray direction, unwrapped, [A], rad."""
    return np.unwrap(np.arctan2(vectors[:, 0], -vectors[:, 1]))
