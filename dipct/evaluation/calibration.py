"""Whether predicted intervals hold the truth as often as they claim."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from dipct.errors import ConfigurationError
from dipct.evaluation.arrays import errors_of_mean, real_array, samples_of, standard_deviations


@dataclass(frozen=True)
class CalibrationCurve:
    """Coverage of central intervals against their level (Gneiting et al. 2007, JRSS B 69, 243).

    Attributes:
        levels: what the intervals claim to hold, [L] in (0, 1).
        coverage: the share of pixels they hold, [L].
    """

    levels: np.ndarray
    coverage: np.ndarray

    @property
    def calibration_error(self) -> float:
        """Mean of ``|coverage - level|``; 0 is perfect."""
        return float(np.mean(np.abs(self.coverage - self.levels)))

    @property
    def signed_error(self) -> float:
        """Mean of ``coverage - level``: negative where over-confident, positive where too wide."""
        return float(np.mean(self.coverage - self.levels))


def coverage(
    truth: np.ndarray, mean: np.ndarray, std: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """Share of the pixels that lie inside central Gaussian intervals.

    The interval of level p is ``mean +- Phi^-1((1 + p) / 2) std``.

    Args:
        truth: any shape.
        mean: of the same shape and unit.
        std: predicted standard deviations, of the same shape and unit, above zero.
        levels: probabilities in (0, 1), [L].

    Returns:
        Shares from 0 to 1, [L].

    Raises:
        ShapeError: the shapes differ.
        ConfigurationError: levels outside (0, 1).
        DataError: values that are not finite, or a std that is not above zero.
    """
    levels = _checked_levels(levels)
    error = errors_of_mean(truth, mean)
    standardised = np.sort(np.abs(error / standard_deviations(error, std)), axis=None)
    return np.searchsorted(standardised, ndtri((1 + levels) / 2), side="right") / error.size


def calibration_curve(
    truth: np.ndarray, mean: np.ndarray, std: np.ndarray, levels: np.ndarray | None = None
) -> CalibrationCurve:
    """Coverage of Gaussian intervals at many levels.

    For samples, make a :class:`CalibrationCurve` of levels and :func:`coverage_of_samples`.

    Args:
        truth: any shape.
        mean: of the same shape and unit.
        std: predicted standard deviations, of the same shape and unit, above zero.
        levels: probabilities in (0, 1), [L]; 0.05, 0.10, ..., 0.95 by default.

    Raises:
        ShapeError: the shapes differ.
        ConfigurationError: levels outside (0, 1).
        DataError: values that are not finite, or a std that is not above zero.
    """
    levels = _checked_levels(np.arange(1, 20) / 20 if levels is None else levels).copy()
    return CalibrationCurve(levels, coverage(truth, mean, std, levels))


def coverage_of_samples(truth: np.ndarray, samples: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Share of the pixels that lie between central quantiles of samples.

    The quantile k / (S + 1) is the k-th of S sorted samples, linear in between (definition 6 of
    Hyndman & Fan 1996, Am. Stat. 50, 361): a truth from the same distribution lies below it with
    just that probability, however few the samples.

    Args:
        truth: any shape [...].
        samples: [S ...] in the same unit.
        levels: probabilities in (0, (S - 1) / (S + 1)], [L]; beyond it there are no quantiles.

    Returns:
        Shares from 0 to 1, [L].

    Raises:
        ShapeError: samples that do not have the shape of the truth, or fewer than two.
        ConfigurationError: levels outside (0, 1), or too high for the number of samples.
        DataError: values that are not finite.
    """
    truth, samples = samples_of(truth, samples)
    levels = _checked_levels(levels)
    count = len(samples)
    # The level between the outermost samples may have been computed with another rounding.
    if np.any(levels > (count - 1) / (count + 1) + 1e-12):
        raise ConfigurationError(
            f"The {count} samples reach intervals of level {(count - 1) / (count + 1):.4g} at "
            f"most; got {levels.max():.4g}. Draw more samples or ask for a lower level."
        )
    tails = np.concatenate([(1 - levels) / 2, (1 + levels) / 2])
    lower, upper = np.split(np.quantile(samples, tails, axis=0, method="weibull"), 2)
    inside = (lower <= truth) & (truth <= upper)
    return inside.reshape(len(levels), -1).mean(axis=1)


def _checked_levels(levels: np.ndarray) -> np.ndarray:
    values = real_array(levels, "levels")
    if values.ndim != 1 or np.any(values <= 0) or np.any(values >= 1):
        raise ConfigurationError(
            f"levels must be probabilities between 0 and 1 in an array [L]; got {levels}."
        )
    return values
