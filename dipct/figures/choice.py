"""Candidates for fine-tuning against the step."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from dipct.figures.history import COLOURS
from dipct.figures.layout import FONT_SIZE, new_figure


def psnr_figure(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, level_db: float, level: str
) -> Figure:
    """PSNR against the step: of repeats the median as a line, all between in colour.

    Args:
        curves: name to steps [N] and PSNRs in dB [R N].
        level_db: a PSNR to compare with.
        level: its name.
    """
    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    for i, (name, (steps, psnr_db)) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        style = "-" if i < len(COLOURS) else "--"
        axes.plot(steps, np.median(psnr_db, axis=0), style, color=colour, linewidth=1.5, label=name)
        axes.fill_between(
            steps, psnr_db.min(axis=0), psnr_db.max(axis=0), color=colour, alpha=0.15, linewidth=0
        )
    axes.axhline(level_db, color="0.4", linestyle=":", linewidth=1.2, label=level)
    axes.set_xlabel("step", fontsize=FONT_SIZE)
    axes.set_ylabel("PSNR on the phantom [dB]", fontsize=FONT_SIZE)
    axes.tick_params(labelsize=FONT_SIZE - 1)
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.legend(fontsize=FONT_SIZE - 1, frameon=False, loc="lower right")
    return figure
