"""Segmentation of a reconstruction into material and air, and its score."""

import numpy as np

from dipct.errors import DataError, ShapeError


def otsu_segmentation(image: np.ndarray) -> np.ndarray:
    """Split an image at Otsu's threshold (1979, IEEE Trans. Syst. Man Cybern. 9, 62).

    Args:
        image: any shape.

    Returns:
        True above the threshold, of the same shape.

    Raises:
        DataError: values that are not finite, or all equal.
    """
    from skimage.filters import threshold_otsu

    values = np.asarray(image)
    if values.dtype.kind not in "fiu" or values.size == 0:
        raise DataError(f"The image must hold real numbers; got {values.dtype}, {values.shape}.")
    if not np.all(np.isfinite(values)):
        raise DataError("The image holds NaN or infinite values; it cannot be segmented.")
    if np.ptp(values) == 0:
        raise DataError("The image is constant: there is nothing to segment.")
    return values > threshold_otsu(values)


def matthews_correlation(segmentation: np.ndarray, reference: np.ndarray) -> float:
    """Matthews correlation coefficient of two binary images.

    ``(TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN))`` from the counts of true
    and false positives and negatives (Matthews 1975, Biochim. Biophys. Acta 405, 442); the score
    of the Helsinki Tomography Challenge 2022. It is 0 where the denominator vanishes because the
    segmentation is constant.

    Args:
        segmentation: boolean or 0 and 1, any shape.
        reference: of the same shape; holds both values.

    Returns:
        From -1 (opposite) over 0 (unrelated) to 1 (equal).

    Raises:
        ShapeError: the shapes differ.
        DataError: other values than 0 and 1, or a constant reference.
    """
    found = _binary(segmentation, "segmentation")
    true = _binary(reference, "reference")
    if found.shape != true.shape:
        raise ShapeError(
            "segmentation and reference must have the same shape; got "
            f"{found.shape} and {true.shape}."
        )
    if true.all() or not true.any():
        raise DataError("The reference holds only one class: no score exists.")
    # Python integers: the product of four counts overflows 64 bits for large images.
    tp = int(np.count_nonzero(found & true))
    tn = int(np.count_nonzero(~found & ~true))
    fp = int(np.count_nonzero(found & ~true))
    fn = int(np.count_nonzero(~found & true))
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / product**0.5 if product else 0.0


def _binary(values: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype == bool:
        return array
    if array.dtype.kind not in "fiu" or not np.all((array == 0) | (array == 1)):
        raise DataError(
            f"The {name} must be boolean or hold only 0 and 1; segment the image first, for "
            "instance with otsu_segmentation."
        )
    return array == 1
