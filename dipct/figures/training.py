"""The course of a pretraining."""

import numpy as np
from matplotlib.figure import Figure

from dipct.figures.history import COLOURS
from dipct.figures.layout import FONT_SIZE, new_figure
from dipct.pretrain.pretrained_network import PretrainedNetwork


def training_figure(pretrained: PretrainedNetwork) -> Figure:
    """Training loss and validation PSNR against the step.

    Args:
        pretrained: after training, or read from its file.
    """
    history = pretrained.history
    steps = np.asarray(history["iteration"])
    figure = new_figure(9, 3.4)
    left, right = figure.subplots(1, 2)
    loss = np.where(steps > 0, history["training_loss"], np.nan)
    left.plot(steps, loss, color=COLOURS[0], linewidth=1.5)
    if np.any(loss > 0):
        left.set_yscale("log")
    left.set_ylabel("training loss, running mean", fontsize=FONT_SIZE)
    right.plot(
        steps, history["validation_psnr_db"], color=COLOURS[0], label="network", linewidth=1.5
    )
    if np.isfinite(pretrained.fbp_psnr_db):
        right.axhline(
            pretrained.fbp_psnr_db,
            color=COLOURS[1],
            linestyle="--",
            label="filtered back-projection",
        )
    right.plot(
        pretrained.best_step,
        pretrained.validation_psnr_db,
        "o",
        color=COLOURS[0],
        label="kept",
    )
    right.set_ylabel("validation PSNR [dB]", fontsize=FONT_SIZE)
    right.legend(fontsize=FONT_SIZE - 1, frameon=False)
    for axes in (left, right):
        axes.set_xlabel("step", fontsize=FONT_SIZE)
        axes.tick_params(which="both", labelsize=FONT_SIZE - 1)
        axes.grid(True, color="0.9", linewidth=0.8)
    return figure
