"""How far features determine a counterfactual or a pre-image: deviation and samples."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dipct.errors import ConfigurationError
from dipct.figures.counterfactual import draw_outline, draw_picture
from dipct.figures.history import COLOURS
from dipct.figures.image import display_range, draw_colorbar
from dipct.figures.layout import FONT_SIZE, finish, panel_figure, set_title
from dipct.figures.uncertainty import STD_MAP
from dipct.inversion import Counterfactual, Inversion

_COLUMNS, _SAMPLES, _BINS = 4, 4, 30


def inversion_uncertainty_figure(found: Inversion) -> Figure:
    """Query, image, its standard deviation, how that is spread, and a few samples.

    Where edits belong is outlined, if it is known, and deviations inside are shown beside those
    outside.

    Args:
        found: a counterfactual or pre-image whose uncertainty was quantified.

    Raises:
        ConfigurationError: it was not.
    """
    if found.std is None or found.samples is None:
        raise ConfigurationError(
            "The uncertainty of this image was not quantified; use `dipct uncertainty`."
        )
    samples, region = found.samples[:_SAMPLES], found.region
    figure, axes = panel_figure(_COLUMNS + len(samples), _COLUMNS)
    panels = iter(axes)
    draw_picture(next(panels), found.query, "query")
    title = "pre-image"
    if isinstance(found, Counterfactual):
        title = f"counterfactual\n{found.class_name(found.target)}: {found.p_target:.3f}"
    draw_picture(next(panels), found.image, title, region)
    std = found.std.mean(0)
    panel = next(panels)
    shown = panel.imshow(std, cmap=STD_MAP, vmin=0.0, vmax=display_range(std)[1])
    draw_outline(panel, region)
    panel.set_axis_off()
    draw_colorbar(panel, shown, "", stands_for=[std])
    set_title(panel, "standard deviation,\nmean of the channels")
    _draw_spread(next(panels), std, region)
    for number, sample in enumerate(samples, 1):
        draw_picture(next(panels), sample, f"sample {number} of {len(found.samples)}")
    scores, how = found.scores, found.uncertainty
    words = [
        f"noise of the features {scores['noise']:.3g}",
        f"residual of the samples {scores['feature_residual']:.3g} times that",
    ]
    if "samples_in_target" in scores:
        words.append(f"{scores['samples_in_target']:.0%} of the samples in the target class")
    layers = ", ".join(how["layers"])
    return finish(
        figure,
        [
            f"{found.settings['method']}: {found.source}; data: {how['features']} features of "
            f"{layers}; evidence {how['log_evidence']:.1f} nat, {how['status']}",
            ", ".join(words),
        ],
    )


def _draw_spread(axes: Axes, std: np.ndarray, region: np.ndarray | None) -> None:
    """Densities of the deviations of pixels, with their means."""
    parts = {"all pixels": std.ravel()}
    if region is not None and region.any() and not region.all():
        parts = {"inside the region": std[region], "outside": std[~region]}
    edges = np.linspace(0.0, float(std.max()) or 1.0, _BINS + 1)
    for colour, (name, values) in zip(COLOURS, parts.items(), strict=False):
        mean = float(values.mean())
        axes.hist(
            values,
            edges,
            density=True,
            histtype="step",
            color=colour,
            linewidth=1.5,
            label=f"{name}, mean {mean:.3g}",
        )
        axes.axvline(mean, color=colour, linestyle="--", linewidth=1)
    axes.set_xlabel("standard deviation", fontsize=FONT_SIZE)
    axes.set_ylabel("density", fontsize=FONT_SIZE)
    axes.tick_params(labelsize=FONT_SIZE - 1)
    axes.margins(y=0.3)
    axes.legend(fontsize=FONT_SIZE - 1, frameon=False, loc="upper right")
    set_title(axes, "dashed: means")
