"""Uncertainty of counterfactuals and pre-images: standard deviation and samples."""

import numpy as np
from matplotlib.figure import Figure

from dipct.errors import ConfigurationError
from dipct.figures.counterfactual import draw_difference, draw_outline, draw_picture
from dipct.figures.layout import FONT_SIZE, finish, panel_figure, set_title
from dipct.figures.uncertainty import STD_MAP
from dipct.inversion import Inversion

_SAMPLES = 4


def inversion_uncertainty_figure(found: Inversion) -> Figure:
    """Query, image, difference, standard deviation and samples.

    Args:
        found: with standard deviation and samples.

    Raises:
        ConfigurationError: without them.
    """
    if found.std is None or found.samples is None:
        raise ConfigurationError("Its uncertainty has not been quantified.")
    samples = found.samples[:_SAMPLES]
    figure, axes = panel_figure(4 + len(samples), 4)
    draw_picture(axes[0], found.query, "query")
    draw_picture(axes[1], found.image, found.kind)
    draw_difference(axes[2], found.difference, found.region)
    shown = found.std.mean(0)
    drawn = axes[3].imshow(shown, cmap=STD_MAP, vmin=0, vmax=float(np.quantile(shown, 0.995)))
    draw_outline(axes[3], found.region)
    axes[3].set_axis_off()
    set_title(axes[3], "standard deviation,\nmean of the channels")
    figure.colorbar(drawn, ax=axes[3], fraction=0.045).ax.tick_params(labelsize=FONT_SIZE - 1)
    for number, (panel, sample) in enumerate(zip(axes[4:], samples, strict=False), 1):
        draw_picture(panel, sample, f"sample {number}", found.region)
    words = [
        f"{title} {found.scores[name]:.3g}"
        for title, name in (
            ("noise of the features", "noise"),
            ("residual of samples over it", "feature_residual"),
            ("std inside", "std_inside"),
            ("outside", "std_outside"),
            ("samples in the target class", "samples_in_target"),
        )
        if name in found.scores
    ]
    return finish(figure, [", ".join(words)])
