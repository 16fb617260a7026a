"""Images and central slices of volumes, with scale bar and colour bar."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from dipct.figures.layout import FONT_SIZE
from dipct.measurement.grid import Grid

IMAGE_MAP, ERROR_MAP, SINOGRAM_MAP = "gray", "RdBu_r", "viridis"
"""Colour maps; all can be told apart by the colour-blind."""

SCALE_BAR = "scale-bar"
"""Name (gid) of the scale bar among the artists of an image."""

_SCALE_BAR_DISTANCE = 9.0
"""From the image, points."""


@dataclass(frozen=True)
class Section:
    """A plane of an image or volume.

    Attributes:
        values: the values in it, [rows columns].
        extent: world coordinates of the left, right, bottom and top edges, mm.
        origin: whether row 0 is shown at the top (``"upper"``) or the bottom.
        position: which plane of a volume it is, as ``z = 0``; empty for an image.
    """

    values: np.ndarray
    extent: tuple[float, float, float, float]
    origin: Literal["upper", "lower"]
    position: str

    @property
    def height_over_width(self) -> float:
        """Ratio of the sides."""
        left, right, bottom, top = self.extent
        return (top - bottom) / (right - left)


def central_sections(image: np.ndarray, grid: Grid, unit: str) -> list[Section]:
    """An image as it is, or the three central slices of a volume.

    All are seen as they lie in the world: from above with x to the right and y up, from the
    front with x to the right, from the side with y to the right; z is up.

    Args:
        image: [H W] or [Z H W].
        grid: where it lies.
        unit: of the grid's lengths.
    """
    low, high = grid.lower, grid.upper
    x, y = (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))
    if grid.ndim == 2:
        return [Section(image, (*x, *y), "upper", "")]
    z = (float(low[2]), float(high[2]))
    centre = [n // 2 for n in grid.shape]
    at_z, at_y, at_x = (float(a[i]) for a, i in zip(grid.axes(), centre, strict=True))
    return [
        Section(image[centre[0]], (*x, *y), "upper", f"z = {at_z:.4g} {unit}"),
        Section(image[:, centre[1]], (*x, *z), "lower", f"y = {at_y:.4g} {unit}"),
        # y falls along the columns of an array but shall grow to the right.
        Section(image[:, ::-1, centre[2]], (*y, *z), "lower", f"x = {at_x:.4g} {unit}"),
    ]


def display_range(*arrays: np.ndarray) -> tuple[float, float]:
    """A range of values that a few outliers do not widen.

    Args:
        *arrays: what is shown in the range; the widest of their ranges, each from the 0.1 to the
            99.9 percentile, counts.
    """
    found = [np.percentile(v, (0.1, 99.9)) for v in map(_finite, arrays) if v.size]
    low = float(min((f[0] for f in found), default=0.0))
    high = float(max((f[1] for f in found), default=1.0))
    if high > low:
        return low, high
    margin = abs(low) / 2 or 0.5
    return low - margin, high + margin


def symmetric_range(*arrays: np.ndarray) -> tuple[float, float]:
    """A range about zero that a few outliers do not widen, for errors.

    Args:
        *arrays: what is shown in the range; the largest of their 99.5 percentiles of absolute
            values counts.
    """
    found = [np.percentile(np.abs(v), 99.5) for v in map(_finite, arrays) if v.size]
    largest = float(max(found, default=1.0)) or float(max(map(_largest, arrays), default=0.0))
    return -(largest or 1.0), largest or 1.0


def draw_section(
    axes: Axes,
    section: Section,
    unit: str,
    *,
    limits: tuple[float, float],
    label: str | None,
    colour_map: str = IMAGE_MAP,
) -> AxesImage:
    """Draw an image with square pixels, a scale bar and, usually, a colour bar.

    Args:
        axes: where.
        section: the image.
        unit: of lengths, ``"mm"`` or ``"pixel"``.
        limits: values shown as the first and the last colour.
        label: of the colour bar, with units; None for no colour bar.
        colour_map: name of matplotlib's colour map.
    """
    shown = axes.imshow(
        section.values,
        cmap=colour_map,
        vmin=limits[0],
        vmax=limits[1],
        extent=section.extent,
        origin=section.origin,
        aspect="equal",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    draw_scale_bar(axes, unit)
    if label is not None:
        draw_colorbar(axes, shown, label, height_over_width=section.height_over_width)
    return shown


def draw_scale_bar(axes: Axes, unit: str) -> None:
    """Draw a bar of a round length, at most a quarter of the width, below an image.

    Args:
        axes: of the image; its horizontal coordinate is a length.
        unit: of lengths, ``"mm"`` or ``"pixel"``.
    """
    left, right = axes.get_xlim()
    length = round_length((right - left) / 4)
    # Below the image, where no image can hide it, at a distance that a low image keeps.
    down = ScaledTranslation(0, -_SCALE_BAR_DISTANCE / 72, axes.figure.dpi_scale_trans)
    axes.plot(
        [left, left + length],
        [0, 0],
        transform=axes.get_xaxis_transform() + down,
        color="black",
        linewidth=3,
        solid_capstyle="butt",
        clip_on=False,
        gid=SCALE_BAR,
    )
    plural = "s" if unit == "pixel" and length != 1 else ""
    axes.annotate(
        f"{length:g} {unit}{plural}",
        (left + length, 0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(4, -_SCALE_BAR_DISTANCE),
        textcoords="offset points",
        verticalalignment="center",
        fontsize=FONT_SIZE,
        annotation_clip=False,
    )
    axes.set_xlim(left, right)


def round_length(largest: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not above ``largest``."""
    power = 10.0 ** np.floor(np.log10(largest))
    # Rounding: 5 * 10 ** -1 and the like are not exact.
    return max(float(m * power) for m in (1, 2, 5) if m * power <= largest * (1 + 1e-9))


def draw_colorbar(
    axes: Axes,
    shown: AxesImage,
    label: str,
    *,
    height_over_width: float = 1.0,
    stands_for: Sequence[np.ndarray] = (),
) -> None:
    """Draw a colour bar to the right of an image, as high as it.

    Values outside the range make its ends pointed.

    Args:
        axes: of the image.
        shown: the image.
        label: with units.
        height_over_width: of the axes; beside a low image the bar is higher than it.
        stands_for: values of all images that share the bar; by default of this one.
    """
    height = max(1.0, 0.6 / height_over_width)
    slim = max(1.0, height_over_width)
    inset = axes.inset_axes((1 + 0.03 * slim, 0.5 - height / 2, 0.045 * slim, height))
    low, high = shown.get_clim()
    arrays = [_finite(a) for a in (stands_for or [np.ma.getdata(shown.get_array())])]
    below = any(np.any(values < low) for values in arrays)
    above = any(np.any(values > high) for values in arrays)
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]
    bar = axes.figure.colorbar(
        shown,
        cax=inset,
        extend=extend,
        ticks=MaxNLocator(5),
        # No common factor above the bar, where it would meet the title.
        format=FuncFormatter(lambda value, _: f"{value:.4g}"),
    )
    bar.set_label(label, fontsize=FONT_SIZE)
    bar.ax.tick_params(labelsize=FONT_SIZE - 1)


def _finite(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    return array[np.isfinite(array)]


def _largest(array: np.ndarray) -> float:
    values = _finite(array)
    return float(np.abs(values).max()) if values.size else 0.0
