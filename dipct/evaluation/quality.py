"""Image quality against a known truth."""

import numpy as np

from dipct.errors import DataError, ShapeError


def psnr(
    image: np.ndarray,
    truth: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    data_range: float | None = None,
) -> float:
    """Peak signal-to-noise ratio, ``20 log10(range) - 10 log10(MSE)``.

    Args:
        image: [H W] or [Z H W].
        truth: of the same shape and unit.
        mask: pixels that count, boolean; all by default.
        data_range: of possible values, as one for photographs; default: maximum minus minimum of
            the truth (inside the mask).

    Returns:
        PSNR in dB; infinite for equal images.

    Raises:
        ShapeError: image, truth or mask differ in shape.
        DataError: values that are not finite, an empty mask, a constant truth, or a range that
            is not positive.
    """
    image, truth, inside = _checked(image, truth, mask)
    span = _range(truth[inside], data_range)
    error = float(np.mean((image[inside] - truth[inside]) ** 2))
    if error == 0:
        return float("inf")
    return float(20 * np.log10(span) - 10 * np.log10(error))


def ssim(
    image: np.ndarray,
    truth: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    data_range: float | None = None,
) -> float:
    """Structural similarity (Wang et al. 2004, IEEE Trans. Image Process. 13, 600).

    Uniform windows of 7 pixels along every axis, range as in :func:`psnr`. With a mask, the mean of
    the local similarities is taken inside it; windows reach beyond its edge.

    Args:
        image: [H W] or [Z H W], at least 7 pixels along each axis.
        truth: of the same shape and unit.
        mask: pixels that count, boolean; all by default.
        data_range: see :func:`psnr`.

    Returns:
        Mean structural similarity, at most 1.

    Raises:
        ShapeError: image, truth or mask differ in shape, or are smaller than the window.
        DataError: values that are not finite, an empty mask, a constant truth, or a range that
            is not positive.
    """
    from skimage.metrics import structural_similarity

    image, truth, inside = _checked(image, truth, mask)
    if min(truth.shape) < 7:
        raise ShapeError(f"SSIM needs at least 7 pixels along each axis; got {truth.shape}.")
    span = _range(truth[inside], data_range)
    if mask is None:
        return float(structural_similarity(truth, image, data_range=span))
    _, local = structural_similarity(truth, image, data_range=span, full=True)
    return float(np.mean(local[inside]))


def relative_error(
    image: np.ndarray, truth: np.ndarray, *, mask: np.ndarray | None = None
) -> float:
    """Euclidean norm of the error over that of the truth.

    Args:
        image: any shape.
        truth: of the same shape and unit.
        mask: pixels that count, boolean; all by default.

    Returns:
        ``||image - truth|| / ||truth||``, dimensionless.

    Raises:
        ShapeError: image, truth or mask differ in shape.
        DataError: values that are not finite, an empty mask, or a truth that is zero.
    """
    image, truth, inside = _checked(image, truth, mask)
    norm = float(np.linalg.norm(truth[inside]))
    if norm == 0:
        raise DataError("The truth is zero everywhere: a relative error does not exist.")
    return float(np.linalg.norm(image[inside] - truth[inside])) / norm


def _checked(
    image: np.ndarray, truth: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both arrays as float64, and the mask in full."""
    arrays = []
    for values, name in ((image, "image"), (truth, "truth")):
        array = np.asarray(values)
        if array.dtype.kind not in "bfiu":
            raise DataError(f"The {name} must be real numbers; got {array.dtype}.")
        array = array.astype(np.float64)
        if not np.all(np.isfinite(array)):
            count = np.count_nonzero(~np.isfinite(array))
            raise DataError(f"{count} of {array.size} values of the {name} are NaN or infinite.")
        arrays.append(array)
    first, second = arrays
    if first.shape != second.shape:
        raise ShapeError(
            f"image and truth must have the same shape; got {first.shape} and {second.shape}. "
            "Bring both to the same grid first."
        )
    inside = np.ones(first.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if inside.shape != first.shape:
        raise ShapeError(f"The mask must have the images' shape {first.shape}; got {inside.shape}.")
    if not inside.any():
        raise DataError("No pixel is left to compare: the image or the mask is empty.")
    return first, second, inside


def _range(truth: np.ndarray, given: float | None) -> float:
    if given is not None:
        if not 0 < given < np.inf:
            raise DataError(f"data_range must be positive and finite; got {given}.")
        return float(given)
    span = float(np.ptp(truth))
    if span == 0:
        raise DataError(
            f"The truth is constant ({truth.flat[0]:g}), so that its range is zero and neither "
            "PSNR nor SSIM exists. Use relative_error."
        )
    return span
