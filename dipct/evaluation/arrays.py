"""What a predictive distribution is scored from: real, finite arrays of shapes that fit."""

import numpy as np

from dipct.errors import DataError, ShapeError


def real_array(values: np.ndarray, name: str) -> np.ndarray:
    """The array in float64, refused where it holds anything but finite real numbers.

    Args:
        values: any shape.
        name: what it is, for the message.

    Raises:
        DataError: it is empty, not real, or not finite.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "bfiu":
        raise DataError(f"The {name} must be real numbers; got {array.dtype}.")
    if array.size == 0:
        raise DataError(f"The {name} of shape {array.shape} is empty: nothing is left to score.")
    finite = np.isfinite(array)
    if not finite.all():
        count = array.size - np.count_nonzero(finite)
        raise DataError(f"{count} of {array.size} values of the {name} are NaN or infinite.")
    return array.astype(np.float64, copy=False)


def errors_of_mean(truth: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Truth minus predicted mean.

    Args:
        truth: any shape.
        mean: of the same shape and unit.

    Raises:
        ShapeError: the shapes differ.
        DataError: values that are not finite, or no values.
    """
    truth, mean = real_array(truth, "truth"), real_array(mean, "mean")
    same_shape(truth, mean, "mean")
    return truth - mean


def standard_deviations(
    truth: np.ndarray, std: np.ndarray, *, zero_allowed: bool = False
) -> np.ndarray:
    """Predicted standard deviations of every pixel.

    Args:
        truth: any shape.
        std: of the same shape and unit.
        zero_allowed: whether zeros may occur, where only the order counts.

    Raises:
        ShapeError: the shapes differ.
        DataError: values that are negative, zero unless allowed, or not finite.
    """
    deviations = real_array(std, "std")
    same_shape(np.asarray(truth), deviations, "std")
    wrong = deviations < 0 if zero_allowed else deviations <= 0
    if wrong.any():
        raise DataError(
            f"{np.count_nonzero(wrong)} of {wrong.size} standard deviations are not "
            f"{'at least' if zero_allowed else 'above'} zero. Leave those pixels out, or add the "
            "noise that the truth itself has."
        )
    return deviations


def samples_of(truth: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A truth and samples of its predictive distribution.

    Args:
        truth: any shape [...].
        samples: [S ...], at least two.

    Raises:
        ShapeError: the samples do not have the shape of the truth, or are fewer than two.
        DataError: values that are not finite, or no values.
    """
    truth, samples = real_array(truth, "truth"), real_array(samples, "samples")
    if samples.ndim == 0 or samples.shape[1:] != truth.shape or len(samples) < 2:
        raise ShapeError(
            "samples must be at least two arrays of the truth's shape, "
            f"[S {' '.join(map(str, truth.shape))}] with S > 1; got {samples.shape}."
        )
    return truth, samples


def same_shape(truth: np.ndarray, other: np.ndarray, name: str) -> None:
    """Check that an array has the shape of the truth.

    Args:
        truth: any shape.
        other: what must have it as well.
        name: what that is, for the message.

    Raises:
        ShapeError: it has not.
    """
    if other.shape != truth.shape:
        raise ShapeError(
            f"truth and {name} must have the same shape; got {truth.shape} and {other.shape}. "
            "Bring both to the same grid first."
        )
