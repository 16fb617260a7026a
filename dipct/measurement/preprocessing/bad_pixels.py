"""Bad detector pixels: find them, and fill them in along the detector."""

import numpy as np
from scipy import ndimage

from dipct.errors import DataError, ShapeError

MAD_TO_STD = 1.4826
"""Standard deviation of a Gaussian over its median absolute deviation."""


def find_bad_pixels(frames: np.ndarray, *, threshold: float = 8.0, window: int = 5) -> np.ndarray:
    """Detector pixels that stand out from their neighbours in all frames, or never change.

    The median frame is compared with the median of each pixel's neighbours; the spread of the
    differences is measured by their median absolute deviation, which the bad pixels themselves
    do not move (Rousseeuw and Croux 1993, J. Am. Stat. Assoc. 88, 1273). Flats are the best
    input; projections of a turning object serve too.

    Args:
        frames: flats or projections, [F R D] or [F D].
        threshold: number of robust standard deviations from which a pixel is bad.
        window: odd width of the neighbourhood along each detector axis, pixels.

    Returns:
        True where a pixel is bad, [R D] or [D].

    Raises:
        ShapeError: not a stack of frames.
        DataError: an even window or a threshold that is not positive.
    """
    frames = check_projections(frames, "frames")
    if window < 3 or window % 2 == 0 or not threshold > 0:
        raise DataError(
            "find_bad_pixels needs an odd window of at least 3 and a positive threshold; got "
            f"window={window}, threshold={threshold}."
        )
    finite = np.isfinite(frames).all(axis=0)
    frame = np.where(finite, np.median(np.where(finite, frames, 0.0), axis=0), 0.0)
    if np.any(~finite) and np.any(finite):
        frame[~finite] = np.median(frame[finite])
    deviation = frame - _median_of_neighbours(frame, window)
    deviation -= np.median(deviation)
    spread = MAD_TO_STD * np.median(np.abs(deviation))
    # A noise-free flat has no spread; rounding errors are then no bad pixels.
    floor = 1e-6 * np.max(np.abs(frame), initial=0.0)
    outlying = np.abs(deviation) > threshold * max(spread, floor)
    if len(frames) > 1:
        # Where most pixels change from frame to frame, one that never does is stuck.
        changes = np.ptp(np.where(finite, frames, 0.0), axis=0) > 0
        if np.mean(changes) > 0.5:
            outlying |= ~changes
    return outlying | ~finite


def _median_of_neighbours(frame: np.ndarray, window: int) -> np.ndarray:
    # Without the pixel itself: on a slope it would be its own median, and the spread zero.
    footprint = np.ones((window,) * frame.ndim, dtype=bool)
    footprint[(window // 2,) * frame.ndim] = False
    middle = np.count_nonzero(footprint) // 2
    lower, upper = (
        ndimage.rank_filter(frame, rank, footprint=footprint, mode="nearest")
        for rank in (middle - 1, middle)
    )
    return (lower + upper) / 2


def interpolate_bad_pixels(projections: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Replace bad values by linear interpolation along the detector columns.

    Beyond the outermost good pixel of a line its value is kept.

    Args:
        projections: [A R D] or [A D].
        mask: True where bad; [R D] or [D] for all views, or one per value.

    Returns:
        A filled copy, of the same shape and type.

    Raises:
        ShapeError: the mask does not fit.
        DataError: a detector line without a single good pixel.
    """
    filled = np.array(projections)
    check_projections(filled, "projections")
    bad = np.asarray(mask, dtype=bool)
    if bad.shape not in (filled.shape, filled.shape[1:]):
        raise ShapeError(
            f"mask must have shape {filled.shape[1:]} (the detector) or {filled.shape}; "
            f"got {bad.shape}."
        )
    bad = np.broadcast_to(bad, filled.shape)
    hopeless = bad.all(axis=-1)
    if np.any(hopeless):
        where = tuple(int(i) for i in np.argwhere(hopeless)[0])
        raise DataError(
            f"All pixels of detector line {where} (view{', row' if len(where) == 2 else ''}) are "
            "bad: nothing to interpolate from. Drop the view or crop the row."
        )
    columns = np.arange(filled.shape[-1])
    for line in map(tuple, np.argwhere(bad.any(axis=-1))):
        wrong = bad[line]
        filled[line][wrong] = np.interp(columns[wrong], columns[~wrong], filled[line][~wrong])
    return filled


def check_projections(values: np.ndarray, name: str) -> np.ndarray:
    """Check that values are real numbers in [A D] or [A R D], and return them as float64.

    Raises:
        ShapeError: another number of axes, or an empty one.
        DataError: not real numbers.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise DataError(f"{name} must be real numbers; got {array.dtype}.")
    if array.ndim not in (2, 3) or array.size == 0:
        raise ShapeError(
            f"{name} must have shape (views, columns) or (views, rows, columns), nothing empty; "
            f"got {array.shape}."
        )
    return array.astype(np.float64)
