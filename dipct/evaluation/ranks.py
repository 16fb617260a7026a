"""Where the truth lies within its predictive distribution, and whether that is uniform."""

import numpy as np
from scipy.special import ndtr

from dipct.errors import ConfigurationError, DataError
from dipct.evaluation.arrays import errors_of_mean, real_array, samples_of, standard_deviations


def probability_integral_transform(
    truth: np.ndarray, mean: np.ndarray, std: np.ndarray
) -> np.ndarray:
    """Probability of a value below the truth, ``Phi((truth - mean) / std)``.

    It is uniform on [0, 1] where the prediction is right, piles up at both ends where it is
    over-confident and in the middle where it is too wide (Dawid 1984, J. R. Stat. Soc. A 147, 278).

    Args:
        truth: any shape.
        mean: of the same shape and unit.
        std: predicted standard deviations, of the same shape and unit, above zero.

    Returns:
        Probabilities, of the same shape.

    Raises:
        ShapeError: the shapes differ.
        DataError: values that are not finite, or a std that is not above zero.
    """
    error = errors_of_mean(truth, mean)
    return ndtr(error / standard_deviations(error, std))


def rank_of_truth(truth: np.ndarray, samples: np.ndarray, *, seed: int | None = None) -> np.ndarray:
    """Number of samples below the truth, per pixel (Talts et al. 2018, arXiv 1804.06788).

    Where truth and samples come from the same distribution, and the samples are independent, each
    of 0, 1, ..., S is equally probable.

    Args:
        truth: any shape [...], also of no axis for one number that sums the image up.
        samples: [S ...] in the same unit.
        seed: for the rank among samples that equal the truth, which is drawn; needed where there
            are such, as in images clipped at zero.

    Returns:
        Ranks from 0 to S, whole numbers of the truth's shape.

    Raises:
        ShapeError: samples that do not have the shape of the truth, or fewer than two.
        DataError: values that are not finite, or equal ones and no seed.
    """
    truth, samples = samples_of(truth, samples)
    ranks = np.asarray(np.count_nonzero(samples < truth, axis=0))
    ties = np.asarray(np.count_nonzero(samples == truth, axis=0))
    if not ties.any():
        return ranks
    if seed is None:
        raise DataError(
            f"{np.count_nonzero(ties)} of {ties.size} true values equal some of their samples. "
            "Give a seed, so that their rank among these is drawn, or leave those pixels out."
        )
    return ranks + np.random.default_rng(seed).integers(0, ties, endpoint=True)


def rank_uniformity(ranks: np.ndarray, n_samples: int, bins: int) -> tuple[float, float]:
    """Pearson's chi-square test that ranks are uniform, for simulation-based calibration.

    One rank each from many simulated pairs of truth and data (Talts et al. 2018, algorithm 1).
    The ranks have to be independent: those of the pixels of one image are not, so that their
    p-value would be far too small.

    Args:
        ranks: from 0 to ``n_samples``, any shape.
        n_samples: S, out of which each rank is.
        bins: of the histogram, from 2 to S + 1; where it does not divide S + 1, the expected
            counts differ accordingly.

    Returns:
        Statistic, with ``bins - 1`` degrees of freedom, and p-value.

    Raises:
        ConfigurationError: an impossible number of samples or bins.
        DataError: ranks that are not whole numbers from 0 to S, or so few that fewer than five are
            expected in a bin.
    """
    from scipy.stats import chisquare

    if not (n_samples >= 1 and 2 <= bins <= n_samples + 1):
        raise ConfigurationError(
            "n_samples must be at least 1 and bins lie between 2 and n_samples + 1; got "
            f"{n_samples} and {bins}."
        )
    values = real_array(ranks, "ranks").ravel()
    if np.any((values != np.round(values)) | (values < 0) | (values > n_samples)):
        raise DataError(
            f"Ranks must be whole numbers from 0 to n_samples = {n_samples}; got values from "
            f"{values.min():g} to {values.max():g}."
        )
    bin_of_rank = np.arange(n_samples + 1) * bins // (n_samples + 1)
    observed = np.bincount(bin_of_rank[values.astype(int)], minlength=bins)
    expected = values.size * np.bincount(bin_of_rank, minlength=bins) / (n_samples + 1)
    if expected.min() < 5:
        raise DataError(
            f"{values.size} ranks in {bins} bins are {expected.min():.3g} expected in a bin; the "
            "chi-square distribution needs at least 5. Take fewer bins or more ranks."
        )
    test = chisquare(observed, expected)
    return float(test.statistic), float(test.pvalue)
