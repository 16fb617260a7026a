"""Counterfactuals: query, image, signed difference, and how the terms went."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dipct.errors import ShapeError
from dipct.figures.history import COLOURS, draw_history
from dipct.figures.image import ERROR_MAP, IMAGE_MAP, symmetric_range
from dipct.figures.layout import FONT_SIZE, finish, new_figure, panel_figure, set_title
from dipct.inversion import Counterfactual, Inversion, PreImage
from dipct.inversion_settings import CounterfactualSettings

_CELL = 1.05
_SMALLEST_SHOWN = 1e-5


def counterfactual_figure(found: Counterfactual) -> Figure:
    """Query, counterfactual, signed difference and traces; the true one where it is known.

    Args:
        found: the counterfactual.
    """
    has_truth = found.truth is not None
    figure, axes = panel_figure(6 if has_truth else 5, 3)
    target, seen = found.class_name(found.target), found.class_name(found.predicted)
    panels = iter(axes)
    draw_picture(next(panels), found.query, f"query\nseen as {seen}")
    outcome = "confident" if found.confident else "valid" if found.valid else "not valid"
    draw_picture(
        next(panels),
        found.image,
        f"counterfactual, {outcome}\n{target}: {found.p_target_query:.3f} to {found.p_target:.3f}",
    )
    draw_difference(next(panels), found.difference, found.region)
    if found.truth is not None:
        draw_picture(next(panels), found.truth, "nearest true counterfactual", found.region)
    _draw_terms(next(panels), found)
    _draw_probability(next(panels), found)
    return finish(figure, [f"{found.settings['method']}: {found.source}", found.reason])


def pre_image_figure(found: PreImage) -> Figure:
    """Query, pre-image, signed difference and traces; the wanted image where it is another.

    Args:
        found: the pre-image.
    """
    figure, axes = panel_figure(4 if found.truth is None else 5, 3)
    panels = iter(axes)
    draw_picture(next(panels), found.query, "query")
    draw_picture(next(panels), found.image, f"image of step {found.chosen_step}")
    if found.truth is not None:
        draw_picture(next(panels), found.truth, "the image that it should be")
    draw_difference(next(panels), found.difference)
    _draw_terms(next(panels), found)
    layers = found.settings.get("layers") or found.settings.get("maximise") or "default layers"
    shown = layers if isinstance(layers, str) else ", ".join(layers)
    what = "maximising" if "maximise" in found.settings else "of"
    return finish(figure, [f"{found.settings['method']} {what} {shown}: {found.source}"])


def counterfactual_grid(
    queries: Sequence[np.ndarray],
    rows: Mapping[str, Sequence[np.ndarray | None]],
    *,
    regions: Sequence[np.ndarray] | None = None,
    differences: bool = True,
) -> Figure:
    """Many counterfactuals side by side: a column for each query, a row for each method.

    Args:
        queries: [C H W] each.
        rows: images of each method, one for each query, or None where there is none.
        regions: where edits belong, bool [H W] each; drawn as outlines.
        differences: below each row of images, their signed differences from the queries, all on
            one scale.

    Raises:
        ShapeError: rows of another length.
    """
    wrong = [name for name, images in rows.items() if len(images) != len(queries)]
    if wrong:
        raise ShapeError(f"Every row needs {len(queries)} images; {', '.join(wrong)} differ.")
    lines = 1 + len(rows) * (1 + differences)
    changes = [
        image - query
        for images in rows.values()
        for image, query in zip(images, queries, strict=True)
        if image is not None
    ]
    limits = symmetric_range(*changes)
    figure = new_figure(_CELL * len(queries) + 1.6, _CELL * lines)
    axes = figure.subplots(lines, len(queries), squeeze=False)
    for column, query in enumerate(queries):
        region = None if regions is None else regions[column]
        draw_picture(axes[0, column], query, "", region)
        line = 1
        for images in rows.values():
            image = images[column]
            for offset in range(1 + differences):
                panel = axes[line + offset, column]
                if image is None:
                    panel.set_axis_off()
                elif offset == 0:
                    draw_picture(panel, image, "")
                else:
                    draw_difference(panel, image - query, region, title="", limits=limits)
            line += 1 + differences
    titles = ["query"] + [
        title for name in rows for title in ([name, "difference"] if differences else [name])
    ]
    for panel, title in zip(axes[:, 0], titles, strict=True):
        panel.set_axis_on()
        panel.set_frame_on(False)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_ylabel(
            title, rotation=0, ha="right", va="center", fontsize=FONT_SIZE - 1, labelpad=6
        )
    return finish(figure, [])


def draw_picture(
    axes: Axes, image: np.ndarray, title: str, region: np.ndarray | None = None
) -> None:
    """Draw an image from zero to one, grey or in colours.

    Args:
        axes: where.
        image: [1 H W] or [3 H W].
        title: above it.
        region: its outline is drawn, bool [H W].
    """
    shown = np.clip(image, 0, 1)
    if len(shown) == 3:
        axes.imshow(shown.transpose(1, 2, 0))
    else:
        axes.imshow(shown[0], cmap=IMAGE_MAP, vmin=0, vmax=1)
    draw_outline(axes, region)
    axes.set_axis_off()
    if title:
        set_title(axes, title)


def draw_difference(
    axes: Axes,
    difference: np.ndarray,
    region: np.ndarray | None = None,
    *,
    title: str = "difference, of the channel\nthat changes most",
    limits: tuple[float, float] | None = None,
) -> None:
    """Draw a signed difference, red where the image got brighter.

    Args:
        axes: where.
        difference: [C H W].
        region: its outline is drawn, bool [H W].
        title: above it.
        limits: of the colours; default: those of this difference.
    """
    largest = np.abs(difference).argmax(0)
    shown = np.take_along_axis(difference, largest[None], 0)[0]
    low, high = symmetric_range(shown) if limits is None else limits
    drawn = axes.imshow(shown, cmap=ERROR_MAP, vmin=low, vmax=high)
    draw_outline(axes, region)
    axes.set_axis_off()
    if title:
        set_title(axes, title)
        bar = axes.figure.colorbar(drawn, ax=axes, fraction=0.045)
        bar.ax.tick_params(labelsize=FONT_SIZE - 1)


def draw_outline(axes: Axes, region: np.ndarray | None) -> None:
    """Draw the outline of a region, bool [H W]; none where it is everything or nothing."""
    if region is None or not region.any() or region.all():
        return
    # Closed at the border too, and seen on any colour.
    padded = np.pad(region, 1)
    at = [np.arange(-1, n + 1) for n in region.shape]
    for colour, width in (("white", 2.0), (COLOURS[2], 1.0)):
        axes.contour(at[1], at[0], padded, levels=[0.5], colors=[colour], linewidths=width)
    axes.set_xlim(-0.5, region.shape[1] - 0.5)
    axes.set_ylim(region.shape[0] - 0.5, -0.5)


def _draw_terms(axes: Axes, found: Inversion) -> None:
    """Terms times their weights: what the optimiser sees."""
    steps, shown = found.history["iteration"], found.weighted_terms
    draw_history(
        axes,
        {**shown, "iteration": steps, "chosen_step": np.full(len(steps), found.chosen_step)},
        [*shown],
    )
    largest = max(float(np.max(values)) for values in shown.values())
    if axes.get_yscale() == "log" and largest > 0:
        # A distance from the query that begins at zero is not worth most of the axis.
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, _SMALLEST_SHOWN * largest), high)
    axes.set_ylabel("weighted terms", fontsize=FONT_SIZE)


def _draw_probability(axes: Axes, found: Counterfactual) -> None:
    steps = found.history["iteration"]
    axes.plot(steps, found.history["p_target"], color=COLOURS[0], linewidth=1.5)
    axes.axhline(_asked_for(found), color="0.5", linestyle=":", linewidth=1)
    axes.axvline(found.chosen_step, color="0.5", linestyle="--", linewidth=1)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("iteration", fontsize=FONT_SIZE)
    axes.set_ylabel("probability of the target", fontsize=FONT_SIZE)
    axes.tick_params(labelsize=FONT_SIZE - 1)
    axes.grid(True, color="0.9", linewidth=0.8)
    set_title(axes, "dashed: the step that was kept")


def _asked_for(found: Counterfactual) -> float:
    """Probability that makes the image confident."""
    settings = CounterfactualSettings.from_values(dict(found.settings))
    return settings.class_probability if settings.is_graded else settings.probability
