"""One reconstruction: image, error, data fit and progress."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dipct.figures.history import draw_history, history_groups
from dipct.figures.image import (
    ERROR_MAP,
    IMAGE_MAP,
    Section,
    central_sections,
    display_range,
    draw_section,
    symmetric_range,
)
from dipct.figures.labels import metrics_text, shape_text
from dipct.figures.layout import finish, panel_figure, set_title
from dipct.figures.reconstruction import Reconstruction
from dipct.figures.sinogram import (
    central_row_text,
    central_sinogram,
    draw_sinogram,
)

_COLUMNS = 3


def run_figure(run: Reconstruction, *, limits: tuple[float, float] | None = None) -> Figure:
    """Draw a reconstruction, its error where the truth is known, its data fit and its history.

    A volume is shown by its three central slices.

    Args:
        run: the reconstruction.
        limits: attenuation shown as black and as white, 1/length_unit; by default the range of
            the truth, or of the image where there is none, without outliers.

    Raises:
        DataError: the records of the history differ in length.
    """
    scan = run.scan
    unit = f"1/{scan.length_unit}"
    shown = limits or display_range(run.image if scan.truth is None else scan.truth)
    groups = history_groups(run.history)
    pictures = [("reconstruction", run.image, shown, f"attenuation [{unit}]", IMAGE_MAP)]
    if scan.truth is not None:
        error = run.image - scan.truth
        pictures += [
            ("truth", scan.truth, shown, f"attenuation [{unit}]", IMAGE_MAP),
            ("reconstruction - truth", error, symmetric_range(error), f"error [{unit}]", ERROR_MAP),
        ]
    n_sections = 1 if scan.grid.ndim == 2 else 3
    n_panels = len(pictures) * n_sections + 2 + len(groups)
    figure, axes = panel_figure(n_panels, 2 if n_panels == 4 else _COLUMNS)
    panels = iter(axes)
    for title, image, values, label, colour_map in pictures:
        for section in central_sections(image, scan.grid, scan.length_unit):
            panel = next(panels)
            draw_section(
                panel, section, scan.length_unit, limits=values, label=label, colour_map=colour_map
            )
            set_title(panel, _title(title, section))
    _draw_data(next(panels), next(panels), run)
    for group in groups:
        draw_history(next(panels), run.history, group)
    return finish(figure, title_lines(run))


def title_lines(run: Reconstruction) -> list[str]:
    """What was done, how good it is, from what, and what it is compared with."""
    scan = run.scan
    iterations = f"{run.iterations} iterations" if run.iterations else "no iterations"
    kind = "voxels" if scan.grid.ndim == 3 else "pixels"
    return [
        ", ".join([run.method, *metrics_text(run.metrics)]),
        f"{scan.geometry.n_views} views, {shape_text(scan.grid.shape)} {kind} of "
        f"{scan.grid.pixel_size:.4g} {scan.length_unit}; {iterations}, status: {run.status}",
        f"truth: {scan.truth_source}" if scan.truth is not None else "truth: not known",
    ]


def _draw_data(data: Axes, residual: Axes, run: Reconstruction) -> None:
    scan = run.scan
    row = central_row_text(scan.geometry)
    measured = central_sinogram(scan.projections)
    difference = central_sinogram(run.projections) - measured
    draw_sinogram(data, measured, scan.geometry.angles, limits=display_range(measured))
    set_title(data, "\n".join(filter(None, ["measured sinogram", row])))
    draw_sinogram(
        residual,
        difference,
        scan.geometry.angles,
        limits=symmetric_range(difference),
        label="residual [dimensionless]",
        colour_map=ERROR_MAP,
    )
    set_title(residual, "\n".join(filter(None, ["residual: projected - measured", row])))


def _title(title: str, section: Section) -> str:
    return f"{title}\n{section.position}" if section.position else title
