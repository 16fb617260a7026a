"""How large an edit of an image is, and how far it is kept together."""

import math
from dataclasses import dataclass

import numpy as np

from dipct.errors import ConfigurationError, ShapeError
from dipct.evaluation.arrays import real_array

THRESHOLD = 0.05
"""Below it a change is taken for none, of values from zero to one (arXiv 2109.14274, section 5)."""

_MOST_OF_THE_ENERGY = 0.95


@dataclass(frozen=True)
class EditSize:
    """Sizes of an edit.

    Attributes:
        mean_squared: mean squared change.
        concentration: area of the smallest box around all changes beyond the threshold, over that
            of the image (Thiagarajan et al., arXiv 2109.14274, section 5, where the box is called
            the largest); NaN where there are none: no change is not the best explanation.
        energy_concentration: likewise around 95 per cent of the squared change, which a stray
            pixel does not blow up; NaN for no change at all.
        area: share of pixels that change by more than the threshold.
        sparsity: Hoyer's, zero for the same change everywhere, one for a single pixel (J. Mach.
            Learn. Res. 5, 2004); NaN for no change at all.
    """

    mean_squared: float
    concentration: float
    energy_concentration: float
    area: float
    sparsity: float


def edit_size(query: np.ndarray, other: np.ndarray, *, threshold: float = THRESHOLD) -> EditSize:
    """Measure how an image differs from a query.

    The change of a pixel is the largest of its channels.

    Args:
        query: [C H W], from zero to one.
        other: likewise.
        threshold: of the change.

    Raises:
        ShapeError: images without channels, or of different shapes.
        DataError: values that are not finite.
        ConfigurationError: a threshold that is negative or not finite.
    """
    if not 0 <= threshold < math.inf:
        raise ConfigurationError(f"threshold must be zero or more and finite; got {threshold}.")
    change, energy = changes(query, other)
    shape, is_changed = change.shape, change > threshold
    length, total = float(np.linalg.norm(change)), float(change.sum())
    sparsity = math.nan
    if length > 0 and change.size > 1:
        root = math.sqrt(change.size)
        sparsity = (root - total / length) / (root - 1)
    return EditSize(
        mean_squared=float(np.mean((other.astype(np.float64) - query) ** 2)),
        concentration=_box(is_changed.any(1), is_changed.any(0), shape),
        energy_concentration=_energy_box(energy),
        area=float(is_changed.mean()),
        sparsity=sparsity,
    )


def changes(query: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest absolute change of a pixel's channels, and the sum of their squares, [H W] each.

    Args:
        query: [C H W].
        other: likewise.

    Raises:
        ShapeError: images without channels, or of different shapes.
        DataError: values that are not finite.
    """
    query, other = real_array(query, "query"), real_array(other, "counterfactual")
    if query.ndim != 3 or query.shape != other.shape:
        raise ShapeError(
            "Query and counterfactual must be images [C H W] of one shape; got "
            f"{query.shape} and {other.shape}."
        )
    difference = other - query
    return np.abs(difference).max(0), (difference**2).sum(0)


def _box(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]) -> float:
    """Share of the image of the box between the first and last of each."""
    if not rows.any():
        return math.nan
    height, width = (np.ptp(np.flatnonzero(side)) + 1 for side in (rows, columns))
    return float(height * width / math.prod(shape))


def _energy_box(energy: np.ndarray) -> float:
    """Box that leaves at most a quarter of the rest beyond each of its sides."""
    total = energy.sum()
    if total == 0:
        return math.nan
    rest = (1 - _MOST_OF_THE_ENERGY) / 4 * total
    inside = []
    for axis in (1, 0):
        profile = energy.sum(axis)
        # What lies before and after each row or column, itself included.
        inside.append((profile.cumsum() > rest) & (profile[::-1].cumsum()[::-1] > rest))
    return _box(*inside, energy.shape)
