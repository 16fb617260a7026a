"""Log-likelihood of the true image under a Gaussian predictive distribution."""

import numpy as np

from dipct.errors import ConfigurationError, DataError
from dipct.evaluation.arrays import errors_of_mean, real_array, same_shape, standard_deviations
from dipct.evaluation.patches import Region, inside_image, patches
from dipct.evaluation.whitening import cholesky_factor, whiten
from dipct.shapes import check_shape


def gaussian_log_likelihood(truth: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """``log N(truth; mean, covariance)`` of all pixels together, per pixel.

    Args:
        truth: any shape, n pixels.
        mean: of the same shape and unit.
        covariance: [n n] of the pixels in the order of ``ravel``, in that unit squared.

    Returns:
        Log-density divided by n, in nats per pixel; it depends on the unit of the image.

    Raises:
        ShapeError: arrays that do not fit together.
        DataError: values that are not finite, or a covariance that is not symmetric or not
            positive definite. Nothing is added to its diagonal.
    """
    error = errors_of_mean(truth, mean).ravel()
    return _log_density(error, cholesky_factor(covariance, error.size)) / error.size


def pixel_log_likelihood(truth: np.ndarray, mean: np.ndarray, std: np.ndarray) -> float:
    """Log-density of independent Gaussian pixels, per pixel.

    Args:
        truth: any shape.
        mean: of the same shape and unit.
        std: predicted standard deviations, of the same shape and unit, above zero.

    Returns:
        Mean of ``log N(truth; mean, std^2)`` in nats per pixel.

    Raises:
        ShapeError: the shapes differ.
        DataError: values that are not finite, or a std that is not above zero.
    """
    error = errors_of_mean(truth, mean)
    return _independent(error, np.square(standard_deviations(error, std)))


def patch_log_likelihood(
    truth: np.ndarray,
    mean: np.ndarray,
    deviations: np.ndarray,
    *,
    patch: int,
    region: Region | None = None,
    noise_variance: float = 0.0,
    shrinkage: float = 0.5,
) -> float:
    """Log-density of independent Gaussian patches with covariances from samples, per pixel.

    As for the linearised deep image prior (Antoran et al., arXiv 2203.00479): squares of
    ``patch`` x ``patch`` pixels that do not overlap, from the upper left corner on, the last ones
    of each direction enlarged by the pixels that are left over. The covariance of a patch is the
    second moment C of the deviations in it. Its off-diagonal entries are multiplied by
    ``shrinkage``; 0.5 gives ``(C + diag C) / 2`` as in SWAG (Maddox et al. 2019, arXiv 1902.02476),
    positive definite with few samples as well. The diagonal then gains ``noise_variance``.

    Args:
        truth: [H W].
        mean: [H W] in the same unit.
        deviations: [S H W], posterior samples *minus their mean*, in that unit. The caller
            subtracts it; whatever is left of it counts as variance.
        patch: side of the squares in pixels, at least 1.
        region: rows and columns that are evaluated; the squares start at its corner. The whole
            image by default.
        noise_variance: of the truth, in the unit squared.
        shrinkage: factor of the off-diagonal entries, from 0 (independent pixels) to 1 (the second
            moment itself).

    Returns:
        Sum of the log-densities divided by the number of evaluated pixels, in nats per pixel.

    Raises:
        ShapeError: arrays that do not fit together.
        ConfigurationError: a patch, region, noise or shrinkage that is impossible, or a shrinkage
            of 1 with too few samples for the largest patch.
        DataError: values that are not finite, fewer than two deviations, or pixels without any
            variance.
    """
    truth, mean, deviations = np.asarray(truth), np.asarray(mean), np.asarray(deviations)
    check_shape(truth, "H W", name="truth")
    same_shape(truth, mean, "mean")
    height, width = truth.shape
    check_shape(deviations, "S H W", name="deviations", H=height, W=width)
    if not 0 <= noise_variance < np.inf or not 0 <= shrinkage <= 1:
        raise ConfigurationError(
            "noise_variance must be at least 0 and shrinkage lie in [0, 1]; got "
            f"{noise_variance} and {shrinkage}."
        )
    evaluated = inside_image(region, height, width)
    error = errors_of_mean(truth[evaluated], mean[evaluated])
    samples = real_array(deviations[:, *evaluated], "deviations")
    squares = patches(*error.shape, patch)
    _check_number(len(samples), max(error[square].size for square in squares), shrinkage)
    variances = np.einsum("shw,shw->hw", samples, samples) / len(samples) + noise_variance
    if not variances.all():
        raise DataError(
            f"{np.count_nonzero(variances == 0)} of {variances.size} pixels have no variance in "
            "any sample, so that the Gaussian has no density. Give a noise_variance above 0, such "
            "as the noise of the truth, or a region without them."
        )
    if patch == 1:
        return _independent(error, variances)
    total = 0.0
    for square in squares:
        inside = samples[:, *square].reshape(len(samples), -1)
        covariance = shrinkage * (inside.T @ inside) / len(samples)
        np.fill_diagonal(covariance, variances[square])
        factor = cholesky_factor(covariance, inside.shape[1])
        total += _log_density(error[square].ravel(), factor)
    return total / error.size


def _check_number(samples: int, pixels: int, shrinkage: float) -> None:
    """Whether the samples are enough for the covariance of so many pixels."""
    if samples < 2:
        raise DataError(f"A covariance needs at least two deviations; got {samples}.")
    # A noise variance makes the matrix definite, but it remains an estimate from too little.
    if shrinkage == 1 and pixels > 1 and samples <= pixels:
        raise ConfigurationError(
            f"{samples} samples cannot determine the covariance of a patch of {pixels} pixels. "
            "Draw more than that, take a smaller patch or a shrinkage below 1."
        )


def _log_density(error: np.ndarray, factor: np.ndarray) -> float:
    """Of a centred Gaussian with the lower Cholesky factor of its covariance."""
    white = whiten(error, factor)
    log_determinant = 2 * np.sum(np.log(np.diag(factor)))
    return -0.5 * float(white @ white + log_determinant + error.size * np.log(2 * np.pi))


def _independent(error: np.ndarray, variances: np.ndarray) -> float:
    return -0.5 * float(np.mean(error**2 / variances + np.log(2 * np.pi * variances)))
