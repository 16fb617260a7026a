"""Flat-field correction and the logarithm: from detector counts to line integrals."""

import numpy as np

from dipct.errors import DataError, ShapeError
from dipct.measurement.preprocessing.bad_pixels import check_projections, interpolate_bad_pixels


def transmission(
    counts: np.ndarray,
    flats: np.ndarray,
    darks: np.ndarray,
    *,
    bad_pixels: np.ndarray | None = None,
) -> np.ndarray:
    """Fraction of the beam that reaches each detector pixel: ``(I - dark) / (flat - dark)``.

    Flat and dark frames are averaged first.

    Args:
        counts: detector readings, [A R D] or [A D].
        flats: readings with beam and without object, [F R D] or [F D], or one frame [R D] or [D].
        darks: readings without beam, in the same form as ``flats``.
        bad_pixels: pixels known to be bad, boolean, [R D] or [D]; NaN in the result.

    Returns:
        Transmission, float32, of the shape of ``counts``, dimensionless.

    Raises:
        ShapeError: counts, flats, darks or mask do not belong to the same detector.
        DataError: values that are not finite, or flats not above the darks outside ``bad_pixels``.
    """
    counts = check_projections(counts, "counts")
    detector = counts.shape[1:]
    dark = _mean_frame(darks, detector, "darks")
    beam = _mean_frame(flats, detector, "flats") - dark
    bad = np.zeros(detector, dtype=bool)
    if bad_pixels is not None:
        bad = np.asarray(bad_pixels, dtype=bool)
        if bad.shape != detector:
            raise ShapeError(
                f"bad_pixels must have the detector's shape {detector}; got {bad.shape}."
            )
    unlit = ~(np.isfinite(beam) & (beam > 0)) & ~bad
    if np.any(unlit):
        where = tuple(int(i) for i in np.argwhere(unlit)[0])
        raise DataError(
            f"{np.count_nonzero(unlit)} of {unlit.size} detector pixels have a mean flat that is "
            f"not above the mean dark, the first at {where}. If flats and darks are not swapped, "
            "mark these pixels in bad_pixels (find_bad_pixels helps) or crop them."
        )
    broken = ~np.isfinite(counts) & ~bad
    if np.any(broken):
        where = tuple(int(i) for i in np.argwhere(broken)[0])
        raise DataError(
            f"{np.count_nonzero(broken)} of {counts.size} counts are NaN or infinite, the first "
            f"at index {where}. Mark these pixels in bad_pixels or drop the views."
        )
    beam = np.where(bad, np.nan, beam)
    return ((counts - dark) / beam).astype(np.float32)


def line_integrals(
    transmission: np.ndarray,
    *,
    bad_pixels: np.ndarray | None = None,
    max_bad_fraction: float = 0.05,
) -> np.ndarray:
    """Line integrals of the attenuation: ``-log`` of the transmission.

    Where the transmission is not positive, or NaN, the logarithm does not exist: such values are
    interpolated along the detector like bad pixels.

    Args:
        transmission: [A R D] or [A D], dimensionless.
        bad_pixels: further values to interpolate, boolean; [R D] or [D] for all views, or one
            per value.
        max_bad_fraction: largest share of values outside ``bad_pixels`` that may be replaced.

    Returns:
        Line integrals, float32, of the same shape, dimensionless.

    Raises:
        ShapeError: the mask does not fit.
        DataError: too many values, or a whole detector line, are not usable.
    """
    values = check_projections(transmission, "transmission")
    known_bad = np.zeros(values.shape, dtype=bool)
    if bad_pixels is not None:
        mask = np.asarray(bad_pixels, dtype=bool)
        if mask.shape not in (values.shape, values.shape[1:]):
            raise ShapeError(
                f"bad_pixels must have shape {values.shape[1:]} or {values.shape}; "
                f"got {mask.shape}."
            )
        known_bad |= mask
    # NaN marks pixels that transmission() was told are bad.
    known_bad |= np.isnan(values)
    unusable = ~(np.isfinite(values) & (values > 0)) & ~known_bad
    share = np.count_nonzero(unusable) / values.size
    if share > max_bad_fraction:
        raise DataError(
            f"{share:.1%} of the transmissions are not positive, more than the "
            f"{max_bad_fraction:.1%} that may be interpolated. Check flats and darks; if the "
            "object is opaque, expose longer or crop it out."
        )
    bad = known_bad | unusable
    with np.errstate(divide="ignore", invalid="ignore"):
        integrals = -np.log(np.where(bad, 1.0, values))
    return interpolate_bad_pixels(integrals, bad).astype(np.float32)


def _mean_frame(frames: np.ndarray, detector: tuple[int, ...], name: str) -> np.ndarray:
    """Mean of several frames, or the one frame, [*detector]."""
    array = np.asarray(frames, dtype=np.float64)
    if array.shape == detector:
        return array
    if array.ndim == len(detector) + 1 and array.shape[1:] == detector and len(array) > 0:
        return array.mean(axis=0)
    raise ShapeError(
        f"{name} must be one frame of the detector's shape {detector} or a stack of them, "
        f"(F, {', '.join(map(str, detector))}); got {array.shape}."
    )
