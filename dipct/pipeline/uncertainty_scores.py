"""How well an uncertainty agrees with the error that is there."""

import numpy as np

from dipct.errors import ConfigurationError
from dipct.evaluation import (
    calibration_curve,
    error_correlation,
    gaussian_crps,
    gaussian_log_likelihood,
    patch_log_likelihood,
    pixel_log_likelihood,
    sparsification,
    whitened_errors,
)

_PATCHES = (2, 10)
_STEPS = 100


def uncertainty_scores(
    truth: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    *,
    correction: float,
    covariance: np.ndarray | None = None,
    deviations: np.ndarray | None = None,
    margin: int = 0,
) -> tuple[dict[str, float], np.ndarray | None]:
    """Scores of a posterior of an image.

    Args:
        truth: (H, W).
        mean: what the posterior is centred on, (H, W).
        std: posterior standard deviation, (H, W).
        correction: variance that noise adds to every pixel, see
            :func:`dipct.posterior.noise_correction`.
        covariance: of the image, [n n], where it is known.
        deviations: draws minus their mean, (N, H, W), where there are some.
        margin: pixels at each border that are left out.

    Returns:
        Log-likelihoods [nat per pixel]: of all pixels together where the covariance is known, of
        single pixels, and of patches where there are draws; errors of calibration; the continuous
        ranked probability score [units of the image]; and how the standard deviation goes with
        the error. Then the whitened errors (n,) where the covariance is known.

    Raises:
        ConfigurationError: a margin that leaves nothing.
    """
    inner, is_inner = inside(truth.shape, margin)
    truth, mean = truth[inner].astype(np.float64), mean[inner].astype(np.float64)
    std = std[inner]
    whole = np.sqrt(std.astype(np.float64) ** 2 + correction)
    curve = calibration_curve(truth, mean, whole)
    found = {
        "log_likelihood_pixel": pixel_log_likelihood(truth, mean, whole),
        "calibration_error": curve.calibration_error,
        "signed_calibration_error": curve.signed_error,
        "crps": gaussian_crps(truth, mean, whole),
        "noise_correction": correction,
    }
    if np.ptp(whole) > 0:
        correlation = error_correlation(truth, mean, whole)
        found["error_correlation_pearson"] = correlation.pearson
        found["error_correlation_spearman"] = correlation.spearman
        found["ause"] = sparsification(truth, mean, whole, steps=min(_STEPS, truth.size)).ause
    whitened = None
    if covariance is not None:
        chosen = np.flatnonzero(is_inner)
        total = covariance[np.ix_(chosen, chosen)] + correction * np.eye(truth.size)
        found["log_likelihood"] = gaussian_log_likelihood(truth, mean, total)
        whitened = whitened_errors(truth, mean, total)
    if deviations is not None:
        for patch in _PATCHES:
            if patch <= min(truth.shape):
                found[f"log_likelihood_patch_{patch}"] = patch_log_likelihood(
                    truth, mean, deviations[:, *inner], patch=patch, noise_variance=correction
                )
    return found, whitened


def inside(shape: tuple[int, ...], margin: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """Rows and columns of an image without its border, and which pixels those are.

    Raises:
        ConfigurationError: nothing would be left.
    """
    if 2 * margin >= min(shape):
        raise ConfigurationError(
            f"score_margin must leave pixels of an image of {shape[0]} x {shape[1]}; got {margin}."
        )
    inner = slice(margin, shape[0] - margin), slice(margin, shape[1] - margin)
    is_inner = np.zeros(shape, dtype=bool)
    is_inner[inner] = True
    return inner, is_inner
