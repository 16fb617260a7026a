"""The geometry of a scan as seen from above."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Circle, Polygon, Rectangle
from matplotlib.ticker import MaxNLocator

from dipct.figures.layout import FONT_SIZE
from dipct.measurement.geometry import Geometry, MatrixGeometry
from dipct.measurement.grid import Grid

FIRST_VIEW, OTHER_VIEWS, GRID_COLOUR, SEEN_COLOUR = "#D55E00", "0.6", "#0072B2", "#009E73"

_MOST_DETECTORS = 12
_ARROW_SPAN = np.deg2rad(40)


def draw_geometry(axes: Axes, geometry: Geometry, grid: Grid, unit: str) -> None:
    """Draw source, detector and grid to scale, seen from ``+z``, with the first view in colour.

    Args:
        axes: where.
        geometry: of the scan.
        grid: its image grid.
        unit: of lengths, ``"mm"`` or ``"pixel"``.
    """
    axes.set_aspect("equal", adjustable="datalim")
    _draw_grid(axes, grid)
    if isinstance(geometry, MatrixGeometry):
        axes.text(
            0.5,
            0.03,
            "known by its system matrix only:\nno positions of source and detector",
            transform=axes.transAxes,
            horizontalalignment="center",
            verticalalignment="bottom",
            fontsize=FONT_SIZE,
        )
        axes.margins(0.5)
    else:
        sources, first, last = _positions(geometry, grid)
        _draw_views(axes, geometry, sources, first, last)
        _draw_rotation(axes, geometry, sources)
        _draw_seen_by_all(axes, geometry, unit)
        axes.margins(0.06)
    axes.set_xlabel(f"x [{unit}]", fontsize=FONT_SIZE)
    axes.set_ylabel(f"y [{unit}]", fontsize=FONT_SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(labelsize=FONT_SIZE - 1)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        ncols=2,
        fontsize=FONT_SIZE - 1,
        frameon=False,
    )


def seen_radius(geometry: Geometry) -> float | None:
    """Radius of the disc about the rotation axis that every view of a circular scan sees, mm.

    Args:
        geometry: any with known positions.

    Returns:
        None where the views see discs of different radii, so that the scan is not circular, or
        where some view misses the axis.
    """
    vectors = geometry.vectors()
    half = geometry.detector_shape[-1] / 2
    distances = []
    for sign in (-1, 1):
        edge = vectors[:, 3:5] + sign * half * vectors[:, 6:8]
        if geometry.beam == "parallel":
            point, direction = edge, vectors[:, 0:2]
        else:
            point, direction = vectors[:, 0:2], edge - vectors[:, 0:2]
        length = np.linalg.norm(direction, axis=1)
        if np.any(length == 0):
            return None
        # Signed distance of the axis from the line, positive on one side of it.
        distances.append((direction[:, 1] * point[:, 0] - direction[:, 0] * point[:, 1]) / length)
    radii = np.minimum(*np.abs(distances))
    if np.any(distances[0] * distances[1] >= 0) or np.ptp(radii) > 0.01 * radii.mean():
        return None
    return float(radii.min())


def _draw_grid(axes: Axes, grid: Grid) -> None:
    low, size = grid.lower[:2], grid.size[:2]
    axes.add_patch(
        Rectangle(
            (float(low[0]), float(low[1])),
            *size,
            fill=False,
            edgecolor=GRID_COLOUR,
            linewidth=1.5,
            label="image grid",
            zorder=4,
        )
    )


def _positions(geometry: Geometry, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source and the ends of the detector line of each view, from above, each [A 2].

    A parallel beam has neither; it is drawn as coming from outside the grid and the detector's
    reach, and as falling on a detector on the other side.
    """
    vectors = geometry.vectors()
    half = geometry.detector_shape[-1] / 2
    sources, centres, steps = vectors[:, 0:2], vectors[:, 3:5], vectors[:, 6:8]
    if geometry.beam == "parallel":
        length = np.linalg.norm(sources, axis=1, keepdims=True)
        towards = np.divide(sources, length, out=np.zeros_like(sources), where=length > 0)
        reach = np.abs(np.stack([grid.lower[:2], grid.upper[:2]])).max()
        distance = 1.3 * max(reach * np.sqrt(2), half * np.linalg.norm(steps, axis=1).max())
        across = centres - np.sum(centres * towards, axis=1, keepdims=True) * towards
        sources, centres = across - distance * towards, across + distance * towards
    return sources, centres - half * steps, centres + half * steps


def _draw_views(
    axes: Axes, geometry: Geometry, sources: np.ndarray, first: np.ndarray, last: np.ndarray
) -> None:
    n = len(sources)
    parallel = geometry.beam == "parallel"
    shown = np.unique(np.linspace(0, n, min(n, _MOST_DETECTORS), endpoint=False).astype(int))[1:]
    lines = LineCollection(
        list(np.stack([first[shown], last[shown]], 1)),
        colors=OTHER_VIEWS,
        linewidths=0.7,
        alpha=0.6,
    )
    axes.add_collection(lines)
    axes.plot(
        *sources.T,
        linestyle="",
        marker=".",
        markersize=3,
        color=OTHER_VIEWS,
        label="where the beam comes from" if parallel else "source, all views",
    )
    along = last[0] - first[0]
    starts = (sources[0] - along / 2, sources[0] + along / 2) if parallel else (sources[0],) * 2
    axes.add_patch(
        Polygon(
            np.array([starts[0], first[0], last[0], starts[1]]),
            facecolor=FIRST_VIEW,
            alpha=0.15,
            linewidth=0,
        )
    )
    axes.plot(
        *np.stack([first[0], last[0]]).T, color=FIRST_VIEW, linewidth=2.5, label="detector, view 0"
    )
    axes.plot(*first[0], marker="s", markersize=5, linestyle="", color=FIRST_VIEW, label="column 0")
    if parallel:
        for fraction in (0.2, 0.5, 0.8):
            start = starts[0] + fraction * (starts[1] - starts[0])
            end = first[0] + fraction * along
            _draw_arrow(axes, start, start + 0.25 * (end - start), FIRST_VIEW)
    else:
        axes.plot(
            *sources[0],
            marker="*",
            markersize=11,
            linestyle="",
            color=FIRST_VIEW,
            label="source, view 0",
            zorder=5,
        )


def _draw_rotation(axes: Axes, geometry: Geometry, sources: np.ndarray) -> None:
    """An arrow from the first source along the way the scanner turns, if it turns one way."""
    steps = np.diff(geometry.angles)
    if steps.size == 0 or not (np.all(steps > 0) or np.all(steps < 0)):
        return
    turn = np.sign(steps[0]) * np.linspace(0.15, 1.0, 30) * _ARROW_SPAN
    x, y = 1.1 * sources[0]
    path = np.stack(
        [x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1
    )
    axes.plot(*path.T, color=FIRST_VIEW, linewidth=1.5)
    _draw_arrow(axes, path[-2], path[-1], FIRST_VIEW)


def _draw_seen_by_all(axes: Axes, geometry: Geometry, unit: str) -> None:
    radius = seen_radius(geometry)
    if radius is None:
        return
    plural = "s" if unit == "pixel" else ""
    axes.add_patch(
        Circle(
            (0, 0),
            radius,
            fill=False,
            edgecolor=SEEN_COLOUR,
            linestyle="--",
            linewidth=1.2,
            label=f"field of view, radius {radius:.4g} {unit}{plural}",
            zorder=4,
        )
    )


def _draw_arrow(axes: Axes, start: np.ndarray, end: np.ndarray, colour: str) -> None:
    axes.annotate(
        "",
        xy=tuple(end),
        xytext=tuple(start),
        arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.2},
    )
