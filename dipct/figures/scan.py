"""What a scan is: its data, its geometry and the facts about it."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dipct.figures.geometry import draw_geometry
from dipct.figures.image import central_sections, display_range, draw_section
from dipct.figures.labels import shape_text
from dipct.figures.layout import finish, panel_figure, set_title, write_text
from dipct.figures.sinogram import (
    central_row_text,
    central_sinogram,
    draw_projection,
    draw_sinogram,
)
from dipct.measurement.scan import Scan

_LINE_LENGTH = 50


def scan_figure(scan: Scan) -> Figure:
    """Draw a scan: sinogram, geometry from above, truth if known, and the facts.

    A scan in space shows its first view and the sinogram of its central detector row, and the
    three central slices of its truth.

    Args:
        scan: the scan.
    """
    n_truth = 0 if scan.truth is None else 1 if scan.grid.ndim == 2 else 3
    draw = [_draw_sinogram, _draw_geometry, _draw_facts]
    if not scan.geometry.is_planar:
        draw.insert(0, _draw_projection)
    n_panels = len(draw) + n_truth
    figure, axes = panel_figure(n_panels, 3 if n_panels == 3 else 2 if n_panels == 4 else 4)
    # A truth in one panel goes beside the sinogram, one in three into a row of its own.
    at = 1 if n_truth == 1 else len(draw)
    _draw_truth(axes[at : at + n_truth], scan)
    for panel, function in zip(axes[:at] + axes[at + n_truth :], draw, strict=True):
        function(panel, scan)
    return finish(figure, [f"{scan.geometry.kind} scan, {scan.geometry.n_views} views"])


def facts(scan: Scan) -> str:
    """What there is to know of a scan, one fact a line, in letters of equal width."""
    grid, unit = scan.grid, scan.length_unit
    kind = "voxels" if grid.ndim == 3 else "pixels"
    low, high = float(scan.projections.min()), float(scan.projections.max())
    entries = {
        **scan.geometry.summary(),
        "lengths": "in mm" if unit == "mm" else "in pixels",
        "image grid": f"{shape_text(grid.shape)} {kind} of {grid.pixel_size:.4g} {unit}",
        # Rows before columns, as in the line before.
        "grid size": f"{' x '.join(f'{s:.4g}' for s in reversed(grid.size))} {unit}",
    }
    if np.any(grid.center):
        entries["grid centre"] = f"{', '.join(f'{c:.4g}' for c in grid.center)} {unit}"
    entries |= {
        "attenuation": f"in 1/{unit}",
        "line integrals": f"{low:.3g} to {high:.3g}, dimensionless",
        "noise": "not known" if scan.noise is None else scan.noise.describe(),
        "truth": "none" if scan.truth is None else scan.truth_source,
    }
    lines = []
    indent = max(map(len, entries)) + 2
    for label, value in entries.items():
        parts = textwrap.wrap(str(value), _LINE_LENGTH - indent) or [""]
        lines += [f"{'' if i else label:<{indent}}{part}".rstrip() for i, part in enumerate(parts)]
    return "\n".join(lines)


def _draw_truth(axes: list[Axes], scan: Scan) -> None:
    if scan.truth is None:
        return
    limits = display_range(scan.truth)
    label = f"attenuation [1/{scan.length_unit}]"
    sections = central_sections(scan.truth, scan.grid, scan.length_unit)
    for panel, section in zip(axes, sections, strict=True):
        draw_section(panel, section, scan.length_unit, limits=limits, label=label)
        set_title(panel, ", ".join(filter(None, ["truth", section.position])))


def _draw_projection(axes: Axes, scan: Scan) -> None:
    limits = display_range(scan.projections)
    draw_projection(axes, scan.projections[0], scan.geometry, 0, limits)
    set_title(axes, "projection, view 0")


def _draw_sinogram(axes: Axes, scan: Scan) -> None:
    limits = display_range(scan.projections)
    draw_sinogram(axes, central_sinogram(scan.projections), scan.geometry.angles, limits=limits)
    set_title(axes, ", ".join(filter(None, ["sinogram", central_row_text(scan.geometry)])))


def _draw_geometry(axes: Axes, scan: Scan) -> None:
    draw_geometry(axes, scan.geometry, scan.grid, scan.length_unit)
    set_title(axes, "geometry from above")


def _draw_facts(axes: Axes, scan: Scan) -> None:
    write_text(axes, facts(scan))
