"""How far a reconstruction can be trusted: image, error, standard deviation, calibration."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dipct.evaluation import calibration_curve, quantile_quantile
from dipct.figures.history import COLOURS
from dipct.figures.image import (
    IMAGE_MAP,
    central_sections,
    display_range,
    draw_section,
)
from dipct.figures.labels import metrics_text, shape_text
from dipct.figures.layout import FONT_SIZE, finish, panel_figure, set_title
from dipct.figures.reconstruction import Reconstruction
from dipct.uncertainty import Uncertainty

STD_MAP = "magma"
"""Colour map of standard deviations and errors that have no sign."""

_COLUMNS = 3


def uncertainty_figure(run: Reconstruction, found: Uncertainty) -> Figure:
    """Draw an image with its uncertainty, beside the error and its calibration where known.

    Error and standard deviation share one range of colours.

    Args:
        run: the reconstruction.
        found: its uncertainty.
    """
    scan, truth = run.scan, run.scan.truth
    unit = f"1/{scan.length_unit}"
    shown = display_range(found.mean if truth is None else truth)
    error = None if truth is None else np.abs(found.mean - truth)
    spread = display_range(*[a for a in (found.std, error) if a is not None])[1]
    pictures = [
        (
            "reconstruction" if found.settings["mean"] == "reconstruction" else "linear mean",
            found.mean,
            shown,
            f"attenuation [{unit}]",
            IMAGE_MAP,
        )
    ]
    if error is not None:
        pictures.append(("|error|", error, (0.0, spread), f"[{unit}]", STD_MAP))
    pictures.append(("standard deviation", found.std, (0.0, spread), f"[{unit}]", STD_MAP))
    figure, axes = panel_figure(len(pictures) + (2 if truth is None else 4), _COLUMNS)
    panels = iter(axes)
    for title, image, limits, label, colours in pictures:
        panel = next(panels)
        (section,) = central_sections(image, scan.grid, scan.length_unit)
        draw_section(
            panel, section, scan.length_unit, limits=limits, label=label, colour_map=colours
        )
        set_title(panel, title)
    if truth is not None:
        _draw_calibration(next(panels), truth, found)
        _draw_quantiles(next(panels), truth, found)
    _draw_evidence(next(panels), found.trace)
    _draw_hyperparameters(next(panels), found)
    scores = found.scores
    words = [
        f"{name} {scores[key]:.3g}"
        for key, name in (
            ("log_likelihood", "log-likelihood per pixel"),
            ("log_likelihood_pixel", "of single pixels"),
            ("signed_calibration_error", "calibration error"),
        )
        if key in scores
    ]
    return finish(
        figure,
        [
            ", ".join([run.method, *metrics_text(run.metrics)]),
            f"{scan.geometry.n_views} views, {shape_text(scan.grid.shape)} pixels; evidence "
            f"{found.log_evidence:.1f} nat, {found.settings['evidence']}, {found.status}",
            ", ".join(words),
        ],
    )


def _scored(truth: np.ndarray, found: Uncertainty) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, mean and standard deviation of the pixels that were scored."""
    correction = found.scores.get("noise_correction", 0.0)
    std = np.sqrt(found.std.astype(np.float64) ** 2 + correction)
    margin = int(found.settings.get("score_margin", 0))
    inner = tuple(slice(margin, side - margin) for side in truth.shape)
    return truth[inner].astype(np.float64), found.mean[inner].astype(np.float64), std[inner]


def _draw_quantiles(axes: Axes, truth: np.ndarray, found: Uncertainty) -> None:
    scored, mean, std = _scored(truth, found)
    has_spread = std > 0
    sets = [("single pixels", (scored - mean)[has_spread] / std[has_spread])]
    if found.whitened_errors is not None:
        sets.append(("whitened", found.whitened_errors))
    reach = 4.0
    axes.plot([-reach, reach], [-reach, reach], color="0.7", linewidth=1, label="normal")
    for colour, (name, errors) in zip(COLOURS, sets, strict=False):
        if errors.size > 1:
            axes.plot(*quantile_quantile(errors), color=colour, linewidth=1.5, label=name)
    axes.set_xlabel("normal quantile", fontsize=FONT_SIZE)
    axes.set_ylabel("quantile of the errors / std", fontsize=FONT_SIZE)
    axes.set_xlim(-reach, reach)
    _finish_axes(axes)
    axes.legend(fontsize=FONT_SIZE - 1, frameon=False)
    set_title(axes, "errors against a normal distribution")


def _draw_calibration(axes: Axes, truth: np.ndarray, found: Uncertainty) -> None:
    curve = calibration_curve(*_scored(truth, found))
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="calibrated")
    axes.plot(curve.levels, curve.coverage, color=COLOURS[0], linewidth=1.5, label="this scan")
    axes.set_xlabel("probability of the interval", fontsize=FONT_SIZE)
    axes.set_ylabel("share of pixels inside", fontsize=FONT_SIZE)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    _finish_axes(axes)
    axes.legend(fontsize=FONT_SIZE - 1, frameon=False)
    set_title(axes, "calibration of single pixels")


def _draw_evidence(axes: Axes, trace: Mapping[str, np.ndarray]) -> None:
    known = np.flatnonzero(np.isfinite(trace["log evidence"]))
    values = trace["log evidence"][known]
    axes.plot(known, values, color=COLOURS[0], linewidth=1.5, marker="." if len(known) < 20 else "")
    if "log evidence error" in trace:
        error = 2 * trace["log evidence error"][known]
        axes.fill_between(known, values - error, values + error, color=COLOURS[0], alpha=0.2)
    axes.set_xlabel("iteration", fontsize=FONT_SIZE)
    axes.set_ylabel("log evidence [nat]", fontsize=FONT_SIZE)
    _finish_axes(axes)
    set_title(axes, "tuning")


def _draw_hyperparameters(axes: Axes, found: Uncertainty) -> None:
    """Variances full, length scales dashed, the noise dotted."""
    blocks: list[str] = []
    for name in found.hyperparameters:
        block = name.removesuffix(" variance").removesuffix(" length scale")
        if block not in blocks:
            blocks.append(block)
        style = "--" if name.endswith("length scale") else ":" if name == "noise" else "-"
        axes.plot(
            np.exp(found.trace[name]),
            style,
            color=COLOURS[blocks.index(block) % len(COLOURS)],
            linewidth=1.2,
            label=None if style == "--" else block,
        )
    axes.set_yscale("log")
    axes.set_xlabel("iteration", fontsize=FONT_SIZE)
    _finish_axes(axes)
    axes.legend(fontsize=FONT_SIZE - 2, frameon=False, ncols=2)
    set_title(axes, "variances (full), length scales (dashed), noise (dotted)")


def _finish_axes(axes: Axes) -> None:
    axes.tick_params(which="both", labelsize=FONT_SIZE - 1)
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
