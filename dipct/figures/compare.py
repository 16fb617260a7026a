"""Several reconstructions side by side."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dipct.errors import DataError
from dipct.figures.image import (
    ERROR_MAP,
    IMAGE_MAP,
    Section,
    central_sections,
    display_range,
    draw_colorbar,
    draw_section,
    symmetric_range,
)
from dipct.figures.labels import metrics_text
from dipct.figures.layout import FONT_SIZE, finish, new_figure, set_title
from dipct.figures.reconstruction import Reconstruction

_MOST_COLUMNS = 5
_CELL_WIDTH, _CELL_HEIGHT = 3.2, 3.3


@dataclass(frozen=True)
class _Entry:
    """One column: an image, and below it the difference from the reference."""

    title: str
    image: Section
    difference: Section | None
    difference_title: str


@dataclass(frozen=True)
class _Row:
    """How images side by side are drawn: one range, and one colour bar at the end."""

    unit: str
    limits: tuple[float, float]
    label: str
    colour_map: str
    values: list[np.ndarray]

    def draw(
        self, axes: Sequence[Axes], sections: Sequence[Section | None], texts: Sequence[str]
    ) -> None:
        """Draw sections with titles; where there is no section, the text alone."""
        last = None
        for panel, section, text in zip(axes, sections, texts, strict=True):
            if section is None:
                _write_note(panel, text)
                continue
            shown = draw_section(
                panel,
                section,
                self.unit,
                limits=self.limits,
                label=None,
                colour_map=self.colour_map,
            )
            set_title(panel, text, width=1.3 * _CELL_WIDTH)
            last = panel, shown, section.height_over_width
        if last is not None:
            panel, shown, ratio = last
            draw_colorbar(panel, shown, self.label, height_over_width=ratio, stands_for=self.values)


def comparison_figure(
    runs: Sequence[Reconstruction],
    names: Sequence[str] | None = None,
    *,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw reconstructions side by side and their errors below, each row with one colour scale.

    The errors are against the truth if every run has one from the same source; the truth is then
    shown as well. Otherwise they are differences from the first run, where the grids are equal.
    Of volumes the central horizontal slice is shown.

    Args:
        runs: two or more.
        names: what to call them; by default their methods.
        limits: attenuation shown as black and as white, 1/length_unit; by default the range of
            the truth, or of all images where there is none, without outliers.

    Raises:
        DataError: fewer than two runs, another number of names, images together with volumes, or
            different units of length.
    """
    names = _check(runs, names)
    unit = runs[0].scan.length_unit
    shared = _share_truth(runs)
    entries = _entries(runs, names, shared)
    images = [entry.image.values for entry in entries]
    shown = limits or display_range(*(images[:1] if shared else images))
    differences = [e.difference.values for e in entries if e.difference is not None]
    span = symmetric_range(*differences)

    n_bands = math.ceil(len(entries) / _MOST_COLUMNS)
    n_columns = math.ceil(len(entries) / n_bands)
    figure = new_figure(n_columns * _CELL_WIDTH + 0.8, 2 * n_bands * _CELL_HEIGHT + 0.5)
    cells = figure.add_gridspec(2 * n_bands, n_columns)
    image_row = _Row(unit, shown, f"attenuation [1/{unit}]", IMAGE_MAP, images)
    word = "error" if shared else "difference"
    difference_row = _Row(unit, span, f"{word} [1/{unit}]", ERROR_MAP, differences)
    for band in range(n_bands):
        chosen = entries[band * n_columns : (band + 1) * n_columns]
        axes = [figure.add_subplot(cells[2 * band, i]) for i in range(len(chosen))]
        image_row.draw(axes, [e.image for e in chosen], [e.title for e in chosen])
        axes = [figure.add_subplot(cells[2 * band + 1, i]) for i in range(len(chosen))]
        texts = [e.difference_title for e in chosen]
        difference_row.draw(axes, [e.difference for e in chosen], texts)
    lines = [f"comparison of {len(runs)} reconstructions"]
    if entries[0].image.position:
        lines[0] += f", central slice {entries[0].image.position}"
    lines.append(
        f"truth: {runs[0].scan.truth_source}"
        if shared
        else f"no truth shared by all: differences from {names[0]}"
    )
    return finish(figure, lines)


def _check(runs: Sequence[Reconstruction], names: Sequence[str] | None) -> list[str]:
    if len(runs) < 2:
        raise DataError(f"A comparison needs at least two reconstructions; got {len(runs)}.")
    if names is not None and len(names) != len(runs):
        raise DataError(f"{len(runs)} reconstructions need as many names; got {len(names)}.")
    kinds = ["2-D" if run.scan.grid.ndim == 2 else "3-D" for run in runs]
    if len(set(kinds)) > 1:
        raise DataError(
            f"Images and volumes cannot be compared; the reconstructions are {', '.join(kinds)}. "
            "Compare those of one kind."
        )
    units = [run.scan.length_unit for run in runs]
    if len(set(units)) > 1:
        raise DataError(
            "Reconstructions in 1/mm and in 1/pixel cannot be compared; the units of length are "
            f"{', '.join(units)}. Give the scans in pixels their pixel size in mm first."
        )
    return list(names) if names is not None else _default_names(runs)


def _default_names(runs: Sequence[Reconstruction]) -> list[str]:
    """The methods, numbered where one occurs more than once."""
    total, seen = Counter(run.method for run in runs), Counter()
    names = []
    for run in runs:
        seen[run.method] += 1
        number = f" ({seen[run.method]})" if total[run.method] > 1 else ""
        names.append(f"{run.method}{number}")
    return names


def _share_truth(runs: Sequence[Reconstruction]) -> bool:
    """Whether all have a truth of the same source, and the same one where the grids are equal."""
    first = runs[0].scan
    if first.truth is None:
        return False
    for scan in (run.scan for run in runs):
        if scan.truth is None or scan.truth_source != first.truth_source:
            return False
        if scan.grid == first.grid and not np.array_equal(scan.truth, first.truth):
            return False
    return True


def _entries(runs: Sequence[Reconstruction], names: Sequence[str], shared: bool) -> list[_Entry]:
    first, unit = runs[0], runs[0].scan.length_unit
    entries = []
    if shared and first.scan.truth is not None:
        entries.append(
            _Entry("truth", central_sections(first.scan.truth, first.scan.grid, unit)[0], None, "")
        )
    for run, name in zip(runs, names, strict=True):
        grid = run.scan.grid
        image = central_sections(run.image, grid, unit)[0]
        difference, title = None, f"another grid than {names[0]}:\nno difference"
        if shared and run.scan.truth is not None:
            difference, title = run.image - run.scan.truth, f"{name} - truth"
        elif run is first:
            title = "differences from\nthis reconstruction"
        elif grid == first.scan.grid:
            difference, title = run.image - first.image, f"{name} - {names[0]}"
        section = None if difference is None else central_sections(difference, grid, unit)[0]
        facts = [f"{run.scan.geometry.n_views} views", *metrics_text(run.metrics)]
        lines = [name, ", ".join(facts[:2]), ", ".join(facts[2:])]
        entries.append(_Entry("\n".join(filter(None, lines)), image, section, title))
    return entries


def _write_note(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        horizontalalignment="center",
        verticalalignment="center",
        fontsize=FONT_SIZE,
    )
