"""The training of a classifier, and what its loss estimator says of held-out images."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dipct.figures.history import COLOURS
from dipct.figures.layout import FONT_SIZE, finish, panel_figure, set_title
from dipct.pretrain import TrainedClassifier

_FEW = 20


def classifier_figure(trained: TrainedClassifier) -> Figure:
    """Losses and accuracy of the batches against the step.

    Args:
        trained: after training, or read from its file.
    """
    history = trained.history
    has_head = trained.estimator is not None
    names = ["loss", "accuracy", *(["ranking"] if has_head else [])]
    titles = {
        "loss": "cross-entropy of the batches, running mean",
        "accuracy": "accuracy of the batches, running mean",
        "ranking": "ranking loss of the loss estimator",
    }
    figure, axes = panel_figure(len(names), 3)
    for panel, name in zip(axes, names, strict=True):
        _draw(panel, history["iteration"], history[name])
        set_title(panel, titles[name])
    report, lines = trained.report, [" / ".join(trained.classes)]
    if report is not None:
        lines.append(
            f"held out: accuracy {report.accuracy:.3f}; loss estimator: rank correlation "
            f"{report.spearman:.2f}, AUROC {report.auroc_misclassified:.2f} (misclassified), "
            f"{report.auroc_shifted:.2f} (shifted)"
        )
    return finish(figure, lines)


def _draw(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    # At step zero nothing has been averaged.
    marker = "." if len(steps) < _FEW else ""
    axes.plot(steps[1:], values[1:], color=COLOURS[0], linewidth=1.5, marker=marker)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("step", fontsize=FONT_SIZE)
    axes.tick_params(labelsize=FONT_SIZE - 1)
    axes.grid(True, color="0.9", linewidth=0.8)
