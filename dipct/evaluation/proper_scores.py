"""Proper scores of predictive distributions: lower is better, and the true one is the best.

All have the unit of the image, and would be 0 for a prediction that is certain and right.
"""

import numpy as np
from scipy.spatial.distance import pdist
from scipy.special import erf

from dipct.evaluation.arrays import errors_of_mean, samples_of, standard_deviations


def gaussian_crps(truth: np.ndarray, mean: np.ndarray, std: np.ndarray) -> float:
    """Continuous ranked probability score of Gaussian pixels.

    With the standardised error z, ``std (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi))``: the
    closed form of eq. 21 in Gneiting & Raftery 2007 (J. Am. Stat. Assoc. 102, 359), section 4.2,
    with the opposite sign.

    Args:
        truth: any shape.
        mean: of the same shape and unit.
        std: predicted standard deviations, of the same shape and unit, above zero.

    Returns:
        Mean over the pixels.

    Raises:
        ShapeError: the shapes differ.
        DataError: values that are not finite, or a std that is not above zero.
    """
    error = errors_of_mean(truth, mean)
    std = standard_deviations(error, std)
    z = error / std
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return float(np.mean(std * (z * erf(z / np.sqrt(2)) + 2 * density - 1 / np.sqrt(np.pi))))


def sample_crps(truth: np.ndarray, samples: np.ndarray) -> float:
    """Continuous ranked probability score from samples, in its fair form.

    ``E|X - x| - E|X - X'| / 2`` (Gneiting & Raftery 2007, eq. 21) with the mean over pairs of
    *different* samples (Ferro 2014, Q. J. R. Meteorol. Soc. 140, 1917): its expectation is the
    score of the distribution, however few the samples. It may therefore be negative by chance.

    Args:
        truth: any shape [...].
        samples: [S ...] in the same unit, independent.

    Returns:
        Mean over the pixels.

    Raises:
        ShapeError: samples that do not have the shape of the truth, or fewer than two.
        DataError: values that are not finite.
    """
    truth, samples = samples_of(truth, samples)
    deviations = samples - truth
    distance = np.mean(np.abs(deviations))
    # The distances of all pairs, each taken once, are linear in the sorted samples.
    count = len(deviations)
    weights = (2 * np.arange(1, count + 1) - count - 1) / (count * (count - 1))
    spread = np.mean(np.tensordot(weights, np.sort(deviations, axis=0), axes=1))
    return float(distance - spread)


def energy_score(truth: np.ndarray, samples: np.ndarray) -> float:
    """Energy score of whole images from samples, in its fair form.

    ``E||X - x|| - E||X - X'|| / 2`` with Euclidean norms over all pixels (Gneiting & Raftery 2007,
    eq. 22 with exponent 1) and the mean over pairs of different samples; for one pixel it is
    :func:`sample_crps`. The norms are not divided by the number of pixels. It takes
    S (S - 1) / 2 distances of images.

    Args:
        truth: any shape [...].
        samples: [S ...] in the same unit, independent.

    Returns:
        The score.

    Raises:
        ShapeError: samples that do not have the shape of the truth, or fewer than two.
        DataError: values that are not finite.
    """
    truth, samples = samples_of(truth, samples)
    deviations = (samples - truth).reshape(len(samples), -1)
    return float(np.mean(np.linalg.norm(deviations, axis=1)) - np.mean(pdist(deviations)) / 2)
