"""Recorded values against the iteration."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dipct.errors import DataError
from dipct.figures.labels import quantity_name
from dipct.figures.layout import FONT_SIZE

# Okabe and Ito (2008), https://jfly.uni-koeln.de/color/: told apart by the colour-blind.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")
# What a rule keeps in the history to say when it stops, and no curve to look at.
_BOOKKEEPING = ("iteration", "chosen_step", "steps_since_minimum", "reached_noise_level")


def history_groups(history: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Names of the quantities that can share one axis.

    Those without a negative value share a logarithmic axis, as the first group. Decibels,
    similarities and what can be negative get linear axes, together where their sizes differ by
    less than a factor of ten.

    Args:
        history: recorded values by name, ``"iteration"`` among them.

    Raises:
        DataError: the records differ in length.
    """
    lengths = {name: len(values) for name, values in history.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"All recorded quantities need the same number of values; got {lengths}.")
    shown = [name for name in history if name not in _BOOKKEEPING]
    names = [name for name in shown if np.any(np.isfinite(history[name]))]
    logarithmic = [name for name in names if is_logarithmic(name, history[name])]
    groups = [logarithmic] if logarithmic else []
    sizes: list[float] = []
    linear: list[list[str]] = []
    for name in (n for n in names if n not in logarithmic):
        values = np.asarray(history[name])
        size = float(np.abs(values[np.isfinite(values)]).max())
        for group, other in zip(linear, sizes, strict=True):
            if size <= 10 * other and other <= 10 * size:
                group.append(name)
                break
        else:
            linear.append([name])
            sizes.append(size)
    return groups + linear


def is_logarithmic(name: str, values: np.ndarray) -> bool:
    """Whether a quantity belongs on a logarithmic axis."""
    values = np.asarray(values)
    finite = values[np.isfinite(values)]
    relative = name.endswith("_db") or name.startswith("ssim")
    return not relative and bool(np.any(finite > 0)) and not np.any(finite < 0)


def draw_history(axes: Axes, history: Mapping[str, np.ndarray], names: list[str]) -> None:
    """Draw one group of recorded quantities.

    Args:
        axes: where.
        history: recorded values by name, ``"iteration"`` among them.
        names: a group from :func:`history_groups`.
    """
    n = len(history[names[0]])
    iteration = np.asarray(history.get("iteration", np.arange(n)))
    logarithmic = all(is_logarithmic(name, history[name]) for name in names)
    for i, name in enumerate(names):
        values = np.array(history[name], dtype=np.float64)
        values[~np.isfinite(values)] = np.nan
        if logarithmic:
            values[values == 0] = np.nan
        axes.plot(
            iteration,
            values,
            label=quantity_name(name),
            color=COLOURS[i % len(COLOURS)],
            linestyle=_STYLES[i % len(_STYLES)],
            linewidth=1.5,
            marker="." if n <= 20 else "",
        )
    chosen = history.get("chosen_step")
    if chosen is not None and n and chosen[-1] < iteration[-1] - 1:
        # The result is an earlier iterate.
        axes.axvline(float(chosen[-1]), color="0.5", linestyle="--", linewidth=1)
    if logarithmic:
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.5g}"))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("iteration", fontsize=FONT_SIZE)
    axes.tick_params(which="both", labelsize=FONT_SIZE - 1)
    axes.grid(True, color="0.9", linewidth=0.8)
    if len(names) == 1:
        axes.set_ylabel(quantity_name(names[0]), fontsize=FONT_SIZE)
    else:
        # Above the curves, where it hides none of them.
        legend = axes.legend(
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=2 if len(names) > 1 else 1,
            fontsize=FONT_SIZE - 1,
            frameon=False,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
