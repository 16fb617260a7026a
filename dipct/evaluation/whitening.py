"""Errors freed from the covariance that was predicted for them."""

import numpy as np
from scipy import linalg
from scipy.linalg import lapack

from dipct.errors import DataError, ShapeError
from dipct.evaluation.arrays import errors_of_mean, real_array

_ASYMMETRY = 1e-5
"""Largest asymmetry relative to the largest entry; a product formed in float32 stays below it."""


def whitened_errors(truth: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Solve ``L z = truth - mean`` with the lower Cholesky factor L of the covariance.

    Where truth is drawn from N(mean, covariance), the values are independent standard normal:
    ``z^T z`` is the squared Mahalanobis distance (Bastos & O'Hagan 2009, Technometrics 51, 425).
    The order of the pixels counts: value i is what the pixels before it do not explain of the error
    of pixel i.

    Args:
        truth: any shape, n pixels.
        mean: of the same shape and unit.
        covariance: [n n] of the pixels in the order of ``ravel``, in that unit squared.

    Returns:
        Dimensionless errors [n].

    Raises:
        ShapeError: arrays that do not fit together.
        DataError: values that are not finite, or a covariance that is not symmetric or not
            positive definite.
    """
    error = errors_of_mean(truth, mean).ravel()
    return whiten(error, cholesky_factor(covariance, error.size))


def quantile_quantile(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of errors against those of the standard normal distribution.

    The theoretical ones are at Filliben's medians of the order statistics (1975, Technometrics 17,
    111). On the diagonal the errors are standard normal; a line steeper than it tells of standard
    deviations that were predicted too small.

    Args:
        errors: standardised or whitened errors, any shape, n values.

    Returns:
        Theoretical and observed quantiles, each [n] and rising.

    Raises:
        DataError: values that are not finite, or fewer than two.
    """
    from scipy.stats import probplot

    values = real_array(errors, "errors").ravel()
    if values.size < 2:
        raise DataError(f"Quantiles need at least two errors; got {values.size}.")
    theoretical, observed = probplot(values, fit=False)
    return theoretical, observed


def cholesky_factor(covariance: np.ndarray, size: int) -> np.ndarray:
    """Lower Cholesky factor in float64, with nothing added to the diagonal.

    Args:
        covariance: [n n].
        size: n.

    Raises:
        ShapeError: another shape.
        DataError: values that are not finite, or a matrix that is not symmetric, or not positive
            definite within rounding errors.
    """
    matrix = real_array(covariance, "covariance")
    if matrix.shape != (size, size):
        raise ShapeError(
            f"The covariance of {size} pixels must have shape ({size}, {size}); got {matrix.shape}."
        )
    # Cholesky reads one triangle only, and would not notice what the other one says.
    asymmetry, largest = np.max(np.abs(matrix - matrix.T)), np.max(np.abs(matrix))
    if asymmetry > _ASYMMETRY * largest:
        raise DataError(
            f"The covariance is not symmetric: entries differ by {asymmetry:g} from their mirror "
            f"images, the largest one is {largest:g}. Use (C + C^T) / 2 if that is what is meant."
        )
    variances = np.diag(matrix)
    if variances.min() <= 0:
        raise DataError(_not_definite(f"pixel {variances.argmin()} has no variance above zero"))
    # Scaled to correlations, so that the condition does not depend on the unit of any pixel.
    scale = np.sqrt(variances)
    correlation = matrix / scale / scale[:, None]
    try:
        factor = linalg.cholesky(correlation, lower=True, check_finite=False)
    except linalg.LinAlgError as error:
        raise DataError(_not_definite(f"{error}".rstrip("."))) from error
    # The pivots of a singular matrix are rounding errors, and positive in half of the cases.
    norm = np.abs(correlation).sum(axis=0).max()
    reciprocal_condition, _ = lapack.dpocon(factor, norm, uplo="L")
    if reciprocal_condition <= size * np.finfo(np.float64).eps:
        raise DataError(_not_definite("the correlations are singular within rounding errors"))
    return scale[:, None] * factor


def whiten(error: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Solve ``L z = error``.

    Args:
        error: [n].
        factor: lower triangular L, [n n].
    """
    return linalg.solve_triangular(factor, error, lower=True, check_finite=False)


def _not_definite(reason: str) -> str:
    return (
        f"The covariance is not positive definite ({reason}), so that the Gaussian has no density. "
        "Add a stabilising noise variance to its diagonal, such as the noise of the truth, and "
        "report it with the score: the score depends on it."
    )
