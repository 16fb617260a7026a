"""How well an uncertainty agrees with the error that is there."""

import numpy as np

from dipct.evaluation import (
    calibration_curve,
    error_correlation,
    gaussian_crps,
    gaussian_log_likelihood,
    patch_log_likelihood,
    pixel_log_likelihood,
    sparsification,
)

_PATCHES = (2, 10)


def uncertainty_scores(
    truth: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    *,
    correction: float,
    covariance: np.ndarray | None = None,
    deviations: np.ndarray | None = None,
) -> dict[str, float]:
    """Scores of a posterior of an image.

    Args:
        truth: (H, W).
        mean: what the posterior is centred on, (H, W).
        std: posterior standard deviation, (H, W).
        correction: variance that noise adds to every pixel, see
            :func:`dipct.posterior.noise_correction`.
        covariance: of the image, [n n], where it is known.
        deviations: draws minus their mean, (N, H, W), where there are some.

    Returns:
        Log-likelihoods [nat per pixel]: of all pixels together where the covariance is known, of
        single pixels, and of patches where there are draws; errors of calibration; the continuous
        ranked probability score [units of the image]; and how the standard deviation goes with
        the error.
    """
    truth, mean = truth.astype(np.float64), mean.astype(np.float64)
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
        found["ause"] = sparsification(truth, mean, whole).ause
    if covariance is not None:
        total = covariance + correction * np.eye(truth.size)
        found["log_likelihood"] = gaussian_log_likelihood(truth, mean, total)
    if deviations is not None:
        for patch in _PATCHES:
            found[f"log_likelihood_patch_{patch}"] = patch_log_likelihood(
                truth, mean, deviations, patch=patch, noise_variance=correction
            )
    return found
