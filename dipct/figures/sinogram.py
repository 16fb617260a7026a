"""Sinograms and single projections."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from dipct.figures.image import SINOGRAM_MAP, draw_colorbar
from dipct.figures.layout import FONT_SIZE
from dipct.measurement.geometry import Geometry

LINE_INTEGRAL = "line integral [dimensionless]"
"""Label of the colour bar."""

_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 45, 60, 90, 180, 360)


def central_sinogram(projections: np.ndarray) -> np.ndarray:
    """The sinogram of a planar scan, or that of the central detector row.

    Args:
        projections: [A D] or [A R D].

    Returns:
        [A D].
    """
    return projections if projections.ndim == 2 else projections[:, projections.shape[1] // 2]


def central_row_text(geometry: Geometry) -> str:
    """Which detector row :func:`central_sinogram` shows; empty for a planar scan."""
    if geometry.is_planar:
        return ""
    n_rows = geometry.detector_shape[0]
    return f"row {n_rows // 2} of {n_rows}"


def draw_sinogram(
    axes: Axes,
    sinogram: np.ndarray,
    angles: np.ndarray,
    *,
    limits: tuple[float, float],
    label: str = LINE_INTEGRAL,
    colour_map: str = SINOGRAM_MAP,
) -> AxesImage:
    """Draw a sinogram: the first view at the top, detector columns from left to right.

    Args:
        axes: where.
        sinogram: [A D].
        angles: of the views, [A], rad.
        limits: values shown as the first and the last colour.
        label: of the colour bar, with units.
        colour_map: name of matplotlib's colour map.
    """
    shown = axes.imshow(
        sinogram, cmap=colour_map, vmin=limits[0], vmax=limits[1], aspect="auto", origin="upper"
    )
    positions, labels = _angle_ticks(np.rad2deg(angles))
    axes.set_yticks(positions, labels)
    axes.set_xlabel("detector column", fontsize=FONT_SIZE)
    axes.set_ylabel("view angle [degrees]", fontsize=FONT_SIZE)
    axes.tick_params(labelsize=FONT_SIZE - 1)
    draw_colorbar(axes, shown, label)
    return shown


def draw_projection(
    axes: Axes, projection: np.ndarray, geometry: Geometry, view: int, limits: tuple[float, float]
) -> AxesImage:
    """Draw one view of a scan with detector rows as seen from the source, ``z`` up.

    Args:
        axes: where.
        projection: [R D].
        geometry: of the scan.
        view: number of the view.
        limits: values shown as the first and the last colour.
    """
    vectors = geometry.vectors()[view]
    column_step, row_step = vectors[6:9], vectors[9:12]
    aspect = float(np.linalg.norm(row_step) / np.linalg.norm(column_step))
    shown = axes.imshow(
        projection,
        cmap=SINOGRAM_MAP,
        vmin=limits[0],
        vmax=limits[1],
        aspect=aspect,
        origin="lower" if row_step[2] >= 0 else "upper",
    )
    axes.set_xlabel("detector column", fontsize=FONT_SIZE)
    axes.set_ylabel("detector row", fontsize=FONT_SIZE)
    axes.tick_params(labelsize=FONT_SIZE - 1)
    n_rows, n_columns = projection.shape
    draw_colorbar(axes, shown, LINE_INTEGRAL, height_over_width=aspect * n_rows / n_columns)
    return shown


def _angle_ticks(degrees: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Rows to mark, possibly fractional, and the angles there."""
    n = len(degrees)
    steps = np.diff(degrees)
    if n > 1 and (np.all(steps > 0) or np.all(steps < 0)):
        low, high = degrees.min(), degrees.max()
        step = next((s for s in _STEPS if (high - low) / s <= 6), _STEPS[-1])
        first, last = np.ceil(low / step - 1e-6), np.floor(high / step + 1e-6)
        marks = np.arange(first, last + 1) * step
        if len(marks) >= 2:
            order = np.argsort(degrees)
            rows = np.interp(marks, degrees[order], np.arange(n)[order])
            # -0 is no angle.
            return rows, [f"{mark + 0.0:.4g}" for mark in marks]
    rows = np.unique(np.linspace(0, n - 1, min(n, 7)).round().astype(int))
    return rows, [f"{degrees[row]:.4g}" for row in rows]
