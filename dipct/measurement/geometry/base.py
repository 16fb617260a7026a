"""What every scan geometry can do: give its rays, and change in step with the data."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self

import numpy as np

from dipct.errors import GeometryError

Beam = Literal["parallel", "cone"]


@dataclass(frozen=True)
class Rays:
    """Straight lines ``origin + t * direction`` through the scanned object.

    Attributes:
        origins: a point on each ray, [V *detector_shape 3], mm. For a divergent beam it is the
            source.
        directions: from the origin towards the detector pixel, [V *detector_shape 3]; not
            normalised.
    """

    origins: np.ndarray
    directions: np.ndarray


class Geometry(ABC):
    """Where source and detector are in every view.

    World coordinates are right-handed, in mm (or in the scan's own length unit), with the
    rotation axis along ``z``. A planar geometry lies in ``z = 0`` and measures images; the
    others measure volumes. At angle ``theta`` a divergent source is at ``source_origin *
    (sin theta, -cos theta, 0)`` (a parallel beam's rays run along that direction), and the
    detector columns advance along ``(cos theta, sin theta, 0)``: as the angle grows, the scanner
    turns counter-clockwise seen from ``+z``. These are ASTRA's conventions.
    """

    kind: ClassVar[str]
    """Name of the geometry in files and messages."""

    beam: Beam
    """``"parallel"`` or ``"cone"`` (divergent; a planar divergent beam is a fan beam)."""

    angles: np.ndarray
    """Angle of each view, [A], rad."""

    @property
    @abstractmethod
    def n_views(self) -> int:
        """Number of views A."""

    @property
    @abstractmethod
    def detector_shape(self) -> tuple[int, ...]:
        """``(D,)`` of a planar geometry, ``(R, D)`` (rows, columns) of the others."""

    @abstractmethod
    def vectors(self) -> np.ndarray:
        """The general per-view form.

        Returns:
            [A 12], mm: source position (parallel beam: unit ray direction), detector centre,
            step from one detector column to the next (u), step from one detector row to the
            next (v). A planar geometry has a unit v step. This is ASTRA's ``cone_vec``
            (``parallel3d_vec``).
        """

    @abstractmethod
    def select_views(self, indices: np.ndarray) -> Self:
        """Keep the views with the given indices, in the given order."""

    @abstractmethod
    def bin_detector(self, factor: int) -> Self:
        """Join ``factor`` neighbouring detector cells to one, along columns and rows.

        Cells left over at the end are dropped.
        """

    @abstractmethod
    def crop_detector(self, first: int, last: int) -> Self:
        """Keep the detector columns ``first`` to ``last - 1``."""

    @property
    def projection_shape(self) -> tuple[int, ...]:
        """Shape of a sinogram or stack of projections: ``(A, D)`` or ``(A, R, D)``."""
        return (self.n_views, *self.detector_shape)

    @property
    def is_planar(self) -> bool:
        """Whether the geometry measures an image (one detector line), not a volume."""
        return len(self.detector_shape) == 1

    @property
    def z_bounds(self) -> tuple[float, float] | None:
        """Range of ``z`` outside which rays meet nothing, mm; None where there is none."""
        return None

    def rays(self, views: slice | np.ndarray | None = None) -> Rays:
        """The rays from source to detector-cell centres.

        Args:
            views: which views; all of them by default.
        """
        vectors = self.vectors()[slice(None) if views is None else views]
        n_rows = 1 if self.is_planar else self.detector_shape[0]
        u = np.arange(self.detector_shape[-1]) - (self.detector_shape[-1] - 1) / 2
        v = np.arange(n_rows) - (n_rows - 1) / 2
        centre, u_step, v_step = (vectors[:, None, None, i : i + 3] for i in (3, 6, 9))
        cells = centre + u[None, None, :, None] * u_step + v[None, :, None, None] * v_step
        first = np.broadcast_to(vectors[:, None, None, :3], cells.shape)
        if self.beam == "parallel":
            origins, directions = cells, first
        else:
            origins, directions = first, cells - first
        if self.is_planar:
            origins, directions = origins[:, 0], directions[:, 0]
        return Rays(origins, directions)

    def to_dict(self) -> dict[str, Any]:
        """The fields of the geometry as plain values and arrays, for files."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    def summary(self) -> dict[str, str]:
        """What a person wants to know of the geometry: label to text with units."""
        angles = np.rad2deg(self.angles)
        span = f"{self.n_views} views, {angles.min():.2f} to {angles.max():.2f} degrees"
        cells = " x ".join(str(n) for n in self.detector_shape)
        axes = "columns" if self.is_planar else "rows x columns"
        return {"geometry": self.kind, "views": span, "detector": f"{cells} {axes}"}


def check_angles(angles: Any) -> np.ndarray:
    """Validate view angles and return them as float64, [A], rad."""
    array = np.array(angles, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.all(np.isfinite(array)):
        raise GeometryError(
            "angles must be a list of at least one finite number, in radians; got shape "
            f"{array.shape}."
        )
    if np.ptp(array) > 4 * np.pi + 1e-6:
        raise GeometryError(
            f"angles span {np.ptp(array):.1f}, more than two turns (12.57 rad): they look like "
            "degrees. Convert them with numpy.deg2rad."
        )
    array.setflags(write=False)
    return array


def check_positive(**values: float) -> None:
    """Raise a :class:`GeometryError` for the first value that is not positive and finite."""
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise GeometryError(f"{name} must be positive; got {value}.")


def check_counts(**values: int) -> None:
    """Raise a :class:`GeometryError` for the first value that is not a positive integer."""
    for name, value in values.items():
        if not (np.isfinite(value) and value >= 1 and int(value) == value):
            raise GeometryError(f"{name} must be a positive integer; got {value}.")


def check_finite(**values: float) -> None:
    """Raise a :class:`GeometryError` for the first value that is not finite."""
    for name, value in values.items():
        if not np.isfinite(value):
            raise GeometryError(f"{name} must be finite; got {value}.")


def check_factor(factor: int, n: int) -> None:
    """Raise a :class:`GeometryError` unless ``n`` cells can be binned by ``factor``."""
    if factor < 1 or factor > n or int(factor) != factor:
        raise GeometryError(
            f"Detector binning needs a whole factor from 1 to the number of cells, {n}; got "
            f"{factor}."
        )


def check_columns(first: int, last: int, n: int) -> None:
    """Raise a :class:`GeometryError` unless ``first..last-1`` are columns of ``n``."""
    if not 0 <= first < last <= n:
        raise GeometryError(
            f"Detector columns to keep must satisfy 0 <= first < last <= {n}; got "
            f"first={first}, last={last}."
        )


def kept_centre(first: float, step: int, n_kept: int, n: int) -> float:
    """Centre of kept cells relative to the old centre, in old cells.

    Args:
        first: index of the first old cell kept.
        step: old cells per new cell.
        n_kept: number of new cells.
        n: number of old cells.
    """
    return first + (step * n_kept - 1) / 2 - (n - 1) / 2
