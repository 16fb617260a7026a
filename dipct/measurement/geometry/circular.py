"""Circular scans: parallel beam, flat-detector fan beam and cone beam."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from dipct.measurement.geometry.base import (
    Beam,
    Geometry,
    check_angles,
    check_columns,
    check_counts,
    check_factor,
    check_finite,
    check_positive,
    kept_centre,
)


def _in_plane(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors from the axis to the source side and along the columns, both [A 3]."""
    sin, cos, zero = np.sin(angles), np.cos(angles), np.zeros_like(angles)
    return np.stack([sin, -cos, zero], 1), np.stack([cos, sin, zero], 1)


@dataclass(frozen=True, eq=False)
class ParallelGeometry(Geometry):
    """Planar parallel beam.

    Attributes:
        angles: angle of each view, [A], rad.
        n_columns: number of detector columns D.
        column_spacing: distance between column centres, mm.
        column_offset: shift of the detector centre along its columns, mm. The rotation axis
            is projected to column ``(D - 1) / 2 - column_offset / column_spacing``.
    """

    kind: ClassVar[str] = "parallel"
    beam: ClassVar[Beam] = "parallel"  # type: ignore[misc]

    angles: np.ndarray  # type: ignore[assignment]
    n_columns: int
    column_spacing: float = 1.0
    column_offset: float = 0.0

    def __post_init__(self) -> None:
        """Validate the fields."""
        object.__setattr__(self, "angles", check_angles(self.angles))
        check_counts(n_columns=self.n_columns)
        check_positive(column_spacing=self.column_spacing)
        check_finite(column_offset=self.column_offset)

    @property
    def n_views(self) -> int:
        """Number of views A."""
        return len(self.angles)

    @property
    def detector_shape(self) -> tuple[int, ...]:
        """``(D,)``."""
        return (self.n_columns,)

    def vectors(self) -> np.ndarray:
        """See :meth:`Geometry.vectors`."""
        source_side, along = _in_plane(self.angles)
        v_step = np.broadcast_to([0.0, 0.0, 1.0], along.shape)
        centre = self.column_offset * along
        return np.concatenate([source_side, centre, self.column_spacing * along, v_step], 1)

    def select_views(self, indices: np.ndarray) -> "ParallelGeometry":
        """Keep the views with the given indices, in the given order."""
        return replace(self, angles=self.angles[indices])

    def bin_detector(self, factor: int) -> "ParallelGeometry":
        """Join ``factor`` neighbouring columns to one."""
        return replace(self, **_binned_columns(self, factor))

    def crop_detector(self, first: int, last: int) -> "ParallelGeometry":
        """Keep the detector columns ``first`` to ``last - 1``."""
        return replace(self, **_cropped_columns(self, first, last))

    def summary(self) -> dict[str, str]:
        """See :meth:`Geometry.summary`."""
        return super().summary() | {
            "column spacing": f"{self.column_spacing:g}",
            "axis column": f"{_axis_column(self):g}",
        }


@dataclass(frozen=True, eq=False)
class FanGeometry(Geometry):
    """Planar divergent beam with a flat detector, on a circle.

    Attributes:
        angles: angle of each view, [A], rad.
        n_columns: number of detector columns D.
        column_spacing: distance between column centres on the detector, mm.
        source_origin: distance from the source to the rotation axis, mm.
        origin_detector: distance from the rotation axis to the detector, mm.
        column_offset: shift of the detector centre along its columns, mm.
    """

    kind: ClassVar[str] = "fan"
    beam: ClassVar[Beam] = "cone"  # type: ignore[misc]

    angles: np.ndarray  # type: ignore[assignment]
    n_columns: int
    column_spacing: float
    source_origin: float
    origin_detector: float
    column_offset: float = 0.0

    def __post_init__(self) -> None:
        """Validate the fields."""
        object.__setattr__(self, "angles", check_angles(self.angles))
        check_counts(n_columns=self.n_columns)
        check_positive(
            column_spacing=self.column_spacing,
            source_origin=self.source_origin,
            source_detector=self.source_origin + self.origin_detector,
        )
        check_finite(column_offset=self.column_offset)

    @property
    def n_views(self) -> int:
        """Number of views A."""
        return len(self.angles)

    @property
    def detector_shape(self) -> tuple[int, ...]:
        """``(D,)``."""
        return (self.n_columns,)

    @property
    def magnification(self) -> float:
        """Size on the detector over size at the rotation axis."""
        return (self.source_origin + self.origin_detector) / self.source_origin

    def vectors(self) -> np.ndarray:
        """See :meth:`Geometry.vectors`."""
        source_side, along = _in_plane(self.angles)
        v_step = np.broadcast_to([0.0, 0.0, 1.0], along.shape)
        source = self.source_origin * source_side
        centre = -self.origin_detector * source_side + self.column_offset * along
        return np.concatenate([source, centre, self.column_spacing * along, v_step], 1)

    def select_views(self, indices: np.ndarray) -> "FanGeometry":
        """Keep the views with the given indices, in the given order."""
        return replace(self, angles=self.angles[indices])

    def bin_detector(self, factor: int) -> "FanGeometry":
        """Join ``factor`` neighbouring columns to one."""
        return replace(self, **_binned_columns(self, factor))

    def crop_detector(self, first: int, last: int) -> "FanGeometry":
        """Keep the detector columns ``first`` to ``last - 1``."""
        return replace(self, **_cropped_columns(self, first, last))

    def summary(self) -> dict[str, str]:
        """See :meth:`Geometry.summary`."""
        return super().summary() | {
            "column spacing": f"{self.column_spacing:g}",
            "axis column": f"{_axis_column(self):g}",
            "source to axis": f"{self.source_origin:g}",
            "axis to detector": f"{self.origin_detector:g}",
            "magnification": f"{self.magnification:.4f}",
        }


@dataclass(frozen=True, eq=False)
class ConeGeometry(Geometry):
    """Divergent beam with a flat detector on a circle, detector rows along ``z``.

    Attributes:
        angles: angle of each view, [A], rad.
        n_rows: number of detector rows R; row 0 is the lowest.
        n_columns: number of detector columns D.
        row_spacing: distance between row centres on the detector, mm.
        column_spacing: distance between column centres on the detector, mm.
        source_origin: distance from the source to the rotation axis, mm.
        origin_detector: distance from the rotation axis to the detector, mm.
        column_offset: shift of the detector centre along its columns, mm.
        row_offset: shift of the detector centre along ``z``, mm.
    """

    kind: ClassVar[str] = "cone"
    beam: ClassVar[Beam] = "cone"  # type: ignore[misc]

    angles: np.ndarray  # type: ignore[assignment]
    n_rows: int
    n_columns: int
    row_spacing: float
    column_spacing: float
    source_origin: float
    origin_detector: float
    column_offset: float = 0.0
    row_offset: float = 0.0

    def __post_init__(self) -> None:
        """Validate the fields."""
        object.__setattr__(self, "angles", check_angles(self.angles))
        check_counts(n_rows=self.n_rows, n_columns=self.n_columns)
        check_positive(
            row_spacing=self.row_spacing,
            column_spacing=self.column_spacing,
            source_origin=self.source_origin,
            source_detector=self.source_origin + self.origin_detector,
        )
        check_finite(column_offset=self.column_offset, row_offset=self.row_offset)

    @property
    def n_views(self) -> int:
        """Number of views A."""
        return len(self.angles)

    @property
    def detector_shape(self) -> tuple[int, ...]:
        """``(R, D)``."""
        return (self.n_rows, self.n_columns)

    @property
    def magnification(self) -> float:
        """Size on the detector over size at the rotation axis."""
        return (self.source_origin + self.origin_detector) / self.source_origin

    def vectors(self) -> np.ndarray:
        """See :meth:`Geometry.vectors`."""
        source_side, along = _in_plane(self.angles)
        up = np.broadcast_to([0.0, 0.0, 1.0], along.shape)
        source = self.source_origin * source_side
        centre = (
            -self.origin_detector * source_side + self.column_offset * along + self.row_offset * up
        )
        return np.concatenate(
            [source, centre, self.column_spacing * along, self.row_spacing * up], 1
        )

    def select_views(self, indices: np.ndarray) -> "ConeGeometry":
        """Keep the views with the given indices, in the given order."""
        return replace(self, angles=self.angles[indices])

    def bin_detector(self, factor: int) -> "ConeGeometry":
        """Join ``factor`` by ``factor`` neighbouring cells to one."""
        check_factor(factor, self.n_rows)
        n_rows = self.n_rows // factor
        shift = kept_centre(0, factor, n_rows, self.n_rows)
        return replace(
            self,
            **_binned_columns(self, factor),
            n_rows=n_rows,
            row_spacing=self.row_spacing * factor,
            row_offset=self.row_offset + shift * self.row_spacing,
        )

    def crop_detector(self, first: int, last: int) -> "ConeGeometry":
        """Keep the detector columns ``first`` to ``last - 1``."""
        return replace(self, **_cropped_columns(self, first, last))

    def summary(self) -> dict[str, str]:
        """See :meth:`Geometry.summary`."""
        return super().summary() | {
            "row, column spacing": f"{self.row_spacing:g}, {self.column_spacing:g}",
            "axis column": f"{_axis_column(self):g}",
            "source to axis": f"{self.source_origin:g}",
            "axis to detector": f"{self.origin_detector:g}",
            "magnification": f"{self.magnification:.4f}",
        }


Circular = ParallelGeometry | FanGeometry | ConeGeometry


def _axis_column(geometry: Circular) -> float:
    """Column, possibly fractional, to which the rotation axis is projected."""
    return (geometry.n_columns - 1) / 2 - geometry.column_offset / geometry.column_spacing


def _binned_columns(geometry: Circular, factor: int) -> dict[str, float]:
    check_factor(factor, geometry.n_columns)
    n = geometry.n_columns // factor
    shift = kept_centre(0, factor, n, geometry.n_columns)
    return {
        "n_columns": n,
        "column_spacing": geometry.column_spacing * factor,
        "column_offset": geometry.column_offset + shift * geometry.column_spacing,
    }


def _cropped_columns(geometry: Circular, first: int, last: int) -> dict[str, float]:
    check_columns(first, last, geometry.n_columns)
    shift = kept_centre(first, 1, last - first, geometry.n_columns)
    return {
        "n_columns": last - first,
        "column_offset": geometry.column_offset + shift * geometry.column_spacing,
    }
