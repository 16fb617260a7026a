"""Whether the predicted standard deviation is large where the error is."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dipct.errors import ConfigurationError, DataError
from dipct.evaluation.arrays import errors_of_mean, standard_deviations


@dataclass(frozen=True)
class ErrorCorrelation:
    """Correlation of the standard deviation with the absolute error over the pixels.

    Attributes:
        pearson: of the values, from -1 to 1.
        spearman: of their ranks, from -1 to 1.
    """

    pearson: float
    spearman: float


@dataclass(frozen=True)
class Sparsification:
    """Error that remains without the pixels of largest standard deviation.

    All errors are relative to that of all pixels.

    Attributes:
        removed: share of the pixels that are left out, [K] from 0 on.
        remaining: error of the others, [K].
        oracle: the same where those of largest error are left out, the least possible, [K].
        random: expected where they are drawn by chance, 1, [K].
    """

    removed: np.ndarray
    remaining: np.ndarray
    oracle: np.ndarray
    random: np.ndarray

    @property
    def ause(self) -> float:
        """Area under the sparsification error, from the oracle to what remains; 0 is perfect."""
        return self._area(self.remaining)

    @property
    def random_ause(self) -> float:
        """The same of a standard deviation that knows nothing of the error, to compare with."""
        return self._area(self.random)

    def _area(self, curve: np.ndarray) -> float:
        from scipy.integrate import trapezoid

        return float(trapezoid(curve - self.oracle, self.removed))


def error_correlation(truth: np.ndarray, mean: np.ndarray, std: np.ndarray) -> ErrorCorrelation:
    """Correlation of the predicted standard deviation with the absolute error.

    Even a perfect prediction stays well below 1: the standard deviation is known, but the error is
    drawn from it.

    Args:
        truth: any shape.
        mean: of the same shape and unit.
        std: predicted standard deviations, of the same shape.

    Raises:
        ShapeError: the shapes differ.
        DataError: values that are not finite, a negative std, or a std or errors without any
            variation.
    """
    from scipy.stats import pearsonr, spearmanr

    error = np.abs(errors_of_mean(truth, mean)).ravel()
    std = standard_deviations(truth, std, zero_allowed=True).ravel()
    for values, name in ((std, "standard deviation"), (error, "absolute error")):
        if np.ptp(values) == 0:
            raise DataError(f"The {name} is {values[0]:g} everywhere: no correlation exists.")
    return ErrorCorrelation(
        pearson=float(pearsonr(std, error).statistic),
        spearman=float(spearmanr(std, error).statistic),
    )


def sparsification(
    truth: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    *,
    error: Literal["mean absolute", "root mean square"] = "mean absolute",
    steps: int = 100,
) -> Sparsification:
    """Remove the pixels of largest standard deviation and watch the error that remains.

    See Ilg et al., ECCV 2018, arXiv 1802.07095. Among pixels of equal standard
    deviation those removed are drawn by chance, of which the expectation is taken.

    Args:
        truth: any shape.
        mean: of the same shape and unit.
        std: predicted standard deviations, of the same shape.
        error: how the errors of the pixels are put together.
        steps: number K of the shares 0, 1 / K, ..., (K - 1) / K that are removed, at least two and
            at most one for every pixel.

    Raises:
        ShapeError: the shapes differ.
        ConfigurationError: an unknown error or an impossible number of steps.
        DataError: values that are not finite, a negative std, or no error anywhere.
    """
    power = {"mean absolute": 1, "root mean square": 2}.get(error)
    if power is None:
        raise ConfigurationError(
            f"error must be 'mean absolute' or 'root mean square'; got {error!r}."
        )
    losses = np.abs(errors_of_mean(truth, mean)).ravel() ** power
    std = standard_deviations(truth, std, zero_allowed=True).ravel()
    if not 2 <= steps <= losses.size:
        raise ConfigurationError(
            f"steps must lie between 2 and the number of pixels, {losses.size}; got {steps}."
        )
    if not losses.any():
        raise DataError("The mean equals the truth everywhere: there is no error to remove.")
    kept = losses.size - losses.size * np.arange(steps) // steps
    scale = np.mean(losses) ** (1 / power)

    def curve(criterion: np.ndarray) -> np.ndarray:
        _, group, sizes = np.unique(criterion, return_inverse=True, return_counts=True)
        expected = (np.bincount(group, losses) / sizes)[group]
        sums = np.cumsum(expected[np.argsort(criterion)])
        return (sums[kept - 1] / kept) ** (1 / power) / scale

    return Sparsification(
        removed=1 - kept / losses.size,
        remaining=curve(std),
        oracle=curve(losses),
        random=np.ones(steps),
    )
