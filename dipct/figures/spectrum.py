"""Spectra of pretrained networks side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dipct.figures.history import COLOURS
from dipct.figures.layout import FONT_SIZE
from dipct.pretrain import NetworkSpectrum


def spectrum_figure(spectra: Sequence[NetworkSpectrum], names: Sequence[str]) -> Figure:
    """Singular values, overlap with the first network's directions, and movement of the weights.

    Args:
        spectra: as from :func:`dipct.pretrain.network_spectra`.
        names: what to call them.
    """
    figure = Figure(figsize=(14, 4), layout="constrained")
    values, overlap, movement = figure.subplots(1, 3)
    width = 0.8 / max(len(spectra) - 1, 1)
    for i, (each, name) in enumerate(zip(spectra, names, strict=True)):
        style = {"color": COLOURS[i % len(COLOURS)], "label": name}
        order = np.arange(1, len(each.values) + 1)
        values.semilogy(order, each.values, linewidth=1.5, **style)
        if i == 0:
            continue
        overlap.plot(order, each.overlap, linewidth=1.5, **style)
        blocks = np.arange(len(each.movement))
        movement.bar(blocks + (i - 1) * width, list(each.movement.values()), width, **style)
        movement.set_xticks(
            blocks + 0.4 - width / 2, list(each.movement), rotation=60, fontsize=FONT_SIZE - 2
        )
    values.set_ylabel("singular value of the Jacobian", fontsize=FONT_SIZE)
    overlap.set_ylabel(f"cosine to the directions of {names[0]}", fontsize=FONT_SIZE)
    overlap.set_ylim(0, 1.02)
    movement.set_ylabel(f"relative distance from {names[0]}", fontsize=FONT_SIZE)
    for axes in (values, overlap):
        axes.set_xlabel("index", fontsize=FONT_SIZE)
    for axes in (values, overlap, movement):
        axes.tick_params(which="both", labelsize=FONT_SIZE - 1)
        axes.grid(True, axis="y", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=FONT_SIZE - 1, frameon=False)
    return figure
